"""Optimizers by name, with the learning rate of shared/duonlp/training/schedules.py and no decay on biases and norms."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.parameters import decays
from duonlp.training.config import OPTIMIZERS
from duonlp.training.layer_decay import rate_factor
from duonlp.training.schedules import learning_rate_at
from tfnlp.pretrained import parameter_tree

register = keras.saving.register_keras_serializable(package="tfnlp")


@register
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step of a run, as both packages have it: that of step s is that at (s + 0.5) / steps.

    The middle of a step, so that neither the first nor the last is wasted on a rate of nothing. All rates are computed
    once, by the one definition, and looked up in the graph.

    Args:
        steps: of the run; the rate stays at its last value after them.
        peak, schedule, warmup_share, final_share: see ``duonlp.training.learning_rate_at``.
        accumulation: batches a step is made of, where the optimizer has as many gradient_accumulation_steps: Keras counts
            batches.
    """

    def __init__(
        self,
        steps: int,
        peak: float,
        *,
        schedule: str = "cosine",
        warmup_share: float = 0.05,
        final_share: float = 0.05,
        accumulation: int = 1,
    ):
        if steps < 1 or accumulation < 1:
            raise InputError(f"steps is {steps} and accumulation {accumulation}; a run has at least 1 of each")
        self.options = {"peak": peak, "schedule": schedule, "warmup_share": warmup_share, "final_share": final_share}
        self.accumulation = accumulation
        self.rates = np.array([learning_rate_at((s + 0.5) / steps, **self.options) for s in range(steps)], np.float32)

    def __call__(self, step):
        step = tf.minimum(tf.cast(step, tf.int32) // self.accumulation, len(self.rates) - 1)
        return tf.gather(tf.constant(self.rates), step)

    def get_config(self):
        return {"steps": len(self.rates), **self.options, "accumulation": self.accumulation}


class Rates:
    """Mixin of optimizers: a learning rate for each variable, and gradients that are summed before they are clipped, over
    replicas and over the tokens of an embedding. (Keras clips each replica's gradient, and takes the norm of an embedding's
    rows before it sums what falls on the same row.)

    Args:
        rate_factors: variable path, without the model's name, to what its learning rate and its weight decay are multiplied
            with; 1 for all that are not in it.
        undecayed: paths of variables that do not decay. What ``exclude_from_weight_decay`` is told besides is not saved.
        options: the optimizer's.
    """

    def __init__(self, *args, rate_factors: Mapping[str, float] | None = None, undecayed=(), **options):
        super().__init__(*args, **options)
        self.rate_factors, self.undecayed = dict(rate_factors or {}), sorted(undecayed)
        self._factors, self._still = {}, set()
        self.sums_gradients = True
        """False where whoever calls ``apply`` has summed them over the replicas."""

    def build(self, variables):
        """Makes the optimizer's state for the variables."""
        undecayed = set(self.undecayed)
        for variable in variables:
            path, key = path_in_model(variable), self._var_key(variable)
            if path in self.rate_factors:
                self._factors[key] = float(self.rate_factors[path])
            if path in undecayed:
                self._still.add(key)
        super().build(variables)

    def _distributed_tf_update_step(self, distribution, grads_and_vars, learning_rate):
        def update(variable, gradient, rate, factor):
            self.update_step(gradient, variable, rate if factor == 1 else rate * factor)

        for gradient, variable in grads_and_vars:
            factor = self._factors.get(self._var_key(variable), 1.0)
            distribution.extended.update(variable, update, args=(gradient, learning_rate, factor), group=False)

    def _use_weight_decay(self, variable):
        return self._var_key(variable) not in self._still and super()._use_weight_decay(variable)

    def _apply_weight_decay(self, variables):
        if not self.weight_decay:
            return

        def decay(variable):
            if self._use_weight_decay(variable):
                rate = self.learning_rate * self.weight_decay * self._factors.get(self._var_key(variable), 1.0)
                variable.assign_sub(variable * tf.cast(rate, variable.dtype))

        def decay_all(distribution, variables):
            for variable in variables:
                distribution.extended.update(getattr(variable, "value", variable), decay, group=False)

        # as Keras' own, which knows one rate for all
        tf.__internal__.distribute.interim.maybe_merge_call(decay_all, self._distribution_strategy, variables)

    def _clip_gradients(self, gradients):
        # An embedding's gradient has a slice for each token: their norm is not that of their sum.
        gradients = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
        if self.sums_gradients:
            gradients = [gradient for gradient, _ in super()._all_reduce_sum_gradients([(g, None) for g in gradients])]
        return super()._clip_gradients(gradients)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars  # they were summed to be clipped

    def get_config(self):
        """What Keras writes into a ``.keras`` file."""
        return super().get_config() | {"rate_factors": self.rate_factors, "undecayed": self.undecayed}


def _handle(variable):
    """Where TensorFlow keeps a variable, Keras' or its own."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def path_in_model(variable) -> str:
    """A Keras variable's path without the name of its model, which a model that is loaded again may have changed."""
    return getattr(variable, "path", "").partition("/")[2]


@register
class AdamW(Rates, keras.optimizers.AdamW):
    """Keras' AdamW with epsilon where the paper and everyone else has it (Kingma & Ba 2015, algorithm 1).

    Keras adds it before the bias is corrected, which makes it up to 1 / sqrt(1 - beta_2) times as large in the first
    steps: the curve of a run would not be PyTorch's or optax's.
    """

    def update_step(self, gradient, variable, learning_rate):
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
        power1, power2 = tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)
        # One pass over all four arrays. Its epsilon stands before the bias is corrected, so that is undone.
        numbers = {
            "beta1_power": power1, "beta2_power": power2, "lr": learning_rate, "beta1": self.beta_1, "beta2": self.beta_2,
            "epsilon": self.epsilon * tf.sqrt(1 - power2), "grad": tf.convert_to_tensor(gradient),
        }  # fmt: skip
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable), m=_handle(self._momentums[index]), v=_handle(self._velocities[index]),
            **{name: tf.cast(value, variable.dtype) for name, value in numbers.items()},
        )  # fmt: skip


@register
class Lion(Rates, keras.optimizers.Lion):
    """Keras' Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675), with a learning rate for each variable."""


@register
class Adafactor(Rates, keras.optimizers.Optimizer):
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235) without first moments, as optax and jaxnlp have it.

    keras.optimizers.Adafactor is another: it keeps the second moments written out beside their factors, and so saves no
    memory; it factors small matrices, too, and along the last two axes instead of the two largest; and its learning rate
    is never above 1 / sqrt(step), whatever it is set to.

    Args:
        learning_rate: relative to the root mean square of each parameter; 1e-3 is usual (Raffel et al. 2020).
        beta_2_decay: the decay of the second moments at step t is 1 - t ** beta_2_decay.
        epsilon_1: added to squared gradients. epsilon_2: smallest root mean square of a parameter.
        clip_threshold: largest root mean square of a parameter's update.
        least_factored: matrices with fewer rows or columns are not factored.
        options: of every optimizer of Keras: weight_decay, global_clipnorm, gradient_accumulation_steps, ...
    """

    def __init__(
        self, learning_rate=1e-3, *, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30, epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0, least_factored: int = 128, name: str = "adafactor", **options,
    ):  # fmt: skip
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.beta_2_decay, self.epsilon_1, self.epsilon_2 = beta_2_decay, epsilon_1, epsilon_2
        self.clip_threshold, self.least_factored = clip_threshold, least_factored

    def _factored(self, shape) -> tuple[int, int] | None:
        """The two largest axes, the larger one last; None where the moments are kept whole."""
        shape = tuple(shape)
        if len(shape) < 2:
            return None
        second, first = (int(axis) for axis in np.argsort(shape)[-2:])
        return (second, first) if shape[second] >= self.least_factored else None

    def build(self, var_list):
        if self.built:
            return
        super().build(var_list)
        self._moments = []
        for variable in var_list:
            shape, factored = tuple(variable.shape), self._factored(variable.shape)
            shapes = (
                [shape] if factored is None else [(*shape[:axis], *shape[axis + 1 :]) for axis in reversed(factored)]
            )
            self._moments.append(
                [self.add_variable(shape=each, dtype=variable.dtype, name=f"{variable.name}_moment") for each in shapes]
            )

    def update_step(self, gradient, variable, learning_rate):
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)
        decay = 1 - tf.pow(step, tf.cast(self.beta_2_decay, variable.dtype))
        square, factored = tf.square(gradient) + self.epsilon_1, self._factored(variable.shape)
        moments = self._moments[self._get_variable_index(variable)]
        means = [square] if factored is None else [tf.reduce_mean(square, axis) for axis in reversed(factored)]
        for moment, mean in zip(moments, means):
            self.assign(moment, decay * moment + (1 - decay) * mean)
        if factored is None:
            update = gradient * tf.math.rsqrt(tf.convert_to_tensor(moments[0]))
        else:
            (second, first), (rows, columns) = factored, (tf.convert_to_tensor(moment) for moment in moments)
            mean = tf.reduce_mean(rows, second - 1 if second > first else second, keepdims=True)
            update = gradient * tf.expand_dims(tf.math.rsqrt(rows / mean), first)
            update *= tf.expand_dims(tf.math.rsqrt(columns), second)
        update /= tf.maximum(1.0, _root_mean_square(update) / self.clip_threshold)
        learning_rate, size = tf.cast(learning_rate, variable.dtype), _root_mean_square(tf.convert_to_tensor(variable))
        if self.weight_decay and self._use_weight_decay(variable):
            size /= 1 - learning_rate * self.weight_decay  # Keras has decayed it already
        self.assign_sub(variable, learning_rate * tf.maximum(size, self.epsilon_2) * update)

    def get_config(self):
        names = "beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "least_factored"
        return super().get_config() | {name: getattr(self, name) for name in names}


def _root_mean_square(x):
    return tf.sqrt(tf.reduce_mean(tf.square(x)))


def make_optimizer(
    name: str,
    learning_rate,
    model,
    *,
    weight_decay: float = 0.1,
    beta1: float = 0.9,
    beta2: float | None = None,
    epsilon: float = 1e-8,
    clip_norm: float | None = 1.0,
    accumulation: int = 1,
    layer_decay: float = 1.0,
) -> keras.optimizers.Optimizer:
    """An optimizer for a model, made under the model's own tf.distribute strategy.

    Args:
        name: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
        learning_rate: a :class:`Schedule`, any other of Keras', or a number.
        model: a model of this package, whose biases and norms will not decay.
        weight_decay: decoupled: multiplied with the learning rate, and with nothing else.
        beta1, beta2: decay of the moments, for adamw (beta2 0.95 when None) and lion (0.99).
        epsilon: of adamw.
        clip_norm: largest global norm of the gradients of the whole batch; None for no limit.
        accumulation: batches whose gradients' mean is one step: Keras' gradient_accumulation_steps, each batch weighing the
            same. A :class:`Schedule` goes by such steps. (A Pretrainer has its own, which weighs tokens.)
        layer_decay: the share of the learning rate, and of the weight decay, that a layer has of the one above it
            (duonlp.training.layer_decay); 1.0: all have the same.

    Raises:
        InputError: no such optimizer, or a number that is out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if weight_decay < 0 or (clip_norm is not None and not clip_norm > 0):
        raise InputError(f"weight_decay is {weight_decay} and clip_norm {clip_norm}; at least 0, and above 0 or None")
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay is {layer_decay}; it must be a share above 0, and at most 1 (the same for all)")
    if isinstance(learning_rate, int):
        learning_rate = float(learning_rate)
    if accumulation < 1:
        raise InputError(f"accumulation is {accumulation}; it is a number of batches, 1 or more")
    tree = parameter_tree(model)
    options = {"weight_decay": weight_decay, "global_clipnorm": clip_norm}
    options["undecayed"] = [path_in_model(variable) for path, variable in tree.items() if not decays(path)]
    if layer_decay != 1:
        options["rate_factors"] = {
            path_in_model(variable): rate_factor(path, model.config, layer_decay) for path, variable in tree.items()
        }
    if accumulation > 1:
        options["gradient_accumulation_steps"] = accumulation
        if isinstance(learning_rate, Schedule):
            learning_rate = Schedule(**(learning_rate.get_config() | {"accumulation": accumulation}))
    options["learning_rate"] = learning_rate
    with model.distribute_strategy.scope():
        if name == "adamw":
            return AdamW(beta_1=beta1, beta_2=0.95 if beta2 is None else beta2, epsilon=epsilon, **options)
        if name == "lion":
            return Lion(beta_1=beta1, beta_2=0.99 if beta2 is None else beta2, **options)
        return Adafactor(**options)
