"""Load a checkpoint into a pipeline: the part of ``pipeline(task, model)`` shared by both engines."""

import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_unchanged
from duonlp.errors import InputError
from duonlp.export import ExportedFiles, ExportedModel, find_exported
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks import TASKS, Task, get_task, make_task
from duonlp.typing import ImageProcessor, Tokenizer


def load_pipeline(
    heads: Mapping[str, Any],
    forward_of: Callable[[Any], Callable[..., Any]],
    task: str,
    model: Any = None,
    *,
    tokenizer: Tokenizer | None = None,
    image_processor: ImageProcessor | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    stream: Callable[..., Any] | None = None,
    assistant_model: Any = None,
    max_tokens: int | None = None,
    runtimes: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    **options: Any,
) -> Pipeline:
    """Create a pipeline for a task from a checkpoint, an exported model or a model.

    Args:
        heads: The engine's model class for each head.
        forward_of: Function from a model to a function from a batch of NumPy arrays to the model's outputs.
        task: Name of the task, see ``duonlp.tasks``.
        model: A folder, a Hub id, a model of the engine with the task's head, or a file or folder that
            :func:`duonlp.export.find_exported` finds, beside which are its config.json and tokenizer.
        tokenizer: A tokenizer of Transformers, fast unless the task is text-to-text generation (default: the checkpoint's).
            Required if ``model`` is a loaded model.
        image_processor: An image processor of Transformers, in place of the tokenizer for tasks that read images.
        revision: See ``from_pretrained``.
        local_files_only: See ``from_pretrained``.
        dtype: See ``from_pretrained``.
        param_dtype: See ``from_pretrained``.
        stream: The engine's ``generation.stream``.
        max_tokens: Maximum number of tokens in a batch of texts, padding included; see ``Pipeline``. Tasks that generate text
            have no such limit.
        assistant_model: For tasks that generate text, a smaller model that drafts tokens, or its folder or Hub id.
        runtimes: The engine's runtimes of exported models, see ``ExportedFiles.sessions``.
        options: batch_size, progress, and the task's options.

    Raises:
        InputError: the task or an option is unknown, or the model is missing or does not support the task.
        CheckpointError: the checkpoint cannot be found or read.
    """
    task_class = get_task(task)
    needs = task_class.needs
    given = {"tokenizer": tokenizer, "image_processor": image_processor}
    processor = given.pop(needs)
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{task} has no use for {name}=; pass {needs}= instead, or leave it out")
    if model is None:
        raise InputError(f"pipeline({task!r}) needs a model; pass a folder, a Hub id or a loaded model")
    task_object, exported = None, find_exported(model)
    if not hasattr(model, "config"):

        def read(checkpoint: Checkpoint) -> tuple[Any, Task[Any] | None]:
            """Return what is read by path: the processor and, as it may read files, the task, unless it generates."""
            config = checkpoint.transformer_config()
            _check_head(task, task_class, config.model_type, heads)
            used = getattr(checkpoint, needs)() if processor is None else processor
            return used, None if task_class.generates else make_task(task, used, config, checkpoint.folder)

        source = model if exported is None else exported.folder
        checkpoint, (processor, task_object) = read_unchanged(source, read, revision, local_files_only)
        if exported is None:
            model = heads[task_class.head].from_pretrained(checkpoint, dtype=dtype, param_dtype=param_dtype)
        else:
            model = _open_exported(exported, task, task_class, runtimes, (dtype, param_dtype))
        folder = weights_folder = checkpoint.folder
        checkpoint.close()
    elif model.head != task_class.head:
        _check_head(task, task_class, model.config.model_type, heads)
        raise InputError(
            f"{task} needs a model with the {task_class.head!r} head, but this one has {model.head!r}; "
            f"load it with {heads[task_class.head].__name__}"
        )
    else:
        folder, weights_folder = getattr(model, "folder", None), None
        unused = {
            "revision": revision is not None, "local_files_only": local_files_only, "dtype": dtype != "float32",
            "param_dtype": param_dtype != "float32",
        }  # fmt: skip
        if any(unused.values()):
            name = next(name for name, given in unused.items() if given)
            raise InputError(f"{name} is for loading a checkpoint, but this model is loaded; omit it")
    if processor is None:
        raise InputError(f"pipeline({task!r}) got a loaded model but no {needs}; pass {needs}=")
    if task_object is None:
        task_object = make_task(task, processor, model.config, folder, getattr(model, "generation_config", None))
    if task_class.generates:
        if isinstance(assistant_model, (str, os.PathLike)):
            if draft_files := find_exported(assistant_model):
                assistant_model = ExportedModel.open(draft_files, runtimes)
            else:
                draft = open_checkpoint(assistant_model, local_files_only=local_files_only)
                assistant_model = heads[task_class.head].from_pretrained(draft, dtype=dtype, param_dtype=param_dtype)
        if isinstance(model, ExportedModel):
            stream = model.stream
        elif stream is not None:
            stream = functools.partial(stream, model)
        return Pipeline(task_object, model.generate, stream=stream, assistant_model=assistant_model, **options)
    if assistant_model is not None:
        options["assistant_model"] = assistant_model  # Pipeline raises: other tasks have no such option
    forward = model.run if isinstance(model, ExportedModel) else forward_of(model)
    pipe = Pipeline(task_object, forward, max_tokens=max_tokens, **options)
    pipe.weights_folder = weights_folder
    return pipe


def _open_exported(
    files: ExportedFiles,
    task: str,
    task_class: type[Task[Any]],
    runtimes: Mapping[str, Callable[..., Any]],
    dtypes: tuple[Any, Any],
) -> ExportedModel:
    """Open an exported model, which must have the head of a task."""
    if dtypes != ("float32", "float32"):
        raise InputError("dtype and param_dtype are for checkpoints; an exported model has its own, so omit them")
    model = ExportedModel.open(files, runtimes)
    if model.head != task_class.head:
        raise InputError(
            f"{task} needs a model with the {task_class.head!r} head, but {str(files.folder)!r} was exported with "
            f"{model.head!r}; export the checkpoint with that head"
        )
    return model


def _check_head(task: str, task_class: type[Task[Any]], model_type: str, heads: Mapping[str, Any]) -> None:
    """Raise InputError, listing supported tasks, if a family has no model for a task."""
    available = architectures.get(model_type).heads(model_type)
    if task_class.head in available:
        return
    required = f"Auto{heads[task_class.head].__name__}" if task_class.head in heads else f"the {task_class.head!r} head"
    supported = [name for name, other in TASKS.items() if other.head in available]
    raise InputError(
        f"{task} needs {required}, which {model_type} does not support; use another model, or a task that it supports: "
        f"{', '.join(supported) or '(none)'}"
    )
