"""Fuzz every file that the library reads: mutated copies of a valid file either load or raise one of the library's errors.

A file format joins by registering a function that writes a valid sample and one that reads it; the attack of its group
("mutated configs" for config.json of each architecture, "mutated files" for the rest) does everything else::

    @fuzzed("an h5 checkpoint", "bytes", write=write_sample)
    def read_h5(file: Path) -> None:
        open_h5(file).tensors()

``write(folder)`` fills an empty folder and returns the file to mutate; ``read(file)`` reads it like a user's code would, as
far as no framework is needed, and uses what it has read. The kind of the file, one of "json", "jsonl", "toml" and "bytes",
chooses its mutations (see ``tests.attack.mutations``); binary formats are "bytes". Put the registration into any module of
this package. An architecture joins by being in ``architectures.families()``.

Files are read in a process of their own, whose address space and time are limited, so that a case may exhaust either or die.
"""

import multiprocessing
import os
import reprlib
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.attack.harness import HELD, Budget, Outcome, attack, load_attacks
from tests.attack.mutations import mutate

MEMORY = 2 << 30
"""Bytes of address space that a case may take beyond what the reader's imports take; 300 MB of NULs are read as text."""

SECONDS = 20.0
"""Time after which a case counts as a hang."""

LONGEST_MESSAGE = 4000
"""Characters of an error's message: one or a few lines, not the contents of the file."""


@dataclass(frozen=True)
class Format:
    """A file format to fuzz.

    Attributes:
        name: Name in reports.
        kind: "json", "jsonl", "toml" or "bytes".
        write: Fill an empty folder with a valid sample and return the file to mutate.
        read: Read the file.
        group: Attack that it belongs to.
    """

    name: str
    kind: str
    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    group: str = "mutated files"


FORMATS: dict[str, Format] = {}
"""Every registered format by name."""


def fuzzed(
    name: str, kind: str, *, write: Callable[[Path], Path], group: str = "mutated files"
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register the decorated function as the reader of a format; see this module's docstring."""

    def register(read: Callable[[Path], object]) -> Callable[[Path], object]:
        assert name not in FORMATS, name
        FORMATS[name] = Format(name, kind, write, read, group)
        return read

    return register


@attack("mutated configs")
def mutated_configs(budget: Budget) -> Iterator[Outcome]:
    """Mutate config.json of a small checkpoint of every architecture."""
    return fuzz(budget, "mutated configs")


@attack("mutated files")
def mutated_files(budget: Budget) -> Iterator[Outcome]:
    """Mutate every other file that the library reads."""
    return fuzz(budget, "mutated files")


def fuzz(budget: Budget, group: str) -> Iterator[Outcome]:
    """Mutate the samples of a group's formats in turn."""
    formats = [format for format in FORMATS.values() if format.group == group]
    worker, samples = Worker(), {}
    try:
        for number in budget:
            format = formats[number % len(formats)]
            if format.name not in samples:
                file = worker.sample(format, budget.folder / f"{list(FORMATS).index(format.name)}")
                samples[format.name] = file, file.read_bytes()
            file, data = samples[format.name]
            what, mutated = mutate(format.kind, data, budget.rng)
            with open(file, "wb") as stream:
                if isinstance(mutated, bytes):
                    stream.write(mutated)
                else:
                    stream.truncate(mutated)
            verdict, detail = worker.read(format, file)
            yield Outcome(f"seed {budget.seed}, case {number}, {format.name}: {what}", verdict, detail)
            file.write_bytes(data)
    finally:
        worker.stop()


class Worker:
    """A process that reads files for :func:`fuzz`, started again after it died."""

    def __init__(self) -> None:
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    def sample(self, format: Format, folder: Path) -> Path:
        """Write the sample of a format into a new folder and read it once, which must succeed; return the file."""
        folder.mkdir()
        file = format.write(folder)
        answer = self.read(format, file, seconds=120)
        assert answer == (HELD, "read"), f"the sample of {format.name} cannot be read: {answer}"
        return file

    def read(self, format: Format, file: Path, seconds: float = SECONDS) -> tuple[str, str]:
        """Read a file in the process and return the verdict and, for a fault, what happened."""
        if self.connection is None:
            self.start()
        assert self.connection is not None and self.process is not None
        try:
            self.connection.send((format.name, file))
            if self.connection.poll(seconds):
                return self.connection.recv()
            verdict = "hang", f"no answer in {seconds:.0f} s"
        except (EOFError, OSError):
            self.process.join(5)
            verdict = "crash", f"the process died with status {self.process.exitcode}"
        self.stop()
        return verdict

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Kill the process if there is one."""
        if self.process is not None and self.connection is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()
        self.process = self.connection = None


def _serve(connection: Connection) -> None:
    """Read files until the connection closes, in a process with limits."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)  # where Transformers and panics of Rust print
    load_attacks()
    warnings.simplefilter("ignore")
    seen: set[str] = set()
    while True:
        try:
            name, file = connection.recv()
        except EOFError:
            return
        # The first reading of a format is that of its valid sample, which imports modules.
        limit = resource.RLIM_INFINITY if name not in seen else _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        seen.add(name)
        answer = _judge(FORMATS[name], file)
        connection.send(answer)


def _judge(format: Format, file: Path) -> tuple[str, str]:
    from duonlp.errors import DuonlpError

    try:
        format.read(file)
    except DuonlpError as error:
        message = str(error)
        if not message or len(message) > LONGEST_MESSAGE or len(message.splitlines()) > 20:
            return "traceback", f"{type(error).__name__} with {len(message)} characters: {message[:200]}"
        return HELD, message
    except MemoryError:
        return "memory", _where()
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {reprlib.repr(_text(error))} {_where()}"
    return HELD, "read"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException as inner:
        return f"its message raises {type(inner).__name__}"


def _where() -> str:
    """Return the innermost lines of the library in the current traceback."""
    frames = [frame for frame in traceback.extract_tb(sys.exc_info()[2]) if "duonlp" in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:][::-1])


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
