"""Hyperparameter search with Optuna."""

from duonlp.tuning.plots import plot_history, plot_importance, plot_pareto, plot_slices
from duonlp.tuning.runs import RunSearch, TuneSettings, tune_runs
from duonlp.tuning.search import Interrupted, Report, TuningResult, importances, tune
from duonlp.tuning.search_space import Choices, Objective, Range, front, read_objectives, read_space
from duonlp.tuning.study import TrialRecord, open_study

__all__ = [
    "Choices",
    "Interrupted",
    "Objective",
    "Range",
    "Report",
    "RunSearch",
    "TrialRecord",
    "TuneSettings",
    "TuningResult",
    "front",
    "importances",
    "open_study",
    "plot_history",
    "plot_importance",
    "plot_pareto",
    "plot_slices",
    "read_objectives",
    "read_space",
    "tune",
    "tune_runs",
]
