"""Masks in Keras' fit: kernels times their masks in each forward pass, and new masks where they are due."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.pruning import Pruning, compute_masks, expand, mask_shapes
from tfnlp.pretrained import parameter_tree
from tfnlp.steps.terms import Terms


class _Scope(keras.StatelessScope):
    """Scope with other values of some variables, in which all others are updated as outside of it."""

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Assign to a variable, such as the state of a dropout generator."""
        variable, value = update
        variable._direct_assign(value)


def variable_name(path: str, name: str = "scores") -> str:
    """Return the name of the variable with the scores, or the mask, of a kernel."""
    return f"{path.replace('/', '_')}_{name}"


class KerasMasks:
    """The masks, and the trained scores, of a model in training; a model has them from ``compile(pruning=...)``.

    Args:
        model: The model, whose own parameters stay dense until the training ends.
        settings: Which weights to prune.

    Attributes:
        settings: The settings, with the end of the schedule once it is known.
        scores: Trained scores by path of the kernel; {} for pruning by magnitude.
        masks: bool masks by path of the kernel.
        penalty: Weight of soft movement's penalty.

    Raises:
        InputError: The settings do not fit the model.
    """

    def __init__(self, model: Any, settings: Pruning):
        self.settings = settings
        self._step: int | None = None  # of the last update; None before the first, where a resumed run has its masks
        self._shapes = mask_shapes(settings, model.config, model.head)
        tree = parameter_tree(model)
        self._kernels = {path: tree[path] for path in self._shapes}

        def variables(name: str, dtype: str, initial: str, trainable: bool) -> dict[str, keras.Variable]:
            return {
                path: keras.Variable(
                    initial, shape=shape, dtype=dtype, trainable=trainable, name=variable_name(path, name)
                )
                for path, shape in self._shapes.items()
            }

        with model.distribute_strategy.scope(), keras.name_scope("pruning"):
            self.masks = variables("mask", "bool", "ones", False)
            self.scores = variables("scores", "float32", "zeros", True) if settings.trains_scores else {}
            self.penalty = keras.Variable(0.0, dtype="float32", trainable=False, name="penalty")

    @property
    def variables(self) -> list[keras.Variable]:
        """Scores, masks and the weight of the penalty."""
        return [*self.scores.values(), *self.masks.values(), self.penalty]

    def scope(self) -> keras.StatelessScope:
        """Return a scope in which the model computes with pruned kernels.

        The gradient of a kernel is masked. That of a score is that of its mask: W (sg(M) + S - sg(S)), the straight-through
        estimator of Sanh et al. 2020.
        """
        return _Scope([(self._kernels[path], self._pruned(path)) for path in self._shapes])

    def _pruned(self, path: str) -> tf.Tensor:
        kernel: Any = tf.convert_to_tensor(self._kernels[path])
        gate = tf.cast(self.masks[path].value, kernel.dtype)
        if path in self.scores:
            score = tf.cast(self.scores[path].value, kernel.dtype)
            gate += score - tf.stop_gradient(score)
        for axis in (0, 1):
            times = kernel.shape[axis] // self._shapes[path][axis]
            gate = gate if times == 1 else tf.repeat(gate, times, axis)
        return kernel * gate

    def terms(self, share: float) -> Terms:
        """Return soft movement's penalty as a term of the loss: its weight times the mean of sigmoid(score).

        Args:
            share: Share of the batch that the term is for.
        """
        if self.settings.method != "soft-movement":
            return {}
        size = sum(int(np.prod(shape)) for shape in self._shapes.values())
        total = tf.add_n([tf.reduce_sum(tf.sigmoid(score.value)) for score in self.scores.values()]) / size
        return {"penalty": (self.penalty.value * total * share, tf.constant(share))}

    def begin(self, total: int) -> None:
        """Set the number of optimizer steps of the run; raise InputError if the schedule does not fit into them."""
        self.settings = self.settings.resolved(total)

    def update(self, step: int) -> None:
        """Compute the masks after ``step`` optimizer steps, if they have become due since the last call."""
        first = step if self._step is None else min(self._step + 1, step)
        due = any(self.settings.due(number) for number in range(first, step + 1))
        self._step = step
        if not due:
            return
        values = {path: variable.numpy() for path, variable in (self.scores or self._kernels).items()}
        for path, mask in compute_masks(self.settings, self._shapes, values, step).items():
            self.masks[path].assign(mask)
        self.penalty.assign(self.settings.penalty_at(step))

    def apply(self) -> dict[str, np.ndarray]:
        """Set the pruned weights of the model to zero; return the kernels as they were."""
        dense = {path: variable.numpy() for path, variable in self._kernels.items()}
        for path, variable in self._kernels.items():
            variable.assign(dense[path] * expand(self.masks[path].numpy(), dense[path].shape))
        return dense

    @contextmanager
    def applied(self) -> Generator[None]:
        """Keep the pruned weights zero while the context is active, such as for an evaluation."""
        dense = self.apply()
        try:
            yield
        finally:
            for path, variable in self._kernels.items():
                variable.assign(dense[path])


class UpdateMasks(keras.callbacks.Callback):
    """Compute masks where they are due, and set the pruned weights to zero at the end; ``fit`` adds it by itself.

    Args:
        masks: The masks of the model.
    """

    # Set by Keras.
    model: Any

    def __init__(self, masks: KerasMasks):
        super().__init__()
        self.masks = masks

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.masks.settings.end is None:
            params: Any = self.params
            if not params.get("steps"):
                raise InputError(
                    "the number of steps of the run is unknown; set end of the Pruning, or steps_per_epoch"
                )
            self.masks.begin(params["epochs"] * params["steps"])

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.masks.update(int(self.model.step.numpy()))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.masks.apply()
