"""Knowledge distillation: train a student on labels and a teacher, in one step over plain pytrees."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from duonlp import architectures
from duonlp.config import TransformerConfig
from duonlp.distillation.pair import check_pair, init_projections
from duonlp.distillation.settings import Distillation
from duonlp.distillation.teacher_logits import NAME as TEACHER_LOGITS
from duonlp.distillation.teacher_logits import reorder_for_student
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.inputs import TEACHER, check_inputs, main_input, model_inputs
from duonlp.seq2seq import shift_right
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import epoch_batches
from duonlp.training.result import FitResult
from duonlp.typing import Batch, BatchStream
from jaxnlp import ops
from jaxnlp.distillation import losses as distillation_losses
from jaxnlp.pretrained import Params, merge, split
from jaxnlp.training.fit import train
from jaxnlp.training.fit_step import FitStep, NamedTerms, Plan, loss_terms
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.step import Metrics, State

PROJECTIONS = "projections"
"""Key of the projections among the trained parameters; all other parameters are the student's."""

STUDENT_LOSS, DISTILLATION_LOSS = "student_loss", "distillation_loss"
"""Logged names of the student's own loss on the labels and of the loss on the teacher's logits."""


@dataclass(frozen=True)
class DistillPlan(Plan):
    """Everything except arrays that a distillation step depends on; hashable, so a valid static argument of jit.

    Attributes:
        distillation: Settings of the distillation.
        teacher_graphdef: Structure of the teacher; None without a teacher, if the batches have its logits.
        teacher_config: Configuration of the teacher, or None.
        label_order: Index of each of the student's labels among the teacher's (duonlp.distillation.check_pair), or None.
    """

    distillation: Distillation = field(default_factory=Distillation)
    teacher_graphdef: nnx.GraphDef | None = None
    teacher_config: TransformerConfig | None = None
    label_order: tuple[int, ...] | None = None

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the student's inputs and labels in a batch."""
        inputs = model_inputs(self.model_config, batch)
        return inputs | {name: batch[name] for name in self.labels if name in batch}

    def terms(self, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None) -> NamedTerms:
        """Return the parts of the loss, the student's own first.

        Args:
            params: Parameters of the student, and the projections.
            frozen: Parameters of the teacher.
            batch: Arrays [B, ...].
            key: PRNG key of dropout; None for no dropout.
        """
        d, inputs = self.distillation, dict(batch)
        if HEADS[self.head].shifts_labels and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shift_right(ops, inputs["labels"], self.model_config)
        flags = {"output_hidden_states": d.needs_hidden_states, "output_attentions": d.needs_attentions}
        student: Any = merge(self.graphdef, {name: value for name, value in params.items() if name != PROJECTIONS})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        outputs = student(**model_inputs(self.model_config, inputs), **flags, rngs=rngs)
        teacher, teacher_outputs = self._run_teacher(frozen, inputs, flags)
        student_terms = {}
        if d.alpha:
            terms = loss_terms(self.head, self.model_config, outputs, inputs, self.config.label_smoothing)
            student_terms = {f"{STUDENT_LOSS}{f'_{i + 1}' * (i > 0)}": (*term, d.alpha) for i, term in enumerate(terms)}
        return student_terms | distillation_losses.teacher_terms(
            d, student, teacher, outputs, teacher_outputs, inputs, projections=params.get(PROJECTIONS),
            label_order=self.label_order, sample_weight=inputs.get("sample_weight"),
        )  # fmt: skip

    def _run_teacher(self, frozen: Params, inputs: Batch, flags: Mapping[str, bool]) -> tuple[Any, Mapping[str, Any]]:
        """Return the teacher and its outputs; None and the logits of the batch if these suffice."""
        logits = inputs.get(TEACHER_LOGITS)
        if logits is not None and not self.distillation.losses:
            return None, {"logits": logits}
        assert self.teacher_graphdef is not None and self.teacher_config is not None
        teacher: Any = merge(self.teacher_graphdef, frozen)
        return teacher, teacher(**model_inputs(self.teacher_config, inputs, as_teacher=True), **flags)

    def parts(self, means: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
        """Return the metrics to log beside the loss, none of them multiplied by its weight in the loss.

        Args:
            means: sum / count of each of :meth:`terms`.
            factors: Factor of each of :meth:`terms`.

        Returns:
            student_loss, distillation_loss (T^2 * KL), and the further losses by name.
        """
        d, parts = self.distillation, {}
        for name, mean in means.items():
            if name in d.loss_names:
                parts[name] = mean
                continue
            is_own = name.startswith(STUDENT_LOSS)
            part, share = (STUDENT_LOSS, d.alpha) if is_own else (DISTILLATION_LOSS, 1 - d.alpha)
            parts[part] = parts.get(part, 0.0) + factors[name] / share * mean
        return parts


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def distill_step(
    plan: DistillPlan, state: State, teacher: Params, batch: Batch, rate: Any, seed: Any
) -> tuple[State, Metrics]:
    """Run one optimizer step of a student: a pure function over plain pytrees, under any sharding of its arguments.

    Args:
        plan: Plan from :func:`distill_plan`, the only static argument.
        state: State from ``plan.fresh(params)``, see :data:`jaxnlp.training.step.State`; it is donated.
        teacher: Parameters of the teacher (``jaxnlp.split(model)[1]``), which are not changed; {} if the batches have
            ``teacher_logits`` and nothing else is compared.
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
        student: A jaxnlp model; it is not changed.
        teacher: A jaxnlp model with the same head, or None if the batches have its logits; it is not changed.
        distillation: Settings of the distillation; the defaults if None.
        config: Settings of the run; the defaults if None.
        mesh: Mesh over which gradients are sharded like the parameters; None for no sharding constraints.
        student_tokenizer: Tokenizer of the student, see duonlp.distillation.check_pair.
        teacher_tokenizer: Tokenizer of the teacher.
        own_inputs: Whether batches hold separate inputs for the teacher (``teacher_input_ids``).

    Raises:
        InputError: Student and teacher are incompatible, or there is no teacher and ``distillation.losses`` needs one.
    """
    distillation, config = distillation or Distillation(), config or FitConfig()
    label_order, projections = None, {}
    if teacher is not None:
        label_order = check_pair(
            student.config, teacher.config, student_tokenizer, teacher_tokenizer, distillation=distillation,
            heads=(student.head, teacher.head), own_inputs=own_inputs,
        )  # fmt: skip
        projections = init_projections(distillation, student.config, teacher.config, config.seed)
    elif distillation.losses:
        raise InputError(
            f"cannot compute {', '.join(distillation.loss_names)} without a teacher; pass it, or leave these losses out"
        )
    graphdef, params = split(student)
    if projections:
        params = {**params, PROJECTIONS: jax.tree.map(jnp.asarray, projections)}
    teacher_graphdef, frozen = (None, {}) if teacher is None else split(teacher)
    plan = DistillPlan(
        graphdef, student.config, student.head, config, mesh, None, (), distillation, teacher_graphdef,
        None if teacher is None else teacher.config, None if label_order is None else tuple(map(int, label_order)),
    )  # fmt: skip
    return plan, params, frozen


class DistillStep(FitStep):
    """The step of :func:`distill` over a mesh: a FitStep for a student and its teacher.

    Args:
        student: Model to train; it is not changed.
        teacher: Its teacher, or None if the batches have its logits.
        config: Settings of the run.
        distillation: Settings of the distillation.
        mesh: Mesh to run on.
        checked: Further arguments of :func:`distill_plan`.

    Raises:
        InputError: As :func:`distill_plan`, or the student's parameters are not float32.
    """

    def __init__(
        self, student: Any, teacher: Any, config: FitConfig, distillation: Distillation, mesh: Mesh, **checked: Any
    ):
        self._check(student, has_loss=distillation.alpha == 0)
        self.mesh, self.seed = mesh, config.seed
        self.teacher_config: TransformerConfig | None = None if teacher is None else teacher.config
        settings = self.program_settings(config)
        self._compile(*distill_plan(student, teacher, distillation, settings, mesh=mesh, **checked))

    def model_parameters(self, params: Params) -> Params:
        """Return the student's parameters among the trained ones, which include the projections."""
        return {name: value for name, value in params.items() if name != PROJECTIONS}

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put a batch on the devices, like FitStep.put.

        Raises:
            InputError: As FitStep.put; or there is neither a teacher nor its logits in the batch.
        """
        if self.teacher_config is None and TEACHER_LOGITS not in batch:
            raise InputError(
                f"there is neither a teacher nor {TEACHER_LOGITS} in the batch, which has {', '.join(batch)}; pass a teacher, or "
                "batches from cached_teacher_logits"
            )
        if self.teacher_config is not None and TEACHER + main_input(self.teacher_config) in batch:
            config = self.teacher_config
            check_inputs(config, self._plan.head, model_inputs(config, batch, as_teacher=True))
        return super().put(batch)


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
    """Train a student on labels and on a teacher's outputs, over all devices of this process.

    It does all that ``jaxnlp.training.fit`` does: checkpoints, the best model, early stopping, and logs with every part of
    the loss. The teacher runs without dropout and gets no gradient.

    Args:
        student: Model with the teacher's head, from ``init_student`` or any checkpoint; it is not changed.
        teacher: Model; None if the batches have its logits and ``distillation.losses`` is empty.
        batches: As for fit. With ``teacher_logits`` (cached_teacher_logits) the teacher only runs for
            ``distillation.losses``; with ``teacher_input_ids``, ... it reads these.
        config: Settings of the run; the defaults of FitConfig if None.
        distillation: Settings of the distillation; the defaults of Distillation if None.
        folder: Folder of the run, as for fit.
        validation: Validation batches, as for fit.
        evaluate: ``(model) -> {name: number}``, as for fit.
        on_evaluation: Called after each evaluation, as for fit.
        tokenizer: Tokenizer of the student, saved with the best model.
        teacher_tokenizer: Tokenizer of the teacher. It must have the same vocabulary, unless batches hold separate inputs
            for the teacher.
        mesh: Device mesh; by default all devices along "data".
        data: What identifies the data in run.json, as for fit.
        log: Options of MetricsLog, as for fit.

    Returns:
        A FitResult, whose model is the student.

    Raises:
        InputError: As for fit, or student and teacher are incompatible.
        NonFiniteLossError: As for fit.
        CheckpointError: As for fit.
    """
    config, distillation = config or FitConfig(), distillation or Distillation()
    if teacher is None:
        batches, validation = (reorder_for_student(stream, student.config) for stream in (batches, validation))
    first = next(iter(epoch_batches(batches)), {})
    step = DistillStep(
        student, teacher, config, distillation, make_mesh() if mesh is None else mesh, student_tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer, own_inputs=TEACHER + main_input(student.config) in first,
    )  # fmt: skip
    description = {
        "teacher": None if teacher is None else architectures.hf_config(teacher.config, teacher.head),
        "distillation": distillation.to_dict(),
    }
    return train(
        step, student, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, description=description, log={"description": "distilling", **(log or {})},
    )  # fmt: skip
