"""``pipeline("question-answering", "some/checkpoint")``: run a task of duonlp.tasks with a Keras model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline
from duonlp.typing import Array, Batch
from tfnlp.export import RUNTIMES
from tfnlp.generation import stream
from tfnlp.heads import HEADS, Model
from tfnlp.inference import batch_tokens, get_compiled


def pipeline(task: str, model: str | Path | Model | None = None, *, tokenizer: Any = None, **options: Any) -> Pipeline:
    """Return a callable that takes one input, a list or an iterator, and returns what Transformers' pipelines return.

    Args:
        task: Task name: feature-extraction, sentence-embedding, text-classification, zero-shot-classification,
            token-classification, fill-mask, question-answering, text-generation, summarization, translation,
            text2text-generation or image-classification.
        model: Folder, Hub id, or a model of this package with the task's head; or an exported model: a .onnx or .tflite file
            beside its config.json and tokenizer, or a folder with these or with a SavedModel.
        tokenizer: Transformers tokenizer, the checkpoint's own by default. It must be a fast one, except for
            translation and other text-to-text tasks. Tasks that read images take ``image_processor=`` instead.
        options: Arguments of duonlp.pipelines.load_pipeline and of the task. The default of ``max_tokens`` is what is fastest on
            this device.

    Raises:
        InputError: The task or an option is unknown, there is no model, or its head belongs to another task.
        CheckpointError: The checkpoint cannot be found or read.
    """
    options = {"max_tokens": batch_tokens(), "runtimes": RUNTIMES, **options}
    return load_pipeline(HEADS, _forward, task, model, tokenizer=tokenizer, stream=stream, **options)


def _forward(model: Model) -> Callable[[Batch], dict[str, Array]]:
    run = get_compiled(model)
    return lambda batch: run(**batch)
