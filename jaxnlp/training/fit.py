"""Fine-tuning a model with any head: epochs of batches, the loss of the head, and the best model by a validation metric."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from duonlp.errors import InputError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import BEST, describe_model, evaluates, fit_log, total_steps
from duonlp.training.objectives import Objective
from duonlp.training.result import FitResult
from duonlp.training.stream import EpochStream
from duonlp.typing import BatchStream, Tokenizer
from jaxnlp.training.grouped import GroupedStep, ObjectiveModel
from jaxnlp.training.loop import Evaluation, Loop, with_parameters
from jaxnlp.training.objectives import LossFunction
from jaxnlp.training.step import FitStep, Step


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
    loss: LossFunction | None = None,
    objective: Objective | None = None,
    model_options: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model on labeled batches, over all devices of all hosts.

    Call it in every process with the same arguments. If the folder has a checkpoint of the same run, training resumes from
    it bit-identically, with the remaining batches of the epoch. SIGTERM saves a checkpoint and returns.

    Args:
        model: A jaxnlp model with float32 parameters and a head with a loss, a RagSequence or RagToken, or a LazyModel; it is
            not changed.
        batches: Dicts of NumPy arrays [B, ...], the model's inputs and labels: ``LabelledBatches`` or ``PairBatches`` of
            duonlp.data, or another object with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each
            batch is one optimizer step. Without ``len()``, set ``config.steps``. Labels may have any form of
            :mod:`duonlp.labels`. An optional ``sample_weight``, [B] or of the labels' shape, multiplies the terms of the loss but
            not their count, which is the divisor.
        config: Settings of the run; the defaults of FitConfig if None.
        folder: Folder for the best model (``best/``), checkpoints, run.json, metrics.jsonl and learning_curve.json. None
            writes nothing.
        validation: Batches for the validation loss, "loss" in the evaluations; every label weighs the same.
        evaluate: ``(model) -> {name: number}``, further metrics of the evaluations, such as the ROUGE of a GenerationScorer.
            One whose name the run uses itself, such as "loss" beside validation batches, is named "evaluate_loss". Called in
            process 0 alone; it may only use the model during the call, since training reuses its memory.
        on_evaluation: Called with the number of steps done and the metrics after each evaluation; an exception it raises ends
            the training.
        tokenizer: Tokenizer to save with the best model.
        loss: ``(outputs, batch) -> Terms`` in place of the head's own loss, see FitStep.
        objective: Objective of duonlp.training.objectives in place of the head's own loss, over batches of its own. Where it has
            parameters of its own, `evaluate` gets, and the result has, an ObjectiveModel in place of the model.
        model_options: Further arguments of the model's call, such as output_hidden_states=True.
        mesh: Device mesh; by default ``config.mesh`` over all devices.
        data: What identifies the data in run.json; by default the number of batches.
        log: Options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: Settings, batches, evaluation and model are incompatible, or the folder holds another run or is in use by
            another process or thread.
        NonFiniteLossError: The loss or a gradient is not finite; the best model and the last checkpoint precede that step.
        CheckpointError: A checkpoint cannot be read or written.
    """
    config = FitConfig() if config is None else config
    if hasattr(model, "fit_step"):
        if loss is not None or objective is not None or model_options:
            raise InputError(
                "a RAG model trains with its own loss and options; omit loss=, objective= and model_options="
            )
        step = model.fit_step(config, mesh)
    elif objective is not None:
        if loss is not None or model_options:
            raise InputError("an objective has its own loss and options; omit loss= and model_options=")
        step, model = GroupedStep(model, objective, config, mesh), ObjectiveModel(model, objective, {})
    else:
        step = FitStep(model, config, mesh, loss=loss, model_options=model_options)
    return train(
        step, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log,
    )  # fmt: skip


def train(
    step: Step, model: Any, batches: BatchStream, config: FitConfig, folder: str | Path | None, *,
    validation: BatchStream | None, evaluate: Callable | None, on_evaluation: Callable | None, tokenizer: Tokenizer | None,
    data: Mapping[str, Any] | None, log: Mapping[str, Any] | None,
) -> FitResult:  # fmt: skip
    """Run the loop of :func:`fit`, which documents the arguments and errors, over a given step.

    Args:
        step: Optimizer step of the model, which is evaluated, saved and returned with the trained parameters.
    """
    total = total_steps(batches, config, validation, evaluate, any_layout=True)
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    stream, evaluation, held_out = EpochStream(batches), None, None if validation is None else EpochStream(validation)
    folder = None if folder is None else Path(folder).expanduser()
    if evaluates(config, validation, evaluate):
        evaluation = Evaluation(
            step, model, None if held_out is None else held_out.first_epoch, evaluate, on_evaluation, best, folder, tokenizer,
            {"name": "validation"}, first_candidate=config.first_candidate(total),
        )  # fmt: skip
    about = describe_model(model)
    about |= step.plan.objective.describe()
    about["data"] = stream.describe() if data is None else dict(data)
    loop = Loop(step, stream, config, total, evaluation=evaluation)
    loop.run(folder, about, lambda resumed: fit_log(folder, total, resumed, log))
    done, trained = loop.progress, with_parameters(step, model, step.model_parameters(step.effective(loop.state)))
    result = None if best.value is None or best.step is None else {"value": best.value, "step": best.step}
    return FitResult(
        trained, done["step"], done["count"], done["seconds"], done["loss"],
        [] if evaluation is None else evaluation.history, result,
        None if folder is None or result is None else folder / BEST, best.out_of_patience, loop.preempted,
        loop.curve.records,
    )  # fmt: skip
