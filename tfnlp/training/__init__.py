"""Pretraining in Keras: blocks through ``model.fit``, on one device or under tf.distribute."""

from tfnlp.training.callbacks import BackupAndRestore, PretrainingLog, StopAtNonFiniteLoss
from tfnlp.training.input import block_dataset
from tfnlp.training.optimizers import AdamW, Schedule, make_optimizer
from tfnlp.training.pretrainer import Pretrainer, model_inputs

__all__ = [
    "AdamW",
    "BackupAndRestore",
    "Pretrainer",
    "PretrainingLog",
    "Schedule",
    "StopAtNonFiniteLoss",
    "block_dataset",
    "make_optimizer",
    "model_inputs",
]
