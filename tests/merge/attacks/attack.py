"""An attack: how a hostile file is made, and the words that refuse it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merge.formats.anchor_folder import Anchor
from merge.formats.expert_file import write_expert
from merge.tensor_io.torch_tensors import tensor_digest
from tests.merge.tiny import expert_header, expert_values
from tests.merge.tools import rewrite_zip


@dataclass(frozen=True)
class Attack:
    """`make(forge, path)` writes the hostile file; `says` is a pattern of the refusal."""

    name: str
    says: str
    make: Callable[[Forge, Path], object]
    suffix: str = ".pt"


class Forge:
    """A good expert file in both containers, and ways to make others of it."""

    def __init__(self, folder: Path, anchor: Anchor) -> None:
        self.folder, self.mark = folder, folder / "code-was-run"
        self.values = expert_values("math", anchor, bias=True)
        self.good, self.good_table = folder / "good.pt", folder / "good.safetensors"
        header = expert_header("math", anchor)
        self.header = write_expert(self.good, header, self.values)
        write_expert(self.good_table, header, self.values)
        self.content: dict[str, Any] = torch.load(self.good, weights_only=True)

    def save(self, path: Path, content: object, **options: Any) -> None:
        """What torch.save makes of `content`."""
        torch.save(content, path, **options)

    def with_header(self, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        """The good file with a header that `change` has changed."""
        header = json.loads(self.content["header"])
        change(header)
        self.with_text(path, json.dumps(header))

    def with_text(self, path: Path, text: str) -> None:
        """The good file with another text as its header."""
        self.save(path, self.content | {"header": text})

    def with_tensor(self, path: Path, name: str, tensor: torch.Tensor) -> None:
        """The good file with another tensor, and the right sha256 for it. The writer would refuse some of them."""
        header = json.loads(self.content["header"])
        header["tensors"][name]["sha256"] = tensor_digest(tensor)
        tensors = self.content["tensors"] | {name: tensor}
        self.save(path, self.content | {"tensors": tensors, "header": json.dumps(header)})

    def with_program(self, path: Path, program: bytes) -> None:
        """The good file with another pickle."""
        rewrite_zip(self.good, path, lambda name, data: program if name == "data.pkl" else data)

    def with_table(
        self, path: Path, change: Callable[[dict[str, Any]], object], values: bytes = b"", cut: int = 0
    ) -> None:
        """The good safetensors file with a changed table, and `values` after or `cut` bytes less at its end."""
        table, old = self.table()
        change(table)
        text = json.dumps(table).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + old[: len(old) - cut] + values)

    def table(self) -> tuple[dict[str, Any], bytes]:
        data = self.good_table.read_bytes()
        length = int.from_bytes(data[:8], "little")
        return json.loads(data[8 : 8 + length]), data[8 + length :]
