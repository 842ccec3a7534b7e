"""Train a model with an objective over several forward passes; ``fit(..., objective=...)`` uses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from duonlp.config import TransformerConfig
from duonlp.training import objectives
from duonlp.training.fit_config import FitConfig
from duonlp.training.objectives.objective import PARAMETERS, check_objective
from duonlp.typing import Batch, Tokenizer
from jaxnlp import losses, ops
from jaxnlp.pretrained import Params
from jaxnlp.training.loop import filled
from jaxnlp.training.mesh import make_mesh, shard_rows
from jaxnlp.training.model import Trainable
from jaxnlp.training.objectives import NamedTerms, Objective
from jaxnlp.training.step import Step, check_can_learn, make_plan


class ObjectiveModel:
    """A model with the parameters of an objective of its own, such as a head on top of its embeddings.

    Args:
        model: The model.
        objective: The objective.
        parameters: The objective's own parameters by name, float32.

    Attributes:
        head: Head of the model.
        config: Configuration of the model.
    """

    def __init__(self, model: Any, objective: objectives.Objective, parameters: Mapping[str, np.ndarray]):
        self.model, self.objective, self.parameters = model, objective, dict(parameters)

    @property
    def head(self) -> str:
        """Head of the model."""
        return self.model.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the model."""
        return self.model.config

    def with_parameters(self, step: "GroupedStep", params: Params) -> Any:
        """Return this with trained parameters, from ``GroupedStep.model_parameters``; the model alone if it has all of them."""
        params = dict(params)
        own = {name: np.asarray(value) for name, value in params.pop(PARAMETERS, {}).items()}
        model = filled(step.trainable, self.model, params)
        return ObjectiveModel(model, self.objective, own) if own else model

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write the model in Hugging Face layout, and the objective's own parameters beside it."""
        self.model.save_pretrained(folder, tokenizer)
        self.objective.save(folder, self.parameters)


@dataclass(frozen=True)
class GroupedLoss(Objective):
    """The terms of an objective over the forward passes of its groups.

    Attributes:
        objective: The objective.
    """

    objective: objectives.Objective

    def terms(
        self, model: Trainable, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return the objective's terms; ``params`` may have its own parameters under "objective"."""
        outputs = []
        for number, group in enumerate(self.objective.groups):
            inputs = shard_rows(group.flat(ops, model.config, batch), model.mesh)
            dropout = None if key is None or not group.dropout else jax.random.fold_in(key, number)
            result = model.outputs(params, inputs, dropout)
            outputs.append(result if group.gradient else jax.lax.stop_gradient(result))
        own = params.get(PARAMETERS, {})
        return self.objective.terms(ops, losses, model.head, model.config, outputs, batch, own)

    def metrics(self, terms: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return the parts of the loss, if there are several, without their factors."""
        return {name: mean for name, (mean, _, _) in terms.items()} if len(terms) > 1 else {}

    def check(self, model: Trainable, batch: Batch) -> None:
        """Raise InputError unless the batch has the inputs of all groups."""
        self.objective.check(model.head, model.config, batch)

    def describe(self) -> dict[str, Any]:
        """Return the name and the settings of the objective."""
        return self.objective.describe()


class GroupedStep(Step):
    """The step of ``fit`` with an objective over several forward passes.

    Args:
        model: The model; it is not changed.
        objective: The objective.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: The parameters are not float32, or the objective does not suit the model or the settings.
    """

    def __init__(self, model: Any, objective: objectives.Objective, config: FitConfig, mesh: Mesh | None = None):
        mesh = make_mesh(config.mesh) if mesh is None else mesh
        parts = mesh.size if config.parallelism == "pmap" else 1
        check_objective(objective, model, config.accumulation, parts, config.label_smoothing)
        check_can_learn(model, needs_labels=False)
        own = objective.parameters(model.config, config.seed)
        extra = {PARAMETERS: own} if own else {}
        super().__init__(make_plan(model, GroupedLoss(objective), config, mesh), model, mesh, config.seed, extra=extra)

    def _unstack(self, params: Params) -> Params:
        return super()._unstack(params) | {name: params[name] for name in (PARAMETERS,) if name in params}
