"""Settings, data and models shared by fine-tuning and distilling a classifier."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.dtypes import TRAINING_DTYPES, check_dtype
from duonlp.errors import CheckpointError, InputError, NewHeadWarning
from duonlp.heads import HEADS
from duonlp.metrics.classification import ClassificationScorer
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Engine
from duonlp.util.frameworks import PACKAGES
from duonlp.util.reading import check_encoding
from duonlp.util.suggestions import nearest

if TYPE_CHECKING:
    from duonlp.data.labelled.batches import LabelledBatches
    from duonlp.data.labelled.texts import LabelledTexts

TRAIN, VALIDATION = "train", "validation"
"""Default names of the splits."""

OUT_OF_SCOPE = "oos"
"""Name of the out-of-scope label in CLINC150."""

FIT = FitConfig(epochs=4, learning_rate=2e-4, schedule="cosine", best_metric="accuracy")
"""Default training settings, which work well for a MiniLM on CLINC150 with batches of 48."""


@dataclass(frozen=True, kw_only=True)
class LabelledRunSettings:
    """Settings of every run on labeled texts.

    Attributes:
        data: A file, a folder or a Hub id, as duonlp.data.read_labelled_texts takes it.
        output: Folder of the run. If it holds this run already, the run is resumed.
        framework: "tf" or "jax", for the command line; a run stores the one it uses.
        config: Configuration of a dataset on the Hub, such as "plus".
        train_split: Name of the training split. A single table has none: all of it is trained on and nothing is validated.
        validation_split: Name of the validation split; empty to validate nothing.
        text_column: Name of the text column, or of two ("question,passage") for pairs of texts; None to
            detect it as read_labelled_texts does.
        label_column: Name of the label column; None to detect it as read_labelled_texts does.
        encoding: Encoding of files of text, such as "cp1252"; None for UTF-8.
        quoting: Whether fields of CSV and TSV files may be quoted; None to decide as read_labelled_texts does.
        limit: Maximum number of texts per split, evenly spaced over it; None for all.
        max_length: Maximum number of tokens per text; None for the model's maximum. (Batches are padded to their texts.)
        batch_size: Texts per step.
        dtype: Compute dtype: "float32" or "bfloat16". Parameters and optimizer state stay in float32.
        out_of_scope: Name of the out-of-scope label. None: "oos" if there is such a label. "": there is none.
        seed: Seed for shuffling and new parameters; `fit.seed` is that of dropout.
        cache: Folder to cache tokenized texts in for later runs; None keeps them in memory.
        tensorboard: Whether to write TensorBoard event files too.
        fit: Training settings.

    Raises:
        InputError: A value is invalid.
    """

    data: str
    output: str
    framework: str = ""
    config: str | None = None
    train_split: str = TRAIN
    validation_split: str = VALIDATION
    text_column: str | None = None
    label_column: str | None = None
    encoding: str | None = None
    quoting: bool | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int = 48
    dtype: str = "float32"
    out_of_scope: str | None = None
    seed: int = 0
    cache: str | None = None
    tensorboard: bool = False
    fit: FitConfig = field(default_factory=lambda: FIT)

    program: ClassVar[str] = "a run"
    """Command that performs the run, for messages and the heading of settings.toml."""

    may_change: ClassVar[tuple[str, ...]] = ("output", "cache", "tensorboard")
    """Settings that may change on resume. Those of `fit` are determined by its ``fixed_on_resume``."""

    def __post_init__(self) -> None:
        for name in ("data", "output"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; give --{name}, or set {name} in the TOML file")
        for name in ("limit", "max_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.framework and self.framework not in PACKAGES:
            raise InputError(
                f"framework {self.framework!r} is not one of {', '.join(PACKAGES)}{nearest(self.framework, PACKAGES)}"
            )
        check_dtype(self.dtype, allowed=TRAINING_DTYPES)
        check_encoding(self.encoding)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.output).expanduser()


@dataclass(frozen=True)
class LabelledData:
    """The tokenized data of a run.

    Attributes:
        batches: Training batches.
        validation: Validation batches, or None.
        label_names: Names of the classes, in the order of the logits.
        out_of_scope: Name of the out-of-scope label, or None.
        fingerprint: Hash of the texts and labels.
    """

    batches: "LabelledBatches"
    validation: "LabelledBatches | None"
    label_names: tuple[str, ...]
    out_of_scope: str | None
    fingerprint: str

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
        }

    def scorer(self, package: Engine, as_teacher: bool = False) -> ClassificationScorer | None:
        """Return a scorer of the validation texts, or None without any.

        Args:
            package: tfnlp or jaxnlp, which predicts.
            as_teacher: Whether to score a teacher, which reads its own inputs if its tokenizer differs.
        """
        if self.validation is None:
            return None

        def predict_as_teacher(model: Any, batches: Any) -> np.ndarray:
            label2id = model.config.label2id  # the teacher's order, which may differ from the data's
            columns = [label2id[name] for name in self.label_names]
            return package.predict(model, batches, as_teacher=True)[:, columns]  # [n, C]

        predict = predict_as_teacher if as_teacher else package.predict
        return ClassificationScorer(self.validation, predict, out_of_scope=self.out_of_scope)


def cannot_predict(model: Any, batches: Any) -> np.ndarray:
    """Stand in for an engine's ``predict`` in a scorer that only checks names; always raise NotImplementedError."""
    raise NotImplementedError("this scorer has no engine to predict with")


def read_texts(
    settings: LabelledRunSettings, label_names: tuple[str, ...] | None = None, whose: str = "the model"
) -> "tuple[LabelledTexts, LabelledTexts | None]":
    """Read the training texts and the validation texts (None without a validation split), with the same label ids.

    Args:
        settings: Settings of the run.
        label_names: Label names of a fine-tuned model, which determine the ids; None uses those of the data.
        whose: Owner of these labels, for error messages.

    Raises:
        InputError: The data cannot be read, or has labels that are not in `label_names`.
    """
    from duonlp.data.labelled.texts import read_labelled_texts

    train_split, validation_split = _splits(settings)
    options: dict[str, Any] = {
        "config": settings.config,
        "text_column": settings.text_column,
        "label_column": settings.label_column,
        "encoding": settings.encoding,
        "quoting": settings.quoting,
        "limit": settings.limit,
    }
    train = read_labelled_texts(settings.data, train_split, **options)
    if label_names is not None:
        train = with_label_names(train, label_names, whose)
    if not validation_split:
        return train, None
    names = tuple(train.label_names)
    return train, read_labelled_texts(settings.data, validation_split, **options, label_names=names)


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
            f"keep the best one, give {remedy}",
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
    texts: "tuple[LabelledTexts, LabelledTexts | None]",
    tokenizer: Any,
    *configs: TransformerConfig,
    teacher_tokenizer: Any = None,
) -> LabelledData:
    """Tokenize and batch the texts for a model and, optionally, its teacher.

    Args:
        settings: Settings of the run.
        texts: Training and validation texts, from :func:`read_texts`.
        tokenizer: Tokenizer of the model.
        configs: Configurations of all models that read the texts; these are truncated to the shortest maximum.
        teacher_tokenizer: Tokenizer of a teacher that needs its own inputs.

    Raises:
        InputError: max_length exceeds a model's maximum, the out-of-scope label is unknown, or there are too few texts.
    """
    from duonlp.data.labelled.batches import LabelledBatches

    train, validation = texts
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
    data = LabelledData(batches, validation_batches, names, out_of_scope or None, fingerprint(train, validation))
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


def load_classifier(
    package: Engine, name: str, label_names: tuple[str, ...], multi_label: bool, dtype: str, seed: int
) -> tuple[Any, bool]:
    """Load a checkpoint as a classifier for some labels.

    Args:
        package: tfnlp or jaxnlp.
        name: Folder in Hugging Face layout, or a Hub id.
        label_names: Names of the labels, in the checkpoint's own order if it is fine-tuned for them; see
            :func:`check_labels` and :func:`matching_label_names`.
        multi_label: Whether a text may have several labels.
        dtype: Compute dtype.
        seed: Seed for a new head.

    Returns:
        (model, whether its head is new rather than the checkpoint's).

    Raises:
        CheckpointError: The checkpoint cannot be read.
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
    is_new_head = False
    for warning in caught:
        if issubclass(warning.category, NewHeadWarning):  # expected in fine-tuning, so not worth a warning
            is_new_head = True
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model, is_new_head


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
