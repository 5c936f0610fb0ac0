"""How a merge is made: every setting of `flexo-merge` that is no file to read or write.

A setting is a field here and is checked in `__post_init__`. What decides about the result is used in `lay_out`; what
keeps experts out is used in `compatibility.admit`, which sees every expert that joins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from flexo.errors import InputError, UsageError
from merge.tensor_io.stored_tensor import DTYPES

if TYPE_CHECKING:
    from merge.formats.signatures import TrustedKeys
    from merge.planning.revocation import Revoked

DEFAULT_TOP_K = 4  # active experts per token, if there are as many
PUBLIC_WEIGHT = 4.0  # of a new merge; docs/log.md
ROUNDED_TO = {DTYPES[name][0]: name for name in ("BF16", "F16", "F32")}  # PyTorch's name -> that in files


@dataclass(frozen=True)
class MergeOptions:
    """Settings of a merge; None leaves each as the folder has it that experts join, replace or leave.

    Raises `InputError` for a value that no merge can have, and `UsageError` for settings that contradict each other.
    """

    top_k: int | None = None  # active experts per token, public included; in a new merge all, at most 4
    max_shard_size: int | None = None  # bytes of tensors per file; in a new merge 5 GB
    dtype: str | None = None  # what all weights are rounded to: float32, bfloat16 or float16; None rounds nothing
    public_weight: float | None = None  # prior weight of the public expert, in units of one domain; in a new merge 4
    trusted_keys: Path | None = None  # folder of public keys to check signatures with; None looks at no signature
    require_signatures: bool = False  # whether an expert that no trusted key has signed is refused
    revoked: Path | None = None  # file that lists experts and keys that are not to be used any more
    readmit: tuple[str, ...] = ()  # domains whose experts had left the folder and may come back
    reason: str = ""  # why they may; the manifest keeps it
    max_epsilon: float | None = None  # of differential privacy, of experts that join and state one; None: any
    require_privacy: bool = False  # whether an expert that states no guarantee is refused
    priors: Mapping[str, float] = field(default_factory=dict)  # of experts that join, in units of one domain; else 1
    verify: bool = True  # whether every tensor is compared with its sha256, and the anchor with its digest
    check: bool | None = None  # whether the merged model is run before it appears; None: up to 2 GB, where it can be

    def __post_init__(self) -> None:
        if self.public_weight is not None and not 0 < self.public_weight < inf:  # nor NaN
            raise InputError(f"--public-weight {self.public_weight}: expected a positive number.")
        if self.max_shard_size is not None and self.max_shard_size <= 0:
            raise InputError(f"--max-shard-size {self.max_shard_size}: expected a positive number of bytes.")
        if self.max_epsilon is not None and not self.max_epsilon > 0:  # nor NaN
            raise InputError(f"--max-epsilon {self.max_epsilon}: expected a positive number.")
        if self.readmit and not self.reason.strip():
            raise UsageError(f"--readmit {self.readmit[0]}: say why with --reason TEXT; the manifest keeps it.")
        if wrong := [domain for domain, prior in self.priors.items() if not 0 < prior < inf]:
            raise InputError(f"the prior of {wrong[0]!r} is {self.priors[wrong[0]]}, expected a positive number.")
        if self.dtype not in (None, *ROUNDED_TO):
            raise InputError(f"--dtype {self.dtype}: expected one of {', '.join(ROUNDED_TO)}.")
        if self.require_signatures and self.trusted_keys is None:
            raise UsageError("--require-signatures needs --trusted-keys FOLDER: whose signatures?")
        if self.trusted_keys is not None and not self.verify:
            raise UsageError("a signature is for tensors that are compared with it: --no-verify cannot go with it.")

    @property
    def stored_dtype(self) -> str | None:
        """`dtype` by its name in files, such as `BF16`."""
        return None if self.dtype is None else ROUNDED_TO[self.dtype]

    @cached_property
    def listed(self) -> Revoked | None:
        """What the file of revoked experts and keys lists, read once; raises `InputError` if it is none."""
        from merge.planning.revocation import read_revoked

        return None if self.revoked is None else read_revoked(self.revoked)

    @cached_property
    def trusted(self) -> TrustedKeys | None:
        """The trusted keys, read once; raises `SignatureError` if the folder holds none or something else."""
        from merge.formats.signatures import read_trusted_keys

        return None if self.trusted_keys is None else read_trusted_keys(self.trusted_keys)
