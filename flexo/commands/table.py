"""Every command, and who uses it: one line each. `flexo`, the console scripts and the tests read this table."""

from __future__ import annotations

from typing import NamedTuple

from flexo.rooms import PREFIX, module_name

OWNER, COORDINATOR, APPLICATION, RESEARCHER = "owner", "coordinator", "application", "researcher"
ROLES = {
    OWNER: "A data owner trains an expert where the text is, and gives one file away",
    COORDINATOR: "A coordinator makes one model of experts, and lets experts join and leave",
    APPLICATION: "An application uses the model",
    RESEARCHER: "A researcher measures and compares",
}


class Command(NamedTuple):
    """A command: `flexo NAME`, and `flexo-NAME` unless it is a root script."""

    role: str
    name: str
    room: str
    does: str
    script: str = ""  # a module beside the rooms; without one, the command is in the room's commands/

    @property
    def program(self) -> str:
        """What a study's plan calls it."""
        return self.script or f"flexo-{self.name}"

    @property
    def function(self) -> str:
        """The name of its console script's function in `flexo.commands`, and of its module in the room."""
        return f"flexo_{self.name.replace('-', '_')}"

    @property
    def usage(self) -> str:
        """What to type: in a checkout a root script is run by its file."""
        return f"flexo {self.name}" if PREFIX or not self.script else "python " + self.script + ".py"

    @property
    def module(self) -> str:
        """The module to import, in a checkout or in a wheel."""
        return module_name(self.script or f"{self.room}.commands.{self.function}")


COMMANDS = (
    Command(OWNER, "data", "flexmix", "text for training: samples, token shards of documents, how domains differ"),
    Command(OWNER, "train-expert", "trainers", "train one expert on private text, into one file", "train_expert"),
    Command(OWNER, "embed", "trainers", "measure where the text lies in the anchor, for better routing"),
    Command(OWNER, "leak", "evals", "measure what can be got out of an expert file or a model"),
    Command(OWNER, "compress", "merge", "write an expert file again, smaller: a difference of low rank"),
    Command(OWNER, "sign", "merge", "sign an expert file, or make a key to sign with"),
    Command(
        COORDINATOR,
        "train-anchor",
        "trainers",
        "make the public model that experts are trained against",
        "train_anchor",
    ),
    Command(COORDINATOR, "inspect", "merge", "show what an expert file, a model or an anchor says about itself"),
    Command(COORDINATOR, "audit", "evals", "measure what expert files do to public text, and refuse by policy"),
    Command(COORDINATOR, "merge", "merge", "put expert files together into one model; no training, no text"),
    Command(COORDINATOR, "federation", "federation", "roles, policy and history of a federation; leaving binds"),
    Command(COORDINATOR, "check", "inference", "run a merged model and say whether it is sound"),
    Command(COORDINATOR, "optout", "merge", "take experts out of a merged model, exactly"),
    Command(COORDINATOR, "fit-router", "trainers", "fit the router to what `flexo embed` measured; no text"),
    Command(COORDINATOR, "train-router", "trainers", "train the router on public text and proxies", "train_router"),
    Command(COORDINATOR, "quantize", "merge", "write the model again with its experts in 8 or 4 bits"),
    Command(APPLICATION, "generate", "inference", "generate text, and show which expert made what"),
    Command(APPLICATION, "serve", "serving", "answer over HTTP, each request with the experts that its key allows"),
    Command(RESEARCHER, "eval", "evals", "measure models on held-out text"),
    Command(RESEARCHER, "report", "evals", "show what `flexo eval` measured, with pictures"),
    Command(RESEARCHER, "tasks", "evals", "make task files for lm-eval"),
    Command(RESEARCHER, "soup", "merge", "baseline: average dense models"),
    Command(RESEARCHER, "btx", "merge", "baseline: a mixture of dense models (Branch-Train-MiX)"),
    Command(RESEARCHER, "study", "evals", "train and measure all recipes and baselines, into one report", "run_study"),
)


def command_called(program: str) -> Command:
    """The command that a study, or Hydra, calls by the name of its program."""
    return next(command for command in COMMANDS if command.program == program)
