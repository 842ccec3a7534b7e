"""The optimizer step of all training on all devices: jitted over a mesh, or mapped over them as the simple baseline.

Both take the same state and give the same results: the sums of a loss are divided once, by the counts of the whole global
batch, so neither accumulation nor an uneven split over devices and hosts changes its gradient.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from duonlp.data.objectives.language_modelling import PRETRAINED_HEADS
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK, outputs_of
from duonlp.labels import WEIGHTS, array_of
from duonlp.training.config import AXES, PretrainingConfig
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import rate_factor
from duonlp.typing import Batch
from duonlp.util.frameworks import keep_heap
from jaxnlp.pretrained import Params
from jaxnlp.pruning.step_masks import (
    SCORES,
    initial_masks,
    initial_scores,
    penalty_term,
    pruned,
    rate_factor_of_scores,
    updated_masks,
)
from jaxnlp.training.mesh import BATCH, PyTree, batch_sharding, make_mesh, replicated, shard_rows, shardings
from jaxnlp.training.model import Trainable, make_trainable, parameter_reader
from jaxnlp.training.objectives import CustomLoss, HeadLoss, LanguageModeling, LossFunction, NamedTerms, Objective
from jaxnlp.training.optimizers import accumulate_gradients, make_optimizer

State: TypeAlias = dict[str, Any]
"""State of a training run, all arrays:

    params: nested dicts of float32, the trained parameters.
    moments: the state of the optimizer.
    step: int32 [], the number of steps done.
    pruning: masks and penalty (jaxnlp.pruning.step_masks), if the run prunes.
"""

Metrics: TypeAlias = dict[str, jax.Array]
"""Metrics of a step, float32 []: "loss", "gradient_norm" (before clipping), and those of the objective, such as "tokens"."""

PROGRAM_SETTINGS = (
    "accumulation",
    "optimizer",
    "weight_decay",
    "beta1",
    "beta2",
    "clip_norm",
    "layer_decay",
    "pruning",
)
"""Settings that the program of a step depends on."""


@dataclass(frozen=True)
class Plan:
    """Everything except arrays that the programs of a step depend on; hashable, so equal plans share compiled programs.

    Attributes:
        trainable: The prepared model.
        objective: What is minimized.
        settings: Settings of the step; those it does not depend on have their defaults, so that runs share programs.
        axes: Axes of the mesh over which each device sums by itself (pmap); None under jit, which sums over all devices.
    """

    trainable: Trainable
    objective: Objective
    settings: FitConfig
    axes: tuple[str, ...] | None = None

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Transformation of gradients into updates, without the learning rate."""
        factors, decay, pruning = None, self.settings.layer_decay, self.settings.pruning
        if decay != 1:
            factors = partial(rate_factor, config=self.trainable.config, decay=decay)
        if pruning is not None and pruning.trains_scores:
            factors = partial(rate_factor_of_scores, factor=pruning.score_rate, others=factors)
        return make_optimizer(self.settings, rate_factors=factors)

    def fresh(self, params: Params) -> State:
        """Return the state before the first step."""
        state = {"params": params, "moments": self.optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
        pruning = self.settings.pruning
        return state if pruning is None else {**state, SCORES: initial_masks(pruning, self.trainable)}

    def terms(self, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None) -> NamedTerms:
        """Return the terms of the loss of a batch, see :meth:`Objective.terms`."""
        return self.objective.terms(self.trainable, params, frozen, batch, key)

    def summed_terms(self, params: Params, frozen: Params, batch: Batch) -> NamedTerms:
        """Return the terms without dropout, summed over the devices."""
        terms = self.terms(params, frozen, batch)
        return {name: (*self._over_devices((total, count)), factor) for name, (total, count, factor) in terms.items()}

    def _over_devices(self, tree: PyTree) -> PyTree:
        return tree if self.axes is None else jax.lax.psum(tree, self.axes)

    def step(self, state: State, frozen: Params, batch: Batch, rate: Any, seed: Any) -> tuple[State, Metrics]:
        """Return the state after a step and its metrics; see :meth:`advance`."""
        return self.advance(state, frozen, batch, rate, seed)[:2]

    def advance(
        self, state: State, frozen: Params, batch: Batch, rate: Any, seed: Any
    ) -> tuple[State, Metrics, NamedTerms]:
        """Return the state after a step, its metrics, and (mean, count, factor) of each term; this function is compiled.

        Args:
            state: State before the step.
            frozen: Arrays that the loss reads and that are not trained.
            batch: Arrays [B, ...].
            rate: Learning rate, float32 [].
            seed: Seed of dropout, uint32 [].
        """
        params, pieces, mesh, key = state["params"], self.settings.accumulation, self.trainable.mesh, None
        pruning, masks = self.settings.pruning, state.get(SCORES)
        if self.trainable.config.without_dropout() != self.trainable.config:
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
            key = key if self.axes is None else jax.random.fold_in(key, jax.lax.axis_index(self.axes))
        counts: dict[str, jax.Array] = {}
        factors: dict[str, float] = {}
        if pieces > 1 or self.axes is not None:
            # The counts of the whole batch; XLA removes the forward pass, which they do not depend on.
            counts = {name: count for name, (_, count, _) in self.summed_terms(params, frozen, batch).items()}

        def loss(
            params: Params, piece: Batch, key: jax.Array | None
        ) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
            terms = self.terms(params if masks is None else pruned(params, masks["masks"]), frozen, piece, key)
            if masks is not None and pruning is not None and pruning.method == "soft-movement":
                parts = pieces * (1 if self.axes is None else jax.lax.psum(1, self.axes))
                terms["penalty"] = penalty_term(params, masks["penalty"] / parts)
            factors.update({name: factor for name, (_, _, factor) in terms.items()})
            # At least 1: masked language modeling may have masked no token, and then has a loss of 0.
            means = {
                name: (total / jnp.maximum(counts.get(name, count), 1), count)
                for name, (total, count, _) in terms.items()
            }
            return cast(jax.Array, sum(factors[name] * mean for name, (mean, _) in means.items())), means

        value, means, gradients = self._over_devices(
            accumulate_gradients(loss, params, batch, key, pieces, partial(shard_rows, mesh=mesh))
        )
        if mesh is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, shardings(params, mesh))
        updates, moments = self.optimizer.update(gradients, state["moments"], params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        terms = {name: (*means[name], factors[name]) for name in means}
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **self._metrics(terms)}
        return {**state, "params": params, "moments": moments, "step": state["step"] + 1}, metrics, terms

    def _metrics(self, means: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return what to log of the means of terms: the objective's metrics, and the penalty of pruning."""
        metrics = self.objective.metrics({name: term for name, term in means.items() if name != "penalty"})
        return {**metrics, "penalty": means["penalty"][0]} if "penalty" in means else metrics

    def mean_metrics(self, terms: Sequence[NamedTerms]) -> dict[str, float]:
        """Return the "loss" and its parts over several batches, from (mean, count, factor) of the terms of each."""
        means = {}
        for name, (_, _, factor) in terms[-1].items():
            values, counts, _ = np.array([batch[name] for batch in terms], np.float64).T
            means[name] = values @ counts / max(counts.sum(), 1), counts.sum(), float(factor)
        metrics = {"loss": sum(factor * mean for mean, _, factor in means.values()), **self._metrics(means)}
        return {name: float(value) for name, value in metrics.items()}


@lru_cache(maxsize=16)
def _programs(plan: Plan, mesh: Mesh, flat_shardings: tuple[Any, tuple]) -> tuple[Any, Any, Any]:
    """Return the compiled functions of a plan over a mesh: initial state, step, and loss terms.

    flat_shardings: those of the state and the frozen arrays, as (tree structure, leaves) to be hashable.
    """
    state, frozen = jax.tree.unflatten(*flat_shardings)
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    step, terms = plan.advance, plan.summed_terms
    if plan.axes is not None:  # what jax.pmap does: each device runs the program on its own rows
        over_devices = partial(jax.shard_map, mesh=mesh, out_specs=everywhere.spec, check_vma=False)
        arrays, scalars = (everywhere.spec, everywhere.spec, rows.spec), (everywhere.spec, everywhere.spec)
        step, terms = over_devices(step, in_specs=arrays + scalars), over_devices(terms, in_specs=arrays)
    inputs = state, frozen, rows, everywhere, everywhere
    return (
        jax.jit(plan.fresh, out_shardings=state, donate_argnums=0),
        jax.jit(step, in_shardings=inputs, out_shardings=(state, everywhere, everywhere), donate_argnums=0),
        jax.jit(terms, out_shardings=everywhere),
    )


class Step:
    """The step of a plan over a mesh: ``step(state, step.put(batch), rate) -> (state, metrics)``; the state is donated.

    Args:
        plan: Plan of the step.
        model: Model or LazyModel of the plan, whose parameters the training starts from; it is not changed.
        mesh: Mesh to run on.
        seed: Seed of dropout.
        extra: Trained parameters beside the model's.
        teacher: A prepared model and the model itself, whose parameters the loss reads; they are sharded by the same rules.
        own_rows: Whether each process puts its own rows of a batch, rather than whole batches that all of them have.

    Attributes:
        trainable: The prepared model.
        abstract: Shapes and dtypes of the :data:`State`.
        shardings: NamedSharding of each of its arrays.
        frozen: Parameters of the teacher on their devices; {} without one.
    """

    def __init__(
        self, plan: Plan, model: Any, mesh: Mesh, seed: int, *, extra: Params | None = None,
        teacher: tuple[Trainable, Any] | None = None, own_rows: bool = False,
    ):  # fmt: skip
        self.plan, self.trainable, self.mesh, self.seed = plan, plan.trainable, mesh, np.uint32(seed % 2**32)
        self._model, self._own_rows = model, own_rows
        self._extra = {**(extra or {}), **initial_scores(plan.settings.pruning, plan.trainable)}
        # Mapped over the devices, everything is replicated.
        layout = partial(shardings, mesh=mesh, axes=AXES if plan.axes is None else ())
        self.abstract = jax.eval_shape(plan.fresh, {**plan.trainable.abstract, **self._extra})
        self.shardings = layout(self.abstract)
        self._rows = mesh.shape["data"] * mesh.shape["fsdp"] * plan.settings.accumulation
        self.frozen, frozen_shardings = {}, layout({} if teacher is None else teacher[0].abstract)
        if teacher is not None:
            self.frozen = teacher[0].parameters(parameter_reader(teacher[1]), frozen_shardings)
        leaves, structure = jax.tree.flatten((self.shardings, frozen_shardings))
        self._start, self._step, self._terms = _programs(plan, mesh, (structure, tuple(leaves)))
        if mesh.devices.flat[0].platform == "cpu":
            keep_heap()

    def init_state(self, read: Callable[[str], np.ndarray] | None = None) -> State:
        """Return the state before the first step; `read` replaces the :func:`parameter_reader` of the step's model."""
        params = self.trainable.parameters(read or parameter_reader(self._model), self.shardings["params"])
        extra = jax.tree.map(np.array, self._extra)  # copied, since the initial arrays are donated
        params |= _put_global(extra, {name: self.shardings["params"][name] for name in extra})
        return self._start(params)

    def put(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return a batch of NumPy arrays [B, ...] (with `own_rows`, this host's rows of it) over the devices of all hosts.

        Whole batches are checked, and padded with rows that count for nothing if B does not divide.

        Raises:
            InputError: The model does not take the batch; or B does not divide, and rows cannot be masked.
        """
        batch = {name: np.asarray(array_of(name, value)) for name, value in batch.items()}
        rows = batch_sharding(self.mesh)
        if self._own_rows:
            return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}
        self.plan.objective.check(self.trainable, batch)
        batch = self._pad(batch)
        return _put_global(batch, dict.fromkeys(batch, rows))

    def counts(self, batch: Mapping[str, Any]) -> bool:
        """Return whether the loss of a batch, as :meth:`put` takes it, counts anything on any host.

        Raises:
            InputError: The model does not take the batch.
        """
        batch, objective = (
            {name: np.asarray(array_of(name, value)) for name, value in batch.items()},
            self.plan.objective,
        )
        if self._own_rows:  # whose labels every process has to know of
            own = objective.counts(self.trainable, batch)
            return bool(own if jax.process_count() == 1 else multihost_utils.process_allgather(np.bool_(own)).any())
        objective.check(self.trainable, batch)
        return objective.counts(self.trainable, batch)

    def _pad(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a batch whose rows divide among devices and microbatches, with a mask of the rows that count."""
        rows, objective = len(next(iter(batch.values()))), self.plan.objective
        missing, marks = -rows % self._rows, {WEIGHTS, ROW_MASK, *self.trainable.labels}
        if missing and not (objective.masks_rows and marks & set(batch)):
            reason = "no labels mark" if objective.masks_rows else "a loss of your own cannot leave out"
            raise InputError(
                f"a batch of {rows} rows does not divide among {self._rows} (devices times accumulation), and {reason} padding "
                f"rows; use batches of a multiple of {self._rows} rows"
            )
        if self._rows == 1 or not objective.masks_rows:
            return batch
        # Every batch gets a mask, so that the last one of an epoch needs no program of its own.
        mask = batch.get(ROW_MASK, np.ones(rows, np.int32))
        filling = {name: np.repeat(value[-1:], missing, axis=0) for name, value in batch.items()}
        filling[ROW_MASK], batch = np.zeros(missing, mask.dtype), {**batch, ROW_MASK: mask}
        return {name: np.concatenate([value, filling[name]]) for name, value in batch.items()}

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """Lower the step for a batch of arrays or shapes [B, ...]; ``.compile()`` the result for any topology."""
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
        scalars = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.uint32))
        return self._step.lower(self.abstract, self.frozen, shapes, *scalars)

    def __call__(self, state: State, batch: Batch, rate: float) -> tuple[State, Metrics]:
        """Take one step at a learning rate with a batch from :meth:`put`; `state` is donated."""
        return self.advance(state, batch, rate)[:2]

    def advance(self, state: State, batch: Batch, rate: float) -> tuple[State, Metrics, NamedTerms]:
        """Take one step like calling this; also return the terms, see :meth:`Plan.mean_metrics`."""
        return self._step(state, self.frozen, batch, np.float32(rate), self.seed)

    def prune(self, state: State, step: int, total: int) -> State:
        """Return the state after `step` of `total` steps with new masks, if they are due; all processes call this together."""

        def fetch(x: jax.Array) -> np.ndarray:
            return np.asarray(x if jax.process_count() == 1 else multihost_utils.process_allgather(x, tiled=True))

        masks = updated_masks(self.plan.settings, self.trainable, state["params"], step, total, fetch)
        return state if masks is None else {**state, SCORES: _put_global(masks, self.shardings[SCORES])}

    def effective(self, state: State) -> Params:
        """Return the trained parameters of a state as the model computes with them: pruned."""
        return pruned(state["params"], state[SCORES]["masks"]) if SCORES in state else state["params"]

    def evaluate(self, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the "loss" without dropout over batches of NumPy arrays, and its parts; every label weighs the same.

        Raises:
            InputError: The batches have no label.
        """
        sums, factors = None, {}
        for batch in batches:
            terms = jax.device_get(self._terms(params, self.frozen, self.put(batch)))
            factors = {name: float(factor) for name, (_, _, factor) in terms.items()}
            batch_sums = np.array([terms[name][:2] for name in factors], np.float64)  # [terms, 2]
            sums = batch_sums if sums is None else sums + batch_sums
        if sums is None or not sums[:, 1].all():
            raise InputError("the validation batches have no label to evaluate on; pass batches with labels")
        means = {
            n: (total / count, count, factors[n]) for n, (total, count) in zip(factors, sums.tolist(), strict=True)
        }
        loss = sum(factor * mean for mean, _, factor in means.values())
        return {"loss": loss} | self.plan.objective.metrics(means)

    def model_parameters(self, params: Params) -> Params:
        """Return the model's own parameters among the trained ones, as the model has them, on one device.

        With several processes each gets a copy, so all must call this together.
        """
        if jax.process_count() > 1:
            params = jax.tree.map(lambda x: jnp.asarray(multihost_utils.process_allgather(x, tiled=True)), params)
        elif self.mesh.size > 1:
            params = jax.device_put(params, self.mesh.devices.flat[0])
        return self._unstack(params)

    def _unstack(self, params: Params) -> Params:
        return self.trainable.unstack(params)


def _put_global(tree: PyTree, tree_shardings: PyTree) -> PyTree:
    """Return arrays that every process has whole as global arrays; each process puts its shards."""
    if jax.process_count() == 1:
        return jax.device_put(tree, tree_shardings)

    def put(value: Any, sharding: Any) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, tree_shardings)


def make_step(
    model: Any, config: PretrainingConfig, mesh: Mesh | None = None, *, loss: LossFunction | None = None
) -> Step:
    """Return the step of pretraining for a model and a configuration.

    Args:
        model: A model or LazyModel, whose parameters are not read yet; with a language modeling head unless there is a loss.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.
        loss: ``(outputs, batch) -> Terms`` in place of the cross-entropy of the labels, see CustomLoss.

    Raises:
        InputError: The head cannot be pretrained, the mesh does not fit the devices, or the batch size the mesh.
    """
    if loss is None and model.head not in PRETRAINED_HEADS:
        allowed = ", ".join(PRETRAINED_HEADS)
        raise InputError(f"head is {model.head!r}; only {allowed} can be pretrained without a loss of your own")
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % (devices * config.accumulation):
        raise InputError(
            f"batch_size is {config.batch_size}, which does not divide among {devices} devices times "
            f"{config.accumulation} microbatches; make it a multiple of {devices * config.accumulation}"
        )
    # The labels of blocks are those of their own positions, which a model would shift.
    objective = LanguageModeling() if loss is None else CustomLoss(loss)
    plan = make_plan(model, objective, config, mesh, dtype=config.dtype, param_dtype="float32")
    return Step(plan, model, mesh, config.seed, own_rows=True)


def make_plan(
    model: Any, objective: Objective, config: PretrainingConfig | FitConfig, mesh: Mesh | None, **options: Any
) -> Plan:
    """Return the plan of training a model; `options` are further arguments of :func:`make_trainable`."""
    axes = BATCH if config.parallelism == "pmap" else None
    settings = {name: getattr(config, name) for name in PROGRAM_SETTINGS if hasattr(config, name)}
    trainable = make_trainable(model, scan=config.scan, remat=config.remat, mesh=None if axes else mesh, **options)
    return Plan(trainable, objective, FitConfig(**settings), axes)


class FitStep(Step):
    """The step of ``fit`` for a model and a configuration.

    Args:
        model: A model with float32 parameters and a head with a loss, or a LazyModel; it is not changed.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.
        loss: ``(outputs, batch) -> Terms`` in place of the head's own loss. It also gets the entries of the batch that are
            no inputs of the model. Passing the same function object again shares the compiled program.
        model_options: Further arguments of the model's call, such as output_hidden_states=True.

    Raises:
        InputError: The parameters are not float32, the head has no labels and `loss` is None, or the mesh does not fit.
    """

    def __init__(
        self, model: Any, config: FitConfig, mesh: Mesh | None = None, *, loss: LossFunction | None = None,
        model_options: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        check_can_learn(model, needs_labels=loss is None)
        mesh = make_mesh(config.mesh) if mesh is None else mesh
        objective = HeadLoss(config.label_smoothing) if loss is None else CustomLoss(loss, gives_labels=True)
        plan = make_plan(model, objective, config, mesh, options=model_options or {})
        super().__init__(plan, model, mesh, config.seed)


def check_can_learn(model: Any, needs_labels: bool) -> None:
    """Raise InputError if the parameters of a model are not float32, or its head has no loss though `needs_labels`."""
    dtype = getattr(model, "param_dtype", jnp.float32)
    if dtype != jnp.float32:
        raise InputError(
            f"the parameters are {dtype}, which loses small updates; load the model with param_dtype='float32' and "
            f"dtype={str(dtype)!r}"
        )
    if needs_labels and not outputs_of(model.head, model.config):
        raise InputError(f"a {model.head} model has no labels to learn from; use another head, or pass loss=")
