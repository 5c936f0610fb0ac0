"""Planning a merged model whose experts lie in 4 or 8 bits; `merge.planning.merge_plan.execute` writes it.

Every weight of every expert is quantised alone, from its own values. So an expert's bytes do not depend on the other
experts, and quantising a model and taking experts out of it give the same bytes in either order.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from flexo.console import Progress, no_progress
from flexo.errors import ModelFolderError, UsageError
from merge.formats.architecture import merged_tensors
from merge.formats.merged_folder import open_merged
from merge.formats.quantization import BITS, PARTS, Scheme, packed_tensors, scheme_for
from merge.planning.membership import refuse_output, replan
from merge.planning.merge_plan import Plan, execute
from merge.tensor_io.float_formats import rounded, to_float32
from merge.tensor_io.stored_tensor import FLOATS, OutputTensor, StoredTensor
from merge.tensor_io.value_checks import scanned

AT_ONCE = 1 << 21  # values that are worked on at a time, by each thread


def quantized_plan(folder: Path, bits: int, group_size: int | None = None) -> Plan:
    """The merged model `folder` with its experts quantised; router, norms, embeddings and attention stay.

    Args:
        folder: made by `flexo-merge`, or by what changes its results.
        bits: 4 or 8.
        group_size: weights per scale; None takes 128, or the largest power of two below that divides the rows.

    Raises:
        InputError: the folder is quantised already, or the group size does not divide.
    """
    if scheme := open_merged(folder, quantised=True).scheme:
        raise ModelFolderError(
            f"{folder}: its experts are quantised to {scheme.bits} bits already. Quantise the model that it was made "
            "from."
        )
    made = replan(folder)
    arch, experts = made.base.architecture, len(made.members)
    scheme = scheme_for(arch, bits, group_size)
    tensors = {tensor.name: tensor for tensor in made.tensors}
    for name in merged_tensors(arch, experts):
        if isinstance(stored := tensors[name].origin, StoredTensor) and ".mlp.experts." in name:
            tensors |= {tensor.name: tensor for tensor in _Weight(stored, scheme).parts(name)}
    ordered = [tensors[name] for name in packed_tensors(arch, experts, scheme)]
    return replace(made, tensors=ordered, scheme=scheme)


def quantize(
    model: Path | str,
    output: Path | str,
    *,
    bits: int = 8,
    group_size: int | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """What `flexo-quantize` does: writes a merged model with its experts in 8 or 4 bits.

    Args:
        model: a folder made by `flexo-merge`.
        output: the folder to make, whole or not at all.
        bits: 8 or 4, for each weight of an expert.
        group_size: weights per scale; None takes 128, or the largest power of two below that divides the rows.
        progress: shows how far it is.

    Returns:
        What was written; its `scheme` says how.

    Raises:
        InputError: the model is quantised already or damaged, the group size does not divide, or the output is not
            free.
    """
    if bits not in BITS:
        raise UsageError(f"--bits {bits}: expected 8 or 4.")
    folder, target = Path(model), Path(output)
    refuse_output(folder, target)
    made = quantized_plan(folder, bits, group_size)
    with progress("quantising", made.nbytes) as advance:
        execute(made, target, advance)
    return made


class _Weight:
    """One weight of one expert, read and quantised when the first of its parts is asked for, and not again."""

    def __init__(self, stored: StoredTensor, scheme: Scheme) -> None:
        self.stored, self.scheme = stored, scheme
        self.lock = threading.Lock()
        self.made: dict[str, bytes] = {}

    def parts(self, name: str) -> list[OutputTensor]:
        dtypes = dict(zip(PARTS, ("I32", self.stored.dtype, "I64"), strict=True))
        shapes = self.scheme.parts(self.stored.shape)
        return [OutputTensor(name + part, dtypes[part], shapes[part], partial(self.part, part)) for part in PARTS]

    def part(self, part: str) -> bytes:
        with self.lock:
            if part not in self.made:
                self.made = self.make()
            return self.made.pop(part)

    def make(self) -> dict[str, bytes]:
        stored = self.stored
        if stored.dtype not in FLOATS:
            raise stored.refusal(f"{stored.path}: {stored.name} has dtype {stored.dtype}, expected floating point.")
        data = scanned(stored)
        rows, columns = stored.shape
        line, step = stored.nbytes // rows, max(1, AT_ONCE // columns)
        packed, scales = bytearray(), bytearray()
        for first in range(0, rows, step):
            view = memoryview(data)[first * line : (first + step) * line]
            whole, scale = self.scheme.quantize(to_float32(view, stored.dtype).reshape(-1, columns), stored.dtype)
            packed += self.scheme.pack(whole)
            scales += rounded(scale, stored.dtype)
        shape = np.array(stored.shape, np.int64).tobytes()
        return dict(zip(PARTS, (bytes(packed), bytes(scales), shape), strict=True))
