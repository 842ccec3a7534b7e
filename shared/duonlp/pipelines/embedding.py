"""Vectors of texts by any pooling, and frozen text encoders that are saved with what was built on their vectors."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from duonlp.errors import CheckpointError, InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.pipelines.trained import cached_pipeline
from duonlp.tasks.base import check_choice, check_int, describe, read_json
from duonlp.tasks.feature_extraction import FeatureExtractionTask
from duonlp.tasks.sentence_config import folder_of_module, l2_normalize
from duonlp.tasks.sentence_embedding import SentenceEmbeddingTask, pool
from duonlp.typing import Engine

POOLINGS = {"mean": "mean", "first": "cls", "last": "lasttoken", "max": "max"}
"""Poolings by what they keep of a text's token vectors, and their names in sentence-transformers."""

WEIGHTS, OTHER_WEIGHTS = ".safetensors", (".h5", ".msgpack")
TEXT_FILES = (".json", ".txt", ".model", ".jinja")
"""Endings of the files of a checkpoint: its weights, those of other frameworks, and its configuration and tokenizer."""


CACHED_BYTES = 1 << 26
"""Size of the vectors of one model that are kept."""

_cached_vectors: WeakKeyDictionary[Pipeline, dict[bytes, np.ndarray]] = WeakKeyDictionary()
"""Vectors by pipeline and by a hash of pooling, length and text; the last used come last."""


def embed(
    pipe: Pipeline,
    texts: Sequence[Any],
    pooling: str | None = None,
    *,
    normalize: bool = True,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Return one vector per text, truncated to what the model reads.

    A model without a padding token, such as GPT-2, works: what fills up a batch is masked, and no pooling reads it.

    Args:
        pipe: Pipeline "sentence-embedding" or "feature-extraction" of either engine.
        texts: The texts.
        pooling: "mean", "first" (BERT's ``[CLS]``), "last" (for causal models) or "max" over a text's token vectors, special
            tokens included. None follows the checkpoint of a sentence encoder, which can have further layers, and is "mean" for
            features.
        normalize: Whether to scale vectors to unit length, so that inner products are cosine similarities.
        max_length: Maximum number of tokens of a text; None for the model's limit, which also holds for larger numbers.
        batch_size: Rows of a batch; None for the pipeline's.

    Returns:
        float32 [n, d].

    Raises:
        InputError: The pipeline has another task, the pooling is unknown, or a text is empty.
    """
    task = getattr(pipe, "task", None)
    if not isinstance(task, (SentenceEmbeddingTask, FeatureExtractionTask)):
        raise InputError(
            f'embed got {describe(pipe)}; pass a pipeline of an engine, such as jaxnlp.pipeline("sentence-embedding", folder)'
        )
    check_choice("pooling", pooling, (*POOLINGS, None))
    check_int("max_length", max_length, minimum=1, optional=True)
    limit = min((n for n in (max_length, task.limit()) if n is not None), default=None)
    options: dict[str, Any] = {"truncation": True, "max_length": limit, "batch_size": batch_size}
    if isinstance(task, SentenceEmbeddingTask) and pooling is None:
        vectors = pipe(list(texts), **options)
    else:
        if isinstance(task, SentenceEmbeddingTask):
            task = FeatureExtractionTask(pipe.tokenizer, pipe.config, task.folder)
            pipe = Pipeline(task, pipe.forward, batch_size=pipe.batch_size, max_tokens=pipe.max_tokens)
        mode = (POOLINGS[pooling or "mean"],)
        # From an iterator, results come in chunks, so that few texts' token vectors are in memory.
        hidden = pipe(iter(list(texts)), return_tensors=True, **options)  # each [1, T, H]
        rows = [pool(states, np.ones(states.shape[:2], np.float32), mode)[0] for states in hidden]
        vectors = np.stack(rows) if rows else np.zeros((0, pipe.config.hidden_size), np.float32)
    return l2_normalize(vectors).astype(np.float32) if normalize else vectors


class TextEncoder:
    """A frozen encoder of texts: a checkpoint, a pooling, and a number of tokens.

    Up to 64 MiB of a model's vectors are kept, also for other encoders of the same checkpoint: methods are trained many times on
    slices of the same texts, and scored on the same test texts.

    Args:
        package: tfnlp or jaxnlp.
        model: A sentence encoder, or with `pooling` any encoder or decoder: a folder or a Hub id.
        pooling: See :func:`embed`.
        max_length: Maximum number of tokens of a text.
        batch_size: Rows of a batch.

    Raises:
        InputError: An argument is invalid.
        CheckpointError: The checkpoint cannot be found or read.
    """

    def __init__(
        self,
        package: Engine | None,
        model: str | Path,
        pooling: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
    ):
        check_choice("pooling", pooling, (*POOLINGS, None))
        check_int("max_length", max_length, minimum=1, optional=True)
        check_int("batch_size", batch_size, minimum=1, optional=True)
        self.pooling, self.max_length, self.batch_size = pooling, max_length, batch_size
        task = SentenceEmbeddingTask if pooling is None else FeatureExtractionTask
        self.pipe = cached_pipeline(package, task.name, model)

    @property
    def size(self) -> int:
        """Length of a vector."""
        task = self.pipe.task
        return task.size if isinstance(task, SentenceEmbeddingTask) else self.pipe.config.hidden_size

    def __call__(self, texts: Sequence[Any]) -> np.ndarray:
        """Return the vectors of texts, float32 [n, d], of unit length.

        Raises:
            InputError: A text is empty, or not a text.
        """
        texts = list(texts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            return self._embed(texts)  # raises an error that names the text
        cache = _cached_vectors.setdefault(self.pipe, {})
        keys = [self._key(text) for text in texts]
        vectors = {key: vector for key in keys if (vector := cache.pop(key, None)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if missing:
            vectors |= zip(missing, map(np.copy, self._embed([*missing.values()])), strict=True)
        cache |= vectors
        for key in list(cache)[: -max(1, CACHED_BYTES // (4 * self.size))]:
            cache.pop(key, None)
        return np.stack([vectors[key] for key in keys])

    def _key(self, text: str) -> bytes:
        about = f"{self.pooling} {self.max_length} {text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(about, digest_size=16).digest()

    def _embed(self, texts: Sequence[Any]) -> np.ndarray:
        return embed(self.pipe, texts, self.pooling, max_length=self.max_length, batch_size=self.batch_size)

    def settings(self) -> dict[str, Any]:
        """Return the arguments `pooling`, `max_length` and `batch_size`."""
        return {"pooling": self.pooling, "max_length": self.max_length, "batch_size": self.batch_size}

    def save(self, folder: Path) -> None:
        """Copy the checkpoint: weights, configuration, tokenizer, and the modules of a sentence encoder.

        Raises:
            CheckpointError: The files that the model was loaded from are gone.
        """
        copy_checkpoint(self.pipe.weights_folder, folder)


def copy_checkpoint(source: Path | None, folder: Path) -> None:
    """Copy the files of a checkpoint that its model, tokenizer and sentence-transformers modules are read from.

    Args:
        source: Folder of the checkpoint; links in it, as in the Hub's cache, are followed.
        folder: Folder to create or replace.

    Raises:
        CheckpointError: The checkpoint is gone.
    """
    if source is None or not (source / "config.json").is_file():
        raise CheckpointError(f"the model's checkpoint {str(source)!r} is gone; restore it, then save again")
    shutil.rmtree(folder, ignore_errors=True)  # its files can be hard links to those of the source
    modules = read_json(source / "modules.json") or []
    parts = {source: folder} | {
        folder_of_module(source, module["path"]): folder_of_module(folder, module["path"])
        for module in modules
        if module.get("path")
    }
    for part, target in parts.items():
        if not part.is_dir():  # a Normalize module has no files
            continue
        files = [path for path in sorted(part.iterdir()) if path.is_file()]
        has_weights = any(path.suffix == WEIGHTS for path in files)
        endings = (*TEXT_FILES, WEIGHTS, *(() if has_weights else OTHER_WEIGHTS))
        target.mkdir(parents=True, exist_ok=True)
        for path in files:
            if path.suffix in endings:
                shutil.copyfile(path, target / path.name)
