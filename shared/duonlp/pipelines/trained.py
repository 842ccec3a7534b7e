"""Load pipelines of checkpoints that have been trained for their task."""

import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError, NewHeadWarning

if TYPE_CHECKING:
    from duonlp.pipelines.pipeline import Pipeline
    from duonlp.typing import Engine

REMEDIES = {
    "question-answering": "fine-tune it first (duonlp finetune --task question-answering), or give a checkpoint that was "
    "trained on SQuAD or similar questions",
    "text-classification": "train it on questions with relevant and irrelevant passages",
    "zero-shot-classification": "give a checkpoint that was trained on natural language inference",
    "sentence-embedding": "give a sentence encoder",
}
"""What to do about a checkpoint without the head of a task."""


def trained_pipeline(package: "Engine", task: str, model: str | os.PathLike[str], **options: Any) -> "Pipeline":
    """Return the pipeline of a checkpoint, which must have been trained for it.

    Args:
        package: tfnlp or jaxnlp.
        task: A task of REMEDIES.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Further arguments of the engine's ``pipeline``.

    Raises:
        InputError: The checkpoint lacks the head, so that its results would be random, or an option is invalid.
        CheckpointError: It cannot be found or read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", NewHeadWarning)
        try:
            return package.pipeline(task, model, **options)
        except NewHeadWarning:
            pass
        if task == "sentence-embedding":  # what is missing is the pooler, on which few models' vectors depend
            warnings.simplefilter("ignore", NewHeadWarning)
            pipe = package.pipeline(task, model, **options)
            if not pipe.task.pooled:
                return pipe
    head = {
        "text-classification": "sequence-classification", "zero-shot-classification": "sequence-classification",
        "sentence-embedding": "pooling",
    }.get(task, task)  # fmt: skip
    what = "answers" if task == "question-answering" else "results"
    raise InputError(f"{os.fspath(model)!r} has no {head} head, so its {what} would be random; {REMEDIES[task]}")


def cached_pipeline(package: "Engine | None", task: str, model: str | os.PathLike[str], **options: Any) -> "Pipeline":
    """Return the pipeline of a checkpoint, the last one again if nothing has changed: methods are fitted many times.

    Args:
        package: tfnlp or jaxnlp.
        task: "feature-extraction", or a task of REMEDIES, see :func:`trained_pipeline`.
        model: A folder in Hugging Face layout, or a Hub id.
        options: Further arguments of the engine's ``pipeline``, all hashable.

    Raises:
        InputError: There is no package, or what :func:`trained_pipeline` raises.
        CheckpointError: The checkpoint cannot be found or read.
    """
    if package is None:
        raise InputError(f"{task} runs a model; pass package=tfnlp or jaxnlp")
    folder = Path(model).expanduser()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    state = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _cached(package, task, os.fspath(model), state, tuple(sorted(options.items())))


@lru_cache(maxsize=2)
def _cached(package: "Engine", task: str, model: str, state: Any, options: tuple[tuple[str, Any], ...]) -> "Pipeline":
    """Return the pipeline of a checkpoint whose files are in this `state`."""
    if task in REMEDIES:
        return trained_pipeline(package, task, model, **dict(options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NewHeadWarning)  # about the pooler, on which token vectors do not depend
        return package.pipeline(task, model, **dict(options))
