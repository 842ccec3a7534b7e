"""What fine-tuning and distilling a classifier have in common: their settings, their data, and models for its labels."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.dtypes import TRAINING_DTYPES, check_dtype
from duonlp.errors import CheckpointError, InputError
from duonlp.metrics.classification import ClassificationScorer
from duonlp.training.fit_config import FitConfig
from duonlp.util.frameworks import PACKAGES
from duonlp.util.suggestions import nearest

TRAIN, VALIDATION = "train", "validation"
"""The splits that are read unless others are named."""

OUT_OF_SCOPE = "oos"
"""The name of the label that CLINC150 gives to what is out of scope."""

FIT = FitConfig(epochs=4, learning_rate=2e-4, schedule="cosine", best_metric="accuracy")
"""Does well for a MiniLM on CLINC150, together with batches of 48."""


@dataclass(frozen=True, kw_only=True)
class LabelledRunSettings:
    """What every run on labelled texts is made of.

    data: a file, a folder or a Hub id, as duonlp.data.read_labelled_texts takes it.
    output: the run's folder. With this very run in it, the run goes on.
    framework: "tf" or "jax", for the command line; a run writes down which it was.
    config: of a dataset of the Hub, such as "plus".
    train_split, validation_split: their names; an empty validation_split, and nothing is validated. Of a file that is a single
        table, all of it is trained on, and nothing is validated.
    text_column, label_column: names of columns; None: as read_labelled_texts finds them.
    limit: only so many texts of each split, spread evenly over it; None for all.
    max_length: tokens of a text at most; None: as many as the model reads. (Batches are as long as their texts.)
    batch_size: texts in a step.
    dtype: what is computed in: "float32" or "bfloat16"; parameters and the optimizer's moments are float32.
    out_of_scope: the name of the label for what is out of scope; None: "oos" where there is such a label; "": there is none.
    seed: of the order of the texts and of parameters that start afresh; `fit.seed` is that of dropout.
    cache: a folder where tokenised texts are kept, for the next run; None keeps them in memory.
    tensorboard: whether event files are written, too.
    fit: how it is trained.
    """

    data: str
    output: str
    framework: str = ""
    config: str | None = None
    train_split: str = TRAIN
    validation_split: str = VALIDATION
    text_column: str | None = None
    label_column: str | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int = 48
    dtype: str = "float32"
    out_of_scope: str | None = None
    seed: int = 0
    cache: str | None = None
    tensorboard: bool = False
    fit: FitConfig = field(default_factory=lambda: FIT)

    what: ClassVar[str] = "a run"
    may_change: ClassVar[tuple[str, ...]] = ("output", "cache", "tensorboard")
    """Settings that a run is resumed with, changed or not; those of `fit` say so themselves."""

    def __post_init__(self):
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give --{name}, or {name} in the TOML file")
        for name in ("limit", "max_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.framework and self.framework not in PACKAGES:
            raise InputError(
                f"framework {self.framework!r} is not one of {', '.join(PACKAGES)}{nearest(self.framework, PACKAGES)}"
            )
        check_dtype(self.dtype, allowed=TRAINING_DTYPES)

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.output).expanduser()


@dataclass(frozen=True)
class LabelledData:
    """Texts of a run, tokenised: batches to train on, and batches to validate on, or None."""

    batches: Any
    validation: Any | None
    label_names: tuple[str, ...]
    out_of_scope: str | None
    fingerprint: str

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels."""
        return np.ndim(self.batches.labels) == 2

    def describe(self) -> dict[str, Any]:
        """What identifies the data, for run.json and results.json."""
        count = 0 if self.validation is None else len(self.validation.labels)
        return {
            "fingerprint": self.fingerprint,
            "train": len(self.batches.labels),
            "validation": count,
            "labels": len(self.label_names),
        }

    def scorer(self, package, as_teacher: bool = False) -> ClassificationScorer | None:
        """Of the validation texts, by tfnlp's or jaxnlp's predictions; None where there are none.

        Args:
            as_teacher: of a teacher, which reads inputs of its own where it has another tokenizer.
        """
        if self.validation is None:
            return None

        def of_teacher(model, batches) -> np.ndarray:
            labels = model.config.label2id  # its own order may be another than the data's, which is the student's
            return package.predict(model, batches, as_teacher=True)[:, [labels[name] for name in self.label_names]]

        predict = of_teacher if as_teacher else package.predict
        return ClassificationScorer(self.validation, predict, out_of_scope=self.out_of_scope)


def read_texts(settings: LabelledRunSettings, label_names: tuple[str, ...] | None = None, whose: str = "the model"):
    """(training texts, validation texts or None), whose labels are numbered alike.

    Args:
        label_names: of a model that tells labels apart already: numbered as it has them. None: as the data has them.
        whose: these are, for messages.

    Raises:
        InputError: the data cannot be read, or has labels that are none of `label_names`.
    """
    from duonlp.data.labelled.texts import read_labelled_texts

    train_split, validation_split = _splits(settings)
    columns = {"config": settings.config, "text_column": settings.text_column, "label_column": settings.label_column}
    options = columns | {"limit": settings.limit}
    train = read_labelled_texts(settings.data, train_split, **options)
    if label_names is not None:
        train = with_label_names(train, label_names, whose)
    if not validation_split:
        return train, None
    names = tuple(train.label_names)
    return train, read_labelled_texts(settings.data, validation_split, **options, label_names=names)


def _splits(settings: LabelledRunSettings) -> tuple[str | None, str]:
    """Names of the splits to train on and to validate on: of a single table, all of it and none.

    Raises:
        InputError: a split of a single table was named.
    """
    from duonlp.data.labelled.files import is_one_table

    if not is_one_table(settings.data):
        return settings.train_split, settings.validation_split
    folder = "a folder with a file for each split, such as train.csv and validation.csv"
    for split, usual in ((settings.train_split, TRAIN), (settings.validation_split, VALIDATION)):
        if split not in (usual, ""):
            raise InputError(f"{settings.data!r} is a single table and has no split {split!r}; give {folder}")
    if settings.validation_split:
        warnings.warn(
            f"{settings.data!r} is a single table: all of it is trained on, and nothing is validated, so that the last model "
            f"is kept; to keep the best one, give {folder}",
            stacklevel=3,
        )
    return None, ""


def with_label_names(texts, label_names: tuple[str, ...], whose: str = "the model"):
    """The texts with their labels numbered as in `label_names`.

    Raises:
        InputError: a label is none of them.
    """
    old, new = tuple(texts.label_names), tuple(label_names)
    if old == new:
        return texts
    unknown = [name for name in old if name not in new]
    if unknown:
        raise InputError(
            f"{whose} tells {len(new)} labels apart, and {unknown[0]!r} of the data is none of them "
            f"({len(unknown)} of {len(old)} are not){nearest(unknown[0], new)}; both need the same label names"
        )
    places = np.array([new.index(name) for name in old])
    labels = np.asarray(texts.labels)
    if labels.ndim == 2:
        moved = np.zeros((len(labels), len(new)), labels.dtype)
        moved[:, places] = labels
    else:
        moved = np.where(labels < 0, labels, places[labels]).astype(labels.dtype)
    return replace(texts, labels=moved, label_names=new)


def batched(settings: LabelledRunSettings, texts, tokenizer, *configs, teacher_tokenizer=None) -> LabelledData:
    """The texts as batches for a model, and perhaps for its teacher, too.

    Args:
        texts: what :func:`read_texts` gave.
        tokenizer: of the model.
        configs: TransformerConfigs of all models that read the texts, which are cut to what each of them can read.
        teacher_tokenizer: of a teacher that reads the texts its own way.

    Raises:
        InputError: max_length is more than a model reads, the out-of-scope label is none of the labels, or the texts make no
            batches.
    """
    from duonlp.data.labelled.batches import LabelledBatches

    train, validation = texts
    longest = min(config.max_length for config in configs)
    if settings.max_length is not None and settings.max_length > longest:
        raise InputError(
            f"max_length is {settings.max_length}, and the model reads {longest} tokens; give at most that"
        )
    options = {
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
    scope = settings.out_of_scope
    if scope is None:
        scope = OUT_OF_SCOPE if OUT_OF_SCOPE in names and np.ndim(train.labels) == 1 else None
    data = LabelledData(batches, validation_batches, names, scope or None, fingerprint(train, validation))
    if data.out_of_scope is not None:  # a name that is no label is an error before the training
        ClassificationScorer(batches, predict=None, out_of_scope=data.out_of_scope)
    return data


def fingerprint(*several) -> str:
    """A hash of texts, labels and label names: the same data, however it was stored."""
    digest = hashlib.sha256()
    for texts in several:
        if texts is not None:
            for each in (*texts.texts, *texts.label_names):
                digest.update(json.dumps(each).encode())
            digest.update(np.ascontiguousarray(texts.labels).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def load_classifier(package, name: str, label_names: tuple[str, ...], multi_label: bool, dtype: str, seed: int):
    """(a model with a head for these labels, whether that head is new): one that the checkpoint has for them goes on.

    Args:
        label_names: in its own order, where it is fine-tuned for them; see :func:`check_labels` and :func:`own_labels`.

    Raises:
        CheckpointError: it cannot be read.
    """
    options = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: number for number, label in enumerate(label_names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = package.AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, seed=seed, ignore_mismatched_sizes=True, **options
        )
    is_new = False
    for each in caught:
        if "starts from random values" in str(each.message):  # which is what fine-tuning is for
            is_new = True
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return model, is_new


def check_labels(name: str, label_names: tuple[str, ...]) -> None:
    """Raises InputError for a checkpoint with a trained head for as many other labels, so that it would be taken for these."""
    checkpoint = open_checkpoint(name)
    stored = checkpoint.transformer_config().labels
    unnamed = stored == tuple(f"LABEL_{i}" for i in range(len(stored)))
    trained = checkpoint.head == "sequence-classification"
    other = next((label for label in label_names if label not in stored), None)
    if trained and len(stored) == len(label_names) and other is not None and not unnamed:
        raise InputError(
            f"{name!r} is fine-tuned for as many labels as the data has, but for others ({stored[0]!r}, ..., not {other!r}); "
            "start from the checkpoint that it was made of, or give data with its labels"
        )


def own_labels(name: str, data_labels: tuple[str, ...]) -> tuple[str, ...] | None:
    """The label names of a checkpoint that is fine-tuned for the same labels as the data's, in its order; else None."""
    checkpoint = open_checkpoint(name)
    labels = checkpoint.transformer_config().labels
    same = checkpoint.head == "sequence-classification" and set(labels) == set(data_labels)
    return labels if same else None


def check_classifier(name: str, role: str) -> None:
    """Raises InputError for a checkpoint that is no fine-tuned classifier.

    Args:
        role: of it, for messages, such as "teacher".
    """
    try:
        checkpoint = open_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(f"{role}: {error}") from error
    if checkpoint.head != "sequence-classification":
        raise InputError(
            f"the {role} {name!r} was saved with the head {checkpoint.head}, and classifies nothing yet; make it with duonlp "
            "finetune first"
        )
