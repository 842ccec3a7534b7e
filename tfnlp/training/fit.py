"""Fine-tuning a model with any head with Keras' compile and fit, from the first step or from the last checkpoint."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from duonlp.errors import InputError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import (
    Scorer,
    check_evaluation,
    describe_batches,
    describe_model,
    evaluates,
    evaluation_results,
    fit_log,
    total_steps,
)
from duonlp.training.objectives import Objective
from duonlp.training.result import FitResult
from duonlp.training.run_file import check_run, write_run
from duonlp.typing import BatchStream, Tokenizer
from duonlp.util.frameworks import keep_heap
from tfnlp.kernels.choice import trains_with_xla
from tfnlp.steps.step import check_not_quantized
from tfnlp.training.backups import is_main_worker, locked_run
from tfnlp.training.callbacks import StopAtSigterm
from tfnlp.training.fit_callback import Run
from tfnlp.training.grouped import ObjectiveModel
from tfnlp.training.input import epoch_source
from tfnlp.training.optimizers import Schedule, make_optimizer


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
    objective: Objective | None = None,
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model in place on labeled batches, under the tf.distribute strategy it was created under.

    This is ``model.compile(make_optimizer(...))`` and ``model.fit(...)`` with a callback. It is the twin of jaxnlp's: every
    setting has the same meaning and the loss curve is the same. Each optimizer step is that of the whole batch, however it
    is split into microbatches and over the replicas of one or several workers. All workers pass the same batches and, on
    shared storage, the same folder.

    If the folder has a checkpoint of the same run, training resumes from it bit-identically, with the remaining batches of the
    epoch. SIGTERM saves a checkpoint and returns.

    Args:
        model: A tfnlp model with float32 parameters and a head with a loss, a RagSequence or RagToken; it is compiled anew.
        batches: Dicts of NumPy arrays [B, ...], the model's inputs and labels: ``LabelledBatches`` or ``PairBatches`` of
            duonlp.data, or another object with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each
            batch is one optimizer step. Without ``len()``, set ``config.steps``. Labels may have any form of
            :mod:`duonlp.labels`. An optional ``sample_weight``, [B] or of the labels' shape, multiplies the terms of the loss but
            not their count, which is the divisor.
        config: Settings of the run; the defaults of FitConfig if None.
        folder: Folder for the best model (``best/``), checkpoints, run.json, metrics.jsonl and learning_curve.json. None
            writes nothing.
        validation: Batches for the validation loss, "loss" in the evaluations; every label weighs the same.
        evaluate: ``(model) -> {name: number}``, further metrics of the evaluations, such as the accuracy of a
            ClassificationScorer. One whose name the run uses itself, such as "loss" beside validation batches, is named
            "evaluate_loss".
        on_evaluation: Called with the number of steps done and the metrics after each evaluation; an exception it raises ends
            the training.
        tokenizer: Tokenizer to save with the best model.
        loss: Loss in place of the head's own, as of ``compile``.
        objective: Objective of duonlp.training.objectives in place of the head's own loss, over batches of its own. Where it has
            parameters of its own, `evaluate` gets, and the result has, an ObjectiveModel in place of the model.
        jit_compile: Whether to compile the step with XLA. "auto", the default, does with a single replica, unless TensorFlow's
            own kernels are faster: in bfloat16 on a CPU with AMX or AVX512-BF16 (tfnlp.kernels.choice.trains_with_xla). With
            XLA, each new shape takes longer to compile; False may pay off for a short run with many lengths.
        data: What identifies the data in run.json; by default the number of batches.
        log: Options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: Settings, batches, evaluation and model are incompatible, or the folder holds another run or is in use by
            another process or thread.
        NonFiniteLossError: The loss is not finite; the best model and the last checkpoint precede that step.
        CheckpointError: A checkpoint cannot be read or written.
    """
    config = FitConfig() if config is None else config
    if objective is not None:
        if loss is not None:
            raise InputError("an objective has its own loss; omit loss=")
        trainer = ObjectiveModel(model, objective, seed=config.seed)
        return train(
            trainer, batches, config, folder, description=objective.describe(), validation=validation, evaluate=evaluate,
            on_evaluation=on_evaluation, tokenizer=tokenizer, data=data, log=log, jit_compile=jit_compile,
        )  # fmt: skip
    if loss is None and not model.targets:
        raise InputError(f"a {model.head} model has no labels to learn from; use another head, or pass loss=")
    return train(
        model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log, jit_compile=jit_compile, loss=loss,
    )  # fmt: skip


def train(
    trainer: Any,
    batches: BatchStream,
    config: FitConfig,
    folder: str | Path | None = None,
    *,
    description: Mapping[str, Any] | None = None,
    validation: BatchStream | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Tokenizer | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
    jit_compile: bool | str = "auto",
    **options: Any,
) -> FitResult:
    """Run the training of :func:`fit`, whose arguments and errors it has, for a model or a Distiller.

    Args:
        trainer: Model whose ``compile`` and ``fit`` are called.
        description: Further entries of run.json that must be the same to resume the run.
        options: Further options of ``trainer.compile``.
    """
    model, strategy = trainer.trained_model(), trainer.distribute_strategy
    _check_dtype(model)
    keep_heap()
    total = total_steps(batches, config, validation, evaluate)
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    about = {**describe_model(model), **(description or {})}
    about["data"] = describe_batches(batches) if data is None else dict(data)
    folder = None if folder is None else Path(folder).expanduser()
    with nullcontext() if folder is None else locked_run(folder, trainer):
        resumes = folder is not None and check_run(folder, config, about)

        if jit_compile == "auto":
            jit_compile = strategy.num_replicas_in_sync == 1 and trains_with_xla(model.compute_dtype)
        trainer.compile(
            _make_optimizer(model, config, total), accumulation=config.accumulation, seed=config.seed,
            label_smoothing=config.label_smoothing, pruning=config.pruning and config.pruning.resolved(total),
            jit_compile=jit_compile, **options,
        )  # fmt: skip
        with strategy.scope():
            trainer.optimizer.build(trainer.trainable_variables)
        sigterm = StopAtSigterm()
        run = Run(trainer, config, total, best, folder, tokenizer, sigterm)
        step, is_main = run.position["step"], is_main_worker(trainer)
        if folder is not None and is_main:
            write_run(folder, config, about)

        if evaluates(config, validation, evaluate):

            def run_evaluation() -> dict[str, float]:
                metrics = {} if validation is None else _validation_losses(trainer, validation)
                return metrics if evaluate is None else evaluation_results(metrics, evaluate(model))

            run.evaluation, run.on_evaluation = run_evaluation, on_evaluation
            if step == 0 and hasattr(evaluate, "dry_run"):
                check_evaluation(cast(Scorer, evaluate), model, best, validation is not None)
        with fit_log(folder if is_main else None, total, step if resumes else None, log) as run.log:
            if resumes and step:
                run.log.message(f"resuming from step {step}")
            if step < total and not best.out_of_patience:
                dataset = epoch_source(batches, None, *(run.position["data"] or (0, 0))).dataset()
                callbacks = [sigterm, run]
                trainer.fit(dataset, steps_per_epoch=total - step, shuffle=False, verbose=0, callbacks=callbacks)
            elif trainer.masks is not None:
                trainer.masks.apply()
        return run.result()


def _check_dtype(model: Any) -> None:
    """Raise InputError for quantized parameters, and for those that lose small updates."""
    check_not_quantized(model)
    if model.variable_dtype != "float32":
        raise InputError(
            f"the parameters are {model.variable_dtype}, which loses small updates; load the model with "
            f"param_dtype='float32' and dtype={model.variable_dtype!r}"
        )


def _make_optimizer(model: Any, config: FitConfig, total: int) -> keras.optimizers.Optimizer:
    """Return the optimizer of a configuration for a run of `total` steps."""
    rate = Schedule(
        total, config.learning_rate, schedule=config.schedule, warmup_share=config.warmup_share,
        final_share=config.final_share,
    )  # fmt: skip
    return make_optimizer(
        config.optimizer, rate, model, weight_decay=config.weight_decay, beta1=config.beta1, beta2=config.beta2,
        clip_norm=config.clip_norm, layer_decay=config.layer_decay, pruning=config.pruning,
    )  # fmt: skip


def _validation_losses(trainer: Any, validation: BatchStream) -> dict[str, float]:
    """Return the losses of ``trainer.evaluate`` on the validation batches.

    Raises:
        InputError: There are no batches, one of them is unusable, or no label counts.
    """
    try:
        dataset = epoch_source(validation, 1).dataset()
    except InputError as error:
        raise InputError(f"the validation batches cannot be evaluated: {error}") from error
    losses = trainer.evaluate(dataset, verbose=0, return_dict=True)
    if not np.any(trainer._loss_tracker.counts.numpy()):
        raise InputError("the validation batches have no label to evaluate on; pass batches with labels")
    return {name: float(value) for name, value in losses.items()}
