"""Export a pipeline with its tokenizer to a SavedModel: strings in, results out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.errors import InputError
from duonlp.pipelines.loader import load_pipeline
from duonlp.typing import Tokenizer
from tfnlp.heads import HEADS, Model
from tfnlp.serving.answers import QuestionAnswering
from tfnlp.serving.classification import TextClassification
from tfnlp.serving.endpoint import Endpoint
from tfnlp.serving.entities import TokenClassification
from tfnlp.serving.generation import TextGeneration
from tfnlp.steps.saving import check_export_path

ENDPOINTS: dict[str, type[Endpoint[Any]]] = {
    endpoint.task: endpoint for endpoint in (TextClassification, TokenClassification, QuestionAnswering, TextGeneration)
}


def export_pipeline(
    task: str, model: str | Path | Model, folder: str | Path, *, tokenizer: Tokenizer | None = None, **options: Any
) -> None:
    """Write a SavedModel that takes texts and returns what the pipeline returns, with the tokenizer in its graph.

    It needs TensorFlow and tensorflow-text only, and no operation that the stock TensorFlow Serving lacks. The endpoint
    "serve" is the default signature. Its inputs and outputs are arrays with one row per text:

      - text-classification: ``text`` string [B], or also ``text_pair`` with ``pairs=True``. Returns ``label`` string [B] and
        ``score`` float32 [B]; with ``top_k``, [B, k] each, best first.
      - token-classification: ``text``. Returns ``count`` int32 [B], and ``entity`` or ``entity_group``, ``score``, ``word``,
        ``start``, ``end`` (and ``index``) [B, N], padded with "" and 0. Offsets are in characters. The strategies are "none" and
        "simple".
      - question-answering: ``question`` and ``context`` string [B]. Returns ``answer``, ``score``, ``start``, ``end``, ``logit``
        and ``null_gap`` [B].
      - text-generation: ``text`` string [batch_size], with ``batch_size=1`` and ``prompt_length=64`` tokens. Returns
        ``generated_text`` string [batch_size]. The loop is compiled by XLA, which the server has to support.

    Args:
        task: Name of the task.
        model: Folder, Hub id, or a model of this package with the task's head.
        folder: Folder to create or replace.
        tokenizer: See :func:`tfnlp.pipeline`; a fast tokenizer of Transformers, each part of which can be put in a graph.
        options: Those of :func:`tfnlp.pipeline`, which hold for every call of the endpoint, and those of the endpoint.

    Raises:
        InputError: The task has no endpoint, an option is unknown or invalid, or a part of the tokenizer cannot be put in
            a graph.
        MissingExtraError: tensorflow-text is not installed.
        CheckpointError: The checkpoint cannot be found or read.
    """
    check_export_path(folder)
    kind = ENDPOINTS.get(task)
    if kind is None:
        raise InputError(f"{task!r} has no endpoint; expected one of {', '.join(ENDPOINTS)}")
    own = {name: options.pop(name) for name in kind.options if name in options}
    loaded: list[Any] = []

    def keep(of_pipeline: Any) -> Callable[..., Any]:
        loaded.append(of_pipeline)
        return of_pipeline

    pipe = load_pipeline(HEADS, keep, task, model, tokenizer=tokenizer, **options)
    # A pipeline that generates text calls the model's method.
    generate: Any = pipe.forward
    module = kind(loaded[0] if loaded else generate.__self__, pipe, **own)
    archive = keras.export.ExportArchive()
    archive.track(module.model)
    archive.track(module)
    archive.add_endpoint("serve", module.serve, module.signature())
    with atomic_folder(folder) as new:
        for path in new.iterdir():  # links to the files of an earlier export
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        archive.write_out(new, verbose=False)
