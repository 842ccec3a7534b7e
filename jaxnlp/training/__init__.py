"""Pretraining on one CPU or a TPU pod, and fine-tuning: device meshes, training steps, input, checkpoints and loops."""

from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import GenerationScorer
from duonlp.training.result import FitResult
from duonlp.training.run_file import read_run
from jaxnlp.training.distributed import barrier, is_main, start
from jaxnlp.training.export import export
from jaxnlp.training.fit import fit
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.model import LazyModel
from jaxnlp.training.objectives import loss_terms
from jaxnlp.training.replaced_tokens import ReplacedTokensStep
from jaxnlp.training.step import FitStep, make_step
from jaxnlp.training.trainer import Result, evaluate, pretrain, pretrain_run

__all__ = [
    "FitConfig",
    "FitResult",
    "FitStep",
    "GenerationScorer",
    "LazyModel",
    "PretrainingConfig",
    "ReplacedTokensStep",
    "Result",
    "barrier",
    "evaluate",
    "export",
    "fit",
    "is_main",
    "loss_terms",
    "make_mesh",
    "make_step",
    "pretrain",
    "pretrain_run",
    "read_run",
    "start",
]
