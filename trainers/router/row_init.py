"""Router rows from statistics: the public row that all owners share, and what an owner's row starts from.

The router input x [D] of a layer is the residual stream after attention. Owners see the public moments, shipped with
the anchor, and their own; nobody sees another owner's.

* mean: `r = E[x] / E[|x|^2]`, the domain embedding scaled so that logits are of order one (FlexOlmo, arXiv 2507.07024,
  section 3.2, there with embeddings of a text encoder).
* discriminant: the linear discriminant between own and public text, `w = S^-1 (m_own - m_pub)` with S the mean of both
  covariances (shrunk), `c = -w.(m_own + m_pub) / 2`. FlexOlmo's gate has no bias, so c goes into the row along the
  direction v that has v.x = 1 on public text: `r = r_pub + s (w + c v)`. If states were Gaussian with covariance S, the
  margin `(r - r_pub).x` would be s times the log density ratio of own to public text, and independent owners' margins
  would compose into the posterior over all domains.
* random: entries drawn at random, scaled so that logits are of order one.
* public: the public row itself, so that the expert starts with half of the weight everywhere.
* kept: the row of the expert file that training goes on from.

`ROW_INITS` at the end is the list of them: a new one is a function and a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from flexmix.domains.embedding import read_embedding
from flexmix.domains.moments import Moments
from flexmix.packing.attention import model_inputs
from flexo.errors import InputError
from merge.formats.anchor_folder import BIAS_DIRECTION, BIAS_ERROR, Anchor
from merge.formats.architecture import ROUTER_WEIGHT
from merge.formats.expert_file import ExpertFile
from merge.formats.merged_folder import Merged
from merge.planning.router_screening import folded_row
from merge.tensor_io.covariance import packed
from trainers.distributed import running_on

LEAST = 1e-6  # of the mean diagonal entry
DISCRIMINANT = "model.router_init=discriminant", "Or use model.router_init=mean."  # what wants moments, what else to do


@torch.no_grad()
def router_input_moments(
    model: PreTrainedModel,
    batches: Iterable[dict[str, torch.Tensor]],
    advance: Callable[[float], None],
    device: torch.device | None = None,
) -> list[Moments]:
    """Moments of the router input of every layer of an anchor or merged model, over all positions of the batches.

    `advance` is told the tokens after each batch. On `device`, the model runs there meanwhile and then comes back.
    """
    moments = [Moments.empty(model.config.hidden_size) for _ in model.model.layers]
    with (
        running_on(model, device),
        seeing_router_inputs(model, lambda n, x_BTD: moments[n].update(x_BTD.flatten(0, -2))) as read,
    ):
        for batch in batches:
            read({name: part.to(model.device) for name, part in batch.items()})
            advance(batch["input_ids"].numel())
    return moments


@contextmanager
def seeing_router_inputs(
    model: PreTrainedModel, see: Callable[[int, torch.Tensor], None]
) -> Iterator[Callable[[dict[str, torch.Tensor]], None]]:
    """Gives a function that runs a model on a batch; `see` is told each layer's number and router input [B, T, D]."""

    def telling(n: int) -> Callable[..., None]:
        return lambda _module, inputs: see(n, inputs[0])

    def read(batch: dict[str, torch.Tensor]) -> None:
        model.model(**model_inputs(batch, model.config._attn_implementation), use_cache=False)

    hooks = [layer.mlp.register_forward_pre_hook(telling(n)) for n, layer in enumerate(model.model.layers)]
    was_training = model.training
    model.train(False)
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)


def check_merged_on(merged: Merged, anchor: Anchor) -> None:
    """Raises `InputError` unless the model was merged on this anchor."""
    about = merged.manifest.get("anchor")
    stated = str(about.get("digest")) if isinstance(about, dict) else "no anchor"
    if anchor.digest != stated:
        raise InputError(
            f"{anchor.folder}: its digest is {anchor.digest[:12]}, {merged.folder} was merged on {stated[:12]}. Give "
            "the anchor that the experts were trained with."
        )


def public_router(moments: list[Moments]) -> dict[str, torch.Tensor]:
    """The tensors of `public_router.safetensors` from the moments of public text, in float32."""
    tensors: dict[str, torch.Tensor] = {}
    for n, public in enumerate(moments):
        v_D = bias_direction(public)
        # E[(v.x - 1)^2] = v' E[xx'] v - 2 v.E[x] + 1
        error = (v_D @ public.second @ v_D - 2 * v_D @ public.mean + 1).clamp(min=0).sqrt()
        tensors[ROUTER_WEIGHT.format(n=n)] = mean_row(public)
        tensors[BIAS_DIRECTION.format(n=n)] = v_D
        tensors[BIAS_ERROR.format(n=n)] = error.reshape(1)
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def moment_tensors(moments: list[Moments]) -> dict[str, torch.Tensor]:
    """The tensors of `public_moments.safetensors`."""
    tensors: dict[str, torch.Tensor] = {}
    for n, part in enumerate(moments):
        deviation_D, correlation = map(torch.from_numpy, packed(part.covariance.numpy()))
        stored = {"mean": part.mean.float(), "deviation": deviation_D, "correlation": correlation}
        tensors |= {f"layers.{n}.{name}": tensor for name, tensor in stored.items()}
    return tensors


def public_moments(anchor: Anchor, n: int, purpose: str, instead: str = "") -> Moments:
    """What was measured of public text when the anchor was made, in layer `n`; nothing else is read.

    Raises `InputError`, which says for what `purpose` they were wanted and what to do `instead`, if it ships none.
    """
    stored = anchor.moments(n)
    if stored is None:
        raise InputError(
            f"{anchor.folder}: {purpose} needs the anchor's public moments, which it does not ship. Make one that "
            f"does: train_anchor.py with anchor.moments=true. {instead}".rstrip()
        )
    return Moments.of_covariance(*map(torch.from_numpy, stored))


@dataclass(frozen=True)
class RowBasis:
    """What an owner's router rows are made from."""

    anchor: Anchor  # for the public rows and moments
    scale: float  # s, the factor on a discriminant
    shrinkage: float  # share of its own variance added to each diagonal entry of S
    seed: int  # of random rows
    own: Sequence[Moments] = ()  # of the owner's text, layer by layer; for initialisations that read it
    begun: ExpertFile | None = None  # the expert file that training goes on from


@dataclass(frozen=True)
class RowInit:
    """A way in which an owner's router rows can start."""

    rows: Callable[[RowBasis], list[torch.Tensor]]  # [D] per layer, float32
    reads_text: bool = True
    reads_moments: bool = False  # those of public text, which an anchor may not ship


def starting_rows(init: str, basis: RowBasis) -> list[torch.Tensor]:
    """What the owner's router row starts from, [D] per layer; `init` is a key of `ROW_INITS`.

    Raises `InputError` if there is no such initialisation, or a discriminant is asked for and the anchor ships no
    moments.
    """
    check_row_init(init)
    return ROW_INITS[init].rows(basis)


def embedded_rows(path: Path, init: str, basis: RowBasis) -> list[torch.Tensor]:
    """`starting_rows` with the owner's moments from a domain embedding file.

    A text encoder's embedding serves `mean` alone: the same direction in every layer, as long as the public row.

    Raises:
        InputError: the file was measured with something else than this anchor, or lacks the second moments that
            `init` needs.
    """
    embedding, anchor = read_embedding(path), basis.anchor
    width = anchor.architecture.hidden_size
    if embedding.kind == "text" and init == "mean" and embedding.mean_LD.shape == (1, width):
        direction_D = embedding.mean_LD[0] / embedding.mean_LD[0].norm()
        return [direction_D * anchor.public_row(n).norm() for n in range(anchor.architecture.num_hidden_layers)]
    if embedding.kind != "router_input" or embedding.model != anchor.digest:
        raise InputError(
            f"{path}: measured with {embedding.model} ({embedding.kind}), router rows need the router input of this "
            f"anchor ({anchor.digest}). Make it with flexo-embed TEXT --anchor {anchor.folder} -o {path}"
        )
    if init == "mean":
        return embedding.rows()
    if embedding.second_LDD is None:
        raise InputError(
            f"{path}: holds means only, and model.router_init={init} needs second moments. Make it without "
            "--means-only, or set model.router_init=mean."
        )
    own = [Moments.of(mean, second) for mean, second in zip(embedding.mean_LD, embedding.second_LDD, strict=True)]
    return starting_rows(init, replace(basis, own=own))


def _mean_rows(basis: RowBasis) -> list[torch.Tensor]:
    return [mean_row(part).float() for part in basis.own]


def _discriminant_rows(basis: RowBasis) -> list[torch.Tensor]:
    rows, anchor = [], basis.anchor
    for n, part in enumerate(basis.own):
        public = public_moments(anchor, n, *DISCRIMINANT)
        w_D, intercept = discriminant(part, public, basis.shrinkage)
        v_D = anchor.router[BIAS_DIRECTION.format(n=n)].double()
        rows.append((anchor.public_row(n).double() + basis.scale * (w_D + intercept * v_D)).float())
    return rows


def _random_rows(basis: RowBasis) -> list[torch.Tensor]:
    """Entries of variance 1 / (D E[|x|^2])."""
    draw = torch.Generator().manual_seed(basis.seed)
    sizes = [float(part.second.trace() * len(part.mean)) for part in basis.own]
    return [
        torch.randn(len(part.mean), generator=draw) / size**0.5 for part, size in zip(basis.own, sizes, strict=True)
    ]


def _public_rows(basis: RowBasis) -> list[torch.Tensor]:
    return [basis.anchor.public_row(n) for n in range(basis.anchor.architecture.num_hidden_layers)]


def _kept_rows(basis: RowBasis) -> list[torch.Tensor]:
    """The rows of the expert file that training goes on from, with a bias folded in."""
    assert basis.begun is not None, "checked with the options"
    layers = range(basis.anchor.architecture.num_hidden_layers)
    return [torch.from_numpy(folded_row(basis.anchor, basis.begun, n)) for n in layers]


# every value that model.router_init takes; see the head of this module
ROW_INITS = {
    "mean": RowInit(_mean_rows),
    "discriminant": RowInit(_discriminant_rows, reads_moments=True),
    "random": RowInit(_random_rows),
    "public": RowInit(_public_rows, reads_text=False),
    "kept": RowInit(_kept_rows, reads_text=False),
}


def check_row_init(name: str) -> None:
    """Raises `InputError` unless `name` is one of `ROW_INITS`."""
    if name not in ROW_INITS:
        *most, last = map(repr, ROW_INITS)
        raise InputError(f"model.router_init: {name!r} does not fit. Expected {', '.join(most)} or {last}.")


def mean_row(moments: Moments) -> torch.Tensor:
    """The domain embedding over the mean squared norm, [D]."""
    return moments.mean / moments.second.trace()


def bias_direction(public: Moments, ridge: float = 1e-3) -> torch.Tensor:
    """The ridge solution v [D] of v.x = 1 over public text: (E[xx'] + ridge * its diagonal)^-1 E[x]."""
    v_D: torch.Tensor = torch.linalg.solve(_ridged(public.second, ridge), public.mean)
    return v_D


def discriminant(own: Moments, public: Moments, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [D] and intercept of the linear discriminant of own against public text."""
    pooled_DD = _ridged((own.covariance + public.covariance) / 2, shrinkage)
    w_D = torch.linalg.solve(pooled_DD, own.mean - public.mean)
    return w_D, -w_D @ (own.mean + public.mean) / 2


def _ridged(matrix_DD: torch.Tensor, share: float) -> torch.Tensor:
    """Every dimension's own diagonal entry grows by a share of itself; those that hold nothing stay solvable."""
    diagonal_D = matrix_DD.diagonal()
    return matrix_DD + share * diagonal_D.clamp(min=LEAST * float(diagonal_D.mean())).diag()
