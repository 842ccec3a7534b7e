"""Log a training run: console, metrics.jsonl, TensorBoard, Weights & Biases, and plots of the losses."""

from duonlp.training.log.console import ConsoleDisplay
from duonlp.training.log.curves import plot_learning_curve, plot_run
from duonlp.training.log.learning_curve import LearningCurve, learning_curve_table, read_learning_curve
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.log.metrics_log import MetricsLog, NullLog, perplexity
from duonlp.training.log.plots import plot_loss
from duonlp.training.log.trackers import TensorBoard, WeightsAndBiases

__all__ = [
    "ConsoleDisplay",
    "LearningCurve",
    "MetricsLog",
    "NullLog",
    "TensorBoard",
    "WeightsAndBiases",
    "learning_curve_table",
    "perplexity",
    "plot_learning_curve",
    "plot_loss",
    "plot_run",
    "read_learning_curve",
    "read_metrics",
]
