"""Fine-tune any checkpoint on few labels, with or without adapting it to the texts of the domain before.

The number of optimizer steps is bounded from below, since a few epochs of eight texts are a few steps, and above, since a
thousand texts need no more of them. One program per length serves all numbers of texts.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.rows.length_batches import cache_key
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData
from duonlp.fewshot.model_classifier import (
    HEAD,
    ModelClassifier,
    check_unlabelled,
    completed,
    few_widths,
    load_classifier_model,
    training_options,
)
from duonlp.heads import HEADS
from duonlp.parameters import parameters
from duonlp.runs import folder as run_folder
from duonlp.runs.adaptation import AdaptationSettings, adapt
from duonlp.training.fit_config import FitConfig
from duonlp.training.settings_file import as_table
from duonlp.typing import Engine
from duonlp.util.reading import read_json

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Default checkpoint: small, and better than a plain BERT of its size with few labels."""

EVALUATIONS = 5
"""Evaluations of a training that keeps its best model."""


@dataclass(frozen=True)
class FineTuning:
    """Fine-tune all parameters of a checkpoint with a classification head.

    For several labels per text, the bias of a new head starts at the logits of the labels' frequencies in the training texts,
    with one text added that has half of each label (as Lin et al. 2017, https://arxiv.org/abs/1708.02002, 4.1, start a
    detector's): where labels are rare, a head that starts at probabilities of 0.5 spends most of a short training on that.

    Attributes:
        model: Checkpoint: a folder or a Hub id.
        epochs: Passes over the training texts, within the bounds on steps.
        min_steps: Fewest optimizer steps; few texts are repeated until then.
        max_steps: Most optimizer steps.
        batch_size: Texts per step.
        max_length: Maximum number of tokens of a text.
        learning_rate: Peak learning rate; it rises and falls linearly.
        warmup_share: Share of the steps in which it rises.
        weight_decay: Decoupled weight decay.
        label_smoothing: Share of the target probability spread over all labels; only with one label per text.
        frequency_bias: Whether the bias of a new head starts at the labels' frequencies.
        positive_weight: Exponent p of the weight ((1 - f) / f)^p of a label of frequency f where a text has it, in the loss of
            several labels per text: 0 weighs all alike, 1 balances the texts that have a label with those that have not. More
            finds more of the rare labels, at the cost of false ones.
        keep_best: Whether to evaluate the loss on the validation texts five times and keep the best model.
        dtype: Compute dtype: "float32" or "bfloat16".

    Raises:
        InputError: A setting is out of range.
    """

    model: str = MODEL
    epochs: int = 10
    min_steps: int = 100
    max_steps: int = 500
    batch_size: int = 16
    max_length: int = 128
    learning_rate: float = 2e-4
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    frequency_bias: bool = True
    positive_weight: float = 0.0
    keep_best: bool = False
    dtype: str = "float32"

    name: ClassVar[str] = "fine-tune"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[ModelClassifier]] = ModelClassifier

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("model is empty; give a folder in Hugging Face layout, or a Hub id")
        for setting in ("epochs", "min_steps", "max_steps", "batch_size", "max_length"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{setting} is {value!r}; it must be a positive integer")
        if self.min_steps > self.max_steps:
            raise InputError(f"min_steps is {self.min_steps} and max_steps {self.max_steps}; swap them")
        if not 0 <= self.positive_weight <= 1:
            raise InputError(f"positive_weight is {self.positive_weight}; it must be an exponent from 0 to 1")
        self.fit_config(1, 0)

    def fit_config(self, batches: int, seed: int) -> FitConfig:
        """Return the settings of a training with this number of batches per epoch."""
        steps = min(max(self.epochs * batches, self.min_steps), self.max_steps)
        return FitConfig(
            epochs=math.ceil(steps / batches), steps=steps, learning_rate=self.learning_rate, seed=seed,
            warmup_share=self.warmup_share, weight_decay=self.weight_decay, label_smoothing=self.label_smoothing, log_every=0,
            evaluate_every=max(1, steps // EVALUATIONS) if self.keep_best else 0, save_every=0,
        )  # fmt: skip

    def fit(self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False) -> ModelClassifier:
        """Train a classifier; the same seed gives the same one.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from.
            seed: Seed of the new head, of the order of the texts and of dropout.
            console: Whether to show progress, or the rich Console to show it on. True is standard error.

        Raises:
            InputError: There is no engine, the model reads shorter texts or has other labels, or `keep_best` has no validation
                texts.
        """
        return self._fit_from(self.model, package, data, seed, console)

    def _fit_from(
        self, model: str, package: Engine | None, data: FewShotData, seed: int, console: Any
    ) -> ModelClassifier:
        if self.keep_best and data.validation is None:
            raise InputError("keep_best needs validation texts to evaluate; give some, or set keep_best to false")
        train, batching = data.train, {"max_length": self.max_length, "widths": few_widths(self.max_length)}
        bias = partial(head_bias, train=train) if self.frequency_bias else None
        started = load_classifier_model(self.name, package, model, train, self.max_length, seed, self.dtype, bias)
        check_length(self.max_length, started.model.config.max_length)
        tokenizer, folder = started.tokenizer, None
        batches: Any = LabelledBatches(train, tokenizer, self.batch_size, seed=seed, **batching)
        if train.multi_label and self.positive_weight:
            batches = WeightedBatches(batches, positive_weights(train, self.positive_weight))
        config, options = self.fit_config(len(batches), seed), training_options(started.package)
        with ExitStack() as stack:
            if self.keep_best and data.validation is not None:
                folder = stack.enter_context(TemporaryDirectory())
                held_out = LabelledBatches(data.validation, tokenizer, self.batch_size, shuffle=False, **batching)
                options["validation"] = held_out
            fit = run_folder.training_module(started.package).fit
            result = completed(fit(started.model, batches, config, folder, log={"console": console}, **options))
            trained = result.model
            if result.best_folder is not None:
                trained = type(trained).from_pretrained(result.best_folder, dtype=self.dtype)
        return replace(started, model=trained)


@dataclass(frozen=True)
class AdaptedFineTuning(FineTuning):
    """Continue masked language modeling on all texts, labeled or not, then fine-tune (Gururangan et al. 2020).

    The adapted model depends on the set of all texts, not on which of them are labeled, and on no seed of :meth:`fit`: trainings
    on slices of the same texts share it through the cache.

    Attributes:
        adaptation_epochs: Passes over all texts.
        adaptation_steps: Most optimizer steps of the adaptation; None for no limit.
        adaptation_batch_size: Texts per step of the adaptation.
        adaptation_learning_rate: Peak learning rate of the adaptation.
        probability: Share of the tokens to predict.
        whole_words: Whether whole words are masked rather than single tokens.
        cache: Folder for adapted models, for later trainings; None adapts in each.
    """

    adaptation_epochs: int = 3
    adaptation_steps: int | None = None
    adaptation_batch_size: int = 32
    adaptation_learning_rate: float = 2e-4
    probability: float = 0.15
    whole_words: bool = False
    cache: str | None = None

    name: ClassVar[str] = "adapt"
    needs_unlabelled: ClassVar[bool] = True

    def fit(self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False) -> ModelClassifier:
        """Adapt the model, unless the cache has it, and train a classifier from it; see :meth:`FineTuning.fit`.

        Raises:
            InputError: There are no unlabeled texts, or see :meth:`FineTuning.fit`.
        """
        if package is None:
            raise InputError("adapt trains a model; pass package=tfnlp or jaxnlp")
        check_unlabelled(data.unlabelled)
        texts = sorted({*data.unlabelled, *map(str, data.train.texts)})
        with ExitStack() as stack:
            root = self.cache or stack.enter_context(TemporaryDirectory())
            folder = self._adapted(package, texts, Path(root).expanduser(), console)
            return self._fit_from(str(folder), package, data, seed, console)

    def _adapted(self, package: Engine, texts: Sequence[str], root: Path, console: Any) -> Path:
        """Return the folder of the adapted model, which is made or finished if the cache lacks it."""
        fit = FitConfig(
            epochs=self.adaptation_epochs, steps=self.adaptation_steps, learning_rate=self.adaptation_learning_rate,
            warmup_share=0.1, evaluate_every="epoch" if self.adaptation_steps is None else 0, save_every=100, log_every=20,
        )  # fmt: skip
        settings = AdaptationSettings(
            data="unlabeled texts", output=str(root), model=self.model, held_out=0.05, probability=self.probability,
            whole_words=self.whole_words, max_length=self.max_length, batch_size=self.adaptation_batch_size,
            dtype=self.dtype, fit=fit,
        )  # fmt: skip
        framework = run_folder.framework_name(package)
        about = [framework, as_table(replace(settings, output="-")), fingerprint_of(self.model)]
        folder = root / f"adapted-{cache_key(about, texts)}"
        results = folder / run_folder.RESULTS_FILE
        if not results.exists() or read_json(results, advice="delete the folder").get("preempted"):
            report = adapt(package, replace(settings, output=str(folder)), texts=texts, console=console)
            if report["preempted"]:
                raise KeyboardInterrupt
        return folder / run_folder.BEST


@dataclass(frozen=True)
class WeightedBatches:
    """Batches of LabelledBatches in which the labels that a text has weigh more in the loss.

    Attributes:
        batches: The batches.
        weights: float32 [C], weight of each label where a text has it.
    """

    batches: LabelledBatches
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch, with ``sample_weight`` float32 [B, C]."""
        for batch in self.batches.epoch(number, first):
            yield batch | {"sample_weight": np.where(batch["labels"] > 0, self.weights, np.float32(1))}


def positive_weights(train: LabelledTexts, exponent: float) -> np.ndarray:
    """Return ((1 - f) / f)^exponent for labels of frequency f, float32 [C]; see :class:`FineTuning`."""
    frequency = (train.labels.sum(0) + 0.5) / (len(train) + 1)
    return (((1 - frequency) / frequency) ** exponent).astype(np.float32)


def check_length(max_length: int, longest: int) -> None:
    """Raise InputError if a model cannot read texts of `max_length` tokens."""
    if max_length > longest:
        raise InputError(f"max_length is {max_length}; the model reads at most {longest} tokens")


def head_bias(config: TransformerConfig, train: LabelledTexts) -> dict[str, np.ndarray]:
    """Return the initial bias of a new head by its path: the logits of the labels' frequencies, float32 [C].

    Empty for one label per text, or for a head without a bias of this size.
    """
    if not train.multi_label:
        return {}
    own = HEADS[HEAD].layers
    spec, count = parameters(config, HEAD), len(train.label_names)
    paths = [
        path for path, parameter in spec.items()
        if path.split("/")[0] in own and path.endswith("/bias") and parameter.shape == (count,)
    ]  # fmt: skip
    if not paths:
        return {}
    frequency = (train.labels.sum(0) + 0.5) / (len(train) + 1)  # [C], never 0 or 1
    return {paths[-1]: np.log(frequency / (1 - frequency)).astype(np.float32)}


def fingerprint_of(model: str) -> str:
    """Return what tells a checkpoint from one that replaced it: a hash of the names and contents of its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(open_checkpoint(model).folder).iterdir() if path.is_file()):
        with open(path, "rb") as stream:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
