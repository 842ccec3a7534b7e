"""Uncertainty-aware self-training: a teacher labels unlabeled texts, and its doubts decide which of them a student learns from.

Mukherjee and Awadallah 2020, https://arxiv.org/abs/2006.15315; the authors' code is https://github.com/microsoft/UST.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData, read_classifier
from duonlp.fewshot.fine_tuning import head_bias
from duonlp.fewshot.model_classifier import (
    ModelClassifier,
    check_unlabelled,
    choose,
    few_widths,
    load_classifier_model,
    train,
)
from duonlp.heads import IGNORED
from duonlp.labels import WEIGHTS
from duonlp.tasks.base import check_bool, check_int, check_positive
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Engine

TINY = 1e-10
"""What the authors add to probabilities and variances before a logarithm."""


def mutual_information(samples: np.ndarray, multi_label: bool = False) -> np.ndarray:
    """Return the mutual information between a prediction and the model's weights, in nats (BALD; equation 4 of the paper).

    It is the entropy of the mean prediction minus the mean entropy, so it is large where the samples are sure, but disagree.

    Args:
        samples: Probabilities of each label in each of S passes with dropout, [S, n, C].
        multi_label: Whether each label is there or not. Then it is the mean over the labels, each of which is a Bernoulli.

    Returns:
        float64 [n].
    """
    samples = np.asarray(samples, np.float64)
    if multi_label:
        answers = np.stack([samples, 1 - samples], axis=-1)  # [S, n, C, 2]
        return (_entropy(answers.mean(axis=0)) - _entropy(answers).mean(axis=0)).mean(axis=-1)
    return _entropy(samples.mean(axis=0)) - _entropy(samples).mean(axis=0)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(probabilities + TINY)).sum(axis=-1)


def confidence_weights(samples: np.ndarray, labels: np.ndarray, scale: float = 0.1) -> np.ndarray:
    """Return the weights of pseudo-labels, scale x log(1 / variance) of their probability over the samples; section 3.3.

    The authors' code takes the variance of the first class, which is the same for two classes; this is the label's own.

    Args:
        samples: Probabilities in each of S passes with dropout, [S, n, C].
        labels: Pseudo-labels: classes, int [n], or 1 for each label of a text, [n, C].
        scale: Factor of the weights.

    Returns:
        float32, of the labels' shape. Not negative, as variances of probabilities are at most 1/4.
    """
    variances = np.asarray(samples, np.float64).var(axis=0)  # [n, C]
    if labels.ndim == 1:
        variances = variances[np.arange(len(labels)), labels]
    return (-np.log(variances + TINY) * scale).astype(np.float32)


def select(
    information: np.ndarray, labels: np.ndarray, count: int, *, easy: bool = True, per_class: bool = True, seed: int = 0
) -> np.ndarray:
    """Draw texts to learn from; the same seed gives the same ones. Equations 5 and 6.

    Args:
        information: Mutual information of each text, [n].
        labels: Pseudo-labels: classes, int [n], or 1 for each label of a text, [n, C].
        count: Number of texts to draw.
        easy: Whether probabilities are proportional to 1 - information, rather than to the information.
        per_class: Whether to draw equally many texts of each label, with replacement where it has too few, as the authors do.
            Labels of no text are left out. With several labels per text, those without any label are one more class, and a text
            may be drawn for each of its labels.
        seed: Seed of the draws.

    Returns:
        int64 [at most count], indices of texts.
    """
    groups = [np.arange(len(labels))]
    if per_class and labels.ndim == 1:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    elif per_class:
        groups = [np.flatnonzero(column) for column in (*labels.T, ~labels.any(axis=1))]
        groups = [group for group in groups if len(group)]
    rng, drawn = np.random.default_rng(seed), []
    share = max(1, count // len(groups)) if per_class else min(count, len(labels))
    for group in groups[:count]:
        chances = np.maximum(1 - information[group] if easy else information[group], 0) + TINY
        drawn.append(rng.choice(group, share, replace=len(group) < share, p=chances / chances.sum()))
    return np.concatenate(drawn)


class WeightedBatches:
    """LabelledBatches with weights of the labels' shape.

    Args:
        batches: The batches.
        weights: Weights of all labels, float32 [n], or [n, C] for several labels per text.
    """

    def __init__(self, batches: LabelledBatches, weights: np.ndarray):
        self.batches, self.weights = batches, weights

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch from number `first` on."""
        for rows, batch in zip(self.batches.order(number)[first:], self.batches.epoch(number, first), strict=True):
            weights = self.weights[np.maximum(rows, 0)]
            is_real = (rows >= 0).reshape(-1, *[1] * (weights.ndim - 1))
            yield {**batch, WEIGHTS: np.where(is_real, weights, np.float32(0))}


@dataclass(frozen=True)
class UST:
    """UST: self-training on the unlabeled texts that the model is sure about, in rounds.

    A teacher is fine-tuned on the labeled texts. In each round it labels some unlabeled texts, predicts them several times with
    dropout, draws the texts to learn from by the mutual information of these samples, and the student, which starts from the
    teacher, is trained on them with weights by their variance. The student is the teacher of the next round.

    It differs from the authors' code in small ways: trainings have a fixed number of steps; the labeled texts, repeated to
    about a quarter of all but at least once each, are among those that the student learns from (the authors stop early on
    half of them instead); there is one teacher rather than the best of ten; and dropout is the checkpoint's own. A new head
    starts as that of :class:`duonlp.fewshot.fine_tuning.FineTuning`.

    With several labels per text, each label is a choice between two answers: a pseudo-label is there with a probability of at
    least 0.5, the information is the mean over the labels, and each label has its own weight.

    Attributes:
        model: Checkpoint to fine-tune: a folder in Hugging Face layout, or a Hub id.
        teacher_steps: Optimizer steps of the teacher.
        rounds: Number of rounds.
        steps: Optimizer steps of the student in each round.
        batch_size: Texts per step.
        learning_rate: Peak learning rate of the teacher and the students.
        warmup_share: Share of each training in which the learning rate rises from 0.
        passes: Predictions with dropout of each unlabeled text.
        pool: Most unlabeled texts to predict in a round, chosen at random anew; None for all.
        selected: Texts to draw from the pool.
        easy: Whether to prefer texts that the samples agree on, rather than those they disagree on.
        per_class: Whether to draw equally many texts of each label.
        weighted: Whether labels are weighted by their confidence.
        weight_scale: Factor of these weights.
        restart: Whether each student starts from the checkpoint, rather than from the teacher.
        max_length: Maximum number of tokens of a text; longer ones are truncated.

    Raises:
        InputError: A setting is invalid.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    teacher_steps: int = 150
    rounds: int = 2
    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup_share: float = 0.1
    passes: int = 6
    pool: int | None = 384
    selected: int = 192
    easy: bool = True
    per_class: bool = True
    weighted: bool = True
    weight_scale: float = 0.1
    restart: bool = False
    max_length: int = 128

    name: ClassVar[str] = "ust"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = True
    classifier: ClassVar[type[ModelClassifier]] = ModelClassifier

    def __post_init__(self) -> None:
        for name in ("teacher_steps", "rounds", "steps", "batch_size", "selected", "max_length"):
            check_int(name, getattr(self, name), minimum=1)
        check_int("passes", self.passes, minimum=2)
        check_int("pool", self.pool, minimum=1, optional=True)
        for name in ("learning_rate", "weight_scale"):
            check_positive(name, getattr(self, name))
        for name in ("easy", "per_class", "weighted", "restart"):
            check_bool(name, getattr(self, name))

    def fit(self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False) -> ModelClassifier:
        """Train a teacher and its students; the same seed gives the same classifier.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from. With validation texts, the result is the teacher or student with the smallest loss on them;
                otherwise it is the last student.
            seed: Seed of a new head, dropout, and the choice and order of the texts.
            console: Whether to show progress, or the rich Console to show it on.

        Raises:
            InputError: There are no unlabeled texts, or the model has no dropout or does not suit the data or `package`.
            CheckpointError: The model cannot be read.
        """
        check_unlabelled(data.unlabelled)
        start = self._load(package, data, seed)
        if start.model.config.without_dropout() == start.model.config:
            raise InputError(f"{self.model!r} has no dropout, whose samples ust needs; use a checkpoint with dropout")
        student = self._train(start, data.train, None, self.teacher_steps, seed, console)
        with TemporaryDirectory() as folder:
            best = _Best(data.validation, Path(folder))
            best.update(student)
            for number in range(1, self.rounds + 1):
                seeds = np.random.SeedSequence([seed, number]).generate_state(3).tolist()
                texts, weights = self._pseudo_labelled(student, data, seeds)
                if self.restart:
                    student = self._load(package, data, seed)
                student = self._train(student, texts, weights, self.steps, seeds[2], console)
                best.update(student)
            return best.classifier(student)

    def _load(self, package: Engine | None, data: FewShotData, seed: int) -> ModelClassifier:
        bias, length = partial(head_bias, train=data.train), self.max_length
        return load_classifier_model(self.name, package, self.model, data.train, length, seed, initial_bias=bias)

    def _train(
        self, classifier: ModelClassifier, texts: LabelledTexts, weights: np.ndarray | None, steps: int, seed: int, console: Any
    ) -> ModelClassifier:  # fmt: skip
        batches: Any = LabelledBatches(
            texts, classifier.tokenizer, self.batch_size, max_length=classifier.max_length, seed=seed,
            widths=few_widths(classifier.max_length),
        )  # fmt: skip
        config = FitConfig(
            steps=steps, learning_rate=self.learning_rate, warmup_share=self.warmup_share, seed=seed % 2**32,
            evaluate_every=0, save_every=0,
        )  # fmt: skip
        return train(classifier, batches if weights is None else WeightedBatches(batches, weights), config, console)

    def _pseudo_labelled(
        self, teacher: ModelClassifier, data: FewShotData, seeds: Sequence[int]
    ) -> tuple[LabelledTexts, np.ndarray | None]:
        """Return the texts that the student learns from, and the weights of their labels, None for none.

        Args:
            teacher: The teacher.
            data: What to learn from.
            seeds: Those of the choice of the pool, and of the draws and dropout.
        """
        pool = choose(data.unlabelled, self.pool, seeds[0])
        batches, predict = teacher.batches(pool), teacher.package.predict
        predicted = teacher.probabilities(predict(teacher.model, batches))  # [n, C]
        labels = (predicted >= 0.5).astype(np.float32) if teacher.multi_label else predicted.argmax(-1).astype(np.int32)
        dropout_seeds = np.random.SeedSequence(seeds[1]).generate_state(self.passes).tolist()
        samples = np.stack(
            [teacher.probabilities(predict(teacher.model, batches, dropout_seed=number)) for number in dropout_seeds]
        )  # [S, n, C]
        information = mutual_information(samples, teacher.multi_label)
        drawn = select(information, labels, self.selected, easy=self.easy, per_class=self.per_class, seed=seeds[1])
        train, repeats = data.train, max(1, round(len(drawn) / 3 / len(data.train)))
        texts = LabelledTexts(
            [pool[i] for i in drawn] + list(train.texts) * repeats,
            np.concatenate([labels[drawn], *[train.labels] * repeats]), train.label_names,
        )  # fmt: skip
        if not self.weighted:
            return texts, None
        weights = confidence_weights(samples[:, drawn], labels[drawn], self.weight_scale)
        known = np.full_like(train.labels, -np.log(TINY) * self.weight_scale, np.float32)  # of a variance of 0
        return texts, np.concatenate([weights, *[known] * repeats])


class _Best:
    """The model with the smallest loss on the validation texts, kept in a folder since Keras trains models in place."""

    def __init__(self, validation: LabelledTexts | None, folder: Path):
        self.validation, self.folder, self.loss = validation, folder / "best", np.inf

    def update(self, classifier: ModelClassifier) -> None:
        """Save the classifier if it is the best so far."""
        if self.validation is None or not len(self.validation):
            return
        scores, labels = (
            np.clip(classifier.scores([*map(str, self.validation.texts)]), 1e-7, 1 - 1e-7),
            self.validation.labels,
        )
        true = np.where(labels == 1, scores, 1 - scores) if labels.ndim == 2 else scores[np.arange(len(labels)), labels]
        loss = -np.log(true[labels != IGNORED]).mean()
        if loss < self.loss:
            self.loss = loss
            classifier.save(self.folder)

    def classifier(self, last: ModelClassifier) -> ModelClassifier:
        """Return the best classifier; without validation texts, the last one."""
        if not self.folder.exists():
            return last
        return replace(last, model=ModelClassifier.load(read_classifier(self.folder), last.package).model)
