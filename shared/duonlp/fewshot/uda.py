"""Unsupervised data augmentation: learn from few labeled texts, and to answer the same for a text and its augmented copy.

Xie et al. 2020, https://arxiv.org/abs/1904.12848; the loss is :class:`duonlp.training.objectives.ConsistencyLoss`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from duonlp.augmentation import Augmenter
from duonlp.data.labelled.batches import TextInputs
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.rows.order import permuted
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData
from duonlp.fewshot.fine_tuning import head_bias
from duonlp.fewshot.model_classifier import (
    ModelClassifier,
    check_unlabelled,
    choose,
    few_widths,
    load_classifier_model,
    train,
)
from duonlp.heads import ROW_MASK
from duonlp.tasks.base import check_int, check_positive
from duonlp.training.fit_config import FitConfig
from duonlp.training.objectives.consistency import (
    AUGMENTED,
    ORIGINAL,
    THRESHOLD,
    ConsistencyLoss,
    tsa_threshold,
)
from duonlp.typing import Engine, Tokenizer


class ConsistencyBatches:
    """Batches of labeled texts with unlabeled texts and their copies beside each, for a ConsistencyLoss.

    Labeled and unlabeled texts are each gone through in a new random order again and again, so every batch is full. A batch
    depends on the seed and its step alone. All batches have one shape; the batches of the whole run are one epoch.

    Args:
        texts: Labeled texts.
        originals: Unlabeled texts, at least `ratio`.
        copies: Augmented copies of each, equally many; the n-th pass over the texts takes the n-th copies.
        tokenizer: A `transformers` tokenizer.
        batch_size: Labeled texts of a batch, B.
        ratio: Unlabeled texts beside each labeled one, R.
        steps: Number of batches.
        max_length: Maximum number of tokens of a text; longer ones are truncated.
        tsa: Schedule of training signal annealing, see tsa_threshold; None for none.
        seed: Seed of the order.

    Raises:
        InputError: There are too few texts, or a number or the schedule is out of range.
    """

    def __init__(
        self, texts: LabelledTexts, originals: Sequence[str], copies: Sequence[Sequence[str]], tokenizer: Tokenizer,
        batch_size: int, ratio: int, steps: int, *, max_length: int, tsa: str | None = None, seed: int = 0,
    ):  # fmt: skip
        for name, value in {"batch_size": batch_size, "ratio": ratio, "steps": steps}.items():
            check_int(name, value, minimum=1)
        check_unlabelled(originals, ratio)
        counts = {len(of_text) for of_text in copies}
        if len(copies) != len(originals) or len(counts) != 1 or 0 in counts:
            raise InputError(
                f"there are copies of {len(copies)} texts for {len(originals)} unlabeled ones, from {min(counts, default=0)} to "
                f"{max(counts, default=0)} each; give equally many of each text"
            )
        tsa_threshold(tsa, 0.0, 2)
        self.batch_size, self.ratio, self.steps, self.tsa, self.seed = batch_size, ratio, steps, tsa, seed
        self.labels, self.copies = texts.labels, counts.pop()
        self.outcomes = 2 if texts.multi_label else len(texts.label_names)
        # Copy n of text i is row i * copies + n.
        augmented = [copy for of_text in copies for copy in of_text]
        self._inputs = [
            TextInputs(prefix, tokenizer, list(of_prefix), max_length, None, None)
            for prefix, of_prefix in (("", texts.texts), (ORIGINAL, originals), (AUGMENTED, augmented))
        ]
        longest = max(int(inputs.ids.lengths.max()) for inputs in self._inputs)
        self.width = next(width for width in few_widths(max_length) if width >= longest)
        for inputs in self._inputs:
            inputs.widths = (self.width,)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch from step `first` on."""
        for step in range(first, self.steps):
            yield self._batch(number * self.steps + step, step / self.steps)

    def _batch(self, step: int, progress: float) -> dict[str, np.ndarray]:
        size, labelled, originals, copies = self.batch_size, *self._inputs
        rows, _ = self._rows(step, size, len(self.labels), 0)
        numbers, passes = self._rows(step, size * self.ratio, len(originals.ids.lengths), 1)
        arrays = labelled.arrays(rows, rows)
        for inputs, chosen in ((originals, numbers), (copies, numbers * self.copies + passes % self.copies)):
            for name, values in inputs.arrays(chosen, chosen).items():
                arrays[name] = values.reshape(size, self.ratio, -1)  # [B, R, T]
        arrays |= {"labels": self.labels[rows], ROW_MASK: np.ones(size, np.int32)}
        if self.tsa is not None:
            arrays[THRESHOLD] = np.full(size, tsa_threshold(self.tsa, progress, self.outcomes), np.float32)
        return arrays

    def _rows(self, step: int, size: int, count: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the texts of a step, int [size], of `count` in all, and the number of the pass over all texts of each."""
        places = np.arange(step * size, (step + 1) * size)
        seed = (self.seed * 2 + kind) % 2**64
        return permuted(places % count, count, seed, places // count), places // count


@dataclass(frozen=True)
class UDA:
    """UDA: a fine-tuned model that also learns to answer the same for an unlabeled text and its augmented copy.

    A new head starts as that of :class:`duonlp.fewshot.fine_tuning.FineTuning`.

    Attributes:
        model: Checkpoint to fine-tune: a folder in Hugging Face layout, or a Hub id.
        steps: Optimizer steps.
        batch_size: Labeled texts per step.
        ratio: Unlabeled texts per labeled text of a step.
        learning_rate: Peak learning rate.
        warmup_share: Share of the steps in which the learning rate rises from 0.
        tsa: Training signal annealing: "linear", "log", "exp", or None for none, see
            :func:`duonlp.training.objectives.consistency.tsa_threshold`.
        temperature: Temperature that sharpens the predictions on the unlabeled texts.
        confidence: Probability above which such a prediction is learned from; 0 is for all.
        weight: Factor of the consistency in the loss.
        augmenter: What makes the copies, an Augmenter of duonlp.augmentation; None for ``RandomEdits()``. A copy that is the
            text itself still has a loss: dropout, and the temperature, make the two predictions differ.
        copies: Different copies of each unlabeled text.
        most_unlabelled: Most unlabeled texts to use, chosen at random; None for all.
        max_length: Maximum number of tokens of a text; longer ones are truncated.

    Raises:
        InputError: A setting is invalid.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    steps: int = 200
    batch_size: int = 8
    ratio: int = 3
    learning_rate: float = 1e-4
    warmup_share: float = 0.1
    tsa: str | None = None
    temperature: float = 0.8
    confidence: float = 0.5
    weight: float = 1.0
    augmenter: Augmenter | None = None
    copies: int = 1
    most_unlabelled: int | None = 2000
    max_length: int = 128

    name: ClassVar[str] = "uda"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = True
    classifier: ClassVar[type[ModelClassifier]] = ModelClassifier

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "ratio", "copies", "max_length"):
            check_int(name, getattr(self, name), minimum=1)
        check_int("most_unlabelled", self.most_unlabelled, minimum=1, optional=True)
        check_positive("learning_rate", self.learning_rate)
        tsa_threshold(self.tsa, 0.0, 2)
        self._objective()

    def _objective(self) -> ConsistencyLoss:
        return ConsistencyLoss(self.weight, self.temperature, self.confidence, self.tsa is not None)

    def fit(self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False) -> ModelClassifier:
        """Fine-tune a model on the labeled and the unlabeled texts; the same seed gives the same one.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from; the validation texts are not used.
            seed: Seed of the order of the texts, their copies, a new head and dropout.
            console: Whether to show progress, or the rich Console to show it on.

        Raises:
            InputError: There are too few texts, or the model, `package` or the augmenter do not suit the data.
            CheckpointError: The model cannot be read.
        """
        check_unlabelled(data.unlabelled, self.ratio)
        bias = partial(head_bias, train=data.train)
        classifier = load_classifier_model(
            self.name, package, self.model, data.train, self.max_length, seed, initial_bias=bias
        )
        originals = choose(data.unlabelled, self.most_unlabelled, seed)
        batches = ConsistencyBatches(
            data.train, originals, self._augmented(originals, seed), classifier.tokenizer, self.batch_size, self.ratio,
            self.steps, max_length=classifier.max_length, tsa=self.tsa, seed=seed,
        )  # fmt: skip
        config = FitConfig(
            steps=self.steps, learning_rate=self.learning_rate, warmup_share=self.warmup_share, seed=seed % 2**32,
            evaluate_every=0, save_every=0,
        )  # fmt: skip
        return train(classifier, batches, config, console, objective=self._objective())

    def _augmented(self, texts: Sequence[str], seed: int) -> list[list[str]]:
        from duonlp.augmentation import RandomEdits

        augmenter = RandomEdits() if self.augmenter is None else self.augmenter
        copies = augmenter.augment(texts, per_text=self.copies, seed=seed)
        # Without a character, a text may have no tokens.
        return [
            [copy if copy.strip() else text for copy in of_text] for text, of_text in zip(texts, copies, strict=True)
        ]
