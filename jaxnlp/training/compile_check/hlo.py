"""Parse a compiled program from XLA's text form, and find out how often each instruction runs.

XLA's own cost analysis counts the body of a loop once, so a scan over 48 layers looks like one layer. Here the trip count
of every loop is read from its condition, and each instruction comes with the number of times it runs.
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
"""Size of each element type."""

ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
NAME = re.compile(r"%([\w.\-]+)")
HBM = 0
"""Memory space of arrays whose layout names none. On a TPU, 1 is the vector memory of the core."""


@dataclass(frozen=True)
class Array:
    """An array in the result of an instruction.

    Attributes:
        dtype: Element type, such as "bf16".
        shape: Shape of the array.
        space: Memory space, :data:`HBM` or another.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> int:
        """Size without padding."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)  # tokens and opaque values have no size
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """One instruction, written ``name = type opcode(operands), attributes``.

    Attributes:
        name: Name, unique in its computation.
        type: Type of the result.
        opcode: Operation.
        operands: Names of the operands.
        literal: Text between the parentheses: the value of a constant, the number of a parameter.
        attributes: Text after the parentheses.
        root: Whether its result is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of the result; of a tuple, all of them."""
        return arrays_of(self.type)

    @property
    def is_tuple(self) -> bool:
        return self.type.startswith("(")

    def attribute(self, name: str) -> str | None:
        """Return the text after ``name=`` up to the next comma outside brackets, or None."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.attributes)
        return None if match is None else _until_comma(self.attributes, match.end())

    def called(self, *names: str) -> str:
        """Return the computation that the first of these attributes names that is set.

        Raises:
            ValueError: None of them is set.
        """
        for name in names:
            value = self.attribute(name)
            if value:
                return value.lstrip("%")
        raise ValueError(f"{self.opcode} {self.name} has no attribute {' or '.join(names)}")


@dataclass
class Computation:
    """A computation of a program.

    Attributes:
        name: Name of the computation.
        instructions: Instructions by name, in order.
    """

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """Instruction whose result is that of the computation."""
        return next(i for i in reversed(self.instructions.values()) if i.root)

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(i.literal): i for i in self.instructions.values() if i.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction -> the instructions that have it as an operand."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return users


@dataclass(frozen=True)
class Run:
    """An instruction in the place where it runs.

    Attributes:
        instruction: The instruction.
        times: How often it runs in one run of the program.
        computation: Computation that contains it.
        schedule: Innermost computation outside all fusions that leads to it: the entry, the body of a loop or a branch.
        fused: Whether it is part of a fusion, so that its operands and result need not be in memory.
    """

    instruction: Instruction
    times: int
    computation: Computation
    schedule: str
    fused: bool


@dataclass
class Program:
    """A compiled module.

    Attributes:
        computations: Computations by name.
        entry: Name of the computation that runs first.
        unknown_loops: Bodies of the loops whose trip count could not be read; they count once. Filled by :attr:`runs`.
    """

    computations: dict[str, Computation]
    entry: str
    unknown_loops: list[str] = field(default_factory=list)

    @cached_property
    def runs(self) -> list[Run]:
        """Every instruction that runs; fused ones follow their fusion."""
        self.unknown_loops.clear()
        return list(self._visit(self.entry, 1, self.entry, False))

    def _visit(self, name: str, times: int, schedule: str, fused: bool) -> Iterator[Run]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield Run(instruction, times, computation, schedule, fused)
            if instruction.opcode == "while":
                body, trips = instruction.called("body"), self._trips(instruction, computation)
                yield from self._visit(body, times * trips, body, False)
            elif instruction.opcode == "fusion":
                yield from self._visit(instruction.called("calls"), times, schedule, True)
            elif instruction.opcode in ("call", "async-start"):
                yield from self._visit(instruction.called("to_apply", "calls"), times, schedule, fused)
            elif instruction.opcode == "conditional":  # counts every branch: an upper bound
                branches = instruction.attribute("branch_computations") or " ".join(
                    instruction.attribute(side) or "" for side in ("true_computation", "false_computation")
                )
                for branch in NAME.findall(branches):
                    yield from self._visit(branch, times, branch, fused)

    def _trips(self, loop: Instruction, computation: Computation) -> int:
        """Return how often the body of a while loop runs, from XLA's annotation or from the condition; 1 if unknown."""
        annotation = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        trips = int(annotation[1]) if annotation else self._trips_of_counter(loop, computation)
        if trips is None:
            self.unknown_loops.append(loop.called("body"))
        return 1 if trips is None else trips

    def _trips_of_counter(self, loop: Instruction, computation: Computation) -> int | None:
        """Return the trip count of a loop whose condition compares a counter with a constant, else None."""
        compare = self._comparison(self.computations[loop.called("condition")])
        if compare is None:
            return None
        index, limit, direction = compare
        start = self._start(computation, loop.operands[0], index)
        step = self._step(self.computations[loop.called("body")], index)
        if not step:
            return None
        # LE and GE run once more, when the counter is at the limit.
        distance = (limit - start) / step
        trips = math.floor(distance) + 1 if direction in ("LE", "GE") else math.ceil(distance)
        return max(trips, 0)

    def _comparison(self, condition: Computation) -> tuple[int, int, str] | None:
        """Return (element of the loop's state, constant it is compared with, LT, LE, GT, GE or NE), or None."""
        root, inner, outer_names = condition.root, condition, {}
        if root.opcode == "fusion":
            inner = self.computations[root.called("calls")]
            outer_names = {inner.parameters[n].name: operand for n, operand in enumerate(root.operands)}
            root = inner.root
        if root.opcode != "compare":
            return None
        sides = []
        for name in root.operands:
            side = inner.instructions[name]
            while side.opcode in ("bitcast", "copy", "convert") and side.operands:
                side = inner.instructions[side.operands[0]]
            side = condition.instructions[outer_names[side.name]] if side.name in outer_names else side
            sides.append(side)
        direction = root.attribute("direction") or ""
        if sides[0].opcode == "constant":
            sides.reverse()
            direction = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(direction, direction)
        counter, limit = sides
        index = counter.attribute("index")
        if limit.opcode != "constant" or counter.opcode != "get-tuple-element" or not _is_integer(limit.literal):
            return None
        return None if index is None else (int(index), int(limit.literal), direction)

    def _start(self, computation: Computation, state: str, index: int) -> int:
        """Return the counter's initial value; if it cannot be read, 0, by far the most common."""
        initial = computation.instructions[state]
        if initial.opcode != "tuple":
            return 0
        value = computation.instructions[initial.operands[index]]
        while value.opcode in ("copy", "bitcast", "copy-done", "copy-start") and value.operands:
            value = computation.instructions[value.operands[0]]
        return int(value.literal) if value.opcode == "constant" and _is_integer(value.literal) else 0

    def _step(self, body: Computation, index: int) -> int:
        """Return what a trip adds to the counter; if it cannot be read, 1, by far the most common."""
        if body.root.opcode != "tuple":
            return 1
        value = body.instructions[body.root.operands[index]]
        inner = body
        if value.opcode == "fusion":
            inner = self.computations[value.called("calls")]
            value = inner.root
        constants = [
            int(i.literal) for i in (inner.instructions[name] for name in value.operands if name in inner.instructions)
            if i.opcode == "constant" and _is_integer(i.literal)
        ]  # fmt: skip
        return constants[0] if value.opcode == "add" and len(constants) == 1 else 1


def parse(text: str) -> Program:
    """Parse the text of a compiled module, from ``jax.stages.Compiled.as_text()``.

    Raises:
        ValueError: The text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: str | None = None
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
        raise ValueError("the text has no ENTRY computation; pass the text of a compiled module")
    return Program(computations, entry)


def arrays_of(type_text: str) -> tuple[Array, ...]:
    """Return the arrays of a type such as ``(f32[2,3]{1,0:T(8,128)S(1)}, s32[])``."""
    arrays = []
    for dtype, shape, layout in ARRAY.findall(type_text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.lstrip("<=")) for size in shape.split(",") if size)
        arrays.append(Array(dtype, sizes, int(space[1]) if space else HBM))
    return tuple(arrays)


def _instruction(line: str) -> Instruction | None:
    """Parse a line of a computation; return None if it is not an instruction."""
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
    """Return the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _until_comma(text: str, start: int) -> str:
    """Return the text from `start` to the next comma outside brackets and quotes."""
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
