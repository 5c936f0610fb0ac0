"""An attributed answer as one HTML page: no script, nothing loaded from elsewhere, all text escaped.

Each token stands on the colour of its leading expert, the stronger the greater that expert's share; pointing at it
shows the shares and the router's weights layer by layer. Shares of the answer and of each layer are bars.
"""

from __future__ import annotations

from html import escape

from inference.views.answer import COUNTED, Report, colour, ranked, visible

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }
.prompt, .note { opacity: .65; } .note { font-size: .85rem; }
.text mark { color: inherit; background: rgb(var(--c) / calc(.12 + var(--s) * .6)); border-radius: .15rem; }
.text mark:hover { outline: 2px solid rgb(var(--c)); }
.bar { display: flex; height: 1.1rem; border-radius: .2rem; overflow: hidden; background: rgb(128 128 128 / .15); }
.bar span { background: rgb(var(--c)); width: calc(var(--s) * 100%); }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
td.share, td.layer { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1%; }
td.key::before { content: ""; display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem;
  background: rgb(var(--c)); margin-right: .5rem; }
tr.absent { opacity: .5; }
"""


def page(report: Report) -> str:
    """The whole page; write it as UTF-8."""
    answer = report.answer
    domains = [expert.domain for expert in answer.experts]
    colours = "".join(f".e{n} {{ --c: {' '.join(map(str, colour(n)))}; }}\n" for n in range(len(domains)))
    counted = [n for n, chooses in enumerate(answer.chooses) if chooses]
    tokens = zip(report.texts, answer.share_TE.tolist(), answer.weight_TLE.tolist(), strict=True)
    text = "".join(
        _token(text, shares, {n: weights[n] for n in counted}, domains) for text, shares, weights in tokens if text
    )
    layers = "".join(
        f'<tr><td class="layer">{n}</td><td>{_bar(shares, domains)}</td></tr>\n'
        if n in counted
        else f'<tr class="absent"><td class="layer">{n}</td><td>all experts are the same here: not counted</td></tr>\n'
        for n, shares in enumerate(answer.share_LE.tolist())
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which experts wrote this: {_safe(report.model)}</title>
<style>{STYLE}{colours}</style>
</head>
<body>
<h1>Which experts wrote this</h1>
<div class="text" dir="auto"><span class="prompt">{_safe(report.prompt)}</span>{text}</div>
<h2>Shares of the answer</h2>
{_bar(list(answer.shares.values()), domains)}
<table>
<tr><th class="share">share</th><th>expert</th><th>title</th><th>licence</th><th>contact</th></tr>
{_legend(report)}</table>
<h2>Layer by layer</h2>
<table>
{layers}</table>
<p class="note">Model {_safe(report.model)}, {len(answer.tokens)} tokens. Point at a token to see its experts.
{escape(COUNTED)}</p>
</body>
</html>
"""


def _token(text: str, shares: list[float], weights: dict[int, list[float]], domains: list[str]) -> str:
    leader, share = ranked(shares)[0]
    lines = [_listed(shares, domains, "{:.1%}")]
    lines += [f"layer {n}: {_listed(layer, domains, '{:.3f}')}" for n, layer in weights.items()]
    title = _safe("\n".join(lines))
    return f'<mark class="e{leader}" style="--s: {share:.3f}" title="{title}">{_safe(text)}</mark>'


def _listed(values: list[float], domains: list[str], form: str) -> str:
    return ", ".join(f"{domains[n]} {form.format(value)}" for n, value in ranked(values) if value > 0)


def _bar(shares: list[float], domains: list[str]) -> str:
    parts = (
        f'<span class="e{n}" style="--s: {share:.6f}" title="{_safe(domains[n])} {share:.1%}"></span>'
        for n, share in enumerate(shares)
        if share > 0
    )
    return f'<div class="bar">{"".join(parts)}</div>'


def _legend(report: Report) -> str:
    experts = report.answer.experts
    rows = []
    for n, share in ranked(list(report.answer.shares.values())):
        about = experts[n]
        absent = "" if share else ' class="absent"'
        cells = [f'<td class="share">{share:.1%}</td>', f'<td class="key e{n}">{_safe(about.domain)}</td>']
        cells += [f"<td>{_safe(cell)}</td>" for cell in (about.title, about.licence, about.contact)]
        rows.append(f"<tr{absent}>{''.join(cells)}</tr>\n")
    return "".join(rows)


def _safe(text: str) -> str:
    return escape(visible(text))
