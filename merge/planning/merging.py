"""What `flexo-merge` does, for programs: expert files in, one model folder out.

    merge_experts(["experts/math.pt", "experts/news.pt"], "model", anchor="anchor")
    merge_experts(["model", "experts/law.pt"], "model2", options=MergeOptions(top_k=2))

`plan_merge` and `write_merge` are its two halves, for callers that show the plan first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flexo.atomic_files import refuse_occupied
from flexo.console import Progress, no_progress
from flexo.errors import UsageError
from merge.planning.check_process import can_check, check_by_running, checked_unasked
from merge.planning.membership import refuse_output, replan
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Plan, execute, plan


def merge_experts(
    experts: Sequence[Path | str],
    output: Path | str,
    *,
    anchor: Path | str | None = None,
    replace: Mapping[str, Path | str] | None = None,
    options: MergeOptions = MergeOptions(),
    progress: Progress = no_progress,
) -> Plan:
    """Assembles expert files into one FlexOlmo model folder that transformers and vLLM load; no training, no data.

    Args:
        experts: expert files, in the order of the experts; before them, a merged folder that they join.
        output: the folder to make, whole or not at all.
        anchor: the anchor folder; None looks where the headers say.
        replace: domain -> expert file that takes the place of the folder's expert.
        options: settings.
        progress: shows how far it is.

    Returns:
        What was merged; its `warnings` are about unusual router rows.

    Raises:
        InputError: an input is damaged, does not belong with the others or may not join, the output is not free, or the
            merged model did not pass its check.
    """
    made = plan_merge(experts, output, anchor=anchor, replace=replace, options=options)
    write_merge(made, output, options, progress)
    return made


def plan_merge(
    experts: Sequence[Path | str],
    output: Path | str,
    *,
    anchor: Path | str | None = None,
    replace: Mapping[str, Path | str] | None = None,
    options: MergeOptions = MergeOptions(),
) -> Plan:
    """The plan that `merge_experts` carries out, for callers that show it first. Raises alike, and writes nothing."""
    paths, newer = [Path(path) for path in experts], {name: Path(path) for name, path in (replace or {}).items()}
    folder = paths[0] if paths and paths[0].is_dir() else None
    if newer and not folder:
        raise UsageError("--replace changes a merged folder. Give that first: flexo-merge model/ --replace ...")
    if folder and not newer and len(paths) == 1:
        raise UsageError(f"{folder}: a folder and no expert to join it. Give expert files, or --replace.")
    anchor_path = None if anchor is None else Path(anchor)
    if folder is None:
        refuse_occupied(Path(output))
        return plan(paths, anchor_path, options)
    refuse_output(folder, Path(output))
    return replan(folder, options, join=paths[1:], replace=newer, anchor_path=anchor_path)


def write_merge(
    made: Plan, output: Path | str, options: MergeOptions = MergeOptions(), progress: Progress = no_progress
) -> str:
    """Writes a plan and runs the merged model before it appears, as `options` say; returns what `flexo-check` said."""
    anchor = made.anchor.folder if made.anchor else None
    if options.check and not can_check():
        raise UsageError("--check needs transformers, which is not installed here.")
    if options.check and not anchor:
        raise UsageError("--check compares with the anchor, which is not where the headers say: add --anchor.")
    wanted = checked_unasked(made.nbytes) if options.check is None else options.check
    report: list[str] = []

    def accept(finished: Path) -> None:
        if wanted and anchor:
            report.append(check_by_running(finished, anchor))

    with progress("merging", made.nbytes) as advance:
        execute(made, Path(output), advance, options.verify, accept)
    return "\n".join(report)
