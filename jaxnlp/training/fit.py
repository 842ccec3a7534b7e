"""Fine-tuning a model with any head: the loop over optimizer steps, from the first step or from the last checkpoint."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict, cast

import jax
import numpy as np
from jax.sharding import Mesh

from duonlp import architectures
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import (
    BEST,
    Scorer,
    check_evaluation,
    count_examples,
    describe_batches,
    endless_batches,
    evaluates,
    fit_log,
    total_steps,
)
from duonlp.training.generated import epoch_batches
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.result import FitResult
from duonlp.training.schedules import due
from duonlp.typing import BatchStream, Tokenizer
from duonlp.util.frameworks import keep_heap
from jaxnlp.pretrained import update
from jaxnlp.training.checkpoints import Checkpoints
from jaxnlp.training.distributed import Preemption
from jaxnlp.training.fit_step import FitStep, LossFunction
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.step import Metrics, State


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
    model_options: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model on labeled batches, over all devices of this process.

    If the folder has a checkpoint of the same run, training resumes from it bit-identically, with the remaining batches of the
    epoch. SIGTERM saves a checkpoint and returns.

    Args:
        model: A jaxnlp model with float32 parameters and a head with a loss; it is not changed.
        batches: Dicts of NumPy arrays [B, ...], the model's inputs and labels: ``LabelledBatches`` or ``PairBatches`` of
            duonlp.data, or another object with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each
            batch is one optimizer step. Without ``len()``, set ``config.steps``. An optional ``sample_weight`` [B] multiplies
            the terms of the loss but not their count, which is the divisor.
        config: Settings of the run; the defaults of FitConfig if None.
        folder: Folder for the best model (``best/``), checkpoints, run.json and metrics.jsonl. None writes nothing.
        validation: Batches for the validation loss, "loss" in the evaluations; every label weighs the same.
        evaluate: ``(model) -> {name: number}``, further metrics of the evaluations, such as the ROUGE of a GenerationScorer. The
            model may only be used during the call: training reuses its memory.
        on_evaluation: Called with the number of steps done and the metrics after each evaluation; an exception it raises ends
            the training.
        tokenizer: Tokenizer to save with the best model.
        loss: ``(outputs, batch) -> Terms`` in place of the head's own loss, see FitStep.
        model_options: Further arguments of the model's call, such as output_hidden_states=True.
        mesh: Device mesh; by default all devices along "data".
        data: What identifies the data in run.json; by default the number of batches.
        log: Options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: Settings, batches, evaluation and model are incompatible, or the folder holds another run.
        NonFiniteLossError: The loss or a gradient is not finite; the best model and the last checkpoint precede that step.
        CheckpointError: A checkpoint cannot be read or written.
    """
    config, mesh = FitConfig() if config is None else config, make_mesh() if mesh is None else mesh
    step = FitStep(model, config, mesh, loss=loss, model_options=model_options)
    return train(
        step, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log,
    )  # fmt: skip


class Position(TypedDict):
    """How far a run is; stored with every checkpoint.

    Attributes:
        step: Optimizer steps done.
        epoch: Epoch of the next batch.
        batch: Index of the next batch in its epoch.
        examples: Training examples seen.
        seconds: Training time without evaluations.
        loss: Loss of the last logged step.
        best: State of the Best tracker.
    """

    step: int
    epoch: int
    batch: int
    examples: int
    seconds: float
    loss: float
    best: dict[str, Any]


def train(
    step: FitStep,
    model: Any,
    batches: BatchStream,
    config: FitConfig,
    folder: str | Path | None,
    *,
    validation: BatchStream | None,
    evaluate: Callable[[Any], Mapping[str, float]] | None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Tokenizer | None,
    data: Mapping[str, Any] | None,
    log: Mapping[str, Any] | None,
    description: Mapping[str, Any] | None = None,
) -> FitResult:
    """Run the loop of :func:`fit` over a given step.

    Args:
        step: Optimizer step.
        model: Model that is saved, evaluated and returned; it is not changed.
        batches: As of :func:`fit`.
        config: Settings of the run.
        folder: As of :func:`fit`.
        validation: As of :func:`fit`.
        evaluate: As of :func:`fit`.
        on_evaluation: As of :func:`fit`.
        tokenizer: As of :func:`fit`.
        data: As of :func:`fit`.
        log: As of :func:`fit`.
        description: Further entries of run.json that must be the same to resume the run.

    Raises:
        InputError: There are several processes; otherwise as :func:`fit`.
        NonFiniteLossError: As :func:`fit`.
        CheckpointError: As :func:`fit`.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"fit trains in one process but there are {jax.process_count()}; use pretrain on several hosts"
        )
    total = total_steps(batches, config, validation, evaluate)
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    about = {"model": architectures.hf_config(model.config, model.head), "head": model.head, **(description or {})}
    about["data"] = describe_batches(batches) if data is None else dict(data)
    folder = None if folder is None else Path(folder).expanduser()
    if step.mesh.devices.flat[0].platform == "cpu":
        keep_heap()
    with ExitStack() as stack:
        checkpoints = None if folder is None else stack.enter_context(Checkpoints(folder, config, about))
        if checkpoints is not None and checkpoints.latest is not None:
            state, stored = checkpoints.restore(step.abstract, step.shardings)
            position = cast(Position, stored)
            best.restore(position["best"])
        else:
            state = step.init_state()
            position = Position(
                step=0, epoch=0, batch=0, examples=0, seconds=0.0, loss=math.nan, best=best.to_dict()
            )  # fmt: skip
        resumed = position["step"] if checkpoints is not None and checkpoints.resumes else None
        log_writer = stack.enter_context(fit_log(folder, total, resumed, log))
        preemption = stack.enter_context(Preemption())
        if resumed:
            log_writer.message(f"resuming from step {resumed}")
        evaluation = None
        if evaluates(config, validation, evaluate):
            evaluation = _Evaluation(
                step, model, best, folder, log_writer, validation=validation, evaluate=evaluate,
                on_evaluation=on_evaluation, tokenizer=tokenizer,
            )  # fmt: skip
            if position["step"] == 0:
                evaluation.check(state)
        loop = _Loop(step, config, total, best, checkpoints, log_writer, preemption, evaluation)
        state, position, preempted = loop.run(batches, state, position)
    best_result = None if best.value is None or best.step is None else {"value": best.value, "step": best.step}
    return FitResult(
        _model_with(model, step, state), position["step"], position["examples"], position["seconds"], position["loss"],
        [] if evaluation is None else evaluation.history,
        best_result, None if folder is None or best_result is None else folder / BEST, best.out_of_patience,
        preempted and position["step"] < total,
    )  # fmt: skip


class _Loop:
    """The training loop.

    Args:
        step: Optimizer step.
        config: Settings of the run.
        total: Optimizer steps of the run.
        best: Tracker of the best evaluation, which may stop the loop.
        checkpoints: Checkpoints of the run; None writes none.
        log: Log of the run.
        preemption: Entered by the caller.
        evaluation: Evaluation during training, or None.
    """

    def __init__(
        self, step: FitStep, config: FitConfig, total: int, best: Best, checkpoints: Checkpoints | None,
        log: MetricsLog | NullLog, preemption: Preemption, evaluation: "_Evaluation | None",
    ):  # fmt: skip
        self.step, self.config, self.total, self.best = step, config, total, best
        self.checkpoints, self.log, self.preemption, self.evaluation = checkpoints, log, preemption, evaluation
        self.on_cpu = step.mesh.devices.flat[0].platform == "cpu"

    def run(self, batches: BatchStream, state: State, position: Position) -> tuple[State, Position, bool]:
        """Train from a state to the end of the run, or until preempted or out of patience.

        Returns:
            The last state, its position, and whether the run was preempted.
        """
        config, best, preempted = self.config, self.best, False
        pending = _PendingSteps(self.log, position["loss"])
        clock = time.perf_counter() - position["seconds"]
        remaining = 0 if best.out_of_patience else self.total - position["step"]
        stream = itertools.islice(endless_batches(batches, position["epoch"], position["batch"]), remaining)
        for number, (epoch, index, batch, ends_epoch) in enumerate(stream, position["step"] + 1):
            # Evaluated at the middle of the step, so that neither the first nor the last step has a rate of 0.
            rate = config.learning_rate_at((number - 0.5) / self.total)
            state, metrics = self.step(state, self.step.put(batch), rate)
            if self.on_cpu:
                # One step at a time: collectives of several steps in flight can deadlock over the threads of the host.
                jax.block_until_ready(metrics)
            position["step"], position["epoch"] = number, epoch + ends_epoch
            position["batch"] = 0 if ends_epoch else index + 1
            position["examples"] += count_examples(batch)
            position["seconds"] = time.perf_counter() - clock
            counts = {"step": number, "examples": position["examples"], "seconds": position["seconds"]}
            pending.add(counts | {"learning_rate": rate}, metrics)
            last, preempted = number == self.total, self.preemption.requested(number)
            evaluated = self.evaluation is not None and fit_event_due(config.evaluate_every, number, ends_epoch, last)
            saves = fit_event_due(config.save_every, number, ends_epoch, last) or preempted
            if due(number, config.log_every, self.total) or evaluated or saves or last:
                position["loss"] = pending.write()  # raises before a non-finite state is evaluated or saved
            if self.evaluation is not None and evaluated:
                began = time.perf_counter()
                self.evaluation.run(number, state)
                position["best"] = best.to_dict()
                clock += time.perf_counter() - began
            if self.checkpoints is not None and (saves or best.out_of_patience):
                self.checkpoints.save(number, state, position)
            if best.out_of_patience:
                self.log.message(
                    f"stopped early: {best.name} has not improved on {best.value} (step {best.step}) in {best.since} evaluations"
                )
            if preempted:
                self.log.message(f"preempted: {'saved' if self.checkpoints else 'stopped'} after step {number}")
            if best.out_of_patience or preempted:
                break
        return state, position, preempted


class _Evaluation:
    """Evaluation during training: computes the metrics, logs them, and saves the best model.

    Args:
        step: Step that computes the validation loss.
        model: Model that the parameters belong to.
        best: Tracker of the best evaluation.
        folder: Folder of the run, or None.
        log: Log of the run.
        validation: As of :func:`fit`.
        evaluate: As of :func:`fit`.
        on_evaluation: As of :func:`fit`.
        tokenizer: As of :func:`fit`.

    Attributes:
        history: Metrics of each evaluation, with its "step".
    """

    def __init__(
        self, step: FitStep, model: Any, best: Best, folder: Path | None, log: MetricsLog | NullLog, *,
        validation: BatchStream | None, evaluate: Callable[[Any], Mapping[str, float]] | None,
        on_evaluation: Callable[[int, Mapping[str, float]], None] | None, tokenizer: Tokenizer | None,
    ):  # fmt: skip
        self.step, self.model, self.best, self.folder, self.log = step, model, best, folder, log
        self.validation, self.evaluate = validation, evaluate
        self.on_evaluation, self.tokenizer = on_evaluation, tokenizer
        self.history: list[dict[str, float]] = []

    def check(self, state: State) -> None:
        """Dry-run the evaluation where it can, so that it fails before the first step; raise InputError if it does."""
        if hasattr(self.evaluate, "dry_run"):
            model = _model_with(self.model, self.step, state)
            check_evaluation(cast(Scorer, self.evaluate), model, self.best, self.validation is not None)

    def run(self, number: int, state: State) -> None:
        """Evaluate the state after `number` steps."""
        model, metrics = _model_with(self.model, self.step, state), {}
        if self.validation is not None:
            metrics |= self.step.evaluate(state["params"], epoch_batches(self.validation))
        if self.evaluate is not None:
            metrics |= self.evaluate(model)
        self.history.append({"step": number, **metrics})
        self.log.evaluation({"name": "validation", **self.history[-1]})
        if self.best.update(number, metrics) and self.folder is not None:
            model.save_pretrained(self.folder / BEST, self.tokenizer)
        if self.on_evaluation is not None:
            self.on_evaluation(number, metrics)


def _model_with(model: Any, step: FitStep, state: State) -> Any:
    """Return `model` with the parameters of a state, on one device."""
    params, mesh = step.model_parameters(state["params"]), step.mesh
    return update(model, params if mesh.size == 1 else jax.device_put(params, mesh.devices.flat[0]))


class _PendingSteps:
    """Metrics of steps that may still be running; fetching them waits for the devices, so it is done in groups.

    Args:
        log: Log of the run.
        last_loss: Loss of the last step before; it is replaced as steps are written.
    """

    def __init__(self, log: MetricsLog | NullLog, last_loss: float):
        self.log, self.last_loss = log, last_loss
        self.steps: list[tuple[dict[str, float], Metrics]] = []

    def add(self, record: dict[str, float], metrics: Metrics) -> None:
        """Add a step. record: what is logged of it, with "step" and "learning_rate"."""
        self.steps.append((record, metrics))

    def write(self) -> float:
        """Log the pending steps as one record with their mean metrics, and return the loss of the last one.

        Raises:
            NonFiniteLossError: A loss or a gradient is not finite; nothing is logged.
        """
        if not self.steps:
            return self.last_loss
        records, fetched = [record for record, _ in self.steps], jax.device_get([metrics for _, metrics in self.steps])
        for record, metrics in zip(records, fetched):
            # A non-finite gradient has already corrupted the parameters, even if the loss was finite.
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"]):
                raise NonFiniteLossError(
                    f"step {record['step']} has a loss of {metrics['loss']} and a gradient norm of "
                    f"{metrics['gradient_norm']}; the best model and the last checkpoint precede it: lower the learning rate "
                    f"({record['learning_rate']:.3g}), warm up longer or clip harder, then start over"
                )
        self.last_loss = float(fetched[-1]["loss"])
        means = {name: float(np.mean([metrics[name] for metrics in fetched], dtype=np.float64)) for name in fetched[-1]}
        self.log.step(records[-1] | means | {"gradient_norm": float(fetched[-1]["gradient_norm"])})
        self.steps.clear()
        return self.last_loss
