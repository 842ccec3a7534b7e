"""Metrics with confidence intervals: ROUGE, BLEU, classification and answer scores, significance tests between systems."""

from duonlp.metrics.base import Metric
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.classification import ClassificationScorer, classification_scores, threshold_scores
from duonlp.metrics.comparison import Comparison, Difference, compare
from duonlp.metrics.predictions import read_predictions, write_predictions
from duonlp.metrics.question_answering import (
    BestThreshold,
    ExampleScores,
    SquadScores,
    best_threshold,
    exact_match,
    example_scores,
    normalize_answer,
    read_answers,
    read_null_gaps,
    squad_scores,
    token_f1,
    write_answers,
    write_null_gaps,
)
from duonlp.metrics.report import (
    ClassificationReport,
    ClassScores,
    classification_report,
    entity_report,
    regression_scores,
    tags_of_ids,
)
from duonlp.metrics.rouge import Rouge

__all__ = [
    "BestThreshold",
    "Bleu",
    "ClassScores",
    "ClassificationReport",
    "ClassificationScorer",
    "Comparison",
    "Difference",
    "ExampleScores",
    "Metric",
    "Rouge",
    "Score",
    "SquadScores",
    "best_threshold",
    "classification_report",
    "classification_scores",
    "compare",
    "entity_report",
    "exact_match",
    "example_scores",
    "normalize_answer",
    "read_answers",
    "read_null_gaps",
    "read_predictions",
    "regression_scores",
    "squad_scores",
    "tags_of_ids",
    "threshold_scores",
    "token_f1",
    "write_answers",
    "write_null_gaps",
    "write_predictions",
]
