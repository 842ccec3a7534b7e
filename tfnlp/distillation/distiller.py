"""Knowledge distillation in Keras: a student that learns from labels and from a teacher, with compile, fit and evaluate."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp import architectures
from duonlp.distillation.pair import Distillation, check_pair, distilled_outputs, init_projections
from duonlp.distillation.teacher_logits import reorder_for_student
from duonlp.errors import InputError
from duonlp.inputs import TEACHER, check_inputs, model_inputs
from duonlp.seq2seq import shift_right
from duonlp.training.fit_config import FitConfig
from duonlp.training.result import FitResult
from tfnlp import ops
from tfnlp.distillation.losses import terms
from tfnlp.trainer_mixin import TrainerMixin
from tfnlp.training.fit import resolve_jit_compile, smoothed_loss, train


class Distiller(TrainerMixin, keras.Model):
    """A student in training: ``compile(optimizer, ...)``, then ``fit`` and ``evaluate`` as of any model, on the same batches.

    The loss is ``alpha * student_loss + (1 - alpha) * T^2 * KL(teacher || student) + sum of weight * loss`` (Hinton et al.
    2015, https://arxiv.org/abs/1503.02531; the further losses are those of duonlp.distillation.settings). The student's own
    is its head's, over the labels; what is compared by KL is what the head predicts: classes, several labels that may hold
    each, the words of every token, the ends of an answer, or a number, by its squared error.

    ``fit`` and ``evaluate`` log ``loss``, its parts ``student_loss``, ``distillation_loss`` (T^2 * KL) and the further
    losses by their names (``hidden_mse``, ...), none of these multiplied by its weight, and the metrics.

    The student is trained in place; save that, or ``save_pretrained`` of this. The teacher is called without dropout, is no
    part of what is trained, saved or backed up, and stays as it is. Where the widths of hidden states differ, projections
    of the student's are trained along: they are among the weights of this model, and not of the student.

    A batch is fed as to the student, as a dict of its inputs, with labels inside or as ``y``, and perhaps a ``sample_weight``,
    inside or as the third of a tuple. It may also have

    - inputs for a teacher with another tokenizer: ``teacher_input_ids``, ``teacher_attention_mask``, ...; without them it
      reads the student's. Either reads what it takes: a DistilBERT no token_type_ids;
    - ``teacher_logits`` that were computed before (``cached_teacher_logits``; of question answering
      ``teacher_start_logits`` and ``teacher_end_logits``): then the teacher is not run, unless a further loss needs more of it.

    Under a tf.distribute strategy, each part of the teacher's is divided once by what counts on all replicas.

    Args:
        student: any model of this package, made under the strategy it is trained with.
        teacher: one with the same head and labels, in any order; None where batches have its logits, in the student's
            order of labels.
        student_tokenizer, teacher_tokenizer: to tell whether both mean the same by an id; without them, the sizes of the
            vocabularies tell.
        seed: of the projections.
    """

    def __init__(self, student, teacher=None, *, student_tokenizer=None, teacher_tokenizer=None, seed: int = 0):
        if teacher is student:
            raise InputError("teacher and student are one model; make the student by init_student(teacher)")
        with student.distribute_strategy.scope():
            # autocast: False, as in every model here
            super().__init__(dtype=student.dtype_policy, autocast=False, name=f"{student.name}_distiller")
            self.student = student
        # Out of sight of Keras, which would count the teacher's weights as those of this model.
        tokenizers = student_tokenizer, teacher_tokenizer
        self._unseen = SimpleNamespace(teacher=teacher, tokenizers=tokenizers, projections={}, trackers={}, seed=seed)
        self.distillation = Distillation()
        self.built = True

    @property
    def teacher(self):
        """The teacher, or None."""
        return self._unseen.teacher

    @property
    def head(self) -> str:
        """The student's."""
        return self.student.head

    @property
    def config(self):
        """The student's."""
        return self.student.config

    @property
    def targets(self) -> dict[str, str]:
        """The student's."""
        return self.student.targets

    def _loss(self, out, inputs, sample_weight=None):
        return self.student._loss(out, inputs, sample_weight)

    def _align(self, logits, labels, sample_weight):
        return self.student._align(logits, labels, sample_weight)

    def call(self, inputs, training=None):
        """The student's outputs; of a batch, it reads what it takes."""
        return self.student(self._read(self.student, inputs, {}), training=training)

    def compile(
        self, optimizer="adamw", metrics=None, student_loss=None, distillation_losses=(), alpha=0.5, temperature=2.0, *,
        positions=None, **options: Any,
    ):  # fmt: skip
        """Prepare for training.

        Args:
            optimizer: as keras.Model.compile takes it, or from tfnlp.training.make_optimizer.
            metrics: of the student, as keras.Model.compile takes them.
            student_loss: a Keras loss of the logits in place of the head's own; see tfnlp.trainer_mixin.TrainerMixin.
            distillation_losses: HiddenStates, Attentions and Relations of duonlp.distillation.pair.
            alpha: the share of the student's own loss, from 0 to 1. At 0 no labels are read, at 1 no teacher's logits.
            temperature: what logits are divided by before the softmax, above 0.
            positions: which tokens the KL of a head with outputs for each counts; see duonlp.distillation.pair.Distillation.
            options: of keras.Model.compile: jit_compile, run_eagerly, weighted_metrics, steps_per_execution, ...

        Raises:
            InputError: a setting out of range, losses that teacher and student cannot be compared by, or no teacher for them.
        """
        distillation = Distillation(alpha, temperature, distillation_losses, positions)
        unseen, teacher = self._unseen, self.teacher
        kernels = {}
        if teacher is not None:
            kernels = init_projections(distillation, self.config, teacher.config, unseen.seed)
            if self._have_one_vocabulary():
                self._check_pair(distillation, own_inputs=False)  # with other tokenizers, the batches tell
        elif distillation.losses:
            raise InputError(
                f"{', '.join(distillation.loss_names)} look inside the teacher, and there is none; pass it"
            )
        names = ["student_loss"] * self._has_own(distillation) + ["distillation_loss"] * bool(
            self._outputs(distillation)
        )
        with self.distribute_strategy.scope():
            super().compile(optimizer, loss=student_loss, metrics=metrics, **options)
            unseen.trackers = {name: keras.metrics.Mean(name=name) for name in (*names, *distillation.loss_names)}
            for name, values in kernels.items():
                if name not in unseen.projections:
                    kernel = self.add_weight(
                        values["kernel"].shape, "zeros", name=f"projection_{name}", dtype="float32"
                    )
                    kernel.assign(values["kernel"])
                    unseen.projections[name] = kernel
        for name, kernel in unseen.projections.items():
            kernel.trainable = name in kernels
        self.distillation = distillation

    def _have_one_vocabulary(self) -> bool:
        sizes = {model.config.embedding.vocab_size for model in (self.student, self.teacher)}
        mine, others = self._unseen.tokenizers
        return len(sizes) == 1 and (mine is None or others is None or mine.get_vocab() == others.get_vocab())

    def _has_own(self, distillation) -> bool:
        return distillation.alpha > 0 and bool(self.targets)

    def _outputs(self, distillation) -> tuple:
        """What of the head's outputs the teacher's are compared with."""
        return distilled_outputs(self.head, self.config) if distillation.alpha < 1 else ()

    def _check_pair(self, distillation, own_inputs: bool):
        return check_pair(
            self.config, self.teacher.config, *self._unseen.tokenizers, distillation=distillation,
            heads=(self.head, self.teacher.head), own_inputs=own_inputs,
        )  # fmt: skip

    @property
    def metrics(self):
        """Keras', and the means of the parts of the loss."""
        return [*super().metrics, *self._unseen.trackers.values()]

    @property
    def losses(self):
        """None: what the student's layers add (regularizers) is added to the whole loss, not to its share on the labels."""
        return []

    def check_batch(self, batch, y=None):
        """As TrainerMixin.check_batch, for both models: the student's labels are wanted only where it has a share in the loss."""
        batch = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
        inputs = model_inputs(self.config, batch)
        if self._has_own(self.distillation):
            super().check_batch(inputs | self._labels(batch, y))
        else:
            check_inputs(self.config, self.head, inputs)
        for output in self._outputs(self.distillation):
            name = TEACHER + output.logits
            shape, ids = np.shape(batch.get(name, ())), np.shape(batch["input_ids"])
            if name in batch and (shape[0] != ids[0] or (output.per_token and shape[:2] != ids[:2])):
                raise InputError(f"{name} has shape {shape}, input_ids {ids}; give what the teacher said of these rows")
        if self.teacher is not None:
            inputs = model_inputs(self.teacher.config, batch, as_teacher=True)
            check_inputs(self.teacher.config, self.teacher.head, inputs)

    def train_step(self, data):
        """A step of fit."""
        x, y, sample_weight = _unpacked(data)
        taught = self._taught(x, y)  # before the tape, which would keep all of it
        with tf.GradientTape() as tape:
            loss, parts, out = self._measured(x, y, sample_weight, taught, training=True)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
        return self._logs(loss, parts, x, y, out, sample_weight)

    def test_step(self, data):
        """A step of evaluate."""
        x, y, sample_weight = _unpacked(data)
        loss, parts, out = self._measured(x, y, sample_weight, self._taught(x, y), training=False)
        return self._logs(loss, parts, x, y, out, sample_weight)

    def _read(self, model, x, labels, as_teacher: bool = False) -> dict:
        """What a model reads of a batch: its inputs, and of an encoder-decoder the labels, moved to the right."""
        inputs = model_inputs(model.config, x, as_teacher=as_teacher)
        if model.head == "seq2seq-lm" and "decoder_input_ids" not in inputs and "labels" in (x | labels):
            inputs["decoder_input_ids"] = shift_right(ops, (x | labels)["labels"], model.config)
        return inputs

    def _asked(self) -> dict[str, bool]:
        d = self.distillation
        return {"output_hidden_states": d.needs_hidden_states, "output_attentions": d.needs_attentions}

    def _taught(self, x, y) -> dict:
        """What the teacher has to say of a batch: outputs as the model's."""
        outputs = self._outputs(self.distillation)
        known = {o.logits: x[TEACHER + o.logits] for o in outputs if TEACHER + o.logits in x}
        if not self.distillation.losses and len(known) == len(outputs):
            return known
        if self.teacher is None:
            missing = ", ".join(TEACHER + o.logits for o in outputs if o.logits not in known)
            raise InputError(f"there is no teacher, and no {missing} in the batch; pass a teacher, or add them")
        inputs = self._read(self.teacher, x, self._labels(x, y), as_teacher=True)
        out = self.teacher(inputs, training=False, **self._asked())
        return tf.nest.map_structure(tf.stop_gradient, out) | known

    def _measured(self, x, y, sample_weight, taught, training: bool):
        """The loss of this replica's rows, its parts by name, and the student's outputs. Keras sums losses over replicas."""
        labels, d, parts = self._labels(x, y), self.distillation, {}
        order = None
        if self.teacher is not None:
            order = self._check_pair(d, own_inputs=f"{TEACHER}input_ids" in x)
        out = self.student(self._read(self.student, x, labels), training=training, **self._asked())
        replicas, context = self.distribute_strategy.num_replicas_in_sync, tf.distribute.get_replica_context()
        total = tf.zeros(())
        if self._has_own(d):
            parts["student_loss"] = tf.cast(self.compute_loss(x, y, out, sample_weight, training), tf.float32)
            total += d.alpha * parts["student_loss"]
        weights = {name: loss.weight for name, loss in zip(d.loss_names, d.losses)}
        kernels = {name: {"kernel": kernel.value} for name, kernel in self._unseen.projections.items()}
        each = terms(
            d, self.student, self.teacher, out, taught, x | labels, projections=kernels, label_order=order,
            sample_weight=sample_weight,
        )  # fmt: skip
        for name, (value, count, factor) in each.items():
            if replicas > 1:
                count = context.all_reduce("SUM", count)
            value = value / tf.maximum(count, 1.0)
            total += factor * value
            weight = weights.get(name, 1 - d.alpha)
            name = name if name in weights else "distillation_loss"
            parts[name] = parts.get(name, 0.0) + (factor / weight * value if weight else 0.0)
        added = [self._aggregate_additional_loss(loss) for loss in self.student.losses]
        return tf.add_n([total, *(tf.cast(loss, tf.float32) for loss in added)]), parts, out

    def _logs(self, loss, parts, x, y, out, sample_weight) -> dict:
        """The means so far, of batches as they are: weighted by their rows."""
        rows, replicas = tf.shape(x["input_ids"])[0], self.distribute_strategy.num_replicas_in_sync
        self._loss_tracker.update_state(loss * replicas, sample_weight=rows)
        for name, value in parts.items():
            self._unseen.trackers[name].update_state(value * replicas, sample_weight=rows)
        return self.compute_metrics(x, y, out, sample_weight)

    def save_pretrained(self, folder, tokenizer=None, max_shard_size="5GB"):
        """The student's."""
        self.student.save_pretrained(folder, tokenizer, max_shard_size)

    def __dir__(self):
        """Without ``teacher``: Keras saves the weights of every model that it finds by ``dir``."""
        return [name for name in super().__dir__() if name != "teacher"]

    def save_own_variables(self, store):
        """The projections, by name; Keras adds the student's weights and the optimizer's."""
        for name, kernel in self._unseen.projections.items():
            store[name] = kernel

    def load_own_variables(self, store):
        """The projections that were saved.

        Raises:
            InputError: compile has made others.
        """
        projections = self._unseen.projections
        if set(store.keys()) != set(projections):
            raise InputError(
                f"the file has projections of {sorted(store.keys())}, and this Distiller of {sorted(projections)}; compile "
                "it with the same distillation_losses before its weights are loaded"
            )
        for name, kernel in projections.items():
            kernel.assign(store[name])

    def get_config(self):
        """Not there: a Distiller is made of two models anew.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a Distiller is not saved as a whole; save its student (distiller.student.save, or save_pretrained), or, to go "
            "on training, all weights but the teacher's (save_weights, keras.callbacks.BackupAndRestore)"
        )


def _unpacked(data):
    """A batch as a dict of inputs, y and sample_weight, which may have been among the inputs."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    x = dict(x) if isinstance(x, Mapping) else {"input_ids": x}
    inside = x.pop("sample_weight", None)
    return x, y, inside if sample_weight is None else sample_weight


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
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a student on labels and on what its teacher says: ``tfnlp.training.fit`` with a :class:`Distiller`.

    With a folder that has a checkpoint of the same run, it goes on from there.

    Args:
        student: it is trained in place.
        teacher: None where the batches have its logits and nothing inside it is compared.
        batches: dicts of NumPy arrays [B, ...], as fit takes them. With ``teacher_logits`` (cached_teacher_logits) the teacher
            is called only for what is inside it; with ``teacher_input_ids``, ... it reads these.
        config: how it is trained. distillation: what it learns from the teacher.
        tokenizer, teacher_tokenizer: they have to be alike. The first is saved with the best model.
        folder, validation, evaluate, on_evaluation, jit_compile, data, log: as fit has them.

    Returns:
        A FitResult, whose model is the student.

    Raises:
        InputError: as fit; or student and teacher do not go together.
        NonFiniteLossError, CheckpointError: as fit.
    """
    config, distillation = config or FitConfig(), distillation or Distillation()
    if teacher is None:
        batches, validation = (reorder_for_student(each, student.config) for each in (batches, validation))
    loss, loss_weights = smoothed_loss(student, config.label_smoothing)
    distiller = Distiller(
        student, teacher, student_tokenizer=tokenizer, teacher_tokenizer=teacher_tokenizer, seed=config.seed
    )

    def compile(optimizer):
        distiller.compile(
            optimizer, distillation_losses=distillation.losses, alpha=distillation.alpha,
            temperature=distillation.temperature, positions=distillation.positions, jit_compile=resolve_jit_compile(student, jit_compile),
            student_loss=loss, loss_weights=loss_weights,
        )  # fmt: skip

    description = {
        "teacher": None if teacher is None else architectures.hf_config(teacher.config, teacher.head),
        "distillation": distillation.to_dict(),
    }
    return train(
        distiller, student, batches, config, folder, compile=compile, description=description, check=distiller.check_batch,
        validation=validation, evaluate=evaluate, on_evaluation=on_evaluation, tokenizer=tokenizer, data=data,
        log={"description": "distilling", **(log or {})},
    )  # fmt: skip
