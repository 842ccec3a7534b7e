"""The interface of methods that learn from few labels, and the files of trained classifiers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import CheckpointError, InputError
from duonlp.schema import Kind, check, choice, list_of, simple, text
from duonlp.tasks.base import read_json
from duonlp.typing import Engine
from duonlp.util.files import storage_errors
from duonlp.util.json_text import to_json

CLASSIFIER, ARRAYS = "classifier.json", "classifier.safetensors"
"""Files of a classifier; those of its models are in subfolders, in Hugging Face layout."""


@dataclass(frozen=True)
class FewShotData:
    """What a method may learn from.

    Attributes:
        train: The few labeled texts. All are str, not pairs.
        validation: Labeled texts with the same label names, for what a method tunes itself, or None.
        unlabelled: Texts without labels.

    Raises:
        InputError: The texts are pairs, or training and validation texts have other label names or another number of labels.
    """

    train: LabelledTexts
    validation: LabelledTexts | None = None
    unlabelled: Sequence[str] = ()

    def __post_init__(self) -> None:
        for texts in (self.train, self.validation):
            if texts is not None and any(not isinstance(item, str) for item in texts.texts):
                raise InputError("learning from few labels takes single texts, not pairs; join each pair into one text")
        other = self.validation
        if other is None:
            return
        if (other.label_names, other.multi_label) != (self.train.label_names, self.train.multi_label):
            raise InputError(
                f"the validation texts have the labels {', '.join(other.label_names)} and the training texts "
                f"{', '.join(self.train.label_names)}; read both with the same label_names"
            )


class Classifier(Protocol):
    """A classifier of texts, whatever it was learned with.

    Attributes:
        label_names: Names of the labels.
        multi_label: Whether a text may have several labels, or none.
    """

    label_names: tuple[str, ...]
    multi_label: bool

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each label, float32 [n, C]; without `multi_label`, rows add up to 1."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write everything that ``load_classifier`` needs, atomically."""
        ...

    @classmethod
    def load(cls, files: "ClassifierFiles", package: Engine | None) -> Self:
        """Return the classifier of a folder."""
        ...


class Method(Protocol):
    """A method of learning from few labels: a frozen dataclass of its settings.

    Attributes:
        name: Name of the method, as in METHODS.
        needs_engine: Whether it runs a model of tfnlp or jaxnlp.
        needs_unlabelled: Whether it learns from unlabeled texts.
        classifier: Class of the classifiers it makes.
    """

    name: str
    needs_engine: bool
    needs_unlabelled: bool
    classifier: type[Classifier]

    def fit(self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False) -> Classifier:
        """Learn a classifier; the same seed gives the same one.

        Args:
            package: tfnlp or jaxnlp; None for methods without a model.
            data: What to learn from.
            seed: Seed of everything random.
            console: Whether to show progress, or the rich Console to show it on. True is standard error.

        Raises:
            InputError: The data or the settings do not suit the method.
        """
        ...


SCHEMA: dict[str, Kind] = {
    "format": choice("duonlp classifier"),
    "version": simple("1", lambda value: value == 1 and not isinstance(value, bool)),
    "method": text(100),
    "label_names": list_of(text(1000), 1, 1 << 20),
    "multi_label": simple("true or false", lambda value: isinstance(value, bool)),
    "settings": simple("an object", lambda value: isinstance(value, dict)),
}
"""Kinds of the keys of classifier.json."""


@dataclass(frozen=True)
class ClassifierFiles:
    """The contents of a classifier's folder.

    Attributes:
        method: Name of the method.
        label_names: Names of the labels.
        multi_label: Whether a text may have several labels, or none.
        settings: Further JSON-compatible values.
        arrays: Arrays by name.
        folder: The folder, which has the subfolders of models.
    """

    method: str
    label_names: tuple[str, ...]
    multi_label: bool
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    folder: Path = Path()

    def array(self, name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return an array after checking its dtype and shape, in which None stands for any size.

        Raises:
            CheckpointError: It is missing or another.
        """
        array = self.arrays.get(name)
        expected = [size if size is not None else "n" for size in shape]
        is_expected = array is not None and array.dtype == dtype and len(array.shape) == len(shape)
        if array is None or not is_expected or any(s not in (None, n) for s, n in zip(shape, array.shape)):
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise CheckpointError(
                f"{self.folder / ARRAYS}: {name!r} is {found}; it must be {np.dtype(dtype)} {expected}: train again"
            )
        return array


def write_classifier(
    files: ClassifierFiles, folder: str | Path, save_models: Callable[[Path], None] = lambda folder: None
) -> None:
    """Write the folder of a classifier atomically.

    Args:
        files: Its contents.
        folder: Folder to write to.
        save_models: Called with the new folder, to write models into subfolders of it.

    Raises:
        StorageError: The folder cannot be written.
    """
    about = {
        "format": "duonlp classifier", "version": 1, "method": files.method, "label_names": list(files.label_names),
        "multi_label": files.multi_label, "settings": files.settings,
    }  # fmt: skip
    with storage_errors(folder), atomic_folder(folder) as new:
        save_models(new)
        for name in (CLASSIFIER, ARRAYS):
            (new / name).unlink(missing_ok=True)  # a link to the file that is being replaced
        if files.arrays:
            tensors = [
                TensorToWrite(name, a.shape, a.dtype, partial(np.ascontiguousarray, a))
                for name, a in files.arrays.items()
            ]
            write_tensors(new / ARRAYS, tensors)
        (new / CLASSIFIER).write_bytes(to_json(about, indent=2).encode() + b"\n")


def read_classifier(folder: str | Path) -> ClassifierFiles:
    """Read the folder of a classifier; nothing is unpickled.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folder = Path(folder).expanduser()
    about = read_json(folder / CLASSIFIER, SCHEMA)
    if about is None:
        raise CheckpointError(f"{folder} has no {CLASSIFIER}; pass a folder that a classifier's save has written")
    if missing := sorted(set(SCHEMA) - set(about)):
        raise CheckpointError(f"{folder / CLASSIFIER} has no {', '.join(missing)}; train again")
    arrays = {}
    if (folder / ARRAYS).exists():
        arrays = {name: tensor.read() for name, tensor in list_tensors(folder / ARRAYS).items()}
    return ClassifierFiles(
        about["method"], tuple(about["label_names"]), about["multi_label"], about["settings"], arrays, folder
    )


def check_settings(files: ClassifierFiles, schema: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the settings of a classifier's folder after checking their kinds.

    Raises:
        CheckpointError: A setting is of another kind, or missing.
    """
    if missing := sorted(set(schema) - set(files.settings)):
        raise CheckpointError(f"{files.folder / CLASSIFIER}: settings has no {', '.join(missing)}; train again")
    check(f"{files.folder / CLASSIFIER}", files.settings, schema, error=CheckpointError)
    return files.settings
