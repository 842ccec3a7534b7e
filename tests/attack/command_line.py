"""Attack the command line: hostile arguments, hostile standard streams, and Ctrl-C at any moment.

Each case is a process. It must end with one of the documented statuses, print no traceback, and say at most one line about an
error (Typer frames its own usage errors, which are a few lines).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.attack.file_formats import TEXTS, write_checkpoint
from tests.attack.harness import HELD, Budget, Outcome, attack

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0
SIZE = 300 << 20

MOST_IN_TESTS = 3
"""Cases of a run without a time limit: each takes seconds."""

OK, DIFFERENT, USAGE, INTERRUPTED = 0, 1, 2, 130

HOSTILE_TEXTS = (
    b"[red]x[/red]", b":smile:", b"[/]", b"\xff\xfe", b"\xc3\xa9\xe2\x80\xa6", b"", b" ", b"-", b"--", b"[" * 100_000,
    b'{"a":' * 2000, b"{}", b"nan", b"a=b", b"\x1b[31m", b"1e400", b"../../x", b"$(id)", b"%s%n", b"x" * 100_000,
)  # fmt: skip

COMMANDS: tuple[tuple[bytes, ...], ...] = (
    (b"run", b"@"), (b"run", b"ner", b"text", b"-m", b"@"), (b"run", b"ner", b"-m", b"M", b"-i", b"@"), (b"models", b"@"),
    (b"run", b"ner", b"@", b"-m", b"nowhere/at-all", b"-o", b"@"), (b"run", b"ner", b"x", b"-m", b"M", b"-f", b"@"),
    (b"generate", b"@", b"-m", b"@"), (b"finetune", b"-c", b"@"), (b"finetune", b"-m", b"M", b"-d", b"@", b"--output", b"@"),
    (b"finetune", b"-m", b"M", b"-d", b"x", b"--output", b"out", b"-o", b"fit.epochs=@"), (b"tune", b"-c", b"@"), (b"@",),
    (b"parity", b"@"), (b"summarize", b"@"), (b"benchmark", b"@"), (b"evaluate", b"code", b"@"), (b"evaluate", b"@"),
    (b"fewshot", b"-d", b"@", b"--output", b"out", b"--methods", b"naive-bayes"), (b"fewshot", b"-c", b"@"),
    (b"fewshot", b"-d", b"x", b"--output", b"out", b"--sizes", b"@"),
    (b"fewshot", b"-d", b"x", b"--output", b"out", b"-o", b"@=1"),
    (b"adapt", b"-m", b"M", b"-d", b"@", b"--output", b"out"), (b"adapt", b"-c", b"@"),
    (b"labels", b"@"), (b"labels", b"D", b"--text-template", b"@"), (b"labels", b"D", b"--slices", b"@", b"--split", b"@"),
    (b"labels", b"D", b"--label-map", b"@", b"--output", b"@"),
    (b"models", b"--@"), (b"models", b"M", b"@"), (b"distill", b"-c", b"@", b"-o", b"a.b.c=@"),
)  # fmt: skip
"""Commands with @ in the place of a hostile text, M of a checkpoint, and D of labeled texts."""

STREAMS = (
    ">&- models", "2>&- models", "<&- models", ">&- 2>&- models /nowhere", "2>&- run", ">/dev/full models", "| models --json",
    "2>/dev/full models /nowhere", "ascii models M", "ascii models M --json", "latin-1 models M", "| --help", "| models M",
    ">/dev/full models --json", "C run ner -m M -i BYTES", "nuls run ner -m M", "nuls finetune -c", "nuls models",
)  # fmt: skip
"""What happens to the standard streams, then the command; see :func:`stream_case`."""


@attack("command line")
def command_line(budget: Budget) -> Iterator[Outcome]:
    """Run the program with hostile arguments, with broken streams, and interrupt it."""
    model = write_model(budget.folder)
    ways: Sequence[Callable[[int, Budget, Path], Outcome]] = (stream_case, argument_case, interrupt_case)
    for number in budget:
        if number >= MOST_IN_TESTS and budget.seconds == float("inf"):
            return
        yield ways[number % len(ways)](number // len(ways), budget, model)


def write_model(folder: Path) -> Path:
    """Write a checkpoint whose labels are markup, with its tokenizer."""
    from duonlp.tokenizers.train import train_tokenizer

    labels = {"0": "[red]a[/]", "1": ":smile:é"}
    model = write_checkpoint(folder / "[red]:smile:é", head="token-classification", id2label=labels, vocab_size=300)
    train_tokenizer(TEXTS, vocab_size=300, min_frequency=0, kind="wordpiece").save_pretrained(model)
    (folder / "bytes.txt").write_bytes(b"caf\xe9\n")
    (folder / "labels.jsonl").write_text('{"text": "a", "labels": ["[red]"]}\n{"text": "b", "labels": []}\n')
    return model


def argument_case(number: int, budget: Budget, model: Path) -> Outcome:
    """Run a command with a hostile text as an argument."""
    command = COMMANDS[number % len(COMMANDS)]
    text = HOSTILE_TEXTS[budget.rng.integers(len(HOSTILE_TEXTS))]
    names = {b"M": os.fsencode(model), b"D": os.fsencode(budget.folder / "labels.jsonl")}
    arguments = [names.get(part) or part.replace(b"@", text) for part in command]
    name = f"{b' '.join(command).decode()} with {text[:20]!r}"
    done = start(arguments, budget.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return judge(name, done, (OK, USAGE))


def stream_case(number: int, budget: Budget, model: Path) -> Outcome:
    """Run a command with closed, full, narrow or huge standard streams."""
    way, *words = STREAMS[number % len(STREAMS)].split()
    encoding = {"ascii": {"PYTHONIOENCODING": "ascii"}, "latin-1": {"PYTHONIOENCODING": "latin-1"}}.get(way, {})
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"} if way == "C" else encoding
    redirections = [way] if way[:1] in ("<", ">", "2") else []
    while words[0][:1] in ("<", ">", "2"):
        redirections.append(words.pop(0))
    names = {"M": str(model), "BYTES": str(budget.folder / "bytes.txt")}
    shell = " ".join(["exec", '"$@"', *redirections])
    arguments: list[bytes] = [os.fsencode(names.get(word, word)) for word in words]
    name, statuses = STREAMS[number % len(STREAMS)], (OK, USAGE)
    if way == "nuls":
        nuls = budget.folder / "nuls"
        with open(nuls, "wb") as file:
            file.truncate(SIZE)
        arguments += {
            "run": [b"-i", os.fsencode(nuls)],
            "finetune": [os.fsencode(nuls)],
            "models": [os.fsencode(nuls)],
        }[words[0]]
    process = start(
        arguments,
        budget.folder,
        shell,
        environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if way == "|":
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        process.stdout = None
        statuses = (OK, 141)
    if ">/dev/full" in redirections:
        statuses = (USAGE,)
    return judge(name, process, statuses)


def interrupt_case(number: int, budget: Budget, model: Path) -> Outcome:
    """Interrupt a command after a random time: while it imports, loads, computes or writes."""
    seconds = float(budget.rng.uniform(0.1, 12))
    arguments = [b"run", b"ner", b"the cat", b"-m", os.fsencode(model), b"-f", [b"jax", b"tf"][number % 2]]
    process = start(arguments, budget.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    return judge(f"Ctrl-C after {seconds:.2f} s", process, (INTERRUPTED, OK, -signal.SIGINT), interrupted=True)


def start(
    arguments: Sequence[bytes],
    folder: Path,
    shell: str = 'exec "$@"',
    environment: dict[str, str] | None = None,
    **streams: Any,
) -> subprocess.Popen[bytes]:
    """Start ``python -m duonlp`` through a shell that redirects its streams."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "shared")])
    settings = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "COLUMNS": "80"} | (
        environment or {}
    )
    program = [b"sh", b"-c", shell.encode(), b"sh", os.fsencode(sys.executable), b"-m", b"duonlp"]
    return subprocess.Popen([*program, *arguments], cwd=folder, env=os.environ | settings, **streams)


def judge(name: str, process: subprocess.Popen[bytes], statuses: Sequence[int], interrupted: bool = False) -> Outcome:
    """Wait for a process and judge its status and what it said."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(name, "hang", f"no end in {SECONDS:.0f} s")
    text = ((out or b"") + err).decode("utf-8", "replace")
    if "Traceback (most recent" in text or "Exception ignored" in text:
        at_start = interrupted and "duonlp" not in text  # the interpreter's own start, before any of our code
        return Outcome(name, HELD if at_start else "traceback", " | ".join(text.splitlines()[-3:])[-400:])
    if process.returncode not in statuses:
        return Outcome(
            name, "crash" if process.returncode < 0 else "wrong", f"status {process.returncode}: {text[-300:]}"
        )
    lines = [line for line in err.decode("utf-8", "replace").splitlines() if line]
    if process.returncode == USAGE and len(lines) > 1 and "Usage:" not in text:
        return Outcome(name, "wrong", f"{len(lines)} lines: {' | '.join(lines)[:400]}")
    if process.returncode == OK and b"\xf0\x9f" in (out or b""):
        return Outcome(name, "wrong", f"an emoji was put in the place of its code: {text[-300:]}")
    return Outcome(name, HELD)
