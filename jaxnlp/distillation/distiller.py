"""Knowledge distillation: train a student on labels and a teacher, in one step over plain pytrees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from duonlp import architectures, heads
from duonlp.distillation.pair import check_block_labels, check_pair, init_projections
from duonlp.distillation.settings import Distillation
from duonlp.distillation.teacher_logits import NAME as TEACHER_LOGITS
from duonlp.distillation.teacher_logits import reorder_for_student
from duonlp.distillation.terms import distillation_counts
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.inputs import TEACHER, check_inputs, main_input, model_inputs, shift_right
from duonlp.labels import WEIGHTS
from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import epoch_batches
from duonlp.training.result import FitResult
from duonlp.typing import Batch, BatchStream
from jaxnlp import losses, ops
from jaxnlp.distillation import losses as distillation_losses
from jaxnlp.pretrained import Params
from jaxnlp.training.fit import train
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.model import Trainable, make_trainable, parameter_reader
from jaxnlp.training.objectives import NamedTerms, Objective
from jaxnlp.training.step import Metrics, Plan, State, Step, check_can_learn, make_plan

PROJECTIONS = "projections"
"""Key of the projections among the trained parameters; all other parameters are the student's."""

STUDENT_LOSS, DISTILLATION_LOSS = "student_loss", "distillation_loss"
"""Logged names of the student's own loss on the labels and of the loss on the teacher's logits."""


@dataclass(frozen=True)
class DistillationLoss(Objective):
    """The student's own loss on the labels, and its distance from a teacher.

    Attributes:
        distillation: Settings of the distillation.
        label_smoothing: Label smoothing of the student's own loss.
        teacher: The prepared teacher, whose parameters are ``frozen``; None if the batches have its logits.
        label_order: Index of each of the student's labels among the teacher's (duonlp.distillation.check_pair), or None.
    """

    distillation: Distillation
    label_smoothing: float = 0.0
    teacher: Trainable | None = None
    label_order: tuple[int, ...] | None = None

    def terms(
        self, model: Trainable, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return the terms of the loss, the student's own first; ``params`` may have projections beside the student's."""
        d, teacher = self.distillation, self.teacher
        inputs = heads.standard_batch(ops, model.head, model.config, batch)
        if HEADS[model.head].shifts_labels and "decoder_input_ids" not in inputs:  # the student's for the teacher too
            inputs["decoder_input_ids"] = shift_right(ops, inputs["labels"], model.config)
        outputs, terms = model.outputs(params, inputs, key), {}
        if d.alpha:
            own = heads.loss_terms(ops, losses, model.head, model.config, outputs, inputs, self.label_smoothing)
            terms = {f"{STUDENT_LOSS}{f'_{i + 1}' * (i > 0)}": (*t, d.alpha) for i, t in enumerate(own.values())}
        if teacher is None or (TEACHER_LOGITS in inputs and not d.losses):
            teacher, teacher_outputs = None, {"logits": inputs[TEACHER_LOGITS]}
        else:
            teacher_outputs = teacher.outputs(frozen, inputs, as_teacher=True)
        mine = model.model(model.unstack(params))
        theirs = None if teacher is None else teacher.model(teacher.unstack(frozen))
        return terms | distillation_losses.teacher_terms(
            d, mine, theirs, outputs, teacher_outputs, inputs, projections=params.get(PROJECTIONS),
            label_order=self.label_order, sample_weight=inputs.get(WEIGHTS),
        )  # fmt: skip

    def metrics(self, terms: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return student_loss, distillation_loss (T^2 * KL), and the further losses by name, without their weights."""
        d, metrics = self.distillation, {}
        for name, (mean, _, factor) in terms.items():
            if name in d.loss_names:
                metrics[name] = mean
                continue
            is_own = name.startswith(STUDENT_LOSS)
            part, share = (STUDENT_LOSS, d.alpha) if is_own else (DISTILLATION_LOSS, 1 - d.alpha)
            metrics[part] = metrics.get(part, 0.0) + factor / share * mean
        return metrics

    def describe(self) -> dict[str, Any]:
        """Return the teacher and the settings of the distillation."""
        teacher = self.teacher
        return {
            "teacher": None if teacher is None else architectures.hf_config(teacher.config, teacher.head),
            "distillation": self.distillation.to_dict(),
        }

    def check(self, model: Trainable, batch: Batch) -> None:
        """Raise InputError if a model does not take its inputs, or there is neither a teacher nor its logits."""
        if self.teacher is None and TEACHER_LOGITS not in batch:
            raise InputError(
                f"there is neither a teacher nor {TEACHER_LOGITS} in the batch, which has {', '.join(batch)}; pass a teacher, or "
                "batches from cached_teacher_logits"
            )
        if self.teacher is not None and TEACHER + main_input(self.teacher.config) in batch:
            config = self.teacher.config
            check_inputs(config, model.head, model_inputs(config, batch, as_teacher=True))
        super().check(model, batch)

    def counts(self, model: Trainable, batch: Batch) -> bool:
        """Return whether a label counts, or a distribution that is compared."""
        return distillation_counts(self.distillation, model.head, model.config, batch)


DistillPlan = Plan
"""Everything except arrays that a distillation step depends on; hashable, so a valid static argument of jit."""


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def distill_step(
    plan: DistillPlan, state: State, teacher: Params, batch: Batch, rate: Any, seed: Any
) -> tuple[State, Metrics]:
    """Run one optimizer step of a student: a pure function over plain pytrees, under any sharding of its arguments.

    Args:
        plan: Plan from :func:`distill_plan`, the only static argument.
        state: State from ``plan.fresh(params)``, see :data:`jaxnlp.training.step.State`; it is donated.
        teacher: Parameters of the teacher from the same function, which are not changed; {} without a teacher.
        batch: Inputs and labels of the student, [B, ...] each; ``teacher_input_ids``, ... if the teacher has other inputs;
            optionally ``sample_weight`` [B].
        rate: Learning rate, float32 [].
        seed: Seed of dropout, uint32 []. The masks depend on it and on the step number.

    Returns:
        The new state, and the metrics: "loss", "gradient_norm", and the parts of the loss, "student_loss",
        "distillation_loss", "hidden_mse", ...
    """
    return plan.step(state, teacher, batch, rate, seed)


def distill_plan(
    student: Any, teacher: Any = None, distillation: Distillation | None = None, config: FitConfig | None = None, *,
    mesh: Mesh | None = None, student_tokenizer: Any = None, teacher_tokenizer: Any = None, own_inputs: bool = False,
) -> tuple[DistillPlan, Params, Params]:  # fmt: skip
    """Return the arguments of distill_step: the plan, the initial parameters of the student, and the teacher's parameters.

    The student's parameters include its projections.

    Args:
        student: A jaxnlp model or LazyModel; it is not changed.
        teacher: A jaxnlp model or LazyModel with the same head, or None if the batches have its logits; it is not changed.
        distillation: Settings of the distillation; the defaults if None.
        config: Settings of the run; the defaults if None.
        mesh: Mesh of the parameters; None for no sharding constraints.
        student_tokenizer: See duonlp.distillation.check_pair, like ``teacher_tokenizer``.
        teacher_tokenizer: Tokenizer of the teacher.
        own_inputs: Whether batches hold separate inputs for the teacher (``teacher_input_ids``).

    Raises:
        InputError: Student and teacher are incompatible, there is no teacher and ``distillation.losses`` needs one, or the
            settings prune.
    """
    if config is not None and config.pruning is not None:
        raise InputError("distill_step alone computes no masks of pruning; use distill, whose loop does")
    checked = student_tokenizer, teacher_tokenizer, own_inputs
    plan, projections = _plan(student, teacher, distillation or Distillation(), config or FitConfig(), mesh, *checked)
    params = plan.trainable.parameters(parameter_reader(student)) | jax.tree.map(jnp.asarray, projections)
    prepared = cast(DistillationLoss, plan.objective).teacher
    return plan, params, {} if prepared is None else prepared.parameters(parameter_reader(teacher))


def _plan(
    student: Any, teacher: Any, d: Distillation, config: FitConfig | PretrainingConfig, mesh: Mesh | None,
    student_tokenizer: Any = None, teacher_tokenizer: Any = None, own_inputs: bool = False,
) -> tuple[DistillPlan, Params]:  # fmt: skip
    """Return the plan of :func:`distill_plan`, and the projections: {} or {PROJECTIONS: ...}."""
    order, projections, prepared = None, {}, None
    options = {"output_hidden_states": d.needs_hidden_states, "output_attentions": d.needs_attentions}
    if teacher is not None:
        order = check_pair(
            student.config, teacher.config, student_tokenizer, teacher_tokenizer, distillation=d,
            heads=(student.head, teacher.head), own_inputs=own_inputs,
        )  # fmt: skip
        projections = init_projections(d, student.config, teacher.config, config.seed)
        teacher_mesh = mesh if config.parallelism == "jit" else None
        prepared = make_trainable(teacher, scan=config.scan, mesh=teacher_mesh, options=options, trains=False)
    elif d.losses:
        names = ", ".join(d.loss_names)
        raise InputError(f"cannot compute {names} without a teacher; pass it, or leave these losses out")
    order = None if order is None else tuple(map(int, order))
    objective = DistillationLoss(d, getattr(config, "label_smoothing", 0.0), prepared, order)
    extra = {PROJECTIONS: projections} if projections else {}
    return make_plan(student, objective, config, mesh, options=options), extra


class DistillStep(Step):
    """The step of :func:`distill` over a mesh: that of a student and its teacher, which is sharded beside it.

    Args:
        student: Model to train, or a LazyModel; it is not changed.
        teacher: Its teacher, or None if the batches have its logits.
        config: Settings of the run; those of pretraining for ``pretrain(..., step=DistillStep(...))`` on blocks.
        distillation: Settings of the distillation.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.
        checked: Further arguments of :func:`distill_plan`.

    Raises:
        InputError: As :func:`distill_plan`, or the student's parameters are not float32.
    """

    def __init__(
        self, student: Any, teacher: Any, config: FitConfig | PretrainingConfig, distillation: Distillation,
        mesh: Mesh | None = None, **checked: Any,
    ):  # fmt: skip
        check_can_learn(student, needs_labels=distillation.alpha > 0)
        if isinstance(config, PretrainingConfig):
            check_block_labels(student.head)
        mesh = make_mesh(config.mesh) if mesh is None else mesh
        plan, projections = _plan(student, teacher, distillation, config, mesh, **checked)
        prepared = cast(DistillationLoss, plan.objective).teacher
        frozen = None if prepared is None else (prepared, teacher)
        super().__init__(
            plan, student, mesh, config.seed, extra=projections, teacher=frozen,
            own_rows=isinstance(config, PretrainingConfig),
        )  # fmt: skip


def distill(
    student: Any,
    teacher: Any,
    batches: BatchStream,
    config: FitConfig | None = None,
    distillation: Distillation | None = None,
    folder: str | Path | None = None,
    *,
    validation: BatchStream | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a student on labels and on a teacher's outputs, over all devices of all hosts.

    It does all that ``jaxnlp.training.fit`` does: checkpoints, the best model, early stopping, and logs with every part of
    the loss. The teacher runs without dropout and gets no gradient.

    Args:
        student: Model or LazyModel with the teacher's head, from ``init_student`` or any checkpoint; it is not changed.
        teacher: Model or LazyModel, sharded over the mesh like the student; None if the batches have its logits and
            ``distillation.losses`` is empty.
        batches: As for fit. With ``teacher_logits`` (cached_teacher_logits) the teacher only runs for
            ``distillation.losses``; with ``teacher_input_ids``, ... it reads these.
        config: Settings of the run; the defaults of FitConfig if None.
        distillation: Settings of the distillation; the defaults of Distillation if None.
        folder: As for fit, like the arguments that are not listed here.
        tokenizer: Tokenizer of the student, saved with the best model.
        teacher_tokenizer: Tokenizer of the teacher. It must have the same vocabulary, unless batches hold separate inputs
            for the teacher.

    Returns:
        A FitResult, whose model is the student.

    Raises:
        InputError: Student and teacher are incompatible; otherwise as for fit.
    """
    config, distillation = config or FitConfig(), distillation or Distillation()
    if teacher is None:
        batches, validation = (reorder_for_student(stream, student.config) for stream in (batches, validation))
    first = next(iter(epoch_batches(batches)), {})
    step = DistillStep(
        student, teacher, config, distillation, mesh, student_tokenizer=tokenizer, teacher_tokenizer=teacher_tokenizer,
        own_inputs=TEACHER + main_input(student.config) in first,
    )  # fmt: skip
    return train(
        step, student, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log={"description": "distilling", **(log or {})},
    )  # fmt: skip
