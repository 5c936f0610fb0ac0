"""The model card of a merged folder: who is in it, under which licence, and how to run it."""

from __future__ import annotations

from typing import Any


def model_card(manifest: dict[str, Any], name: str) -> str:
    """Markdown with a metadata header, from the manifest of a merge."""
    experts = manifest["experts"]
    rows = "\n".join(_row(expert) for expert in experts)
    licences = {e["licence"] for e in experts if "licence" in e}
    licence = licences.pop() if len(licences) == 1 else "other"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: {_yaml(licence.lower())}
tags: [flexolmo, mixture-of-experts, flexo]
---

# {name}

A FlexOlmo mixture of {len(experts)} experts, {manifest["top_k"]} active per token, made by flexo:
{manifest.get("how", "merged without training")}. {_trained(manifest)}

{_quantised(manifest)}| expert | domain | title | licence | training tokens |
|---|---|---|---|---|
{rows}

Anchor: `{manifest["anchor"]["name"]}`, digest `{manifest["anchor"]["digest"][:16]}`. `manifest.json` has the rest.

## Use

```python
from transformers import pipeline

print(pipeline("text-generation", "{name}")("The", max_new_tokens=40)[0]["generated_text"])
```

`echo "The" | flexo-generate {name}/` puts the end-of-text token before the prompt, as before each document in training;
`--experts public,{experts[-1]["domain"]}` uses only these experts, `--attribution` shows which expert made which token.
"""


def _quantised(manifest: dict[str, Any]) -> str:
    """How experts are quantised, if they are, and what loading them takes."""
    if not (scheme := manifest.get("quantised")):
        return ""
    return (
        f"Experts are quantised to {scheme['bits']} bits, {scheme['group_size']} weights to a scale; nothing else is. "
        "transformers needs compressed-tensors to load them.\n\n"
    )


def _trained(manifest: dict[str, Any]) -> str:
    """What was trained when the experts were together."""
    if "training" in manifest:
        return f"All weights were trained together on {manifest['training']['tokens']:,} tokens of pooled text."
    router = manifest.get("router_training")
    if isinstance(router, dict) and router.get("kind") == "moments":
        return (
            "The experts were trained apart from each other, and the router was fitted to means and second moments of "
            "each domain; no text went into putting them together."
        )
    if not router:
        return (
            "The experts were trained apart from each other; no training and no data went into putting them together."
        )
    return (
        "The router rows were trained after the merge, on public text and public proxies of the domains; nothing else "
        "was. `manifest.json` says how much."
    )


def _row(expert: dict[str, Any]) -> str:
    licence = _cell(expert.get("licence", "as the anchor"))
    tokens = f"{expert['training']['tokens']:,}" if "training" in expert else ""
    return f"| {expert['index']} | {expert['domain']} | {_cell(expert['title'])} | {licence} | {tokens} |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _yaml(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
