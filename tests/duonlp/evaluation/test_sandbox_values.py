"""The encoding of values between the processes of the sandbox, also against bytes that nobody encoded."""

import contextlib
import os
import threading

import numpy as np
import pytest

from duonlp.evaluation.sandbox_values import COUNT, MAX_DEPTH, UnsupportedValueError, decode, encode, receive, send

VALUES = [
    None, True, False, 0, -1, 255, 1 << 4000, -(1 << 64), 0.1, float("-inf"), 1 + 2j, "", "é\ud800\0", b"\xff", [], (), set(), {},
    [1, (2, {3: [frozenset({4}), range(5)]})], range(9, 0, -2),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back(value):
    assert decode(encode(value)) == value and type(decode(encode(value))) is type(value)


def test_numpy_scalars_are_numbers():
    assert decode(encode([np.int64(3), np.float32(0.5), np.bool_(True)])) == [3, 0.5, True]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [object(), np.zeros(2), nested(MAX_DEPTH + 1), print, iter([]), "a" * (17 << 20)], ids=type
)
def test_what_is_not_plain_data_is_refused(value):
    with pytest.raises(UnsupportedValueError):
        encode(value)


def test_invalid_bytes_are_errors():
    rng = np.random.default_rng(0)
    valid = encode(VALUES[:-2])
    cases = [
        b"",
        b"x",
        b"l\xff\xff\xff\xff",
        b"l" * 10_000,
        b"m\x01\0\0\0l\0\0\0\0N",
        b"s\x01\0\0\0\xff",
        b"NN",
        b"r" + encode(1) * 2 + encode(0),
    ]
    cases += [b"l\x01\0\0\0" * (MAX_DEPTH + 2) + b"N", b"rNNN", *(valid[:n] for n in range(0, len(valid), 7))]
    for case in cases:
        with pytest.raises(ValueError):
            decode(case)
    for _ in range(2000):  # flipped bytes give another value or an error
        data = bytearray(valid)
        data[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(ValueError):
            decode(bytes(data))


def test_values_pass_through_a_pipe():
    reader, writer = os.pipe()
    value = ["x" * 300_000, 1]  # more than a pipe holds
    thread = threading.Thread(target=send, args=(writer, value))
    thread.start()
    assert receive(reader) == value
    thread.join()
    os.write(writer, COUNT.pack(1 << 31))
    with pytest.raises(ValueError, match="too long"):
        receive(reader)
    os.write(writer, COUNT.pack(5) + b"ab")
    os.close(writer)
    with pytest.raises(EOFError):
        receive(reader)
    os.close(reader)
