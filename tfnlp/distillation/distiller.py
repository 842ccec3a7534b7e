"""Knowledge distillation in Keras: train a student on labels and a teacher with compile, fit and evaluate."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp import architectures
from duonlp.config import TransformerConfig
from duonlp.distillation.pair import Distillation, check_block_labels, check_pair, init_projections
from duonlp.distillation.teacher_logits import reorder_for_student
from duonlp.distillation.terms import distillation_counts
from duonlp.errors import InputError
from duonlp.heads import HEADS, Output, outputs_of
from duonlp.inputs import TEACHER, check_inputs, main_input, model_inputs, named_inputs, shift_right
from duonlp.labels import WEIGHTS, array_of
from duonlp.training.fit_config import FitConfig
from duonlp.training.result import FitResult
from duonlp.typing import BatchStream
from tfnlp import ops
from tfnlp.distillation.losses import teacher_terms
from tfnlp.steps.terms import MeanOfTerms, Terms
from tfnlp.trainer_mixin import ADDED, TrainerMixin
from tfnlp.training.fit import train
from tfnlp.training.pretrainer import packed_inputs

TEACHER_OUTPUTS = f"{TEACHER}outputs"
"""Entry of a batch for the outputs of the teacher."""

STUDENT = "student_"
"""Prefix of the terms of the student's own loss."""


class Distiller(TrainerMixin, keras.Model):
    """Trains a student: ``compile(optimizer, ...)``, then ``fit`` and ``evaluate`` like any model, on the same batches.

    The loss is ``alpha * student_loss + (1 - alpha) * T^2 * KL(teacher || student) + sum of weight * loss`` (Hinton et al.
    2015, https://arxiv.org/abs/1503.02531; the further losses are those of duonlp.distillation.settings). student_loss is
    the loss of the student's head on the labels. The KL compares the head's predictions: classes, independent labels,
    words per token, or ends of an answer; numbers are compared by squared error.

    ``fit`` and ``evaluate`` log ``loss``, its parts ``student_loss``, ``distillation_loss`` (T^2 * KL) and the further
    losses by name (``hidden_mse``, ...), none of these multiplied by its weight, and the metrics.

    The student is trained in place; save it, or call ``save_pretrained`` of this. The teacher runs without dropout and is
    not trained, saved or backed up. If the widths of hidden states differ, projections of the student's are trained as
    well: they are weights of this model, not of the student.

    Batches are those of the student: a dict of inputs, with labels inside or as ``y``, and optionally a ``sample_weight``,
    inside or as the third of a tuple. They may also have

    - inputs for a teacher with another tokenizer: ``teacher_input_ids``, ``teacher_attention_mask``, ... Without them the
      teacher reads the student's. Either model reads only the inputs it takes, so a DistilBERT no token_type_ids;
    - precomputed ``teacher_logits`` (``cached_teacher_logits``; for question answering ``teacher_start_logits`` and
      ``teacher_end_logits``). The teacher then only runs for further losses that need it.

    Args:
        student: A tfnlp model, created under the strategy to train with.
        teacher: A model with the same head and labels, in any order; None if the batches have its logits, in the
            student's order of labels.
        student_tokenizer: Tokenizer of the student. With both tokenizers, vocabularies are compared; otherwise only their
            sizes.
        teacher_tokenizer: Tokenizer of the teacher.
        seed: Seed for the projections.

    Attributes:
        student: The student.
        distillation: Settings of the distillation, from ``compile``.

    Raises:
        InputError: Teacher and student are the same model.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        student_tokenizer: Any = None,
        teacher_tokenizer: Any = None,
        seed: int = 0,
    ):
        if teacher is student:
            raise InputError("teacher and student are the same model; create the student with init_student(teacher)")
        with student.distribute_strategy.scope():
            # autocast: False, as in every model here
            super().__init__(dtype=student.dtype_policy, autocast=False, name=f"{student.name}_distiller")
            self.student = student
        # Hidden from Keras, which would count the teacher's weights as those of this model.
        tokenizers = student_tokenizer, teacher_tokenizer
        self._untracked = SimpleNamespace(
            teacher=teacher, tokenizers=tokenizers, projections={}, trackers={}, seed=seed
        )
        self.distillation = Distillation()
        self.built = True

    @property
    def teacher(self) -> Any:
        """The teacher, or None."""
        return self._untracked.teacher

    def trained_model(self) -> Any:
        return self.student

    @property
    def head(self) -> str:
        """Head of the student."""
        return self.student.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the student."""
        return self.student.config

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the student's outputs; of a batch, it reads the inputs it takes."""
        return self.student(self._inputs(inputs), training=training)

    def compile(
        self, optimizer: keras.optimizers.Optimizer | str = "adamw", metrics: Any = None, student_loss: Any = None,
        distillation_losses: Any = (), alpha: float = 0.5, temperature: float = 2.0, *,
        positions: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """Prepare for training.

        Args:
            optimizer: As for keras.Model.compile, or from tfnlp.training.make_optimizer.
            metrics: Metrics of the student, as for keras.Model.compile.
            student_loss: Keras loss of the logits in place of the head's own; see tfnlp.trainer_mixin.TrainerMixin.
            distillation_losses: HiddenStates, Attentions and Relations of duonlp.distillation, one or several, or their
                settings as dicts.
            alpha: Share of the student's own loss, from 0 to 1. At 0 no labels are read, at 1 no teacher logits.
            temperature: T, the divisor of logits before the softmax, above 0.
            positions: Tokens that the KL of a per-token head counts; see duonlp.distillation.Distillation.
            options: Options of keras.Model.compile: jit_compile, run_eagerly, weighted_metrics, steps_per_execution, ...

        Raises:
            InputError: A setting is out of range, or the losses do not fit the teacher and the student.
        """
        distillation = Distillation(alpha, temperature, distillation_losses, positions)
        untracked, teacher = self._untracked, self.teacher
        kernels = {}
        if teacher is not None:
            kernels = init_projections(distillation, self.config, teacher.config, untracked.seed)
            if self._shares_vocabulary():
                self._check_pair(distillation, own_inputs=False)  # otherwise each batch is checked
        elif distillation.losses:
            raise InputError(
                f"cannot compute {', '.join(distillation.loss_names)} without a teacher; pass it, or leave these losses out"
            )
        names = ["student_loss"] * self._uses_labels(distillation)
        names += ["distillation_loss"] * bool(self._compared_outputs(distillation))
        with self.distribute_strategy.scope():
            super().compile(optimizer, loss=student_loss, metrics=metrics, **options)
            untracked.trackers = {name: MeanOfTerms(name=name) for name in (*names, *distillation.loss_names)}
            for name, values in kernels.items():
                if name not in untracked.projections:
                    kernel = self.add_weight(
                        values["kernel"].shape, "zeros", name=f"projection_{name}", dtype="float32"
                    )
                    kernel.assign(values["kernel"])
                    untracked.projections[name] = kernel
        for name, kernel in untracked.projections.items():
            kernel.trainable = name in kernels
        self.distillation = distillation

    def _shares_vocabulary(self) -> bool:
        sizes = {model.config.embedding.vocab_size for model in (self.student, self.teacher)}
        student, teacher = self._untracked.tokenizers
        return len(sizes) == 1 and (student is None or teacher is None or student.get_vocab() == teacher.get_vocab())

    def _uses_labels(self, distillation: Distillation) -> bool:
        """Return whether the student's own loss has a share in the total."""
        return distillation.alpha > 0 and bool(self.targets)

    def _compared_outputs(self, distillation: Distillation) -> Sequence[Output]:
        """Return the head's outputs that are compared with the teacher's."""
        return outputs_of(self.head, self.config) if distillation.alpha < 1 else ()

    def _check_pair(self, distillation: Distillation, own_inputs: bool) -> np.ndarray | None:
        return check_pair(
            self.config, self.teacher.config, *self._untracked.tokenizers, distillation=distillation,
            heads=(self.head, self.teacher.head), own_inputs=own_inputs,
        )  # fmt: skip

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, and the means of the parts of the loss."""
        return [*super().metrics, *self._untracked.trackers.values()]

    def fit(self, x: Any = None, *args: Any, **options: Any) -> keras.callbacks.History:
        """Train the student; see keras.Model.fit. `x` may also be a :func:`tfnlp.training.block_dataset`.

        Raises:
            InputError: The student is a causal language model and `x` is of blocks, whose labels are shifted already.
        """
        if getattr(getattr(x, "source", None), "fixed_shapes", False):
            check_block_labels(self.head)
        return super().fit(x, *args, **options)

    def check_batch(self, batch: Any, y: Any = None) -> None:
        """Raise InputError for a batch of NumPy arrays that the student or the teacher cannot use.

        Labels are required only if the student's own loss has a share in the total.

        Args:
            batch: Inputs, optionally with labels, ``sample_weight`` and the teacher's inputs or logits.
            y: Labels, as fit takes them.
        """
        batch = named_inputs(self.config, batch)
        inputs = model_inputs(self.config, batch)
        if self._uses_labels(self.distillation):
            weights = {name: batch[name] for name in (WEIGHTS,) if name in batch}
            super().check_batch(inputs | weights | self._labels(batch, y))
        else:
            check_inputs(self.config, self.head, inputs)
        main = main_input(self.config)
        for output in self._compared_outputs(self.distillation):
            name = TEACHER + output.logits
            shape, ids = np.shape(batch.get(name, ())), np.shape(batch[main])
            if name in batch and (shape[0] != ids[0] or (output.per_token and shape[:2] != ids[:2])):
                raise InputError(
                    f"{name} has shape {shape} but {main} has {ids}; pass the teacher's logits for the same rows"
                )
        if self.teacher is not None:
            inputs = model_inputs(self.teacher.config, batch, as_teacher=True)
            check_inputs(self.teacher.config, self.teacher.head, inputs)

    def _has_own_loss(self) -> bool:
        return False

    def _counts_labels(self, batch: Mapping[str, Any]) -> bool:
        labels = {name: array_of(name, batch[name]) for name in self.targets if name in batch}
        own_loss = self._uses_labels(self.distillation) and self._compile_loss is not None
        return own_loss or distillation_counts(self.distillation, self.head, self.config, {**batch, **labels})

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self._select_inputs(self.student, batch)

    def _select_inputs(self, model: Any, batch: Mapping[str, Any], as_teacher: bool = False) -> dict[str, Any]:
        """Return a model's inputs in a batch; the decoder of an encoder-decoder reads the labels shifted to the right."""
        inputs = model_inputs(model.config, batch, as_teacher=as_teacher)
        if "segment_ids" in batch:
            inputs |= packed_inputs(model.config, batch["segment_ids"])
        if HEADS[model.head].shifts_labels and "decoder_input_ids" not in inputs and "labels" in batch:
            inputs["decoder_input_ids"] = shift_right(ops, batch["labels"], model.config)
        return inputs

    def _output_flags(self) -> dict[str, bool]:
        d = self.distillation
        return {"output_hidden_states": d.needs_hidden_states, "output_attentions": d.needs_attentions}

    def _prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the teacher's outputs to a batch, with precomputed logits in place of its own."""
        outputs = self._compared_outputs(self.distillation)
        stored = {o.logits: batch[TEACHER + o.logits] for o in outputs if TEACHER + o.logits in batch}
        if not self.distillation.losses and len(stored) == len(outputs):
            return {**batch, TEACHER_OUTPUTS: stored}
        if self.teacher is None:
            missing = ", ".join(TEACHER + o.logits for o in outputs if o.logits not in stored)
            raise InputError(
                f"there is neither a teacher nor {missing} in the batch; pass a teacher, or add its logits to the batches"
            )
        out = self.teacher(self._select_inputs(self.teacher, batch, True), training=False, **self._output_flags())
        return {**batch, TEACHER_OUTPUTS: tf.nest.map_structure(tf.stop_gradient, out) | stored}

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        d, order, terms = self.distillation, None, {}
        if self.teacher is not None:
            order = self._check_pair(d, own_inputs=TEACHER + main_input(self.config) in batch)
        outputs = self.student(self._inputs(batch), training=training, **self._output_flags())
        if self._uses_labels(d):
            own = self._label_terms(outputs, batch, self._share(training))
            terms = {f"{STUDENT}{name}": (d.alpha * total, count) for name, (total, count) in own.items()}
        added = teacher_terms(
            d, self.student, self.teacher, outputs, batch[TEACHER_OUTPUTS], batch, label_order=order,
            projections={name: {"kernel": kernel.value} for name, kernel in self._untracked.projections.items()},
            sample_weight=batch.get(WEIGHTS),
        )  # fmt: skip
        terms |= {name: (factor * total, count) for name, (total, count, factor) in added.items()}
        return terms | self._added_terms(self.student.losses, batch), outputs

    def _update_logs(self, terms: Terms) -> dict[str, Any]:
        """Update the means of the parts of the loss, none of them multiplied by its weight, besides the loss."""
        d = self.distillation
        weights = {name: loss.weight for name, loss in zip(d.loss_names, d.losses)}
        parts: dict[str, Terms] = {name: {} for name in self._untracked.trackers}
        for name, (total, count) in terms.items():
            part = name if name in weights else "student_loss" if name.startswith(STUDENT) else "distillation_loss"
            weight = weights.get(name, d.alpha if part == "student_loss" else 1 - d.alpha)
            if name != ADDED:
                parts[part][name] = (total / weight if weight else 0.0 * total), count
        for name, part in parts.items():
            self._untracked.trackers[name].update_state(part)
        return super()._update_logs(terms)

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None, max_shard_size: int | str = "5GB") -> None:
        """Write the student in Hugging Face layout; see duonlp.checkpoints.save_checkpoint."""
        self.student.save_pretrained(folder, tokenizer, max_shard_size)

    def __dir__(self) -> list[str]:
        """List attributes without ``teacher``, since Keras saves the weights of every model it finds by ``dir``."""
        return [name for name in super().__dir__() if name != "teacher"]

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Save the projections by name; Keras adds the weights of the student and the optimizer."""
        for name, kernel in self._untracked.projections.items():
            store[name] = kernel

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load the projections.

        Raises:
            InputError: The projections are not those that compile has created.
        """
        projections = self._untracked.projections
        if set(store.keys()) != set(projections):
            raise InputError(
                f"the file has the projections {sorted(store.keys())} but this Distiller has {sorted(projections)}; compile it "
                "with the same distillation_losses before loading weights"
            )
        for name, kernel in projections.items():
            kernel.assign(store[name])

    def get_config(self) -> dict[str, Any]:
        """Raise InputError, since a Distiller cannot be recreated without its two models."""
        raise InputError(
            "a Distiller cannot be saved as a whole; save its student (distiller.student.save or save_pretrained), or, to "
            "resume training, use save_weights or keras.callbacks.BackupAndRestore"
        )


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
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a student on labels and on a teacher's outputs: ``tfnlp.training.fit`` with a :class:`Distiller`.

    If the folder has a checkpoint of the same run, training resumes from it.

    Args:
        student: Model with the teacher's head; it is trained in place.
        teacher: Model; None if the batches have its logits and ``distillation.losses`` is empty.
        batches: As for fit. With ``teacher_logits`` (cached_teacher_logits) the teacher only runs for
            ``distillation.losses``; with ``teacher_input_ids``, ... it reads these.
        config: As for fit, like all arguments that are not listed here.
        distillation: Settings of the distillation; the defaults of Distillation if None.
        tokenizer: Tokenizer of the student, saved with the best model.
        teacher_tokenizer: Tokenizer of the teacher. It must have the same vocabulary, unless batches hold separate inputs
            for the teacher.

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
    distiller = Distiller(
        student, teacher, student_tokenizer=tokenizer, teacher_tokenizer=teacher_tokenizer, seed=config.seed
    )
    description = {
        "teacher": None if teacher is None else architectures.hf_config(teacher.config, teacher.head),
        "distillation": distillation.to_dict(),
    }
    return train(
        distiller, batches, config, folder, description=description, validation=validation, evaluate=evaluate,
        on_evaluation=on_evaluation, tokenizer=tokenizer, data=data, log={"description": "distilling", **(log or {})},
        jit_compile=jit_compile, distillation_losses=distillation.losses, alpha=distillation.alpha,
        temperature=distillation.temperature, positions=distillation.positions,
    )  # fmt: skip
