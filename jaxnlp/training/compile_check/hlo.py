"""Reading a compiled program: the instructions of XLA's text form, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once, so a scan over 48 layers looks like one layer. Here the trips of
every loop are read from its condition, and each instruction is handed out with the number of times that it runs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
    "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
}  # fmt: skip
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
NAME = re.compile(r"%([\w.\-]+)")
HBM = 0
"""The memory space of arrays whose layout names none; on a TPU, 1 is the vector memory of the core."""


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result. space: the memory it is in, :data:`HBM` or another."""

    dtype: str
    shape: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)  # tokens and opaque values take no room
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """``name = type opcode(operands), attributes``. literal: what stands in the brackets, of a constant or parameter."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; of a tuple, all of them."""
        return arrays_of(self.type)

    @property
    def is_tuple(self) -> bool:
        return self.type.startswith("(")

    def attribute(self, name: str) -> str | None:
        """What follows ``name=`` up to the next comma outside brackets, or None."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if match is None else _until_comma(self.attributes, match.end())

    def called(self, name: str) -> str | None:
        """The computation that an attribute names."""
        value = self.attribute(name)
        return None if value is None else value.lstrip("%")


@dataclass
class Computation:
    """Instructions in order, in ``instructions`` by name; the last one that is run is ``root``."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions.values()) if i.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By their number."""
        return {int(i.literal): i for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction -> those that take its result."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found


@dataclass(frozen=True)
class Run:
    """An instruction where it runs.

    times: how often in one run of the program.
    computation: where it stands.
    schedule: the computation outside all fusions that leads to it: the entry or the body of a loop.
    fused: it is part of a fusion, so that its operands and result need not be in memory.
    """

    instruction: Instruction
    times: int
    computation: Computation
    schedule: str
    fused: bool


@dataclass
class Program:
    """A module. unknown_loops: bodies of loops whose number of trips could not be read; they count once."""

    computations: dict[str, Computation]
    entry: str
    unknown_loops: list[str] = field(default_factory=list)

    @cached_property
    def runs(self) -> list[Run]:
        """Every instruction that runs, fused ones after the fusion that holds them."""
        self.unknown_loops.clear()
        return list(self._visit(self.entry, 1, self.entry, False))

    def _visit(self, name: str, times: int, schedule: str, fused: bool) -> Iterator[Run]:
        computation = self.computations[name]
        for each in computation.instructions.values():
            yield Run(each, times, computation, schedule, fused)
            if each.opcode == "while":
                body, trips = each.called("body"), self._trips(each, computation)
                yield from self._visit(body, times * trips, body, False)
            elif each.opcode == "fusion":
                yield from self._visit(each.called("calls"), times, schedule, True)
            elif each.opcode in ("call", "async-start"):
                called = each.called("to_apply") or each.called("calls")
                yield from self._visit(called, times, schedule, fused)
            elif each.opcode == "conditional":  # as if every branch ran: no less than what does
                listed = each.attribute("branch_computations") or " ".join(
                    each.attribute(side) or "" for side in ("true_computation", "false_computation")
                )
                for branch in NAME.findall(listed):
                    yield from self._visit(branch, times, branch, fused)

    def _trips(self, loop: Instruction, computation: Computation) -> int:
        """How often the body of a while loop runs; XLA says so, or the condition compares a counter with a constant."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        trips = int(known[1]) if known else self._counted(loop, computation)
        if trips is None:
            self.unknown_loops.append(loop.called("body"))
        return 1 if trips is None else trips

    def _counted(self, loop: Instruction, computation: Computation) -> int | None:
        compare = self._comparison(self.computations[loop.called("condition")])
        if compare is None:
            return None
        index, limit, direction = compare
        start = self._start(computation, loop.operands[0], index)
        step = self._step(self.computations[loop.called("body")], index)
        if not step:
            return None
        # "to": counts while the counter is not yet there; "including": and once more when it is.
        distance = (limit - start) / step
        trips = math.floor(distance) + 1 if direction in ("LE", "GE") else math.ceil(distance)
        return max(trips, 0)

    def _comparison(self, condition: Computation) -> tuple[int, int, str] | None:
        """(which element of the loop's state, the constant it is compared with, LT, LE, GT, GE or NE)."""
        root, where, outer = condition.root, condition, {}
        if root.opcode == "fusion":
            where = self.computations[root.called("calls")]
            outer = {where.parameters[n].name: operand for n, operand in enumerate(root.operands)}
            root = where.root
        if root.opcode != "compare":
            return None
        sides = []
        for name in root.operands:
            side = where.instructions[name]
            while side.opcode in ("bitcast", "copy", "convert") and side.operands:
                side = where.instructions[side.operands[0]]
            side = condition.instructions[outer[side.name]] if side.name in outer else side
            sides.append(side)
        direction = root.attribute("direction")
        if sides[0].opcode == "constant":
            sides.reverse()
            direction = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(direction, direction)
        counter, limit = sides
        if limit.opcode != "constant" or counter.opcode != "get-tuple-element" or not _is_integer(limit.literal):
            return None
        return int(counter.attribute("index")), int(limit.literal), direction

    def _start(self, computation: Computation, state: str, index: int) -> int:
        """The counter's first value; 0, which it nearly always is, where that cannot be read."""
        made = computation.instructions[state]
        if made.opcode != "tuple":
            return 0
        value = computation.instructions[made.operands[index]]
        while value.opcode in ("copy", "bitcast", "copy-done", "copy-start") and value.operands:
            value = computation.instructions[value.operands[0]]
        return int(value.literal) if value.opcode == "constant" and _is_integer(value.literal) else 0

    def _step(self, body: Computation, index: int) -> int:
        """What a trip adds to the counter; 1, which it nearly always is, where that cannot be read."""
        if body.root.opcode != "tuple":
            return 1
        value = body.instructions[body.root.operands[index]]
        where = body
        if value.opcode == "fusion":
            where = self.computations[value.called("calls")]
            value = where.root
        constants = [
            int(i.literal) for i in (where.instructions[name] for name in value.operands if name in where.instructions)
            if i.opcode == "constant" and _is_integer(i.literal)
        ]  # fmt: skip
        return constants[0] if value.opcode == "add" and len(constants) == 1 else 1


def parse(text: str) -> Program:
    """The text of a compiled module, such as ``jax.stages.Compiled.as_text()`` gives.

    Raises:
        ValueError: it has no entry computation.
    """
    computations, current, entry = {}, None, None
    for line in text.splitlines():
        if not line.startswith(" "):
            match = HEADER.match(line)
            if match:
                current = computations[match[2]] = Computation(match[2])
                entry = match[2] if match[1] else entry
            elif line.startswith("}"):
                current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no compiled module: it has no ENTRY computation")
    return Program(computations, entry)


def arrays_of(type_text: str) -> tuple[Array, ...]:
    """The arrays of a type such as ``(f32[2,3]{1,0:T(8,128)S(1)}, s32[])``."""
    found = []
    for dtype, shape, layout in ARRAY.findall(type_text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in shape.split(",") if size)
        found.append(Array(dtype, sizes, int(space[1]) if space else HBM))
    return tuple(found)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    if not equals:
        return None
    root = left.startswith("ROOT ")
    name = left.removeprefix("ROOT ").lstrip("%")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    type_text, rest = right[:end], right[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        return None
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    return Instruction(
        name, type_text, opcode, tuple(NAME.findall(inside)), inside, rest[close + 1 :].lstrip(", "), root
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _until_comma(text: str, start: int) -> str:
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            return text[start:position].strip()
    return text[start:].strip()


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?\d+", text) is not None
