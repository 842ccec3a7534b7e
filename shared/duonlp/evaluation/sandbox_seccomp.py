"""A seccomp filter for a program that computes: the system calls it may make, and no others.

A list of what is allowed, not of what is forbidden: a call that a future kernel adds, or that nobody thought of, is denied. A
denied call fails with ENOSYS, "not implemented", for which the C library has fallbacks; those that a program is likely to try
(another process, a socket, a signal to another process) fail with EPERM. Calls of another architecture's table (i386, x32) kill
the program. See seccomp(2) and linux/seccomp.h. Imports only the standard library.
"""

import ctypes
import errno
import os
import struct

# Name, number on x86_64, number on aarch64; from Linux' asm/unistd_64.h and asm-generic/unistd.h.
ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65,
writev 20 66, preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287, access 21 -, pipe 22 -, select 23 -,
poll 7 -, sched_yield 24 124, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -,
nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, recvfrom 45 207, shutdown 48 210,
getsockname 51 204, getpeername 52 205, setsockopt 54 208, getsockopt 55 209, exit 60 93, wait4 61 260, waitid 247 95,
uname 63 160, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -,
getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -,
unlink 87 -, symlink 88 -, readlink 89 -, chmod 90 -, fchmod 91 52, umask 95 166, gettimeofday 96 169,
getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, utime 132 -, statfs 137 43, fstatfs 138 44, getpriority 140 141, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_getaffinity 204 123, arch_prctl 158 -, gettid 186 178, time 201 -, futex 202 98, epoll_create 213 -,
set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, utimes 235 -, open 2 -, stat 4 -,
lstat 6 -, openat 257 56, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37,
symlinkat 266 36, readlinkat 267 78, fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, get_robust_list 274 100, utimensat 280 88, epoll_pwait 281 22, epoll_pwait2 441 441,
timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87, eventfd 284 -, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, renameat2 316 276, getrandom 318 278, statx 332 291, rseq 334 293,
copy_file_range 326 285, sendfile 40 71, faccessat2 439 439, close_range 436 436, membarrier 324 283, getcpu 309 168,
fallocate 285 47, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12,
flistxattr 196 13, capget 125 90
"""
NOT_PERMITTED = """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, socket 41 198, connect 42 203, bind 49 200, sendmsg 46 211
"""
# Allowed for some arguments only; see `conditional`.
CONDITIONAL = """
clone 56 220, kill 62 129, tgkill 234 131, socketpair 53 199, sendto 44 206, ioctl 16 29, prctl 157 167, prlimit64 302 261,
fcntl 72 25
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables; linux/audit.h
X32 = 0x40000000

NEW_THREAD, NEW_NAMESPACES = 0x10000, 0x7E020000  # sched.h: CLONE_THREAD, every CLONE_NEW*
SAFE_IOCTLS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
SAFE_PRCTLS = (3, 15, 16)  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
OWNERSHIP = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: they send signals to a process

LOAD, EQUAL, GREATER_OR_EQUAL, GREATER, ANY_BIT, AND, RETURN = (
    0x20,
    0x15,
    0x35,
    0x25,
    0x45,
    0x54,
    0x06,
)  # linux/bpf_common.h
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, MISSING = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
Instruction = tuple[int, int, int, int]


def numbers(table: str, column: int) -> dict[str, int]:
    """Return {name: number} of the calls of a table that an architecture has."""
    rows = (entry.split() for entry in table.replace("\n", " ").split(","))
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def argument(index: int, high: bool = False) -> Instruction:
    """Load 32 bits of an argument of the system call."""
    return (LOAD, 0, 0, 16 + 8 * index + 4 * high)


def one_of(values: tuple[int, ...], then: int, otherwise: int) -> list[Instruction]:
    """Return one result if the loaded word is one of the values, and otherwise the other."""
    tests = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*tests, (RETURN, 0, 0, otherwise), (RETURN, 0, 0, then)]


def conditional(process: int) -> dict[str, list[Instruction]]:
    """Return the conditions of the calls that depend on their arguments.

    Args:
        process: Number of the program's own process, the only one that it may send signals to.
    """
    return {
        # Threads, not processes.
        "clone": [argument(0), (ANY_BIT, 2, 0, NEW_NAMESPACES), (ANY_BIT, 0, 1, NEW_THREAD), (RETURN, 0, 0, ALLOW),
                  (RETURN, 0, 0, REFUSE)],
        "kill": [argument(0), *one_of((process,), ALLOW, REFUSE)],
        "tgkill": [argument(0), *one_of((process,), ALLOW, REFUSE)],
        # Pairs of streams, for asyncio: unlike a datagram socket, such a one cannot send elsewhere.
        "socketpair": [argument(0), (EQUAL, 1, 0, 1), (RETURN, 0, 0, REFUSE), argument(1), (AND, 0, 0, 0xF),
                       *one_of((1,), ALLOW, REFUSE)],
        # Without an address.
        "sendto": [argument(4), (EQUAL, 1, 0, 0), (RETURN, 0, 0, REFUSE), argument(4, high=True),
                   *one_of((0,), ALLOW, REFUSE)],
        "ioctl": [argument(1), *one_of(SAFE_IOCTLS, ALLOW, REFUSE)],
        "prctl": [argument(0), *one_of(SAFE_PRCTLS, ALLOW, REFUSE)],
        "prlimit64": [argument(0), *one_of((0, process), ALLOW, REFUSE)],
        "fcntl": [argument(1), *one_of(OWNERSHIP, REFUSE, ALLOW)],
    }  # fmt: skip


def build_filter(machine: str, process: int) -> list[Instruction]:
    """Return the filter's instructions.

    Args:
        machine: "x86_64" or "aarch64".
        process: Number of the program's own process.
    """
    column, architecture = ARCHITECTURES[machine]
    code: list[Instruction] = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if machine == "x86_64":
        code += [(GREATER_OR_EQUAL, 0, 1, X32), (RETURN, 0, 0, KILL)]
    start = previous = -2
    ranges = []
    for number in [*sorted(numbers(ALLOWED, column).values()), 1 << 20]:
        if number != previous + 1:
            ranges.append((start, previous))
            start = number
        previous = number
    for first, last in ranges[1:]:
        code += [(GREATER_OR_EQUAL, 0, 2, first), (GREATER, 1, 0, last), (RETURN, 0, 0, ALLOW)]
    for number in numbers(NOT_PERMITTED, column).values():
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    conditions = conditional(process)
    for name, number in numbers(CONDITIONAL, column).items():
        code += [(EQUAL, 0, len(conditions[name]), number), *conditions[name]]
    return [*code, (RETURN, 0, 0, MISSING)]


def install_filter(libc: ctypes.CDLL) -> int:
    """Install the filter in this process, which must be single-threaded and have given up new privileges.

    Returns:
        0, or the error number; ENOSYS if the machine has no table above.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES or struct.calcsize("P") != 8:
        return errno.ENOSYS
    code = build_filter(machine, os.getpid())
    program = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer)), 16)
    set_seccomp, mode_filter = 22, 2
    return ctypes.get_errno() if libc.prctl(set_seccomp, mode_filter, header, 0, 0) else 0
