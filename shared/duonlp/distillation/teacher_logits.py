"""Precomputed teacher logits: put into the order of the texts, cached on disk, and added to the batches."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.distillation.pair import label_order
from duonlp.errors import InputError
from duonlp.typing import Batch
from duonlp.util.files import replacing, storage_errors
from duonlp.util.frameworks import check_process

NAME = "teacher_logits"
"""Key of the logits in a batch."""

DROPS_TEXTS = "the batches drop texts (drop_last); make them with drop_last=False, so that each text has a result"


def collect_in_text_order(batches: Any, forward: Callable[[Batch], Any]) -> np.ndarray:
    """Run a function over the batches of epoch 0 and return its results in the order of the texts.

    Args:
        batches: Batches with ``epoch(n)`` and ``order(n)``, such as duonlp.data.LabelledBatches.
        forward: Function from a batch of B rows to an array [B, ...].

    Returns:
        float32 [n, ...] for n texts.

    Raises:
        InputError: The batches have no order, drop texts or are one host's share, or the results of two batches differ in
            shape.
    """
    check_process()
    _check_complete(batches)
    if not hasattr(batches, "order"):
        raise InputError(
            f"batches of type {type(batches).__name__} have no order(n), which tells the text of each row; use LabelledBatches"
        )
    order, results = batches.order(0), None  # int [batches, B], -1 for padding rows
    count = int(order.max(initial=-1)) + 1
    for rows, batch in zip(order, batches.epoch(0), strict=True):
        real, outputs = rows >= 0, np.asarray(forward(batch), np.float32)
        if results is None:
            results = np.full((count, *outputs.shape[1:]), np.nan, np.float32)
        if outputs.shape[1:] != results.shape[1:]:
            raise InputError(
                f"results have shape {outputs.shape[1:]} per row in one batch and {results.shape[1:]} in another; outputs that "
                "depend on the length of a text cannot be stored"
            )
        results[rows[real]] = outputs[real]
    if results is None or len(np.unique(order[order >= 0])) != count:
        raise InputError(DROPS_TEXTS)
    return results


class TeacherLogits:
    """Batches with a teacher's logits added as ``teacher_logits``.

    Args:
        batches: Batches with ``epoch(n, first)``, ``order(n)`` and ``len()``.
        logits: float32 [n, C] for n texts in their order, as ``predict`` returns them; may be memory-mapped.
        teacher: Configuration of the teacher, which names its labels; None if unknown.

    Raises:
        InputError: The number of logits is not that of the texts, or the batches drop texts or are one host's share.
    """

    def __init__(self, batches: Any, logits: np.ndarray, teacher: TransformerConfig | None = None):
        _check_complete(batches)
        count = int(batches.order(0).max(initial=-1)) + 1
        if len(logits) != count:
            raise InputError(
                f"the teacher's logits are of {len(logits)} texts, but the batches have {count}; recompute them for these texts"
            )
        self.batches, self.logits, self.teacher = batches, logits, teacher

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.batches)

    def order(self, number: int) -> np.ndarray:
        """Return the text of each row of an epoch, as the underlying batches do."""
        return self.batches.order(number)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch from index `first`; padding rows have the logits of text 0."""
        for rows, batch in zip(self.order(number)[first:], self.batches.epoch(number, first), strict=True):
            yield {**batch, NAME: np.asarray(self.logits[np.maximum(rows, 0)], np.float32)}


def _check_complete(batches: Any) -> None:
    """Raise InputError if the batches drop texts or have only one host's share of the rows."""
    if getattr(batches, "drop_last", False):
        raise InputError(DROPS_TEXTS)
    host, hosts = getattr(batches, "hosts", (0, 1))
    if hosts > 1:
        raise InputError(
            f"the batches are the share of host {host} of {hosts}; make them with host_count=1, so that each text has a result"
        )


def reorder_for_student(batches: Any, student: TransformerConfig) -> Any:
    """Return the batches with the columns of the teacher's logits in the order of the student's labels.

    Batches without a teacher's logits, or from an unknown teacher, are returned unchanged.

    Raises:
        InputError: The teacher has other labels than the student.
    """
    if not isinstance(batches, TeacherLogits) or batches.teacher is None:
        return batches
    order = label_order(student, batches.teacher)
    return batches if order is None else TeacherLogits(batches.batches, batches.logits[:, order], student)


def load_or_compute_logits(
    batches: Any,
    folder: str | Path,
    model: Any,
    parameters: Mapping[str, Any],
    predict: Callable[[Any, Any], np.ndarray],
) -> TeacherLogits:
    """Return the batches with a teacher's logits, computed once and cached by a hash of teacher and texts.

    The file is written atomically. Later calls memory-map it without running the teacher.

    Args:
        batches: Batches of the texts.
        folder: Cache folder.
        model: The teacher.
        parameters: Parameter paths of the teacher to values.
        predict: ``(model, batches) -> float32 [n, C]``.

    Raises:
        InputError: As for :func:`collect_in_text_order`.
        StorageError: The file cannot be written.
    """
    folder = Path(folder).expanduser()
    file = folder / f"{_cache_key(batches, model, parameters)}.npy"
    try:
        return TeacherLogits(batches, np.load(file, mmap_mode="r", allow_pickle=False), model.config)
    except (OSError, ValueError, EOFError):  # missing or damaged (InputError is a ValueError)
        logits = predict(model, batches)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        np.save(stream, logits, allow_pickle=False)
    return TeacherLogits(batches, logits, model.config)


def _cache_key(batches: Any, model: Any, parameters: Mapping[str, Any]) -> str:
    """Return a hash of all that the logits depend on: the teacher's configuration, dtype and values, and the texts' ids."""
    dtype = getattr(model, "compute_dtype", None) or np.dtype(model.dtype).name  # Keras models have compute_dtype
    digest = hashlib.sha256(json.dumps([repr(model.config), model.head, dtype]).encode())
    for path in sorted(parameters):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(np.asarray(parameters[path])).tobytes())
    digest.update(np.ascontiguousarray(batches.order(0)).tobytes())
    for batch in batches.epoch(0):
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()[:32]
