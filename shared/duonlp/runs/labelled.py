"""Settings, data and models shared by fine-tuning and distilling a classifier."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.heads import HEADS
from duonlp.metrics.classification import ClassificationScorer
from duonlp.runs.settings import TRAIN, VALIDATION, RunSettings
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Engine
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from duonlp.data.labelled.batches import LabelledBatches
    from duonlp.data.labelled.texts import LabelledTexts

OUT_OF_SCOPE = "oos"
"""Name of the out-of-scope label in CLINC150."""

FIT = FitConfig(epochs=4, learning_rate=2e-4, schedule="cosine", best_metric="accuracy")
"""Default training settings, which work well for a MiniLM on CLINC150 with batches of 48."""


@dataclass(frozen=True, kw_only=True)
class LabelledRunSettings(RunSettings):
    """Settings of every run on labeled texts, in addition to RunSettings.

    `data` is what duonlp.data.read_labelled_texts takes. Without max_length, texts may be as long as the model's maximum.

    Attributes:
        text_column: Name of the text column, or of two ("question,passage") for pairs of texts; None to detect it as
            read_labelled_texts does.
        text_template: What to make the text of instead of `text_column`, such as "{title}\n\n{body}".
        label_column: Name of the label column; None to detect it as read_labelled_texts does.
        label_separator: Separator of several labels in one field; "json" if fields hold lists in JSON.
        label_map: New names of labels by old ones, or a .json or .toml file of them; "" drops a label. See read_labelled_texts.
        most_frequent: Keep this many labels, the most frequent ones of the training split, and drop the others; None for all.
        unlabelled: What rows without a label mean: "separate" (left out, and counted in the summary), "negative" (none applies;
            multi-label only) or "error". None: "separate" for multi-label texts, "error" for others.
        class_names: Names of the classes that numbers in the data stand for, or a file with one on each line.
        column_names: Names of the columns of a CSV or TSV file without a header.
        batch_size: Texts per step.
        out_of_scope: Name of the out-of-scope label. None: "oos" if there is such a label. "": there is none.
    """

    text_column: str | None = None
    text_template: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    label_map: str | dict[str, str] | None = None
    most_frequent: int | None = None
    unlabelled: str | None = None
    class_names: str | tuple[str, ...] | None = None
    column_names: str | tuple[str, ...] | None = None
    batch_size: int = 48
    out_of_scope: str | None = None
    fit: FitConfig = field(default_factory=lambda: FIT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.label_map, dict):  # TOML has no null
            object.__setattr__(self, "label_map", {name: new or "" for name, new in self.label_map.items()})

    def reading_options(self) -> dict[str, Any]:
        """Return the arguments of prepare_labels, other than the source and the split."""
        names = (
            "config", "text_column", "text_template", "label_column", "label_separator", "label_map", "most_frequent",
            "unlabelled", "class_names", "column_names", "encoding", "quoting", "limit",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class RunTexts:
    """The texts of a run.

    Attributes:
        train: Training texts.
        validation: Validation texts with the same label names, or None.
        unlabelled: Number of rows of both splits that were left out because they have no label.
    """

    train: "LabelledTexts"
    validation: "LabelledTexts | None"
    unlabelled: int = 0

    def with_label_names(self, label_names: tuple[str, ...], whose: str = "the model") -> Self:
        """Return the texts with their label ids mapped to `label_names`; see :func:`with_label_names`."""
        validation = self.validation and with_label_names(self.validation, label_names, whose)
        return replace(self, train=with_label_names(self.train, label_names, whose), validation=validation)


@dataclass(frozen=True)
class LabelledData:
    """The tokenized data of a run.

    Attributes:
        batches: Training batches.
        validation: Validation batches, or None.
        label_names: Names of the classes, in the order of the logits.
        out_of_scope: Name of the out-of-scope label, or None.
        fingerprint: Hash of the texts and labels.
        unlabelled: Number of rows that were left out because they have no label.
    """

    batches: "LabelledBatches"
    validation: "LabelledBatches | None"
    label_names: tuple[str, ...]
    out_of_scope: str | None
    fingerprint: str
    unlabelled: int = 0

    head: ClassVar[str] = "sequence-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    row_noun: ClassVar[str] = "texts"

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels."""
        return self.batches.labels is not None and self.batches.labels.ndim == 2

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data, for run.json and results.json."""
        validation_texts = 0 if self.validation is None else len(self.validation.texts)
        return {
            "fingerprint": self.fingerprint,
            "train": len(self.batches.texts),
            "validation": validation_texts,
            "labels": len(self.label_names),
            **({"unlabelled": self.unlabelled} if self.unlabelled else {}),
        }

    def plan(self) -> dict[str, Any]:
        """Return what a plan says about the data: "summary", a line, and "out_of_scope"."""
        none_applies = sum(
            _without_labels(batches) for batches in (self.batches, self.validation) if batches is not None
        )
        data, scope = self.describe(), f" ({self.out_of_scope!r} is out of scope)" if self.out_of_scope else ""
        summary = (
            f"{data['train']} training texts, {data['validation']} validation texts, {data['labels']} labels{scope}"
        )
        if self.unlabelled:
            summary += f"; {self.unlabelled} unlabeled rows are left out"
        if none_applies:
            summary += f"; no label applies to {none_applies} of the texts"
        if self.validation is not None:
            seen = set(self.batches.texts)
            if repeated := sum(text in seen for text in self.validation.texts):
                summary += f"; {repeated} of the validation texts are also training texts, so scores are too high"
        return {"summary": summary, "out_of_scope": self.out_of_scope}

    def overrides(self) -> dict[str, Any]:
        """Return the labels, for config.json."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {label: number for number, label in enumerate(self.label_names)},
            "problem_type": "multi_label_classification" if self.multi_label else "single_label_classification",
        }

    def scorer(self, package: Engine | None, as_teacher: bool = False) -> ClassificationScorer | None:
        """Return a scorer of the validation texts, or None without any.

        Args:
            package: tfnlp or jaxnlp, which predicts; None for a scorer that can only do its dry run.
            as_teacher: Whether to score a teacher, which reads its own inputs if its tokenizer differs.
        """
        if self.validation is None:
            return None
        predict = cannot_predict if package is None else package.predict

        def predict_as_teacher(model: Any, batches: Any) -> np.ndarray:
            label2id = model.config.label2id  # the teacher's order, which may differ from the data's
            columns = [label2id[name] for name in self.label_names]
            return predict(model, batches, as_teacher=True)[:, columns]  # [n, C]

        return ClassificationScorer(
            self.validation, predict_as_teacher if as_teacher else predict, out_of_scope=self.out_of_scope
        )

    def at_threshold(self, scorer: ClassificationScorer) -> dict[str, float] | None:
        """Return the scores of the last predictions at the threshold that is best for them; None if none can be chosen."""
        if scorer.out_of_scope is None and not self.multi_label:
            return None
        try:
            return scorer.at_threshold()
        except InputError:  # the texts are all in scope, or all out of scope; or the model has diverged
            return None

    def at_label_thresholds(self, scorer: ClassificationScorer) -> dict[str, Any] | None:
        """Return the scores of the last predictions with a threshold per label; None with one label per text."""
        try:
            return scorer.at_label_thresholds() if self.multi_label else None
        except InputError:  # the model has diverged
            return None

    def save_with(self, folder: Path, at_threshold: dict[str, float] | None) -> None:
        """Write nothing: the labels are in config.json."""


def _without_labels(batches: "LabelledBatches") -> int:
    """Return the number of multi-label texts to which no label applies."""
    labels = batches.labels
    return 0 if labels is None or labels.ndim == 1 else int((labels.sum(1) == 0).sum())


def cannot_predict(model: Any, batches: Any, *, as_teacher: bool = False) -> np.ndarray:
    """Stand in for an engine's ``predict`` in a scorer that only checks names; always raise NotImplementedError."""
    raise NotImplementedError("this scorer has no engine to predict with")


def read_texts(
    settings: LabelledRunSettings, label_names: tuple[str, ...] | None = None, whose: str = "the model"
) -> RunTexts:
    """Read the training texts and the validation texts (None without a validation split), with the same label ids.

    Args:
        settings: Settings of the run.
        label_names: Label names of a fine-tuned model, which determine the ids; None uses those of the data.
        whose: Owner of these labels, for error messages.

    Raises:
        InputError: The data cannot be read, or has labels that are not in `label_names`.
    """
    from duonlp.data.labelled.preparation import prepare_labels

    train_split, validation_split = _splits(settings)
    options = settings.reading_options()
    prepared = prepare_labels(settings.data, train_split, duplicates="keep", **options)
    train = prepared.labelled
    if label_names is not None:
        train = with_label_names(train, label_names, whose)
    if not validation_split:
        return RunTexts(train, None, prepared.report.unlabelled)
    options["label_names"] = tuple(train.label_names)
    held_out = prepare_labels(settings.data, validation_split, duplicates="keep", **options)
    return RunTexts(train, held_out.labelled, prepared.report.unlabelled + held_out.report.unlabelled)


def _splits(settings: LabelledRunSettings) -> tuple[str | None, str]:
    """Return the names of the training and validation splits; (None, "") for a single table.

    Raises:
        InputError: The settings name a split of a single table.
    """
    from duonlp.data.labelled.files import is_one_table

    if not is_one_table(settings.data, settings.encoding):
        return settings.train_split, settings.validation_split
    remedy = "a folder with a file for each split, such as train.csv and validation.csv"
    for split, default in ((settings.train_split, TRAIN), (settings.validation_split, VALIDATION)):
        if split not in (default, ""):
            raise InputError(f"{settings.data!r} is a single table and has no split {split!r}; give {remedy}")
    if settings.validation_split:
        warnings.warn(
            f"{settings.data!r} is a single table: all of it is trained on, nothing is validated and the last model is kept; to "
            f"keep the best one, give {remedy}, as duonlp labels --split writes",
            stacklevel=3,
        )
    return None, ""


def with_label_names(texts: "LabelledTexts", label_names: tuple[str, ...], whose: str = "the model") -> "LabelledTexts":
    """Return the texts with their label ids mapped to `label_names`.

    Args:
        texts: Labeled texts.
        label_names: New label names, a superset of those of the texts.
        whose: Owner of the new labels, for error messages.

    Raises:
        InputError: A label is not in `label_names`.
    """
    old_names, new_names = tuple(texts.label_names), tuple(label_names)
    if old_names == new_names:
        return texts
    unknown = [name for name in old_names if name not in new_names]
    if unknown:
        raise InputError(
            f"{whose} has {len(new_names)} labels, and {len(unknown)} of the data's {len(old_names)} are not among them, such as "
            f"{unknown[0]!r}{nearest(unknown[0], new_names)}; use the same label names in both"
        )
    new_ids = np.array([new_names.index(name) for name in old_names])
    labels = np.asarray(texts.labels)
    if labels.ndim == 2:
        mapped = np.zeros((len(labels), len(new_names)), labels.dtype)
        mapped[:, new_ids] = labels
    else:
        mapped = np.where(labels < 0, labels, new_ids[labels]).astype(labels.dtype)
    return replace(texts, labels=mapped, label_names=new_names)


def make_batches(
    settings: LabelledRunSettings,
    texts: RunTexts,
    tokenizer: Any,
    *configs: TransformerConfig,
    teacher_tokenizer: Any = None,
) -> LabelledData:
    """Tokenize and batch the texts for a model and, optionally, its teacher.

    Args:
        settings: Settings of the run.
        texts: The texts, from :func:`read_texts`.
        tokenizer: Tokenizer of the model.
        configs: Configurations of all models that read the texts; these are truncated to the shortest maximum.
        teacher_tokenizer: Tokenizer of a teacher that needs its own inputs.

    Raises:
        InputError: max_length exceeds a model's maximum, the out-of-scope label is unknown, or there are too few texts.
    """
    from duonlp.data.labelled.batches import LabelledBatches

    train, validation = texts.train, texts.validation
    longest = min(config.max_length for config in configs)
    if settings.max_length is not None and settings.max_length > longest:
        raise InputError(f"max_length is {settings.max_length}; the model reads at most {longest} tokens")
    options: dict[str, Any] = {
        "max_length": settings.max_length or longest,
        "cache": settings.cache,
        "teacher_tokenizer": teacher_tokenizer,
    }
    batches = LabelledBatches(train, tokenizer, settings.batch_size, seed=settings.seed, **options)
    if validation is not None:
        validation_batches = LabelledBatches(validation, tokenizer, settings.batch_size, shuffle=False, **options)
    else:
        validation_batches = None
    names = tuple(train.label_names)
    out_of_scope = settings.out_of_scope
    if out_of_scope is None:
        out_of_scope = OUT_OF_SCOPE if OUT_OF_SCOPE in names and np.ndim(train.labels) == 1 else None
    data = LabelledData(
        batches, validation_batches, names, out_of_scope or None, fingerprint(train, validation), texts.unlabelled
    )
    if data.out_of_scope is not None:  # raises for an unknown label before training starts
        ClassificationScorer(batches, cannot_predict, out_of_scope=data.out_of_scope)
    return data


def fingerprint(*splits: "LabelledTexts | None") -> str:
    """Return a hash of texts, labels and label names, which does not depend on how the data is stored."""
    digest = hashlib.sha256()
    for texts in splits:
        if texts is not None:
            for text in (*texts.texts, *texts.label_names):
                digest.update(json.dumps(text).encode())
            digest.update(np.ascontiguousarray(texts.labels).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def check_labels(name: str, label_names: tuple[str, ...]) -> None:
    """Raise InputError if a checkpoint has a trained head for equally many but different labels.

    Its head would otherwise be reused for labels it was not trained on.

    Args:
        name: Folder in Hugging Face layout, or a Hub id.
        label_names: Labels of the data.
    """
    checkpoint = open_checkpoint(name)
    stored = checkpoint.transformer_config().labels
    unnamed = stored == tuple(f"LABEL_{i}" for i in range(len(stored)))
    trained = _is_classifier(checkpoint)
    other = next((label for label in label_names if label not in stored), None)
    if trained and len(stored) == len(label_names) and other is not None and not unnamed:
        raise InputError(
            f"{name!r} is fine-tuned for as many labels as the data has, but for different ones ({stored[0]!r}, ..., not "
            f"{other!r}); start from its base checkpoint, or give data with its labels"
        )


def matching_label_names(name: str, data_labels: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return a checkpoint's label names, in its order, if it is fine-tuned for exactly the data's labels; else None."""
    checkpoint = open_checkpoint(name)
    labels = checkpoint.transformer_config().labels
    same = _is_classifier(checkpoint) and set(labels) == set(data_labels)
    return labels if same else None


def check_classifier(name: str, role: str) -> None:
    """Raise InputError unless a checkpoint is a fine-tuned classifier.

    Args:
        name: Folder in Hugging Face layout, or a Hub id.
        role: Role of the checkpoint, such as "teacher", for error messages.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    try:
        checkpoint = open_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(f"{role}: {error}") from error
    if not _is_classifier(checkpoint):
        raise InputError(
            f"the {role} {name!r} has the head {checkpoint.head} and is not a classifier; fine-tune it first (duonlp finetune)"
        )


def _is_classifier(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was saved with a trained head for classes."""
    return "classifier" in HEADS[checkpoint.head].layers
