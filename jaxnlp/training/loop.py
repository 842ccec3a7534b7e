"""The loop of all training: optimizer steps over a stream of batches, from the first step or from the last checkpoint."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import jax
import numpy as np

from duonlp.errors import DuonlpError, NonFiniteLossError
from duonlp.training.best import Best
from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.fit_loop import BEST, Scorer, check_evaluation, check_label_counts, evaluation_results
from duonlp.training.log.learning_curve import LearningCurve
from duonlp.training.log.metrics_log import MetricsLog, NullLog
from duonlp.training.schedules import due
from duonlp.training.stream import Position, Read, Stream
from duonlp.typing import Batch, Tokenizer
from duonlp.util.frameworks import check_process
from jaxnlp.pretrained import Params, update
from jaxnlp.training.checkpoints import Checkpoints
from jaxnlp.training.distributed import Preemption, is_main, run_on_main
from jaxnlp.training.model import LazyModel
from jaxnlp.training.objectives import NamedTerms
from jaxnlp.training.step import Metrics, Plan, State, Step


class Progress(TypedDict):
    """Progress of a run, stored with every checkpoint.

    Attributes:
        step: Optimizer steps done.
        count: Tokens or examples seen.
        seconds: Training time, without evaluations unless the run has a time limit.
        loss: Loss of the last logged step.
        position: Position of the next batch in the stream.
        best: State of the Best tracker; None without one.
        learning_curve: State of the LearningCurve.
    """

    step: int
    count: int
    seconds: float
    loss: float
    position: Position
    best: dict[str, Any] | None
    learning_curve: NotRequired[dict[str, Any]]


@dataclass
class Evaluation:
    """Evaluation during training: computes the metrics, logs them, and saves the best model.

    Attributes:
        step: Step that computes the loss.
        model: Model or LazyModel that the parameters belong to.
        batches: Returns the batches to compute the "loss" on, or None.
        evaluate: ``(model) -> {name: number}``, called in process 0 alone; or None.
        on_evaluation: Called in every process with the steps done and the metrics; or None.
        best: Tracker of the best evaluation, whose model is saved with the tokenizer in the folder; or None.
        labels: Further entries of the log records.
        unit: What the run counts: "examples" or "tokens".
        first_candidate: Steps from which an evaluation may be the best.
        history: Metrics of each evaluation, with its "step".
    """

    step: Step
    model: Any
    batches: Callable[[], Iterable[Batch]] | None = None
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None
    best: Best | None = None
    folder: Path | None = None
    tokenizer: Tokenizer | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "examples"
    first_candidate: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def check(self, state: State) -> None:
        """Dry-run the evaluation where it can, so that it fails before the first step; raise InputError if it does."""
        if hasattr(self.evaluate, "dry_run") and self.best is not None:
            scorer, best, params = (
                cast(Scorer, self.evaluate),
                self.best,
                self.step.model_parameters(self.step.effective(state)),
            )
            run_on_main(lambda: check_evaluation(scorer, self._with(params), best, self.batches is not None))

    def run(self, number: int, state: State, log: MetricsLog | NullLog) -> None:
        """Evaluate the state after `number` steps."""
        metrics: dict[str, float] = {}
        if self.batches is not None:
            metrics = self.step.evaluate(self.step.effective(state), self.batches())
            metrics.pop(self.unit, None)  # those of the held-out batches: records have those of the training so far
        # Gathering the model takes part of every process, using it does not.
        params, evaluate = None, self.evaluate
        if evaluate is not None:
            params = self.step.model_parameters(self.step.effective(state))
            reserved = (self.unit, *(("perplexity",) if self.unit == "tokens" and "loss" in metrics else ()))
            metrics = run_on_main(lambda: evaluation_results(metrics, evaluate(self._with(params)), reserved))
        self.history.append({"step": number, **metrics})
        log.evaluation({**self.labels, **self.history[-1]})
        best = self.best if number >= self.first_candidate else None
        if best is not None and best.update(number, metrics) and self.folder is not None:
            folder = self.folder / BEST
            params = self.step.model_parameters(self.step.effective(state)) if params is None else params
            run_on_main(lambda: self._with(params).save_pretrained(folder, self.tokenizer))
        if self.on_evaluation is not None:
            self.on_evaluation(number, metrics)

    def _with(self, params: Params | None) -> Any:
        return with_parameters(self.step, self.model, params)


def with_parameters(step: Step, model: Any, params: Any) -> Any:
    """Return a model or LazyModel as a model with other parameters, from :meth:`Step.model_parameters`."""
    if hasattr(model, "with_parameters"):  # several models that are trained together
        return model.with_parameters(step, params)
    return filled(step.trainable, model, params)


def filled(trainable: Any, model: Any, params: Any) -> Any:
    """Return a model or LazyModel that was prepared as `trainable` with other parameters, as the model itself has them."""
    if not isinstance(model, LazyModel):
        return update(model, params)
    built = trainable.model(params)
    built.generation_config = model.generation_config
    return built


class Loop:
    """The training loop: a step over a stream of batches, with an evaluation or None.

    Attributes:
        total: Optimizer steps of the run.
        always_saves: Whether the last step is saved even if ``config.save_every`` is 0.
        state: Last state.
        progress: How far the run is.
        curve: The learning curve.
        preempted: Whether the run was asked to stop.
    """

    state: State
    progress: Progress
    curve: LearningCurve
    preempted = False

    def __init__(
        self, step: Step, stream: Stream, config: PretrainingConfig | FitConfig, total: int, *,
        evaluation: Evaluation | None = None, always_saves: bool = False,
    ):  # fmt: skip
        self.step, self.stream, self.config, self.total = step, stream, config, total
        self.evaluation, self.always_saves = evaluation, always_saves
        self.best = None if evaluation is None else evaluation.best

    def run(
        self, folder: str | Path | None, description: Mapping[str, Any], make_log: Callable[[int | None], Any]
    ) -> None:
        """Train to the end of the run, or until preempted or out of patience.

        Args:
            folder: Folder of the run; None writes nothing.
            description: What identifies the run in run.json.
            make_log: Step the run resumes from, or None for a new run -> its log; called in process 0 alone.

        Raises:
            InputError: The folder holds another run or is in use, no label counts, or the evaluation fails before the first step.
            NonFiniteLossError: The loss or a gradient is not finite; what is saved precedes that step.
            CheckpointError: A checkpoint cannot be read or written.
        """
        check_process()
        with ExitStack() as stack:
            checkpoints = None if folder is None else Checkpoints(folder, self.config, description)
            checkpoints = checkpoints and stack.enter_context(checkpoints)
            self.curve = LearningCurve(self.stream.unit, Path(folder) if folder is not None and is_main() else None)
            self._restore_or_init(checkpoints)
            resumed = self.progress["step"] if checkpoints is not None and checkpoints.resumes else None
            log = stack.enter_context(NullLog() if folder is None or not is_main() else make_log(resumed))
            preemption = stack.enter_context(Preemption())
            if resumed:
                log.message(f"resuming from step {resumed} ({self.progress['count']:,} {self.stream.unit})")
            reads = self._read()
            if self.evaluation is not None and self.progress["step"] == 0:
                self.evaluation.check(self.state)
            self._train(reads, checkpoints, log, preemption)

    def _read(self) -> Iterable[Read]:
        """Return the remaining batches; raise InputError if those at the start of the run have no label that counts."""
        is_done = self._share() >= 1 or (self.best is not None and self.best.out_of_patience)
        reads = self.stream.read(self.progress["position"], 0 if is_done else self.total - self.progress["step"])
        if self.progress["step"]:
            return reads
        reads, ahead = tee(reads)
        check_label_counts((read.batch for read in ahead), self.step.counts)
        return reads

    def _restore_or_init(self, checkpoints: Checkpoints | None) -> None:
        """Set the state and progress to those of the last checkpoint, or to those before the first step."""
        if checkpoints is not None and checkpoints.latest is not None:
            self.state, progress = checkpoints.restore(self.step.abstract, self.step.shardings)
            self.progress = cast(Progress, progress)
            if self.best is not None and self.progress["best"] is not None:
                self.best.restore(self.progress["best"])
            self.curve.restore(self.progress.get("learning_curve"))
        else:
            self.state, start = self.step.init_state(), self.stream.start
            self.progress = Progress(step=0, count=0, seconds=0.0, loss=math.nan, position=start, best=None)

    def _train(
        self, reads: Iterable[Read], checkpoints: Checkpoints | None, log: MetricsLog | NullLog, preemption: Preemption
    ) -> None:
        config, best, progress, unit = self.config, self.best, self.progress, self.stream.unit
        pending = _PendingSteps(log, progress["loss"], self.step.plan, self.curve)
        on_cpu, previous = self.step.mesh.devices.flat[0].platform == "cpu", None
        clock = time.perf_counter() - progress["seconds"]
        for read in reads:
            # Evaluated at the middle of the step, so that neither the first nor the last step has a rate of 0.
            rate = config.learning_rate_at(min(1.0, self._share() + 0.5 / self.total))
            self.state = self.step.prune(self.state, progress["step"], self.total)
            self.state, metrics, terms = self.step.advance(self.state, self.step.put(read.batch), rate)
            number = progress["step"] + 1
            if on_cpu:
                # One step in flight. Not even one over several devices: collectives can deadlock over the host's threads.
                jax.block_until_ready(previous if self.step.mesh.size == 1 else metrics)
            previous = metrics
            if number == 1 and config.seconds is not None:
                jax.block_until_ready(metrics)
                clock = time.perf_counter()  # the first step, which compiles, is not counted
            progress["step"], progress["position"] = number, read.position
            progress["count"] += read.count
            progress["seconds"] = time.perf_counter() - clock
            record = {"step": number, unit: progress["count"], "learning_rate": rate, "seconds": progress["seconds"]}
            pending.steps.append((record | {"progress": self._share()}, metrics, terms))
            last, self.preempted = self._share() >= 1, preemption.requested(number)
            events = config.evaluate_every, config.save_every
            evaluates, saves = (fit_event_due(every, number, read.ends_epoch, last) for every in events)
            saves = saves or self.preempted or (last and self.always_saves)
            if due(number, config.log_every, number if last else None) or evaluates or saves or last:
                progress["loss"] = pending.write()  # raises before a non-finite state is evaluated or saved
            held_out, results = None, None
            if self.evaluation is not None and evaluates:
                began = time.perf_counter()
                try:
                    self.evaluation.run(number, self.state, log)
                except DuonlpError:
                    self._save(checkpoints)  # so that the training is not lost with the evaluation
                    raise
                results = self.evaluation.history[-1]
                held_out = results.get("loss")
                clock += time.perf_counter() - began if config.seconds is None else 0.0
            if read.ends_epoch or last or results is not None:
                pending.add_terms()
                epoch = self.stream.epoch_before(read.position)
                self.curve.record(number, epoch, progress["count"], rate, results, read.ends_epoch)
            stops_early = best is not None and best.out_of_patience
            if saves or stops_early:
                self._save(checkpoints, held_out)
            if best is not None and stops_early:
                log.message(
                    f"stopped early: {best.name} has not improved on {best.value} (step {best.step}) in {best.since} evaluations"
                )
            if self.preempted:
                log.message(f"preempted: {'saved' if checkpoints else 'stopped'} after step {number}")
            if last or stops_early or self.preempted:
                break
        self.preempted = self.preempted and progress["step"] < self.total

    def _save(self, checkpoints: Checkpoints | None, held_out_loss: float | None = None) -> None:
        """Save the state and the progress, where the run has a folder."""
        self.progress["best"] = None if self.best is None else self.best.to_dict()
        self.progress["learning_curve"] = self.curve.state()
        if checkpoints is not None:
            checkpoints.save(self.progress["step"], self.state, self.progress, held_out_loss)

    def _share(self) -> float:
        """Return the share of the run that is done, by steps or by time, whichever is greater."""
        by_time = 0.0 if self.config.seconds is None else self.progress["seconds"] / self.config.seconds
        return min(1.0, max(self.progress["step"] / self.total, by_time))


class _PendingSteps:
    """Metrics of steps that may still be running; fetching them waits for the devices, so it is done in groups.

    last_loss: loss of the last step before; it is replaced as steps are written.
    curve: Gets the terms of the steps.
    """

    def __init__(self, log: MetricsLog | NullLog, last_loss: float, plan: Plan, curve: LearningCurve):
        self.log, self.last_loss, self.plan, self.curve = log, last_loss, plan, curve
        # What is logged of a step, its metrics and its terms.
        self.steps: list[tuple[dict[str, float], Metrics, NamedTerms]] = []
        self.in_curve = 0  # how many of the steps are in the learning curve

    def add_terms(self) -> None:
        """Fetch the steps that are not in the learning curve yet, and add their terms to it.

        Raises:
            NonFiniteLossError: A loss or a gradient is not finite; the curve is unchanged.
        """
        records = [record for record, _, _ in self.steps[self.in_curve :]]
        fetched = jax.device_get([(metrics, terms) for _, metrics, terms in self.steps[self.in_curve :]])
        for record, (metrics, _) in zip(records, fetched):
            # A non-finite gradient has already corrupted the parameters, even if the loss was finite.
            if not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"]):
                raise NonFiniteLossError(
                    f"step {record['step']} has a loss of {metrics['loss']} and a gradient norm of "
                    f"{metrics['gradient_norm']}; what is saved precedes it: lower the learning rate "
                    f"({record['learning_rate']:.3g}), warm up longer or clip harder, then resume or start over"
                )
        for _, terms in fetched:
            sums = {
                n: (float(factor * mean) * float(count), float(count)) for n, (mean, count, factor) in terms.items()
            }
            self.curve.add(sums)
        self.steps[self.in_curve :] = [(record, *values) for record, values in zip(records, fetched)]
        self.in_curve = len(self.steps)

    def write(self) -> float:
        """Log the pending steps as one record, whose losses weigh every label the same; return the last step's loss.

        Raises:
            NonFiniteLossError: A loss or a gradient is not finite; nothing is logged.
        """
        if not self.steps:
            return self.last_loss
        self.add_terms()
        terms = [terms for _, _, terms in self.steps]
        record, metrics, _ = self.steps[-1]
        last = {name: float(value) for name, value in metrics.items()}
        self.last_loss = last["loss"]
        means = last if len(terms) == 1 else last | self.plan.mean_metrics(terms)
        means.pop("tokens", None)
        self.log.step(record | means)
        self.steps.clear()
        self.in_curve = 0
        return self.last_loss
