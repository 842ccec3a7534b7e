"""Programs that try to leave the sandbox. They print REACHED with a name if something succeeded that must not."""

# ruff: noqa: E501 (one program, one line)

CALLS = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, pidfd_open 434 434, pidfd_send_signal 424 424,
pidfd_getfd 438 438, tkill 200 130, unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41,
chroot 161 51, open_tree 428 428, move_mount 429 429, fsopen 430 430, fspick 433 433, mount_setattr 442 442,
keyctl 250 219, add_key 248 217, request_key 249 218, bpf 321 280, perf_event_open 298 241, io_uring_setup 425 425,
userfaultfd 323 282, open_by_handle_at 304 265, name_to_handle_at 303 264, init_module 175 105,
finit_module 313 273, kexec_load 246 104, memfd_create 319 279, shmget 29 194, shmat 30 196,
msgget 68 186, semget 64 190, mq_open 240 180, socket 41 198, bind 49 200, connect 42 203, accept4 288 242,
sendmsg 46 211, recvmsg 47 212, clone3 435 435, execve 59 221, execveat 322 281, setuid 105 146, setresuid 117 147,
setgid 106 144, setgroups 116 159, setfsuid 122 151, capset 126 91, personality 135 92, mknodat 259 33,
swapon 167 224, reboot 169 142, sethostname 170 161, acct 163 89, quotactl 179 60, syslog 103 116,
settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, setpriority 141 140, sched_setaffinity 203 122,
vmsplice 278 75, splice 275 76, tee 276 77, fanotify_init 300 262, inotify_init1 294 26, seccomp 317 277,
setsid 112 157, setpgid 109 154, process_madvise 440 440, kcmp 312 272, migrate_pages 256 238, move_pages 279 239,
set_mempolicy 238 237, timer_create 222 107, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, fchownat 260 54,
setxattr 188 5, pkey_alloc 330 289, vhangup 153 58, delete_module 176 106
"""
"""System calls that must not pass the filter, with their numbers on x86_64 and aarch64."""

# The attack puts SECRET, CANARY, FOLDER, TCP, UNIX, ABSTRACT, VICTIM, PARENT and NUMBERS before this.
TOOLS = """
import ctypes, errno, mmap, os, platform, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def reached(name):
    print("REACHED", name, flush=True)
def attempt(name, f, *args):
    try:
        value = f(*args)
    except BaseException:
        return None
    reached(name)
    return value
def call(name, *args):
    # What the filter denies ends with one of two errors, whatever the arguments.
    ctypes.set_errno(0)
    status = libc.syscall(NUMBERS[name], *args)
    if status >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        reached(f"{name} {status} {ctypes.get_errno()}")
    return status
"""

ESCAPES: dict[str, str] = {
    **{
        f"system call {name}": f"call({name!r}, 0, 0, 0, 0, 0, 0)"
        for name in (entry.split()[0] for entry in CALLS.replace("\n", " ").split(","))
    },
    # Files.
    "read the secret": "print(open(SECRET).read())",
    "read the secret through /proc/1/root": "for p in ('1', 'self', str(PARENT)):\n    attempt('root', lambda: print(open(f'/proc/{p}/root{SECRET}').read()))\n"
    "    attempt('cwd', lambda: print(open(f'/proc/{p}/cwd{SECRET}').read()))",
    "read the secret through a dir_fd": "for p in ('/', '..', '../..', '/proc', '/tmp'):\n"
    "    attempt(p, lambda: print(os.read(os.open(SECRET.lstrip('/'), os.O_RDONLY, dir_fd=os.open(p, os.O_RDONLY)), 99)))",
    "climb out with ..": "for n in range(20):\n    attempt('climb', lambda: print(open('../' * n + SECRET.lstrip('/')).read()))",
    "climb out with chroot": "os.mkdir('x')\nfd = os.open('.', os.O_RDONLY)\nattempt('chroot', os.chroot, 'x')\nos.fchdir(fd)\n"
    "[os.chdir('..') for _ in range(9)]\nattempt('secret', lambda: print(open(SECRET.lstrip('/')).read()))",
    "a symbolic link to the secret": "os.symlink(SECRET, 'x')\nprint(open('x').read())",
    "a hard link to the secret": "attempt('link', os.link, SECRET, 'x')",
    "write to the canary": "attempt('write', lambda: open(CANARY, 'w').write('changed'))",
    "rename, remove and truncate the canary": "for f in (os.remove, os.unlink, lambda p: os.rename(p, 'x'), lambda p: os.truncate(p, 0),\n"
    "          lambda p: os.chmod(p, 0), lambda p: os.chown(p, 1, 1), lambda p: os.utime(p, (0, 0)), lambda p: os.rename('/tmp', p)):\n    attempt('change', f, CANARY)",
    "write beside the canary": "for f in (os.mkdir, os.mkfifo, lambda p: os.symlink('/', p), lambda p: open(p, 'w'), lambda p: os.mknod(p)):\n    attempt('create', f, FOLDER + '/new')",
    "write with a dir_fd and fchmod": "for p in ('/', '..', '/usr', '/proc/self/cwd'):\n    fd = attempt('', lambda: os.open(CANARY, os.O_RDWR, dir_fd=os.open(p, os.O_RDONLY)))\n"
    "    attempt('fchmod', lambda: os.fchmod(fd, 0))",
    "sqlite's ATTACH": "import sqlite3\nc = sqlite3.connect(':memory:')\nattempt('attach', c.execute, f'ATTACH {FOLDER + chr(47) + \"new\"!r} AS x')",
    "_posixshmem": "import _posixshmem\nattempt('shm', _posixshmem.shm_open, '/duonlp-attack', os.O_CREAT | os.O_RDWR)",
    "multiprocessing's shared memory": "from multiprocessing import shared_memory\nattempt('shm', lambda: shared_memory.SharedMemory('duonlp', True, 100))",
    "write to the libraries": "import glob\nfor p in [os.__file__, *sys.path, '/', '/usr', '/usr/lib', '/etc', '/dev', '/proc/sys/kernel/hostname']:\n"
    "    attempt('append ' + p, lambda: open(p, 'a'))\n    attempt('create in ' + p, lambda: open(p + '/new-file', 'w'))",
    "the user's home": "for p in ('~', '/root', '/home', '/etc/passwd', '/etc/shadow', '/var', '/run', '/sys', '/boot', '/bin', '/usr/bin'):\n"
    "    p = os.path.expanduser(p)\n    attempt('see ' + p, os.stat, p) if p not in sys.base_prefix + sys.prefix and '/root/' not in os.__file__ else None",
    "kernel files": "for p in ('/dev/mem', '/dev/kmsg', '/dev/kvm', '/dev/fuse', '/dev/tty', '/dev/console', '/proc/kcore', '/proc/kallsyms', '/proc/sysrq-trigger',\n"
    "          '/proc/sys/kernel/core_pattern', '/sys/kernel', '/proc/self/uid_map', '/proc/self/oom_score_adj'):\n    attempt(p, os.open, p, os.O_RDWR)\n    attempt(p, os.listdir, p)",
    "the environment": "print(dict(os.environ))\nfor p in os.listdir('/proc'):\n    attempt(p, lambda: print(open(f'/proc/{p}/environ').read()))",
    "all descriptors": "for fd in range(3, 256):\n    attempt('secret', lambda: print(os.pread(fd, 99, 0)))\n    attempt('folder', lambda: os.listdir(fd))",
    "descriptors as folders": "for fd in range(3, 256):\n    attempt('open', lambda: os.open(SECRET.lstrip('/'), 0, dir_fd=fd))",
    # Network.
    "connect to TCP": "attempt('tcp', socket.create_connection, TCP)",
    "connect with _socket": "import _socket\nattempt('tcp', lambda: _socket.socket(2, 1).connect(TCP))",
    "connect with the C library": "fd = libc.socket(2, 1, 0)\naddress = struct.pack('<H', 2) + struct.pack('>H', TCP[1]) + bytes([127, 0, 0, 1]) + bytes(8)\n"
    "if fd >= 0: reached('socket')\nif not libc.connect(fd, address, 16): reached('connect')",
    "connect to a socket's path": "attempt('unix', lambda: socket.socket(socket.AF_UNIX).connect(UNIX))",
    "connect to an abstract socket": "attempt('unix', lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT))",
    "other families": "for family in range(1, 46):\n    for kind in (1, 2, 3, 5, 10):\n        if libc.socket(family, kind, 0) >= 0: reached(f'socket {family} {kind}')",
    "datagram pairs": "for kind in (2, 5, 2 | 0x80000):\n    pair = (ctypes.c_int * 2)()\n    if libc.socketpair(1, kind, 0, pair) == 0: reached(f'pair {kind}')",
    "a pair that connects elsewhere": "a, b = socket.socketpair()\nfor f in (lambda: libc.connect(a.fileno(), b'\\1\\0' + UNIX.encode(), 2 + len(UNIX)),\n"
    "          lambda: libc.sendto(a.fileno(), b'x', 1, 0, b'\\1\\0' + UNIX.encode(), 2 + len(UNIX)), lambda: libc.bind(a.fileno(), b'\\1\\0x', 3), lambda: libc.listen(a.fileno(), 1)):\n"
    "    if f() >= 0: reached('pair')",
    "the agent's socket": "for p in ('/tmp', '/run', '/var/run', '/run/user'):\n    attempt('list', lambda: [reached(n) for n in os.listdir(p)] and 1 / 0 or 1 / 0)",
    # Processes.
    "kill the victim": "for pid in (VICTIM, PARENT, -1, 0):\n    libc.kill(pid, 9) or reached(f'kill {pid}')\n    attempt('kill', os.kill, pid, 9)",
    "signal through a file's owner": "import fcntl\na, b = socket.socketpair()\nfor n in (8, 10, 15):\n    attempt(f'fcntl {n}', fcntl.fcntl, a.fileno(), n, VICTIM)",
    "fork": "for f in (os.fork, os.forkpty, libc.fork, libc.vfork):\n    try:\n        if f() != -1: reached('fork'); os._exit(0)\n    except OSError: pass",
    "a fork bomb": "try:\n    while libc.fork() != -1: reached('fork')\nfinally:\n    pass",
    "_posixsubprocess": "import _posixsubprocess, subprocess\nattempt('run', lambda: subprocess.Popen(['/bin/true']))\nattempt('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {}))",
    "run another program": "attempt('exec', lambda: os.execv(sys.executable, [sys.executable, '-c', 'print(\"REACHED exec\")']))",
    "clone a process, or namespaces": "for flags in (17, 0x10000000 | 17, 0x20000 | 17, 0x100 | 17, 0x10000 | 0x10000000 | 0xF00, 0x10000 | 0x40000000 | 0xF00):\n"
    "    n = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n    if libc.syscall(n, flags, 0, 0, 0, 0) >= 0: reached('clone'); os._exit(0)",
    "see other processes": "for p in os.listdir('/proc'):\n    if p.isdigit() and p != str(os.getpid()): reached(p)",
    "read its own memory as root's": "for p in ('/proc/self/mem', '/proc/1/mem', '/proc/self/environ'):\n    attempt(p, open, p, 'rb')",
    "raise its limits": "import resource\nfor n in range(16):\n    soft, hard = resource.getrlimit(n)\n    if hard >= 0: attempt(f'limit {n}', resource.setrlimit, n, (hard + 1, hard + 1))\n"
    "attempt('prlimit', lambda: resource.prlimit(VICTIM, resource.RLIMIT_CPU, (1, 1)))",
    "be traceable, or outlive the parent": "for option, value in ((1, 0), (4, 1), (36, 1), (0x59616D61, -1), (22, 1), (38, 0), (24, 0), (28, 0)):\n"
    "    if libc.prctl(option, value, 0, 0, 0) >= 0: reached(f'prctl {option}')",
    "type into the terminal": "import fcntl\nfor fd in range(3):\n    attempt('ioctl', fcntl.ioctl, fd, 0x5412, b'x')\n    attempt('tty', fcntl.ioctl, fd, 0x540E, 0)",
    "be root": "if 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) or 0 in os.getgroups(): reached('root')\n"
    "for f in (os.setuid, os.setgid, os.seteuid): attempt('become root', f, 0)",
    "32-bit calls": "import mmap\nif platform.machine() == 'x86_64':\n    m = mmap.mmap(-1, 4096, prot=7)\n    m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
    "    f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n    if f() > 0: reached('int 0x80')",
    "x32 calls": "if platform.machine() == 'x86_64' and libc.syscall(0x40000000 | 39) > 0: reached('x32')",
    # Memory of the whole program, of which it may have 256 MiB.
    "eight shared maps": "maps = []\nfor n in range(8):\n    maps.append(mmap.mmap(-1, 128 << 20))\n    for i in range(0, 128 << 20, 4096): maps[-1][i] = 1\nreached('1 GiB')",
    "files in memory": "for n in range(99):\n    f = open(f'f{n}', 'wb')\n    f.write(bytes(4 << 20))\nreached('400 MiB')",
    "sparse files": "f = open('f', 'wb')\nos.ftruncate(f.fileno(), 1 << 30)\nreached('1 GiB')",
    "many threads": "ts = []\nfor n in range(200):\n    ts.append(threading.Thread(target=time.sleep, args=(9,), daemon=True))\n    ts[-1].start()\nreached('200 threads')",
    "anonymous files": "for f in (lambda: os.memfd_create('x'), lambda: os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)): attempt('file', f)",
}  # fmt: skip
