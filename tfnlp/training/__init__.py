"""Training in Keras: blocks and pairs through ``model.fit``, on one device or under tf.distribute."""

from shared.training.generated import GenerationScorer
from tfnlp.training.callbacks import BackupAndRestore, PretrainingLog, StopAtNonFiniteLoss
from tfnlp.training.fit import GenerationEvaluation, SaveBest, pair_dataset
from tfnlp.training.input import block_dataset
from tfnlp.training.optimizers import Adafactor, AdamW, Schedule, make_optimizer
from tfnlp.training.pretrainer import Pretrainer, model_inputs

__all__ = [
    "Adafactor",
    "AdamW",
    "BackupAndRestore",
    "GenerationEvaluation",
    "GenerationScorer",
    "Pretrainer",
    "PretrainingLog",
    "SaveBest",
    "Schedule",
    "StopAtNonFiniteLoss",
    "block_dataset",
    "make_optimizer",
    "model_inputs",
    "pair_dataset",
]
