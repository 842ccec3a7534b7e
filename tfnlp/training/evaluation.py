"""What fit is told by while it trains: evaluation by generation, and the best model kept."""

import warnings
from pathlib import Path
from typing import Any

import keras

from duonlp.errors import InputError
from duonlp.training.best import Best
from duonlp.training.fit_config import EPOCH, check_every
from duonlp.training.generated import GenerationScorer
from tfnlp.training.callbacks import is_main_worker

MODES = {"auto": None, "max": True, "min": False}


class GenerationEvaluation(keras.callbacks.Callback):
    """Writes texts to validation sources while a seq2seq-lm model trains, and logs what they score: ``val_rougeL``, ...

    Callbacks that stand after it in the list see the scores as if Keras had computed them: ``EarlyStopping(monitor=
    "val_rougeL", mode="max")``, ``TensorBoard``, :class:`SaveBest`. The first batch is tried before the training begins, so
    that what is wrong is said then.

    Args:
        batches: of validation, as batch_dataset takes them.
        tokenizer: of the model.
        metric: ``(predictions, references) -> {name: number}``, or a metric of duonlp.metrics, such as Rouge().
        every: "epoch", or a number of batches between two evaluations.
        prefix: before the names of the scores.
        most_batches: only the first ones are read; None for all.
        options: of ``model.generate``: num_beams=4, max_new_tokens=64, ...

    history: every evaluation's scores, and its "step", counted in batches of this fit.
    scorer: has the texts of the last evaluation, ``predictions`` and ``references``.

    Raises:
        InputError: as duonlp.training.GenerationScorer.
    """

    def __init__(
        self, batches, tokenizer, metric, *, every: int | str = EPOCH, prefix: str = "val_",
        most_batches: int | None = None, **options: Any,
    ):  # fmt: skip
        super().__init__()
        check_every("every", every)
        self.scorer = GenerationScorer(batches, tokenizer, metric, most_batches=most_batches, **options)
        self.every, self.prefix = every, prefix
        self.history: list[dict[str, float]] = []
        self._step, self._latest = 0, {}

    def on_train_begin(self, logs=None):
        self._step, self._latest = 0, {}
        self.scorer.dry_run(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self.every != EPOCH and self.every and self._step % self.every == 0:
            self._evaluate(logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.every == EPOCH:
            self._evaluate(logs)
        elif logs is not None:
            logs |= self._latest

    def _evaluate(self, logs):
        scores = self.scorer(self.model)
        self._latest = {f"{self.prefix}{name}": value for name, value in scores.items()}
        self.history.append({"step": self._step, **self._latest})
        if logs is not None:
            logs |= self._latest


class SaveBest(keras.callbacks.Callback):
    """Keeps the best model of a training in Hugging Face layout: written beside its place, then renamed.

    Args:
        folder: where the model is saved.
        monitor: the name among fit's logs that tells the best one. What a :class:`GenerationEvaluation` every so many
            batches finds is looked at then, all else at the end of each epoch.
        mode: "min", "max", or "auto": the smaller the better for names with "loss", "error" or "perplexity" in them.
        min_delta: how much better counts as better.
        tokenizer: saved beside the model.

    best: duonlp.training.Best: its ``value``, and the ``step`` it is from, counted in batches.

    Raises:
        InputError: a mode or min_delta that is not allowed.
    """

    def __init__(
        self, folder, monitor: str = "val_loss", *, mode: str = "auto", min_delta: float = 0.0, tokenizer=None
    ):
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.folder, self.tokenizer = Path(folder), tokenizer
        self.best = Best(monitor, MODES[mode], min_delta=min_delta)
        self._step = 0

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        # Of training, each batch has a loss of its own, too.
        if self.best.name.startswith("val_") and self.best.name in (logs or {}):
            self._update(logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.best.name in (logs or {}):
            self._update(logs)
        else:
            warnings.warn(
                f"SaveBest saved nothing: there is no {self.best.name!r} among {', '.join(logs or {}) or 'no logs'}; put it "
                "after the callback that logs it, or monitor another",
                stacklevel=2,
            )

    def _update(self, logs):
        if self.best.update(self._step, logs) and is_main_worker(self.model):
            model = self.model if hasattr(self.model, "save_pretrained") else self.model.model
            model.save_pretrained(self.folder, self.tokenizer)
