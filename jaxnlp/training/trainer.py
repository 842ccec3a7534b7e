"""Pretraining: the loop over optimizer steps, from the first step or from the last checkpoint."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh

from duonlp import architectures
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import check_model, head_of
from duonlp.errors import InputError, NonFiniteLossError
from duonlp.runs.preparation import Prepared
from duonlp.runs.pretraining import RunConfig
from duonlp.training.config import PretrainingConfig
from duonlp.training.flops import block_flops
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.schedules import due
from duonlp.typing import BatchSequence
from jaxnlp.training.checkpoints import Checkpoints
from jaxnlp.training.chips import device_peak_flops
from jaxnlp.training.distributed import Preemption, is_main
from jaxnlp.training.input import import_grain, read_ahead
from jaxnlp.training.mesh import PyTree
from jaxnlp.training.model import LazyModel, parameter_reader
from jaxnlp.training.step import Metrics, PmapStep, ShardedStep, State, make_step


@dataclass(frozen=True)
class Result:
    """Result of a pretraining run.

    Attributes:
        steps: Optimizer steps done, including those before a resume.
        tokens: Tokens seen in these steps.
        seconds: Training time, including that before a resume.
        loss: Loss of the last step in nats per labeled token.
        held_out_loss: Loss of the last evaluation; None without one.
        preempted: Whether the run was asked to stop before its end; it can be resumed.
        params: Parameters on their devices, nested dicts.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    held_out_loss: float | None
    preempted: bool
    params: dict[str, Any]


class Meta(TypedDict, total=False):
    """What a checkpoint stores beside the arrays.

    Attributes:
        step: Steps done.
        tokens: Tokens seen.
        seconds: Training time.
        loss: Loss of the last step.
        position: Index of the next block in the stream.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    position: int


def pretrain(
    model: Any,
    batches: Batches,
    config: PretrainingConfig,
    folder: str | Path | None = None,
    *,
    held_out: BatchSequence | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> Result:
    """Train a language model or an encoder-decoder on blocks, over all devices of all hosts.

    Call it in every process with the same arguments. If the folder has a checkpoint of the same run, training resumes from
    it bit-identically. SIGTERM saves a checkpoint and returns.

    Args:
        model: A jaxnlp model with the causal-lm, masked-lm or seq2seq-lm head, or a LazyModel; it is not changed.
        batches: This host's rows of every step.
        config: Settings of the run.
        folder: Folder for checkpoints, run.json and metrics.jsonl. None writes nothing.
        held_out: Batches to evaluate on every ``config.evaluate_every`` steps, from duonlp.data.held_out_batches.
        mesh: Device mesh; by default ``config.mesh`` over all devices.
        data: What identifies the data in run.json; by default the manifest's counts and hashes, the objective and the seed.
        log: Options of MetricsLog: console, tensorboard, wandb, peak_flops, description.

    Raises:
        InputError: Settings, mesh, data and model are incompatible, or the folder holds another run.
        NonFiniteLossError: The loss or a gradient is not finite; the last checkpoint precedes that step.
        CheckpointError: A checkpoint cannot be read or written.
        MissingExtraError: grain is not installed.
    """
    _check_arguments(batches, config, held_out)
    check_model(batches.objective, model.config, model.head, batches.blocks.block_length)
    import_grain()  # fail before anything is compiled or written
    step = make_step(model, config, mesh)
    description = {
        "model": architectures.hf_config(model.config, model.head),
        "head": model.head,
        "data": dict(describe(batches) if data is None else data),
    }
    with ExitStack() as stack:
        checkpoints = None if folder is None else stack.enter_context(Checkpoints(folder, config, description))
        state, meta = _restore_or_init(step, model, checkpoints)
        resumed = meta["step"] if checkpoints is not None and checkpoints.resumes else None
        log_writer = stack.enter_context(_make_log(folder, config, model, batches, step.mesh, resumed, log or {}))
        preemption = stack.enter_context(Preemption())
        if resumed:
            log_writer.message(f"resuming from step {resumed} ({meta['tokens']:,} tokens)")
        # An implicit transfer between host and devices would slow down every step.
        stack.enter_context(jax.transfer_guard("disallow" if config.parallelism == "jit" else "allow"))
        loop = _Loop(step, batches, config, held_out, checkpoints, log_writer, preemption)
        return loop.run(state, meta)


def _check_arguments(batches: Batches, config: PretrainingConfig, held_out: BatchSequence | None) -> None:
    if batches.batch_size != config.batch_size:
        raise InputError(
            f"batches have {batches.batch_size} rows but config.batch_size is {config.batch_size}; use the same for both"
        )
    if config.seconds is not None and jax.process_count() > 1:
        raise InputError("seconds cannot be enforced on several hosts, whose clocks differ; set steps only")
    if config.evaluate_every and not held_out:
        raise InputError(f"evaluate_every is {config.evaluate_every} but there are no held_out batches; pass some")


def _restore_or_init(step: ShardedStep | PmapStep, model: Any, checkpoints: Checkpoints | None) -> tuple[State, Meta]:
    """Return the state and metadata of the last checkpoint, or those before the first step."""
    if checkpoints is not None and checkpoints.latest is not None:
        state, meta = checkpoints.restore(step.abstract, step.shardings)
        return step.from_saved(state), Meta(**meta)
    return step.init_state(parameter_reader(model)), Meta(step=0, tokens=0, seconds=0.0, loss=math.nan)


class _Loop:
    """The training loop.

    Args:
        step: Optimizer step.
        batches: This host's rows of every step.
        config: Settings of the run.
        held_out: Batches to evaluate on, or None.
        checkpoints: Checkpoints of the run; None writes none.
        log: Log of the run.
        preemption: Entered by the caller.
    """

    def __init__(
        self, step: ShardedStep | PmapStep, batches: Batches, config: PretrainingConfig, held_out: BatchSequence | None,
        checkpoints: Checkpoints | None, log: MetricsLog | NullLog, preemption: Preemption,
    ):  # fmt: skip
        self.step, self.batches, self.config, self.held_out = step, batches, config, held_out
        self.checkpoints, self.log, self.preemption = checkpoints, log, preemption
        self.on_cpu = step.mesh.devices.flat[0].platform == "cpu"
        self.on_one_device = step.mesh.size == 1

    def run(self, state: State, meta: Meta) -> Result:
        """Train from a state to the end of the run, or until preempted."""
        config, batches = self.config, self.batches
        pending = _PendingSteps(self.log, meta["loss"])
        done, tokens, seconds = meta["step"], meta["tokens"], meta["seconds"]
        number, metrics, held_out_loss, preempted = done, None, None, False
        progress = _progress(config, done, seconds)
        clock = time.perf_counter() - seconds
        stream = read_ahead(batches, done, config.steps if progress < 1 else done)
        for number, batch in enumerate(stream, done + 1):
            # Evaluated at the middle of the step, so that neither the first nor the last step has a rate of 0.
            rate = config.learning_rate_at(min(1.0, progress + 0.5 / config.steps))
            previous = metrics
            state, metrics = self.step(state, self.step.put(batch), rate)
            if self.on_cpu:
                # One step at a time: collectives of several steps in flight can deadlock over the threads of the host. One
                # device has no collectives, and prepares a step while the one before is running.
                jax.block_until_ready(previous if self.on_one_device else metrics)
            if number == 1 and config.seconds is not None:
                jax.block_until_ready(metrics)
                clock = time.perf_counter()  # the first step, which compiles, is not counted
            tokens += config.batch_size * batches.blocks.block_length
            seconds = time.perf_counter() - clock
            progress = _progress(config, number, seconds)
            last = config.steps if progress < 1 else number
            pending.add(number, metrics, rate, tokens, progress)
            preempted = self.preemption.requested(number)
            ends = preempted or number == last
            if due(number, config.log_every, last) or ends:
                pending.write(seconds)
            evaluated = due(number, config.evaluate_every, last)
            if evaluated and self.held_out is not None:
                held_out_loss = evaluate(self.step, state["params"], self.held_out, config.evaluate_batches)
                self.log.evaluation({"step": number, "loss": held_out_loss, "tokens": tokens})
            if self.checkpoints is not None and (due(number, config.save_every, last) or ends):
                pending.write(seconds)  # raises before a non-finite state is saved
                meta = Meta(step=number, tokens=tokens, seconds=seconds, loss=pending.last_loss)
                meta["position"] = batches.next_block(number - 1)
                self.checkpoints.save(number, self.step.to_save(state), meta, held_out_loss if evaluated else None)
            if preempted:
                self.log.message(f"preempted: {'saved' if self.checkpoints else 'stopped'} after step {number}")
            if ends:
                break
        params = self.step.to_save(state)["params"]
        preempted = preempted and number < config.steps
        return Result(number, tokens, seconds, pending.last_loss, held_out_loss, preempted, params)


def pretrain_run(run: RunConfig, prepared: Prepared, folder: str | Path | None = None, **options: Any) -> Result:
    """Pretrain the model of a run configuration on the blocks prepared for it; call it in every process alike.

    Args:
        run: Run configuration from duonlp.runs.
        prepared: Tokenizer and blocks from duonlp.runs.
        folder: As of :func:`pretrain`.
        options: Further arguments of :func:`pretrain`.

    Raises:
        InputError: The blocks do not fit the run or the model; otherwise as :func:`pretrain`.
    """
    if prepared.training.block_length != run.block_length:
        raise InputError(
            f"the prepared blocks have {prepared.training.block_length} tokens but the run has block_length "
            f"{run.block_length}; prepare again, in another folder"
        )
    head, seed = head_of(run.objective), run.model_seed
    if run.name_or_path is not None:
        model = LazyModel.from_pretrained(run.name_or_path, head=head, seed=seed)
        if model.config.embedding.vocab_size < len(prepared.tokenizer):
            raise InputError(
                f"{run.name_or_path!r} has a vocabulary of {model.config.embedding.vocab_size} but the tokenizer of the "
                f"blocks has {len(prepared.tokenizer)} tokens; prepare with the model's own tokenizer: "
                f"tokenizer={{'from': {run.name_or_path!r}}}"
            )
    else:
        model = LazyModel.from_config(run.model_config(prepared.tokenizer), head=head, seed=seed)
    objective, rows = run.make_objective(prepared.tokenizer, model.config), run.training.batch_size
    hosts = {"seed": run.training.seed, "host_index": jax.process_index(), "host_count": jax.process_count()}
    return pretrain(
        model, Batches(prepared.training, objective, rows, **hosts), run.training, folder,
        held_out=held_out_batches(prepared.held_out, objective, rows, **hosts), **options,
    )  # fmt: skip


def evaluate(step: ShardedStep | PmapStep, params: PyTree, held_out: BatchSequence, batches: int = 0) -> float:
    """Return the mean loss over all labeled tokens of held-out batches, in nats; its exponential is the perplexity.

    Args:
        step: Step from :func:`make_step`.
        params: Parameters, ``state["params"]``.
        held_out: Batches to evaluate on.
        batches: Number of batches to read, evenly spaced; 0 reads all.

    Raises:
        InputError: The batches have no labeled token.
    """
    total = count = 0.0
    limit = min(batches or len(held_out), len(held_out))
    for index in (i * len(held_out) // limit for i in range(limit)):
        batch_total, batch_count = jax.device_get(step.evaluate(params, step.put(held_out[index])))
        total, count = total + float(batch_total), count + float(batch_count)
    if not count:
        raise InputError("the held-out batches have no labeled token to evaluate on; pass more text")
    return total / count


def describe(batches: Batches) -> dict[str, Any]:
    """Return what determines the stream of batches, for run.json: a run can only be resumed on the same stream."""
    manifest = batches.blocks.manifest
    names = ("block_length", "blocks", "documents_sha256", "tokenizer_hash", "segment_ids")
    return {name: getattr(manifest, name) for name in names} | {
        "objective": repr(batches.objective),
        "seed": batches.seed,
        "shuffle": batches.shuffle,
        "first_block": batches.first_block,
    }


def _progress(config: PretrainingConfig, number: int, seconds: float) -> float:
    """Return the share of the run that is done, by steps or by time, whichever is greater."""
    by_time = 0.0 if config.seconds is None else seconds / config.seconds
    return min(1.0, max(number / config.steps, by_time))


def _make_log(
    folder: str | Path | None, config: PretrainingConfig, model: Any, batches: Batches, mesh: Mesh, resumed: int | None,
    options: Mapping[str, Any],
) -> MetricsLog | NullLog:  # fmt: skip
    if folder is None or not is_main():
        return NullLog()
    flops = block_flops(model.config, batches.objective, batches.blocks.block_length)
    peak = device_peak_flops(mesh.devices.flat[0].device_kind)
    defaults: dict[str, Any] = {"flops_per_token": flops, "peak_flops": None if peak is None else peak * mesh.size}
    return MetricsLog(folder, total_steps=config.steps, resumed_from=resumed, **{**defaults, **options})


class _PendingSteps:
    """Metrics of steps that may still be running; fetching them waits for the devices, so it is done in groups.

    Args:
        log: Log of the run.
        last_loss: Loss of the last step before; it is replaced as steps are written.
    """

    def __init__(self, log: MetricsLog | NullLog, last_loss: float):
        self.log, self.last_loss = log, last_loss
        self.steps: list[tuple[int, Metrics, float, int, float]] = []

    def add(self, number: int, metrics: Metrics, rate: float, tokens: int, progress: float) -> None:
        """Add a step."""
        self.steps.append((number, metrics, rate, tokens, progress))

    def write(self, seconds: float) -> None:
        """Log the pending steps as one record with their mean loss per token.

        Raises:
            NonFiniteLossError: A loss or a gradient is not finite; nothing is logged.
        """
        if not self.steps:
            return
        fetched = jax.device_get([metrics for _, metrics, *_ in self.steps])
        first, (number, _, rate, tokens, progress) = self.steps[0][0], self.steps[-1]
        # A non-finite gradient has already corrupted the parameters, even if the loss was finite.
        non_finite = [
            first + i for i, metrics in enumerate(fetched)
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]))
        ]  # fmt: skip
        if non_finite:
            metrics = fetched[non_finite[0] - first]
            raise NonFiniteLossError(
                f"step {non_finite[0]} has a loss of {metrics['loss']} and a gradient norm of {metrics['gradient_norm']} "
                f"({len(non_finite)} of the steps {first} to {number} are non-finite); the last checkpoint precedes it: lower "
                f"the learning rate ({rate:.3g}), warm up longer or clip harder, then resume or start over"
            )
        weights = np.array([metrics["tokens"] for metrics in fetched], np.float64)
        losses = np.array([metrics["loss"] for metrics in fetched], np.float64)
        self.last_loss = float(losses[-1])
        mean = float((losses * weights).sum() / max(weights.sum(), 1))
        norm = float(fetched[-1]["gradient_norm"])
        record = {"step": number, "loss": mean, "tokens": tokens, "learning_rate": rate, "gradient_norm": norm}
        self.log.step(record | {"seconds": seconds, "progress": progress})
        self.steps.clear()
