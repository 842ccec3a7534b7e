"""One cell of a comparison: a method trained on one slice with one seed, its scores, and its folder."""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.checkpoints.safetensors_file import TensorToWrite, write_tensors
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.classifier import Method
from duonlp.fewshot.comparison.data import ComparisonData
from duonlp.metrics.classification import classification_scores
from duonlp.metrics.multi_label import multi_label_scores
from duonlp.metrics.thresholds import choose_thresholds
from duonlp.typing import Engine
from duonlp.util.files import may_read, storage_errors, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

CELLS, RESULTS, CLASSIFIER, PROBABILITIES = "cells", "results.json", "classifier", "probabilities.safetensors"
SCORES = ("micro_f1", "macro_f1", "accuracy", "micro_average_precision", "macro_average_precision")
"""Scores of test texts; those that do not depend on a threshold come last."""

AT_THRESHOLD, AT_MACRO, AT_THRESHOLDS = "at_threshold", "at_macro_threshold", "at_label_thresholds"
VARIANTS = {
    "": "at the threshold 0.5",
    AT_THRESHOLD: "at one threshold that maximizes micro F1 on the validation texts",
    AT_MACRO: "at one threshold that maximizes macro F1 on the validation texts",
    AT_THRESHOLDS: "at one threshold per label that maximizes its F1 on the validation texts",
}
"""Where the scores of several labels per text are taken, by the key of a cell's results that has them."""

WITHOUT_LABELS = ("zero-shot", "entailment", "prompt")
"""Methods that learn from no text, so that one cell of size 0 serves all sizes and seeds."""


@dataclass(frozen=True)
class Cell:
    """A method, a size and a seed.

    Attributes:
        method: Name of the method.
        size: Number of training texts, of all labels or of each; or "all"; 0 for a method without training texts.
        seed: The seed.
        per_label: Whether the size is that of each label.
    """

    method: str
    size: int | str
    seed: int
    per_label: bool = False

    @property
    def path(self) -> Path:
        """Path of the cell's folder in that of the comparison."""
        size = f"{self.size}-per-label" if self.per_label and self.size else str(self.size)
        return Path(CELLS) / self.method / size / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.size}{' per label' * (self.per_label and bool(self.size))}, seed {self.seed}"


def finished(folder: Path, cell: Cell, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the results of a cell if it is finished, or None.

    Args:
        folder: Folder of the comparison.
        cell: The cell.
        about: Settings of the method.

    Raises:
        InputError: The cell was run with other settings.
    """
    file = folder / cell.path / RESULTS
    if not may_read(file):
        return None
    record = read_json_object(file, advice="delete it to run the cell again")
    stored = record.get("settings", {})
    for name in {**about, **stored}:
        if stored.get(name) != about.get(name):
            raise InputError(
                f"{cell} has been run with {name} {stored.get(name)!r}, now it is {about.get(name)!r}; use the same settings, "
                f"another output, or delete {str(file.parent)!r} to run it again"
            )
    return record


def run_cell(
    folder: Path, cell: Cell, method: Method, about: Mapping[str, Any], package: Engine | None, data: ComparisonData,
    train: LabelledTexts, keep_model: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train, save and score a classifier, and write its probabilities and its results, which finish the cell.

    Args:
        folder: Folder of the comparison.
        cell: The cell.
        method: The method.
        about: Its settings.
        package: tfnlp or jaxnlp, or None if the method runs no model.
        data: The texts.
        train: The slice to train on.
        keep_model: Whether to save the classifier.

    Returns:
        The results: "method", "size" (the number of training texts), "slice" (the size asked for), "seed", SCORES at the
        threshold 0.5 (with one label per text, of the most probable label), the same under each other key of VARIANTS (None with
        one label per text), "thresholds" of each of these,
        "fit_seconds", "score_seconds", "cpu_seconds" (of both, over all cores), "settings".
    """
    start, computed = time.perf_counter(), time.process_time()
    few = data.few(train)
    classifier = method.fit(package if method.needs_engine else None, few, seed=cell.seed)
    fitted = time.perf_counter()
    target = folder / cell.path
    if keep_model:
        target.mkdir(parents=True, exist_ok=True)
        classifier.save(target / CLASSIFIER)
    saved = time.perf_counter()
    scores = classifier.scores([*map(str, data.test.texts)])
    validation = classifier.scores([*map(str, data.validation.texts)]) if data.test.multi_label else None
    scored = time.perf_counter()
    record = {
        "method": cell.method, "size": len(train), "slice": cell.size, "per_label": cell.per_label, "seed": cell.seed,
        **score(scores, data.test, validation, data.validation),
        "fit_seconds": fitted - start, "score_seconds": scored - saved,
        "cpu_seconds": time.process_time() - computed, "settings": dict(about),
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    arrays = {"test": scores} | ({} if validation is None else {"validation": validation})
    tensors = [TensorToWrite(name, a.shape, a.dtype, partial(np.ascontiguousarray, a)) for name, a in arrays.items()]
    with storage_errors(target):
        write_tensors(target / PROBABILITIES, tensors)
    write_text(target / RESULTS, to_json(record, indent=1) + "\n")
    del classifier
    gc.collect()  # models are in cycles
    return record


def score(
    scores: np.ndarray, test: LabelledTexts, validation_scores: np.ndarray | None, validation: LabelledTexts
) -> dict[str, Any]:
    """Return the scores of test texts, see :func:`run_cell`.

    Args:
        scores: Probabilities of the test texts, [n, C].
        test: The test texts.
        validation_scores: Those of the validation texts; None with one label per text.
        validation: The validation texts.
    """
    others = [name for name in VARIANTS if name]
    if not test.multi_label or validation_scores is None:
        own = classification_scores(np.log(np.maximum(np.float64(scores), 1e-12)), test.labels)
        own["micro_f1"] = own["accuracy"]  # each text has one label and gets one
        return {name: own.get(name) for name in SCORES} | dict.fromkeys([*others, "thresholds"])
    known = validation.labels
    thresholds: dict[str, Any] = {
        AT_THRESHOLD: choose_thresholds(validation_scores, known),
        AT_MACRO: choose_thresholds(validation_scores, known, maximise="macro_f1"),
        AT_THRESHOLDS: choose_thresholds(validation_scores, known, per_label=True),
    }
    found = {name: multi_label_scores(scores, test.labels, thresholds.get(name, 0.5)) for name in VARIANTS}
    kept = {name: {key: values[key] for key in SCORES} for name, values in found.items()}
    listed = {name: np.asarray(value).tolist() for name, value in thresholds.items()}
    return {**kept[""], **{name: kept[name] for name in others}, "thresholds": listed}
