"""Log a training run: console, metrics.jsonl, TensorBoard, Weights & Biases, and plots of the losses."""

from duonlp.training.log.console import ConsoleDisplay
from duonlp.training.log.curves import plot_run
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.log.metrics_log import MetricsLog, NullLog, perplexity
from duonlp.training.log.plots import plot_loss
from duonlp.training.log.trackers import TensorBoard, WeightsAndBiases

__all__ = [
    "ConsoleDisplay",
    "MetricsLog",
    "NullLog",
    "TensorBoard",
    "WeightsAndBiases",
    "perplexity",
    "plot_loss",
    "plot_run",
    "read_metrics",
]
