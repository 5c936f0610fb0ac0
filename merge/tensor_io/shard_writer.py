"""Writes the tensors of a model folder from other files: headers first, then every tensor straight to its place.

The place of every byte is known before the first is written, so several tensors are copied at once, each through one
small buffer: read, hashed, checked by `Scan`, and written, while other cores do the same with the next. What is hashed
is what is written. Without checks, the kernel copies and no byte passes through this process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from flexo.atomic_files import CHUNK
from flexo.console import Advance
from flexo.cpu_threads import usable_cores
from flexo.errors import InputError
from merge.tensor_io.float_formats import all_finite, rounded, to_float32
from merge.tensor_io.json_file import write_json
from merge.tensor_io.stored_tensor import FLOATS, OutputTensor, StoredTensor, table_bytes, tensor_title
from merge.tensor_io.value_checks import Scan

INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = 5_000_000_000  # bytes of tensors per file, unless another size is asked for
WORKERS = 4
KERNEL_CHUNK = 1 << 26
# what copy_file_range answers where it cannot copy between two such files
NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass
class Digests:
    """What verification saw: per written tensor, the sha256 of what was read and of what was written."""

    read: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)


def shards_of(tensors: list[OutputTensor], max_shard_size: int) -> list[list[OutputTensor]]:
    """The tensors of each file: in order, a new file where `max_shard_size` bytes would be passed."""
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_tensors(
    folder: Path, tensors: list[OutputTensor], max_shard_size: int, advance: Advance, verify: bool = True
) -> Digests:
    """Writes tensors into `model.safetensors`, or into numbered shards with an index when they pass `max_shard_size`.

    Args:
        folder: an existing folder.
        tensors: the tensors in the order in which they lie in the files.
        max_shard_size: bytes of tensors per file; a larger tensor gets a file of its own.
        advance: told the number of bytes as they are written, from several threads.
        verify: compare each tensor read from a file with the sha256 stated for it, and refuse values as `Scan` does.

    Returns:
        The digests, empty without `verify`.

    Raises:
        InputError: the refusal of a stored tensor whose bytes are not as stated, or whose values `Scan` refuses.
    """
    shards = shards_of(tensors, max_shard_size)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    with ExitStack() as files:
        copier = _Copier(files, advance, verify)
        for name, shard in zip(names, shards, strict=True):
            copier.add_shard(folder / name, shard)
        copier.run()
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    order = [tensor.name for tensor in tensors if verify]
    copier.digests.written = {name: copier.digests.written[name] for name in order}  # not as the threads came by
    return copier.digests


class _Copier:
    """The open files of one merge, and the threads that carry tensors between them."""

    def __init__(self, files: ExitStack, advance: Advance, verify: bool) -> None:
        self.files, self.advance, self.verify = files, advance, verify
        self.digests = Digests()
        self.inputs: dict[Path, int] = {}
        self.shards: list[list[tuple[OutputTensor, int, int]]] = []
        self.stop = threading.Event()
        self.kernel = True
        self.buffers = threading.local()

    def add_shard(self, path: Path, shard: list[OutputTensor]) -> None:
        """Writes the header of a file, gives the file its size, and notes where each tensor goes."""
        output = self.files.enter_context(path.open("xb", buffering=0)).fileno()
        header = table_bytes(((tensor.name, tensor.dtype, tensor.shape) for tensor in shard), {"format": "pt"})
        os.pwrite(output, header, 0)
        at = len(header)
        jobs = []
        for tensor in shard:
            if isinstance(tensor.origin, StoredTensor) and tensor.origin.path not in self.inputs:
                file = self.files.enter_context(tensor.origin.path.open("rb", buffering=0))
                self.inputs[tensor.origin.path] = file.fileno()
            jobs.append((tensor, output, at))
            at += tensor.nbytes
        self.shards.append(jobs)
        os.ftruncate(output, at)

    def run(self) -> None:
        workers = min(WORKERS, usable_cores())  # also where nothing is checked: the less work, the less time
        with ThreadPoolExecutor(workers) as pool:
            try:
                for done in as_completed([pool.submit(self.carry, *job) for job in self.jobs(workers)]):
                    done.result()
            except BaseException:  # a refusal, Ctrl-C, a signal: the threads end with the buffer they are at
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def jobs(self, workers: int) -> Iterator[tuple[OutputTensor, int, int]]:
        """All tensors, in turn from as many files as there are threads, so that they seldom wait for each other."""
        for first in range(0, len(self.shards), workers):
            for turn in zip_longest(*self.shards[first : first + workers]):
                yield from (job for job in turn if job)

    def carry(self, tensor: OutputTensor, output: int, at: int) -> None:
        """Brings one tensor to byte `at` of the file `output`."""
        if not isinstance(tensor.origin, StoredTensor):
            data = tensor.origin()
            assert len(data) == tensor.nbytes, f"{tensor.name}: planned {tensor.nbytes} bytes, made {len(data)}"
            _write(output, memoryview(data), at)
            if self.verify:
                self.digests.written[tensor.name] = hashlib.sha256(_title(tensor) + data).hexdigest()
            self.advance(tensor.nbytes)
        elif self.verify or tensor.converts:
            self.through_memory(tensor, tensor.origin, output, at)
        else:
            done = self.by_kernel(tensor.origin, output, at) if self.kernel else 0
            for begin, view in tensor.origin.chunks(self.inputs[tensor.origin.path], self.buffer(), done):
                self.put(output, view, at + begin)

    def through_memory(self, tensor: OutputTensor, stored: StoredTensor, output: int, at: int) -> None:
        scan, written = Scan(stored), hashlib.sha256(_title(tensor))
        same = not tensor.converts
        begin = 0
        for _, view in stored.chunks(self.inputs[stored.path], self.buffer(), 0):
            if self.verify:
                scan.see(view)
            out = view if same else memoryview(_converted(stored, view, tensor.dtype))
            if self.verify and not same:
                written.update(out)
            self.put(output, out, at + begin)
            begin += len(out)
        if self.verify:
            digest = self.digests.read[tensor.name] = scan.end()
            self.digests.written[tensor.name] = digest if same else written.hexdigest()

    def by_kernel(self, stored: StoredTensor, output: int, at: int) -> int:
        """Lets the kernel copy; returns the bytes copied, fewer than all where it cannot."""
        done = 0
        while done < stored.nbytes:
            self.check_stop()
            wanted = min(KERNEL_CHUNK, stored.nbytes - done)
            try:
                count = os.copy_file_range(self.inputs[stored.path], output, wanted, stored.start + done, at + done)
            except OSError as error:
                if error.errno not in NO_KERNEL_COPY:
                    raise
                count = 0
            if count == 0:
                self.kernel = False
                break
            done += count
            self.advance(count)
        return done

    def put(self, output: int, view: memoryview, at: int) -> None:
        self.check_stop()
        _write(output, view, at)
        self.advance(len(view))

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise InputError("stopped, because another tensor was refused.")

    def buffer(self) -> memoryview:
        """This thread's buffer."""
        if not hasattr(self.buffers, "view"):
            self.buffers.view = memoryview(bytearray(CHUNK))
        view: memoryview = self.buffers.view
        return view


def _title(tensor: OutputTensor) -> bytes:
    return tensor_title(tensor.dtype, tensor.shape)


def _converted(stored: StoredTensor, view: memoryview, dtype: str) -> bytes:
    assert stored.dtype in FLOATS, f"{stored.name}: no conversion from {stored.dtype}"
    if not all_finite(view, stored.dtype):  # rounding would make numbers of some of them
        raise stored.refusal(
            f"{stored.path}: {stored.name} holds NaN or infinite values. The training that made it failed, or the file "
            "was damaged."
        )
    data = rounded(to_float32(view, stored.dtype), dtype)
    if not all_finite(data, dtype):
        raise stored.refusal(
            f"{stored.path}: {stored.name} holds values that {dtype} cannot hold. Choose another --dtype."
        )
    return data


def _write(output: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(output, view, at)
        view, at = view[count:], at + count
