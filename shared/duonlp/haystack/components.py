"""What the components share: arguments that serialize, and a pipeline that is loaded on first use."""

import copy
import inspect
import os
import threading
from typing import Any, ClassVar, Self

from haystack import Document, default_from_dict, default_to_dict

from duonlp.errors import InputError
from duonlp.pipelines import Pipeline, trained_pipeline
from duonlp.util.frameworks import chosen_framework, load_package


class Serializable:
    """A component whose attributes have the names of its constructor's arguments."""

    def to_dict(self) -> dict[str, Any]:
        """Return the component's class and arguments, as Haystack stores them in YAML."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        values = {name: getattr(self, name) for name in names}
        # Copies, so that YAML does not refer from one component to another's dict.
        return default_to_dict(
            self, **{n: copy.deepcopy(v) if isinstance(v, dict | list) else v for n, v in values.items()}
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create the component from the result of :meth:`to_dict`."""
        return default_from_dict(cls, data)


class ModelComponent(Serializable):
    """A component around a pipeline of tfnlp or jaxnlp.

    Subclasses call ``ModelComponent.__init__``: ``@component`` makes a new class, of which ``super()`` knows nothing.

    Args:
        model: A folder in Hugging Face layout, or a Hub id.
        framework: "tf" or "jax"; "" for the installed one, jax if both are.
        model_kwargs: Further arguments of ``pipeline``, such as revision, local_files_only and dtype.

    Raises:
        InputError: The framework is neither, or an argument is of another type.

    Attributes:
        task: Name of the pipeline's task.
    """

    task: ClassVar[str]

    def __init__(
        self, model: str | os.PathLike[str], framework: str = "", model_kwargs: dict[str, Any] | None = None
    ) -> None:
        if not isinstance(model, (str, os.PathLike)) or not str(model):
            raise InputError(f"model is {model!r}; expected a folder or a Hub id")
        if model_kwargs is not None and not isinstance(model_kwargs, dict):
            raise InputError(f"model_kwargs is {model_kwargs!r}; expected a dict of arguments of pipeline()")
        chosen_framework(framework)  # raises
        self.model, self.framework, self.model_kwargs = str(model), framework, model_kwargs
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Load the model; the first ``run`` does it otherwise."""
        self.pipeline()

    def pipeline(self) -> Pipeline:
        """Return the pipeline, loading it the first time.

        Raises:
            MissingExtraError: The framework is not installed.
            CheckpointError: The checkpoint cannot be found or read.
            InputError: It lacks the head of the task, so that its results would be random.
        """
        with self._lock:  # Haystack runs components in threads
            if self._pipeline is None:
                self._pipeline = self._load()
            return self._pipeline

    def _load(self) -> Pipeline:
        package, _ = load_package(self.framework)
        return trained_pipeline(package, self.task, self.model, **(self.model_kwargs or {}))


def check_documents(documents: Any) -> list[Document]:
    """Return a list of Haystack documents; raise InputError if it is something else."""
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise InputError(f"documents is {documents!r:.60}; expected a list of haystack.Document")
    return documents


def check_number(name: str, value: Any, optional: bool = False) -> None:
    """Raise InputError unless a value is a number, or None if that is allowed."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise InputError(f"{name} is {value!r}; expected a number{' or None' if optional else ''}")


def check_names(name: str, value: Any) -> list[str]:
    """Return a list of names, [] for None; raise InputError if it is something else."""
    if value is None:
        return []
    if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
        raise InputError(f"{name} is {value!r}; expected a list of names")
    return list(value)


def text_of(document: Document, meta_fields: list[str], separator: str) -> str:
    """Return the values of some meta fields and the content of a document as one text, without fields that are missing."""
    values = [str(document.meta[name]) for name in meta_fields if document.meta.get(name) is not None]
    return separator.join([*values, document.content or ""])
