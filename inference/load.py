"""Loading a merged folder, or any causal language model, with transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flexo.console import Progress, no_progress
from flexo.errors import InputError
from flexo.verbosity import is_verbose
from merge.formats.manifest import MANIFEST
from merge.formats.merged_folder import open_merged
from merge.formats.model_folder import ModelFolder
from merge.formats.quantization import Scheme
from merge.tensor_io.json_file import read_json

LOADING = "Loading weights"  # what transformers calls it
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    folder: Path | str, dtype: str = "auto", device: str = "auto", progress: Progress = no_progress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a local folder, in evaluation mode.

    Args:
        folder: a merged folder, an anchor, or another Hugging Face model folder.
        dtype: `auto` (as stored), `float32`, `bfloat16` or `float16`.
        device: `auto` (a GPU if there is one), or a name that PyTorch knows.
        progress: is told how many tensors of the model are in memory.

    Raises:
        InputError: the folder is not a whole model, or `dtype` or `device` cannot be had.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such GPU, a PyTorch built without its kind
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device {device}: cannot be used here ({reason}). Use cpu, or auto.") from None
    ModelFolder(folder)  # refuses damaged files with their name
    scheme = scheme_of_folder(folder)
    only_here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        given = {"config": _packed_config(folder, scheme, only_here)} if scheme else {}
        with _counted(progress):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=DTYPES[dtype], output_loading_info=True, **given, **only_here
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **only_here)
    except Exception as error:  # it fails in many ways: an unknown architecture, other shapes, no tokenizer
        raise InputError(f"{folder}: transformers cannot load it ({error}).") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{folder}: {len(missing)} tensors are missing, {missing[0]} among them. Was the folder copied in full?"
        )
    return model.to(device).eval(), tokenizer


@contextmanager
def _counted(progress: Progress) -> Iterator[None]:
    """Shows with ours what transformers would show with its own bar while it loads weights."""

    def shown(tensors: Collection[Any]) -> Iterator[Any]:
        with progress("loading the model", len(tensors)) as advance:
            for tensor in tensors:
                yield tensor
                advance(1)

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return shown(args[0]) if options.get("desc") == LOADING else make(*args, **options)

    logging: Any = transformers.utils.logging
    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def scheme_of_folder(folder: Path) -> Scheme | None:
    """How the experts of a folder made by `flexo-quantize` are quantised; None for any other model."""
    if not (folder / MANIFEST).exists() or not read_json(folder / MANIFEST).get("quantised"):
        return None
    return open_merged(folder, quantised=True).scheme


def _packed_config(folder: Path, scheme: Scheme, only_here: dict[str, Any]) -> Any:
    """The model's configuration, for experts that stay packed in memory."""
    from inference.packed_experts import METHOD

    config: Any = AutoConfig.from_pretrained(folder, **only_here)
    config.quantization_config = {"quant_method": METHOD} | scheme.to_dict()
    return config


def quiet() -> None:
    """Silences what transformers says about itself, unless `-v` asks for it; commands say what matters to people."""
    if is_verbose():
        return
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
