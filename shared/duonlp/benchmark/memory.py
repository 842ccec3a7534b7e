"""Measure the peak memory of a pipeline, in this process or in one started for a single model.

Most of a process' resident memory is the interpreter and the framework. Separate figures for several models therefore
take one process each, and the memory resident before the model was loaded is reported next to the peak.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from duonlp.benchmark.record import Memory
from duonlp.errors import InputError
from duonlp.typing import Engine
from duonlp.util.frameworks import load_package, quiet_stdout

STATUS, CLEAR_REFS = "/proc/self/status", "/proc/self/clear_refs"
"""Linux, proc(5): VmHWM is the peak of VmRSS; writing 5 to clear_refs resets it to the current value."""


def resident_memory() -> int | None:
    """Return the resident memory in bytes, or None if the system does not report it."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Return the peak resident memory in bytes since process start or :func:`reset_peak`, or None if unknown."""
    peak = _status("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def reset_peak() -> bool:
    """Reset the peak to the current resident memory; return whether the system supports it (Linux does)."""
    try:
        with open(CLEAR_REFS, "w") as f:
            f.write("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        with open(STATUS, encoding="ascii", errors="replace") as f:
            return next((int(line.split()[1]) * 1024 for line in f if line.startswith(f"{name}:")), None)
    except OSError:
        return None


@contextlib.contextmanager
def watch_memory(measurements: list[Memory], *, before: int | None = None, alone: bool = False) -> Iterator[None]:
    """Append the peak memory of the `with` block to `measurements`, if the system reports it."""
    was_reset = reset_peak()
    yield
    peak = peak_memory()
    if peak is not None:
        measurements.append(Memory(peak, before, alone, "answering" if was_reset else "process"))


def memory_alone(
    framework: str, model: str, texts: Sequence[str], *, batch_size: int = 32, options: Mapping[str, Any] | None = None
) -> Memory | None:
    """Measure the memory of a new process that loads one text-classification model and classifies texts.

    Args:
        framework: "tf" or "jax".
        model: Folder in Hugging Face layout, or a Hub id.
        texts: Texts to classify, one by one and in batches; first once unmeasured, so that everything is compiled.
        batch_size: Texts per batch.
        options: Options of the pipeline.

    Returns:
        The memory, or None if the system does not report it.

    Raises:
        InputError: The process failed; the message contains the last line of its output.
    """
    job = {
        "framework": framework, "model": str(model), "texts": list(texts), "batch_size": batch_size,
        "options": dict(options or {}), "parent": os.getpid(),
    }  # fmt: skip
    path = os.pathsep.join(filter(None, sys.path))  # it imports the same packages as this process
    done = subprocess.run(
        [sys.executable, "-c", "from duonlp.benchmark.memory import main; main()"],
        input=json.dumps(job), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(
            f"the process that measures the memory of {str(model)!r} exited with status {done.returncode}: {last_line!r}; "
            "skip the measurement with --no-memory"
        )
    memory = json.loads(done.stdout.splitlines()[-1])
    return None if memory is None else Memory(**memory)


def measure(
    package: Engine, job: Mapping[str, Any], resident: Callable[[], int | None] = resident_memory
) -> dict[str, Any] | None:
    """Load a model, classify everything once for warm-up, then measure memory while classifying again.

    Args:
        package: The engine.
        job: Arguments of :func:`memory_alone`, and the id of the "parent" process.
        resident: Returns the resident memory in bytes.

    Returns:
        The fields of a :class:`Memory`, or None if the system does not report it.
    """
    measurements: list[Memory] = []
    before = resident()
    pipeline = package.pipeline("text-classification", job["model"], **job["options"])

    def work() -> None:
        for text in job["texts"]:
            pipeline(text)
        pipeline(job["texts"], batch_size=job["batch_size"], progress=False)

    work()
    with watch_memory(measurements, before=before, alone=True):
        work()
    return vars(measurements[0]) if measurements else None


def exit_with_parent(parent: int) -> None:
    """Exit this process as soon as `parent` is no longer its parent, since nobody would read the result."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Measure the job given as JSON on standard input, and print the result as JSON."""
    job = json.load(sys.stdin)
    if os.name == "posix":  # elsewhere the parent may be a Python launcher
        exit_with_parent(job["parent"])
    with quiet_stdout():
        package, _ = load_package(job["framework"])
        from transformers import AutoTokenizer  # noqa: F401  (large, and not part of any model)

        memory = measure(package, job)
    print(json.dumps(memory))
