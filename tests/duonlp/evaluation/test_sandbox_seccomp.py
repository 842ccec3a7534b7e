"""The seccomp filter, interpreted here for both architectures."""

import struct

import pytest

from duonlp.evaluation import sandbox_seccomp as seccomp
from duonlp.evaluation.sandbox_seccomp import (
    ALLOW,
    ALLOWED,
    ARCHITECTURES,
    KILL,
    MISSING,
    REFUSE,
    build_filter,
    numbers,
)

CALLS = seccomp.ALLOWED + "," + seccomp.NOT_PERMITTED + "," + seccomp.CONDITIONAL
OWN = 7


def interpret(code, number, architecture, arguments):
    """Return what a filter decides about a system call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(a & (1 << 64) - 1 for a in (*arguments, *[0] * 6)[:6]))
    at = word = 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == seccomp.LOAD:
            (word,) = struct.unpack_from("<I", data, value)
        elif operation == seccomp.AND:
            word &= value
        elif operation == seccomp.RETURN:
            return value
        else:
            tests = {
                seccomp.EQUAL: word == value, seccomp.GREATER: word > value, seccomp.GREATER_OR_EQUAL: word >= value,
                seccomp.ANY_BIT: word & value,
            }  # fmt: skip
            at += yes if tests[operation] else no


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_decides_as_its_tables_say(machine):
    column, architecture = ARCHITECTURES[machine]
    code, table = build_filter(machine, OWN), numbers(CALLS, column)
    assert len(code) < 4096 and len(set(table.values())) == len(table)

    def decide(name, *arguments):
        return interpret(code, table[name], architecture, arguments)

    allowed = set(numbers(ALLOWED, column).values())
    for number in range(600):
        if number not in set(table.values()) - allowed:
            assert interpret(code, number, architecture, ()) == (ALLOW if number in allowed else MISSING), number
    thread = 0x3D0F00  # what pthread_create passes
    assert decide("clone", thread) == ALLOW and decide("clone", 17) == decide("clone", thread | 1 << 30) == REFUSE
    assert (
        decide("kill", OWN, 9) == ALLOW
        and decide("kill", -1, 9) == decide("kill", 0, 9) == decide("tgkill", 1) == REFUSE
    )
    assert (
        decide("socketpair", 1, 1 | 0x80800) == ALLOW
        and decide("socketpair", 1, 2) == decide("socketpair", 2, 1) == REFUSE
    )
    assert decide("sendto", 3, 0, 1, 0, 0) == ALLOW and decide("sendto", 3, 0, 1, 0, 1 << 40) == REFUSE
    assert decide("ioctl", 1, 0x5401) == ALLOW and decide("ioctl", 1, 0x5412) == REFUSE  # TIOCSTI types into a terminal
    assert decide("prctl", 15) == ALLOW and decide("prctl", 4, 1) == REFUSE  # PR_SET_DUMPABLE
    assert decide("fcntl", 1, 3) == ALLOW and decide("fcntl", 1, 8, 99) == REFUSE
    assert decide("prlimit64", 0) == ALLOW and decide("prlimit64", 1) == REFUSE
    assert decide("socket", 1) == decide("execve") == decide("connect") == REFUSE
    assert interpret(code, table["read"], 0x40000003, ()) == KILL  # i386
    if machine == "x86_64":
        assert interpret(code, 0x40000000, architecture, ()) == KILL  # x32
