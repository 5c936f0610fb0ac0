# What `import flexo` gives: a line for each name, read by type checkers and by `flexo/lazy_names.py`. A name that is
# another one in its room takes two lines, `from room.module import other` and `name = other` below.
from evals.audit.audit import audit as audit
from evals.audit.policy import Audit as Audit
from evals.audit.policy import Limits as Limits
from evals.study.study import run_study
from flexmix.domains.proxy_selection import choose_proxies
from flexmix.prepare.pipeline import prepare as prepare
from flexmix.sample.build import build
from flexo.errors import ExpertFileError as ExpertFileError
from flexo.errors import InputError as InputError
from flexo.errors import ModelFolderError as ModelFolderError
from inference.attribution import Attribution as Attribution
from inference.attribution import attribute as attribute
from inference.check import Check as Check
from inference.check import check as check
from inference.generate import Sampling as Sampling
from inference.load import load_model as load_model
from inference.select import expert_names as expert_names
from inference.select import select_experts as select_experts
from merge.formats.anchor_folder import Anchor as Anchor
from merge.formats.anchor_folder import open_anchor as open_anchor
from merge.formats.expert_file import ExpertFile as ExpertFile
from merge.formats.expert_file import open_expert as open_expert
from merge.formats.merged_folder import open_merged as open_merged
from trainers.anchor.train import train_anchor as train_anchor
from trainers.expert.train import train_expert as train_expert
from trainers.router.train import train_router as train_router

proxies = choose_proxies
sample = build
study = run_study

__version__: str
