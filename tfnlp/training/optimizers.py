"""Optimizers by name, without weight decay on biases and norms, and the learning rate schedule of duonlp.training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.parameters import decays
from duonlp.pruning import Pruning, mask_shapes
from duonlp.training.config import OPTIMIZERS
from duonlp.training.layer_decay import check_layer_decay, rate_factor
from duonlp.training.schedules import learning_rate_at
from tfnlp.pretrained import parameter_tree
from tfnlp.pruning.keras_masks import variable_name

# The final class is a Keras optimizer, which the type checker needs to know of the mixin.
_Optimizer = keras.optimizers.Optimizer if TYPE_CHECKING else object

register = keras.saving.register_keras_serializable(package="tfnlp")


@register
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate schedule of a run, as in both packages: step s has the rate at progress (s + 0.5) / steps.

    The middle of a step is used so that neither the first nor the last step has a rate of 0. All rates are computed at
    construction by ``duonlp.training.learning_rate_at`` and looked up in the graph.

    Args:
        steps: Steps of the run; the rate keeps its last value after them.
        peak: Peak learning rate.
        schedule: Shape after warmup: "cosine", "linear", "inverse_sqrt" or "constant".
        warmup_share: Share of the run in which the rate rises from 0.
        final_share: Final rate as a share of the peak.
        accumulation: The optimizer's gradient_accumulation_steps, since Keras counts batches, not steps.

    Raises:
        InputError: An argument is out of range.
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
            raise InputError(f"steps is {steps} and accumulation {accumulation}; both must be at least 1")
        self.peak, self.schedule, self.warmup_share, self.final_share = peak, schedule, warmup_share, final_share
        self.accumulation = accumulation
        rates = [
            learning_rate_at(
                (step + 0.5) / steps, peak=peak, schedule=schedule, warmup_share=warmup_share, final_share=final_share
            )
            for step in range(steps)
        ]
        self.rates = np.array(rates, np.float32)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Return the learning rate of a step, counted from 0 (of a batch, with accumulation)."""
        step = tf.minimum(tf.cast(step, tf.int32) // self.accumulation, len(self.rates) - 1)
        return tf.gather(tf.constant(self.rates), step)

    def with_accumulation(self, accumulation: int) -> "Schedule":
        """Return the same schedule for an optimizer with other gradient_accumulation_steps."""
        return Schedule(
            len(self.rates), self.peak, schedule=self.schedule, warmup_share=self.warmup_share,
            final_share=self.final_share, accumulation=accumulation,
        )  # fmt: skip

    def get_config(self) -> dict[str, Any]:
        return {
            "steps": len(self.rates),
            "peak": self.peak,
            "schedule": self.schedule,
            "warmup_share": self.warmup_share,
            "final_share": self.final_share,
            "accumulation": self.accumulation,
        }


class PerVariableRates(_Optimizer):
    """Mixin of optimizers for a learning rate per variable.

    Keras takes the norm of an embedding's gradient over its slices, before slices of the same row are summed. Here they
    are summed first.

    Args:
        args: Arguments of the optimizer.
        rate_factors: Factor on the learning rate and the weight decay by variable path, without the model's name; 1 for
            all other variables.
        undecayed: Paths of variables without weight decay. Unlike these, variables passed to
            ``exclude_from_weight_decay`` are not saved.
        options: Keyword arguments of the optimizer.
    """

    def __init__(
        self, *args: Any, rate_factors: Mapping[str, float] | None = None, undecayed: Iterable[str] = (), **options: Any
    ):
        super().__init__(*args, **options)
        self.rate_factors, self.undecayed = dict(rate_factors or {}), sorted(undecayed)
        self._factors: dict[Any, float] = {}  # variable key -> factor
        self._undecayed_keys: set[Any] = set()

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the optimizer's state for the variables."""
        undecayed = set(self.undecayed)
        for variable in variables:
            path, key = path_in_model(variable), self._var_key(variable)
            if path in self.rate_factors:
                self._factors[key] = float(self.rate_factors[path])
            if path in undecayed:
                self._undecayed_keys.add(key)
        super().build(variables)

    def _distributed_tf_update_step(
        self, distribution: tf.distribute.Strategy, grads_and_vars: Iterable[tuple[Any, Any]], learning_rate: Any
    ) -> None:
        def update(variable: Any, gradient: Any, rate: Any, factor: float) -> None:
            self.update_step(gradient, variable, rate if factor == 1 else rate * factor)

        for gradient, variable in grads_and_vars:
            factor = self._factors.get(self._var_key(variable), 1.0)
            distribution.extended.update(variable, update, args=(gradient, learning_rate, factor), group=False)

    def _use_weight_decay(self, variable: Any) -> bool:
        return self._var_key(variable) not in self._undecayed_keys and super()._use_weight_decay(variable)

    def _apply_weight_decay(self, variables: Iterable[Any]) -> None:
        if not self.weight_decay:
            return

        def decay(variable: Any) -> None:
            if self._use_weight_decay(variable):
                rate = self.learning_rate * self.weight_decay * self._factors.get(self._var_key(variable), 1.0)
                variable.assign_sub(variable * tf.cast(rate, variable.dtype))

        def decay_all(distribution: tf.distribute.Strategy, variables: Iterable[Any]) -> None:
            for variable in variables:
                distribution.extended.update(getattr(variable, "value", variable), decay, group=False)

        # Like Keras' own method, which has a single rate for all variables.
        tf.__internal__.distribute.interim.maybe_merge_call(decay_all, self._distribution_strategy, variables)

    def _clip_gradients(self, gradients: Iterable[Any]) -> list[Any]:
        # An embedding's gradient has one slice per token; densify it, since slices of the same row must be summed.
        return super()._clip_gradients([None if g is None else tf.convert_to_tensor(g) for g in gradients])

    def get_config(self) -> dict[str, Any]:
        """Return the configuration that Keras writes into a ``.keras`` file."""
        return super().get_config() | {"rate_factors": self.rate_factors, "undecayed": self.undecayed}


def _handle(variable: Any) -> tf.Tensor:
    """Return the resource handle of a Keras or TensorFlow variable."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def path_in_model(variable: Any) -> str:
    """Return a Keras variable's path without the name of its model, which may differ once the model is reloaded."""
    return getattr(variable, "path", "").partition("/")[2]


@register
class AdamW(PerVariableRates, keras.optimizers.AdamW):
    """Keras' AdamW with epsilon added after bias correction (Kingma & Ba 2015, algorithm 1), as in PyTorch and optax.

    Keras adds it before, which makes it up to 1 / sqrt(1 - beta_2) times as large in the first steps, so loss curves
    would differ from PyTorch's and optax's.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
        power1, power2 = tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)
        # A fused kernel, in one pass over all four arrays. It adds epsilon before bias correction, which is undone here.
        scalars_and_gradient = {
            "beta1_power": power1, "beta2_power": power2, "lr": learning_rate, "beta1": self.beta_1, "beta2": self.beta_2,
            "epsilon": self.epsilon * tf.sqrt(1 - power2), "grad": tf.convert_to_tensor(gradient),
        }  # fmt: skip
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable), m=_handle(self._momentums[index]), v=_handle(self._velocities[index]),
            **{name: tf.cast(value, variable.dtype) for name, value in scalars_and_gradient.items()},
        )  # fmt: skip


@register
# pyrefly: ignore[inconsistent-inheritance]  # Keras' optimizers do not agree on the name of build's argument
class Lion(PerVariableRates, keras.optimizers.Lion):
    """Keras' Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675) with a learning rate per variable."""


@register
class Adafactor(PerVariableRates, keras.optimizers.Optimizer):
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235) without first moments, as in optax and jaxnlp.

    keras.optimizers.Adafactor differs: it stores the full second moments beside their factors, which saves no memory;
    it also factors small matrices, and along the last two axes instead of the two largest; and it caps the learning
    rate at 1 / sqrt(step).

    Args:
        learning_rate: Learning rate relative to the root mean square of each parameter; 1e-3 is usual (Raffel et al.
            2020).
        beta_2_decay: Exponent of the second moments' decay, which is 1 - t ** beta_2_decay at step t.
        epsilon_1: Added to squared gradients.
        epsilon_2: Lower bound of a parameter's root mean square.
        clip_threshold: Upper bound of the root mean square of a parameter's update.
        least_factored: Smallest second-largest axis of a parameter whose moments are factored.
        name: Name of the optimizer.
        options: Options of every Keras optimizer: weight_decay, global_clipnorm, gradient_accumulation_steps, ...
    """

    def __init__(
        self, learning_rate: Any = 1e-3, *, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3, clip_threshold: float = 1.0, least_factored: int = 128, name: str = "adafactor",
        **options: Any,
    ):  # fmt: skip
        super().__init__(learning_rate=learning_rate, name=name, **options)
        self.beta_2_decay, self.epsilon_1, self.epsilon_2 = beta_2_decay, epsilon_1, epsilon_2
        self.clip_threshold, self.least_factored = clip_threshold, least_factored

    def _factored_axes(self, shape: Iterable[int]) -> tuple[int, int] | None:
        """Return the two largest axes, the largest last; None if the moments are not factored."""
        shape = tuple(shape)
        if len(shape) < 2:
            return None
        second, first = (int(axis) for axis in np.argsort(shape)[-2:])
        return (second, first) if shape[second] >= self.least_factored else None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the optimizer's state: per variable its second moments, or the means over either factored axis."""
        if self.built:
            return
        super().build(variables)
        self._moments: list[list[keras.Variable]] = []
        for variable in variables:
            shape, axes = tuple(variable.shape), self._factored_axes(variable.shape)
            shapes = [shape] if axes is None else [(*shape[:axis], *shape[axis + 1 :]) for axis in reversed(axes)]
            name = f"{variable.name}_moment"
            self._moments.append([self.add_variable(shape=shape, dtype=variable.dtype, name=name) for shape in shapes])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)
        decay = 1 - tf.pow(step, tf.cast(self.beta_2_decay, variable.dtype))
        square, axes = tf.square(gradient) + self.epsilon_1, self._factored_axes(variable.shape)
        moments = self._moments[self._get_variable_index(variable)]
        means = [square] if axes is None else [tf.reduce_mean(square, axis) for axis in reversed(axes)]
        for moment, mean in zip(moments, means):
            self.assign(moment, decay * moment + (1 - decay) * mean)
        if axes is None:
            update = gradient * tf.math.rsqrt(tf.convert_to_tensor(moments[0]))
        else:
            (second, first), (rows, columns) = axes, (tf.convert_to_tensor(moment) for moment in moments)
            mean = tf.reduce_mean(rows, second - 1 if second > first else second, keepdims=True)
            update = gradient * tf.expand_dims(tf.math.rsqrt(rows / mean), first)
            update *= tf.expand_dims(tf.math.rsqrt(columns), second)
        update /= tf.maximum(1.0, _root_mean_square(update) / self.clip_threshold)
        learning_rate, size = tf.cast(learning_rate, variable.dtype), _root_mean_square(tf.convert_to_tensor(variable))
        if self.weight_decay and self._use_weight_decay(variable):
            size /= 1 - learning_rate * self.weight_decay  # undoes the decay that Keras has applied already
        self.assign_sub(variable, learning_rate * tf.maximum(size, self.epsilon_2) * update)

    def get_config(self) -> dict[str, Any]:
        names = "beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold", "least_factored"
        return super().get_config() | {name: getattr(self, name) for name in names}


def _root_mean_square(x: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(x)))


def make_optimizer(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    model: Any,
    *,
    weight_decay: float = 0.1,
    beta1: float = 0.9,
    beta2: float | None = None,
    epsilon: float = 1e-8,
    clip_norm: float | None = 1.0,
    accumulation: int = 1,
    layer_decay: float = 1.0,
    pruning: Pruning | None = None,
) -> keras.optimizers.Optimizer:
    """Return an optimizer for a model, created under the model's own tf.distribute strategy.

    Args:
        name: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018) or "lion" (Chen et al. 2023).
        learning_rate: A :class:`Schedule`, another Keras schedule, or a number.
        model: A tfnlp model, whose biases and norms get no weight decay.
        weight_decay: Decoupled weight decay, multiplied by the learning rate only.
        beta1: Decay of the first moment (adamw and lion).
        beta2: Decay of the second moment (adamw, 0.95 by default), or of the momentum (lion, 0.99 by default).
        epsilon: Epsilon of adamw.
        clip_norm: Largest global norm of the gradients of the whole batch; None for no clipping.
        accumulation: Keras' gradient_accumulation_steps: batches per step, whose gradients are averaged with equal weight.
            A :class:`Schedule` then counts such steps. (A Pretrainer has its own accumulation, which weighs tokens.)
        layer_decay: Factor between the learning rates, and the weight decays, of neighboring layers, the top layer having
            the largest (duonlp.training.layer_decay). 1.0 disables it.
        pruning: Settings of ``compile(pruning=...)``, whose scores get a learning rate of their own and no weight decay.

    Raises:
        InputError: The optimizer is unknown, or a number is out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if weight_decay < 0:
        raise InputError(f"weight_decay is {weight_decay}; it must be 0 or more")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip_norm is {clip_norm}; it must be positive, or None for no clipping")
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1 (one rate for all layers)")
    if accumulation < 1:
        raise InputError(f"accumulation is {accumulation}; it must be at least 1 batch")
    tree = parameter_tree(model)
    options: dict[str, Any] = {"weight_decay": weight_decay, "global_clipnorm": clip_norm}
    options["undecayed"] = [path_in_model(variable) for path, variable in tree.items() if not decays(path)]
    check_layer_decay(model.config, layer_decay)
    if layer_decay != 1:
        options["rate_factors"] = {
            path_in_model(variable): rate_factor(path, model.config, layer_decay) for path, variable in tree.items()
        }
    if pruning is not None and pruning.trains_scores:
        scores = [variable_name(path) for path in mask_shapes(pruning, model.config, model.head)]
        options["undecayed"] += scores
        options["rate_factors"] = options.get("rate_factors", {}) | dict.fromkeys(scores, pruning.score_rate)
    if accumulation > 1:
        options["gradient_accumulation_steps"] = accumulation
        if isinstance(learning_rate, Schedule):
            learning_rate = learning_rate.with_accumulation(accumulation)
    options["learning_rate"] = float(learning_rate) if isinstance(learning_rate, int) else learning_rate
    with model.distribute_strategy.scope():
        if name == "adamw":
            return AdamW(beta_1=beta1, beta_2=0.95 if beta2 is None else beta2, epsilon=epsilon, **options)
        if name == "lion":
            return Lion(beta_1=beta1, beta_2=0.99 if beta2 is None else beta2, **options)
        return Adafactor(**options)
