"""Which of Keras' file formats hold a whole model: checked before anything is written or trained."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import keras

from duonlp.errors import InputError

HDF5 = (".h5", ".hdf5")
"""Endings of Keras 2's format of whole models, which drops the optimizer and what compile was given."""

# The final class is a keras.Model, which the type checker needs to know of its mixins.
_Model = keras.Model if TYPE_CHECKING else object

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Register a class with Keras, also under its bare name, which .h5 files have, unless Keras has a class of that name."""
    if not hasattr(keras, cls.__name__):
        keras.saving.get_custom_objects()[cls.__name__] = cls
    return keras.saving.register_keras_serializable(package="tfnlp")(cls)


class KerasFiles(_Model):
    """Mixin that saves whole models in Keras' own format only."""

    def save(self, filepath: Any, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any) -> None:
        """Save the model as keras.Model.save does: a ``.keras`` file, or a folder with ``zipped=False``.

        Raises:
            InputError: The path is that of an ``.h5`` file, or has another ending; nothing has been written.
        """
        check_model_path(filepath, zipped)
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)


def check_model_path(filepath: Any, zipped: bool | None = None) -> None:
    """Raise InputError if Keras would write a whole model to a path in a format that does not hold all of it.

    Args:
        filepath: Path given to ``model.save``.
        zipped: See keras.Model.save; False writes a folder.
    """
    path = os.fspath(filepath) if isinstance(filepath, (str, os.PathLike)) else None
    if path is None or path.startswith("hf://"):
        return
    if path.lower().endswith(HDF5):
        raise InputError(
            f"cannot save a model to {path!r}: .h5 files of whole models cannot be loaded with the optimizer and the losses; use "
            "model.save('model.keras'), model.save_pretrained(folder), or model.save_weights('model.weights.h5')"
        )
    if zipped is not False and not path.endswith(".keras"):
        raise InputError(
            f"cannot save a model to {path!r}; use model.save('model.keras'), model.save_pretrained(folder) for Hugging Face "
            "layout, or model.export(folder) for a SavedModel"
        )


def check_export_path(filepath: Any) -> None:
    """Raise InputError if a path of ``model.export`` has the ending of a file, although a folder is written."""
    path = str(filepath)
    if path.lower().endswith((*HDF5, ".keras")):
        raise InputError(
            f"cannot export to {path!r}: export writes a folder; drop the ending, or use model.save('model.keras')"
        )


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Raise InputError for a ModelCheckpoint whose first save would fail, before anything is trained."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_weights_only:
            check_model_path(callback.filepath)
