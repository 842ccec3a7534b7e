"""What fit is given to fine-tune with: batches of pairs as a dataset, evaluation by generation, and the best model kept."""

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shared.errors import InputError
from shared.training.best import Best
from shared.training.fit_config import EPOCH, check_every
from shared.training.generated import GenerationScorer, one_pass
from tfnlp.training.callbacks import is_main_worker

MODES = {"auto": None, "max": True, "min": False}


def pair_dataset(batches, epochs: int = 1, *, first_epoch: int = 0) -> tf.data.Dataset:
    """Batches for ``model.fit``, in the order that jaxnlp's fit has them in.

    All epochs follow one another, each in an order of its own, so fit is told where one ends::

        model.fit(pair_dataset(batches, epochs=3), epochs=3, steps_per_epoch=len(batches), shuffle=False)

    Args:
        batches: ``shared.data.pairs.PairBatches``, or anything with ``epoch(n)`` and ``len()``; or a list of dicts of NumPy
            arrays [B, ...], the same in every epoch.
        epochs: how many of them.
        first_epoch: the number of the first; for runs that go on.

    Returns:
        A tf.data.Dataset of dicts, as the batches have them, integers as int32.

    Raises:
        InputError: there is no batch, or epochs is below 1.
    """
    if epochs < 1 or first_epoch < 0:
        raise InputError(f"epochs is {epochs} and first_epoch {first_epoch}; give at least 1, and at least 0")
    first = next(iter(one_pass(batches, first_epoch)), None)
    if first is None:
        raise InputError("there are no batches to train on; give at least one")

    def rows():
        for epoch in range(first_epoch, first_epoch + epochs):
            for batch in one_pass(batches, epoch):
                yield {name: _array(value) for name, value in batch.items()}

    signature = {}
    for name, value in first.items():
        value = _array(value)
        # Lengths differ from batch to batch, and the rows of the last one may be fewer.
        signature[name] = tf.TensorSpec([None] * value.ndim, value.dtype, name=name)
    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature)
    if hasattr(batches, "__len__"):
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(epochs * len(batches)))
    options = tf.data.Options()
    options.deterministic = True
    return dataset.prefetch(2).with_options(options)


def _array(value) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(np.int32) if value.dtype == np.int64 else value


class GenerationEvaluation(keras.callbacks.Callback):
    """Writes texts to validation sources while a seq2seq-lm model trains, and logs what they score: ``val_rougeL``, ...

    Callbacks that stand after it in the list see the scores as if Keras had computed them: ``EarlyStopping(monitor=
    "val_rougeL", mode="max")``, ``TensorBoard``, :class:`SaveBest`. The first batch is tried before the training begins, so
    that what is wrong is said then.

    Args:
        batches: of validation, as pair_dataset takes them.
        tokenizer: of the model.
        metric: ``(predictions, references) -> {name: number}``, or a metric of shared.metrics, such as Rouge().
        every: "epoch", or a number of batches between two evaluations.
        prefix: before the names of the scores.
        most_batches: only the first ones are read; None for all.
        options: of ``model.generate``: num_beams=4, max_new_tokens=64, ...

    history: every evaluation's scores, and its "step", counted in batches of this fit.
    scorer: has the texts of the last evaluation, ``predictions`` and ``references``.

    Raises:
        InputError: as shared.training.generated.GenerationScorer.
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
        self.scorer.try_out(self.model)

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

    best: shared.training.best.Best: its ``value``, and the ``step`` it is from, counted in batches.

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
