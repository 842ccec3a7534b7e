"""Metrics with confidence intervals: ROUGE, BLEU, classification scores and significance tests between systems."""

from duonlp.metrics.base import Metric
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.classification import ClassificationScorer, classification_scores, threshold_scores
from duonlp.metrics.comparison import Comparison, Difference, compare
from duonlp.metrics.predictions import read_predictions, write_predictions
from duonlp.metrics.rouge import Rouge

__all__ = [
    "Bleu",
    "ClassificationScorer",
    "Comparison",
    "Difference",
    "Metric",
    "Rouge",
    "Score",
    "classification_scores",
    "compare",
    "read_predictions",
    "threshold_scores",
    "write_predictions",
]
