"""Compare methods of learning from few labels on growing slices of the same texts."""

from duonlp.fewshot.comparison.data import ComparisonData, prepare
from duonlp.fewshot.comparison.run import compare, plan
from duonlp.fewshot.comparison.settings import ComparisonSettings

__all__ = ["ComparisonData", "ComparisonSettings", "compare", "plan", "prepare"]
