"""Training of RAG models with Keras' compile and fit: the question encoder and the generator, not the documents' vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.labels import WEIGHTS, array_of
from duonlp.rag import Marginal
from duonlp.rag.inputs import check_batch
from duonlp.typing import Array
from tfnlp import ops
from tfnlp.pretrained import parameter_tree
from tfnlp.steps.terms import Terms
from tfnlp.trainer_mixin import TrainerMixin

# The final class is a TrainerMixin and a RagBase, which the type checker needs to know of this mixin.
_Trainer: Any = TrainerMixin if TYPE_CHECKING else object


class RagTraining(_Trainer):
    """Mixin of RAG models that reads batches and computes the loss, for TrainerMixin.

    Attributes:
        config: Configuration of the model.
        parts: The two models by name.
        marginal_class: How it marginalizes over documents.
    """

    config: Any
    parts: dict[str, Any]
    marginal_class: type[Marginal]
    _smoothing: float = 0.0

    @property
    def marginal(self) -> Marginal:
        """How the model marginalizes over documents."""
        options = {"label_smoothing": self._smoothing} if self._smoothing else {}
        return self.marginal_class(self.config.with_options(**options))

    def parameter_tree(self) -> dict[str, keras.Variable]:
        """Return all parameters by path, which begins with the name of their part."""
        trees = {name: parameter_tree(part) for name, part in self.parts.items()}
        return {f"{name}/{path}": variable for name, tree in trees.items() for path, variable in tree.items()}

    @property
    def targets(self) -> dict[str, str]:
        """Label name to the name of the output that its loss is computed from."""
        return {"labels": "logits"}

    def compile(self, optimizer: Any = "rmsprop", *args: Any, label_smoothing: float = 0.0, **options: Any) -> None:
        """Prepare for training with the model's own loss; see TrainStep.compile.

        Args:
            optimizer: From ``tfnlp.training.make_optimizer``, or any Keras optimizer.
            args: Further arguments of keras.Model.compile.
            label_smoothing: Label smoothing in place of the configuration's; 0 for that.
            options: Further options of TrainStep.compile.

        Raises:
            InputError: A loss or metric is passed.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if options.get(name) is not None or args:
                raise InputError(f"a RAG model trains with its own loss only; omit {name}=")
        super().compile(optimizer, **options)
        self._smoothing = label_smoothing

    def check_batch(self, batch: Array | Mapping[str, Array], y: Any = None) -> None:
        """Raise InputError for a batch of NumPy arrays that the model cannot train on."""
        if not isinstance(batch, Mapping):
            raise InputError(f"the batch is a {type(batch).__name__}; pass a dict of the inputs of a RAG model")
        check_batch(self.config, {**batch, **({} if y is None else {"labels": y})})

    def _read(self, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        if weights is not None:
            raise InputError("sample_weight is not supported by a RAG model; omit it")
        self.check_batch(x, y)
        return {name: np.asarray(array_of(name, value)) for name, value in x.items()}, y, None

    def _as_batch(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {**x, **({} if y is None else {"labels": y})}

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name not in (ROW_MASK, WEIGHTS)}

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        model: Any = self
        outputs = model(self._inputs(batch), training=training)
        return self.marginal.loss_terms(ops, outputs, batch) | self._added_terms(self.losses, batch), outputs

    def _count_terms(self, batch: Any, exact: bool = True) -> dict[str, tf.Tensor]:
        rows = batch[ROW_MASK] if ROW_MASK in batch else tf.ones(tf.shape(batch["labels"])[:1])
        return {"loss": tf.reduce_sum(tf.cast(rows, tf.float32))}

    def predict_step(self, data: Any) -> dict[str, Any]:
        """Return the outputs for a batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        model: Any = self
        return model(self._inputs(x), training=False)
