"""What each owner's experts did in each month, from a server's log; and whether an owner's receipts are in it.

A token of an answer counts once, and its experts' shares of it sum to 1. An owner's tokens are the sum of the shares of
the experts that the model's manifest says are theirs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from flexo.errors import InputError
from merge.tensor_io.json_file import parse_json
from serving.receipts.log import Line, LogError

FIELDS = ("month", "owner", "expert", "licence", "answers", "tokens", "share")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .8rem .2rem 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; } tbody tr { border-top: 1px solid #8884; }
"""


@dataclass
class Row:
    """An expert in a month."""

    month: str
    owner: str  # as the manifest names them
    expert: str
    licence: str
    answers: int = 0  # that it had a part in
    tokens: float = 0.0  # of answers, times its share
    share: float = 0.0  # of all tokens of the month


def statement(lines: Iterable[tuple[str, Line]]) -> list[Row]:
    """The rows of a log, by month, owner and expert; raises `LogError` for a line that names an unknown model."""
    models: dict[str, dict[str, Mapping[str, str]]] = {}
    rows: dict[tuple[str, str, str], Row] = {}
    for digest, line in lines:
        try:
            if line["what"] == "model":
                models[line["model"]] = {expert["domain"]: expert for expert in line["experts"]}
            elif line["what"] == "answer":
                _add(rows, line, models[line["model"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise LogError(
                f"line {digest[:16]}: not as a server writes it ({type(error).__name__}: {error})."
            ) from None
    for month in {row.month for row in rows.values()}:
        among = [row for row in rows.values() if row.month == month]
        total = sum(row.tokens for row in among) or 1.0
        for row in among:
            row.share = row.tokens / total
    return [rows[key] for key in sorted(rows)]


def _add(rows: dict[tuple[str, str, str], Row], line: Line, experts: Mapping[str, Mapping[str, str]]) -> None:
    month, tokens = str(line["at"])[:7], int(line["completion_tokens"])
    for domain, share in line["shares"].items():
        about = experts[domain]
        owner = about.get("contact") or ("the anchor" if domain == "public" else "unknown")
        row = rows.setdefault((month, owner, domain), Row(month, owner, domain, about.get("licence", "")))
        row.answers += share > 0
        row.tokens += share * tokens


def as_csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in rows:
        cells = (_plain(cell) for cell in (row.month, row.owner, row.expert, row.licence))
        writer.writerow([*cells, row.answers, f"{row.tokens:.3f}", f"{row.share:.6f}"])
    return text.getvalue()


def as_html(rows: Iterable[Row]) -> str:
    """One page that loads nothing from elsewhere."""
    body = "".join(
        f"<tr><td>{escape(row.month)}<td>{escape(row.owner)}<td>{escape(row.expert)}<td>{escape(row.licence)}"
        f'<td class="n">{row.answers}<td class="n">{row.tokens:.1f}<td class="n">{row.share:.1%}</tr>\n'
        for row in rows
    )
    numbers = {"answers", "tokens", "share"}
    head = "".join(f'<th class="n">{field}' if field in numbers else f"<th>{field}" for field in FIELDS)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What each owner's experts did</title><style>{STYLE}</style>
<h1>What each owner's experts did</h1>
<table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table>
<p>Tokens are those of answers, times the expert's share of each. Shares are of the month.</p>
</html>
"""


def check_receipts(lines: Iterable[tuple[str, Line]], receipts: Path) -> int:
    """How many receipts, JSON lines, are in a log just as they are; raises `LogError` for the first that is not.

    Each has the `id`, `log` (sha256 of its line), `completion_tokens` and `shares` that came with an answer.
    """
    found: dict[str, tuple[str, Line]] = {}
    for digest, line in lines:
        if line.get("what") == "answer":
            if line["id"] in found:
                raise LogError(f"the answer {line['id']} is in the log twice.")
            found[line["id"]] = digest, line
    count = 0
    for number, text in enumerate(_lines_of(receipts), 1):
        try:
            receipt: dict[str, Any] = parse_json(text)
            digest, line = found.get(receipt["id"], ("", {}))
            same = digest == receipt["log"] and all(
                line.get(field) == receipt[field] for field in ("completion_tokens", "shares")
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{receipts}:{number}: not a receipt ({type(error).__name__}).") from None
        if not same:
            raise LogError(f"{receipts}:{number}: the log says otherwise of {json.dumps(receipt['id'])}, or nothing.")
        count += 1
    return count


def _lines_of(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Expected receipts as JSON lines.") from None


def _plain(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
