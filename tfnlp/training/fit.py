"""Fine-tuning a model of any head with Keras' own compile and fit, from the first step or from the last checkpoint on."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import (
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
from duonlp.util.frameworks import keep_heap
from tfnlp.losses import SmoothedCrossEntropy
from tfnlp.training.backups import Backups
from tfnlp.training.fit_callback import CHECKPOINTS, Run, Sigterm, label_counts, pieces_of
from tfnlp.training.input import Feed
from tfnlp.training.optimizers import Schedule, make_optimizer
from tfnlp.training.pretrainer import EXPECTED


def fit(
    model,
    batches,
    config: FitConfig | None = None,
    folder: str | Path | None = None,
    *,
    validation=None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer=None,
    loss: keras.losses.Loss | None = None,
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a model on batches with labels, in place, under the tf.distribute strategy that it was made under.

    It is ``model.compile(make_optimizer(...))`` and ``model.fit(...)`` with a callback: the twin of jaxnlp's, with the same
    meaning of every setting, and the same curve. A step is that of the whole batch, however many pieces it is computed in
    and replicas it is spread over. (Heads with two losses weigh their pieces by rows.)

    With a folder that has a checkpoint of the same run, it goes on from there as if it had never stopped, over the batches
    that are left of the epoch. SIGTERM saves and returns.

    Args:
        model: one of tfnlp's with any head that learns something, its parameters stored in float32; compiled anew.
        batches: dicts of NumPy arrays [B, ...], the model's inputs and labels: ``LabelledBatches`` or ``PairBatches`` of
            duonlp.data, or anything with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each
            is an optimizer step. Without ``len()``, ``config.steps`` is needed. A ``sample_weight`` [B] among them
            multiplies the terms of the loss, whose divisor stays their number.
        folder: of the run: ``best/``, checkpoints to resume from, run.json, metrics.jsonl. None writes nothing.
        validation: batches for the validation loss, which the evaluations have as "loss": each label weighs the same.
        evaluate: ``(model) -> {name: number}``: whatever else the evaluations are to have, such as a ClassificationScorer's
            accuracy.
        on_evaluation: told the steps that are done, and the results, after each evaluation; what it raises ends the training.
        tokenizer: saved with the best model.
        loss: as compile's, in place of the head's own.
        jit_compile: as compile's: whether XLA compiles the step, as it does by default: a faster step, above all in bfloat16,
            that takes longer to compile for each shape. False may pay for a short run of many lengths.
        data: what identifies the data in run.json; by default how many batches there are.
        log: options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: settings, batches, an evaluation or a folder's run that do not fit.
        NonFiniteLossError: the loss is not a number; the best model and the last checkpoint are from before.
        CheckpointError: a checkpoint cannot be read or written.
    """
    config, weights = FitConfig() if config is None else config, None
    jit_compile = by_xla(model, jit_compile)
    if loss is None:
        if not model.targets:
            raise InputError(f"a {model.head} model has no labels to learn from; take another head")
        loss, weights = smoothed_loss(model, config.label_smoothing)
    return train(
        model, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log,
        compile=lambda optimizer: model.compile(optimizer, loss=loss, loss_weights=weights, jit_compile=jit_compile),
    )  # fmt: skip


def by_xla(model, jit_compile: bool | str) -> bool:
    """What "auto" means for a model that is trained on batches of few shapes: XLA, unless there are several replicas."""
    return model.distribute_strategy.num_replicas_in_sync == 1 if jit_compile == "auto" else jit_compile


def smoothed_loss(model, label_smoothing: float) -> tuple[keras.losses.Loss | None, dict[str, float] | None]:
    """compile's ``loss`` and ``loss_weights`` for a head whose labels are smoothed; both None for its own loss, at 0.

    Raises:
        InputError: its loss has no classes.
    """
    if not label_smoothing:
        return None, None
    numbers = model.config.problem_type in ("regression", "multi_label_classification")
    if numbers or model.head == "replaced-token-detection":
        raise InputError(
            f"label_smoothing is {label_smoothing}, and a {model.head} model's loss has no classes to smooth over"
        )
    halves = dict.fromkeys(model.targets.values(), 0.5) if model.head == "question-answering" else None
    return SmoothedCrossEntropy(label_smoothing), halves


def train(
    trainer: keras.Model,
    model,
    batches,
    config: FitConfig,
    folder: str | Path | None = None,
    *,
    compile: Callable[[keras.optimizers.Optimizer], None],
    description: Mapping[str, Any] | None = None,
    check: Callable[[Mapping], None] | None = None,
    validation=None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer=None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """What :func:`fit` is, for any Keras model that trains one of this package's: ``compile``, then ``trainer.fit``.

    Each batch goes to ``trainer.train_step`` as a dict, as the batches have it, with a ``sample_weight`` float32 [B] where
    they have one, or where pieces of a batch (``config.accumulation``) and batches of the validation are to count by their
    labels: the trainer multiplies the terms of a loss by it, and divides their sum by the number of terms.

    Args:
        trainer: what is trained with ``fit``: the model itself, or a keras.Model around it, such as a Distiller, made under
            the same tf.distribute strategy. Its logs are "loss", as Keras tracks it, and perhaps other losses, tracked alike
            (weighted by rows): metrics are reset before each batch, so that a log is that batch's.
        model: the one that is saved, evaluated and returned.
        compile: called once with the optimizer that the configuration asks for: ``trainer.compile(optimizer, ...)``.
        description: more of what the run is, for run.json: a resumed run has to have the same.
        check: called with every batch, raises InputError for one that cannot be used; by default ``model.check_batch``.
        batches, config, folder, validation, evaluate, on_evaluation, tokenizer, data, log: as of :func:`fit`.

    Raises:
        InputError, NonFiniteLossError, CheckpointError: as :func:`fit`.
    """
    if model.variable_dtype != "float32":
        raise InputError(
            f"the parameters are {model.variable_dtype}, in which small updates are lost; load the model with "
            f"param_dtype='float32', and dtype={model.variable_dtype!r} to compute in that"
        )
    if getattr(trainer.distribute_strategy.extended, "_num_workers", 1) > 1:
        raise InputError("fit trains in one process, and the strategy has several workers; a Pretrainer is for these")
    keep_heap()
    total, pieces = total_steps(batches, config, validation, evaluate), config.accumulation
    if pieces > 1 and trainer.distribute_strategy.num_replicas_in_sync > 1:
        raise InputError(
            f"accumulation is {pieces}, and Keras accumulates no gradients over several replicas; take 1, or one replica"
        )
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    about = {"model": architectures.hf_config(model.config, model.head), "head": model.head, **(description or {})}
    about["data"] = describe_batches(batches) if data is None else dict(data)
    folder = None if folder is None else Path(folder).expanduser()
    resumes = folder is not None and check_run(folder, config, about)
    check = model.check_batch if check is None else check

    rate = Schedule(
        total, config.learning_rate, schedule=config.schedule, warmup_share=config.warmup_share,
        final_share=config.final_share,
    )  # fmt: skip
    optimizer = make_optimizer(
        config.optimizer, rate, model, weight_decay=config.weight_decay, beta1=config.beta1, beta2=config.beta2,
        clip_norm=config.clip_norm, accumulation=pieces, layer_decay=config.layer_decay,
    )  # fmt: skip
    compile(optimizer)
    backups = None if folder is None else Backups(folder / CHECKPOINTS, config.keep_last)
    run = Run(trainer, model, config, total, best, folder, backups, tokenizer)
    found = None if backups is None else backups.newest()
    if found is not None:
        run.restore(*found)
    if folder is not None:
        write_run(folder, config, about)

    remaining = 0 if best.out_of_patience else total - run.at["step"]

    def rows():
        ahead = endless_batches(batches, run.at["epoch"], run.at["batch"])
        for epoch, index, batch, ends_epoch in itertools.islice(ahead, remaining):
            check(batch)
            mark = {
                "epoch": epoch + ends_epoch,
                "batch": 0 if ends_epoch else index + 1,
                "examples": count_examples(batch),
            }
            cut = pieces_of(model.head, batch, pieces)
            yield from zip([None] * (pieces - 1) + [mark | {"ends_epoch": ends_epoch}], cut, strict=True)

    def validate() -> dict[str, float]:
        seen = np.zeros(2)

        def weighted():
            for _, _, batch, last in endless_batches(validation):
                check(batch)
                counts = label_counts(model.head, batch)
                if counts.sum():
                    seen[:] += len(counts), counts.sum()
                    weight = np.asarray(batch.get("sample_weight", 1.0), np.float32) * (counts.sum() / len(counts))
                    yield None, {**batch, "sample_weight": np.broadcast_to(weight, len(counts)).astype(np.float32)}
                if last:
                    return

        feed = Feed(weighted, lambda batch: None)
        try:
            dataset = feed.dataset()
        except InputError as error:
            raise InputError(f"the validation batches cannot be evaluated: {error}") from error
        seen[:] = 0
        with feed.errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", EXPECTED)
            found = trainer.evaluate(dataset, verbose=0, return_dict=True)
        return {name: float(value * seen[0] / seen[1]) for name, value in found.items()}

    if evaluates(config, validation, evaluate):
        run.evaluation = lambda: (
            ({} if validation is None else validate()) | ({} if evaluate is None else evaluate(model))
        )
        run.on_evaluation = on_evaluation
        if run.at["step"] == 0 and hasattr(evaluate, "dry_run"):
            check_evaluation(evaluate, model, best, validation is not None)
    resumed = run.at["step"] if resumes else None
    with fit_log(folder, total, resumed, log) as run.log, Sigterm() as run.asked:
        if resumed:
            run.log.message(f"going on after step {resumed}")
        if remaining:
            run.feed = Feed(rows, lambda batch: None)
            dataset = run.feed.dataset()
            with run.feed.errors():
                trainer.fit(
                    dataset, epochs=1, steps_per_epoch=remaining * pieces, shuffle=False, verbose=0, callbacks=[run]
                )
    return run.result()
