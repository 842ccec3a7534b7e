"""Knowledge distillation: a student learns from the labels and from a teacher, in one step over plain pytrees."""

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
from duonlp.inputs import TEACHER, check_inputs, model_inputs
from duonlp.seq2seq import shift_right
from duonlp.training.fit_config import FitConfig
from duonlp.training.generated import epoch_batches
from duonlp.training.result import FitResult
from jaxnlp import ops
from jaxnlp.distillation import losses as distillation_losses
from jaxnlp.pretrained import merge, split
from jaxnlp.training.fit import train
from jaxnlp.training.fit_step import FitStep, NamedTerms, Plan, loss_terms
from jaxnlp.training.mesh import make_mesh

PROJECTIONS = "projections"
"""Where, among the trained parameters, those are that are not the student's."""

STUDENT_LOSS, DISTILLATION_LOSS = "student_loss", "distillation_loss"
"""The student's own loss on the labels, and the logits', among the parts of the loss."""


@dataclass(frozen=True)
class DistillPlan(Plan):
    """All that a step of distillation depends on but arrays; hashable, a static argument of jit.

    teacher_graphdef, teacher_config, teacher_head: None without a teacher, whose logits are in the batches.
    label_order: where the student's labels are among the teacher's (duonlp.distillation.check_pair).
    """

    distillation: Distillation = field(default_factory=Distillation)
    teacher_graphdef: nnx.GraphDef | None = None
    teacher_config: TransformerConfig | None = None
    label_order: tuple[int, ...] | None = None

    def inputs(self, batch: Mapping) -> dict:
        """What the student reads, and its labels."""
        inputs = model_inputs(self.model_config, batch)
        return inputs | {name: batch[name] for name in self.labels if name in batch}

    def terms(self, params, frozen, batch, key=None) -> NamedTerms:
        """The parts of the loss, the student's own one first. frozen: the teacher's parameters."""
        d, inputs = self.distillation, dict(batch)
        if self.head == "seq2seq-lm" and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shift_right(ops, inputs["labels"], self.model_config)
        flags = {"output_hidden_states": d.needs_hidden_states, "output_attentions": d.needs_attentions}
        student = merge(self.graphdef, {name: value for name, value in params.items() if name != PROJECTIONS})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        outputs = student(**model_inputs(self.model_config, inputs), **flags, rngs=rngs)
        teacher, theirs = None, {"logits": inputs.get(TEACHER_LOGITS)}
        if theirs["logits"] is None or d.losses:
            teacher = merge(self.teacher_graphdef, frozen)
            theirs = teacher(**model_inputs(self.teacher_config, inputs, as_teacher=True), **flags)
        own = {}
        if d.alpha:
            found = loss_terms(self.head, self.model_config, outputs, inputs, self.config.label_smoothing)
            own = {f"{STUDENT_LOSS}{f'_{i + 1}' * (i > 0)}": (*term, d.alpha) for i, term in enumerate(found)}
        return own | distillation_losses.terms(
            d, student, teacher, outputs, theirs, inputs, projections=params.get(PROJECTIONS), label_order=self.label_order,
            sample_weight=inputs.get("sample_weight"),
        )  # fmt: skip

    def parts(self, means, factors):
        """student_loss, distillation_loss (T^2 * KL), and the further losses by their names, none of them weighted."""
        d, found = self.distillation, {}
        for name, mean in means.items():
            if name in d.loss_names:
                found[name] = mean
                continue
            own = name.startswith(STUDENT_LOSS)
            kind, share = (STUDENT_LOSS, d.alpha) if own else (DISTILLATION_LOSS, 1 - d.alpha)
            found[kind] = found.get(kind, 0.0) + factors[name] / share * mean
        return found


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def distill_step(plan: DistillPlan, state, teacher, batch, rate, seed):
    """One optimizer step of a student: a pure function over plain pytrees, under whatever sharding they come with.

    Args:
        plan: of :func:`distill_plan`; the only thing that is no array.
        state: ``{"params", "moments", "step"}``, of ``plan.fresh(params)``; it is donated.
        teacher: the teacher's parameters (``jaxnlp.split(model)[1]``), which are not changed; {} where the batches have
            ``teacher_logits`` and nothing but these is compared.
        batch: the student's inputs and labels, [B, ...] each; ``teacher_input_ids``, ... where the teacher reads others;
            perhaps ``sample_weight`` [B].
        rate: the learning rate, float32 [].
        seed: of dropout, uint32 []. The masks follow from it and from the step's number.

    Returns:
        the new state, and what is known: "loss", "gradient_norm", and the parts of the loss: "student_loss",
        "distillation_loss", "hidden_mse", ...
    """
    return plan.step(state, teacher, batch, rate, seed)


def distill_plan(
    student, teacher=None, distillation: Distillation | None = None, config: FitConfig | None = None, *,
    mesh: Mesh | None = None, student_tokenizer=None, teacher_tokenizer=None, own_inputs: bool = False,
) -> tuple[DistillPlan, dict, dict]:  # fmt: skip
    """What distill_step is called with: the plan, the first parameters of the student and its projections, the teacher's.

    Args:
        student, teacher: models of this package of the same head; neither is changed.
        mesh: with one, gradients are kept where the parameters live.
        student_tokenizer, teacher_tokenizer, own_inputs: as duonlp.distillation.check_pair has them.

    Raises:
        InputError: the two do not go together, or there is no teacher and something inside it is to be compared.
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
            f"{', '.join(distillation.loss_names)} look inside the teacher, and there is none; give it, or leave them out"
        )
    graphdef, params = split(student)
    if projections:
        params = {**params, PROJECTIONS: jax.tree.map(jnp.asarray, projections)}
    structure, frozen = (None, {}) if teacher is None else split(teacher)
    plan = DistillPlan(
        graphdef, student.config, student.head, config, mesh, None, (), distillation, structure,
        None if teacher is None else teacher.config, None if label_order is None else tuple(map(int, label_order)),
    )  # fmt: skip
    return plan, params, frozen


class DistillStep(FitStep):
    """The step of :func:`distill`, over a mesh: as FitStep, for a student and its teacher.

    Raises:
        InputError: as :func:`distill_plan`, or the student's parameters are not float32.
    """

    def __init__(self, student, teacher, config: FitConfig, distillation: Distillation, mesh: Mesh, **checked):
        self._check(student, has_loss=distillation.alpha == 0)
        self.mesh, self.seed = mesh, config.seed
        self.has_teacher = teacher is not None
        self._compile(*distill_plan(student, teacher, distillation, self.program_settings(config), mesh=mesh, **checked))

    def model_parameters(self, params):
        return {name: value for name, value in params.items() if name != PROJECTIONS}

    def put(self, batch):
        """As FitStep.put. Raises InputError where there is neither a teacher nor its logits."""
        if not self.has_teacher and TEACHER_LOGITS not in batch:
            raise InputError(
                f"there is no teacher, and a batch has {', '.join(batch)} but no {TEACHER_LOGITS}; give a teacher, or "
                "batches of cached_teacher_logits"
            )
        if self.has_teacher and f"{TEACHER}input_ids" in batch:
            config = self._plan.teacher_config
            check_inputs(config, self._plan.head, model_inputs(config, batch, as_teacher=True))
        return super().put(batch)


def distill(
    student,
    teacher,
    batches,
    config: FitConfig | None = None,
    distillation: Distillation | None = None,
    folder: str | Path | None = None,
    *,
    validation=None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer=None,
    teacher_tokenizer=None,
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a student on labels and on what its teacher says, over all devices of this process.

    All that ``jaxnlp.training.fit`` does: checkpoints, the best model, early stopping, logs with every part of the loss. The
    teacher is called without dropout and gets no gradient.

    Args:
        student: a model with the teacher's head, such as ``init_student`` makes, or any other checkpoint's.
        teacher: a model; None where the batches have its logits and nothing inside it is compared.
        batches: as fit takes them. With ``teacher_logits`` (cached_teacher_logits) the teacher is called only for what is
            inside it; with ``teacher_input_ids``, ... it reads these.
        config: how it is trained. distillation: what it learns from the teacher.
        tokenizer, teacher_tokenizer: they have to be alike. The first is saved with the best model.
        folder, validation, evaluate, on_evaluation, mesh, data, log: as fit has them.

    Returns:
        A FitResult, whose model is the student.

    Raises:
        InputError: as fit; or student and teacher do not go together.
        NonFiniteLossError, CheckpointError: as fit.
    """
    config, distillation = config or FitConfig(), distillation or Distillation()
    if teacher is None:
        batches, validation = (reorder_for_student(each, student.config) for each in (batches, validation))
    first = next(iter(epoch_batches(batches)), {})
    step = DistillStep(
        student, teacher, config, distillation, make_mesh() if mesh is None else mesh, student_tokenizer=tokenizer,
        teacher_tokenizer=teacher_tokenizer, own_inputs=f"{TEACHER}input_ids" in first,
    )  # fmt: skip
    description = {
        "teacher": None if teacher is None else architectures.hf_config(teacher.config, teacher.head),
        "distillation": distillation.to_dict(),
    }
    return train(
        step, student, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, description=description, log={"description": "distilling", **(log or {})},
    )  # fmt: skip
