"""Load pipelines of checkpoints that have been trained for their task."""

import os
import warnings
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError, NewHeadWarning

if TYPE_CHECKING:
    from duonlp.pipelines.pipeline import Pipeline
    from duonlp.typing import Engine

REMEDIES = {
    "question-answering": "fine-tune it first (duonlp finetune --task question-answering), or give a checkpoint that was "
    "trained on SQuAD or similar questions",
    "text-classification": "train it on questions with relevant and irrelevant passages",
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
    head = {"text-classification": "sequence-classification", "sentence-embedding": "pooling"}.get(task, task)
    what = "answers" if task == "question-answering" else "results"
    raise InputError(f"{os.fspath(model)!r} has no {head} head, so its {what} would be random; {REMEDIES[task]}")
