"""Pretraining with compile, fit and evaluate on blocks: perplexity, and a loss of one's own."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.data.objectives.language_modelling import check_model
from duonlp.errors import InputError
from duonlp.heads import HEADS, PRETRAINING, counts_labels
from duonlp.inputs import model_inputs as select_inputs
from duonlp.typing import Batch
from tfnlp import ops
from tfnlp.kernels.choice import trains_with_xla
from tfnlp.steps.terms import MeanOfTerms, Terms, total_loss
from tfnlp.trainer_mixin import TrainerMixin

LossFunction = Callable[[Mapping[str, Any], Batch], Terms]
"""``(outputs of the model, batch) -> {name: (sum, count)}``; the loss is the total of sum / count."""


UNSHIFTED = "masked-lm"
"""Head whose loss a causal language model has on blocks, in which the labels are shifted already."""


class Perplexity(MeanOfTerms):
    """exp of a loss in nats over all batches so far."""

    def result(self) -> tf.Tensor:
        return tf.exp(super().result())


class Pretrainer(TrainerMixin, keras.Model):
    """Trains a language model: ``compile(optimizer)``, then ``fit`` and ``evaluate`` on a :func:`block_dataset`.

    The loss of a step is the sum over the labeled tokens of the whole batch, over all microbatches and replicas, divided
    once by their count. So the gradient is that of the whole batch however it is split, even if the parts have different
    numbers of labels, as in masked language modeling; and the optimizer clips the gradient of the whole batch. Dropout
    depends on ``seed``, the step number and the replica alone.

    ``fit`` logs ``loss`` and ``perplexity`` over the epoch so far, every token weighing the same, and ``step_loss``, the
    loss of the last step.

    Args:
        model: A tfnlp model, created under the tf.distribute strategy to train with. It is trained in place; save it, or
            generate with it, as usual. Without `loss`, its head must be one that models are pretrained with.
        accumulation: Microbatches a step is split into, computed one after the other. The rows of a replica must divide
            into them.
        seed: Seed for dropout.
        loss: ``(outputs of the model, batch) -> {name: (sum, count)}`` in place of the head's own loss. Counts depend on the
            batch alone. A loss may also be passed to ``compile``, in the form of a Keras loss.

    Attributes:
        model: The model in training.

    Raises:
        InputError: The model has another head, or accumulation is below 1.
    """

    def __init__(self, model: Any, *, accumulation: int = 1, seed: int = 0, loss: LossFunction | None = None):
        if loss is None and getattr(model, "head", None) not in PRETRAINING:
            raise InputError(
                f"a {getattr(model, 'head', type(model).__name__)} model cannot be pretrained on blocks without a loss; "
                f"its head must be {' or '.join(PRETRAINING)}, or pass loss="
            )
        if accumulation < 1:
            raise InputError(f"accumulation is {accumulation}; it must be at least 1 microbatch")
        with model.distribute_strategy.scope():
            super().__init__(dtype=model.dtype_policy, autocast=False, name=f"{model.name}_pretrainer")
            self.model, self.accumulation = model, accumulation
            self.perplexity = Perplexity(name="perplexity")
        self._options = {"accumulation": accumulation, "seed": seed}
        self._loss_function = loss
        self.built = True

    def trained_model(self) -> Any:
        return self.model

    @property
    def head(self) -> str:
        """Head of the model."""
        return self.model.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the model."""
        return self.model.config

    @property
    def _loss_head(self) -> str:
        return UNSHIFTED if HEADS[self.head].causal else self.head

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the model's own outputs."""
        return self.model(inputs, training=training)

    def compile(
        self, optimizer: keras.optimizers.Optimizer | str, *, jit_compile: bool | str = "auto", run_eagerly: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        """Prepare for training.

        Args:
            optimizer: From :func:`make_optimizer`, or any Keras optimizer created under the model's strategy. With
                mixed_float16 it is wrapped in a LossScaleOptimizer.
            jit_compile: Whether to compile the step with XLA. "auto" does unless TensorFlow's own kernels are
                faster (tfnlp.kernels.choice.trains_with_xla).
            run_eagerly: Whether to run operation by operation, for debugging.
            options: Further arguments of keras.Model.compile, such as ``loss``, a Keras loss in place of the head's own.

        Raises:
            InputError: The optimizer was created under another strategy.
        """
        if jit_compile == "auto":
            jit_compile = not run_eagerly and trains_with_xla(self.trained_model().compute_dtype)
        super().compile(optimizer, run_eagerly=run_eagerly, jit_compile=jit_compile, **self._options, **options)
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    def check_batch(self, batch: Any, y: Any = None) -> None:
        """Accept any batch: an objective has checked the model once, in ``fit``."""

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return model_inputs(self.config, batch)

    def _standard_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch for the head's loss in the form that it takes, and one for a loss of your own unchanged."""
        return super()._standard_batch(batch) if self._loss_function is None else batch

    def _has_own_loss(self) -> bool:
        return self._loss_function is None and super()._has_own_loss()

    def _counts_labels(self, batch: Mapping[str, Any]) -> bool:
        return not self._has_own_loss() or counts_labels(self._loss_head, self.config, batch)

    def _label_terms(self, outputs: Mapping[str, Any], batch: Mapping[str, Any], share: float = 1.0) -> Terms:
        if self._loss_function is not None:
            return dict(self._loss_function(outputs, batch))
        return super()._label_terms(outputs, batch, share)

    def _update_logs(self, terms: Terms) -> dict[str, Any]:
        self.perplexity.update_state(terms)
        return super()._update_logs(terms) | {"step_loss": total_loss(terms)}

    def test_step(self, data: Any) -> dict[str, Any]:
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name != "step_loss"}

    def fit(self, x: Any, *args: Any, **options: Any) -> keras.callbacks.History:
        """Train like keras.Model.fit on a :func:`block_dataset`.

        Args:
            x: The dataset. An epoch is one pass over a finite one, or ``steps_per_epoch`` steps of an endless one.
            args: Further arguments of keras.Model.fit; they take no y, batch_size or sample_weight.
            options: Further arguments of keras.Model.fit; ``validation_data`` is another :func:`block_dataset`.

        Raises:
            InputError: The dataset is not from block_dataset, is for another strategy or objective, is endless without
                ``steps_per_epoch``, or has rows that do not divide into the microbatches.
        """
        self._check(x, "fit", options.get("steps_per_epoch"))
        if options.get("validation_data") is not None:
            self._check(options["validation_data"], "fit", options.get("validation_steps"))
        rows, parts = len(x.source.first["input_ids"]) * x.source.hosts, self._replicas() * self.accumulation
        if rows % parts:
            raise InputError(
                f"{rows} rows per step do not divide into {self._replicas()} replicas times {self.accumulation} microbatches; "
                f"use a batch_size that is a multiple of {parts}"
            )
        return super().fit(x, *args, **{"shuffle": False, **options})

    def evaluate(self, x: Any, *args: Any, **options: Any) -> Any:
        """Return the mean ``loss`` over all labeled tokens of a :func:`block_dataset`, and its ``perplexity``.

        Raises:
            InputError: The dataset is unsuitable, as in :meth:`fit`.
        """
        if not options.get("_use_cached_eval_dataset"):
            self._check(x, "evaluate", options.get("steps"))
        return super().evaluate(x, *args, **options)

    def _check(self, data: Any, method: str, steps: int | None) -> None:
        """Raise InputError unless a dataset fits the number of steps, the model and its strategy."""
        source: Any = getattr(data, "source", None)
        if source is None or not getattr(source, "fixed_shapes", False):
            raise InputError(f"{method} got {type(data).__name__}; pass the result of block_dataset unchanged")
        if source.steps is None and not steps:
            raise InputError(
                "the dataset is endless; pass steps_per_epoch to fit, steps to evaluate, or steps to block_dataset"
            )
        if source.steps is not None and steps and steps != source.steps:
            raise InputError(
                f"the dataset ends after {source.steps} batches but {method} is asked for {steps}; omit the number, or create "
                f"the dataset with steps={steps}"
            )
        objective, blocks = (getattr(source.batches, name, None) for name in ("objective", "blocks"))
        if objective is not None and hasattr(blocks, "block_length"):
            check_model(objective, self.config, self.head, blocks.block_length)
        distributed = not isinstance(data, tf.data.Dataset)
        if distributed != (self._distribute_strategy is not None):
            raise InputError(
                "the dataset was created for "
                + ("a strategy but the model under none" if distributed else "no strategy but the model under one")
                + "; pass the same strategy to block_dataset, and create the model inside its scope()"
            )


def model_inputs(config: TransformerConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's inputs for a batch of blocks, with documents in the same row masked from each other.

    Args:
        config: Configuration of the model.
        batch: The model's inputs, and optionally segment_ids int [B, T], equal within a document.

    Returns:
        The inputs; with segments also attention_mask bool [B, T, T] and position_ids int32 [B, T], which restart with each
        document.
    """
    inputs = select_inputs(config, batch)
    return inputs | packed_inputs(config, batch["segment_ids"]) if "segment_ids" in batch else inputs


def packed_inputs(config: TransformerConfig, segment_ids: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the attention mask [B, T, T] and position ids [B, T] with which documents, segment ids [B, T], are apart."""
    same = tf.equal(tf.expand_dims(segment_ids, 2), tf.expand_dims(segment_ids, 1))  # [B, T, T]
    columns = tf.range(ops.size(segment_ids, 1))
    earlier = tf.expand_dims(columns, 0) < tf.expand_dims(columns, 1)  # [T, T]
    before = tf.reduce_sum(tf.cast(same & earlier, tf.int32), axis=2)  # [B, T], tokens before in the document
    return {"attention_mask": same, "position_ids": config.embedding.position_offset + before}
