"""The model card of a merged folder: its experts and their licences, and how to run it."""

from __future__ import annotations

from typing import Any

from merge.formats.expert_header import DOMAIN


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

{_quantised(manifest)}| expert | domain | title | licence | training tokens | privacy |
|---|---|---|---|---|---|
{rows}

Anchor: `{manifest["anchor"]["name"]}`, digest `{manifest["anchor"]["digest"][:16]}`. `manifest.json` has the rest.

## Use

```python
from transformers import pipeline

print(pipeline("text-generation", "{name}")("The", max_new_tokens=40)[0]["generated_text"])
```

`echo "The" | flexo-generate {name}/` puts the end-of-text token before the prompt, as before each document in training;
`--experts public,{experts[-1]["domain"]}` uses only these experts, `--attribution` shows which expert made which token.
{_leaving(manifest, name)}"""


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
        where = ", measured in the merged model" if router.get("measured_in") == "model" else ""
        return (
            "The experts were trained apart from each other, and the router was fitted to means and second moments of "
            f"each domain{where}; no text went into putting them together."
        )
    if not router:
        return (
            "The experts were trained apart from each other; no training and no data went into putting them together."
        )
    return (
        f"The experts were trained apart from each other, and then the router was trained on {_read(router)}; nothing "
        "else was."
    )


def _read(router: dict[str, Any]) -> str:
    """What a router was trained on; a manifest from elsewhere may say less, or anything."""
    try:
        parts = [f"{text['share']:.0%} {name}" for name, text in router["text"].items() if DOMAIN.fullmatch(name)]
        return f"{router['tokens']:,} tokens of public text, {', '.join(parts)} (documents like a domain's)"
    except (AttributeError, KeyError, TypeError, ValueError):
        return "public text"


def _leaving(manifest: dict[str, Any], name: str) -> str:
    """How an expert leaves, and what of it stays; only where the model was merged from expert files."""
    experts = manifest["experts"]
    if len(experts) < 3 or not manifest.get("tensors") or not all("file" in expert for expert in experts[1:]):
        return ""
    exactly = (
        "its weights and its row. The rows that stay were made with it there: they are not those of a model that never "
        "had it."
        if manifest.get("router_training")
        else "to the byte as if it had never been merged."
    )
    return f"""
## Leaving

`flexo-optout {name}/ --drop {experts[-1]["domain"]} -o smaller/` takes an expert out, {exactly}
"""


def _row(expert: dict[str, Any]) -> str:
    licence = _cell(expert.get("licence", "as the anchor"))
    tokens = f"{expert['training']['tokens']:,}" if "training" in expert else ""
    cells = [expert["index"], expert["domain"], _cell(expert["title"]), licence, tokens, _privacy(expert)]
    return f"| {' | '.join(map(str, cells))} |"


def _privacy(expert: dict[str, Any]) -> str:
    """The guarantee that an expert's owner states, if any."""
    stated = expert.get("privacy")
    if not isinstance(stated, dict) or not all(isinstance(stated.get(name), float) for name in ("epsilon", "delta")):
        return ""
    return f"epsilon {stated['epsilon']:.3g}, delta {stated['delta']:.2g}, by {_cell(str(stated.get('unit', '?')))}"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _yaml(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
