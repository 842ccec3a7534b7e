"""Pretraining with compile, fit and evaluate: sums over tokens, independent of how a batch is divided."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.data.objectives.language_modelling import PRETRAINED_HEADS, check_model
from duonlp.errors import InputError
from duonlp.typing import Batch
from tfnlp.losses import cross_entropy_sum
from tfnlp.training.input import Source

OUT_OF_DATA = "Your input ran out of data"
"""Start of Keras' warning at the end of a distributed dataset, whose length it does not know."""

REPLICA_STRIDE = 0x3C6EF35F
"""Difference between the dropout seeds of two neighboring replicas."""


class Perplexity(keras.metrics.Mean):
    """exp of the mean of a loss in nats."""

    def result(self) -> tf.Tensor:
        return tf.exp(super().result())


class Pretrainer(keras.Model):
    """Trains a language model: ``compile(optimizer)``, then ``fit`` and ``evaluate`` on a :func:`block_dataset`.

    The loss of a step is the sum over the labeled tokens of the whole batch, over all microbatches and replicas, divided
    once by their count. So the gradient is that of the whole batch however it is split, even if the parts have different
    numbers of labels, as in masked language modeling; and the optimizer clips the gradient of the whole batch. Dropout
    depends on ``seed``, the step number and the replica alone.

    ``fit`` logs ``loss`` and ``perplexity`` over the epoch so far, every token weighing the same, and ``step_loss``, the
    loss of the last step.

    Args:
        model: A tfnlp causal or masked language model or encoder-decoder, created under the tf.distribute strategy to
            train with. It is trained in place; save it, or generate with it, as usual.
        accumulation: Microbatches a step is split into, computed one after the other. The rows of a replica must divide
            into them.
        seed: Seed for dropout.

    Attributes:
        model: The model in training.
        step: int64 variable, the number of steps done.
        source: Where the running ``fit`` reads from; None outside of it.
        first_batch: Batches of the first epoch that were done before a resume.
        first_logs: Logs of the last of them.

    Raises:
        InputError: The model has another head, or accumulation is below 1.
    """

    # Created by keras.Model.compile.
    _loss_tracker: keras.metrics.Mean
    optimizer: Any

    def __init__(self, model: Any, *, accumulation: int = 1, seed: int = 0):
        if getattr(model, "head", None) not in PRETRAINED_HEADS:
            raise InputError(
                f"a {getattr(model, 'head', type(model).__name__)} model cannot be pretrained on blocks; "
                f"its head must be {' or '.join(PRETRAINED_HEADS)}"
            )
        if accumulation < 1:
            raise InputError(f"accumulation is {accumulation}; it must be at least 1 microbatch")
        with model.distribute_strategy.scope():
            super().__init__(dtype=model.dtype_policy, name=f"{model.name}_pretrainer")
            self.model, self.accumulation, self.seed = model, accumulation, seed
            self.step = self.add_weight(
                shape=(), dtype="int64", initializer="zeros", trainable=False, name="step",
                aggregation="only_first_replica",
            )  # fmt: skip
            self.perplexity = Perplexity(name="perplexity")
        layers = model._flatten_layers()
        self._dropout_generators = [
            layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None
        ]
        seeds = np.random.SeedSequence(seed).generate_state(max(len(self._dropout_generators), 1))
        self._dropout_seeds = [int(dropout_seed) for dropout_seed in seeds]
        self.source: Source | None = None
        self.first_batch = 0
        self.first_logs: dict[str, float] = {}
        self._skipping = False
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the model's own outputs."""
        return self.model(inputs, training=training)

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        *,
        jit_compile: bool | str = "auto",
        run_eagerly: bool = False,
        auto_scale_loss: bool = True,
    ) -> None:
        """Prepare for training.

        Args:
            optimizer: From :func:`make_optimizer`, or any Keras optimizer created under the model's strategy. With
                mixed_float16 it is wrapped in a LossScaleOptimizer.
            jit_compile: Whether to compile the step with XLA. With several replicas that is all of it except the sums
                over replicas and the update. "auto" compiles, since that is faster on CPUs as well.
            run_eagerly: Whether to run operation by operation, for debugging.
            auto_scale_loss: As in keras.Model.compile.

        Raises:
            InputError: The optimizer was created under another strategy.
        """
        if jit_compile == "auto":
            jit_compile = not run_eagerly
        with self.distribute_strategy.scope():
            super().compile(
                optimizer, run_eagerly=run_eagerly, jit_compile=jit_compile, auto_scale_loss=auto_scale_loss
            )
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
        self._sums: Callable[[Batch], tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]] = self._sums_of_gradients
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self._disable_reduction(getattr(self.optimizer, "inner_optimizer", self.optimizer))
            if self.jit_compile:
                self._sums = tf.function(self._sums, jit_compile=True, autograph=False)

    def _disable_reduction(self, optimizer: Any) -> None:
        """Stop an optimizer from summing gradients over replicas.

        Keras clips each replica's gradients and sums them afterwards; here they are summed before the optimizer sees them.
        """
        if optimizer._distribution_strategy is not self.distribute_strategy:
            raise InputError("the optimizer was created under another strategy; create it inside strategy.scope()")
        assert hasattr(optimizer, "_all_reduce_sum_gradients")
        optimizer.sums_gradients, optimizer._all_reduce_sum_gradients = False, lambda pairs: pairs

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Run one optimizer step on this replica's rows, int32 [rows, T] each, and return the logs."""
        replica = tf.distribute.get_replica_context()
        self._seed_dropout(replica)
        total, count, gradients = self._sums(batch)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            total, count, gradients = replica.all_reduce("SUM", [total, count, gradients])
        labeled = tf.maximum(count, 1.0)
        gradients = [gradient * (self._loss_unit(batch) / labeled) for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        self.step.assign_add(1)
        return self._update_metrics(total / labeled, count)

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Return the loss and the perplexity of all batches evaluated so far."""
        total, count = self._loss_sum(batch, training=False)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            total, count = tf.distribute.get_replica_context().all_reduce("SUM", [total, count])
        logs = self._update_metrics(total / tf.maximum(count, 1.0), count)
        return {name: logs[name] for name in ("loss", "perplexity")}

    def _update_metrics(self, loss: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        # Loss and count are already summed over replicas, so each replica's mean is the mean over all of them.
        for metric in (self._loss_tracker, self.perplexity):
            metric.update_state(loss, sample_weight=count)
        return {"loss": self._loss_tracker.result(), "perplexity": self.perplexity.result(), "step_loss": loss}

    def _loss_sum(self, batch: Batch, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sum of the losses of the labeled tokens in nats, and their number."""
        logits = self.model(model_inputs(self.model.config, batch), training=training)["logits"]
        return cross_entropy_sum(logits, batch["labels"])

    def _loss_unit(self, batch: Batch) -> float:
        """Return about the number of tokens of the whole batch, a divisor of the loss during differentiation.

        float16 could not hold the gradient of a sum. It is a power of two, so that dividing rounds nothing.
        """
        rows, length = batch["labels"].shape
        return 2.0 ** round(math.log2(rows * length * self.distribute_strategy.num_replicas_in_sync))

    def _sums_of_gradients(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Return loss, count, and the gradient of loss / unit (times the loss scale) per variable, summed over a replica."""
        variables, unit, pieces = self.trainable_variables, self._loss_unit(batch), self.accumulation

        def microbatch_sums(batch: Batch) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
            with tf.GradientTape() as tape:
                total, count = self._loss_sum(batch, training=True)
                scaled = self.optimizer.scale_loss(total / unit)
            gradients = tape.gradient(scaled, variables, unconnected_gradients="zero")
            return total, count, [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients]

        if pieces == 1:
            return microbatch_sums(batch)
        # [rows, T] -> [pieces, rows / pieces, T]
        batch = {name: tf.reshape(ids, (pieces, ids.shape[0] // pieces, ids.shape[1])) for name, ids in batch.items()}

        def add(index: tf.Tensor, *sums: Any) -> tuple[Any, ...]:
            more = microbatch_sums({name: tf.gather(ids, index) for name, ids in batch.items()})
            return index + 1, *tf.nest.map_structure(tf.add, sums, more)

        zeros = [tf.zeros(variable.shape, tf.float32) for variable in variables]
        state = (tf.constant(0), tf.constant(0.0), tf.constant(0.0), zeros)
        return tf.while_loop(lambda index, *_: index < pieces, add, state, parallel_iterations=1)[1:]

    def _seed_dropout(self, replica: tf.distribute.ReplicaContext) -> None:
        number = tf.cast(replica.replica_id_in_sync_group, tf.int64)
        # Each microbatch draws once from every generator, which advances its counter by one.
        count = self.step.value * self.accumulation
        for generator, seed in zip(self._dropout_generators, self._dropout_seeds):
            generator.state.assign(tf.stack([seed + number * REPLICA_STRIDE, count]))

    def make_train_function(self, force: bool = False) -> None:
        """Set the function that fit calls with its iterator."""
        if force or self.train_function is None:
            run = self._step_function(self.train_step)
            self.train_function = lambda iterator: self.first_logs if self._skip(iterator) else run(next(iterator))

    def make_test_function(self, force: bool = False) -> None:
        """Set the function that evaluate calls with its iterator."""
        if force or self.test_function is None:
            run = self._step_function(self.test_step)
            self.test_function = lambda iterator: run(next(iterator))

    def _step_function(self, step: Callable[[Batch], dict[str, tf.Tensor]]) -> Callable[[Batch], dict[str, tf.Tensor]]:
        """Return a function that runs a step on all replicas and returns the logs of the first, as they are all equal.

        Keras would average the logs, which fails with several workers, and would compile the communication between
        replicas as well.
        """
        strategy = self.distribute_strategy

        def run(batch: Batch) -> dict[str, tf.Tensor]:
            outputs = strategy.run(step, (batch,))
            return {name: strategy.experimental_local_results(value)[0] for name, value in outputs.items()}

        if self.run_eagerly:
            return run
        compile_all = self.jit_compile and strategy.num_replicas_in_sync == 1
        return tf.function(run, jit_compile=compile_all, autograph=False)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since all is built. Keras would read a batch and average it over the replicas."""

    def _skip(self, iterator: Iterator[Any]) -> bool:
        if self._skipping and self.source is not None and self.source.steps is not None:
            next(iterator)  # a finite dataset must be read on, so that the epoch keeps its length
        return self._skipping

    def fit(
        self, x: Any, *, epochs: int = 1, steps_per_epoch: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None, verbose: int | str = "auto", initial_epoch: int = 0,
        validation_data: Any = None, validation_steps: int | None = None, validation_freq: int = 1,
    ) -> keras.callbacks.History:  # fmt: skip
        """Train like keras.Model.fit on a :func:`block_dataset`.

        Args:
            x: The dataset.
            epochs: Number of the last epoch. An epoch is ``steps_per_epoch`` steps of an endless dataset, the interval
                between two validations, or one pass over a finite dataset.
            steps_per_epoch: Steps per epoch of an endless dataset.
            callbacks: As in keras.Model.fit.
            verbose: As in keras.Model.fit.
            initial_epoch: As in keras.Model.fit.
            validation_data: Another :func:`block_dataset`.
            validation_steps: Batches of an endless validation_data.
            validation_freq: Epochs between two validations.

        Returns:
            The keras.callbacks.History.

        Raises:
            InputError: The dataset is not from block_dataset, is for another strategy or objective, is endless without
                ``steps_per_epoch``, or has rows that do not divide into the microbatches.
        """
        self._check(x, "fit", steps_per_epoch)
        if validation_data is not None:
            self._check(validation_data, "fit", validation_steps)
        source, replicas = x.source, self.distribute_strategy.num_replicas_in_sync
        rows, rest = divmod(source.shape[0] * source.hosts, replicas * self.accumulation)
        if rest or not rows:
            raise InputError(
                f"{source.shape[0] * source.hosts} rows per step do not divide into {replicas} replicas times "
                f"{self.accumulation} microbatches; use a batch_size that is a multiple of {replicas * self.accumulation}"
            )
        self.source, self.first_batch, self.first_logs = source, 0, {}
        source.step, source.error = source.start, None
        steps = steps_per_epoch or source.steps
        callback_list = _Callbacks(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
            model=self,
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", OUT_OF_DATA)
                return super().fit(
                    x, epochs=epochs, steps_per_epoch=steps_per_epoch, callbacks=callback_list, verbose=verbose, shuffle=False,
                    initial_epoch=initial_epoch, validation_data=validation_data, validation_steps=validation_steps,
                    validation_freq=validation_freq,
                )  # fmt: skip
        except tf.errors.OpError:
            if source.error is not None:
                raise source.error from None
            raise
        finally:
            source.step, self.source, self._initial_epoch, self._skipping = source.start, None, None, False

    def evaluate(
        self, x: Any, *, steps: int | None = None, verbose: int | str = "auto",
        callbacks: list[keras.callbacks.Callback] | None = None, return_dict: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Evaluate like keras.Model.evaluate on a :func:`block_dataset`.

        Args:
            x: The dataset.
            steps: Batches of an endless dataset.
            verbose: As in keras.Model.evaluate.
            callbacks: As in keras.Model.evaluate.
            return_dict: Whether to return a dict instead of a list.
            kwargs: Keras' internal arguments.

        Returns:
            The mean ``loss`` in nats over all labeled tokens, and the ``perplexity``.

        Raises:
            InputError: The dataset is unsuitable, as in :meth:`fit`.
        """
        if not kwargs.get("_use_cached_eval_dataset"):
            self._check(x, "evaluate", steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", OUT_OF_DATA)
            return super().evaluate(
                x, steps=steps, verbose=verbose, callbacks=callbacks, return_dict=return_dict, **kwargs
            )

    def _check(self, data: Any, method: str, steps: int | None) -> None:
        """Raise InputError unless a dataset fits the number of steps, the model and its strategy."""
        source = getattr(data, "source", None)
        if not isinstance(source, Source):
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
        if hasattr(source.batches, "objective") and hasattr(source.batches.blocks, "block_length"):
            length = source.batches.blocks.block_length
            check_model(source.batches.objective, self.model.config, self.model.head, length)
        distributed = not isinstance(data, tf.data.Dataset)
        if distributed != (self._distribute_strategy is not None):
            raise InputError(
                "the dataset was created for "
                + ("a strategy but the model under none" if distributed else "no strategy but the model under one")
                + "; pass the same strategy to block_dataset, and create the model inside its scope()"
            )


class _Callbacks(keras.callbacks.CallbackList):
    """Callbacks that are not called for batches done before a resume; Keras counts these, but nothing is computed."""

    # Set by Keras.
    model: Any

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model._skipping = batch < self.model.first_batch
        if not self.model._skipping:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.model._skipping:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.first_batch, self.model._skipping = 0, False
        super().on_epoch_end(epoch, logs)


def model_inputs(config: TransformerConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's inputs for a batch of blocks, with documents in the same row masked from each other.

    Args:
        config: Configuration of the model.
        batch: input_ids int [B, T], and optionally segment_ids int [B, T], equal within a document; for an
            encoder-decoder input_ids and attention_mask [B, S] and decoder_input_ids [B, U], which are returned as is.

    Returns:
        input_ids; with segments also attention_mask bool [B, T, T] and position_ids int32 [B, T], which restart with each
        document.
    """
    if config.decoder is not None:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs = {"input_ids": batch["input_ids"]}
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        same = tf.equal(tf.expand_dims(segments, 2), tf.expand_dims(segments, 1))  # [B, T, T]
        columns = tf.range(segments.shape[1])
        earlier = tf.expand_dims(columns, 0) < tf.expand_dims(columns, 1)  # [T, T]
        before = tf.reduce_sum(tf.cast(same & earlier, tf.int32), axis=2)  # [B, T], tokens before in the document
        inputs |= {"attention_mask": same, "position_ids": config.embedding.position_offset + before}
    return inputs
