"""What a compiled program costs a chip: FLOPs of its matrix products, traffic with memory, and its collectives.

All of it is counted over the instructions that XLA scheduled, each as often as it runs (see hlo.py), so layers
that are scanned, pieces of an accumulated batch and what is computed again for the backward pass are all in it.
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
"""What moves no bytes by itself: names for what is there, loops (their bodies count), starts of what is counted at its end."""
SLICES = ("dynamic-slice", "slice", "gather")
SAME_ELEMENTS = ("bitcast", "copy", "convert", "reshape", "transpose")
BUFFERS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


# ---------------------------------------------------------------------------------------------------- matrix products


def matmul_flops(program: Program) -> int:
    """FLOPs of matrix products and convolutions, two a multiply-add, in one run of the program, on one chip."""
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
    # A TPU's matrix products are convolutions: batch dimensions are spatial ones whose window meets itself once.
    inputs, kernel, output = re.fullmatch(r"(\w+)_(\w+)->(\w+)", product.attribute("dim_labels")).groups()
    spatial = sorted(character for character in kernel if character.isdigit())  # the order of the window
    window = _window(product.attribute("window"), len(spatial))
    positions = 1
    for i, dimension in enumerate(spatial):
        sizes = left[inputs.index(dimension)], result[output.index(dimension)]
        positions *= _valid_positions(*sizes, **{name: values[i] for name, values in window.items()})
    batch_groups = int(product.attribute("batch_group_count") or 1)
    features = right[kernel.index("i")] * result[output.index("f")] * result[output.index("b")]
    return 2 * features * positions // batch_groups


def _window(text: str | None, rank: int) -> dict[str, list]:
    given = dict(part.split("=") for part in (text or "{}").strip("{}").split())

    def numbers(name, default):
        return [int(value) for value in given[name].split("x")] if name in given else [default] * rank

    pads = [pad.split("_") for pad in given["pad"].split("x")] if "pad" in given else [("0", "0")] * rank
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
    """Pairs of an output and a kernel element that meet an input, and neither padding nor the gaps between inputs."""
    at = np.arange(outputs)[:, None] * stride + np.arange(size)[None, :] * rhs_dilate - pad
    return int(np.count_nonzero((at >= 0) & (at <= (length - 1) * lhs_dilate) & (at % lhs_dilate == 0)))


# ------------------------------------------------------------------------------------------------------------ memory


def memory_traffic(program: Program) -> int:
    """Bytes between the chip and its high-bandwidth memory in one run of the program: what instructions read and write.

    What stays in vector memory is not counted, nor are fused intermediate values. Of an operand that is only sliced, the
    slice is counted; of one that is updated in place, the update.
    """
    total = 0
    for run in program.runs:
        if not run.fused and run.instruction.opcode not in FREE:
            total += run.times * _traffic(program, run)
    return total


def _traffic(program: Program, run: Run) -> int:
    each, known = run.instruction, run.computation.instructions
    operands = [known[name] for name in each.operands if name in known]
    if each.opcode in ("copy-done", "slice-done"):  # moved as a whole, between two memories
        source = [known[name] for name in operands[0].operands if name in known]
        spaces = [source[0].arrays[0].space if source else HBM, each.arrays[0].space]
        return spaces.count(HBM) * each.arrays[0].bytes
    if each.opcode in SLICES:
        return 2 * _in_hbm(each)
    if each.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1])
    if each.opcode == "custom-call" and (each.attribute("custom_call_target") or "").strip('"') in BUFFERS:
        return 0
    if each.opcode == "fusion":
        return _fusion_traffic(program, each, operands)
    return _in_hbm(each) + sum(_in_hbm(operand) for operand in operands)


def _fusion_traffic(program: Program, fusion: Instruction, operands: list[Instruction]) -> int:
    inside = program.computations[fusion.called("calls")]
    passed_on = re.findall(r"\{([\d, ]*)\}: \((\d+)", fusion.attribute("output_to_operand_aliasing") or "")
    same_outputs = {int(index.split(",")[0]) for index, _ in passed_on if index} if fusion.is_tuple else set()
    total = 0
    for number, operand in enumerate(operands):
        if not operand.is_tuple and operand.arrays and operand.arrays[0].space == HBM:
            total += _read(program, inside, number, operand.arrays[0].bytes)
    results = inside.root.operands if inside.root.opcode == "tuple" else (inside.root.name,)
    for number, (name, array) in enumerate(zip(results, fusion.arrays, strict=False)):
        if array.space == HBM and number not in same_outputs:
            total += _written(program, inside, name, array.bytes)
    return total


def _read(program: Program, inside: Computation, number: int, whole: int) -> int:
    """Bytes that a fusion reads of one parameter of so many."""
    parameter = inside.parameters.get(number)
    if parameter is None:
        return whole
    elements = math.prod(parameter.arrays[0].shape)
    return round(whole * _elements_read(program, inside, parameter, elements) / max(elements, 1))


def _elements_read(program: Program, inside: Computation, value: Instruction, whole: int) -> int:
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
            or (user.opcode == "tuple" and value.opcode == "parameter")  # handed on as it is
        ):
            return whole
    return min(total, whole)


def _only_moves(program: Program, fusion: Instruction) -> bool:
    """Whether a fusion only lays its operand out anew, as those within other fusions do."""
    inside = program.computations[fusion.called("calls")].instructions.values()
    return len(fusion.operands) == 1 and all(i.opcode == "parameter" or i.opcode in SAME_ELEMENTS for i in inside)


def _written(program: Program, inside: Computation, name: str, whole: int) -> int:
    """Bytes that a fusion writes of one result of so many."""
    made = inside.instructions.get(name)
    while made is not None and made.opcode in SAME_ELEMENTS and made.operands:
        made = inside.instructions[made.operands[0]]
    if made is not None and made.opcode == "parameter":
        return 0  # handed on as it is
    if made is not None and made.opcode == "fusion" and not made.is_tuple:
        nested = program.computations[made.called("calls")]
        return _written(program, nested, nested.root.name, whole)
    if made is not None and made.opcode == "dynamic-update-slice":
        return inside.instructions[made.operands[1]].arrays[0].bytes
    return whole


def _in_hbm(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if array.space == HBM)


# ------------------------------------------------------------------------------------------------------- collectives


@dataclass(frozen=True)
class Collective:
    """A kind of exchange between chips.

    kind: one of :data:`COLLECTIVES`.
    group: partitions that the first partition exchanges with, itself included, in order; for a permutation, its pair.
    times: how often it runs in one run of the program.
    bytes: of the whole array, the one before it is scattered or after it is gathered, each time, on each chip.
    """

    kind: str
    group: tuple[int, ...]
    times: int
    bytes: int

    @property
    def sent(self) -> int:
        """Bytes that a chip sends all in all, by the best algorithm for a ring (Chan et al. 2007)."""
        share = (len(self.group) - 1) / max(len(self.group), 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return round(self.times * factor * self.bytes)


def collectives(program: Program) -> list[Collective]:
    """Every exchange between chips, the same kinds between the same chips and of one size together.

    A TPU's asynchronous collective stands in several fusions, where it starts, goes on and ends, all with one channel;
    it counts once. An all-reduce fused with the slice that follows is the reduce-scatter that the TPU makes of it.
    """
    seen, found = set(), defaultdict(int)
    for run in program.runs:
        each = run.instruction
        kind = each.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or (kind == "all-to-all" and each.opcode.endswith("-start")):
            continue
        channel = each.attribute("channel_id")
        identity = run.schedule, kind, channel or (run.computation.name, each.name)
        if identity in seen:
            continue
        seen.add(identity)
        if kind == "all-reduce" and run.fused and run.computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        group = _group(each)
        if len(group) > 1:
            found[kind, group, _payload(kind, each, run.computation)] += run.times
    return [Collective(kind, group, times, size) for (kind, group, size), times in found.items()]


def _payload(kind: str, each: Instruction, computation: Computation) -> int:
    operands = [computation.instructions[name] for name in each.operands if name in computation.instructions]
    given = sum(array.bytes for operand in operands for array in operand.arrays)
    if kind != "all-gather":
        return given
    made = sum(array.bytes for array in each.arrays)
    return made - given if each.opcode.endswith("-start") else made  # a start's result holds its operands too


def _group(each: Instruction) -> tuple[int, ...]:
    pairs = each.attribute("source_target_pairs")
    if pairs is not None:
        numbers = _integers(pairs)
        moves = [(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a != b]
        return moves[0] if moves else ()
    return first_group(each.attribute("replica_groups") or "", each.attributes)


def first_group(text: str, attributes: str = "") -> tuple[int, ...]:
    """The first group of ``replica_groups``, in any of XLA's three ways of writing them.

    Args:
        text: ``{{0,1},{2,3}}``; ``[2,4]<=[4,2]T(1,0)``: numbers in order, shaped, transposed, cut into rows; or
            ``mesh['x'=2,'y'=4]``, followed by ``{'x'}``, the axes of a group.
        attributes: all attributes, where what follows a mesh stands.
    """
    if text.startswith("{"):
        inner = re.search(r"\{([\d, ]+)\}", text)
        return tuple(_integers(inner[1])) if inner else ()
    if text.startswith("mesh"):
        return _mesh_group(text, attributes)
    rows, columns = _integers(re.match(r"\[[\d,]+\]", text)[0])[0], _integers(re.match(r"\[[\d,]+\]", text)[0])[-1]
    return tuple(int(i) for i in _iota(text[text.index("<=") + 2 :]).reshape(rows, columns)[0])


def _mesh_group(text: str, attributes: str) -> tuple[int, ...]:
    start = attributes.index("replica_groups=") if "replica_groups=" in attributes else 0
    match = re.search(
        r"mesh\[([^\]]*)\](?:, ?device_ids=\((\[[\d,]*\](?:<=\[[\d,]*\])?(?:T\([\d,]*\))?)\))? ?\{([^{}]*)\}",
        attributes[start:] or text,
    )
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    devices = _iota(match[2]) if match[2] else np.arange(math.prod(axes.values()))
    # A part of an axis is written 'x':(2)4, four along it after two have been split off in front.
    names, shape, chosen = list(axes), [], []
    wanted = {n: (int(a or 1), int(s or 0)) for n, a, s in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])}
    for name in names:
        before, size = wanted.get(name, (axes[name], 1))
        size = size or axes[name]
        for part, is_chosen in ((before, False), (size, name in wanted), (axes[name] // (before * size), False)):
            shape.append(part)
            chosen.append(is_chosen)
    index = tuple(slice(None) if is_chosen else 0 for is_chosen in chosen)
    return tuple(int(i) for i in devices.reshape(shape)[index].ravel())


def _iota(text: str) -> np.ndarray:
    """``[4,2]T(1,0)``, or as the right side of ``<=``: numbers in order, shaped and transposed, flat."""
    match = re.match(r"(?:\[[\d,]*\]<=)?\[([\d,]*)\](?:T\(([\d,]*)\))?", text)
    shape = _integers(match[1])
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose(_integers(match[2])) if match[2] else numbers).ravel()


def _integers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


# ------------------------------------------------------------------------------------------- the compiler's own guess


def estimated_cycles(program: Program) -> int:
    """Cycles of all instructions as the TPU compiler itself estimated them, collectives left out; 0 where it did not."""
    total = 0
    for run in program.runs:
        if not run.fused:
            match = re.search(r'"estimated_cycles":"(\d+)"', run.instruction.attributes)
            total += run.times * int(match[1]) if match else 0
    return total
