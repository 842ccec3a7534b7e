"""Pretraining on one CPU or a TPU pod: mesh, step, input, checkpoints, and the loop over them."""

from jaxnlp.training.checkpoints import read_run
from jaxnlp.training.distributed import barrier, is_main, start
from jaxnlp.training.export import export
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.model import LazyModel
from jaxnlp.training.step import make_step
from jaxnlp.training.trainer import Result, evaluate, pretrain, pretrain_run
from shared.training.config import PretrainingConfig

__all__ = [
    "LazyModel",
    "PretrainingConfig",
    "Result",
    "barrier",
    "evaluate",
    "export",
    "is_main",
    "make_mesh",
    "make_step",
    "pretrain",
    "pretrain_run",
    "read_run",
    "start",
]
