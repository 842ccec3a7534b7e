"""The training step: gradients of sums of losses, divided once by the counts of the whole global batch."""

import math
from collections.abc import Callable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
import tensorflow as tf

from duonlp.checkpoints.pretrained import PretrainedBase
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK, check_label_smoothing
from duonlp.quantization import check_trainable
from tfnlp import ops
from tfnlp.kernels.choice import trains_with_xla
from tfnlp.steps.terms import MeanOfTerms, Terms, UncountedTermsError, divide, total_loss

# The final class is a keras.Model, which the type checker needs to know of its mixins.
_Model = keras.Model if TYPE_CHECKING else object

REPLICA_STRIDE = 0x3C6EF35F
"""Difference between the dropout seeds of two neighboring replicas."""

JIT_COMPILE = 7
"""Number of positional arguments after the optimizer with which keras.Model.compile is given ``jit_compile``."""

MOST_DRAWS = 256
"""Largest number of draws from one dropout generator in a forward pass; ALBERT's layers share theirs."""


def check_not_quantized(model: keras.Model) -> None:
    """Raise InputError if a model, or a part of it such as an encoder of a bi-encoder, has integers for weights."""
    for part in model._flatten_layers():
        if isinstance(part, PretrainedBase):
            check_trainable(part.config)


class TrainStep(_Model):
    """Mixin with compile and the steps of fit and evaluate, the same for every model, loss and tf.distribute strategy.

    A loss is a total of terms, each a sum divided by a count. The counts of the whole batch are added up first, over all
    microbatches and replicas, and the gradients of the parts' sums are divided by them. So the gradient is that of the
    whole batch however it is split, and the optimizer clips it as a whole.

    Attributes:
        head: Name of the model's head.
        config: The model's configuration.
        accumulation: Microbatches a step is split into.
        masks: Masks of pruning, a tfnlp.pruning.keras_masks.KerasMasks; None without it.
    """

    head: str
    config: TransformerConfig
    accumulation: int = 1
    _seed: int | None = None
    _label_smoothing: float = 0.0
    _exact_counts: bool = False
    masks: Any = None

    # Created by keras.Model.compile.
    _loss_tracker: Any
    _compile_loss: Any
    _compile_metrics: Any
    optimizer: Any

    def trained_model(self) -> Any:
        """Return the model in training, which is saved and evaluated."""
        return self

    @property
    def step(self) -> keras.Variable:
        """Number of optimizer steps done, without those that loss scaling has skipped."""
        return self.optimizer.iterations

    def _as_batch(self, data: Any) -> dict[str, Any]:
        """Return what a dataset yields as one dict of arrays [B, ...]."""
        raise NotImplementedError

    def _prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add what the loss needs and the trained model does not compute, such as a teacher's outputs."""
        return batch

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        """Return the terms of a batch's loss, and the outputs that metrics compare with the labels."""
        raise NotImplementedError

    def _update_compiled_metrics(self, batch: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Update the metrics of compile by a batch's outputs."""
        raise NotImplementedError

    def compile(
        self, optimizer: Any = "rmsprop", *args: Any, accumulation: int = 1, seed: int | None = None,
        label_smoothing: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        """Prepare for training; see keras.Model.compile.

        Args:
            optimizer: From ``tfnlp.training.make_optimizer``, or any Keras optimizer created under the model's strategy.
            args: Further arguments of keras.Model.compile.
            accumulation: Microbatches that each batch is split into, computed one after the other.
            seed: Seed for dropout, which then depends on it, the step and the replica alone. None leaves dropout to Keras.
            label_smoothing: Label smoothing of the head's own loss.
            options: Further options of keras.Model.compile. ``jit_compile="auto"`` leaves the choice to Keras, unless
                TensorFlow's own kernels are faster than XLA's (tfnlp.kernels.choice.trains_with_xla). With several replicas,
                ``jit_compile`` compiles all but the sums over replicas and the update.

        Raises:
            InputError: An argument is out of range, or the optimizer was created under another strategy.
        """
        if accumulation < 1:
            raise InputError(f"accumulation is {accumulation}; it must be at least 1 microbatch")
        check_label_smoothing(self.head, self.config, label_smoothing)
        is_open = len(args) < JIT_COMPILE and options.get("jit_compile", "auto") == "auto"
        if is_open and not trains_with_xla(self.trained_model().compute_dtype):
            options["jit_compile"] = False
        # Keras keeps those of an earlier compile that are not replaced.
        self._compile_loss = self._compile_metrics = None
        self.__dict__.pop("loss", None)
        with self.distribute_strategy.scope():
            super().compile(optimizer, *args, **options)
            # Not by assignment, since Keras would then count it among the layer's metrics as well.
            object.__setattr__(self, "_loss_tracker", MeanOfTerms(name="loss"))
        self.accumulation, self._seed, self._label_smoothing = accumulation, seed, label_smoothing
        self._exact_counts = False
        self._compile_config.config |= {"accumulation": accumulation, "seed": seed, "label_smoothing": label_smoothing}
        functions: list[Callable[..., Any]] = [self._all_counts, self._sum_gradients]
        if self.distribute_strategy.num_replicas_in_sync > 1:
            self._disable_reduction(getattr(self.optimizer, "inner_optimizer", self.optimizer))
            if self.jit_compile:
                functions = [tf.function(function, jit_compile=True, autograph=False) for function in functions]
        self._counts, self._gradients = functions

    @property
    def variables(self) -> list[keras.Variable]:
        """Return Keras' variables, and the scores and masks of pruning."""
        return [*super().variables, *([] if self.masks is None else self.masks.variables)]

    def _masked_terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        """Return :meth:`_terms` of the pruned model."""
        if self.masks is None:
            return self._terms(batch, training)
        with self.masks.scope():
            terms, outputs = self._terms(batch, training)
        return terms | (self.masks.terms(self._share(training)) if training else {}), outputs

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as before saving; Keras' own method skips models that override compile."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _disable_reduction(self, optimizer: Any) -> None:
        """Stop an optimizer from summing gradients over replicas: the step does so, before they are clipped."""
        if optimizer._distribution_strategy is not self.distribute_strategy:
            raise InputError("the optimizer was created under another strategy; create it inside strategy.scope()")
        assert hasattr(optimizer, "_all_reduce_sum_gradients")
        optimizer._all_reduce_sum_gradients = lambda pairs: pairs

    def _replicas(self) -> int:
        return self.distribute_strategy.num_replicas_in_sync

    def _make_function(self, step_function: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        """Return a function that runs a step on the next batch of an iterator.

        With several replicas, it returns the logs of the first one, which are those of all, and the compiled metrics of
        all rows. Keras would average them, which fails with several workers, and would compile the communication between
        replicas as well.
        """
        strategy, several = self.distribute_strategy, self._replicas() > 1
        if self.steps_per_execution > 1 and not several:
            return super()._make_function(step_function)

        def run(batch: Any) -> dict[str, Any]:
            outputs = strategy.run(step_function, (batch,))
            logs = tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], outputs)
            # Inside the step, a replica only sees what it has added to a metric itself.
            return {**logs, **self._compile_metrics.result()} if several and self._compile_metrics is not None else logs

        run_any = run
        if not self.run_eagerly:
            run = tf.function(run, jit_compile=self.jit_compile and not several, autograph=False, reduce_retracing=True)
            run_any = _trace_for_any_rows(run) if several else run
        run_fixed, run_any = map(self._autoconvert_optionals, (run, run_any))

        def run_steps(iterator: Any) -> dict[str, Any]:
            run = run_fixed if _has_fixed_shapes(iterator) else run_any
            batch = next(iterator)
            logs = run(self._split_over_replicas(batch) if isinstance(iterator, GeneratorType) else batch)
            for _ in range(self.steps_per_execution - 1):
                try:
                    batch = next(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    break  # the logs of the steps before are those of the epoch
                logs = run(batch)
            return logs

        return run_steps

    def _split_over_replicas(self, batch: Any) -> Any:
        """Return a batch of arrays [B, ...] from train_on_batch as tensors, of which each replica gets a share of the rows."""
        leaves = tf.nest.flatten(batch)
        arrays = [tf.convert_to_tensor(leaf) for leaf in leaves if leaf is not None]
        if self._replicas() > 1:
            size = -(-cast(int, arrays[0].shape[0]) // self._replicas())

            def share(context: Any) -> list[tf.Tensor]:
                first = context.replica_id_in_sync_group * size
                return [array[first : first + size] for array in arrays]

            arrays = self.distribute_strategy.experimental_distribute_values_from_function(share)
        remaining = iter(arrays)
        return tf.nest.pack_sequence_as(batch, [leaf if leaf is None else next(remaining) for leaf in leaves])

    def train_step(self, data: Any) -> dict[str, Any]:
        """Run one optimizer step on this replica's rows and return the logs.

        Raises:
            InputError: Trained parameters are stored in float16.
        """
        self._check_parameters()
        batch = self._as_batch(data)
        try:
            counts, parts = self._differentiate(batch)
        except UncountedTermsError:
            self._exact_counts = True
            counts, parts = self._differentiate(batch)
        terms, gradients = self._sum_over_replicas(parts)
        scale = _unit(counts or counts_of(terms)) / _first(counts_of(terms))
        gradients = [tf.cast(gradient, tf.float32) * scale for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._update_logs(terms)

    def _check_parameters(self) -> None:
        """Raise InputError for quantized parameters, and for trained ones in float16, where epsilons of optimizers become 0."""
        check_not_quantized(self.trained_model())
        if any(variable.dtype == "float16" for variable in self.trainable_variables):
            raise InputError(
                "parameters stored in float16 cannot be trained, since optimizers underflow; load the model with "
                "dtype='float16' and param_dtype='float32', or set Keras' policy to 'mixed_float16'"
            )

    def test_step(self, data: Any) -> dict[str, Any]:
        """Return the logs of all batches evaluated so far."""
        batch = self._prepare(self._as_batch(data))
        terms, outputs = self._masked_terms(batch, training=False)
        self._update_compiled_metrics(batch, outputs)
        return self._update_logs(self._sum_over_replicas(terms))

    def _differentiate(self, batch: dict[str, Any]) -> tuple[dict[str, tf.Tensor] | None, Any]:
        """Return the counts of the terms over all replicas, if there are several parts, and this replica's sums."""
        counts = None
        if self.accumulation * self._replicas() > 1:  # otherwise the only part of the batch has them
            counts = self._sum_over_replicas(self._counts(batch, self._exact_counts))
        self._seed_dropout(tf.distribute.get_replica_context())
        return counts, self._gradients(batch, counts)

    def _sum_over_replicas(self, values: Any) -> Any:
        if self._replicas() == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def _count_terms(self, batch: Any, exact: bool = True) -> dict[str, tf.Tensor]:
        """Return the count of each term, which depends on the batch alone: TensorFlow drops the rest of the computation.

        Unless `exact`, that of a single term may be any number of the same magnitude.
        """
        terms, _ = self._terms(self._prepare(batch), training=False)
        return counts_of(terms)

    def _all_counts(self, batch: Any, exact: bool) -> dict[str, tf.Tensor]:
        """Return the counts of all terms of this replica's rows, that of pruning's penalty included."""
        penalty = {} if self.masks is None else self.masks.terms(self._share(training=True) * self.accumulation)
        return {**self._count_terms(batch, exact), **counts_of(penalty)}

    def _sum_gradients(self, batch: Any, counts: dict[str, tf.Tensor] | None) -> tuple[Terms, list[tf.Tensor]]:
        """Return the terms of a replica's rows, and the gradient of the loss, times its first count and the loss scale.

        The gradient is divided by the power of two next to the count, which rounds nothing, since float16 could not hold
        that of a sum.

        Args:
            batch: Arrays [B, ...] by name.
            counts: Count of each term over all replicas; None if there is nothing else than this batch.
        """
        variables, pieces = self.trainable_variables, self.accumulation

        def microbatch(batch: Any) -> tuple[Terms, list[tf.Tensor]]:
            batch = self._prepare(batch)  # outside the tape, which would keep the activations of a teacher
            with tf.GradientTape() as tape:
                terms, outputs = self._masked_terms(batch, training=True)
                known = counts or counts_of(terms)
                if not set(terms) <= set(known):
                    raise UncountedTermsError
                relative = {name: count / _first(known) * _unit(known) for name, count in known.items()}
                scaled = self.optimizer.scale_loss(total_loss(terms, relative))
            self._update_compiled_metrics(batch, outputs)
            gradients = tape.gradient(scaled, variables)  # None where the loss does not read a parameter
            terms = {name: terms.get(name, (tf.zeros(()), tf.zeros(()))) for name in known}
            # Dense, since an embedding's slices of the same row must be summed before the gradient is clipped.
            return terms, [
                tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
                for v, g in zip(variables, gradients)
            ]

        if pieces == 1 or counts is None:
            return microbatch(batch)
        rows = ops.size(tf.nest.flatten(batch)[0], 0)
        size = (rows + pieces - 1) // pieces
        offsets = tf.range(size)

        def add(index: tf.Tensor, *sums: Any) -> tuple[Any, ...]:
            indices, is_even = index * size + offsets, isinstance(rows, int) and rows % pieces == 0
            if not is_even and not self.jit_compile:  # XLA needs equal shapes; some losses cannot leave out a row
                indices = indices[: tf.maximum(rows - index * size, 1)]
            piece = tf.nest.map_structure(lambda x: tf.gather(x, tf.minimum(indices, rows - 1)), batch)
            if not is_even:  # the last row is repeated, and the copies are masked
                is_real = indices < rows
                piece[ROW_MASK] = is_real & tf.cast(piece.get(ROW_MASK, is_real), tf.bool)
            terms, gradients = microbatch(piece)
            gradients = [tf.cast(gradient, tf.float32) for gradient in gradients]
            return index + 1, *tf.nest.map_structure(tf.add, sums, (terms, gradients))

        zeros = (
            {name: (tf.zeros(()), tf.zeros(())) for name in counts},
            [tf.zeros(variable.shape, tf.float32) for variable in variables],
        )
        state = (tf.constant(0), *zeros)
        return tf.while_loop(lambda index, *_: index < pieces, add, state, parallel_iterations=1)[1:]

    def _seed_dropout(self, replica: tf.distribute.ReplicaContext) -> None:
        """Make dropout depend on the seed, the step and the replica alone."""
        if self._seed is None:
            return
        layers = self._flatten_layers()
        generators = [layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None]
        seeds = np.random.SeedSequence(self._seed).generate_state(max(len(generators), 1))
        number = tf.cast(replica.replica_id_in_sync_group, tf.int64)
        count = tf.cast(self.step.value, tf.int64) * self.accumulation * MOST_DRAWS
        for generator, seed in zip(generators, seeds):
            generator.state.assign(
                tf.cast(tf.stack([int(seed) + number * REPLICA_STRIDE, count]), generator.state.dtype)
            )

    def _share(self, training: bool) -> float:
        """Return the count of a loss that is a sum, which is not divided: 1 over all parts of the global batch."""
        return 1.0 / (self._replicas() * (self.accumulation if training else 1))

    def _update_logs(self, terms: Terms) -> dict[str, Any]:
        """Update the means over all batches so far by the terms of the global batch, and return all metrics."""
        self._loss_tracker.update_state(terms)
        if self._compile_loss is not None and self._compile_loss.metrics:  # one for each of several losses, unweighted
            for metric, loss in zip(self._compile_loss.metrics, self._compile_loss._flat_losses):
                total, count = terms[metric.name]
                metric.update_state(divide(total, count) / (loss.loss_weights or 1.0), sample_weight=count)
        return self.get_metrics_result()


def _trace_for_any_rows(function: Any) -> Callable[[Any], Any]:
    """Return a tf.function that is traced for any number of rows of its batch.

    Workers may have different numbers of rows, and their collectives only match if all of them trace in the same steps.
    """
    traced = set()

    def run(batch: Any) -> Any:
        specs = tf.nest.map_structure(_any_rows, batch)
        key = tuple(tf.nest.flatten(specs))
        if key not in traced and not tf.config.functions_run_eagerly():
            function.get_concrete_function(specs)  # which calls with any number of rows use from then on
            traced.add(key)
        return function(batch)

    return run


def _has_fixed_shapes(iterator: Any) -> bool:
    """Return whether all batches of a dataset's iterator are known to have the same shapes, as pretraining blocks have."""
    specs = tf.nest.flatten(getattr(iterator, "element_spec", None), expand_composites=True)
    return all(isinstance(spec, tf.TensorSpec) and spec.shape.is_fully_defined() for spec in specs)


def _any_rows(value: Any) -> Any:
    """Return the type of a tensor [B, ...], or of one for each replica, with an unknown B."""
    if isinstance(value, tf.Tensor):
        return tf.TensorSpec([None, *value.shape[1:]], value.dtype)
    if isinstance(value, tf.distribute.DistributedValues):
        return type(value._type_spec)(*map(_any_rows, value._values))
    return value


def counts_of(terms: Terms) -> dict[str, tf.Tensor]:
    """Return the count of each term."""
    return {name: count for name, (_, count) in terms.items()}


def _first(counts: dict[str, tf.Tensor]) -> tf.Tensor:
    """Return the first count, at least 1."""
    return tf.maximum(next(iter(counts.values())), 1.0)


def _unit(counts: dict[str, tf.Tensor]) -> tf.Tensor:
    """Return the power of two next to the first count."""
    return tf.pow(2.0, tf.round(tf.math.log(_first(counts)) / math.log(2)))
