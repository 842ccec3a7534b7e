"""Report of a training step compiled for a TPU pod: memory, FLOPs, traffic, collectives, and a bound on its speed.

The trainer's step is compiled ahead of time for the pod's chips; nothing is allocated or run. The bound is a roofline
(Williams et al. 2009, https://doi.org/10.1145/1498765.1498785): assuming perfect overlap, a step takes as long as the
slowest of its matrix products at peak FLOP/s, its memory traffic at peak bandwidth, and its collectives at link bandwidth.
"""

import itertools
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from duonlp.errors import InputError
from duonlp.training.config import PretrainingConfig
from duonlp.training.flops import mfu, pair_flops, token_flops
from jaxnlp.training.compile_check import hlo, hlo_cost
from jaxnlp.training.compile_check.topology import Topology
from jaxnlp.training.mesh import PyTree, make_mesh
from jaxnlp.training.model import LazyModel
from jaxnlp.training.step import make_step

PRESETS: dict[str, dict] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "codeparrot-small": {"model_type": "gpt2", "vocab_size": 32768},
    "codeparrot": {"model_type": "gpt2", "vocab_size": 32768, "n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""config.json of well-known models: GPT-2's four sizes (Radford et al. 2019), and CodeParrot's two with its own vocabulary."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on each chip while a step runs.

    The compiler does not report `arguments`, `outputs`, `aliased`, `temporaries` and `code` of a step that does not fit; they
    are None.

    Attributes:
        parameters: Parameters in the state.
        optimizer: Optimizer state.
        arguments: The state and the batch.
        outputs: The new state and the metrics.
        aliased: Outputs stored in place of donated arguments.
        temporaries: Activations, gradients and everything else in between.
        code: The program.
        total: All of these at once; for a step that does not fit, what the compiler said it needs.
        available: Memory of the chip.
    """

    parameters: int
    optimizer: int
    arguments: int | None
    outputs: int | None
    aliased: int | None
    temporaries: int | None
    code: int | None
    total: int
    available: int

    @property
    def head_room(self) -> float:
        """Free share of the chip's memory; negative if the step does not fit."""
        return 1 - self.total / self.available


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind over the same axes of the mesh, in one step.

    Attributes:
        kind: Opcode, such as "all-reduce".
        axes: Axes of the mesh joined by "+", or "part of" these.
        group: Number of chips in a group.
        times: Number of collectives.
        bytes: Size of the whole arrays.
        sent: Bytes sent by each chip.
        seconds: Time at the published bandwidth of the links along the group.
    """

    kind: str
    axes: str
    group: int
    times: int
    bytes: int
    sent: int
    seconds: float


@dataclass(frozen=True)
class StepReport:
    """Report of a compiled step; figures are per chip and step unless noted otherwise.

    Figures with the default None are None for a step that does not fit.

    Attributes:
        topology: Name of the slice.
        chips: Number of chips.
        mesh: Devices along each axis.
        tokens: Tokens of a step over all chips.
        parameters: Parameters of the model.
        memory: Memory of a chip.
        fits: Whether the step fits with the required head room.
        compile_seconds: Time the compilation took.
        model_flops: FLOPs the model needs, the analytic count of duonlp.training.flops with full attention.
        flops: FLOPs of matrix products, including recomputed ones.
        xla_flops: XLA's own count, in which the body of a loop counts once.
        traffic: Bytes to and from the chip's memory.
        xla_bytes: XLA's own count, in which the body of a loop counts once.
        exchanges: Collectives, the most expensive first.
        compute_seconds: Roofline of the matrix products.
        memory_seconds: Roofline of the memory traffic.
        interconnect_seconds: Roofline of the collectives.
        compiler_seconds: The compiler's estimate for all instructions except collectives; None without one. It is not a bound but
            includes the vector units, which the rooflines leave out.
        mfu_bound: Upper bound on the model FLOPs utilization.
        unknown_loops: Number of loops whose trip count could not be read; their bodies count once.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    tokens: int
    parameters: int
    memory: Memory
    fits: bool
    compile_seconds: float
    model_flops: float
    flops: int | None = None
    xla_flops: float | None = None
    traffic: int | None = None
    xla_bytes: float | None = None
    exchanges: tuple[Exchange, ...] = ()
    compute_seconds: float | None = None
    memory_seconds: float | None = None
    interconnect_seconds: float | None = None
    compiler_seconds: float | None = None
    mfu_bound: float | None = None
    unknown_loops: int = 0

    @property
    def step_seconds(self) -> float | None:
        """Lower bound on the duration of a step."""
        return max(self._times.values(), default=None)

    @property
    def bound_by(self) -> str | None:
        """Name of the slowest roofline: "compute", "memory" or "interconnect"."""
        return max(self._times, key=self._times.__getitem__, default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Upper bound on the throughput over all chips."""
        return None if self.step_seconds is None else self.tokens / self.step_seconds

    @property
    def _times(self) -> dict[str, float]:
        """Seconds of each roofline; empty if the step does not fit."""
        seconds = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.interconnect_seconds,
        }
        return {name: value for name, value in seconds.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, including derived ones, as JSON-compatible values."""
        derived = {name: getattr(self, name) for name in ("step_seconds", "bound_by", "tokens_per_second")}
        return asdict(self) | derived | {"memory": asdict(self.memory) | {"head_room": self.memory.head_room}}


def compile_step(
    model: LazyModel,
    config: PretrainingConfig,
    topology: Topology,
    sequence_length: int,
    head_room: float = 0.05,
    *,
    segment_ids: bool = False,
    target_length: int | None = None,
    save_text: str | Path | None = None,
) -> StepReport:
    """Compile the training step of a model for a slice, and report what it needs.

    Args:
        model: Model to train; its parameters are never made.
        config: Settings of the run. batch_size counts rows over all chips, and mesh must fit the slice.
        topology: Slice, from jaxnlp.training.compile_check.topology.
        sequence_length: Tokens per row; of an encoder-decoder, per source.
        head_room: Share of a chip's memory that must stay free, for the next batch and the runtime.
        segment_ids: Whether rows hold several documents, which attention keeps apart.
        target_length: Tokens per target of an encoder-decoder; by default as many as per source.
        save_text: File to write the text of the compiled program to.

    Raises:
        InputError: The mesh does not fit the slice, the batch the mesh or the sequence the model; or parallelism is "pmap".
    """
    if config.parallelism != "jit":
        raise InputError(f"parallelism is {config.parallelism!r}, which compiles for local devices only; use 'jit'")
    lengths = {"input_ids": sequence_length}
    if model.config.decoder is None:
        flops_per_token = token_flops(model.config, sequence_length).training
        lengths |= dict.fromkeys(("labels", "segment_ids")[: 2 if segment_ids else 1], sequence_length)
    else:
        target_length = target_length or sequence_length
        flops_per_token = pair_flops(model.config, sequence_length, target_length).training / sequence_length
        lengths |= {"attention_mask": sequence_length, "decoder_input_ids": target_length, "labels": target_length}
    mesh = make_mesh(config.mesh, topology.devices)
    step = make_step(model, config, mesh)
    batch = {name: jax.ShapeDtypeStruct((config.batch_size, n), jnp.int32) for name, n in lengths.items()}
    chips, tokens = len(topology.devices), config.batch_size * sequence_length
    common: dict[str, Any] = {
        "topology": topology.name, "chips": chips, "mesh": dict(mesh.shape), "tokens": tokens,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.abstract["params"])),
        "model_flops": flops_per_token * tokens / chips,
    }  # fmt: skip
    state_bytes = {name: _bytes_per_chip(step.abstract[key], step.shardings[key]) for name, key in STATE_KEYS.items()}
    available, start = topology.chip.hbm_bytes, time.perf_counter()
    lowered = step.lower(batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        # The compiler reports temporaries alone if they alone exceed the memory.
        needed += sum(state_bytes.values()) if "temporaries" in str(error) else 0
        unknown: dict[str, Any] = dict.fromkeys(COMPILED)
        memory = Memory(**state_bytes, **unknown, total=max(needed, available), available=available)
        return StepReport(**common, memory=memory, fits=False, compile_seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = memory_of(compiled.memory_analysis(), state_bytes, available)
    text = compiled.as_text() or ""
    if save_text:
        Path(save_text).write_text(text, encoding="utf-8")
    costs = costs_of(text, mesh, topology)
    xla_costs: Any = compiled.cost_analysis()
    times = [costs[f"{name}_seconds"] for name in ("compute", "memory", "interconnect")]
    return StepReport(
        **common, **costs, memory=memory, fits=memory.head_room >= head_room, compile_seconds=seconds,
        xla_flops=xla_costs.get("flops"), xla_bytes=xla_costs.get("bytes accessed"),
        mfu_bound=mfu(tokens / max(times), flops_per_token, chips * topology.chip.peak_flops_bf16),
    )  # fmt: skip


STATE_KEYS = {"parameters": "params", "optimizer": "moments"}
"""Field of Memory -> entry of the state."""

COMPILED = ("arguments", "outputs", "aliased", "temporaries", "code")
"""Fields of Memory that the compiler reports."""


def memory_of(analysis: Any, state_bytes: dict[str, int], available: int) -> Memory:
    """Return the memory of a compiled step.

    Args:
        analysis: Result of ``Compiled.memory_analysis()``.
        state_bytes: "parameters" and "optimizer" of the result.
        available: Memory of the chip in bytes.
    """
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    aliased, temporaries = analysis.alias_size_in_bytes, analysis.temp_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    total = arguments + outputs - aliased + temporaries + code
    return Memory(**state_bytes, **dict(zip(COMPILED, (arguments, outputs, aliased, temporaries, code), strict=True)),
                  total=total, available=available)  # fmt: skip


def memory_needed(message: str) -> int | None:
    """Return the bytes a program needs from the compiler's error that it does not fit; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    match = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available", message) or re.search(
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message
    )
    return None if match is None else round(float(match[1]) * UNITS[match[2]])


def costs_of(text: str, mesh: Mesh, topology: Topology) -> dict[str, Any]:
    """Return the fields of a StepReport that are counted in the text of a program compiled for `mesh`."""
    program, chip = hlo.parse(text), topology.chip
    flops, traffic = hlo_cost.matmul_flops(program), hlo_cost.memory_traffic(program)
    exchanges = exchanges_of(hlo_cost.collectives(program), mesh, topology)
    cycles = hlo_cost.estimated_cycles(program)
    return {
        "flops": flops,
        "traffic": traffic,
        "exchanges": exchanges,
        "compute_seconds": flops / chip.peak_flops_bf16,
        "memory_seconds": traffic / chip.hbm_bandwidth,
        "interconnect_seconds": sum(exchange.seconds for exchange in exchanges),
        "compiler_seconds": cycles / topology.clock if cycles and topology.clock else None,
        "unknown_loops": len(program.unknown_loops),
    }


def exchanges_of(collectives: list[hlo_cost.Collective], mesh: Mesh, topology: Topology) -> tuple[Exchange, ...]:
    """Sum collectives by kind and axes of the mesh; the most expensive come first."""
    devices = list(mesh.devices.flat)
    sums: dict[tuple[str, str, int], tuple[int, int, int, float]] = {}
    for collective in collectives:
        key = collective.kind, axes_of(collective.group, mesh.shape), len(collective.group)
        bandwidth = topology.group_bandwidth([devices[i] for i in collective.group])
        times, size, sent, seconds = sums.get(key, (0, 0, 0, 0.0))
        sums[key] = (
            times + collective.times,
            size + collective.times * collective.bytes,
            sent + collective.sent,
            seconds + collective.sent / bandwidth,
        )
    exchanges = [Exchange(*key, *values) for key, values in sums.items()]
    return tuple(sorted(exchanges, key=lambda exchange: -exchange.seconds))


def axes_of(group: tuple[int, ...], shape: Mapping[str, int]) -> str:
    """Return the axes of a mesh that a group of partitions lies along, joined by "+".

    Args:
        group: Positions in the flattened mesh.
        shape: Axis -> devices along it, in order.
    """
    numbers = np.arange(int(np.prod(list(shape.values())))).reshape(tuple(shape.values()))
    first = np.unravel_index(group[0], numbers.shape)
    long_axes = [axis for axis, size in shape.items() if size > 1]
    for count in range(1, len(long_axes) + 1):
        for axes in itertools.combinations(long_axes, count):
            index = tuple(slice(None) if axis in axes else place for axis, place in zip(shape, first, strict=True))
            if set(numbers[index].ravel().tolist()) == set(group):
                return "+".join(axes)
    spanned = [
        axis for axis, places in zip(shape, np.unravel_index(group, numbers.shape), strict=True) if np.ptp(places)
    ]
    return f"part of {'+'.join(spanned)}"


def _bytes_per_chip(abstract: PyTree, shardings: PyTree) -> int:
    return sum(
        int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
    )


def advice(report: StepReport, config: PretrainingConfig) -> list[str]:
    """Return ways to make a step fit, the cheapest first."""
    rows = config.batch_size // (report.mesh["data"] * report.mesh["fsdp"])
    state = report.memory.parameters + report.memory.optimizer
    fsdp = next((n for n in (4, 8, 16, 32, 64) if n > report.mesh["fsdp"] and report.chips % n == 0), None)
    shard = f"shard parameters and optimizer state over more chips (fsdp={fsdp})"
    state_is_large = state > report.memory.available / 4
    ways = []
    if state_is_large and fsdp:
        ways.append(shard)
    if config.remat != "full":
        ways.append(
            f"recompute more in the backward pass (remat {'full' if config.remat == 'dots' else 'dots or full'})"
        )
    if rows > config.accumulation:
        ways.append(f"split the batch into more microbatches (accumulation {2 * config.accumulation})")
    if rows > 1:
        ways.append(f"use fewer rows per chip (below {rows})")
    if not state_is_large and fsdp and len(ways) < 2:
        ways.append(shard)
    if config.optimizer == "adamw":
        ways.append("use an optimizer with less state (lion, adafactor)")
    return ways or ["use a shorter sequence, or chips with more memory"]


def preset(name: str) -> dict[str, Any]:
    """Return the config.json of a preset as a dict; raise InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}; pass a config.json, or one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])
