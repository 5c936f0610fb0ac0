"""What is wrong with a trained router, layer by layer, from its held-out metrics, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

SHUT, OPEN = 0.05, 0.95  # mass of the expert
LEVEL = 0.02  # mass on own and on public text that differs by less is the same
UNDECIDED = 0.995  # bits of the choice between two, of 1

ADVICE = {
    "shut": (
        "the expert is hardly ever chosen on its own text",
        "Start the rows at model.router_init=discriminant, or raise optimizer.row_lr.",
    ),
    "open": (
        "the expert is chosen for everything, public text included, and would take other experts' text in a merge",
        "Show the router public text: data.public_share=0.25 loss.own_vs_public=0.1.",
    ),
    "blind": (
        "the expert has the same share of own and of public text: averaging, not routing",
        "Start the rows at model.router_init=discriminant, with data.public_share=0.25 loss.own_vs_public=0.1, or "
        "train on more tokens.",
    ),
    "undecided": (
        "the router is undecided on own text (there was no public text to compare with)",
        "Start the rows at model.router_init=discriminant, or train on more tokens.",
    ),
}


def diagnose(domain: str, metrics: Mapping[str, float]) -> list[str]:
    """One line for each thing that is wrong with the router of `domain`, naming its layers; nothing if all is well.

    Args:
        domain: of the expert.
        metrics: `own/router_mass/layer_N`, `own/router_entropy/layer_N` (bits), and for public text the same, if any
            was held out.
    """
    found: dict[str, list[int]] = {}
    for n in range(sum(name.startswith("own/router_mass/layer_") for name in metrics)):
        own, entropy = metrics[f"own/router_mass/layer_{n}"], metrics[f"own/router_entropy/layer_{n}"]
        if fault := _fault(own, metrics.get(f"public/router_mass/layer_{n}"), entropy):
            found.setdefault(fault, []).append(n)
    lines = []
    for fault, layers in found.items():
        what, advice = ADVICE[fault]
        lines.append(f"router of {domain}, layer {_ranges(layers)}: {what}. {advice}")
    return lines


def _fault(own: float, public: float | None, entropy: float) -> str | None:
    if own < SHUT:
        return "shut"
    if public is None:
        return "open" if own > OPEN else "undecided" if entropy > UNDECIDED else None
    if min(own, public) > OPEN:
        return "open"
    return "blind" if abs(own - public) < LEVEL else None


def _ranges(layers: list[int]) -> str:
    """0-2, 5 for 0, 1, 2 and 5."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
