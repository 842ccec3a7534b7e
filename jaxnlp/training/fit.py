"""Fine-tuning a model of any head, from the first step or from the last checkpoint to the end: the loop, in one piece."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from duonlp import architectures
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import (
    BEST,
    check_evaluation,
    count_examples,
    describe_batches,
    endless_batches,
    evaluates,
    fit_log,
    total_steps,
)
from duonlp.training.generated import epoch_batches
from duonlp.training.result import FitResult
from duonlp.training.schedules import due
from duonlp.util.frameworks import keep_heap
from jaxnlp.pretrained import update
from jaxnlp.training.checkpoints import Checkpoints
from jaxnlp.training.distributed import Preemption
from jaxnlp.training.fit_step import FitStep
from jaxnlp.training.mesh import make_mesh


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
    loss: Callable | None = None,
    model_options: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a model on batches with labels, over all devices of this process.

    With a folder that has a checkpoint of the same run, it goes on from there as if it had never stopped, over the batches
    that are left of the epoch. SIGTERM saves and returns.

    Args:
        model: one of jaxnlp's with any head that learns something; it is not changed.
        batches: dicts of NumPy arrays [B, ...], the model's inputs and labels: ``duonlp.data.PairBatches`` or anything
            with ``epoch(n)`` and ``len()``; or a list of such dicts, the same in every epoch. Each is an optimizer step.
            Without ``len()``, ``config.steps`` is needed.
        folder: of the run: ``best/``, checkpoints to resume from, run.json, metrics.jsonl. None writes nothing.
        validation: batches for the validation loss, which the evaluations have as "loss".
        evaluate: ``(model) -> {name: number}``: whatever else the evaluations are to have, such as a GenerationScorer's ROUGE.
            The model is for this call alone: training goes on in its memory.
        on_evaluation: told the steps that are done, and the results, after each evaluation; what it raises ends the training.
        tokenizer: saved with the best model.
        loss, model_options: as FitStep's.
        mesh: by default all devices along "data".
        data: what identifies the data in run.json; by default how many batches there are.
        log: options of MetricsLog: console, tensorboard, wandb, description.

    Raises:
        InputError: settings, batches, an evaluation or a folder's run that do not fit.
        NonFiniteLossError: the loss is not a number; the best model and the last checkpoint are from before.
        CheckpointError: a checkpoint cannot be read or written.
    """
    config, mesh = FitConfig() if config is None else config, make_mesh() if mesh is None else mesh
    step = FitStep(model, config, mesh, loss=loss, model_options=model_options)
    return train(
        step, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log=log,
    )  # fmt: skip


def train(
    step: FitStep,
    model,
    batches,
    config: FitConfig,
    folder: str | Path | None,
    *,
    validation,
    evaluate: Callable[[Any], Mapping[str, float]] | None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer,
    data: Mapping[str, Any] | None,
    log: Mapping[str, Any] | None,
    description: Mapping[str, Any] | None = None,
) -> FitResult:
    """The loop of :func:`fit`, over a step that is made already.

    Args:
        description: more of what the run is, for run.json: a resumed run has to have the same.
        All others: as of :func:`fit`.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"fit trains in one process, and there are {jax.process_count()}; pretrain is for several hosts"
        )
    total, evaluated = total_steps(batches, config, validation, evaluate), evaluates(config, validation, evaluate)
    best = Best(config.best_metric, config.greater_is_better, min_delta=config.min_delta, patience=config.patience)
    about = {"model": architectures.hf_config(model.config, model.head), "head": model.head, **(description or {})}
    about["data"] = describe_batches(batches) if data is None else dict(data)
    mesh = step.mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if on_cpu:
        keep_heap()
    at = {"step": 0, "epoch": 0, "batch": 0, "examples": 0, "seconds": 0.0, "loss": math.nan, "best": best.to_dict()}
    history, preempted = [], False
    with ExitStack() as stack:
        checkpoints = None if folder is None else stack.enter_context(Checkpoints(folder, config, about))
        if checkpoints is not None and checkpoints.latest is not None:
            state, at = checkpoints.restore(step.abstract, step.shardings)
            best.restore(at["best"])
        else:
            state = step.init_state()
        resumed = at["step"] if checkpoints is not None and checkpoints.resumes else None
        writer = stack.enter_context(fit_log(folder, total, resumed, log))
        window, preemption = _Window(writer, at["loss"]), stack.enter_context(Preemption())
        if resumed:
            writer.message(f"going on after step {resumed}")
        if evaluated and at["step"] == 0 and hasattr(evaluate, "dry_run"):
            check_evaluation(evaluate, _as_model(model, step, state), best, validation is not None)

        clock = time.perf_counter() - at["seconds"]
        remaining = 0 if best.out_of_patience else total - at["step"]
        following = itertools.islice(endless_batches(batches, at["epoch"], at["batch"]), remaining)
        for number, (epoch, index, batch, ends_epoch) in enumerate(following, at["step"] + 1):
            # the middle of the step, so that neither the first nor the last one is wasted on a rate of nothing
            rate = config.learning_rate_at((number - 0.5) / total)
            state, known = step(state, step.put(batch), rate)
            if on_cpu:
                # One at a time: with several in flight, sums over host devices can wait for each other's threads for ever.
                jax.block_until_ready(known)
            last = number == total
            at |= {"step": number, "examples": at["examples"] + count_examples(batch)}
            at |= {"epoch": epoch + ends_epoch, "batch": 0 if ends_epoch else index + 1}
            at["seconds"] = time.perf_counter() - clock
            window.add({name: at[name] for name in ("step", "examples", "seconds")} | {"learning_rate": rate}, known)
            preempted = preemption.asked(number)
            evaluation = evaluated and fit_event_due(config.evaluate_every, number, ends_epoch, last)
            saves = fit_event_due(config.save_every, number, ends_epoch, last) or preempted
            if due(number, config.log_every, total) or evaluation or saves or last:
                at["loss"] = window.write()  # nothing is evaluated or saved that has not been found finite
            if evaluation:
                began, now = time.perf_counter(), _as_model(model, step, state)
                results = {} if validation is None else step.evaluate(state["params"], epoch_batches(validation))
                results |= {} if evaluate is None else evaluate(now)
                history.append({"step": number, **results})
                writer.evaluation({"name": "validation", **history[-1]})
                if best.update(number, results) and folder is not None:
                    now.save_pretrained(Path(folder).expanduser() / BEST, tokenizer)
                at["best"] = best.to_dict()
                if on_evaluation is not None:
                    on_evaluation(number, results)
                clock += time.perf_counter() - began
            if checkpoints is not None and (saves or best.out_of_patience):
                checkpoints.save(number, state, at)
            if best.out_of_patience:
                writer.message(
                    f"stopped: no better {best.name} than {best.value} of step {best.step} for {best.since} times"
                )
            if preempted:
                writer.message(f"asked to stop: {'saved' if checkpoints else 'stopped'} after step {number}")
            if best.out_of_patience or preempted:
                break
    folder = None if folder is None or best.value is None else Path(folder).expanduser() / BEST
    return FitResult(
        _as_model(model, step, state), at["step"], at["examples"], at["seconds"], at["loss"], history,
        None if best.value is None else {"value": best.value, "step": best.step}, folder, best.out_of_patience,
        preempted and at["step"] < total,
    )  # fmt: skip


def _as_model(model, step: FitStep, state):
    """The model with the parameters of a state, on one device."""
    params, mesh = step.model_parameters(state["params"]), step.mesh
    return update(model, params if mesh.size == 1 else jax.device_put(params, mesh.devices.flat[0]))


class _Window:
    """Steps that were taken and not yet looked at; looking waits for them."""

    def __init__(self, log, last_loss: float):
        self.log, self.steps, self.last_loss = log, [], last_loss

    def add(self, record: dict, known: dict) -> None:
        self.steps.append((record, known))

    def write(self) -> float:
        """One record of all of them, with their mean loss; the loss of the last. NonFiniteLossError comes before that."""
        if not self.steps:
            return self.last_loss
        records, fetched = [record for record, _ in self.steps], jax.device_get([known for _, known in self.steps])
        for record, known in zip(records, fetched):
            # a gradient that is no number has spoilt the parameters already
            if not np.isfinite(known["loss"]) or not np.isfinite(known["gradient_norm"]):
                raise NonFiniteLossError(
                    f"step {record['step']} has a loss of {known['loss']} and a gradient norm of {known['gradient_norm']}; the "
                    f"best model and the last checkpoint are from before: lower the learning rate "
                    f"({record['learning_rate']:.3g}), warm up longer, or clip harder, then start anew"
                )
        self.last_loss = float(fetched[-1]["loss"])
        means = {name: float(np.mean([known[name] for known in fetched], dtype=np.float64)) for name in fetched[-1]}
        self.log.step(records[-1] | means | {"gradient_norm": float(fetched[-1]["gradient_norm"])})
        self.steps.clear()
        return self.last_loss
