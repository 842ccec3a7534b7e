"""Causal language modelling from scratch, data-parallel over every device of this host, in one file.

The state is plain pytrees on a one-dimensional "data" mesh: parameters and optimizer on every device, each batch cut
along its rows. The step is one jitted pure function with the state donated; XLA sums the gradients over the mesh.
AdamW (Loshchilov & Hutter 2019) without decay on vectors, gradients clipped to a global norm, and a warm-up that is
followed by half a cosine.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnlp.losses import cross_entropy
from jaxnlp.pretrained import functional
from shared.errors import InputError


@dataclass(frozen=True)
class PretrainingConfig:
    """How a model is pretrained.

    steps: optimizer steps.
    seconds: the learning rate is brought down to its end and training stopped after this long, however few steps
        that was; None for no limit. The first step, which compiles, is not counted.
    learning_rate: its peak; it ends at `final_share` of it.
    warmup_share: share of the run in which the learning rate rises from 0.
    weight_decay: decoupled, on matrices and embeddings alone.
    clip_norm: largest global norm of the gradients.
    """

    steps: int
    seconds: float | None = None
    learning_rate: float = 1e-3
    final_share: float = 0.05
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0

    def __post_init__(self):
        for name in ("steps", "seconds", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive")
        for name in ("final_share", "warmup_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when `progress`, a share from 0 to 1, of the run is done."""
        if progress < self.warmup_share:
            return self.learning_rate * progress / self.warmup_share
        left = (1 - min(progress, 1.0)) / (1 - self.warmup_share)
        cosine = 0.5 * (1 - math.cos(math.pi * left))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


@dataclass(frozen=True)
class Step:
    """What one step did. loss: mean over the batch, in nats a token. seconds: since the first step ended."""

    number: int
    progress: float
    loss: float
    learning_rate: float
    tokens: int
    seconds: float


def data_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh, its axis named "data", over `devices`, or over all of this host."""
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("data",))


def optimizer(config: PretrainingConfig) -> optax.GradientTransformation:
    """AdamW but for the learning rate, which the step multiplies in."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    )


def causal_lm_loss(apply: Callable, params, input_ids) -> jax.Array:
    """Mean cross-entropy, in nats, of each token given those before it in its row. input_ids: int [B, T]."""
    logits = apply(params, input_ids=input_ids)["logits"]  # [B, T, V]
    return cross_entropy(logits[:, :-1], input_ids[:, 1:])


def train_step(apply: Callable, transform: optax.GradientTransformation) -> Callable:
    """Returns the jitted ``step(params, moments, input_ids, learning_rate) -> params, moments, loss``."""

    def step(params, moments, input_ids, learning_rate):
        loss, gradients = jax.value_and_grad(lambda p: causal_lm_loss(apply, p, input_ids))(params)
        updates, moments = transform.update(gradients, moments, params)
        params = jax.tree.map(lambda p, u: p - (learning_rate * u).astype(p.dtype), params, updates)
        return params, moments, loss

    return jax.jit(step, donate_argnums=(0, 1))


def pretrain(
    model, batches: Iterable[np.ndarray], config: PretrainingConfig, mesh: Mesh | None = None
) -> Iterator[Step]:
    """Trains a causal language model in place, and yields a Step after each step.

    The model holds the trained parameters once the iterator is exhausted.

    Args:
        model: a jaxnlp model with the causal-lm head.
        batches: int32 [B, T], every token real; at least `config.steps` of them.
        mesh: from :func:`data_mesh`; all devices of this host by default.

    Raises:
        InputError: the rows of a batch do not divide among the devices, or the batches run out.
    """
    mesh = data_mesh() if mesh is None else mesh
    everywhere, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    apply, params = functional(model)
    transform = optimizer(config)
    # A copy: the step donates what it is given, and the model's own arrays must outlive an interruption.
    params = jax.device_put(jax.tree.map(jnp.copy, params), everywhere)
    moments = jax.jit(transform.init, out_shardings=everywhere)(params)
    step = train_step(apply, transform)

    batches, start, progress = iter(batches), time.perf_counter(), 0.0
    for number in range(1, config.steps + 1):
        batch = next(batches, None)
        if batch is None:
            raise InputError(
                f"the batches ran out after {number - 1} of {config.steps} steps; repeat them, or lower steps"
            )
        if len(batch) % mesh.size:
            raise InputError(f"a batch has {len(batch)} rows; it must be a multiple of the {mesh.size} devices")
        # The middle of the step, so that neither the first nor the last one is wasted on a rate of nothing.
        rate = config.learning_rate_at(progress + 0.5 / config.steps)
        params, moments, loss = step(params, moments, jax.device_put(batch, by_rows), np.float32(rate))
        # One step at a time: with several in flight, the sums over host devices on a CPU can wait for each other's
        # threads for ever; and the wall clock could not be kept.
        loss = float(loss)
        if number == 1:
            start = time.perf_counter()
        seconds = time.perf_counter() - start
        progress = number / config.steps
        if config.seconds is not None:
            progress = max(progress, min(1.0, seconds / config.seconds))
        yield Step(number, progress, loss, rate, batch.size, seconds)
        if progress >= 1:
            break
    nnx.update(model, jax.tree.map(jnp.asarray, jax.device_get(params)))  # back from the mesh to one device


def held_out_loss(model, blocks: np.ndarray, batch_size: int, mesh: Mesh | None = None) -> float:
    """Mean loss, in nats a token, over held-out blocks; its exponential is the perplexity.

    Args:
        blocks: int32 [N, T]; the last ones that do not fill a batch are left out.
        batch_size: rows of a batch, a multiple of the devices.
    """
    mesh = data_mesh() if mesh is None else mesh
    everywhere, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    count = len(blocks) // batch_size
    if count == 0 or batch_size % mesh.size:
        raise InputError(
            f"{len(blocks)} blocks in batches of {batch_size}: give at least one batch, of a multiple of {mesh.size}"
        )
    apply, params = functional(model)
    params = jax.device_put(params, everywhere)
    loss = jax.jit(lambda p, ids: causal_lm_loss(apply, p, ids))
    rows = blocks[: count * batch_size].reshape(count, batch_size, -1)
    return float(np.mean([float(loss(params, jax.device_put(batch, by_rows))) for batch in rows]))
