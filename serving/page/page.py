"""The page at `/`: experts to tick, a prompt, and an answer in which each token has its leading expert's colour.

One file with its own style and script; nothing is loaded from elsewhere, and the policy lets nothing else run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from inference.views.answer import colour
from serving.page.script import SCRIPT

MOST_COLOURS = 64
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#c8c8c8, #4a4a4a); --soft: light-dark(#f4f4f2, #242424); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 64rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem 1rem; }
h1 { font-size: 1.25rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 .4rem; }
#status { font-size: .9rem; }
#status::before { content: "\\25CF"; color: #c22; margin-right: .3rem; } #status.ready::before { color: #292; }
main { display: grid; grid-template-columns: minmax(0, 19rem) minmax(0, 1fr); gap: 1rem 1.5rem; margin-top: 1rem; }
label { display: block; } input, textarea, button { font: inherit; color: inherit; }
input:not([type=checkbox]), textarea { width: 100%; padding: .4rem .5rem; border: 1px solid var(--line);
  border-radius: .3rem; background: Canvas; }
textarea { min-height: 7rem; resize: vertical; }
button { padding: .45rem 1.1rem; border: 1px solid var(--line); border-radius: .3rem; background: var(--soft);
  cursor: pointer; min-height: 2.75rem; }
button.main { background: #0a5; color: #fff; border-color: #0a5; background: light-dark(#00713f, #00713f); }
button:disabled { opacity: .5; cursor: default; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
fieldset { border: 1px solid var(--line); border-radius: .4rem; margin: 0 0 1rem; padding: .6rem .8rem; min-width: 0; }
legend { font-weight: 600; padding: 0 .3rem; }
.expert { display: grid; grid-template-columns: auto auto 1fr auto; gap: 0 .5rem; align-items: center;
  min-height: 2.75rem; cursor: pointer; }
.expert input { width: 1.2rem; height: 1.2rem; } .expert small { grid-column: 3 / -1; opacity: .75; line-height: 1.3; }
.swatch { width: .9rem; height: .9rem; border-radius: .2rem; background: rgb(var(--c)); }
.share { font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; align-items: end; } .row label { width: 7.5rem; }
.bar { display: flex; height: .9rem; border-radius: .2rem; overflow: hidden; background: var(--soft); margin: .5rem 0; }
.bar span { background: rgb(var(--c)); }
#answer { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; min-height: 5rem; padding: .5rem .7rem;
  border: 1px solid var(--line); border-radius: .3rem; }
mark { color: inherit; background: rgb(var(--c) / calc(.15 + var(--s) * .5)); border-radius: .15rem; }
#told { min-height: 1.5rem; font-size: .9rem; } #told.wrong { color: light-dark(#a00, #ff8a8a); }
.prompt { opacity: .7; }
@media (max-width: 44rem) { main { grid-template-columns: minmax(0, 1fr); } }
"""
BODY = """
<header><h1>flexo-serve</h1><span id="status" role="status">asking the server ...</span></header>
<main>
<div>
<form id="enter"><label for="key">API key</label>
<div class="row"><input id="key" type="password" autocomplete="off" spellcheck="false" required>
<button>Use this key</button></div></form>
<fieldset id="experts" disabled><legend>Experts of your key</legend>
<div id="list">Enter a key to see the experts that you may use.</div></fieldset>
</div>
<form id="ask"><label for="prompt">Prompt</label>
<textarea id="prompt" required>Once upon a time</textarea>
<div class="row">
<label>Tokens <input id="most" type="number" min="1" max="4096" value="60"></label>
<label>Temperature <input id="temperature" type="number" min="0" max="2" step="0.1" value="0"></label>
<label>Seed <input id="seed" type="number" min="0" value="0"></label>
<button id="run" class="main" disabled>Run</button>
<button id="stop" type="button" disabled>Stop</button>
</div>
<h2 id="title">Answer</h2>
<div class="bar" id="bar" aria-hidden="true"></div>
<div id="answer" tabindex="0" aria-labelledby="title"></div>
<p id="told" role="status"></p>
</form>
</main>
"""


@cache
def page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    colours = "".join(f".e{n} {{ --c: {' '.join(map(str, colour(n)))}; }}\n" for n in range(MOST_COLOURS))
    style = STYLE + colours
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_source(SCRIPT)}; "
        f"style-src {_source(style)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>flexo-serve</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>{BODY}<script>{SCRIPT}</script></body>
</html>
"""
    return text, policy


def _source(text: str) -> str:
    """How a policy names a text that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
