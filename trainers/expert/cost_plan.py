"""A cost plan: what training an expert will need, before it is paid for. Parameters, memory per device, FLOPs, hours.

    python train_expert.py +domain=math anchor.path=hf://allenai/OLMo-2-1124-7B data.tokens=5_000_000_000 \
        data.length=4096 run.devices=8 run.strategy=fsdp run.activation_checkpointing=true plan=true hardware.name=h100

No weights are needed: the numbers follow from the architecture and the settings. Memory is what the formulas below say
must be there at once; an allocator's fragmentation and the framework itself come on top.

D hidden size, F feed-forward size, L layers, V vocabulary, H attention heads of size D / H, G of them for keys and
values, T positions in a window, N positions in a micro-batch on one device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from flexo.errors import InputError
from merge.formats.anchor_folder import SHARED, open_anchor
from merge.formats.architecture import Architecture, anchor_tensors, architecture_of
from merge.tensor_io.json_file import read_json
from trainers.expert.paired import PairOptions
from trainers.loop.gpu_specs import HARDWARE, Hardware
from trainers.loop.next_token_loss import chunk_rows
from trainers.loop.normuon import polar_flops
from trainers.loop.optimizer import Kind
from trainers.loop.run import Run

GIB = 1 << 30
USABLE = 0.92  # of a device's memory; the framework and fragmentation take the rest
WORTH = 0.67  # so much dearer, NorMuon's six tenths of the tokens cost what all of them cost with AdamW


# repository on the hub -> D, F, L, H, G; V is 100352 and the embeddings are not tied in all of them
PUBLISHED = {
    "hf://allenai/OLMo-2-0425-1B": (2048, 8192, 16, 16, 16),
    "hf://allenai/OLMo-2-1124-7B": (4096, 11008, 32, 32, 32),
    "hf://allenai/OLMo-2-1124-13B": (5120, 13824, 40, 40, 40),
    "hf://allenai/OLMo-2-0325-32B": (5120, 27648, 64, 40, 8),
}


@dataclass(frozen=True)
class Load:
    """What decides about the cost of a run."""

    tokens: int  # in all
    length: int  # T
    rows: int  # windows in a micro-batch on one device
    accumulate: int = 1  # micro-batches of a step
    devices: int = 1
    sharded: bool = False  # weights, gradients and optimiser state are spread over the devices (FSDP)
    bf16: bool = True
    rank: int | None = None  # of low-rank experts
    first_layer: int = 0  # that has an expert
    kind: Kind = "adamw"  # of optimiser
    recomputed: bool = False  # activations are computed twice instead of kept
    bias: bool = False
    device: str = "cuda"


@dataclass(frozen=True)
class CostPlan:
    """What a run needs: numbers of parameters, bytes, FLOPs."""

    frozen: int  # parameters
    trained: int
    weights: int  # bytes per device, from here on
    gradients: int
    optimizer: int
    activations: int
    flops_per_token: float  # of forward and backward
    flops_per_step: float  # of the optimiser on each device; elementwise work is not counted

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class HardwareOptions:
    """The devices that a cost plan is for."""

    name: str = "h100"  # a key of `HARDWARE`
    utilisation: float = 0.4  # the share of a device's peak FLOP/s that the run is expected to reach
    rent: float | None = None  # US dollars an hour and device; None: the usual one

    def __post_init__(self) -> None:
        if self.name not in HARDWARE:
            raise InputError(f"hardware.name={self.name}: expected one of {', '.join(HARDWARE)}.")
        if not 0 < self.utilisation <= 1:
            raise InputError(f"hardware.utilisation={self.utilisation}: expected a share above 0, at most 1.")


def published(name: str) -> Architecture | None:
    """The architecture of a published anchor by its repository on the hub, without a network."""
    if name not in PUBLISHED:
        return None
    hidden, ffn, layers, heads, groups = PUBLISHED[name]
    return Architecture(100_352, hidden, ffn, layers, heads, groups, False, 1e-6, 500_000.0)


def architecture_for(anchor: str) -> Architecture:
    """The architecture of an anchor folder, or of a published one by its repository; reads `config.json` at most.

    Raises `InputError` if it is neither, or no OLMo-2.
    """
    if (arch := published(anchor)) is not None:
        return arch
    folder = Path(anchor)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"anchor.path={anchor}: no folder with config.json. A cost plan needs one, or a published anchor on "
            f"the hub: {', '.join(PUBLISHED)}."
        )
    return architecture_of(read_json(folder / "config.json"), anchor)


def first_layer_for(anchor: str) -> int:
    """The first layer in which an expert learns something: 1 behind a context layer, which a made anchor may have."""
    folder = Path(anchor)
    return open_anchor(folder).first_layer if (folder / SHARED).is_dir() else 0


def load_of(run: Run, model: PairOptions, first_layer: int) -> Load:
    """The load of a run with these settings, whose experts learn from `first_layer` on."""
    data, trainer = run.data, run.trainer
    devices = trainer.devices * trainer.nodes
    return Load(
        tokens=data.trained_tokens,
        length=data.length,
        rows=max(1, data.batch_size // (devices * trainer.accumulate)),
        accumulate=trainer.accumulate,
        devices=devices,
        sharded=trainer.strategy == "fsdp",
        bf16=trainer.precision == "auto" or trainer.precision.startswith("bf16"),
        rank=model.rank,
        first_layer=first_layer,
        kind=run.optimizer.kind,
        recomputed=trainer.activation_checkpointing,
        bias=model.router_bias is not None,
    )


def plan_cost(arch: Architecture, load: Load) -> CostPlan:
    """The cost of training one expert of an anchor."""
    frozen = sum(map(_size, anchor_tensors(arch).values()))
    d, f, layers = arch.hidden_size, arch.intermediate_size, _trained_layers(arch, load)
    matrices = 3 * d * f if load.rank is None else 3 * load.rank * (d + f)
    trained = layers * (matrices + d + load.bias)
    spread = load.devices if load.sharded else 1
    return CostPlan(
        frozen=frozen,
        trained=trained,
        weights=ceil((frozen * (2 if load.bf16 else 4) + 4 * trained) / spread),
        gradients=ceil(4 * trained / spread),
        optimizer=ceil(_optimizer_state(arch, load, layers * matrices, trained) / spread),
        activations=_activations(arch, load) + (_gathered(arch, load) if load.sharded and load.devices > 1 else 0),
        flops_per_token=_flops_per_token(arch, load),
        flops_per_step=_normuon_flops(arch, load, layers) if load.kind == "normuon" else 0.0,
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _trained_layers(arch: Architecture, load: Load) -> int:
    return arch.num_hidden_layers - load.first_layer


def _optimizer_state(arch: Architecture, load: Load, matrices: int, trained: int) -> int:
    """Bytes of what an optimiser holds of the parameters, of which so many are within matrices."""
    d, f = arch.hidden_size, arch.intermediate_size
    if load.kind == "adafactor":
        return 4 * _trained_layers(arch, load) * (3 * (d + f) + d)
    return 8 * trained - (4 * matrices if load.kind == "normuon" else 0)


def _normuon_flops(arch: Architecture, load: Load, layers: int) -> float:
    """Of three matrices a layer, or of their factors, of which each device does its share."""
    d, f, r = arch.hidden_size, arch.intermediate_size, load.rank
    matrix = polar_flops(d, f) if r is None else polar_flops(r, d) + polar_flops(r, f)
    return ceil(3 * layers / load.devices) * matrix


def _gathered(arch: Architecture, load: Load) -> int:
    """The layer in use and the next one, whole, as FSDP gathers them."""
    d, f, kv = arch.hidden_size, arch.intermediate_size, _kv_size(arch)
    return 2 * (2 if load.bf16 else 4) * (2 * d * d + 2 * d * kv + 6 * d * f)


def _kv_size(arch: Architecture) -> int:
    return arch.hidden_size // arch.num_attention_heads * arch.num_key_value_heads


def kept_for_backward(arch: Architecture, load: Load) -> int:
    """Bytes of activations that forward leaves for backward.

    A layer keeps, in the dtype of computation, its feed-forward input and the difference of outputs (2 D), four
    products with gate and up projections (4 F; a low-rank pair 7 F, 4 D and 3 r), and for attention queries, keys,
    values and output (2 D + 2 D_kv); and in float32 the inputs of its four norms (3 D + D_kv). Frozen projections keep
    nothing. No gradient reaches into the attention of the first layer with an expert, nor below.
    """
    d, f, kv = arch.hidden_size, arch.intermediate_size, _kv_size(arch)
    n, c, layers = load.rows * load.length, 2 if load.bf16 else 4, _trained_layers(arch, load)
    ffn = c * (2 * d + 4 * f if load.rank is None else 4 * d + 7 * f + 3 * load.rank) + 4 * d
    attention = c * (2 * d + 2 * kv) + 4 * (2 * d + kv)
    whole = layers * ffn + (layers - 1) * attention
    if load.recomputed:
        whole = layers * c * d + ffn + attention
    return n * (whole + (4 + c) * d)  # the last norm's input, and the gradient that the loss has made


def _activations(arch: Architecture, load: Load) -> int:
    """What is kept, and on top the busiest moment: the logits of a chunk, or one layer's backward."""
    d, f, v = arch.hidden_size, arch.intermediate_size, arch.vocab_size
    n, c = load.rows * load.length, 2 if load.bf16 else 4
    return kept_for_backward(arch, load) + max(8 * chunk_rows(v, n, load.device) * v, n * c * (4 * f + 4 * d))


def _flops_per_token(arch: Architecture, load: Load) -> float:
    """Of forward and backward, two for each multiplication; attention as if documents were as long as the window."""
    d, f, v, layers = arch.hidden_size, arch.intermediate_size, arch.vocab_size, _trained_layers(arch, load)
    attention = _attention_flops(arch, load.length)
    if load.rank is None:
        networks, gradients = 2 * 2 * 3 * d * f, 2 * 3 * d * f
    else:
        networks = 2 * 3 * d * f + 2 * 3 * load.rank * (d + f)
        gradients = 2 * 3 * load.rank * (d + f)
    forward = load.first_layer * (attention + 6 * d * f) + layers * (attention + networks) + 2 * v * d
    # the first pair's input has no gradient, so neither its attention nor its frozen network has a backward
    backward = (layers - 1) * (attention + networks) + 2 * d * f + layers * gradients + 2 * v * d
    return float(forward + backward + (layers * (attention + networks) if load.recomputed else 0))


def _attention_flops(arch: Architecture, length: int) -> int:
    """Of one layer's forward for each token: projections, scores and values, the mean over a causal window."""
    d = arch.hidden_size
    return 2 * (2 * d * d + 2 * d * _kv_size(arch)) + 2 * length * d


def whole_flops_per_token(arch: Architecture, length: int, active: int = 1) -> float:
    """FLOPs of a training step for each token where everything is trained, counted as for a pair; a gate is left out.

    Args:
        arch: of a dense model, or of the anchor of a mixture of experts.
        length: tokens in a window.
        active: feed-forward networks that a token passes through.
    """
    d, f = arch.hidden_size, arch.intermediate_size
    attention = _attention_flops(arch, length)
    # a backward is twice the forward: one gradient of what came in, one of the weights
    return 3.0 * (arch.num_hidden_layers * (attention + active * 6 * d * f) + 2 * arch.vocab_size * d)


def cost_of(anchor: str, model: PairOptions, run: Run, hardware: HardwareOptions) -> str:
    """What training an expert with these settings needs, as text.

    Raises `InputError` if `anchor` is neither a folder nor a published one on the hub.
    """
    architecture = architecture_for(anchor)
    model.check_layers(architecture.num_hidden_layers)
    first_layer = model.first_trained_layer(first_layer_for(anchor))
    return render(anchor, architecture, load_of(run, model, first_layer), hardware)


def render(name: str, arch: Architecture, load: Load, hardware: HardwareOptions) -> str:
    """The cost plan of a run as text; `name` is the anchor's."""
    device, plan = HARDWARE[hardware.name], plan_cost(arch, load)
    tokens_a_step = load.rows * load.accumulate * load.length  # on a device
    optimizer = plan.flops_per_step / tokens_a_step
    rate = load.devices * device.flops * hardware.utilisation / (plan.flops_per_token + optimizer)
    hours = load.tokens / rate / 3600
    price = hours * load.devices * (device.rent if hardware.rent is None else hardware.rent)
    fits = plan.memory < USABLE * device.memory
    kind = "low rank, " + str(load.rank) if load.rank else "full rank"
    lines = [
        f"cost plan for {name}: {load.tokens:,} tokens on {load.devices} x {hardware.name}, {kind}",
        f"  parameters   {plan.frozen / 1e6:,.1f}M frozen, {plan.trained / 1e6:,.1f}M trained",
        f"  batch        {load.rows} windows of {load.length} tokens on a device at once",
        "  memory per device",
        f"    weights      {plan.weights / GIB:8.2f} GiB",
        f"    gradients    {plan.gradients / GIB:8.2f} GiB",
        f"    optimiser    {plan.optimizer / GIB:8.2f} GiB",
        f"    activations  {plan.activations / GIB:8.2f} GiB",
        f"    in all       {plan.memory / GIB:8.2f} GiB of {device.memory / GIB:.1f}: "
        + ("fits" if fits else "does not fit"),
        f"  FLOPs        {plan.flops_per_token / 1e9:,.2f} billion per token"
        + (f", and {optimizer / 1e9:,.2f} by {load.kind} at {tokens_a_step:,} a step and device" if optimizer else ""),
        f"  speed        {rate:,.0f} tokens/s, if {hardware.utilisation:.0%} of the peak is reached (an assumption)",
        f"  time, cost   {hours:,.1f} hours, {price:,.0f} US dollars",
    ]
    if optimizer > WORTH * plan.flops_per_token:
        lines.append("  try          more tokens a step, or optimizer.kind=adamw: this costs more than it saves")
    if not fits:
        lines.append(f"  try          {_advice(arch, load, device)}")
    return "\n".join(lines)


def _advice(arch: Architecture, load: Load, device: Hardware) -> str:
    """The first change that makes the run fit, from the cheapest to the dearest."""
    lean = replace(load, recomputed=True, rows=1)
    choices = {
        "run.activation_checkpointing=true": replace(load, recomputed=True),
        "run.activation_checkpointing=true and one window at a time (run.accumulate)": lean,
        "also optimizer.kind=normuon": replace(lean, kind="normuon"),
        "also optimizer.kind=adafactor": replace(lean, kind="adafactor"),
        "also model.rank=64": replace(lean, rank=64),
        "also run.strategy=fsdp on 8 devices": replace(lean, devices=max(8, load.devices), sharded=True),
    }
    for said, changed in choices.items():
        if plan_cost(arch, changed).memory < USABLE * device.memory:
            return said
    return "a device with more memory, or more of them with run.strategy=fsdp"
