"""Pretraining on blocks: their stream, the cross-entropy of their labels, and evaluation on held-out blocks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from duonlp import architectures
from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import check_model, head_of
from duonlp.errors import InputError
from duonlp.runs.preparation import Prepared
from duonlp.runs.pretraining import RunConfig
from duonlp.training.config import PretrainingConfig
from duonlp.training.flops import block_flops
from duonlp.training.log.metrics_log import MetricsLog
from duonlp.training.stream import BlockStream
from duonlp.typing import Batch, BatchSequence
from jaxnlp.training.chips import device_peak_flops
from jaxnlp.training.input import import_grain, read_ahead
from jaxnlp.training.loop import Evaluation, Loop
from jaxnlp.training.mesh import PyTree
from jaxnlp.training.model import LazyModel
from jaxnlp.training.objectives import LossFunction
from jaxnlp.training.step import Step, make_step


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
        learning_curve: Training loss beside the held-out results, a record at each evaluation and at the end; see
            duonlp.training.log.LearningCurve.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    held_out_loss: float | None
    preempted: bool
    params: dict[str, Any]
    learning_curve: list[dict[str, Any]] = field(default_factory=list)


def pretrain(
    model: Any,
    batches: Batches,
    config: PretrainingConfig,
    folder: str | Path | None = None,
    *,
    held_out: BatchSequence | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    loss: LossFunction | None = None,
    step: Step | None = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> Result:
    """Train a language model or an encoder-decoder on blocks, over all devices of all hosts.

    Call it in every process with the same arguments. If the folder has a checkpoint of the same run, training resumes from
    it bit-identically. SIGTERM saves a checkpoint and returns.

    Args:
        model: A jaxnlp model with the causal-lm, masked-lm or seq2seq-lm head, or a LazyModel; it is not changed. With a
            `loss`, the head may be any.
        batches: This host's rows of every step.
        config: Settings of the run.
        folder: Folder for checkpoints, run.json, metrics.jsonl and learning_curve.json. None writes nothing.
        held_out: Batches to evaluate on every ``config.evaluate_every`` steps, from duonlp.data.held_out_batches.
        evaluate: ``(model) -> {name: number}``, further metrics of the evaluations; "loss" and "perplexity" are named
            "evaluate_loss" and "evaluate_perplexity". It is called in process 0 alone, with the
            whole model on one device, which it may only use during the call.
        loss: ``(outputs, batch) -> Terms`` in place of the cross-entropy of the labels: (sum, count) of each term.
        step: Step in place of the model's own on the labels, such as a DistillStep or a ReplacedTokensStep of this `config`.
        mesh: Device mesh; by default ``config.mesh`` over all devices.
        data: What identifies the data in run.json; by default the manifest's counts and hashes, the objective and the seed.
        log: Options of MetricsLog: console, tensorboard, wandb, peak_flops, description.

    Raises:
        InputError: Settings, mesh, data and model are incompatible, or the folder holds another run or is in use by another
            process or thread.
        NonFiniteLossError: The loss or a gradient is not finite; the last checkpoint precedes that step.
        CheckpointError: A checkpoint cannot be read or written.
        MissingExtraError: grain is not installed.
    """
    _check_arguments(batches, config, held_out)
    check_model(batches.objective, model.config, model.head, batches.blocks.block_length)
    import_grain()  # fail before anything is compiled or written
    step = make_step(model, config, mesh, loss=loss) if step is None else step
    stream, evaluation = BlockStream(batches, read_ahead), None
    if config.evaluate_every and held_out is not None:
        evaluation = Evaluation(
            step, model, lambda: _spaced(held_out, config.evaluate_batches), evaluate, unit=stream.unit
        )
    loop = Loop(step, stream, config, config.steps, evaluation=evaluation, always_saves=True)
    description = {
        "model": architectures.hf_config(model.config, model.head),
        "head": model.head,
        **step.plan.objective.describe(),
        "data": dict(stream.describe() if data is None else data),
    }
    generation = getattr(model, "generation_config", None)
    if generation is not None and (generation.extra or generation != default_generation_config(model.config)):
        description["generation_config"] = generation.to_dict()  # of a loaded model; `export` writes it back

    def make_log(resumed: int | None) -> MetricsLog:
        assert folder is not None
        flops = block_flops(model.config, batches.objective, batches.blocks.block_length)
        peak = device_peak_flops(step.mesh.devices.flat[0].device_kind)
        defaults = {"flops_per_token": flops, "peak_flops": None if peak is None else peak * step.mesh.size}
        options: dict[str, Any] = {**defaults, **(log or {})}
        return MetricsLog(folder, total_steps=config.steps, resumed_from=resumed, **options)

    loop.run(folder, description, make_log)
    progress, history = loop.progress, [] if evaluation is None else evaluation.history
    return Result(
        progress["step"], progress["count"], progress["seconds"], progress["loss"],
        history[-1]["loss"] if history else None, loop.preempted, loop.state["params"], loop.curve.records,
    )  # fmt: skip


def _check_arguments(batches: Batches, config: PretrainingConfig, held_out: BatchSequence | None) -> None:
    if batches.batch_size != config.batch_size:
        raise InputError(
            f"batches have {batches.batch_size} rows but config.batch_size is {config.batch_size}; use the same for both"
        )
    if config.seconds is not None and jax.process_count() > 1:
        raise InputError("seconds cannot be enforced on several hosts, whose clocks differ; set steps only")
    if config.evaluate_every and not held_out:
        raise InputError(f"evaluate_every is {config.evaluate_every} but there are no held_out batches; pass some")


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


def evaluate(step: Step, params: PyTree, held_out: BatchSequence, batches: int = 0) -> float:
    """Return the mean loss over all labeled tokens of held-out batches, in nats; its exponential is the perplexity.

    Args:
        step: Step from :func:`make_step`.
        params: Parameters, ``state["params"]``.
        held_out: Batches to evaluate on; InputError if they have no labeled token.
        batches: Number of batches to read, evenly spaced; 0 reads all.
    """
    return step.evaluate(params, _spaced(held_out, batches))["loss"]


def _spaced(batches: BatchSequence, count: int) -> Iterator[Batch]:
    limit = min(count or len(batches), len(batches))
    return (batches[i * len(batches) // limit] for i in range(limit))
