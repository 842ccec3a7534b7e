"""Train a model with an objective over several forward passes; ``fit(..., objective=...)`` uses it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.inputs import model_inputs
from duonlp.training.objectives import Objective
from duonlp.training.objectives.objective import check_objective
from duonlp.typing import Tokenizer
from tfnlp import losses, ops
from tfnlp.pretrained import parameter_tree
from tfnlp.steps.step import TrainStep
from tfnlp.steps.terms import PartsOfLoss, Terms
from tfnlp.trainer_mixin import TrainerMixin


class ObjectiveModel(TrainerMixin, keras.Model):
    """A model with an objective over several forward passes: ``compile(optimizer)``, then ``fit`` and ``evaluate``.

    They log the ``loss`` and, if there are several, its terms by name, without their factors.

    Args:
        model: The model, created under the strategy to train with; it is trained in place.
        objective: The objective.
        seed: Seed of the objective's own parameters.

    Attributes:
        head: Head of the model.
        config: Configuration of the model.
        parameters: The objective's own parameters by name, such as those of a head on top of embeddings.

    Raises:
        InputError: The objective does not suit the model.
    """

    def __init__(self, model: Any, objective: Objective, seed: int = 0):
        check_objective(objective, model)
        with model.distribute_strategy.scope():
            super().__init__(dtype=model.dtype_policy, autocast=False, name=f"{model.name}_objective")
            self.model, self.objective = model, objective
            self.parameters = {
                name: self.add_weight(
                    shape=value.shape, dtype="float32", initializer=keras.initializers.Constant(value), name=name
                )
                for name, value in objective.parameters(model.config, seed).items()
            }
            self.parts = PartsOfLoss(name="parts")
        self.built = True

    @property
    def head(self) -> str:
        """Head of the model."""
        return self.model.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the model."""
        return self.model.config

    def trained_model(self) -> Any:
        """Return the model in training: this if the objective has parameters of its own, else the model alone."""
        return self if self.parameters else self.model

    def parameter_tree(self) -> dict[str, keras.Variable]:
        """Return the parameters of the model by path, and the objective's own below "objective"."""
        own = {f"objective/{name}": variable for name, variable in self.parameters.items()}
        return parameter_tree(self.model) | own

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the model's outputs; of a batch, it reads the inputs it takes."""
        return self.model(model_inputs(self.config, inputs), training=training)

    def compile(self, optimizer: Any = "adamw", *, accumulation: int = 1, **options: Any) -> None:
        """Prepare for training.

        Args:
            optimizer: As for keras.Model.compile, or from tfnlp.training.make_optimizer.
            accumulation: Microbatches that each batch is split into.
            options: Options of keras.Model.compile, and ``seed``.

        Raises:
            InputError: There is another loss, or the objective does not allow the accumulation or the replicas.
        """
        if options.get("loss") is not None:
            raise InputError("an objective has its own loss; omit loss=")
        smoothing = options.get("label_smoothing", 0.0)
        check_objective(self.objective, self.model, accumulation, self._replicas(), smoothing)
        super().compile(optimizer, accumulation=accumulation, **options)

    def check_batch(self, batch: Any, y: Any = None) -> None:
        """Raise InputError unless a batch of NumPy arrays has the inputs of all groups."""
        self.objective.check(self.head, self.config, batch)

    def _standard_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def _count_terms(self, batch: Any, exact: bool = True) -> dict[str, tf.Tensor]:
        return TrainStep._count_terms(self, batch)

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        outputs = []
        for group in self.objective.groups:
            result = self.model(group.flat(ops, self.config, batch), training=training and group.dropout)
            outputs.append(result if group.gradient else tf.nest.map_structure(tf.stop_gradient, result))
        own = {name: variable.value for name, variable in self.parameters.items()}
        terms = self.objective.terms(ops, losses, self.head, self.config, outputs, batch, own)
        self.parts.factors = tuple((name, float(factor)) for name, (_, _, factor) in terms.items())
        return {name: (factor * total, count) for name, (total, count, factor) in terms.items()}, outputs[0]

    def _update_logs(self, terms: Terms) -> dict[str, Any]:
        self.parts.update_state(terms)
        return super()._update_logs(terms)

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write the model in Hugging Face layout, and the objective's own parameters beside it."""
        self.model.save_pretrained(folder, tokenizer)
        self.objective.save(folder, {name: variable.numpy() for name, variable in self.parameters.items()})

    def get_config(self) -> dict[str, Any]:
        """Raise InputError, since the model cannot be recreated without the one it wraps."""
        raise InputError(
            "a model with an objective cannot be saved as a whole; use save_pretrained, or, to resume training, save_weights"
        )
