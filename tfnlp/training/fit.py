"""Fine-tuning a model with any head with Keras' compile and fit, from the first step or from the last checkpoint."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.heads import check_label_smoothing, outputs_of
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import (
    Scorer,
    check_evaluation,
    count_examples,
    describe_batches,
    endless_batches,
    evaluates,
    fit_log,
    total_steps,
)
from duonlp.training.result import FitResult
from duonlp.training.run_file import check_run, write_run
from duonlp.typing import Batch, BatchStream, Tokenizer
from duonlp.util.frameworks import keep_heap
from tfnlp.losses import SmoothedCrossEntropy
from tfnlp.training.backups import Backups
from tfnlp.training.fit_callback import CHECKPOINTS, Run, Sigterm, label_counts, split_batch
from tfnlp.training.input import Feed
from tfnlp.training.optimizers import Schedule, make_optimizer
from tfnlp.training.pretrainer import OUT_OF_DATA


def fit(
    model: Any,
    batches: BatchStream,
    config: FitConfig | None = None,
    folder: str | Path | None = None,
    *,
    validation: BatchStream | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Tokenizer | None = None,
    loss: keras.losses.Loss | None = None,
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model in place on labeled batches, under the tf.distribute strategy it was created under.

    This is ``model.compile(make_optimizer(...))`` and ``model.fit(...)`` with a callback. It is the twin of jaxnlp's: every
    setting has the same meaning and the loss curve is the same. Each optimizer step is that of the whole batch, however it
    is split into microbatches and over replicas. (Heads with two losses weight their microbatches by rows.)

    If the folder has a checkpoint of the same run, training resumes from it bit-identically, with the remaining batches of the
    epoch. SIGTERM saves a checkpoint and returns.

    Args:
        model: A tfnlp model with float32 parameters and a head with a loss; it is compiled anew.
        batches: Dicts of NumPy arrays [B, ...], the model's inputs and labels: ``LabelledBatches`` or ``PairBatches`` of
            duonlp.data, or another object with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each
            batch is one optimizer step. Without ``len()``, set ``config.steps``. An optional ``sample_weight`` [B] multiplies
            the terms of the loss but not their count, which is the divisor.
        config: Settings of the run; the defaults of FitConfig if None.
        folder: Folder for the best model (``best/``), checkpoints, run.json and metrics.jsonl. None writes nothing.
        validation: Batches for the validation loss, "loss" in the evaluations; every label weighs the same.
        evaluate: ``(model) -> {name: number}``, further metrics of the evaluations, such as the accuracy of a
            ClassificationScorer.
        on_evaluation: Called with the number of steps done and the metrics after each evaluation; an exception it raises ends
            the training.
        tokenizer: Tokenizer to save with the best model.
        loss: Loss in place of the head's own, as of ``compile``.
        jit_compile: Whether to compile the step with XLA. "auto", the default, does with a single replica. XLA's steps are
            faster, above all in bfloat16, but each new shape takes longer to compile; False may pay off for a short run with many
            lengths.
        data: What identifies the data in run.json; by default the number of batches.
        log: Options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: Settings, batches, evaluation and model are incompatible, or the folder holds another run.
        NonFiniteLossError: The loss is not finite; the best model and the last checkpoint precede that step.
        CheckpointError: A checkpoint cannot be read or written.
    """
    config, weights = FitConfig() if config is None else config, None
    jit_compile = resolve_jit_compile(model, jit_compile)
    if loss is None:
        if not model.targets:
            raise InputError(f"a {model.head} model has no labels to learn from; use another head, or pass loss=")
        loss, weights = smoothed_loss(model, config.label_smoothing)
    return train(
        model, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log,
        compile=lambda optimizer: model.compile(optimizer, loss=loss, loss_weights=weights, jit_compile=jit_compile),
    )  # fmt: skip


def resolve_jit_compile(model: Any, jit_compile: bool | str) -> bool:
    """Return whether to compile with XLA: `jit_compile`, or for "auto" whether the model has a single replica."""
    if jit_compile == "auto":
        return model.distribute_strategy.num_replicas_in_sync == 1
    return bool(jit_compile)


def smoothed_loss(model: Any, label_smoothing: float) -> tuple[keras.losses.Loss | None, dict[str, float] | None]:
    """Return the ``loss`` and ``loss_weights`` of compile for a label smoothing; both None, the head's own loss, for 0.

    Args:
        model: Model to train.
        label_smoothing: Share of the target probability spread evenly over all classes.

    Raises:
        InputError: `label_smoothing` is not 0 and the head's loss is not a cross-entropy over classes.
    """
    if not label_smoothing:
        return None, None
    check_label_smoothing(model.head, model.config, label_smoothing)
    weights = {
        output.logits: output.share for output in outputs_of(model.head, model.config) if output.share != 1
    } or None
    return SmoothedCrossEntropy(label_smoothing), weights


def train(
    trainer: Any,
    model: Any,
    batches: BatchStream,
    config: FitConfig,
    folder: str | Path | None = None,
    *,
    compile: Callable[[keras.optimizers.Optimizer], None],
    description: Mapping[str, Any] | None = None,
    check: Callable[[Mapping], None] | None = None,
    validation: BatchStream | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Tokenizer | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Run the training of :func:`fit` for any Keras model that trains a tfnlp model: ``compile``, then ``trainer.fit``.

    ``trainer.train_step`` gets each batch as a dict. It has a ``sample_weight`` float32 [B] where the batches have one, or
    where microbatches (``config.accumulation``) and validation batches must weigh by their labels: the trainer multiplies the
    terms of a loss by it and divides their sum by the number of terms.

    Args:
        trainer: Model whose ``fit`` is called: `model` itself, or a keras.Model around it, such as a Distiller, created under
            the same tf.distribute strategy. Its logs are "loss", as Keras tracks it, and optionally further losses tracked the
            same way (weighted by rows). Metrics are reset before each batch, so logs are those of the batch.
        model: Model that is saved, evaluated and returned.
        batches: As of :func:`fit`.
        config: Settings of the run.
        folder: As of :func:`fit`.
        compile: Called once with the optimizer of the configuration; calls ``trainer.compile(optimizer, ...)``.
        description: Further entries of run.json that must be the same to resume the run.
        check: Called with every batch; raises InputError for an unusable one. ``model.check_batch`` by default.
        validation: As of :func:`fit`.
        evaluate: As of :func:`fit`.
        on_evaluation: As of :func:`fit`.
        tokenizer: As of :func:`fit`.
        data: As of :func:`fit`.
        log: As of :func:`fit`.

    Raises:
        InputError: The parameters are not float32, or the strategy is unsupported; otherwise as :func:`fit`.
        NonFiniteLossError: As :func:`fit`.
        CheckpointError: As :func:`fit`.
    """
    _check_trainer(trainer, model, config.accumulation)
    keep_heap()
    total, check_batch = total_steps(batches, config, validation, evaluate), check or model.check_batch
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    about = {"model": architectures.hf_config(model.config, model.head), "head": model.head, **(description or {})}
    about["data"] = describe_batches(batches) if data is None else dict(data)
    folder = None if folder is None else Path(folder).expanduser()
    resumes = folder is not None and check_run(folder, config, about)

    compile(_make_optimizer(model, config, total))
    backups = None if folder is None else Backups(folder / CHECKPOINTS, config.keep_last)
    run = Run(trainer, model, config, total, best, folder, backups, tokenizer)
    newest = None if backups is None else backups.newest()
    if newest is not None:
        run.restore(*newest)
    if folder is not None:
        write_run(folder, config, about)

    if evaluates(config, validation, evaluate):

        def run_evaluation() -> dict[str, float]:
            metrics = {} if validation is None else _validation_losses(trainer, model, validation, check_batch)
            return metrics if evaluate is None else {**metrics, **evaluate(model)}

        run.evaluation, run.on_evaluation = run_evaluation, on_evaluation
        if run.position["step"] == 0 and hasattr(evaluate, "dry_run"):
            check_evaluation(cast(Scorer, evaluate), model, best, validation is not None)
    remaining = 0 if best.out_of_patience else total - run.position["step"]
    resumed = run.position["step"] if resumes else None
    with fit_log(folder, total, resumed, log) as run.log, Sigterm() as run.stop_requested:
        if resumed:
            run.log.message(f"resuming from step {resumed}")
        if remaining:
            epoch, first, pieces = run.position["epoch"], run.position["batch"], config.accumulation
            run.feed = Feed(
                lambda: _microbatches(batches, epoch, first, remaining, model.head, pieces, check_batch), _no_check
            )
            dataset = run.feed.dataset()
            with run.feed.errors():
                trainer.fit(
                    dataset, epochs=1, steps_per_epoch=remaining * pieces, shuffle=False, verbose=0, callbacks=[run]
                )
    return run.result()


def _check_trainer(trainer: Any, model: Any, accumulation: int) -> None:
    if model.variable_dtype != "float32":
        raise InputError(
            f"the parameters are {model.variable_dtype}, which loses small updates; load the model with "
            f"param_dtype='float32' and dtype={model.variable_dtype!r}"
        )
    strategy = trainer.distribute_strategy
    if getattr(strategy.extended, "_num_workers", 1) > 1:
        raise InputError("fit trains in one process but the strategy has several workers; use a Pretrainer for these")
    if accumulation > 1 and strategy.num_replicas_in_sync > 1:
        raise InputError(
            f"accumulation is {accumulation} but Keras accumulates no gradients over several replicas; use accumulation=1, or "
            "one replica"
        )


def _make_optimizer(model: Any, config: FitConfig, total: int) -> keras.optimizers.Optimizer:
    """Return the optimizer of a configuration for a run of `total` steps."""
    rate = Schedule(
        total, config.learning_rate, schedule=config.schedule, warmup_share=config.warmup_share,
        final_share=config.final_share,
    )  # fmt: skip
    return make_optimizer(
        config.optimizer, rate, model, weight_decay=config.weight_decay, beta1=config.beta1, beta2=config.beta2,
        clip_norm=config.clip_norm, accumulation=config.accumulation, layer_decay=config.layer_decay,
    )  # fmt: skip


def _no_check(batch: Mapping) -> None:
    """Accept any batch: those of :func:`train` are checked before they are split."""


def _microbatches(
    batches: BatchStream, first_epoch: int, first_batch: int, steps: int, head: str, pieces: int,
    check: Callable[[Mapping], None],
) -> Iterator[tuple[dict[str, Any] | None, Batch]]:  # fmt: skip
    """Yield (mark, microbatch) for `steps` batches from a position on.

    The last microbatch of a batch is marked with the position after it ("epoch" and "batch"), the "examples" of the batch and
    whether it "ends_epoch"; the others with None.
    """
    stream = endless_batches(batches, first_epoch, first_batch)
    for epoch, index, batch, ends_epoch in itertools.islice(stream, steps):
        check(batch)
        mark = {
            "epoch": epoch + ends_epoch,
            "batch": 0 if ends_epoch else index + 1,
            "examples": count_examples(batch),
            "ends_epoch": ends_epoch,
        }
        yield from zip([None] * (pieces - 1) + [mark], split_batch(head, batch, pieces), strict=True)


def _validation_losses(
    trainer: Any, model: Any, validation: BatchStream, check: Callable[[Mapping], None]
) -> dict[str, float]:
    """Return the losses of ``trainer.evaluate`` on the validation batches, every label weighing the same.

    Keras averages over rows, so rows get the mean number of labels of their batch as ``sample_weight``, and the result is
    scaled by rows / labels.

    Raises:
        InputError: The batches have no label, or one of them is unusable.
    """
    totals = np.zeros(2)  # rows, labels

    def weighted() -> Iterator[tuple[None, Batch]]:
        for _, _, batch, is_last in endless_batches(validation):
            check(batch)
            counts = label_counts(model.head, batch)  # [B]
            if counts.sum():
                totals[:] += len(counts), counts.sum()
                weight = np.asarray(batch.get("sample_weight", 1.0), np.float32) * (counts.sum() / len(counts))
                yield None, {**batch, "sample_weight": np.broadcast_to(weight, len(counts)).astype(np.float32)}
            if is_last:
                return

    feed = Feed(weighted, _no_check)
    try:
        dataset = feed.dataset()
    except InputError as error:
        raise InputError(f"the validation batches cannot be evaluated: {error}") from error
    totals[:] = 0  # feed.dataset() has read the first batch
    with feed.errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", OUT_OF_DATA)
        means = trainer.evaluate(dataset, verbose=0, return_dict=True)
    return {name: float(value * totals[0] / totals[1]) for name, value in means.items()}
