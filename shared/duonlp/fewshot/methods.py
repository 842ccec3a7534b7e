"""The methods of learning from few labels by name; a new one is a row here and a file."""

import importlib
from pathlib import Path

from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import Classifier, Method, read_classifier
from duonlp.typing import Engine
from duonlp.util.suggestions import choice

METHODS = {
    "naive-bayes": "baselines:NaiveBayes",
    "tf-idf": "baselines:TfidfRegression",
    "embeddings": "baselines:EmbeddingRegression",
    "zero-shot": "zero_shot:EmbeddingZeroShot",
    "entailment": "zero_shot:EntailmentZeroShot",
    "lookup": "lookup:Lookup",
    "setfit": "setfit:SetFit",
    "fine-tune": "fine_tuning:FineTuning",
    "adapt": "fine_tuning:AdaptedFineTuning",
    "prompt": "prompting:PromptZeroShot",
    "pet": "prompting:PromptTuning",
    "adapet": "prompting:Adapet",
    "in-context": "in_context:InContext",
    "uda": "uda:UDA",
    "ust": "ust:UST",
}
"""Module and class of each method."""


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        InputError: There is no such method; the message suggests the nearest.
    """
    module, _, attribute = METHODS[choice("method", name, METHODS)].partition(":")
    return getattr(importlib.import_module(f"duonlp.fewshot.{module}"), attribute)


def load_classifier(folder: str | Path, package: Engine | None = None) -> Classifier:
    """Return a classifier that its ``save`` has written.

    Args:
        folder: The folder.
        package: tfnlp or jaxnlp, for methods that run a model.

    Raises:
        CheckpointError: The folder is missing or damaged.
        InputError: The method needs an engine.
    """
    files = read_classifier(folder)
    if files.method not in METHODS:
        raise CheckpointError(
            f"{folder} was made by the method {files.method!r}; known are {', '.join(METHODS)}: update duonlp"
        )
    method = method_class(files.method)
    if method.needs_engine and package is None:
        raise InputError(f"{folder} was made by {files.method}, which runs a model; pass package=tfnlp or jaxnlp")
    return method.classifier.load(files, package)
