"""What a training step will need on a pod that is not there: memory, FLOPs, traffic, collectives, and a bound on its speed.

The step that the trainer runs is compiled ahead of time for the pod's chips; nothing is allocated and nothing is run.
The bound is a roofline (Williams et al. 2009, https://doi.org/10.1145/1498765.1498785): a step takes at least as long as
its matrix products at the chip's peak, its memory traffic at the memory's, or its collectives over the links, as if
each hid behind the longest of them.
"""

import itertools
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from duonlp.errors import InputError
from duonlp.training.config import PretrainingConfig
from duonlp.training.flops import mfu, pair_flops, token_flops
from jaxnlp.training.compile_check import hlo, hlo_cost
from jaxnlp.training.compile_check.topology import Topology
from jaxnlp.training.mesh import make_mesh
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
"""config.json of well-known sizes: GPT-2's four (Radford et al. 2019), and CodeParrot's two, with its own vocabulary."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on each chip while a step runs.

    parameters, optimizer: the state that stays from step to step.
    arguments: the state and the batch. outputs: the new state and the loss. aliased: outputs that take the place of
        arguments, which were donated. temporaries: activations, gradients and everything else in between. code: the program.
        None where the step does not fit: the compiler then gives up before it says.
    total: all of it at once; where the step does not fit, what the compiler said it needs.
    available: the chip's memory.
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
        """What is left, as a share of the chip's memory; negative where it does not fit."""
        return 1 - self.total / self.available


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind over the same axes of the mesh.

    kind: "all-reduce", ...
    axes: of the mesh, joined by "+", or "part of the mesh".
    group: how many chips exchange.
    times: in a step. bytes: of the whole arrays, in a step. sent: by each chip, in a step.
    seconds: at the published bandwidth of the links along the group.
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
    """A compiled step, everything a chip and a step unless it says otherwise.

    flops: of matrix products, those computed a second time included. model_flops: what the model needs, the analytic
        count of duonlp.training.flops with full attention. xla_flops, xla_bytes: XLA's own count, every loop once.
    traffic: bytes to and from the chip's memory.
    compute_seconds, memory_seconds, interconnect_seconds: the three rooflines.
    compiler_seconds: what the compiler itself estimates for all instructions but collectives: no bound, but it knows
        the vector units, which the rooflines leave out; None where it says nothing.
    unknown_loops: loops whose trips could not be read; their bodies are counted once.
    compile_seconds: how long compiling took.

    All but `memory` is None where the step does not fit.
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
        """At least so long a step takes."""
        return None if self.flops is None else max(self._times.values())

    @property
    def bound_by(self) -> str | None:
        """Which roofline that is: "compute", "memory" or "interconnect"."""
        return None if self.flops is None else max(self._times, key=self._times.get)

    @property
    def tokens_per_second(self) -> float | None:
        """At most, over all chips."""
        return None if self.flops is None else self.tokens / self.step_seconds

    @property
    def _times(self) -> dict[str, float]:
        return {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "interconnect": self.interconnect_seconds,
        }

    def to_dict(self) -> dict:
        """For JSON, the derived figures included."""
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
    save_text: str | None = None,
) -> StepReport:
    """Compiles a training step for a slice of a pod, and reports on it.

    Args:
        model: what is trained; its parameters are never made.
        config: its batch_size counts rows over all chips; its mesh must fit the slice.
        topology: from jaxnlp.training.compile_check.topology.
        sequence_length: tokens in a row; of an encoder-decoder, in a source.
        head_room: share of a chip's memory that must stay free, for the next batch and what the runtime keeps.
        segment_ids: rows hold several documents, which attention keeps apart.
        target_length: tokens in a target of an encoder-decoder; by default as many as in a source.
        save_text: a file to write the compiled program to, as text.

    Raises:
        InputError: the mesh does not fit the slice, the batch not the mesh, the sequence not the model; or it is pmap's.
    """
    if config.parallelism != "jit":
        raise InputError(f"parallelism={config.parallelism!r} is compiled for the devices that are there; check 'jit'")
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
    common = {
        "topology": topology.name, "chips": chips, "mesh": dict(mesh.shape), "tokens": tokens,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.abstract["params"])),
        "model_flops": flops_per_token * tokens / chips,
    }  # fmt: skip
    kept = {name: _bytes_a_chip(step.abstract[key], step.shardings[key]) for name, key in KEPT.items()}
    available, start = topology.chip.hbm_bytes, time.perf_counter()
    lowered = step.lower(batch)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        # Of temporaries alone the compiler speaks when they alone are too much.
        needed += sum(kept.values()) if "temporaries" in str(error) else 0
        memory = Memory(**kept, **dict.fromkeys(COMPILED), total=max(needed, available), available=available)
        return StepReport(**common, memory=memory, fits=False, compile_seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = memory_of(compiled.memory_analysis(), kept, available)
    text = compiled.as_text()
    if save_text:
        Path(save_text).write_text(text, encoding="utf-8")
    costs = costs_of(text, mesh, topology)
    own = compiled.cost_analysis()
    times = [costs[f"{name}_seconds"] for name in ("compute", "memory", "interconnect")]
    return StepReport(
        **common, **costs, memory=memory, fits=memory.head_room >= head_room, compile_seconds=seconds,
        xla_flops=own.get("flops"), xla_bytes=own.get("bytes accessed"),
        mfu_bound=mfu(tokens / max(times), flops_per_token, chips * topology.chip.peak_flops_bf16),
    )  # fmt: skip


KEPT = {"parameters": "params", "optimizer": "moments"}
COMPILED = ("arguments", "outputs", "aliased", "temporaries", "code")


def memory_of(analysis, kept: dict[str, int], available: int) -> Memory:
    """A Memory from what ``Compiled.memory_analysis()`` gives."""
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    aliased, temporaries = analysis.alias_size_in_bytes, analysis.temp_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    total = arguments + outputs - aliased + temporaries + code
    return Memory(**kept, **dict(zip(COMPILED, (arguments, outputs, aliased, temporaries, code), strict=True)),
                  total=total, available=available)  # fmt: skip


def memory_needed(message: str) -> int | None:
    """Bytes that the compiler says a program needs when it refuses one that is too large; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    match = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available", message) or re.search(
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message
    )
    return None if match is None else round(float(match[1]) * UNITS[match[2]])


def costs_of(text: str, mesh: Mesh, topology: Topology) -> dict:
    """The counted fields of a StepReport, from the text of a program compiled for `mesh`."""
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


def exchanges_of(found: list[hlo_cost.Collective], mesh: Mesh, topology: Topology) -> tuple[Exchange, ...]:
    """Collectives by kind and axes of the mesh, the most expensive first."""
    devices, sums = list(mesh.devices.flat), {}
    for each in found:
        key = each.kind, axes_of(each.group, mesh.shape), len(each.group)
        seconds = each.sent / topology.group_bandwidth([devices[i] for i in each.group])
        times, size, sent, before = sums.get(key, (0, 0, 0, 0.0))
        sums[key] = times + each.times, size + each.times * each.bytes, sent + each.sent, before + seconds
    rows = [Exchange(*key, *values) for key, values in sums.items()]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def axes_of(group: tuple[int, ...], shape: dict[str, int]) -> str:
    """The axes of a mesh that a group of partitions lies along, joined by "+".

    Args:
        group: positions in the flattened mesh.
        shape: axis -> devices along it, in order.
    """
    numbers = np.arange(int(np.prod(list(shape.values())))).reshape(tuple(shape.values()))
    first = np.unravel_index(group[0], numbers.shape)
    wide = [axis for axis, size in shape.items() if size > 1]
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            index = tuple(slice(None) if axis in axes else place for axis, place in zip(shape, first, strict=True))
            if set(numbers[index].ravel().tolist()) == set(group):
                return "+".join(axes)
    inside = [
        axis for axis, places in zip(shape, np.unravel_index(group, numbers.shape), strict=True) if np.ptp(places)
    ]
    return f"part of {'+'.join(inside)}"


def _bytes_a_chip(abstract, shardings) -> int:
    return sum(
        int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
    )


def advice(report: StepReport, config: PretrainingConfig) -> list[str]:
    """What makes a step that does not fit smaller, the cheapest first."""
    found, rows = [], config.batch_size // (report.mesh["data"] * report.mesh["fsdp"])
    kept = report.memory.parameters + report.memory.optimizer
    spread = next((n for n in (4, 8, 16, 32, 64) if n > report.mesh["fsdp"] and report.chips % n == 0), None)
    if kept > report.memory.available / 4 and spread:
        found.append(f"cut parameters and optimizer over more chips (fsdp={spread})")
    if config.remat != "full":
        found.append(
            f"compute more again in the backward pass (remat {'full' if config.remat == 'dots' else 'dots or full'})"
        )
    if rows > config.accumulation:
        found.append(f"compute the batch in more pieces (accumulation {2 * config.accumulation})")
    if rows > 1:
        found.append(f"fewer rows a chip (below {rows})")
    if kept <= report.memory.available / 4 and spread and len(found) < 2:
        found.append(f"cut parameters and optimizer over more chips (fsdp={spread})")
    if config.optimizer == "adamw":
        found.append("an optimizer that keeps less (lion, adafactor)")
    return found or ["a shorter sequence, or chips with more memory"]


def preset(name: str) -> dict:
    """config.json of a well-known size, as a dict; raises InputError for another name."""
    if name not in PRESETS:
        raise InputError(f"the model {name!r} is not known; give a config.json, or one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])
