"""Cost of a compiled program on a chip: FLOPs of its matrix products, memory traffic, and collectives.

Counts are over the instructions that XLA scheduled, each as often as it runs (see hlo.py). They include scanned layers,
microbatches, and what rematerialization computes again.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from jaxnlp.training.compile_check.hlo import HBM, Computation, Instruction, Program, Run

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "iota", "async-start", "async-update", "async-done", "domain",
    "copy-start", "slice-start", "all-gather-done", "all-reduce-done", "collective-permute-done",
}  # fmt: skip
"""Opcodes without memory traffic of their own: aliases, control flow (bodies count), and halves of asynchronous operations
whose other half counts."""
SLICES = ("dynamic-slice", "slice", "gather")
"""Opcodes that read a part of their first operand."""

SAME_ELEMENTS = ("bitcast", "copy", "convert", "reshape", "transpose")
"""Opcodes that change at most the layout and the type of their operand."""

BUFFERS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
"""Targets of custom calls without memory traffic."""


# ---------------------------------------------------------------------------------------------------- matrix products


def matmul_flops(program: Program) -> int:
    """Return the FLOPs per chip of matrix products and convolutions in one run; a multiply-add is two."""
    return sum(
        run.times * _product_flops(run.instruction, run.computation)
        for run in program.runs
        if run.instruction.opcode in ("dot", "convolution")
    )


def _product_flops(product: Instruction, computation: Computation) -> int:
    left, right = (computation.instructions[name].arrays[0].shape for name in product.operands[:2])
    result = product.arrays[0].shape
    if product.opcode == "dot":
        contracted = _integers(product.attribute("lhs_contracting_dims"))
        return 2 * math.prod(result) * math.prod(left[i] for i in contracted)
    # On TPU, matrix products are convolutions whose batch dimensions are spatial, with a window that matches only once.
    inputs, kernel, output = _match(r"(\w+)_(\w+)->(\w+)", product.attribute("dim_labels") or "").groups()
    spatial = sorted(character for character in kernel if character.isdigit())  # the order of the window
    window = _window(product.attribute("window"), len(spatial))
    positions = 1
    for i, dimension in enumerate(spatial):
        sizes = left[inputs.index(dimension)], result[output.index(dimension)]
        positions *= _valid_positions(*sizes, **{name: values[i] for name, values in window.items()})
    batch_groups = int(product.attribute("batch_group_count") or 1)
    features = right[kernel.index("i")] * result[output.index("f")] * result[output.index("b")]
    return 2 * features * positions // batch_groups


def _window(text: str | None, rank: int) -> dict[str, list[int]]:
    """Parse the attribute ``window``, such as ``{size=3x3 pad=1_1x1_1}``, into values per spatial dimension."""
    fields = dict(part.split("=") for part in (text or "{}").strip("{}").split())

    def numbers(name: str, default: int) -> list[int]:
        return [int(value) for value in fields[name].split("x")] if name in fields else [default] * rank

    pads = [pad.split("_") for pad in fields["pad"].split("x")] if "pad" in fields else [["0", "0"]] * rank
    return {
        "size": numbers("size", 1),
        "stride": numbers("stride", 1),
        "lhs_dilate": numbers("lhs_dilate", 1),
        "rhs_dilate": numbers("rhs_dilate", 1),
        "pad": [int(low) for low, _ in pads],
    }


def _valid_positions(
    length: int, outputs: int, size: int, stride: int, lhs_dilate: int, rhs_dilate: int, pad: int
) -> int:
    """Count the pairs of an output and a kernel element that meet an input rather than padding or a dilation gap."""
    positions = np.arange(outputs)[:, None] * stride + np.arange(size)[None, :] * rhs_dilate - pad
    in_range = (positions >= 0) & (positions <= (length - 1) * lhs_dilate)
    return int(np.count_nonzero(in_range & (positions % lhs_dilate == 0)))


# ------------------------------------------------------------------------------------------------------------ memory


def memory_traffic(program: Program) -> int:
    """Return the bytes that a chip reads from and writes to its high-bandwidth memory in one run of the program.

    Values in vector memory and fused intermediate values are not counted. An operand that is only sliced counts by its
    slice, and one that is updated in place by the update.
    """
    total = 0
    for run in program.runs:
        if not run.fused and run.instruction.opcode not in FREE:
            total += run.times * _traffic(program, run)
    return total


def _traffic(program: Program, run: Run) -> int:
    instruction, siblings = run.instruction, run.computation.instructions
    operands = [siblings[name] for name in instruction.operands if name in siblings]
    if instruction.opcode in ("copy-done", "slice-done"):  # a copy between two memory spaces
        source = [siblings[name] for name in operands[0].operands if name in siblings]
        spaces = [source[0].arrays[0].space if source else HBM, instruction.arrays[0].space]
        return spaces.count(HBM) * instruction.arrays[0].bytes
    if instruction.opcode in SLICES:
        return 2 * _in_hbm(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1])
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    if instruction.opcode == "custom-call" and target in BUFFERS:
        return 0
    if instruction.opcode == "fusion":
        return _fusion_traffic(program, instruction, operands)
    return _in_hbm(instruction) + sum(_in_hbm(operand) for operand in operands)


def _fusion_traffic(program: Program, fusion: Instruction, operands: list[Instruction]) -> int:
    inside = program.computations[fusion.called("calls")]
    aliases = re.findall(r"\{([\d, ]*)\}: \((\d+)", fusion.attribute("output_to_operand_aliasing") or "")
    aliased_outputs = {int(index.split(",")[0]) for index, _ in aliases if index} if fusion.is_tuple else set()
    total = 0
    for number, operand in enumerate(operands):
        if not operand.is_tuple and operand.arrays and operand.arrays[0].space == HBM:
            total += _bytes_read(program, inside, number, operand.arrays[0].bytes)
    results = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    for number, (name, array) in enumerate(zip(results, fusion.arrays, strict=False)):
        if array.space == HBM and number not in aliased_outputs:
            total += _bytes_written(program, inside, name, array.bytes)
    return total


def _bytes_read(program: Program, inside: Computation, number: int, whole: int) -> int:
    """Return the bytes that a fusion reads of a parameter of `whole` bytes."""
    parameter = inside.parameters.get(number)
    if parameter is None:
        return whole
    elements = math.prod(parameter.arrays[0].shape)
    return round(whole * _elements_read(program, inside, parameter, elements) / max(elements, 1))


def _elements_read(program: Program, inside: Computation, value: Instruction, whole: int) -> int:
    """Return the elements that a fusion reads of a value of `whole` elements, following its users."""
    total = whole if value.root and value.opcode != "parameter" else 0
    for user in inside.users[value.name]:
        if user.opcode in SAME_ELEMENTS or (user.opcode == "fusion" and _only_moves(program, user)):
            total += _elements_read(program, inside, user, whole)
        elif user.opcode in SLICES and user.operands[0] == value.name:
            total += math.prod(user.arrays[0].shape)
        elif user.opcode == "fusion":
            nested = program.computations[user.called("calls")]
            numbers = [n for n, name in enumerate(user.operands) if name == value.name and n in nested.parameters]
            total += sum(_elements_read(program, nested, nested.parameters[n], whole) for n in numbers)
        elif not (
            (user.opcode == "dynamic-update-slice" and user.operands[0] == value.name)  # updated in place
            or (user.opcode == "tuple" and value.opcode == "parameter")  # passed through
        ):
            return whole
    return min(total, whole)


def _only_moves(program: Program, fusion: Instruction) -> bool:
    """Return whether a fusion only changes the layout of its operand, as fusions inside fusions do."""
    inside = program.computations[fusion.called("calls")].instructions.values()
    return len(fusion.operands) == 1 and all(i.opcode == "parameter" or i.opcode in SAME_ELEMENTS for i in inside)


def _bytes_written(program: Program, inside: Computation, name: str, whole: int) -> int:
    """Return the bytes that a fusion writes of a result of `whole` bytes."""
    source = inside.instructions.get(name)
    while source is not None and source.opcode in SAME_ELEMENTS and source.operands:
        source = inside.instructions[source.operands[0]]
    if source is None:
        return whole
    if source.opcode == "parameter":
        return 0  # passed through
    if source.opcode == "fusion" and not source.is_tuple:
        nested = program.computations[source.called("calls")]
        return _bytes_written(program, nested, nested.root.name, whole)
    if source.opcode == "dynamic-update-slice":
        return inside.instructions[source.operands[1]].arrays[0].bytes
    return whole


def _in_hbm(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.space == HBM)


# ------------------------------------------------------------------------------------------------------- collectives


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind, group and size.

    Attributes:
        kind: One of :data:`COLLECTIVES`.
        group: Partitions in the group of the first partition, in order; for a permutation, the first pair.
        times: How often it runs in one run of the program.
        bytes: Size on each chip of the whole array, before it is scattered or after it is gathered, each time.
    """

    kind: str
    group: tuple[int, ...]
    times: int
    bytes: int

    @property
    def sent(self) -> int:
        """Bytes that a chip sends in total, by the optimal ring algorithm (Chan et al. 2007)."""
        share = (len(self.group) - 1) / max(len(self.group), 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return round(self.times * factor * self.bytes)


def collectives(program: Program) -> list[Collective]:
    """Return the collectives of a program, merging those of one kind, group and size.

    An asynchronous collective of a TPU appears in several fusions, which start, continue and finish it, all with one channel;
    it counts once. An all-reduce fused with the slice that follows counts as the reduce-scatter that the TPU runs.
    """
    seen: set[tuple] = set()
    times: defaultdict[tuple[str, tuple[int, ...], int], int] = defaultdict(int)
    for run in program.runs:
        instruction = run.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or (kind == "all-to-all" and instruction.opcode.endswith("-start")):
            continue
        channel = instruction.attribute("channel_id")
        identity = run.schedule, kind, channel or (run.computation.name, instruction.name)
        if identity in seen:
            continue
        seen.add(identity)
        if kind == "all-reduce" and run.fused and run.computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        group = _group(instruction)
        if len(group) > 1:
            times[kind, group, _payload(kind, instruction, run.computation)] += run.times
    return [Collective(kind, group, count, size) for (kind, group, size), count in times.items()]


def _payload(kind: str, collective: Instruction, computation: Computation) -> int:
    """Return the bytes of the whole array of a collective."""
    siblings = computation.instructions
    operands = [siblings[name] for name in collective.operands if name in siblings]
    operand_bytes = sum(array.bytes for operand in operands for array in operand.arrays)
    if kind != "all-gather":
        return operand_bytes
    result_bytes = sum(array.bytes for array in collective.arrays)
    # The result of a start contains its operands.
    return result_bytes - operand_bytes if collective.opcode.endswith("-start") else result_bytes


def _group(collective: Instruction) -> tuple[int, ...]:
    pairs = collective.attribute("source_target_pairs")
    if pairs is not None:
        numbers = _integers(pairs)
        moves = [(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a != b]
        return moves[0] if moves else ()
    return first_group(collective.attribute("replica_groups") or "", collective.attributes)


def first_group(text: str, attributes: str = "") -> tuple[int, ...]:
    """Return the first group of ``replica_groups`` in any of XLA's three notations.

    Args:
        text: A list ``{{0,1},{2,3}}``; an iota ``[2,4]<=[4,2]T(1,0)``, consecutive numbers shaped, transposed and split into
            rows; or a mesh ``mesh['x'=2,'y'=4]``, followed by the axes of a group, ``{'x'}``.
        attributes: All attributes of the instruction; those of a mesh are needed for its axes.
    """
    if text.startswith("{"):
        inner = re.search(r"\{([\d, ]+)\}", text)
        return tuple(_integers(inner[1])) if inner else ()
    if text.startswith("mesh"):
        return _mesh_group(text, attributes)
    shape, _, iota = text.partition("<=")
    sizes = _integers(shape)
    return tuple(int(i) for i in _iota(iota).reshape(sizes[0], sizes[-1])[0])


def _mesh_group(text: str, attributes: str) -> tuple[int, ...]:
    start = attributes.index("replica_groups=") if "replica_groups=" in attributes else 0
    match = _match(
        r".*?mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]*\](?:<=\[[\d,]*\])?(?:T\([\d,]*\))?)\))? ?\{([^{}]*)\}",
        attributes[start:] or text,
    )
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    devices = _iota(match[2]) if match[2] else np.arange(math.prod(axes.values()))
    # Part of an axis is written 'x':(2)4: four devices along it, after a factor of two in front has been split off.
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
    group_axes = {name: (int(before or 1), int(size or 0)) for name, before, size in parts}
    shape, in_group = [], []
    for name, length in axes.items():
        before, size = group_axes.get(name, (length, 1))
        size = size or length
        shape += [before, size, length // (before * size)]
        in_group += [False, name in group_axes, False]
    index = tuple(slice(None) if is_in_group else 0 for is_in_group in in_group)
    return tuple(int(i) for i in devices.reshape(shape)[index].ravel())


def _iota(text: str) -> np.ndarray:
    """Return the numbers of ``[4,2]T(1,0)`` or ``[8]<=[4,2]T(1,0)``: consecutive, shaped, transposed and flattened."""
    match = _match(r"(?:\[[\d,]*\]<=)?\[([\d,]*)\](?:T\(([\d,]*)\))?", text)
    shape = _integers(match[1])
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_integers(match[2])) if match[2] else numbers).ravel()


def _match(pattern: str, text: str) -> re.Match[str]:
    """Match the start of `text`; raise ValueError if it does not match."""
    match = re.match(pattern, text)
    if match is None:
        raise ValueError(f"{text[:200]!r} does not match {pattern!r}")
    return match


def _integers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


# --------------------------------------------------------------------------------------- estimates of the compiler


def estimated_cycles(program: Program) -> int:
    """Return the TPU compiler's own estimate of the cycles of all instructions except collectives; 0 without one."""
    total = 0
    for run in program.runs:
        if not run.fused:
            match = re.search(r'"estimated_cycles":"(\d+)"', run.instruction.attributes)
            total += run.times * int(match[1]) if match else 0
    return total
