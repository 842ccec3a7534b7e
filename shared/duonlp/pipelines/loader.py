"""What ``pipeline(task, model)`` does before either engine has its say."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from duonlp import architectures
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks import TASKS, Task, get_task, make_task


def load_pipeline(
    heads: Mapping[str, type],
    forward_of: Callable[[Any], Callable],
    task: str,
    model=None,
    *,
    tokenizer=None,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: str = "float32",
    param_dtype: str = "float32",
    stream: Callable | None = None,
    assistant_model=None,
    **options,
) -> Pipeline:
    """The pipeline of a task over a checkpoint or a model.

    Args:
        heads: an engine's model class for each head.
        forward_of: model -> a function from a batch of NumPy arrays to the model's outputs.
        task: its name (duonlp.tasks).
        model: a folder, a Hub id, or a model of the engine with the task's head.
        tokenizer: one of Transformers, fast unless the task writes text from text; the checkpoint's own when None. A loaded
            model comes with none.
        revision, local_files_only, dtype, param_dtype: as in ``from_pretrained``.
        stream: the engine's generation.stream.
        assistant_model: for tasks that write text, a smaller model that proposes tokens, or the folder or Hub id of one.
        options: batch_size, progress, and the task's own options.

    Raises:
        InputError: an unknown task or option, no model, or a model whose head is another task's.
        CheckpointError: the checkpoint cannot be found or read.
    """
    task_class = get_task(task)
    if model is None:
        raise InputError(f"pipeline({task!r}) needs a model: a folder, a Hub id or a loaded model")
    if not hasattr(model, "config"):
        checkpoint = open_checkpoint(model, revision, local_files_only)
        _check_head(task, task_class, checkpoint.transformer_config().model_type, heads)
        tokenizer = checkpoint.tokenizer() if tokenizer is None else tokenizer
        model = heads[task_class.head].from_pretrained(checkpoint.folder, dtype=dtype, param_dtype=param_dtype)
        folder = checkpoint.folder
    elif model.head != task_class.head:
        _check_head(task, task_class, model.config.model_type, heads)
        raise InputError(
            f"{task} needs a model with the {task_class.head!r} head, this one has {model.head!r}; "
            f"load it with {heads[task_class.head].__name__}"
        )
    else:
        folder = getattr(model, "folder", None)  # where it was loaded from, if it was
    if tokenizer is None:
        raise InputError(f"pipeline({task!r}) got a loaded model and no tokenizer; pass tokenizer=")
    made = make_task(task, tokenizer, model.config, folder, getattr(model, "generation_config", None))
    if task_class.generates:
        if isinstance(assistant_model, (str, os.PathLike)):
            draft = open_checkpoint(assistant_model, local_files_only=local_files_only)
            assistant_model = heads[task_class.head].from_pretrained(draft.folder, dtype=dtype, param_dtype=param_dtype)
        if stream is not None:
            stream = functools.partial(stream, model)
        return Pipeline(made, model.generate, stream=stream, assistant_model=assistant_model, **options)
    if assistant_model is not None:
        options["assistant_model"] = assistant_model  # which no other task has, and Pipeline says so
    return Pipeline(made, forward_of(model), **options)


def _check_head(task: str, task_class: type[Task], model_type: str, heads: Mapping[str, type]) -> None:
    """Raises InputError, with the tasks that it can do, for a family that has no model for a task."""
    available = architectures.get(model_type).heads(model_type)
    if task_class.head in available:
        return
    wanted = f"Auto{heads[task_class.head].__name__}" if task_class.head in heads else f"a {task_class.head!r} head"
    able = [name for name, other in TASKS.items() if other.head in available]
    raise InputError(
        f"{task} needs a model that {wanted} loads, and {model_type} is none; it can do {', '.join(able) or 'no task here'}"
    )
