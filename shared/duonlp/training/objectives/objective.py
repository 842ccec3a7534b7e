"""What a loss over several forward passes of one model is: which inputs each pass reads, and the terms of their outputs.

``fit(model, batches, config, objective=...)`` of both engines trains with one. The loss is written once, over ``ops``, so a new
objective is one file for both engines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from duonlp import numpy_ops
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.inputs import LOGIT_POSITIONS, check_inputs, main_input
from duonlp.typing import Array, Batch, Ops

Terms = dict[str, tuple[Array, Array, float]]
"""(sum, count, factor) of each term of a loss, which is the sum of factor * sum / count; 0 for a count of 0."""

PARAMETERS = "objective"
"""Key of an objective's own parameters among the trained ones."""


@dataclass(frozen=True)
class Group:
    """The inputs of one forward pass in a batch.

    Attributes:
        prefix: Beginning of their names: "augmented_" for ``augmented_input_ids``; "" for the plain names.
        several: Whether there are several texts per row, so that arrays are [B, R, ...]. The model reads them as [B x R, ...].
        dropout: Whether the pass has dropout in training.
        gradient: Whether the loss is differentiated through the pass; otherwise its outputs are constants.
    """

    prefix: str = ""
    several: bool = False
    dropout: bool = True
    gradient: bool = True

    def inputs(self, config: TransformerConfig, batch: Batch) -> dict[str, Array]:
        """Return the inputs of the pass under their plain names, with the axes that they have in the batch.

        Raises:
            InputError: The batch lacks the model's main input.
        """
        names = (*(spec.name for spec in config.inputs), LOGIT_POSITIONS)
        named = {name: batch[self.prefix + name] for name in names if self.prefix + name in batch}
        if main_input(config) not in named:
            raise InputError(
                f"the batch has {', '.join(batch) or 'no arrays'}; the objective needs {self.prefix}{main_input(config)}"
            )
        return named

    def flat(self, ops: Ops, config: TransformerConfig, batch: Batch) -> dict[str, Array]:
        """Return the inputs of the pass as the model reads them, [B x R, ...] for several texts per row."""
        inputs = self.inputs(config, batch)
        if not self.several:
            return inputs
        shapes = {name: [ops.size(x, axis) for axis in range(2, len(x.shape))] for name, x in inputs.items()}
        return {name: ops.reshape(x, (-1, *shapes[name])) for name, x in inputs.items()}

    def check(self, config: TransformerConfig, head: str, batch: Batch) -> None:
        """Raise InputError unless a model with a head takes the inputs, NumPy arrays."""
        axes = {spec.name: len(spec.axes) for spec in config.inputs} | {LOGIT_POSITIONS: 2}
        for name, value in self.inputs(config, batch).items():
            expected = axes[name] + self.several
            if np.ndim(value) != expected:
                raise InputError(
                    f"{self.prefix}{name} has shape {list(np.shape(value))}; it must have {expected} axes"
                    + (", the second of which is the texts of a row" if self.several else "")
                )
        check_inputs(config, head, self.flat(numpy_ops, config, batch))


@dataclass(frozen=True)
class Objective:
    """Base of the objectives: frozen dataclasses, since compiled programs depend on their fields.

    Attributes:
        groups: The forward passes, in the order in which :meth:`terms` gets their outputs.
    """

    groups: ClassVar[tuple[Group, ...]] = (Group(),)

    @property
    def counts_depend_on_outputs(self) -> bool:
        """Whether the count of a term depends on the outputs of the model.

        Then a step must be one program over one batch: without accumulation, pmap, or several replicas.
        """
        return False

    def terms(
        self,
        ops: Ops,
        losses: ModuleType,
        head: str,
        config: TransformerConfig,
        outputs: Sequence[Mapping[str, Array]],
        batch: Batch,
        parameters: Mapping[str, Array],
    ) -> Terms:
        """Return the terms of the loss of a batch before division, so that they add up over its parts.

        Several terms are logged one by one under their names, without their factors, which must be positive constants.

        Args:
            ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
            losses: ``tfnlp.losses`` or ``jaxnlp.losses``.
            head: Head of the model.
            config: Configuration of the model.
            outputs: Outputs of the model for each group.
            batch: Arrays [B, ...]. Rows whose :data:`duonlp.heads.ROW_MASK` is 0 fill up the batch and must not count.
            parameters: The objective's own parameters by name.
        """
        raise NotImplementedError

    def parameters(self, config: TransformerConfig, seed: int) -> dict[str, np.ndarray]:
        """Return the initial values of parameters that are trained beside the model's, float32, by name; by default none."""
        return {}

    def check_model(self, head: str, config: TransformerConfig) -> None:
        """Raise InputError if a model with this head cannot be trained with the objective."""

    def check(self, head: str, config: TransformerConfig, batch: Batch) -> None:
        """Raise InputError unless a batch of NumPy arrays has the inputs of all groups."""
        for group in self.groups:
            group.check(config, head, batch)

    def describe(self) -> dict[str, Any]:
        """Return entries of run.json that must be the same to resume a run."""
        return {"objective": {"name": type(self).__name__, **asdict(self)}}

    def save(self, folder: str | Path, parameters: Mapping[str, np.ndarray]) -> None:
        """Write the objective's own parameters beside the model; without any, nothing."""


def check_objective(
    objective: Objective, model: Any, accumulation: int = 1, parts: int = 1, label_smoothing: float = 0.0
) -> None:
    """Raise InputError unless a model can be trained with an objective.

    Args:
        objective: The objective.
        model: The model.
        accumulation: Microbatches of a batch.
        parts: Programs that each compute a part of a batch: replicas, or the devices of pmap.
        label_smoothing: Label smoothing of the head's own loss, which an objective replaces.
    """
    if not isinstance(objective, Objective):
        raise InputError(f"objective is {objective!r}; pass an Objective of duonlp.training.objectives")
    if not isinstance(getattr(model, "config", None), TransformerConfig):
        raise InputError(
            f"a {type(model).__name__} has several parts, which no objective can train; pass a single model"
        )
    if label_smoothing:
        raise InputError(f"label_smoothing is {label_smoothing}, but an objective has its own loss; leave it at 0")
    if objective.counts_depend_on_outputs and accumulation * parts > 1:
        raise InputError(
            f"{type(objective).__name__} counts texts by the model's outputs, which only a whole batch can; set accumulation "
            f"to 1 and use one device or jaxnlp's parallelism='jit' (accumulation is {accumulation}, devices {parts})"
        )
    objective.check_model(model.head, model.config)
