"""Peak memory of a process that answers: of this one, or of one that is started for one model alone.

Most of a process' resident memory is the interpreter and the framework. A figure of its own for each of several models
therefore takes a process each, and what was resident before the model was loaded is told beside the peak.
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
from duonlp.util.frameworks import load_package, quiet_stdout

STATUS, FORGET = "/proc/self/status", "/proc/self/clear_refs"
"""Of Linux, man 5 proc: VmHWM is the peak of VmRSS; writing 5 to clear_refs sets it back to what there is now."""


def resident_memory() -> int | None:
    """Bytes resident now; None where the system does not tell."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Bytes resident at most since the start of the process or :func:`forget_peak`; None where nobody tells."""
    peak = _status("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def forget_peak() -> bool:
    """Sets the peak back to what is resident now; whether the system can, which Linux does."""
    try:
        with open(FORGET, "w") as f:
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
def watched(found: list[Memory], *, before: int | None = None, alone: bool = False) -> Iterator[None]:
    """Appends the peak of what happens inside, where the system tells it."""
    forgotten = forget_peak()
    yield
    peak = peak_memory()
    if peak is not None:
        found.append(Memory(peak, before, alone, "answering" if forgotten else "process"))


def memory_alone(
    framework: str, model: str, texts: Sequence[str], *, batch_size: int = 32, options: Mapping[str, Any] | None = None
) -> Memory | None:
    """Memory of a new process that loads one text-classification model and answers texts, one by one and in batches.

    Args:
        framework: "tf" or "jax".
        model: a folder in Hugging Face layout, or a Hub id.
        texts: they are answered once unmeasured, so that everything is compiled.
        batch_size: of the batches.
        options: of the pipeline.

    Returns:
        None where the system does not tell.

    Raises:
        InputError: the process failed; the message has its last line.
    """
    order = {
        "framework": framework, "model": str(model), "texts": list(texts), "batch_size": batch_size,
        "options": dict(options or {}), "parent": os.getpid(),
    }  # fmt: skip
    path = os.pathsep.join(filter(None, sys.path))  # it imports what this process would
    done = subprocess.run(
        [sys.executable, "-m", "duonlp.benchmark.memory"],
        input=json.dumps(order), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(
            f"the process that measures the memory of {str(model)!r} ended with status {done.returncode} and said {said!r}; "
            "leave it out with --no-memory"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found is None else Memory(**found)


def answer(package: Any, order: Mapping[str, Any], resident: Callable[[], int | None] = resident_memory) -> dict | None:
    """What the process does: loads, answers everything once, and answers it again while memory is watched."""
    before, found = resident(), []
    pipeline = package.pipeline("text-classification", order["model"], **order["options"])

    def work() -> None:
        for text in order["texts"]:
            pipeline(text)
        pipeline(order["texts"], batch_size=order["batch_size"], progress=False)

    work()
    with watched(found, before=before, alone=True):
        work()
    return vars(found[0]) if found else None


def end_with(parent: int) -> None:
    """Ends this process as soon as its parent is no more that one: whatever killed it, nobody reads what is found here."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _main() -> None:
    order = json.load(sys.stdin)
    if os.name == "posix":  # elsewhere the parent may be a launcher of Python
        end_with(order["parent"])
    with quiet_stdout():
        package, _ = load_package(order["framework"])
        from transformers import AutoTokenizer  # noqa: F401  (large, and no model's doing)

        found = answer(package, order)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
