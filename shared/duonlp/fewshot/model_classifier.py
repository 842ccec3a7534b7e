"""A fine-tuned model as a classifier, and what the methods that train one share."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from duonlp.checkpoints import open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.rows.order import permuted
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, check_settings, write_classifier
from duonlp.runs.folder import training_module
from duonlp.runs.labelled import check_labels, matching_label_names
from duonlp.runs.models import load_for_training
from duonlp.schema import integer
from duonlp.tasks.base import softmax
from duonlp.training.fit_config import FitConfig
from duonlp.training.result import FitResult
from duonlp.typing import Engine, Tokenizer

HEAD = "sequence-classification"
AUTO_CLASS = "AutoModelForSequenceClassification"

MODEL = "model"
"""Subfolder of a classifier for its model."""

SETTINGS = {"max_length": integer(1, 1 << 20), "batch_size": integer(1, 1 << 20)}


@dataclass(frozen=True)
class ModelClassifier:
    """A fine-tuned model as a classifier.

    Attributes:
        method: Name of the method that trained it.
        package: tfnlp or jaxnlp.
        model: The model.
        tokenizer: Its tokenizer.
        label_names: Names of the labels.
        multi_label: Whether a text may have several labels, or none.
        max_length: Number of tokens that texts are truncated to.
        batch_size: Texts that are classified at a time.
    """

    method: str
    package: Engine
    model: Any
    tokenizer: Tokenizer
    label_names: tuple[str, ...]
    multi_label: bool
    max_length: int
    batch_size: int = 32

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]; without `multi_label`, rows add up to 1."""
        if not len(texts):
            return np.zeros((0, len(self.label_names)), np.float32)
        return self.probabilities(self.package.predict(self.model, self.batches(texts)))

    def batches(self, texts: Sequence[str]) -> LabelledBatches:
        """Return batches of texts, in an order of their own, for ``package.predict``."""
        # Few sizes and lengths, so that few shapes are compiled.
        size, widths = min(self.batch_size, 1 << (len(texts) - 1).bit_length()), few_widths(self.max_length)
        return LabelledBatches(
            list(texts), self.tokenizer, size, max_length=self.max_length, shuffle=False, widths=widths
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities that logits [..., C] stand for, float32."""
        if self.multi_label:
            return (0.5 + 0.5 * np.tanh(logits.astype(np.float64) / 2)).astype(np.float32)
        return softmax(logits.astype(np.float64)).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the classifier, its model to ``model/``."""
        settings = {"max_length": self.max_length, "batch_size": self.batch_size}
        files = ClassifierFiles(self.method, self.label_names, self.multi_label, settings)
        write_classifier(files, folder, lambda new: self.model.save_pretrained(new / MODEL, self.tokenizer))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: The folder is damaged.
            InputError: `package` is None.
        """
        if package is None:
            raise InputError(f"{files.folder} runs a model; pass package=tfnlp or jaxnlp")
        settings, folder = check_settings(files, SETTINGS), files.folder / MODEL
        if not folder.is_dir():
            raise CheckpointError(f"{files.folder} has no {MODEL}, the folder of its model; train again")
        checkpoint = open_checkpoint(folder)
        if checkpoint.transformer_config().labels != files.label_names:
            raise CheckpointError(f"{folder} has other labels than classifier.json; train again")
        model = getattr(package, AUTO_CLASS).from_pretrained(folder)
        return cls(
            files.method, package, model, checkpoint.tokenizer(), files.label_names, files.multi_label, **settings
        )


def load_classifier_model(
    method: str, package: Engine | None, name: str, texts: LabelledTexts, max_length: int, seed: int, dtype: str = "float32",
    initial_bias: Callable[[TransformerConfig], dict[str, np.ndarray]] | None = None,
) -> ModelClassifier:  # fmt: skip
    """Load a checkpoint to fine-tune it for the labels of texts.

    Args:
        method: Name of the method.
        package: tfnlp or jaxnlp.
        name: Folder in Hugging Face layout, or a Hub id.
        texts: Labeled texts.
        max_length: Maximum number of tokens of a text; the checkpoint may have a lower limit.
        seed: Seed of a new head.
        dtype: Compute dtype.
        initial_bias: Returns initial values of parameters of a new head by path, from the model's configuration.

    Raises:
        InputError: `package` is None, there are no texts, or the checkpoint is fine-tuned for other labels.
        CheckpointError: The checkpoint cannot be read.
    """
    if package is None:
        raise InputError(f"{method} trains a model; pass package=tfnlp or jaxnlp")
    if not len(texts):
        raise InputError(f"there are no training texts; {method} needs some labeled texts")
    names = tuple(texts.label_names)
    check_labels(name, names)
    if matching_label_names(name, names) not in (None, names):
        raise InputError(
            f"{name!r} is fine-tuned for the same labels in another order; read the data with its label_names"
        )
    checkpoint = open_checkpoint(name)
    kind = "multi_label_classification" if texts.multi_label else "single_label_classification"
    overrides: dict[str, Any] = {
        "num_labels": len(names), "id2label": dict(enumerate(names)),
        "label2id": {label: number for number, label in enumerate(names)}, "problem_type": kind,
    }  # fmt: skip
    values = None
    if initial_bias is not None and matching_label_names(name, names) is None:
        values = initial_bias(checkpoint.transformer_config(HEAD, **overrides))
    model, _ = load_for_training(package, AUTO_CLASS, name, dtype, seed, initial_values=values, **overrides)
    longest = min(max_length, checkpoint.transformer_config().max_length)
    return ModelClassifier(method, package, model, checkpoint.tokenizer(), names, texts.multi_label, longest)


def train(
    classifier: ModelClassifier, batches: Any, config: FitConfig, console: Any, **options: Any
) -> ModelClassifier:
    """Return a classifier after a short training with ``fit``.

    Args:
        classifier: The classifier before the training.
        batches: Batches of the training.
        config: Settings of the run.
        console: Whether to show progress, or the Console to show it on.
        options: Further arguments of ``fit``.
    """
    fit, options = training_module(classifier.package).fit, training_options(classifier.package) | options
    with TemporaryDirectory() if console else nullcontext() as folder:  # progress belongs to a folder
        result = fit(classifier.model, batches, config, folder, log={"console": console}, **options)
    return replace(classifier, model=completed(result).model)


def training_options(package: Engine) -> dict[str, Any]:
    """Return options of an engine's ``fit`` for a short training: in so few steps, XLA gains less than it takes to compile."""
    return {"jit_compile": False} if "jit_compile" in inspect.signature(training_module(package).fit).parameters else {}


def completed(result: FitResult) -> FitResult:
    """Return the result of a training; raise KeyboardInterrupt if it was asked to stop, so that nobody uses half of one."""
    if result.preempted:
        raise KeyboardInterrupt
    return result


def check_unlabelled(texts: Sequence[str], least: int = 1) -> None:
    """Raise InputError unless there are `least` texts without labels, all of them str."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("the unlabeled texts are not all str; pass a list of texts as FewShotData(unlabelled=...)")
    if len(texts) < least:
        raise InputError(
            f"there are {len(texts)} unlabeled texts, but this method needs at least {least}; pass more as "
            f"FewShotData(unlabelled=...){', or lower its ratio' if least > 1 else ''}"
        )


def choose(texts: Sequence[str], most: int | None, seed: int) -> list[str]:
    """Return at most `most` of the texts, chosen at random, in their order; None for all."""
    if most is None or most >= len(texts):
        return list(texts)
    return [texts[i] for i in np.sort(permuted(np.arange(most), len(texts), seed % 2**64))]


def few_widths(max_length: int) -> tuple[int, ...]:
    """Return the lengths to pad texts to: few, and the same for all texts, since each is compiled once."""
    return tuple(sorted({-(-max_length // 4), -(-max_length // 2), max_length}))
