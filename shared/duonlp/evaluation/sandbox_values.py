"""Encode plain Python values as bytes, and read such bytes from a process that is not trusted.

Not pickle: the bytes name no type but the built-in ones below, and every value is built anew as exactly that type, so it has no
`__eq__` or other method of the sender's. Imports only the standard library, because the sandboxed processes load it.
"""

import os
import struct
from typing import Any, NoReturn

MAX_BYTES = 16 << 20
"""Size limit of an encoded value."""
MAX_DEPTH = 100
"""Maximum nesting depth of containers."""

COUNT, FLOAT = struct.Struct("<I"), struct.Struct("<d")
SEQUENCES = {b"l": list, b"t": tuple, b"e": set, b"f": frozenset}
CONSTANTS = {b"N": None, b"T": True, b"F": False}


class UnsupportedValueError(ValueError):
    """A value that is not plain data, or is too large or too deeply nested."""


def encode(value: Any) -> bytes:
    """Encode None, bool, int, float, complex, str, bytes, range, list, tuple, set, frozenset and dict, nested as you like.

    An instance of a subclass (a namedtuple, a Counter, an IntEnum) becomes the built-in value it holds, and a NumPy scalar a
    Python number.

    Raises:
        UnsupportedValueError: The value holds anything else, exceeds MAX_BYTES, or is nested more than MAX_DEPTH deep.
    """
    out = bytearray()
    _encode(value, out, 0)
    return bytes(out)


def _encode(value: Any, out: bytearray, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsupportedValueError(f"containers are nested more than {MAX_DEPTH} deep")
    if len(out) > MAX_BYTES:
        raise UnsupportedValueError(f"the value has more than {MAX_BYTES} bytes")
    if value is None or value is True or value is False:
        out += b"N" if value is None else b"T" if value else b"F"
    elif isinstance(value, int):
        number = int.__int__(value)
        _put(b"i", number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True), out)
    elif isinstance(value, float):
        out += b"d" + FLOAT.pack(float.__float__(value))
    elif isinstance(value, complex):
        out += b"c" + FLOAT.pack(value.real) + FLOAT.pack(value.imag)
    elif isinstance(value, str):
        _put(b"s", str.encode(value, "utf-8", "surrogatepass"), out)
    elif isinstance(value, bytes):
        _put(b"b", bytes.join(b"", (value,)), out)
    elif isinstance(value, range):
        out += b"r"
        for number in (value.start, value.stop, value.step):
            _encode(number, out, depth + 1)
    elif isinstance(value, dict):
        out += b"m" + COUNT.pack(dict.__len__(value))
        for key, item in dict.items(value):
            _encode(key, out, depth + 1)
            _encode(item, out, depth + 1)
    elif isinstance(value, tuple(SEQUENCES.values())):
        tag, kind = next((tag, kind) for tag, kind in SEQUENCES.items() if isinstance(value, kind))
        items = list(kind.__iter__(value))  # type: ignore[arg-type]
        out += tag + COUNT.pack(len(items))
        for item in items:
            _encode(item, out, depth + 1)
    elif type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        _encode(value.item(), out, depth + 1)
    else:
        raise UnsupportedValueError(f"a value of type {type(value).__name__!r} is not plain data")


def _put(tag: bytes, data: bytes, out: bytearray) -> None:
    if len(data) > MAX_BYTES:
        raise UnsupportedValueError(f"the value has more than {MAX_BYTES} bytes")
    out += tag + COUNT.pack(len(data)) + data


def decode(data: bytes) -> Any:
    """Build the value that `encode` wrote, whoever wrote these bytes.

    Raises:
        ValueError: The bytes are not exactly one value within the limits.
    """
    if len(data) > MAX_BYTES + 64:
        raise ValueError("too long")
    reader = _Reader(data)
    value = reader.value(0)
    if reader.position != len(data):
        reader.fail()
    return value


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def fail(self) -> NoReturn:
        raise ValueError(f"invalid value at byte {self.position}")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            self.fail()
        part = self.data[self.position : end]
        self.position = end
        return part

    def count(self) -> int:
        (count,) = COUNT.unpack(self.take(4))
        if count > len(self.data) - self.position:  # every item takes at least a byte
            self.fail()
        return count

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self.fail()
        tag = self.take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == b"i":
            return int.from_bytes(self.take(self.count()), "little", signed=True)
        if tag == b"s":
            return self.take(self.count()).decode("utf-8", "surrogatepass")
        if tag == b"d":
            return FLOAT.unpack(self.take(8))[0]
        if tag == b"c":
            return complex(FLOAT.unpack(self.take(8))[0], FLOAT.unpack(self.take(8))[0])
        if tag == b"b":
            return self.take(self.count())
        if tag == b"r":
            bounds = [self.value(depth + 1) for _ in range(3)]
            if any(type(bound) is not int for bound in bounds) or not bounds[2]:
                self.fail()
            return range(*bounds)
        if tag != b"m" and tag not in SEQUENCES:
            self.fail()
        try:
            if tag == b"m":
                return {self.value(depth + 1): self.value(depth + 1) for _ in range(self.count())}
            return SEQUENCES[tag]([self.value(depth + 1) for _ in range(self.count())])
        except TypeError:  # an unhashable key
            return self.fail()


def send(descriptor: int, value: Any) -> None:
    """Write a value to a pipe, after its length.

    Raises:
        UnsupportedValueError: The value cannot be encoded; nothing is written.
        OSError: The other end is closed.
    """
    data = encode(value)
    if len(data) > MAX_BYTES:
        raise UnsupportedValueError(f"the value has more than {MAX_BYTES} bytes")
    rest = memoryview(COUNT.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> Any:
    """Read a value from a pipe.

    Raises:
        EOFError: The other end was closed before the end of the value.
        ValueError: What was written is not a value, see `decode`.
    """
    (length,) = COUNT.unpack(_read(descriptor, COUNT.size))
    if length > MAX_BYTES:
        raise ValueError(f"a value of {length} bytes is too long")
    return decode(_read(descriptor, length))


def split(data: bytes) -> list[Any]:
    """Return the values that `send` wrote one after the other, without an unfinished last one.

    Raises:
        ValueError: One of them is not a value.
    """
    values, position = [], 0
    while position + COUNT.size <= len(data):
        (length,) = COUNT.unpack_from(data, position)
        end = position + COUNT.size + length
        if end > len(data):
            break
        values.append(decode(data[position + COUNT.size : end]))
        position = end
    return values


def _read(descriptor: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = os.read(descriptor, min(length - len(data), 1 << 20))
        if not chunk:
            raise EOFError("the other end of the pipe is closed")
        data += chunk
    return bytes(data)
