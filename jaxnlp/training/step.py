"""One optimizer step, on every device at once: jitted over a mesh, or pmapped as the plain baseline.

Both take the same state, ``{"params", "moments", "step"}``, and give the same results: gradients are of the summed loss,
divided once by the labelled tokens of the whole global batch, so that neither accumulation nor uneven hosts matter.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from duonlp.errors import InputError
from duonlp.training.config import PretrainingConfig
from duonlp.util.frameworks import keep_heap
from jaxnlp.training.mesh import batch_sharding, make_mesh, replicated, shardings
from jaxnlp.training.model import Trainable, rows_apart, trainable
from jaxnlp.training.optimizers import make_optimizer


def make_step(model, config: PretrainingConfig, mesh: Mesh | None = None):
    """The step that a configuration asks for.

    Args:
        model: a model of a language modelling head, or a LazyModel; its values are not read yet.
        mesh: where to run; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: the mesh does not fit the devices, or the batch not the mesh.
    """
    kind = PmapStep if config.parallelism == "pmap" else ShardedStep
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    if mesh.devices.flat[0].platform == "cpu":
        keep_heap()
    return kind(model, config, mesh)


def summed_gradients(loss: Callable, params, batch, key, pieces: int, together: Callable = lambda tree: tree):
    """Sums over a batch that is computed in pieces, one after the other.

    Args:
        loss: ``(params, batch, key) -> (sum, what else is summed)``; the latter is a pytree of arrays, such as a count.
        batch: arrays [B, ...]; piece i has every row whose number leaves i when divided by `pieces`, so that each device
            finds all pieces among its own rows.
        together: puts a piece's rows where they are computed.

    Returns:
        sum of the loss, sums of what else there is, and the gradient of the loss's sum, float32.
    """
    both = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        (total, more), gradients = both(params, batch, key)
        return total, more, gradients
    cut = jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(sums, each):
        number, piece = each
        own = None if key is None else jax.random.fold_in(key, number)
        (total, more), gradients = both(params, together(piece), own)
        return jax.tree.map(jnp.add, sums, (total, more, gradients)), None

    first = jax.tree.map(lambda x: x[0], cut)
    nothing = jax.tree.map(jnp.zeros_like, (*jax.eval_shape(loss, params, first, key), params))
    sums, _ = jax.lax.scan(add, nothing, (jnp.arange(pieces), cut))
    return sums


class _Step:
    """What both kinds have in common."""

    def __init__(self, model, config: PretrainingConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        axes = mesh if config.parallelism == "jit" else None
        self.trainable: Trainable = trainable(
            model, dtype=config.dtype, scan=config.scan, remat=config.remat, mesh=axes
        )
        self.optimizer = make_optimizer(config)
        cfg = self.trainable.config
        self.has_dropout = cfg.without_dropout() != cfg
        rows = mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulation
        if config.batch_size % rows:
            raise InputError(
                f"a batch_size of {config.batch_size} does not divide among {mesh.shape['data'] * mesh.shape['fsdp']} "
                f"devices in {config.accumulation} pieces; make it a multiple of {rows}"
            )
        self.abstract = jax.eval_shape(self._fresh, self.trainable.abstract)

    def _fresh(self, params):
        return {"params": params, "moments": self.optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    def _key(self, state):
        if not self.has_dropout:
            return None
        return jax.random.fold_in(jax.random.key(self.config.seed), state["step"])

    def _updated(self, state, total, count, gradients, rate):
        """The state after a step, and what is known of it. rate: float32 []."""
        count = jnp.maximum(count, 1)  # masked language modelling may have masked nothing
        gradients = jax.tree.map(lambda g: g / count, gradients)
        updates, moments = self.optimizer.update(gradients, state["moments"], state["params"])
        params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
        known = {"loss": total / count, "tokens": count, "gradient_norm": optax.tree.norm(gradients)}
        return {"params": params, "moments": moments, "step": state["step"] + 1}, known


class ShardedStep(_Step):
    """The step as one jitted program over a mesh; XLA moves gradients and parameters between the devices."""

    def __init__(self, model, config: PretrainingConfig, mesh: Mesh):
        super().__init__(model, config, mesh)
        self.shardings = shardings(self.abstract, mesh)
        self._programs = {}

    def init_state(self, read) -> dict:
        """The state before the first step. read: path -> values of a parameter, from model.reader."""
        params = self.trainable.parameters(read, self.shardings["params"])
        return jax.jit(self._fresh, out_shardings=self.shardings, donate_argnums=0)(params)

    def put(self, batch: dict) -> dict:
        """This host's rows of a batch, NumPy [b, T], as arrays over the devices of all hosts, [B, T]."""
        return {name: self._arrays(value, batch_sharding(self.mesh)) for name, value in batch.items()}

    def _arrays(self, value: np.ndarray, where: NamedSharding) -> jax.Array:
        with jax.transfer_guard_host_to_device("allow"):  # asked for, which JAX cannot tell with several processes
            return jax.make_array_from_process_local_data(where, value)

    def step(self, state, batch, rate):
        """The function that is compiled: state, batch [B, T], learning rate -> state, what is known of the step."""
        loss, params = self.trainable.loss, state["params"]
        together = partial(rows_apart, mesh=self.mesh)
        total, count, gradients = summed_gradients(
            loss, params, batch, self._key(state), self.config.accumulation, together
        )
        gradients = jax.lax.with_sharding_constraint(gradients, self.shardings["params"])
        return self._updated(state, total, count, gradients, rate)

    def lower(self, batch: dict):
        """The step lowered for a batch given as arrays or as shapes [B, T]; ``.compile()`` it for any topology."""
        everywhere = replicated(self.mesh)
        known = dict.fromkeys(("loss", "tokens", "gradient_norm"), everywhere)
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
        return jax.jit(
            self.step,
            in_shardings=(self.shardings, batch_sharding(self.mesh), everywhere),
            out_shardings=(self.shardings, known),
            donate_argnums=0,
        ).lower(self.abstract, shapes, jax.ShapeDtypeStruct((), jnp.float32))

    def __call__(self, state, batch, rate: float):
        """One step; the state that is handed in is given up. batch: from :meth:`put`."""
        program = self._program("step", batch, lambda: self.lower(batch).compile())
        return program(state, batch, self._arrays(np.float32(rate), replicated(self.mesh)))

    def evaluate(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """Sum of the loss without dropout, and count of labelled tokens, of a batch from :meth:`put`."""
        everywhere = replicated(self.mesh)
        loss = lambda params, batch: self.trainable.loss(params, batch, None)  # noqa: E731
        return self._program("evaluate", batch, lambda: jax.jit(loss, out_shardings=everywhere))(params, batch)

    def _program(self, name, batch, build):
        key = name, tuple((n, v.shape) for n, v in sorted(batch.items()))
        if key not in self._programs:
            self._programs[key] = build()
        return self._programs[key]

    def to_save(self, state):
        """The state as a checkpoint holds it: arrays over the devices of all hosts."""
        return state

    from_saved = to_save


class PmapStep(_Step):
    """The plain baseline: a copy of the state on every device, gradients summed by name."""

    AXIS = "data"

    def __init__(self, model, config: PretrainingConfig, mesh: Mesh):
        super().__init__(model, config, mesh)
        self.shardings = jax.tree.map(lambda _: replicated(mesh), self.abstract)
        self._step = jax.pmap(self.step, axis_name=self.AXIS, donate_argnums=0, in_axes=(0, 0, None))
        self._evaluate = jax.pmap(self._sums, axis_name=self.AXIS)
        self._local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]

    def init_state(self, read) -> dict:
        """The state before the first step, a copy on every device."""
        params = self.trainable.parameters(read, self.shardings["params"])
        return self.from_saved(jax.jit(self._fresh, out_shardings=self.shardings)(params))

    def put(self, batch: dict) -> dict:
        """This host's rows, NumPy [b, T], as [devices, b / devices, T], each device its own."""
        devices = len(self._local)
        return {name: value.reshape(devices, -1, *value.shape[1:]) for name, value in batch.items()}

    def step(self, state, batch, rate):
        """What each device runs, on its rows [b, T]."""
        key = self._key(state)
        key = None if key is None else jax.random.fold_in(key, jax.lax.axis_index(self.AXIS))
        sums = summed_gradients(self.trainable.loss, state["params"], batch, key, self.config.accumulation)
        return self._updated(state, *jax.lax.psum(sums, self.AXIS), rate)

    def _sums(self, params, batch):
        return jax.lax.psum(self.trainable.loss(params, batch, None), self.AXIS)

    def __call__(self, state, batch, rate: float):
        """One step; the state that is handed in is given up."""
        state, known = self._step(state, batch, np.float32(rate))
        return state, {name: value[0] for name, value in known.items()}

    def evaluate(self, params, batch) -> tuple[jax.Array, jax.Array]:
        """Sum of the loss without dropout, and count of labelled tokens."""
        total, count = self._evaluate(params, batch)
        return total[0], count[0]

    def to_save(self, state):
        """Each array once: the copies of all devices as one replicated array."""
        where = replicated(self.mesh)

        def once(x):
            own = [shard.data.reshape(x.shape[1:]) for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape[1:], where, own)

        return jax.tree.map(once, state)

    def from_saved(self, state):
        """The inverse of :meth:`to_save`."""
        copies = len(self._local)
        own = jax.tree.map(lambda x: np.broadcast_to(x.addressable_data(0), (copies, *x.shape)), state)
        return jax.pmap(lambda tree: tree)(own)
