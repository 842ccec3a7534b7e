"""The optimizer step of pretraining on all devices: jitted over a mesh, or pmapped as the simple baseline.

Both take the same state and give the same results: the gradient is that of the summed loss, divided once by the number of
labeled tokens of the whole global batch, so neither accumulation nor an uneven split over hosts changes it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from duonlp.errors import InputError
from duonlp.training.config import PretrainingConfig
from duonlp.typing import Batch
from duonlp.util.frameworks import keep_heap
from jaxnlp.training.mesh import PyTree, batch_sharding, make_mesh, replicated, shardings
from jaxnlp.training.model import Trainable, make_trainable, shard_rows
from jaxnlp.training.optimizers import make_optimizer

State: TypeAlias = dict[str, Any]
"""State of a training run, all arrays:

    params: nested dicts of float32, the trained parameters.
    moments: the state of the optimizer.
    step: int32 [], the number of steps done.
"""

Metrics: TypeAlias = dict[str, jax.Array]
"""Metrics of a step, float32 []: "loss", "gradient_norm" (before clipping), and in pretraining "tokens" (labeled ones)."""


def make_step(model: Any, config: PretrainingConfig, mesh: Mesh | None = None) -> "ShardedStep | PmapStep":
    """Return the step for a model and a configuration.

    Args:
        model: A model with a language modeling head, or a LazyModel; its parameters are not read yet.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: The mesh does not fit the devices, or the batch size the mesh.
    """
    kind = PmapStep if config.parallelism == "pmap" else ShardedStep
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    if mesh.devices.flat[0].platform == "cpu":
        keep_heap()
    return kind(model, config, mesh)


def accumulate_gradients(
    loss: Callable[..., tuple[jax.Array, PyTree]], params: PyTree, batch: PyTree, key: jax.Array | None, pieces: int,
    constrain: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[jax.Array, PyTree, PyTree]:  # fmt: skip
    """Sum losses and gradients over the microbatches of a batch, computed one after the other.

    Args:
        loss: ``(params, batch, key) -> (summed loss, aux)``; aux is a pytree of arrays that are summed as well, such as a
            count.
        params: Parameters to differentiate with respect to.
        batch: Arrays [B, ...]. Microbatch i gets the rows whose index modulo `pieces` is i, so that each device has rows of
            every microbatch.
        key: PRNG key of dropout, or None. Each microbatch folds in its index.
        pieces: Number of microbatches.
        constrain: Function that applies sharding constraints to a microbatch.

    Returns:
        The summed loss, the summed aux, and the gradient of the summed loss, float32.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        (total, aux), gradients = value_and_grad(params, batch, key)
        return total, aux, gradients
    # [B, ...] -> [pieces, B / pieces, ...]
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(sums: PyTree, numbered_piece: tuple[jax.Array, PyTree]) -> tuple[PyTree, None]:
        number, piece = numbered_piece
        piece_key = None if key is None else jax.random.fold_in(key, number)
        (total, aux), gradients = value_and_grad(params, constrain(piece), piece_key)
        return jax.tree.map(jnp.add, sums, (total, aux, gradients)), None

    first = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(jnp.zeros_like, (*jax.eval_shape(loss, params, first, key), params))
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), split))
    return sums


class _BaseStep:
    """Common parts of both steps.

    Attributes:
        abstract: Shapes and dtypes of the :data:`State`.
        shardings: NamedSharding of each of its arrays.
        trainable: The prepared model.
        optimizer: The optimizer, without the learning rate.
    """

    shardings: PyTree

    def __init__(self, model: Any, config: PretrainingConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.trainable: Trainable = make_trainable(
            model, dtype=config.dtype, scan=config.scan, remat=config.remat,
            mesh=mesh if config.parallelism == "jit" else None,
        )  # fmt: skip
        self.optimizer = make_optimizer(config)
        cfg = self.trainable.config
        self.has_dropout = cfg.without_dropout() != cfg
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = devices * config.accumulation
        if config.batch_size % rows:
            raise InputError(
                f"batch_size is {config.batch_size}, which does not divide among {devices} devices times "
                f"{config.accumulation} microbatches; make it a multiple of {rows}"
            )
        self.abstract = jax.eval_shape(self._initial_state, self.trainable.abstract)

    def _initial_state(self, params: PyTree) -> State:
        return {"params": params, "moments": self.optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    def _dropout_key(self, state: State) -> jax.Array | None:
        if not self.has_dropout:
            return None
        return jax.random.fold_in(jax.random.key(self.config.seed), state["step"])

    def _updated(
        self, state: State, total: jax.Array, count: jax.Array, gradients: PyTree, rate: jax.Array
    ) -> tuple[State, Metrics]:
        """Apply summed gradients.

        Args:
            state: State before the step.
            total: Summed loss, float32 [].
            count: Labeled tokens, float32 [].
            gradients: Gradient of the summed loss.
            rate: Learning rate, float32 [].
        """
        count = jnp.maximum(count, 1)  # masked language modeling may have masked no token
        gradients = jax.tree.map(lambda g: g / count, gradients)
        updates, moments = self.optimizer.update(gradients, state["moments"], state["params"])
        params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
        metrics = {"loss": total / count, "tokens": count, "gradient_norm": optax.tree.norm(gradients)}
        return {"params": params, "moments": moments, "step": state["step"] + 1}, metrics


class ShardedStep(_BaseStep):
    """The step as one jitted program over a mesh; XLA moves gradients and parameters between the devices."""

    def __init__(self, model: Any, config: PretrainingConfig, mesh: Mesh):
        super().__init__(model, config, mesh)
        self.shardings = shardings(self.abstract, mesh)
        self._programs: dict[tuple, Callable[..., Any]] = {}

    def init_state(self, read: Callable[[str], np.ndarray]) -> State:
        """Return the state before the first step.

        Args:
            read: Path of a parameter -> its values, from :func:`jaxnlp.training.model.parameter_reader`.
        """
        params = self.trainable.parameters(read, self.shardings["params"])
        return jax.jit(self._initial_state, out_shardings=self.shardings, donate_argnums=0)(params)

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Return this host's rows of a batch, [b, T], as arrays [B, T] over the devices of all hosts."""
        return {name: self._to_devices(value, batch_sharding(self.mesh)) for name, value in batch.items()}

    def _to_devices(self, value: Any, sharding: NamedSharding) -> jax.Array:
        # Explicit, but with several processes JAX's transfer guard takes it for an implicit transfer.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(sharding, value)

    def step(self, state: State, batch: Batch, rate: jax.Array) -> tuple[State, Metrics]:
        """Return the state after a step and its metrics; this is the function that is compiled.

        Args:
            state: State before the step.
            batch: Arrays [B, T].
            rate: Learning rate, float32 [].
        """
        total, count, gradients = accumulate_gradients(
            self.trainable.loss, state["params"], batch, self._dropout_key(state), self.config.accumulation,
            partial(shard_rows, mesh=self.mesh),
        )  # fmt: skip
        gradients = jax.lax.with_sharding_constraint(gradients, self.shardings["params"])
        return self._updated(state, total, count, gradients, rate)

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """Lower the step for a batch of arrays or shapes [B, T]; ``.compile()`` the result for any topology."""
        everywhere = replicated(self.mesh)
        metrics = dict.fromkeys(("loss", "tokens", "gradient_norm"), everywhere)
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
        return jax.jit(
            self.step,
            in_shardings=(self.shardings, batch_sharding(self.mesh), everywhere),
            out_shardings=(self.shardings, metrics),
            donate_argnums=0,
        ).lower(self.abstract, shapes, jax.ShapeDtypeStruct((), jnp.float32))

    def __call__(self, state: State, batch: Batch, rate: float) -> tuple[State, Metrics]:
        """Take one step; `state` is donated.

        Args:
            state: State before the step.
            batch: Batch from :meth:`put`.
            rate: Learning rate.
        """
        program = self._program("step", batch, lambda: self.lower(batch).compile())
        return program(state, batch, self._to_devices(np.float32(rate), replicated(self.mesh)))

    def evaluate(self, params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return the summed loss without dropout and the number of labeled tokens of a batch from :meth:`put`."""

        def loss(params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
            return self.trainable.loss(params, batch, None)

        return self._program("evaluate", batch, lambda: jax.jit(loss, out_shardings=replicated(self.mesh)))(
            params, batch
        )

    def _program(self, name: str, batch: Batch, build: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """Return the program of that name for the batch's shapes, building it at first use."""
        key = name, tuple((input_name, value.shape) for input_name, value in sorted(batch.items()))
        if key not in self._programs:
            self._programs[key] = build()
        return self._programs[key]

    def to_save(self, state: State) -> State:
        """Return the state as checkpoints store it: global arrays over the devices of all hosts."""
        return state

    def from_saved(self, state: State) -> State:
        """Return the state of a checkpoint as the step takes it; the inverse of :meth:`to_save`."""
        return state


class PmapStep(_BaseStep):
    """The simple baseline: the state is replicated on every device, and gradients are summed over a named axis."""

    AXIS = "data"

    def __init__(self, model: Any, config: PretrainingConfig, mesh: Mesh):
        super().__init__(model, config, mesh)
        self.shardings = jax.tree.map(lambda _: replicated(mesh), self.abstract)
        self._step = jax.pmap(self.step, axis_name=self.AXIS, donate_argnums=0, in_axes=(0, 0, None))
        self._evaluate = jax.pmap(self._summed_loss, axis_name=self.AXIS)
        self._local_devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]

    def init_state(self, read: Callable[[str], np.ndarray]) -> State:
        """Return the state before the first step, a copy on every device: [devices, ...].

        Args:
            read: Path of a parameter -> its values, from :func:`jaxnlp.training.model.parameter_reader`.
        """
        params = self.trainable.parameters(read, self.shardings["params"])
        return self.from_saved(jax.jit(self._initial_state, out_shardings=self.shardings)(params))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return this host's rows, [b, T], as [devices, b / devices, T], split over this host's devices."""
        devices = len(self._local_devices)
        return {name: value.reshape(devices, -1, *value.shape[1:]) for name, value in batch.items()}

    def step(self, state: State, batch: Batch, rate: jax.Array) -> tuple[State, Metrics]:
        """Return the state after a step and its metrics; each device runs this function on its rows [b, T]."""
        key = self._dropout_key(state)
        key = None if key is None else jax.random.fold_in(key, jax.lax.axis_index(self.AXIS))
        sums = accumulate_gradients(self.trainable.loss, state["params"], batch, key, self.config.accumulation)
        total, count, gradients = jax.lax.psum(sums, self.AXIS)
        return self._updated(state, total, count, gradients, rate)

    def _summed_loss(self, params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return jax.lax.psum(self.trainable.loss(params, batch, None), self.AXIS)

    def __call__(self, state: State, batch: Batch, rate: float) -> tuple[State, Metrics]:
        """Take one step; `state` is donated.

        Args:
            state: State before the step.
            batch: Batch from :meth:`put`.
            rate: Learning rate.
        """
        state, metrics = self._step(state, batch, np.float32(rate))
        return state, {name: value[0] for name, value in metrics.items()}

    def evaluate(self, params: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Return the summed loss without dropout and the number of labeled tokens of a batch from :meth:`put`."""
        total, count = self._evaluate(params, batch)
        return total[0], count[0]

    def to_save(self, state: State) -> State:
        """Return the state as checkpoints store it: the copies of all devices as one replicated array each."""
        sharding = replicated(self.mesh)

        def merge_copies(x: jax.Array) -> jax.Array:
            copies = [shard.data.reshape(x.shape[1:]) for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape[1:], sharding, copies)

        return jax.tree.map(merge_copies, state)

    def from_saved(self, state: State) -> State:
        """Return the state of a checkpoint as the step takes it; the inverse of :meth:`to_save`."""
        devices = len(self._local_devices)
        copies = jax.tree.map(lambda x: np.broadcast_to(x.addressable_data(0), (devices, *x.shape)), state)
        return jax.pmap(lambda tree: tree)(copies)
