"""Pipelines, which convert raw inputs to results with a task and a model."""

from duonlp.pipelines.embedding import TextEncoder, embed
from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline, make_pipeline
from duonlp.pipelines.trained import cached_pipeline, trained_pipeline

__all__ = ["Pipeline", "TextEncoder", "cached_pipeline", "embed", "load_pipeline", "make_pipeline", "trained_pipeline"]
