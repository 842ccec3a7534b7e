"""The optimizer step of fine-tuning a model with any head: a pure function over plain pytrees, jitted over a mesh."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from duonlp import heads
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, NO_POSITION, outputs_of
from duonlp.inputs import check_inputs
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import rate_factor
from duonlp.typing import Batch
from jaxnlp import losses, ops
from jaxnlp.pretrained import merge, split
from jaxnlp.training.mesh import PyTree, batch_sharding, replicated, shardings
from jaxnlp.training.model import shard_rows
from jaxnlp.training.optimizers import make_optimizer
from jaxnlp.training.step import Metrics, State, accumulate_gradients

Terms: TypeAlias = tuple[tuple[jax.Array, jax.Array], ...]
"""(sum, count) of each term of a loss, which is the sum of sum / count. Counts depend on the labels only."""

NamedTerms: TypeAlias = dict[str, tuple[jax.Array, jax.Array, float]]
"""(sum, count, factor) of each part of a loss, which is the sum of factor * sum / count."""

LossFunction: TypeAlias = Callable[[Mapping[str, Any], Batch], Terms]
"""``(outputs of the model, batch) -> Terms``."""

PROGRAM_SETTINGS = (
    "accumulation", "optimizer", "weight_decay", "beta1", "beta2", "clip_norm", "label_smoothing", "layer_decay",
)  # fmt: skip
"""Settings of a FitConfig that a compiled step depends on."""


def loss_terms(
    head: str, config: TransformerConfig, outputs: Mapping[str, Any], batch: Batch, label_smoothing: float = 0.0
) -> Terms:
    """Return the terms of a head's own loss before division, so that they add up over the microbatches of a batch.

    Args:
        head: Head of the model.
        config: Configuration of the model.
        outputs: Outputs of the model for the inputs in `batch`.
        batch: The head's labels, the attention_mask for replaced-token-detection, and optionally ``sample_weight`` float
            [B], which multiplies the sums and leaves the counts unchanged.
        label_smoothing: Label smoothing of every cross-entropy over classes.

    Raises:
        InputError: `label_smoothing` is not 0 and the head's loss is not a cross-entropy over classes.
    """
    return tuple(heads.loss_terms(ops, losses, head, config, outputs, batch, label_smoothing).values())


@dataclass(frozen=True)
class Plan:
    """Everything except arrays that the program of a step depends on; hashable, so equal plans share compiled programs.

    Attributes:
        graphdef: Structure of the model.
        model_config: Configuration of the model.
        head: Head of the model.
        config: Settings of the step, from :meth:`FitStep.program_settings`.
        mesh: Mesh of the parameters; None for no sharding constraints.
        loss: Loss in place of the head's own, or None.
        options: Further arguments of the model's call, as sorted (name, value) pairs.
    """

    graphdef: nnx.GraphDef
    model_config: TransformerConfig
    head: str
    config: FitConfig
    mesh: Mesh | None
    loss: LossFunction | None
    options: tuple[tuple[str, Any], ...]

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Transformation of gradients into updates, without the learning rate."""
        factors = None
        if self.config.layer_decay != 1:
            factors = partial(rate_factor, config=self.model_config, decay=self.config.layer_decay)
        return make_optimizer(self.config, rate_factors=factors)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the batch entries that the model learns from."""
        return tuple(output.labels for output in outputs_of(self.head, self.model_config))

    def fresh(self, params: PyTree) -> State:
        """Return the state before the first step."""
        return {"params": params, "moments": self.optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Return the model's inputs and labels in a batch.

        With the head's own loss that is everything but ``sample_weight``. A custom loss may have entries of its own, which
        are left out.
        """
        if self.loss is None:
            return {name: value for name, value in batch.items() if name != "sample_weight"}
        names = *(spec.name for spec in self.model_config.inputs), *self.labels
        return {name: value for name, value in batch.items() if name in names}

    def terms(self, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array | None = None) -> NamedTerms:
        """Return the parts of the loss of a batch.

        Args:
            params: Trained parameters.
            frozen: Arrays that the loss reads and that are not trained.
            batch: Arrays [B, ...].
            key: PRNG key of dropout; None for no dropout.
        """
        rngs = None if key is None else nnx.Rngs(dropout=key)
        outputs = merge(self.graphdef, params)(**self.inputs(batch), **dict(self.options), rngs=rngs)
        if self.loss is not None:
            terms = self.loss(outputs, batch)
        else:
            terms = loss_terms(self.head, self.model_config, outputs, batch, self.config.label_smoothing)
        return {str(number): (total, count, 1.0) for number, (total, count) in enumerate(terms)}

    def parts(self, means: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
        """Return further metrics to log beside the loss; subclasses override it.

        Args:
            means: sum / count of each of :meth:`terms`.
            factors: Factor of each of :meth:`terms`.
        """
        return {}

    def step(
        self, state: State, frozen: PyTree, batch: Batch, rate: jax.Array, seed: jax.Array
    ) -> tuple[State, Metrics]:
        """Return the state after a step and its metrics.

        Args:
            state: State before the step.
            frozen: Arrays that the loss reads and that are not trained.
            batch: Arrays [B, ...].
            rate: Learning rate, float32 [].
            seed: Seed of dropout, uint32 [].
        """
        params, pieces, key = state["params"], self.config.accumulation, None
        if self.model_config.without_dropout() != self.model_config:
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
        # The counts of the whole batch; XLA removes the forward pass, which they do not depend on.
        batch_terms = None if pieces == 1 else self.terms(params, frozen, batch)

        def loss(params: PyTree, piece: Batch, key: jax.Array | None) -> tuple[jax.Array, dict[str, Any]]:
            terms = self.terms(params, frozen, piece, key)
            counts = {name: count for name, (_, count, _) in (terms if batch_terms is None else batch_terms).items()}
            means = {name: total / jnp.maximum(counts[name], 1) for name, (total, _, _) in terms.items()}
            factors = {name: factor for name, (_, _, factor) in terms.items()}
            total = sum(factors[name] * mean for name, mean in means.items())
            return cast(jax.Array, total), self.parts(means, factors)

        value, parts, gradients = accumulate_gradients(
            loss, params, batch, key, pieces, partial(shard_rows, mesh=self.mesh)
        )
        if self.mesh is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, shardings(params, self.mesh))
        updates, moments = self.optimizer.update(gradients, state["moments"], params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **parts}
        return {"params": params, "moments": moments, "step": state["step"] + 1}, metrics


@lru_cache(maxsize=16)
def _programs(plan: Plan, mesh: Mesh, flat_shardings: tuple[Any, tuple]) -> tuple[Callable, Callable, Callable]:
    """Return the compiled functions of a plan: initial state, step, and loss terms.

    Args:
        plan: Plan of the step.
        mesh: Mesh to run on.
        flat_shardings: Shardings of the state, as (tree structure, leaves) to be hashable.
    """
    state_shardings = jax.tree.unflatten(*flat_shardings)
    everywhere = replicated(mesh)
    return (
        jax.jit(plan.fresh, out_shardings=state_shardings, donate_argnums=0),
        jax.jit(plan.step, out_shardings=(state_shardings, everywhere), donate_argnums=0),
        jax.jit(plan.terms, out_shardings=everywhere),
    )


class FitStep:
    """The step for a model and a configuration: ``step(state, step.put(batch), rate) -> (state, metrics)``.

    The state is that of :data:`jaxnlp.training.step.State`; it is donated. The gradient is that of the loss of the whole batch,
    however it is split into microbatches and over devices: sums are divided once, by the counts of the whole batch.

    Args:
        model: A model with float32 parameters and a head with a loss; it is not changed.
        config: Settings of the run.
        mesh: Mesh to run on.
        loss: ``(outputs, batch) -> Terms`` in place of the head's own loss. It also gets the entries of the batch that are
            no inputs of the model. Passing the same function object again shares the compiled program.
        model_options: Further arguments of the model's call, such as output_hidden_states=True.

    Attributes:
        mesh: Mesh of the step.
        abstract: Shapes and dtypes of the state.
        shardings: NamedSharding of each array of the state.

    Raises:
        InputError: The parameters are not float32, or the head has no labels and `loss` is None.
    """

    def __init__(
        self,
        model: Any,
        config: FitConfig,
        mesh: Mesh,
        *,
        loss: LossFunction | None = None,
        model_options: Mapping[str, Any] | None = None,
    ):
        self._check(model, loss is not None)
        self.mesh, self.seed = mesh, config.seed
        graphdef, params = split(model)
        options = tuple(sorted((model_options or {}).items()))
        plan = Plan(graphdef, model.config, model.head, self.program_settings(config), mesh, loss, options)
        self._compile(plan, params)

    @staticmethod
    def _check(model: Any, has_loss: bool) -> None:
        if model.param_dtype != jnp.float32:
            raise InputError(
                f"the parameters are {model.param_dtype}, which loses small updates; load the model with "
                f"param_dtype='float32' and dtype={str(model.param_dtype)!r}"
            )
        if not has_loss and not outputs_of(model.head, model.config):
            raise InputError(f"a {model.head} model has no labels to learn from; use another head, or pass loss=")

    @staticmethod
    def program_settings(config: FitConfig) -> FitConfig:
        """Return `config` with all settings at their defaults that programs do not depend on, so that runs share programs."""
        return FitConfig(**{name: getattr(config, name) for name in PROGRAM_SETTINGS})

    def _compile(self, plan: Plan, params: PyTree, frozen: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Prepare the programs of a plan.

        Args:
            plan: Plan of the step.
            params: Parameters before the first step.
            frozen: Arrays that the loss reads and that are not trained.
        """
        self._plan, self._initial = plan, params
        self._frozen = jax.device_put(dict(frozen), shardings(dict(frozen), self.mesh))
        self.abstract = jax.eval_shape(plan.fresh, params)
        self.shardings = shardings(self.abstract, self.mesh)
        leaves, structure = jax.tree.flatten(self.shardings)
        self._start, self._step, self._terms = _programs(plan, self.mesh, (structure, tuple(leaves)))
        self._rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * plan.config.accumulation

    def init_state(self) -> State:
        """Return the state before the first step, in arrays of its own."""
        params = jax.tree.map(lambda x: jnp.array(x, copy=True), self._initial)
        return self._start(jax.device_put(params, self.shardings["params"]))

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return a batch of NumPy arrays [B, ...] over the devices, padded with unlabeled rows if B does not divide.

        Raises:
            InputError: The model does not take the batch; or B does not divide, and the labels cannot mark padding rows.
        """
        batch = {name: np.asarray(value) for name, value in batch.items()}
        check_inputs(self._plan.model_config, self._plan.head, self._plan.inputs(batch))
        missing = -len(next(iter(batch.values()))) % self._rows
        if missing:
            if not {"sample_weight", *self._plan.labels} & set(batch):
                raise self._indivisible(batch, "no labels mark padding rows")
            batch = {name: self._pad(name, value, missing) for name, value in batch.items()}
        return jax.device_put(batch, batch_sharding(self.mesh))

    def _pad(self, name: str, value: np.ndarray, missing: int) -> np.ndarray:
        """Append rows that count for nothing in the loss."""
        more, head = np.repeat(value[-1:], missing, axis=0), self._plan.head
        if name == "sample_weight":
            more = np.zeros_like(more)
        if name in self._plan.labels:
            if self._plan.loss is not None or (value.dtype.kind not in "iu" and value.ndim == 1):
                raise self._indivisible({name: value}, f"rows of these {name} cannot be left out")
            more = np.full_like(
                more, NO_POSITION if outputs_of(head, self._plan.model_config)[0].kind == "span" else IGNORED
            )
        if name == "attention_mask" and any(o.counts_attended for o in HEADS[head].outputs):
            more = np.zeros_like(more)
        return np.concatenate([value, more])

    def _indivisible(self, batch: Mapping[str, np.ndarray], reason: str) -> InputError:
        return InputError(
            f"a batch of {len(next(iter(batch.values())))} rows does not divide among {self._rows} (devices times "
            f"accumulation), and {reason}; use batches of a multiple of {self._rows} rows"
        )

    def __call__(self, state: State, batch: Batch, rate: float) -> tuple[State, Metrics]:
        """Take one step; `state` is donated.

        Args:
            state: State before the step.
            batch: Batch from :meth:`put`.
            rate: Learning rate.
        """
        return self._step(state, self._frozen, batch, np.float32(rate), np.uint32(self.seed))

    def model_parameters(self, params: PyTree) -> PyTree:
        """Return the model's parameters among the trained ones."""
        return params

    def evaluate(self, params: PyTree, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the "loss" without dropout over batches of NumPy arrays, and its parts; every label weighs the same.

        Raises:
            InputError: The batches have no label.
        """
        sums, factors = None, {}
        for batch in batches:
            terms = jax.device_get(self._terms(params, self._frozen, self.put(batch)))
            factors = {name: float(factor) for name, (_, _, factor) in terms.items()}
            batch_sums = np.array([terms[name][:2] for name in factors], np.float64)  # [terms, 2]
            sums = batch_sums if sums is None else sums + batch_sums
        if sums is None or not sums[:, 1].all():
            raise InputError("the validation batches have no label to evaluate on; pass batches with labels")
        means = dict(zip(factors, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
        loss = sum(factors[name] * mean for name, mean in means.items())
        return {"loss": loss} | self._plan.parts(means, factors)
