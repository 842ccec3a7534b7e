"""Callbacks for evaluation by generation and for saving the best model."""

import os
import warnings
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from duonlp.errors import InputError
from duonlp.training.best import Best
from duonlp.training.fit_config import EPOCH, check_every
from duonlp.training.generated import GenerationScorer
from tfnlp.training.backups import is_main_worker, was_preempted

MODES = {"auto": None, "max": True, "min": False}
"""Values of `mode`, and whether greater values are better."""


class GenerationEvaluation(keras.callbacks.Callback):
    """Score the texts that a seq2seq-lm model generates for validation sources, and log the scores: ``val_rougeL``, ...

    Callbacks after it in the list see the scores like Keras' own metrics: ``EarlyStopping(monitor="val_rougeL",
    mode="max")``, ``TensorBoard``, :class:`SaveBest`. The first batch is evaluated once before training, so that errors
    show early.

    Args:
        batches: Validation batches, as :func:`~tfnlp.training.batch_dataset` takes them.
        tokenizer: Tokenizer of the model.
        metric: ``(predictions, references) -> {name: number}``, or a metric of duonlp.metrics, such as Rouge().
        every: "epoch", or the number of batches between two evaluations.
        prefix: Prefix of the scores' names.
        most_batches: Use only the first batches; None for all.
        options: Options of ``model.generate``: num_beams=4, max_new_tokens=64, ...

    Attributes:
        history: Scores of each evaluation, with its "step" in batches of this fit.
        scorer: The GenerationScorer, which holds the last evaluation's ``predictions`` and ``references``.

    Raises:
        InputError: `every` is invalid, a score has the name of another log, or as
            :class:`duonlp.training.GenerationScorer`.
    """

    # Set by fit before training.
    model: Any

    def __init__(
        self, batches: Any, tokenizer: Any, metric: Any, *, every: int | str = EPOCH, prefix: str = "val_",
        most_batches: int | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__()
        check_every("every", every)
        self.scorer = GenerationScorer(batches, tokenizer, metric, most_batches=most_batches, **options)
        self.every, self.prefix = every, prefix
        self.history: list[dict[str, float]] = []
        self._step = self._batches = 0
        self._latest: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._step, self._latest = 0, {}
        names = [f"{self.prefix}{name}" for name in self.scorer.dry_run(self.model.trained_model())]
        keras_names = {"loss", *self.model.metrics_names}
        self._check_names(names, keras_names | {f"val_{name}" for name in keras_names})

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step, self._batches = self._step + 1, batch + 1
        if isinstance(self.every, int) and self.every and self._step % self.every == 0:
            self._evaluate(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if was_preempted(self, self._batches):
            return
        if self.every == EPOCH:
            self._evaluate(logs)
        else:
            self._add_to(logs)

    def _evaluate(self, logs: dict[str, Any] | None) -> None:
        scores = self.scorer(self.model.trained_model())
        self._latest = {f"{self.prefix}{name}": value for name, value in scores.items()}
        self.history.append({"step": self._step, **self._latest})
        self._add_to(logs)

    def _add_to(self, logs: dict[str, Any] | None) -> None:
        """Add the latest scores to Keras' logs, where no other callback or metric may have put another value."""
        if logs is not None:
            self._check_names([n for n, value in self._latest.items() if not _same(logs.get(n, value), value)], logs)
            logs.update(self._latest)

    def _check_names(self, names: Iterable[str], taken: Container[str]) -> None:
        if both := [name for name in names if name in taken]:
            raise InputError(
                f"the scores {', '.join(both)} have names that the logs have already; give this GenerationEvaluation another "
                f"prefix than {self.prefix!r}, or name the metric's scores otherwise"
            )

    def get_state(self) -> dict[str, Any]:
        """Return the state that a BackupAndRestore stores."""
        return {"step": self._step, "latest": self._latest, "history": self.history}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`get_state` returned."""
        self._step, self._latest, self.history = state["step"], state["latest"], state["history"]


def _same(first: Any, second: Any) -> bool:
    return first == second or (first != first and second != second)


class SaveBest(keras.callbacks.Callback):
    """Save the best model of a training run in Hugging Face layout, atomically.

    Args:
        folder: Folder to save the model to.
        monitor: Name of the log that decides. The scores of a :class:`GenerationEvaluation` every n batches are compared
            right after each evaluation, everything else at the end of each epoch.
        mode: "min", "max", or "auto", which minimizes names that contain "loss", "error" or "perplexity".
        min_delta: An improvement must exceed this.
        tokenizer: Tokenizer to save with the model.

    Attributes:
        best: The :class:`duonlp.training.Best`, with the best ``value`` and its ``step``, counted in batches.

    Raises:
        InputError: mode or min_delta is invalid.
    """

    # Set by fit before training.
    model: Any

    def __init__(
        self,
        folder: str | os.PathLike,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        min_delta: float = 0.0,
        tokenizer: Any = None,
    ):
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.folder, self.tokenizer = Path(folder), tokenizer
        self.best = Best(monitor, MODES[mode], min_delta=min_delta)
        self._step = self._batches = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._step, self._batches = self._step + 1, batch + 1
        # Training batches log metrics of their own, which are not those of an evaluation.
        if logs and self.best.name.startswith("val_") and self.best.name in logs:
            self._update(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if was_preempted(self, self._batches):
            return
        if logs and self.best.name in logs:
            self._update(logs)
        else:
            warnings.warn(
                f"SaveBest saved nothing: the logs have no {self.best.name!r}, only {', '.join(logs or {}) or '(none)'}; put "
                "it after the callback that logs it, or monitor another name",
                stacklevel=2,
            )

    def _update(self, logs: Mapping[str, float]) -> None:
        if self.best.update(self._step, logs) and is_main_worker(self.model):
            self.model.trained_model().save_pretrained(self.folder, self.tokenizer)

    def get_state(self) -> dict[str, Any]:
        """Return the state that a BackupAndRestore stores."""
        return {"step": self._step, "best": self.best.to_dict()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`get_state` returned."""
        self._step = state["step"]
        self.best.restore(state["best"])
