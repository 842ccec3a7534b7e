"""Optimizers by name, with the learning rate of shared/training/schedules.py and no decay on biases and norms."""

import keras
import numpy as np
import tensorflow as tf

from shared.errors import InputError
from shared.parameters import decays
from shared.training.config import OPTIMIZERS
from shared.training.schedules import learning_rate_at
from tfnlp.pretrained import parameter_tree

register = keras.saving.register_keras_serializable(package="tfnlp")


@register
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step of a run, as both packages have it: that of step s is that at (s + 0.5) / steps.

    The middle of a step, so that neither the first nor the last is wasted on a rate of nothing. All rates are computed
    once, by the one definition, and looked up in the graph.

    Args:
        steps: of the run; the rate stays at its last value after them.
        peak, schedule, warmup_share, final_share: see ``shared.training.schedules.learning_rate_at``.
    """

    def __init__(
        self,
        steps: int,
        peak: float,
        *,
        schedule: str = "cosine",
        warmup_share: float = 0.05,
        final_share: float = 0.05,
    ):
        if steps < 1:
            raise InputError(f"steps is {steps}; a run has at least 1")
        self.options = {"peak": peak, "schedule": schedule, "warmup_share": warmup_share, "final_share": final_share}
        self.rates = np.array([learning_rate_at((s + 0.5) / steps, **self.options) for s in range(steps)], np.float32)

    def __call__(self, step):
        step = tf.minimum(tf.cast(step, tf.int32), len(self.rates) - 1)
        return tf.gather(tf.constant(self.rates), step)

    def get_config(self):
        return {"steps": len(self.rates), **self.options}


@register
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW with epsilon where the paper and everyone else has it (Kingma & Ba 2015, algorithm 1).

    Keras adds it before the bias is corrected, which makes it up to 1 / sqrt(1 - beta_2) times as large in the first
    steps: the curve of a run would not be PyTorch's or optax's.
    """

    def update_step(self, gradient, variable, learning_rate):
        gradient = tf.cast(gradient, variable.dtype)
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
        mean, square = self._momentums[index], self._velocities[index]
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(square, (tf.square(gradient) - square) * (1 - self.beta_2))
        corrected = tf.cast(1 / (1 - tf.pow(self.beta_1, step)), variable.dtype)
        root = tf.sqrt(square * tf.cast(1 / (1 - tf.pow(self.beta_2, step)), variable.dtype)) + self.epsilon
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * corrected * mean / root)


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
) -> keras.optimizers.Optimizer:
    """An optimizer for a model, made under the model's own tf.distribute strategy.

    Args:
        name: "adamw" (Loshchilov & Hutter 2019), "adafactor" (Shazeer & Stern 2018; Keras' own, which saves no memory: it
            keeps the second moments unfactored as well) or "lion" (Chen et al. 2023).
        learning_rate: a :class:`Schedule`, any other of Keras', or a number.
        model: a model of this package, whose biases and norms will not decay.
        weight_decay: decoupled: multiplied with the learning rate, and with nothing else.
        beta1, beta2: decay of the moments, for adamw (beta2 0.95 when None) and lion (0.99).
        epsilon: of adamw.
        clip_norm: largest global norm of the gradients of the whole batch; None for no limit.

    Raises:
        InputError: no such optimizer, or a number that is out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if weight_decay < 0 or (clip_norm is not None and not clip_norm > 0):
        raise InputError(f"weight_decay is {weight_decay} and clip_norm {clip_norm}; at least 0, and above 0 or None")
    if isinstance(learning_rate, int):
        learning_rate = float(learning_rate)
    options = {"learning_rate": learning_rate, "weight_decay": weight_decay, "global_clipnorm": clip_norm}
    with model.distribute_strategy.scope():
        if name == "adamw":
            optimizer = AdamW(beta_1=beta1, beta_2=0.95 if beta2 is None else beta2, epsilon=epsilon, **options)
        elif name == "lion":
            optimizer = keras.optimizers.Lion(beta_1=beta1, beta_2=0.99 if beta2 is None else beta2, **options)
        else:
            optimizer = keras.optimizers.Adafactor(relative_step=False, **options)
    still = [variable for path, variable in parameter_tree(model).items() if not decays(path)]
    optimizer.exclude_from_weight_decay(var_list=still)
    return optimizer
