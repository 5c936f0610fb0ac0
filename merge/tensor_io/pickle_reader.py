"""Follows a pickle that `torch_zip` has recognised to the dictionary that it describes; no class of it is touched."""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

from merge.tensor_io.stored_tensor import DTYPES

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor as a pickle describes it: a view into a storage, which is an entry of the zip."""

    storage: str
    dtype: str
    values: int  # of the storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (DTYPES[self.dtype][1] if self.dtype in DTYPES else 1)

    @property
    def plain(self) -> bool:
        """Whether it is its whole storage in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return self.offset == 0 and self.values == math.prod(self.shape)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    values: int


_MARK = object()
_HOOKS = _Global("collections OrderedDict()")


def build(program: bytes) -> dict[str, Any] | None:
    """`{str: str | int | {str: Tensor}}` as the program builds it, or None if it builds anything else."""
    try:
        content = _run(program)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    if not isinstance(content, dict):
        return None
    for value in content.values():
        if isinstance(value, dict):
            if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
                return None
        elif type(value) not in (str, int):
            return None
    return content if all(isinstance(name, str) for name in content) else None


def _run(program: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO":
                pass
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NEWFALSE":
                stack.append(False)
            case "GLOBAL":
                stack.append(_Global(str(argument)))
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(_since_mark(stack)))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "SETITEM":
                value, name = stack.pop(), stack.pop()
                _set(stack[-1], [name, value])
            case "SETITEMS":
                items = _since_mark(stack)
                _set(stack[-1], items)
            case "STOP":
                return stack.pop() if len(stack) == 1 else None
            case _:
                raise ValueError(opcode.name)
    return None


def _since_mark(stack: list[Any]) -> list[Any]:
    at = max(place for place, value in enumerate(stack) if value is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _set(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise TypeError("an entry of what is no dictionary")
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, str) or name in target:
            raise ValueError("a name that is no text, or comes twice")
        target[name] = value


def _storage(kind: Any, storage: Any, key: Any, device: Any, values: Any) -> _Storage:
    if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str) or device != "cpu":
        raise ValueError("not a storage on the CPU")
    if type(values) is not int or values < 0:
        raise ValueError("not a number of values")
    module, _, name = storage.name.partition(" ")
    if module != "torch" or not name.endswith("Storage"):
        raise ValueError("not a storage")
    return _Storage(key, STORAGES.get(name, name.removesuffix("Storage")), values)


def _call(function: Any, arguments: Any) -> Any:
    if function == _Global("collections OrderedDict") and arguments == ():
        return _HOOKS
    if function != _Global("torch._utils _rebuild_tensor_v2"):
        raise ValueError("a call of something else")
    storage, offset, shape, stride, gradient, hooks = arguments
    if not isinstance(storage, _Storage) or gradient is not False or hooks is not _HOOKS or len(shape) != len(stride):
        raise ValueError("not a plain tensor")
    if any(type(count) is not int or not 0 <= count < 1 << 63 for count in (offset, *shape, *stride)):
        raise ValueError("not a shape")
    return Tensor(storage.key, storage.dtype, storage.values, offset, shape, stride)
