"""Metrics with confidence intervals: ROUGE, BLEU, classification, answers and retrieval, and significance tests."""

from duonlp.metrics.base import Metric
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.classification import ClassificationScorer, classification_scores, threshold_scores
from duonlp.metrics.comparison import Comparison, Difference, compare
from duonlp.metrics.learning_curves import (
    CurvePoint,
    learning_curve_plot,
    learning_curve_scores,
    learning_curves,
    summarize_runs,
)
from duonlp.metrics.multi_label import (
    AveragePrecision,
    average_precision,
    multi_label_report,
    multi_label_scores,
    threshold_predictions,
    top_k_predictions,
)
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
from duonlp.metrics.retrieval import query_scores, retrieval_scores
from duonlp.metrics.rouge import Rouge
from duonlp.metrics.thresholds import F1Curves, choose_thresholds, f1_curve_plot, threshold_curves, top_k_curves

__all__ = [
    "AveragePrecision",
    "BestThreshold",
    "Bleu",
    "ClassScores",
    "ClassificationReport",
    "ClassificationScorer",
    "Comparison",
    "CurvePoint",
    "Difference",
    "ExampleScores",
    "F1Curves",
    "Metric",
    "Rouge",
    "Score",
    "SquadScores",
    "average_precision",
    "best_threshold",
    "choose_thresholds",
    "classification_report",
    "classification_scores",
    "compare",
    "entity_report",
    "exact_match",
    "example_scores",
    "f1_curve_plot",
    "learning_curve_plot",
    "learning_curve_scores",
    "learning_curves",
    "multi_label_report",
    "multi_label_scores",
    "normalize_answer",
    "query_scores",
    "read_answers",
    "read_null_gaps",
    "read_predictions",
    "regression_scores",
    "retrieval_scores",
    "squad_scores",
    "summarize_runs",
    "tags_of_ids",
    "threshold_curves",
    "threshold_predictions",
    "threshold_scores",
    "token_f1",
    "top_k_curves",
    "top_k_predictions",
    "write_answers",
    "write_null_gaps",
    "write_predictions",
]
