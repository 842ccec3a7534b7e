"""Pretraining through compile, fit and evaluate: sums over tokens, however a batch is divided."""

import math
import warnings
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from duonlp.data.objectives.language_modelling import PRETRAINED_HEADS, check_model
from duonlp.errors import InputError
from tfnlp.losses import cross_entropy_sum
from tfnlp.training.input import Source

EXPECTED = "Your input ran out of data"
"""What Keras says when a distributed dataset ends, whose length it does not know."""
REPLICA_STRIDE = 0x3C6EF35F
"""Between the dropout seeds of two replicas."""


class Perplexity(keras.metrics.Mean):
    """exp of the mean of a loss in nats."""

    def result(self):
        return tf.exp(super().result())


class Pretrainer(keras.Model):
    """A language model in training: ``compile(optimizer)``, then ``fit`` and ``evaluate`` on a :func:`block_dataset`.

    The loss of a step is the sum over the labelled tokens of the whole batch, over all micro-batches and all replicas,
    divided once by how many there are. So the gradient is that of the large batch whatever it is cut into, also where
    the pieces have more and fewer labels, as masked language modelling's do; and it is clipped, by the optimizer's own
    setting, when it is whole. Dropout depends on ``seed``, the number of the step and the replica alone.

    What ``fit`` logs: ``loss`` and ``perplexity`` over the epoch so far, each token weighing the same, and ``step_loss``,
    the loss of the last step.

    Args:
        model: a causal or masked language model or an encoder-decoder of this package, made under the tf.distribute strategy
            it is to be trained with. It is trained in place: save it, or generate with it, as ever.
        accumulation: micro-batches a step is computed in, one after the other. The rows of a replica must divide into
            them.
        seed: of dropout.

    Raises:
        InputError: the model has another head, or accumulation is below 1.
    """

    def __init__(self, model, *, accumulation: int = 1, seed: int = 0):
        if getattr(model, "head", None) not in PRETRAINED_HEADS:
            raise InputError(
                f"a {getattr(model, 'head', type(model).__name__)} model cannot be pretrained on blocks; "
                f"its head must be {' or '.join(PRETRAINED_HEADS)}"
            )
        if accumulation < 1:
            raise InputError(f"accumulation is {accumulation}; it is a number of micro-batches, 1 or more")
        with model.distribute_strategy.scope():
            super().__init__(dtype=model.dtype_policy, name=f"{model.name}_pretrainer")
            self.model, self.accumulation, self.seed = model, accumulation, seed
            self.step = self.add_weight(
                shape=(), dtype="int64", initializer="zeros", trainable=False, name="step",
                aggregation="only_first_replica",
            )  # fmt: skip
            self.perplexity = Perplexity(name="perplexity")
        layers = model._flatten_layers()
        self._dropouts = [
            layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None
        ]
        draws = np.random.SeedSequence(seed).generate_state(max(len(self._dropouts), 1))
        self._dropout_seeds = [int(draw) for draw in draws]
        self.source: Source | None = None
        """What the running fit reads from."""
        self.first_batch = 0
        """Batches of the first epoch that an earlier run has done."""
        self.first_logs: dict[str, float] = {}
        self._skipping = False
        self.built = True

    def call(self, inputs, training=None):
        """The model's own outputs."""
        return self.model(inputs, training=training)

    def compile(self, optimizer, *, jit_compile="auto", run_eagerly: bool = False, auto_scale_loss: bool = True):
        """Prepare for training.

        Args:
            optimizer: from :func:`make_optimizer`, or any of Keras', made under the model's strategy. With mixed_float16
                it is wrapped in a LossScaleOptimizer.
            jit_compile: whether XLA compiles the step; with several replicas, all of it but the sums over them and the
                update. "auto": it does, for it is faster on CPUs too.
            run_eagerly: operation by operation, for debugging.
            auto_scale_loss: as in keras.Model.compile.
        """
        if jit_compile == "auto":
            jit_compile = not run_eagerly
        with self.distribute_strategy.scope():
            super().compile(
                optimizer, run_eagerly=run_eagerly, jit_compile=jit_compile, auto_scale_loss=auto_scale_loss
            )
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
        self._sums = self._sums_of_gradients
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self._leave_sums_to_us(getattr(self.optimizer, "inner_optimizer", self.optimizer))
            if self.jit_compile:
                self._sums = tf.function(self._sums, jit_compile=True, autograph=False)

    def _leave_sums_to_us(self, optimizer):
        """Keras clips the gradients of each replica and sums them afterwards; ours are summed before it sees them."""
        if optimizer._distribution_strategy is not self.distribute_strategy:
            raise InputError("the optimizer was made under another strategy; make it inside strategy.scope()")
        assert hasattr(optimizer, "_all_reduce_sum_gradients")
        optimizer.sums_gradients, optimizer._all_reduce_sum_gradients = False, lambda pairs: pairs

    def train_step(self, batch):
        """One optimizer step on this replica's rows: int32 [rows, T] each."""
        replica = tf.distribute.get_replica_context()
        self._seed_dropout(replica)
        total, count, gradients = self._sums(batch)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            total, count, gradients = replica.all_reduce("SUM", [total, count, gradients])
        labelled = tf.maximum(count, 1.0)
        gradients = [gradient * (self._unit(batch) / labelled) for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        self.step.assign_add(1)
        return self._measured(total / labelled, count)

    def test_step(self, batch):
        """The loss of a batch, and of all so far."""
        total, count = self._sum(batch, training=False)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            total, count = tf.distribute.get_replica_context().all_reduce("SUM", [total, count])
        logs = self._measured(total / tf.maximum(count, 1.0), count)
        return {name: logs[name] for name in ("loss", "perplexity")}

    def _measured(self, loss, count):
        # Every replica holds the sums over all of them, so each one's own mean is that of all.
        for metric in (self._loss_tracker, self.perplexity):
            metric.update_state(loss, sample_weight=count)
        return {"loss": self._loss_tracker.result(), "perplexity": self.perplexity.result(), "step_loss": loss}

    def _sum(self, batch, training: bool):
        """Sum of the losses of the labelled tokens in nats, and their number."""
        logits = self.model(model_inputs(self.model.config, batch), training=training)["logits"]
        return cross_entropy_sum(logits, batch["labels"])

    def _unit(self, batch) -> float:
        """About the tokens of the whole batch. Losses are divided by it before they are differentiated: float16 would
        not hold the gradient of a sum. A power of two, so that nothing is rounded."""
        rows, length = batch["labels"].shape
        return 2.0 ** round(math.log2(rows * length * self.distribute_strategy.num_replicas_in_sync))

    def _sums_of_gradients(self, batch):
        """Loss, count, and the gradient of loss / unit (times the loss scale) for each variable, summed over a replica."""
        variables, unit, pieces = self.trainable_variables, self._unit(batch), self.accumulation

        def one(batch):
            with tf.GradientTape() as tape:
                total, count = self._sum(batch, training=True)
                scaled = self.optimizer.scale_loss(total / unit)
            gradients = tape.gradient(scaled, variables, unconnected_gradients="zero")
            return total, count, [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients]

        if pieces == 1:
            return one(batch)
        batch = {name: tf.reshape(ids, (pieces, ids.shape[0] // pieces, ids.shape[1])) for name, ids in batch.items()}

        def add(index, *sums):
            more = one({name: tf.gather(ids, index) for name, ids in batch.items()})
            return index + 1, *tf.nest.map_structure(tf.add, sums, more)

        zeros = [tf.zeros(variable.shape, tf.float32) for variable in variables]
        state = (tf.constant(0), tf.constant(0.0), tf.constant(0.0), zeros)
        return tf.while_loop(lambda index, *_: index < pieces, add, state, parallel_iterations=1)[1:]

    def _seed_dropout(self, replica):
        number = tf.cast(replica.replica_id_in_sync_group, tf.int64)
        # Each micro-batch draws once more from every generator, which counts up by one.
        count = self.step.value * self.accumulation
        for generator, seed in zip(self._dropouts, self._dropout_seeds):
            generator.state.assign(tf.stack([seed + number * REPLICA_STRIDE, count]))

    def make_train_function(self, force=False):
        """What fit calls with its iterator."""
        if force or self.train_function is None:
            run = self._function(self.train_step)
            self.train_function = lambda iterator: self.first_logs if self._skip(iterator) else run(next(iterator))

    def make_test_function(self, force=False):
        """What evaluate calls with its iterator."""
        if force or self.test_function is None:
            run = self._function(self.test_step)
            self.test_function = lambda iterator: run(next(iterator))

    def _function(self, step):
        """A step over all replicas, which all return the same. (Keras would average what they return, which fails
        with several workers, and would compile what lies between the replicas as well.)"""
        strategy = self.distribute_strategy

        def run(batch):
            outputs = strategy.run(step, (batch,))
            return {name: strategy.experimental_local_results(value)[0] for name, value in outputs.items()}

        if self.run_eagerly:
            return run
        whole = self.jit_compile and strategy.num_replicas_in_sync == 1
        return tf.function(run, jit_compile=whole, autograph=False)

    def _maybe_symbolic_build(self, *args, **kwargs):
        """Nothing: all is built. Keras would read a batch and average it over the replicas."""

    def _skip(self, iterator) -> bool:
        if self._skipping and self.source.steps is not None:
            next(iterator)  # of a dataset with an end, the length of an epoch must stay
        return self._skipping

    def fit(
        self, x, *, epochs=1, steps_per_epoch=None, callbacks=None, verbose="auto", initial_epoch=0,
        validation_data=None, validation_steps=None, validation_freq=1,
    ):  # fmt: skip
        """As keras.Model.fit, on a :func:`block_dataset`.

        An epoch is ``steps_per_epoch`` steps of an endless dataset: what lies between two validations. A dataset with an
        end starts again with every epoch.

        Returns:
            The keras.callbacks.History.

        Raises:
            InputError: the dataset is no block_dataset or has the rows of another strategy, has no end although
                ``steps_per_epoch`` was not given, or its rows do not divide into the micro-batches.
        """
        self._check(x, "fit", steps_per_epoch)
        if validation_data is not None:
            self._check(validation_data, "fit", validation_steps)
        source, replicas = x.source, self.distribute_strategy.num_replicas_in_sync
        rows, rest = divmod(source.shape[0] * source.hosts, replicas * self.accumulation)
        if rest or not rows:
            raise InputError(
                f"{source.shape[0] * source.hosts} rows a step do not divide into {replicas} replicas of {self.accumulation} "
                f"micro-batches each; take a batch_size that is a multiple of {replicas * self.accumulation}"
            )
        self.source, self.first_batch, self.first_logs = source, 0, {}
        source.step, source.error = source.start, None
        steps = steps_per_epoch or source.steps
        callbacks = _Callbacks(
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
                warnings.filterwarnings("ignore", EXPECTED)
                return super().fit(
                    x, epochs=epochs, steps_per_epoch=steps_per_epoch, callbacks=callbacks, verbose=verbose, shuffle=False,
                    initial_epoch=initial_epoch, validation_data=validation_data, validation_steps=validation_steps,
                    validation_freq=validation_freq,
                )  # fmt: skip
        except tf.errors.OpError:
            if source.error is not None:
                raise source.error from None
            raise
        finally:
            source.step, self.source, self._initial_epoch, self._skipping = source.start, None, None, False

    def evaluate(self, x, *, steps=None, verbose="auto", callbacks=None, return_dict=False, **kwargs):
        """As keras.Model.evaluate: the mean ``loss`` in nats over all labelled tokens, and the ``perplexity``."""
        if not kwargs.get("_use_cached_eval_dataset"):
            self._check(x, "evaluate", steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", EXPECTED)
            return super().evaluate(
                x, steps=steps, verbose=verbose, callbacks=callbacks, return_dict=return_dict, **kwargs
            )

    def _check(self, data, what: str, steps: int | None) -> None:
        """Whether a dataset has an end, and was made for this model's strategy."""
        source = getattr(data, "source", None)
        if not isinstance(source, Source):
            raise InputError(f"{what} got {type(data).__name__}; it takes what block_dataset made, as it is")
        if source.steps is None and not steps:
            raise InputError(
                "the dataset has no end; give steps_per_epoch to fit, steps to evaluate, or steps to block_dataset"
            )
        if source.steps is not None and steps and steps != source.steps:
            raise InputError(
                f"the dataset ends after {source.steps} batches, and {what} is to take {steps}; leave that out, or make the "
                f"dataset with steps={steps}"
            )
        if hasattr(source.batches, "objective") and hasattr(source.batches.blocks, "block_length"):
            length = source.batches.blocks.block_length
            check_model(source.batches.objective, self.model.config, self.model.head, length)
        distributed = not isinstance(data, tf.data.Dataset)
        if distributed != (self._distribute_strategy is not None):
            raise InputError(
                "the dataset was made for "
                + ("a strategy, and the model under none" if distributed else "no strategy, and the model under one")
                + "; pass the same strategy to block_dataset, and make the model inside its scope()"
            )


class _Callbacks(keras.callbacks.CallbackList):
    """Callbacks that do not hear of the batches an earlier run has done: Keras counts through them, nothing is computed."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model._skipping = batch < self.model.first_batch
        if not self.model._skipping:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if not self.model._skipping:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.model.first_batch, self.model._skipping = 0, False
        super().on_epoch_end(epoch, logs)


def model_inputs(config, batch: Mapping) -> dict:
    """What the model is called with for a batch of blocks: documents that share a row do not see each other.

    Args:
        batch: input_ids int [B, T], and optionally segment_ids int [B, T], equal within a document; for an encoder-decoder
            input_ids and attention_mask [B, S], and decoder_input_ids [B, U], which are returned.

    Returns:
        input_ids; and with segments the attention_mask bool [B, T, T] and position_ids int32 [B, T], which begin again
        with each document.
    """
    if config.decoder is not None:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    inputs = {"input_ids": batch["input_ids"]}
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        same = tf.equal(tf.expand_dims(segments, 2), tf.expand_dims(segments, 1))  # [B, T, T]
        columns = tf.range(segments.shape[1])
        earlier = tf.expand_dims(columns, 0) < tf.expand_dims(columns, 1)
        before = tf.reduce_sum(tf.cast(same & earlier, tf.int32), axis=2)
        inputs |= {"attention_mask": same, "position_ids": config.embedding.position_offset + before}
    return inputs
