"""What a training run prints at its end: a table of its results, and what leaves the owner with the expert file."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from merge.formats.expert_header import TensorInfo
from trainers.expert.train import Result
from trainers.full_finetune import WholeResult
from trainers.loop.trainer import Metrics
from trainers.router.diagnosis import diagnose
from trainers.router.train import RouterResult


def anchor_summary(output: Path, metrics: Metrics) -> None:
    """Prints where the anchor is and what training did."""
    if metrics:
        before, after = metrics["loss_before"], metrics["loss_after"]
        print(f"loss on held-out public text: {before:.3f} -> {after:.3f} nats per token")
    print(f"wrote {output}/  next: python train_expert.py +domain=math anchor.path={output}")


def expert_summary(result: Result) -> None:
    """Prints the table of a trained expert, and every tensor that leaves."""
    header, private = result.header, result.header.privacy is not None
    table = Table(title=f"expert {header.domain}", show_header=False, title_justify="left")
    table.add_row("tokens trained on", f"{header.training.tokens:,} in {header.training.steps:,} steps")
    table.add_row("peak learning rate", f"{header.training.learning_rate:.2g}")
    losses, mass = header.training.losses, header.training.router_mass
    own, noised, here = (losses.own_before, losses.own_after), "", ""
    if private:  # the file does not say it
        own, mass = (result.before.get("own/loss"), result.after.get("own/loss")), result.after.get("own/router_mass")
        noised, here = ", with noise", " (not in the file)"
    table.add_row("own text", f"{header.data.documents:,} documents, {header.data.tokens:,} tokens{noised}")
    table.add_row("loss on own held-out text", _change(*own) + here)
    table.add_row("loss on public held-out text", _change(losses.public_before, losses.public_after))
    table.add_row("router mass on own text", "-" if mass is None else f"{mass:.2f} of 1{here}")
    table.add_row("file", f"{result.path}, {result.path.stat().st_size / 1e6:.2f} MB")
    if result.curves is not None:
        table.add_row("curves", str(result.curves))
    console = Console()
    console.print(table)
    for line in diagnose(header.domain, result.after):
        console.print(f"warning: {line}", highlight=False, markup=False)
    console.print(
        f"What leaves this machine if you send {result.path}: its header (flexo-inspect shows it) and "
        f"{len(header.tensors)} tensors. No text, no token, no sample of either."
    )
    for line in _families(header.tensors):
        console.print(f"  {line}", highlight=False)


def whole_summary(result: WholeResult) -> None:
    """Prints what training all weights did."""
    training, losses = result.training, result.training["losses"]
    print(f"{training['tokens']:,} tokens in {training['steps']:,} steps, {training['flops']:.3g} FLOPs")
    for name in ("own", "public"):
        print(f"loss on {name} held-out text: {_change(losses[f'{name}_before'], losses[f'{name}_after'])}")
    print(f"wrote {result.path}/" + (f"  curves: {result.curves}" if result.curves is not None else ""))


def router_summary(result: RouterResult) -> None:
    """Prints what router training changed, and that nothing else did."""
    table = Table(
        "text", "share", "loss, nats per token", "router mass of its expert", title=f"router of {result.path}"
    )
    for name, (before, after) in result.about["losses"].items():
        mass = [metrics[f"{name}/router_mass"] for metrics in (result.before, result.after)]
        share = result.about["text"].get(name, {"share": 0.0})["share"]
        table.add_row(name, f"{share:.0%}", _change(before, after), f"{mass[0]:.2f} -> {mass[1]:.2f} of 1")
    console = Console()
    console.print(table)
    console.print(f"wrote {result.path}/  rows trained: {result.about['rows']}; every other tensor is as it was")
    if result.curves is not None:
        console.print(f"curves: {result.curves}")


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "- (no held-out text)"
    return f"{before:.3f} -> {after:.3f} nats per token"


def _families(tensors: dict[str, TensorInfo]) -> list[str]:
    """Tensor names with the layer numbers folded into ranges."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, info in tensors.items():
        layer, part = re.fullmatch(r"layers\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
        families[part, f"{info.dtype} {list(info.shape)}"].append(int(layer))
    return [f"layers.{min(n)}-{max(n)}.{part}  {len(n)} x {shape}" for (part, shape), n in families.items()]
