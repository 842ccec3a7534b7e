"""Kill a save before every one of its file operations, and load while another process saves.

Processes that save import neither framework: they are forked, and killed, from one that has only imported duonlp.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.architectures import config_from_hf
from duonlp.checkpoints import atomic_folder
from duonlp.checkpoints.checkpoint import Checkpoint, read_unchanged
from duonlp.checkpoints.open_files import OpenFile
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import CheckpointError, DuonlpError
from tests.attack.harness import HELD, Budget, Outcome, attack

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
OPERATIONS = {
    "open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.symlink", "os.utime", "os.truncate",
    "fcntl.flock",
}  # fmt: skip
"""Audit events before which a save is killed; synchronization, the exchange and the reading of tensors are counted, too."""

MINE = {
    "notes.txt": "mine",
    "sub/deep.txt": "mine, too",
    "model_ema.safetensors": "an average",
    "model-fp16.safetensors": "x",
}
"""Files of the user, which every save keeps."""


class FakeTokenizer:
    """Writes a tokenizer's file that holds the number of a version."""

    def __init__(self, version: int):
        self.version = version

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer.json."""
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text(str(self.version))


@dataclass(frozen=True)
class Scenario:
    """A save to attack.

    Attributes:
        old: Largest size of a shard of the version that is there before; 0 for none.
        new: Largest size of a shard of the version to save.
        inside: Whether the folder is the current one.
        tokenizer: Whether a tokenizer is saved with the model.
        refuses: Which renames fail: "exchange", "folder" (as if busy) or "all" (as on another file system).
    """

    old: int
    new: int
    inside: bool = False
    tokenizer: bool = False
    refuses: str = ""


WHOLE, SHARDS = 10**9, 6000
SCENARIOS = {
    "new folder": Scenario(0, WHOLE),
    "new folder, shards and tokenizer": Scenario(0, SHARDS, tokenizer=True),
    "replacing": Scenario(WHOLE, WHOLE),
    "replacing with a tokenizer": Scenario(WHOLE, WHOLE, tokenizer=True),
    "shards to one file": Scenario(SHARDS, WHOLE, tokenizer=True),
    "one file to shards": Scenario(WHOLE, SHARDS, tokenizer=True),
    "current folder": Scenario(WHOLE, WHOLE, inside=True, tokenizer=True),
    "current folder, shards to one file": Scenario(SHARDS, WHOLE, inside=True, tokenizer=True),
    "current folder, one file to shards": Scenario(WHOLE, SHARDS, inside=True),
    "without exchange": Scenario(SHARDS, WHOLE, tokenizer=True, refuses="exchange"),
    "busy folder": Scenario(WHOLE, SHARDS, tokenizer=True, refuses="folder"),
    "another file system": Scenario(SHARDS, WHOLE, tokenizer=True, refuses="all"),
}


def save(folder: Path, version: int, limit: int = WHOLE, tokenizer: bool = True) -> None:
    """Save a model all of whose files hold the number of a version."""
    cfg = config_from_hf({"model_type": "bert", **SIZES, "hidden_dropout_prob": version / 10**6})
    shape = _shapes()
    save_checkpoint(
        folder, cfg, "base", lambda path: np.full(shape[path], version, np.float32), np.float32,
        FakeTokenizer(version) if tokenizer else None, limit, {"max_length": version},
    )  # fmt: skip


def _shapes() -> dict[str, tuple[int, ...]]:
    from duonlp.parameters import parameters

    return {path: p.shape for path, p in parameters(config_from_hf({"model_type": "bert", **SIZES}), "base").items()}


def versions(folder: Path, tokenizer: bool = True, pause: Callable[[], None] = lambda: None) -> set[int]:
    """Return the versions of the files that a load reads."""

    def read(checkpoint: Checkpoint) -> str:
        file = checkpoint.folder / "tokenizer.json"
        return file.read_text() if tokenizer and file.exists() else ""

    checkpoint, text = read_unchanged(folder, read)
    pause()
    cfg = checkpoint.transformer_config()
    found = {round(checkpoint.config["hidden_dropout_prob"] * 10**6), checkpoint.generation_config["max_length"]}
    found |= {int(text)} if text else set()
    for source in checkpoint.plan(cfg, "base"):
        pause()
        found |= {int(value) for value in np.unique(source.read())}
    checkpoint.close()
    return found


def listing(folder: Path) -> list[str]:
    """Return the paths of everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def kill_before(operation: int, root: Path) -> Callable[[], int]:
    """Kill this process before the given file operation below `root`; return a function that returns how many there were."""
    count = 0

    def step() -> None:
        nonlocal count
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def hook(event: str, arguments: tuple) -> None:
        if event in OPERATIONS:
            path = str(arguments[0])
            if path.startswith(str(root)) or not os.path.isabs(path):  # relative to an open folder
                step()

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            step()
            result = function(*arguments, **options)
            step()
            return result

        return call

    os.fsync = counted(os.fsync)
    atomic_folder.exchange = counted(atomic_folder.exchange)
    np.full = counted(np.full)  # the values of a tensor
    sys.addaudithook(hook)
    return lambda: count


def refuse_renames(scenario: Scenario, folder: Path) -> None:
    """Make the renames that the scenario names fail."""
    rename = os.rename

    def checked(source: str, target: str) -> None:
        moved, place = os.fspath(source), os.fspath(target)
        enters = place.startswith(f"{folder}/") and not moved.startswith(f"{folder}/")
        if scenario.refuses != "exchange" and (moved == str(folder) or (scenario.refuses == "all" and enters)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(source, target)

    if scenario.refuses:
        os.rename = checked
        atomic_folder.exchange = lambda first, second: False


def in_child(function: Callable[[], object]) -> tuple[int, str]:
    """Run a function in a forked process; return the exit status, negative for a signal, and the result or error as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        try:
            text = str(function())
        except BaseException as error:
            status, text = 1, f"{type(error).__name__}: {error}"
        os.write(writer, text[:2000].encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def crash(root: Path, name: str, operations: list[int]) -> tuple[str, str]:
    """Kill one save after the other at the given operations, load after each, and save once more.

    Args:
        root: Folder of the case, made anew.
        name: Name of the scenario.
        operations: Numbers of the operations before which the saves are killed.

    Returns:
        Verdict and detail; for a save that held, how many operations it had, if it was not killed.
    """
    scenario = SCENARIOS[name]
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "model"
    root.mkdir()
    if scenario.old:
        save(folder, 1, scenario.old)
        for file, text in MINE.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)
    present, text = {1} if scenario.old else set(), ""

    def save_next(version: int, operation: int = -1) -> int:
        if scenario.inside:
            folder.mkdir(exist_ok=True)
            os.chdir(folder)
        refuse_renames(scenario, folder)
        count = kill_before(operation, root)
        save(folder, version, scenario.new, scenario.tokenizer)
        return count()

    for version, operation in enumerate(operations, 2):
        status, text = in_child(lambda version=version, operation=operation: save_next(version, operation))
        if status > 0:
            return "traceback", text
        try:
            found = versions(folder, scenario.tokenizer)
        except DuonlpError as error:
            if present or status == 0 or not isinstance(error, CheckpointError):
                return "lost", f"status {status}: {error}; there are {listing(root)}"
            continue
        allowed = [{version}] if status == 0 else [{version}, present]
        if found not in allowed:
            return "wrong", f"status {status}: versions {found}, expected one of {allowed}"
        present = found
    final = len(operations) + 2
    code, error = in_child(lambda: save_next(final))
    if code:
        return "traceback", error
    if (found := versions(folder, scenario.tokenizer)) != {final}:
        return "wrong", f"versions {found} after the last save"
    shutil.rmtree(root / "fresh", ignore_errors=True)
    save(root / "fresh/model", 1, scenario.new, scenario.tokenizer)
    mine = MINE if scenario.old else {}
    expected = {*listing(root / "fresh/model"), *mine, *(["sub"] if mine else [])}
    expected |= {"tokenizer.json"} if scenario.old else set()
    shutil.rmtree(root / "fresh")
    if extra := set(listing(folder)) ^ expected:
        return "left behind", f"{sorted(extra)} in the folder"
    if listing(root) != sorted(["model", *(f"model/{file}" for file in expected)]):
        return "left behind", f"{[file for file in listing(root) if not file.startswith('model')]} beside it"
    if any((folder / file).read_text() != text for file, text in mine.items()):
        return "lost", "a file of the user"
    return HELD, text


def serve(root: Path) -> None:
    """Answer lines on standard input, each a scenario and operations, with lines of what :func:`crash` returns."""
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written, and waiting for disks takes long
    for line in sys.stdin:
        name, operations = json.loads(line)
        try:
            answer = crash(root, name, operations)
        except Exception as error:
            answer = "traceback", f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


class Server:
    """A process that runs cases without a framework in it, as it is forked for every save."""

    def __init__(self, folder: Path):
        code = "import pathlib, sys; from tests.attack.crash_points import serve; serve(pathlib.Path(sys.argv[1]))"
        command = [sys.executable, "-c", code, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def crash(self, name: str, operations: list[int]) -> tuple[str, str]:
        """Return what :func:`crash` does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, operations]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return tuple(json.loads(answer)) if answer else ("crash", "the process that runs the cases ended")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@attack("crash points of a save")
def crash_points(budget: Budget) -> Iterator[Outcome]:
    """Kill the saves of all scenarios at all operations, in random order; then two saves in a row at random operations."""
    server = Server(budget.folder / "case")
    try:
        counts = {}
        for name in SCENARIOS:
            verdict, detail = server.crash(name, [10**9])  # not killed
            if verdict != HELD:
                yield Outcome(name, verdict, detail)
            counts[name] = int(detail) if verdict == HELD else 0
        points = [(name, operation) for name, count in counts.items() for operation in range(count)]
        budget.rng.shuffle(points)
        for _ in budget:
            if points:
                name, operation = points.pop()
                operations = [int(operation)]
            else:
                name = str(budget.rng.choice(list(SCENARIOS)))
                operations = budget.rng.integers(0, max(1, counts[name]), 2).tolist()
            verdict, detail = server.crash(str(name), operations)
            yield Outcome(f"{name}, killed before operation {operations}", verdict, detail if verdict != HELD else "")
    finally:
        server.close()


# -- loading while saving --------------------------------------------------------------------------------------------------


PLACES = {"exchanged": "", "renamed twice": "exchange", "current folder": "", "busy folder": "folder"}


def save_forever(folder: str, version: int) -> None:
    """Save every second version from `version` on to one folder per place in turn, until the parent closes standard input."""
    root, rename, swap = Path(folder), os.rename, atomic_folder.exchange
    os.set_blocking(0, False)
    while sys.stdin.buffer.read(1) != b"":
        version += 2
        for place, refuses in PLACES.items():
            os.rename, atomic_folder.exchange = rename, swap
            refuse_renames(Scenario(0, 0, refuses=refuses), root / place)
            os.chdir(root / place if place == "current folder" else root)
            save(root / place, version, WHOLE if version % 4 < 2 else SHARDS)


@attack("loading while saving")
def loading_while_saving(budget: Budget) -> Iterator[Outcome]:
    """Load checkpoints that two processes replace all the time: all files of a load must be of one version."""
    for place in PLACES:
        save(budget.folder / place, 1)
    code = "import sys; from tests.attack.crash_points import save_forever; save_forever(sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(budget.folder)]
    processes = [subprocess.Popen([*command, str(first)], stdin=subprocess.PIPE) for first in (1, 2)]
    open_file = OpenFile.open

    def open_slowly(path: Path) -> OpenFile | None:
        if budget.rng.random() < 0.1:
            time.sleep(0.02 * budget.rng.random())  # long enough for a save
        return open_file(path)

    OpenFile.open = open_slowly
    while versions(budget.folder / "exchanged") == {1} and processes[0].poll() is None:
        time.sleep(0.01)  # until it has started
    try:
        for number in budget:
            place = list(PLACES)[number % len(PLACES)]
            seconds = float(budget.rng.choice([0, 0.0005, 0.005]))
            verdict, detail = HELD, ""
            try:
                found = versions(budget.folder / place, pause=partial(time.sleep, seconds))
                if len(found) != 1:
                    verdict, detail = "wrong", f"versions {found}"
            except DuonlpError as error:
                verdict, detail = "lost", str(error)
            except Exception as error:
                verdict, detail = "traceback", f"{type(error).__name__}: {error}"
            if any(process.poll() is not None for process in processes):
                verdict, detail = "crash", "a process that saves ended"
            yield Outcome(f"load {number}, {place}", verdict, detail)
    finally:
        OpenFile.open = open_file
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
