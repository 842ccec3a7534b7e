"""Training in Keras with ``model.fit``, on one device or under a tf.distribute strategy."""

from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import GenerationScorer
from duonlp.training.result import FitResult
from tfnlp.training.callbacks import BackupAndRestore, PretrainingLog, StopAtNonFiniteLoss, StopAtSigterm
from tfnlp.training.evaluation import GenerationEvaluation, SaveBest
from tfnlp.training.fit import fit
from tfnlp.training.input import batch_dataset, block_dataset
from tfnlp.training.optimizers import Adafactor, AdamW, Lion, Schedule, make_optimizer
from tfnlp.training.pretrainer import Pretrainer, model_inputs
from tfnlp.training.replaced_tokens import ReplacedTokensPretrainer

__all__ = [
    "Adafactor",
    "AdamW",
    "BackupAndRestore",
    "FitConfig",
    "FitResult",
    "GenerationEvaluation",
    "GenerationScorer",
    "Lion",
    "Pretrainer",
    "PretrainingLog",
    "ReplacedTokensPretrainer",
    "SaveBest",
    "Schedule",
    "StopAtNonFiniteLoss",
    "StopAtSigterm",
    "batch_dataset",
    "block_dataset",
    "fit",
    "make_optimizer",
    "model_inputs",
]
