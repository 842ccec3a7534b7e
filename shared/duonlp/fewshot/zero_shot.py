"""Classify without labeled texts: by entailment of a hypothesis about each label, or by similarity to its description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, FewShotData, check_settings, write_classifier
from duonlp.fewshot.descriptions import label_texts
from duonlp.fewshot.linear import ENCODER, ENCODER_SETTINGS, load_encoder
from duonlp.pipelines.embedding import POOLINGS, TextEncoder, copy_checkpoint, embed
from duonlp.pipelines.pipeline import Pipeline
from duonlp.pipelines.trained import cached_pipeline
from duonlp.schema import POSITIONS, integer, list_of, number, text
from duonlp.tasks.base import check_bool, check_choice, check_int, describe, softmax
from duonlp.tasks.zero_shot_classification import check_candidates, check_template
from duonlp.typing import Engine

TEMPERATURE = 0.05
"""Temperature of cosine similarities: sentence encoders are trained with a scale of 20."""

TEMPERATURES = tuple(float(value) for value in np.geomspace(0.01, 0.5, 30).round(4))
"""Temperatures that are tried on validation texts."""

SHIFT = 0.25
"""Similarity from which on a label holds, where there are no texts to choose it on."""

MOST_TEXTS = 1000
"""Unlabeled texts whose similarities are computed; more would hardly change their means."""

MODEL = "model"
"""Subfolder of the model's checkpoint."""

COUNT, TEXTS = integer(1, 1 << 31), list_of(text(10_000), 1, 1 << 20)


def classify_by_embeddings(
    pipe: Pipeline,
    texts: Sequence[str],
    labels: str | Sequence[str] | Mapping[str, str],
    *,
    template: str = "{}",
    temperature: float = TEMPERATURE,
    pooling: str | None = None,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Classify texts by how similar their vectors are to those of the labels.

    Args:
        pipe: Pipeline "sentence-embedding" or "feature-extraction" of either engine.
        texts: The texts.
        labels: Labels, as a list or a comma-separated text, or a dict of their descriptions.
        template: Text with "{}" in place of the label or its description.
        temperature: The scores are the softmax of cosine similarities divided by this.
        pooling: See :func:`duonlp.pipelines.embed`.
        max_length: See there.

    Returns:
        For each text "sequence", "labels", best first, and "scores", which add up to 1, as the pipeline
        "zero-shot-classification" returns them.

    Raises:
        InputError: There are no labels, or an argument is invalid.
    """
    check_temperature(temperature)
    names = check_candidates(list(labels) if isinstance(labels, Mapping) else labels)
    described = label_texts(names, labels if isinstance(labels, Mapping) else None, template)
    vectors, label_vectors = (embed(pipe, part, pooling, max_length=max_length) for part in (texts, described))
    scores = softmax(vectors @ label_vectors.T / temperature)
    return [
        {"sequence": item, "labels": [names[i] for i in order], "scores": [float(row[i]) for i in order]}
        for item, row in zip(texts, scores, strict=True)
        for order in [np.argsort(-row, kind="stable").tolist()]
    ]


def check_temperature(temperature: Any) -> None:
    """Raise InputError unless a temperature is a number above 0."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < np.inf:
        raise InputError(f"temperature is {describe(temperature)}; it must be a number above 0, such as {TEMPERATURE}")


class EntailmentClassifier:
    """Labels by entailment; see :class:`EntailmentZeroShot`.

    Attributes:
        label_names: See :class:`duonlp.fewshot.Classifier`.
        multi_label: See there.
        descriptions: What the template takes for each label.
    """

    def __init__(
        self, package: Engine | None, settings: dict[str, Any], label_names: tuple[str, ...], multi_label: bool
    ):
        self.label_names, self.multi_label, self._settings = label_names, multi_label, settings
        self.descriptions: list[str] = settings["descriptions"]
        options = {"entailment_label": settings["entailment_label"], "batch_size": settings["batch_size"]}
        self._pipe = cached_pipeline(package, "zero-shot-classification", settings["model"], **options)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]."""
        scores = np.ones((len(texts), len(self.label_names)), np.float32)
        if len(self.label_names) == 1 and not self.multi_label:
            return scores
        results = self._pipe(
            list(texts), candidate_labels=self.descriptions, hypothesis_template=self._settings["template"],
            multi_label=self.multi_label, max_length=self._settings["max_length"],
        )  # fmt: skip
        columns = {description: i for i, description in enumerate(self.descriptions)}
        for row, result in zip(scores, results, strict=True):
            row[[columns[label] for label in result["labels"]]] = result["scores"]
        return scores

    def save(self, folder: str | Path) -> None:
        """Write the settings and the model."""
        settings = {name: self._settings[name] for name in ENTAILMENT_SETTINGS}
        files = ClassifierFiles("entailment", self.label_names, self.multi_label, settings)
        write_classifier(files, folder, lambda new: copy_checkpoint(self._pipe.weights_folder, new / MODEL))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder."""
        settings = dict(check_settings(files, ENTAILMENT_SETTINGS))
        check_count(files, settings["descriptions"])
        return cls(package, settings | {"model": files.folder / MODEL}, files.label_names, files.multi_label)


def check_count(files: ClassifierFiles, descriptions: Sequence[str]) -> None:
    """Raise CheckpointError unless there is one description per label, no two of them equal."""
    if len(set(descriptions)) != len(files.label_names) or len(descriptions) != len(files.label_names):
        raise CheckpointError(
            f"{files.folder}: there are {len(files.label_names)} labels and {len(set(descriptions))} different descriptions; "
            "train again"
        )


ENTAILMENT_SETTINGS = {
    "descriptions": TEXTS, "template": text(10_000), "max_length": POSITIONS | None, "batch_size": COUNT,
    "entailment_label": text() | integer(0, 1 << 20) | None,
}  # fmt: skip
"""Kinds of the settings of an EntailmentClassifier."""


@dataclass(frozen=True)
class EntailmentZeroShot:
    """Classify by whether a text entails a hypothesis about each label, without any training.

    Texts of several labels are scored label by label, entailment against contradiction; otherwise scores add up to 1. Of the
    training texts, only the names of the labels are used.

    Args:
        model: A classifier of premise and hypothesis: a folder or a Hub id.
        descriptions: What the template takes in place of a label's name, by name.
        template: Hypothesis, with "{}" for the label or its description.
        max_length: Maximum number of tokens of a text with a hypothesis.
        batch_size: Pairs that are read together.
        entailment_label: See :class:`duonlp.tasks.zero_shot_classification.ZeroShotClassificationOptions`.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "entailment"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[EntailmentClassifier]] = EntailmentClassifier

    model: str | Path
    descriptions: Mapping[str, str] | None = None
    template: str = "This example is {}."
    max_length: int | None = 128
    batch_size: int = 32
    entailment_label: str | int | None = None

    def __post_init__(self) -> None:
        check_template(self.template)
        check_int("max_length", self.max_length, minimum=1, optional=True)
        check_int("batch_size", self.batch_size, minimum=1)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> EntailmentClassifier:
        """Load the model; nothing is trained.

        Raises:
            InputError: A description is of no label, or no label of the model means entailment.
        """
        names = data.train.label_names
        settings = {
            "model": self.model, "descriptions": label_texts(names, self.descriptions), "template": self.template,
            "max_length": self.max_length, "batch_size": self.batch_size, "entailment_label": self.entailment_label,
        }  # fmt: skip
        return EntailmentClassifier(package, settings, names, data.train.multi_label)


class EmbeddingClassifier:
    """Labels by similarity to their descriptions; see :class:`EmbeddingZeroShot`.

    Attributes:
        label_names: See :class:`duonlp.fewshot.Classifier`.
        multi_label: See there.
        vectors: float32 [C, d], unit vectors of the descriptions.
        offsets: float32 [C], subtracted from similarities.
        temperature: Divides them then.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        vectors: np.ndarray,
        offsets: np.ndarray,
        temperature: float,
        label_names: tuple[str, ...],
        multi_label: bool,
    ):
        self.encoder, self.vectors, self.offsets, self.temperature = encoder, vectors, offsets, temperature
        self.label_names, self.multi_label = label_names, multi_label

    def similarities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the cosine similarity of each text and each label's description, float32 [n, C]."""
        return self.encoder(texts) @ self.vectors.T

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]: the softmax, or of several labels the sigmoid, of logits."""
        return probabilities((self.similarities(texts) - self.offsets) / self.temperature, self.multi_label)

    def save(self, folder: str | Path) -> None:
        """Write the labels' vectors and the encoder."""
        encoder = self.encoder
        settings = {"temperature": self.temperature, **encoder.settings()}
        arrays = {"vectors": self.vectors, "offsets": self.offsets}
        files = ClassifierFiles("zero-shot", self.label_names, self.multi_label, settings, arrays)
        write_classifier(files, folder, lambda new: encoder.save(new / ENCODER))

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder."""
        settings = check_settings(files, EMBEDDING_SETTINGS)
        count = len(files.label_names)
        vectors, offsets = (
            files.array("vectors", np.float32, (count, None)),
            files.array("offsets", np.float32, (count,)),
        )
        encoder = load_encoder(files, package)
        if vectors.shape[1] != encoder.size or not (np.isfinite(vectors).all() and np.isfinite(offsets).all()):
            raise CheckpointError(f"{files.folder}: the labels' vectors do not fit the encoder; train again")
        return cls(encoder, vectors, offsets, settings["temperature"], files.label_names, files.multi_label)


EMBEDDING_SETTINGS = {"temperature": number(0, 1e6, above=True), **ENCODER_SETTINGS}
"""Kinds of the settings of an EmbeddingClassifier."""


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return the sigmoid of logits [n, C] with several labels per text, and else their softmax over labels, float32."""
    logits = logits.astype(np.float64)
    return (0.5 * (1 + np.tanh(logits / 2)) if multi_label else softmax(logits)).astype(np.float32)


@dataclass(frozen=True)
class EmbeddingZeroShot:
    """Classify by the cosine similarity of a text and a description of each label, without any training.

    The probability of a label is the softmax over labels, or with several labels per text the sigmoid, of

        (similarity - offset of the label) / temperature

    Offsets are the labels' mean similarities to unlabeled texts, if there are any and `center` is set: some descriptions are
    similar to every text. With several labels per text, a threshold common to all labels is added to them: the one with the
    highest micro F1 on validation texts, or else the one at which the unlabeled texts (or if there are none, the training
    texts) have `labels_per_text` labels on average; without any text, 0.25. With one label per text, the temperature is the one
    with the lowest cross-entropy on validation texts. Of the training texts, labels are not used.

    Args:
        model: A sentence encoder, or with `pooling` any encoder or decoder: a folder or a Hub id.
        descriptions: Description of each label, by name; its name by default.
        template: Text with "{}" in place of the description.
        temperature: Temperature; None for 0.05, or what validation texts say.
        center: Whether offsets are computed on unlabeled texts; None computes them if a text can have several labels.
        labels_per_text: Expected number of labels of a text, if it can have several.
        pooling: See :func:`duonlp.pipelines.embed`.
        max_length: Maximum number of tokens of a text.
        batch_size: Texts that are embedded together.

    Raises:
        InputError: A setting is invalid.
    """

    name: ClassVar[str] = "zero-shot"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[EmbeddingClassifier]] = EmbeddingClassifier

    model: str | Path
    descriptions: Mapping[str, str] | None = None
    template: str = "{}"
    temperature: float | None = None
    center: bool | None = None
    labels_per_text: float = 1.0
    pooling: str | None = None
    max_length: int | None = 128
    batch_size: int | None = 32

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.temperature is not None:
            check_temperature(self.temperature)
        if not isinstance(self.labels_per_text, (int, float)) or not 0 < self.labels_per_text < np.inf:
            raise InputError(f"labels_per_text is {describe(self.labels_per_text)}; it must be a number above 0")
        check_choice("pooling", self.pooling, (*POOLINGS, None))
        check_bool("center", self.center, optional=True)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> EmbeddingClassifier:
        """Embed the descriptions, and choose offsets and temperature; nothing is random, whatever the seed.

        Raises:
            InputError: A description is of no label.
        """
        train, validation = data.train, data.validation
        described = label_texts(train.label_names, self.descriptions, self.template)
        encoder = TextEncoder(package, self.model, self.pooling, self.max_length, self.batch_size)
        vectors, multi_label = encoder(described), train.multi_label
        offsets, temperature = np.zeros(len(vectors), np.float32), self.temperature or TEMPERATURE
        unlabelled = np.zeros((0, len(vectors)), np.float32)
        if len(data.unlabelled):
            chosen = np.linspace(0, len(data.unlabelled) - 1, min(MOST_TEXTS, len(data.unlabelled))).astype(int)
            unlabelled = encoder([data.unlabelled[i] for i in chosen]) @ vectors.T  # [texts, C]
            if multi_label if self.center is None else self.center:
                offsets += unlabelled.mean(0)
        labelled = validation if validation is not None and len(validation) else None
        similarities = None if labelled is None else encoder(labelled.texts) @ vectors.T - offsets
        if multi_label:
            if labelled is not None and similarities is not None:
                offsets += best_threshold(similarities, labelled.labels)
            else:
                others = unlabelled if len(unlabelled) else encoder(train.texts) @ vectors.T if len(train) else None
                offsets += SHIFT if others is None else expected_threshold(others - offsets, self.labels_per_text)
        elif labelled is not None and similarities is not None and self.temperature is None:
            temperature = min(TEMPERATURES, key=lambda t: cross_entropy(similarities / t, labelled))
        return EmbeddingClassifier(encoder, vectors, offsets, temperature, train.label_names, multi_label)


def cross_entropy(logits: np.ndarray, texts: LabelledTexts) -> float:
    """Return the mean cross-entropy of logits [n, C] of texts with one label each, in nats."""
    chances = softmax(logits.astype(np.float64))[np.arange(len(texts)), texts.labels]
    return float(-np.log(np.maximum(chances, 1e-300)).mean())


def best_threshold(similarities: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold of similarities [n, C] with the highest micro F1 for labels [n, C]: the highest of equals."""
    flat, true = similarities.ravel(), labels.ravel() > 0.5
    order = np.argsort(-flat, kind="stable")
    values, right = flat[order], np.cumsum(true[order])
    scores = 2 * right / (np.arange(1, len(flat) + 1) + true.sum())
    scores[:-1][values[:-1] == values[1:]] = -1  # a threshold does not separate equal values
    i = int(scores.argmax())
    return float(values[i] if i + 1 == len(values) else (values[i] + values[i + 1]) / 2)


def expected_threshold(similarities: np.ndarray, labels_per_text: float) -> float:
    """Return the threshold that similarities [n, C] reach `labels_per_text` times per text on average."""
    values = np.sort(similarities, axis=None)[::-1]
    i = min(len(values), max(1, round(labels_per_text * len(similarities)))) - 1
    return float(values[i] if i + 1 == len(values) else (values[i] + values[i + 1]) / 2)
