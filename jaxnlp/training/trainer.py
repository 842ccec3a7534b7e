"""Pretraining, from the first step or from the last checkpoint to the end: the loop that everything else serves."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from jaxnlp.training.checkpoints import Checkpoints
from jaxnlp.training.chips import peak_of
from jaxnlp.training.distributed import Preemption, is_main
from jaxnlp.training.input import read_ahead
from jaxnlp.training.model import LazyModel, reader
from jaxnlp.training.step import make_step


@dataclass(frozen=True)
class Result:
    """How a run ended.

    steps: optimizer steps done, those of resumed parts included; tokens: seen in them; seconds: of training.
    loss: the last step's, nats a labelled token; held_out_loss: the last evaluation's, or None.
    preempted: whether it was asked to stop before its end; resuming goes on.
    params: the parameters on their devices, nested dicts.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    held_out_loss: float | None
    preempted: bool
    params: dict


def pretrain(
    model,
    batches: Batches,
    config: PretrainingConfig,
    folder: str | Path | None = None,
    *,
    held_out: Sequence[Mapping[str, np.ndarray]] | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> Result:
    """Trains a language model or an encoder-decoder on blocks, over all devices of all hosts; called in every process alike.

    With a folder that has a checkpoint of the same run, it goes on from there as if it had never stopped. SIGTERM saves
    and returns.

    Args:
        model: one of jaxnlp's with the causal-lm, masked-lm or seq2seq-lm head, or a LazyModel; it is not changed.
        batches: this host's rows of every step (duonlp.data.blocks.batches).
        folder: of the run: checkpoints, run.json, metrics.jsonl. None writes nothing.
        held_out: a finite sequence of batches (duonlp.data.held_out_batches) for ``config.evaluate_every``.
        mesh: by default ``config.mesh`` over all devices.
        data: what identifies the data in run.json; by default the manifest's counts and hashes, objective and seed.
        log: options of MetricsLog: console, tensorboard, wandb, peak_flops, description.

    Raises:
        InputError: settings, mesh, data or a folder's run that do not fit.
        NonFiniteLossError: the loss is not a number; the last good checkpoint stays.
        CheckpointError: a checkpoint cannot be read or written.
    """
    if batches.batch_size != config.batch_size:
        raise InputError(
            f"batches have {batches.batch_size} rows, config.batch_size says {config.batch_size}; make them agree"
        )
    if config.seconds is not None and jax.process_count() > 1:
        raise InputError("seconds cannot be kept by several hosts, whose clocks differ; give steps alone")
    if config.evaluate_every and not held_out:
        raise InputError(f"evaluate_every is {config.evaluate_every} and there are no held_out batches; give some")
    check_model(batches.objective, model.config, model.head, batches.blocks.block_length)
    step = make_step(model, config, mesh)
    on_cpu = step.mesh.devices.flat[0].platform == "cpu"
    description = {
        "model": architectures.hf_config(model.config, model.head),
        "head": model.head,
        "data": dict(describe(batches) if data is None else data),
    }
    with ExitStack() as stack:
        checkpoints = None if folder is None else stack.enter_context(Checkpoints(folder, config, description))
        done, tokens, seconds, loss = 0, 0, 0.0, math.nan
        if checkpoints is not None and checkpoints.latest is not None:
            state, meta = checkpoints.restore(step.abstract, step.shardings)
            state, done = step.from_saved(state), meta["step"]
            tokens, seconds, loss = meta["tokens"], meta["seconds"], meta["loss"]
        else:
            state = step.init_state(reader(model))
        resumed = done if checkpoints is not None and checkpoints.resumes else None
        writer = _log(folder, config, model, batches, step.mesh, resumed, log or {})
        window = _Window(stack.enter_context(writer), loss)
        preemption = stack.enter_context(Preemption())
        if resumed:
            writer.message(f"going on after step {resumed}, {tokens:,} tokens")
        # Whatever moves between host and devices unasked would move at every step.
        stack.enter_context(jax.transfer_guard("disallow" if config.parallelism == "jit" else "allow"))

        loss_held_out, preempted, number = None, False, done
        progress = _progress(config, done, seconds)
        clock = time.perf_counter() - seconds
        stream = read_ahead(batches, done, config.steps if progress < 1 else done)
        for number, batch in enumerate(stream, done + 1):
            # the middle of the step, so that neither the first nor the last one is wasted on a rate of nothing
            rate = config.learning_rate_at(min(1.0, progress + 0.5 / config.steps))
            state, known = step(state, step.put(batch), rate)
            if on_cpu:
                # One at a time: with several in flight, sums over host devices can wait for each other's threads for ever.
                jax.block_until_ready(known)
            if number == 1 and config.seconds is not None:
                jax.block_until_ready(known)
                clock = time.perf_counter()  # the first step compiles
            tokens += config.batch_size * batches.blocks.block_length
            seconds = time.perf_counter() - clock
            progress = _progress(config, number, seconds)
            last = config.steps if progress < 1 else number
            window.add(number, known, rate, tokens, progress)
            preempted = preemption.asked(number)
            if due(number, config.log_every, last) or preempted or number == last:
                window.write(seconds)
            evaluated = due(number, config.evaluate_every, last)
            if evaluated:
                loss_held_out = evaluate(step, state["params"], held_out, config.evaluate_batches)
                writer.evaluation({"step": number, "loss": loss_held_out, "tokens": tokens})
            saves = due(number, config.save_every, last) or preempted or number == last
            if checkpoints is not None and saves:
                window.write(seconds)  # nothing is saved that has not been found finite
                meta = {"step": number, "tokens": tokens, "seconds": seconds, "loss": window.last_loss}
                meta["position"] = batches.next_block(number - 1)  # in blocks of the stream
                checkpoints.save(number, step.to_save(state), meta, loss_held_out if evaluated else None)
            if preempted:
                writer.message(
                    f"asked to stop: saved after step {number}" if checkpoints else f"stopped after {number}"
                )
                break
            if number == last:
                break
        params = step.to_save(state)["params"]
        return Result(
            number, tokens, seconds, window.last_loss, loss_held_out, preempted and number < config.steps, params
        )


def pretrain_run(run: RunConfig, prepared: Prepared, folder: str | Path | None = None, **options) -> Result:
    """Pretrains what a run describes on the blocks that were prepared for it; called in every process alike.

    Args:
        run: from duonlp.runs.pretraining.
        prepared: from duonlp.runs.preparation.
        folder, options: as :func:`pretrain`'s.
    """
    if prepared.training.block_length != run.block_length:
        raise InputError(
            f"the prepared blocks have {prepared.training.block_length} tokens, the run's have {run.block_length}; prepare "
            "again, into another folder"
        )
    head, seed = head_of(run.objective), run.model_seed
    if run.name_or_path is not None:
        model = LazyModel.from_pretrained(run.name_or_path, head=head, seed=seed)
        if model.config.embedding.vocab_size < len(prepared.tokenizer):
            raise InputError(
                f"{run.name_or_path!r} has a vocabulary of {model.config.embedding.vocab_size}, the blocks' tokenizer "
                f"{len(prepared.tokenizer)} tokens; prepare with the model's own: tokenizer={{'from': {run.name_or_path!r}}}"
            )
    else:
        model = LazyModel.from_config(run.model_config(prepared.tokenizer), head=head, seed=seed)
    what, rows = run.make_objective(prepared.tokenizer, model.config), run.training.batch_size
    hosts = {"seed": run.training.seed, "host_index": jax.process_index(), "host_count": jax.process_count()}
    return pretrain(
        model, Batches(prepared.training, what, rows, **hosts), run.training, folder,
        held_out=held_out_batches(prepared.held_out, what, rows, **hosts), **options,
    )  # fmt: skip


def evaluate(step, params, held_out: Sequence[Mapping[str, np.ndarray]], batches: int = 0) -> float:
    """Mean loss over all labelled tokens of held-out batches, nats; its exponential is the perplexity.

    Args:
        step: from make_step.
        params: the parameters as the step has them, ``state["params"]``.
        batches: how many are read, evenly spaced; 0 for all.
    """
    total = count = 0.0
    wanted = min(batches or len(held_out), len(held_out))
    for index in (i * len(held_out) // wanted for i in range(wanted)):
        sums = jax.device_get(step.evaluate(params, step.put(held_out[index])))
        total, count = total + float(sums[0]), count + float(sums[1])
    if not count:
        raise InputError("the held-out batches have no labelled token to evaluate on; give more text")
    return total / count


def describe(batches: Batches) -> dict[str, Any]:
    """What decides the stream of batches, for run.json: a run is only resumed on the same."""
    manifest = batches.blocks.manifest
    kept = ("block_length", "blocks", "documents_sha256", "tokenizer_hash", "segment_ids")
    return {name: getattr(manifest, name) for name in kept} | {
        "objective": repr(batches.objective),
        "seed": batches.seed,
        "shuffle": batches.shuffle,
        "first_block": batches.first_block,
    }


def _progress(config: PretrainingConfig, number: int, seconds: float) -> float:
    """The share of the run that is done, by steps or by the clock."""
    by_clock = 0.0 if config.seconds is None else seconds / config.seconds
    return min(1.0, max(number / config.steps, by_clock))


def _log(folder, config, model, batches, mesh, resumed, options):
    if folder is None or not is_main():
        return NullLog()
    flops = block_flops(model.config, batches.objective, batches.blocks.block_length)
    peak = peak_of(mesh.devices.flat[0].device_kind)
    defaults = {"flops_per_token": flops, "peak_flops": None if peak is None else peak * mesh.size}
    return MetricsLog(folder, total_steps=config.steps, resumed_from=resumed, **{**defaults, **options})


class _Window:
    """Steps that were taken and not yet looked at; looking waits for them."""

    def __init__(self, log, last_loss: float):
        self.log, self.steps, self.last_loss = log, [], last_loss

    def add(self, number: int, known: dict, rate: float, tokens: int, progress: float) -> None:
        self.steps.append((number, known, rate, tokens, progress))

    def write(self, seconds: float) -> None:
        """One record of all of them: the mean loss a token; raises NonFiniteLossError before anything else happens."""
        if not self.steps:
            return
        fetched = jax.device_get([known for _, known, *_ in self.steps])
        first, (number, _, rate, tokens, progress) = self.steps[0][0], self.steps[-1]
        checked = ("loss", "gradient_norm")  # a gradient that is no number has spoilt the parameters already
        bad = [n for (n, *_), each in zip(self.steps, fetched) if not all(np.isfinite(each[name]) for name in checked)]
        if bad:
            what = ", its ".join(f"{name.replace('_', ' ')} {fetched[bad[0] - first][name]}" for name in checked)
            raise NonFiniteLossError(
                f"step {bad[0]} has a {what} (looked at steps {first} to {number}, {len(bad)} of them bad); the last "
                f"checkpoint is from before: lower the learning rate ({rate:.3g}), "
                "warm up longer, or clip harder, then resume or start anew"
            )
        weights = np.array([each["tokens"] for each in fetched], np.float64)
        losses = np.array([each["loss"] for each in fetched], np.float64)
        self.last_loss = float(losses[-1])
        mean = float((losses * weights).sum() / max(weights.sum(), 1))
        norm = float(fetched[-1]["gradient_norm"])
        record = {"step": number, "loss": mean, "tokens": tokens, "learning_rate": rate, "gradient_norm": norm}
        self.log.step(record | {"seconds": seconds, "progress": progress})
        self.steps.clear()
