# What `import flexo` gives: a line for each name, read by type checkers and by `flexo/lazy_names.py`. A name that is
# another one in its room takes two lines, `from room.module import other` and `name = other` below.
from evals.audit.audit import audit as audit
from evals.audit.policy import Audit as Audit
from evals.audit.policy import Limits as Limits
from evals.matrix.evaluate import Scoring as Scoring
from evals.matrix.evaluate import evaluate as evaluate
from evals.matrix.results import Results as Results
from evals.matrix.results import read_results as read_results
from evals.matrix.variants import Extras as Extras
from evals.report.report import write_report
from evals.scoring.held_out import Reading as Reading
from evals.study.recipe import Study as Study
from evals.study.study import StudyOptions as StudyOptions
from evals.study.study import run_study
from evals.tasks.folder import make_task_folder
from flexmix.documents.corpus import read_documents as read_documents
from flexmix.documents.flexmix_sets import mix_sets as mix_sets
from flexmix.documents.source import Source as Source
from flexmix.domains.embedding import Embedding as Embedding
from flexmix.domains.embedding import Likeness as Likeness
from flexmix.domains.embedding import compare
from flexmix.domains.embedding import read_embedding as read_embedding
from flexmix.domains.expected_gain import expected_gain as expected_gain
from flexmix.domains.expected_gain import forecast
from flexmix.domains.proxy_selection import choose_proxies
from flexmix.prepare.options import Options
from flexmix.prepare.pipeline import prepare as prepare
from flexmix.prepare.statistics import Statistics as Statistics
from flexmix.prepare.statistics import check_prepared as check_prepared
from flexmix.sample.build import build
from flexo.errors import ExpertFileError as ExpertFileError
from flexo.errors import InputError as InputError
from flexo.errors import ModelFolderError as ModelFolderError
from inference.attribution import Attribution as Attribution
from inference.attribution import attribute as attribute
from inference.check import Check as Check
from inference.check import check as check
from inference.generate import Generated as Generated
from inference.generate import Sampling as Sampling
from inference.generate import generate as generate
from inference.load import load_model as load_model
from inference.select import expert_names as expert_names
from inference.select import select_experts as select_experts
from merge.baselines.btx import MixtureOptions as MixtureOptions
from merge.baselines.btx import btx as btx
from merge.baselines.soup import soup as soup
from merge.formats.anchor_folder import Anchor as Anchor
from merge.formats.anchor_folder import open_anchor as open_anchor
from merge.formats.expert_file import ExpertFile as ExpertFile
from merge.formats.expert_file import open_expert as open_expert
from merge.formats.inspection import inspect as inspect
from merge.formats.inspection import verify as verify
from merge.formats.merged_folder import Merged as Merged
from merge.formats.merged_folder import open_merged as open_merged
from merge.formats.signing import make_key as make_key
from merge.formats.signing import sign as sign
from merge.planning.compress import RankBudget as RankBudget
from merge.planning.compress import compress as compress
from merge.planning.membership import opt_out as opt_out
from merge.planning.merge_options import MergeOptions as MergeOptions
from merge.planning.merging import merge_experts
from merge.planning.quantize import quantize as quantize
from trainers.anchor.train import AnchorOptions as AnchorOptions
from trainers.anchor.train import train_anchor as train_anchor
from trainers.data import DataOptions as DataOptions
from trainers.expert.paired import PairOptions as PairOptions
from trainers.expert.train import train_expert as train_expert
from trainers.full_finetune import WholeOptions as WholeOptions
from trainers.full_finetune import train_whole as train_whole
from trainers.loop.module import LossOptions as LossOptions
from trainers.loop.optimizer import OptimizerOptions as OptimizerOptions
from trainers.loop.run import Run as Run
from trainers.loop.trainer import TrainerOptions as TrainerOptions
from trainers.owner import Domain as Domain
from trainers.owner import OwnerOptions as OwnerOptions
from trainers.router.domain_embedding import encoded_embedding, measured_embedding
from trainers.router.fit_router import fit_router as fit_router
from trainers.router.train import RouterOptions as RouterOptions
from trainers.router.train import train_router as train_router

PrepareOptions = Options
cosines = compare
divergence = forecast
embed = measured_embedding
embed_documents = encoded_embedding
make_tasks = make_task_folder
merge = merge_experts
proxies = choose_proxies
report = write_report
sample = build
study = run_study

__version__: str
