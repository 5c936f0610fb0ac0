"""Making an anchor: a tokenizer and a small OLMo-2 from scratch, or an existing OLMo-2 taken as it is.

Either way the result is a plain Hugging Face folder plus `flexo/`: what all owners must share (see
`merge.formats.anchor_folder`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from flexmix.documents.corpus import copy_sample, find_split, read_documents
from flexmix.documents.hub import local_folder
from flexmix.packing.loaders import EvalLoader
from flexmix.packing.windows import Batch
from flexmix.tokens.shard import is_shard, shard_texts, text_digest
from flexmix.tokens.train_tokenizer import END_OF_TEXT, PAD, train_tokenizer
from flexo.atomic_files import new_folder
from flexo.console import Advance, progress
from flexo.errors import InputError
from merge.formats.anchor_folder import BITS_PER_BYTE, PUBLIC_TEXT, REFERENCE, SHARED, write_shared
from merge.formats.model_folder import name_of
from merge.model_files.kept_files import copy_beside
from merge.model_files.weight_files import weight_files
from trainers.anchor.adoption import open_adopted
from trainers.anchor.context_layer import add_context_layer, held_out_loss
from trainers.data import packed_windows, plain_windows
from trainers.distributed import is_first, measuring_device, running_on
from trainers.loop.module import LitAnchor
from trainers.loop.run import Run
from trainers.loop.trainer import Metrics
from trainers.router.row_init import moment_tensors, public_router, router_input_moments

CONTEXT_HEADS = 8  # of an anchor that is trained here, unless it is said
FEATURE_WINDOWS = 16_384  # of public text, from which features of tokens are learned, at most
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"


@dataclass(frozen=True)
class AnchorOptions:
    """An existing model, or the numbers of a new one."""

    path: str | None = None  # a local OLMo-2 folder, or hf://OWNER/NAME, to take as it is
    revision: str | None = None  # of a hub repository
    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    context_heads: int | None = 0  # of a context layer that the finished model gets; None: 8, none with `path`
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False
    moments: bool = True  # ship second moments of the router input, L D^2 bytes; discriminant rows need them
    reference_bytes: int = 4_000_000  # of public text to ship with the anchor; held-out text comes to a tenth

    def __post_init__(self) -> None:
        if self.heads < 0:
            raise InputError(f"anchor.context_heads={self.heads}: expected 0 or a positive number.")

    @property
    def heads(self) -> int:
        """Of a context layer (`trainers.anchor.context_layer`); 0 if the model gets none."""
        if self.context_heads is None:
            return CONTEXT_HEADS if self.path is None else 0
        return self.context_heads


def train_anchor(anchor: AnchorOptions, data_path: Path, run: Run) -> Metrics:
    """Makes the anchor folder `run.output` from public text in `data_path` (`train` and `test` as `.jsonl[.gz]`).

    For a model taken as it is, `data_path` may be a folder that `flexo-data prepare` made with that model's tokenizer.
    If there is to be a context layer, `run.say` is told in a line what it changes.

    Returns:
        Held-out loss before and after training, in nats per token; empty for a model taken as it is.

    Raises:
        InputError: text or model are unusable, or the output is not free.
    """
    run.check_whole("an anchor")
    text = {split: find_split(data_path, split) for split in ("train", "test")}
    writer = _Writer(anchor, text, run)
    if anchor.path is not None:
        run.seed_everything()
        writer.adopt()
        return {}
    if is_shard(text["train"]):
        raise InputError(
            f"{data_path}: holds tokens of another tokenizer, and a new anchor gets a tokenizer of its own. Give text "
            "(train.jsonl[.gz] and test.jsonl[.gz]), or take an existing model with anchor.path=FOLDER."
        )
    digests = {split: text_digest(path) for split, path in text.items()}
    with run.work_folder({"anchor": asdict(anchor)} | run.settings | {"text": digests}) as work:
        blank = _blank(anchor, text["train"], work / "blank")
        held_out = plain_windows(text["test"], blank, run.data)
        texts = run.texts(packed_windows(text["train"], blank, run.data), {"public": held_out})
        model = Olmo2ForCausalLM(Olmo2Config.from_pretrained(blank))
        run.trainer.prepare(model)
        lit = LitAnchor(model, run.optimizer, run.loss, run.data.steps, texts.held_out_names)
        before, after = run.fit(lit, texts, work, "training the anchor")
        metrics = {"loss_before": before["public/loss"], "loss_after": after["public/loss"]}
        if is_first():
            nn.Module.float(model)  # in place; transformers' own method has no types
            writer.write(model, blank, {"training": run.extent | {"lr": run.optimizer.peak} | metrics})
    return metrics


@dataclass(frozen=True)
class _Writer:
    """Writes an anchor folder: a model, with a context layer if one is asked for, and what owners must share."""

    anchor: AnchorOptions
    text: dict[str, Path]  # public, by split
    run: Run

    def adopt(self) -> None:
        """Takes an existing OLMo-2 byte for byte, or with a context layer."""
        assert self.anchor.path is not None
        folder = local_folder(self.anchor.path, self.anchor.revision)
        given = open_adopted(folder)
        from_hub = not Path(self.anchor.path).is_dir()  # its commit is the name of its folder in the cache
        about: dict[str, Any] = {"taken_from": self.anchor.path if from_hub else name_of(folder)}
        about["revision"] = name_of(folder) if from_hub else None
        with new_folder(self.run.output) as output:
            model, made = given.model(), []
            if self.anchor.heads:
                model = self._with_context_layer(model, folder, about)
                model.save_pretrained(output)
                made = [path.name for path in [*output.iterdir(), *weight_files(folder)]]
            given.copy(output, self.run.say, but=set(made) - {"generation_config.json"})
            self._share(output, model, about)

    def write(self, model: PreTrainedModel, blank: Path, about: dict[str, Any]) -> None:
        """Writes a model that was trained here, the tokenizer of the folder `blank`, and `flexo/`."""
        with new_folder(self.run.output) as folder:
            if self.anchor.heads:
                model = self._with_context_layer(model, blank, about)
            model.save_pretrained(folder)
            copy_beside(blank, folder)
            self._share(folder, model, about)

    def _with_context_layer(self, model: PreTrainedModel, given: Path, about: dict[str, Any]) -> PreTrainedModel:
        """The model with a context layer; notes what that changes on held-out text. `given` has its tokenizer."""
        data, heads = self.run.data, self.anchor.heads
        public = EvalLoader(plain_windows(self.text["train"], given, data), data.batch_size, FEATURE_WINDOWS)
        held_out = EvalLoader(plain_windows(self.text["test"], given, data), data.batch_size, data.eval_windows)
        with progress("making the context layer", public.count + 2 * held_out.count, "windows") as advance:
            wide = add_context_layer(model, heads, _told(public, advance))
            changed = about["context_heads"] = {
                "heads": heads,
                "width_before": model.config.hidden_size,
                "width_after": wide.config.hidden_size,
                "loss_before": held_out_loss(model, _told(held_out, advance)),
                "loss_after": held_out_loss(wide, _told(held_out, advance)),
            }
        self.run.say(
            "a context layer of {heads} heads: width {width_before} -> {width_after}, loss on public text "
            "{loss_before:.4f} -> {loss_after:.4f} nats per token".format(**changed)
        )
        return wide

    def _share(self, folder: Path, model: PreTrainedModel, about: dict[str, Any]) -> None:
        """Adds `flexo/` to an anchor folder: the reference text, and the rows and moments measured on it."""
        reference = folder / SHARED / REFERENCE
        reference.mkdir(parents=True)
        sizes = {"train": self.anchor.reference_bytes, "test": self.anchor.reference_bytes // 10}
        about["reference"] = {
            split: copy_sample(
                path,
                reference / f"{split}.jsonl.gz",
                sizes[split],
                (lambda shard: shard_texts(shard, folder)) if is_shard(path) else None,
            )
            for split, path in self.text.items()
        }
        data, device = self.run.data, measuring_device(self.run.trainer.accelerator)
        if self.run.dtype == torch.bfloat16:  # the model is written; owners measure their text in this, too
            nn.Module.to(model, self.run.dtype)
        seen, held_out = (plain_windows(find_split(reference, split), folder, data) for split in ("train", "test"))
        loader = EvalLoader(seen, data.batch_size, data.moment_windows)
        measured = EvalLoader(held_out, data.batch_size, data.eval_windows)
        tokens = (loader.count + measured.count) * data.length
        with progress("measuring public text", tokens, "tokens") as advance, running_on(model, device):
            moments = router_input_moments(model, loader, advance)
            if measured.count:
                nats = held_out_loss(model, _told(measured, lambda windows: advance(windows * data.length)))
                per_byte = held_out.shard.tokens / about["reference"]["test"]["bytes"]
                about[PUBLIC_TEXT] = {"nats_per_token": nats, BITS_PER_BYTE: nats * per_byte / math.log(2)}
        about["router"] = {"init": "mean", "tokens": moments[0].count}
        write_shared(folder, public_router(moments), moment_tensors(moments) if self.anchor.moments else None, about)


def _told(batches: Iterable[Batch], advance: Advance) -> Iterator[Batch]:
    """The batches; `advance` is told the windows of each."""
    for batch in batches:
        yield batch
        advance(len(batch["labels"]))


def _blank(anchor: AnchorOptions, train: Path, folder: Path) -> Path:
    """A new model's folder with `config.json` and tokenizer but no weights, made once per run."""
    if folder.is_dir():
        return folder
    with new_folder(folder) as partial:
        tokenizer = _train_tokenizer(train, anchor.vocab_size)
        fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer,
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            model_max_length=anchor.max_position_embeddings,
            clean_up_tokenization_spaces=False,
        )
        fast.chat_template = CHAT_TEMPLATE
        fast.save_pretrained(partial)
        names = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "tie_word_embeddings",
        )  # fmt: skip
        Olmo2Config(
            vocab_size=tokenizer.get_vocab_size(),
            rope_parameters={"rope_type": "default", "rope_theta": anchor.rope_theta},
            bos_token_id=tokenizer.token_to_id(END_OF_TEXT),
            eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
            pad_token_id=tokenizer.token_to_id(PAD),
            **{name: getattr(anchor, name) for name in names},
        ).save_pretrained(partial)
    return folder


def _train_tokenizer(train: Path, vocab_size: int) -> Tokenizer:
    with progress("reading text for the tokenizer", None) as advance:

        def texts() -> Iterable[str]:
            for text in read_documents(train):
                yield text
                advance(len(text))

        tokenizer = train_tokenizer(texts(), vocab_size)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"{train}: too little text for a vocabulary of {vocab_size} (it gives {tokenizer.get_vocab_size()}). "
            "Give more public text, or a smaller anchor.vocab_size."
        )
    return tokenizer
