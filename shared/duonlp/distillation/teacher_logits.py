"""What a teacher says of each text: put into the order of the texts, kept on disk, and handed out with the batches."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.distillation.pair import label_order
from duonlp.errors import InputError

NAME = "teacher_logits"
"""What the batches have them as."""

LEFT_OUT = "the batches leave texts out (drop_last); make them without, so that each text has a result"


def in_order(batches, forward: Callable[[Mapping[str, np.ndarray]], np.ndarray]) -> np.ndarray:
    """Results of the first epoch's batches, put into the order of the texts: [n, ...].

    Args:
        batches: with ``epoch(n)`` and ``order(n)``, such as duonlp.data.LabelledBatches.
        forward: a batch -> an array with a row for each of its rows.

    Raises:
        InputError: the batches have no order, leave texts out or are a host's share, or rows of the results differ in shape.
    """
    _check_whole(batches)
    if not hasattr(batches, "order"):
        raise InputError(
            f"these batches, a {type(batches).__name__}, do not tell which text each row is; give LabelledBatches, or "
            "anything with order(n)"
        )
    order, results = batches.order(0), None
    count = int(order.max(initial=-1)) + 1
    for rows, batch in zip(order, batches.epoch(0), strict=True):
        real, found = rows >= 0, np.asarray(forward(batch), np.float32)
        if results is None:
            results = np.full((count, *found.shape[1:]), np.nan, np.float32)
        if found.shape[1:] != results.shape[1:]:
            raise InputError(
                f"rows of the results have shape {found.shape[1:]} here and {results.shape[1:]} before; what depends on the "
                "length of a text cannot be kept"
            )
        results[rows[real]] = found[real]
    if results is None or len(np.unique(order[order >= 0])) != count:
        raise InputError(LEFT_OUT)
    return results


class TeacherLogits:
    """Batches that have a teacher's logits, too, as ``teacher_logits``.

    Args:
        batches: with ``epoch(n, first)``, ``order(n)`` and ``len()``.
        logits: float32 [n, C], of the texts in their order, as ``predict`` gives them; those of a file may be mapped.
        teacher: the teacher's TransformerConfig, which names its labels; None where it is not known.

    Raises:
        InputError: there are not as many of them as texts, or the batches leave texts out, or are a host's share.
    """

    def __init__(self, batches, logits: np.ndarray, teacher: TransformerConfig | None = None):
        _check_whole(batches)
        count = int(batches.order(0).max(initial=-1)) + 1
        if len(logits) != count:
            raise InputError(f"there are logits of {len(logits)} texts, and {count} texts; give those of these texts")
        self.batches, self.logits, self.teacher = batches, logits, teacher

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.batches)

    def order(self, number: int) -> np.ndarray:
        """As the batches'."""
        return self.batches.order(number)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields an epoch's batches; rows that only fill one up have the first text's logits."""
        for rows, batch in zip(self.order(number)[first:], self.batches.epoch(number, first), strict=True):
            yield {**batch, NAME: np.asarray(self.logits[np.maximum(rows, 0)], np.float32)}


def _check_whole(batches) -> None:
    """Raises InputError where batches leave texts out, or have only some of each batch's rows."""
    if getattr(batches, "drop_last", False):
        raise InputError(LEFT_OUT)
    host, hosts = getattr(batches, "hosts", (0, 1))
    if hosts > 1:
        raise InputError(
            f"the batches are the share of host {host} of {hosts}; make them with host_count=1, so that each text has a result"
        )


def ordered_for(batches, student: TransformerConfig):
    """Batches with a teacher's logits, a column for each of the student's labels, in their order; others as they are.

    Raises:
        InputError: the teacher has other labels.
    """
    if not isinstance(batches, TeacherLogits) or batches.teacher is None:
        return batches
    order = label_order(student, batches.teacher)
    return batches if order is None else TeacherLogits(batches.batches, batches.logits[:, order], student)


def cached(batches, folder: str | Path, model, parameters: Mapping[str, object], predict: Callable) -> TeacherLogits:
    """Batches with a teacher's logits, which are computed once and kept in a folder by a hash of teacher and texts.

    The file is written under another name and renamed; the next time it is mapped into memory, and the teacher not called.

    Args:
        batches: of the texts.
        folder: of such files.
        model: the teacher.
        parameters: path -> values of it.
        predict: ``(model, batches) -> float32 [n, C]``.

    Raises:
        InputError: as :func:`in_order`.
    """
    folder = Path(folder).expanduser()
    file = folder / f"{_key(batches, model, parameters)}.npy"
    try:
        return TeacherLogits(batches, np.load(file, mmap_mode="r", allow_pickle=False), model.config)
    except (OSError, ValueError, EOFError, InputError):  # not there, or damaged: made anew
        logits = predict(model, batches)
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{file.stem}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, logits, allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
    return TeacherLogits(batches, logits, model.config)


def _key(batches, model, parameters: Mapping[str, object]) -> str:
    """Changes with all that the logits depend on: the teacher's configuration, dtype and values, and the texts' ids."""
    dtype = getattr(model, "compute_dtype", None) or np.dtype(model.dtype).name  # Keras' name for it comes first
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
