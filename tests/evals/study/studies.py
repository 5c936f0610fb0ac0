"""Studies as the command line composes them, and the settings of a miniature one."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from evals.study.recipe import Study
from flexo.config_dir import config_dir
from trainers.entry.hydra_entry import read

SMALL_WINDOWS = "data.length=32,data.batch_size=4,data.eval_windows=4"
ANCHOR = (
    "anchor.vocab_size=320,anchor.hidden_size=32,anchor.intermediate_size=64,anchor.num_hidden_layers=2,"
    "anchor.num_attention_heads=4,anchor.num_key_value_heads=2,anchor.max_position_embeddings=64,data.tokens=4096,"
    "data.moment_windows=32"
)


def _listed(settings: str) -> str:
    return ",".join(f"'{setting}'" for setting in settings.split(","))


MINIATURE = (
    "study.tokens=1536", "study.router_tokens=1536", "study.max_bytes=3000", "study.choose=[--count,'20']",
    f"study.anchor=[{_listed(f'{ANCHOR},{SMALL_WINDOWS}')}]", f"study.train_router=[{_listed(SMALL_WINDOWS)}]",
    f"study.train=[{_listed(f'{SMALL_WINDOWS},data.moment_windows=32')}]",
)  # fmt: skip


def study(name: str, *overrides: str) -> Study:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return read(compose("run_study", [f"study={name}", *overrides]), "study", Study)
