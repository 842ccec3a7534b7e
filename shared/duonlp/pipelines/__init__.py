"""Pipelines, which convert raw inputs to results with a task and a model."""

from duonlp.pipelines.embedding import TextEncoder, embed
from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline, make_pipeline
from duonlp.pipelines.trained import trained_pipeline

__all__ = ["Pipeline", "TextEncoder", "embed", "load_pipeline", "make_pipeline", "trained_pipeline"]
