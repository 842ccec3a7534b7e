"""Comparisons of few-shot methods that are killed at a random moment, and resumed: the report must be that of a whole one."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.attack.harness import HELD, Budget, Outcome, attack

MOST_IN_TESTS = 2
ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys
from duonlp.fewshot.comparison import ComparisonSettings, compare
calls, die_at = [0], int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        calls[0] += 1
        if calls[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.replace, os.rename, os.fsync = counted(os.replace), counted(os.rename), counted(os.fsync)
compare(ComparisonSettings(**eval(sys.argv[1])), console=False)
print(calls[0])
"""
"""Compares with settings, and is killed before the given one of its calls that make files durable."""


def compare(settings: dict[str, Any], die_at: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a comparison in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(settings), str(die_at)], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def outcome(folder: Path) -> tuple[Any, list[str]]:
    """Return all of a report that does not depend on time, and the names of all files."""
    report = json.loads((folder / "results.json").read_text())
    cells = [{name: value for name, value in cell.items() if "seconds" not in name} for cell in report["cells"]]
    return cells, sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@attack("killed comparisons")
def killed_comparisons(budget: Budget) -> Iterator[Outcome]:
    """Kill `duonlp fewshot` wherever it writes, and resume it."""
    rows = [
        {"text": f"{word} of {n}", "labels": sorted({name} if n % 7 else {name, "other"})}
        for n in range(12) for name, word in (("bug", "crash"), ("docs", "typo"), ("other", "please"))
    ]  # fmt: skip
    data = budget.folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(data), "methods": ("naive-bayes",), "sizes": (4, 8), "seeds": 2}
    whole = budget.folder / "whole"
    done = compare(settings | {"output": str(whole)})
    assert done.returncode == 0, done.stderr
    moments, expected = int(done.stdout), outcome(whole)
    for number in budget:
        if number >= MOST_IN_TESTS and math.isfinite(budget.cases):
            return
        folder = budget.folder / f"killed-{number}"
        plan = [int(budget.rng.integers(1, moments + 1)) for _ in range(int(budget.rng.integers(1, 3)))]
        case = f"killed before the durable calls {plan} of {moments}"
        statuses = [compare(settings | {"output": str(folder)}, moment).returncode for moment in plan]
        if any(status not in (0, -signal.SIGKILL) for status in statuses):
            yield Outcome(case, "traceback", f"statuses {statuses}")
            continue
        last = compare(settings | {"output": str(folder)})
        if last.returncode:
            yield Outcome(case, "lost", last.stderr[-1500:])
            continue
        cells, files = outcome(folder)
        if cells != expected[0]:
            yield Outcome(case, "wrong", "other results than without interruptions")
        elif files != expected[1]:
            yield Outcome(case, "left behind", ", ".join(sorted(set(files) ^ set(expected[1]))))
        else:
            yield Outcome(case, HELD)
            shutil.rmtree(folder)
