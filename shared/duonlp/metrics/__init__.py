"""Metrics with confidence intervals: ROUGE, BLEU, classification and retrieval scores, and significance tests between systems."""

from duonlp.metrics.base import Metric
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.classification import ClassificationScorer, classification_scores, threshold_scores
from duonlp.metrics.comparison import Comparison, Difference, compare
from duonlp.metrics.predictions import read_predictions, write_predictions
from duonlp.metrics.report import (
    ClassificationReport,
    ClassScores,
    classification_report,
    entity_report,
    regression_scores,
    tags_of_ids,
)
from duonlp.metrics.retrieval import query_scores, retrieval_scores
from duonlp.metrics.rouge import Rouge

__all__ = [
    "Bleu",
    "ClassScores",
    "ClassificationReport",
    "ClassificationScorer",
    "Comparison",
    "Difference",
    "Metric",
    "Rouge",
    "Score",
    "classification_report",
    "classification_scores",
    "compare",
    "entity_report",
    "query_scores",
    "read_predictions",
    "regression_scores",
    "retrieval_scores",
    "tags_of_ids",
    "threshold_scores",
    "write_predictions",
]
