"""A picture of a run from the metrics that its CSV logger wrote, joined over its interruptions."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

PANELS = {
    "loss, nats per token": ["train/loss"],
    "router: own vs public, weighted": ["train/own_vs_public"],
    "router on training text": ["train/router_mass", "train/router_entropy"],
    "gradient norm": ["train/grad_norm"],
    "tokens per second": ["train/tokens_per_second"],
}


def read_metrics(work: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, of all starts of a run.

    A start that went back to a checkpoint repeats steps; the last one that took a step counts.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    versions = sorted(work.glob("metrics/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in versions:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        found[name][int(row["step"])] = float(value)
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def draw_curves(work: Path, title: str) -> Path | None:
    """Draws `curves.png` in a run's work folder; None without metrics, or if matplotlib is not installed."""
    metrics = read_metrics(work)
    panels = {label: names for label, names in PANELS.items() if any(len(metrics.get(name, ())) > 1 for name in names)}
    if not panels:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    figure.suptitle(title)
    for axes, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            if values := metrics.get(name):
                axes.plot(list(values), list(values.values()), linewidth=1, label=name.removeprefix("train/"))
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        if len(names) > 1:
            axes.legend(fontsize=7)
    path = work / "curves.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
