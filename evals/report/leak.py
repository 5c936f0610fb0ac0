"""What was got out of a model, for readers: a table as text, and tables and pictures of the report."""

from __future__ import annotations

from evals.matrix.results import markdown
from evals.privacy.leak import Leak

FIGURE = "{:.3f}".format


def leak_text(leak: Leak) -> str:
    """Markdown: every figure with its interval beside the anchor's, what is wrong with them, what was left out."""
    rows = [
        [
            row.part,
            row.figure,
            row.group,
            FIGURE(row.value),
            "" if row.low is None or row.high is None else f"{FIGURE(row.low)} to {FIGURE(row.high)}",
            "" if row.reference is None else FIGURE(row.reference),
        ]
        for row in leak.rows
    ]
    parts = [markdown([leak.model, "figure", "of", "value", "95 % interval", "anchor"], rows)]
    parts += [f"warning: {row.warning}\n" for row in leak.rows if row.warning]
    parts += [f"left out: {part} needs {' and '.join(needs)}\n" for part, needs in leak.left_out.items()]
    return "\n".join(parts)
