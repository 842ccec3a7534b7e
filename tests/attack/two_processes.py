"""The same work twice in one folder: one process does it and the other is refused, or both end with the same files."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from duonlp.training.log.metrics_file import read_metrics
from tests.attack._runs import KINDS, REFUSED
from tests.attack._works import EXCLUSIVE, SHARED
from tests.attack.harness import HELD, Budget, Outcome, attack
from tests.attack.kills import Server

COMPARED = (".jsonl", ".gz", ".array_record", ".npy", "a.json", "tokenizer.json", "model.safetensors")
"""Ends of the names of files that must be the same as after the work of one process."""


@attack("two processes in one folder")
def two_processes(budget: Budget) -> Iterator[Outcome]:
    """Start the same work in two processes, or two threads, at nearly the same time."""
    kinds = (*EXCLUSIVE, *SHARED)
    with Server("duonlp", budget.folder / "duonlp") as server:
        for number in budget:
            if number >= len(kinds) and math.isfinite(budget.cases):
                return  # once each in the test suite
            kind = kinds[number % len(kinds)]
            yield _twice(server, kind, number, budget, threads=number % 4 == 3)


@attack("two runs in one folder")
def two_runs(budget: Budget) -> Iterator[Outcome]:
    """Start the same run of an engine in two processes; importing an engine takes too long for the test suite."""
    if math.isfinite(budget.cases):
        return
    for engine in ("tfnlp", "jaxnlp"):
        with Server(engine, budget.folder / engine) as server:
            share = Budget(budget.folder / engine, budget.seed, budget.seconds_left / (2 if engine == "tfnlp" else 1))
            for number in share:
                yield _twice(server, KINDS[engine][number % len(KINDS[engine])], number, budget, threads=False)


def _twice(server: Server, kind: str, number: int, budget: Budget, *, threads: bool) -> Outcome:
    """Do a work twice at once and compare its files with those of doing it once."""
    once, folder = server.folder / f"{kind}-whole", server.folder / f"{kind}-{number}"
    if not once.exists():
        (status,) = server.run_all(kind, once)
        assert status == 0, Path(f"{once}.log").read_text()[-2000:]
    delays = [0.0, float(budget.rng.choice([0.0, budget.rng.exponential(0.01), budget.rng.exponential(0.2)]))]
    statuses = server.run_all(kind, folder, delays=delays, threads=threads)
    case = f"{kind} in two {'threads' if threads else 'processes'} with delays {delays}"
    allowed = {0} if kind in SHARED else {0, REFUSED}
    try:
        if 0 not in statuses or not allowed.issuperset(statuses):
            logs = [log.read_text()[-1500:] for log in sorted(server.folder.glob(f"{folder.name}*.log"))]
            return Outcome(case, "traceback", f"statuses {statuses}: {logs}")
        if (folder / "metrics.jsonl").exists():
            steps = [record["step"] for record in read_metrics(folder) if record["kind"] == "step"]
            expected = [record["step"] for record in read_metrics(once) if record["kind"] == "step"]
            if steps != expected:
                return Outcome(case, "wrong", f"steps {steps} in metrics.jsonl, expected {expected}")
        if kind == "records" and (folder / "n.json").read_text() != "20":
            return Outcome(case, "wrong", f"{(folder / 'n.json').read_text()} of 20 updates were kept")
        files, expected_files = _contents(folder), _contents(once)
        if kind in (*EXCLUSIVE, *SHARED) and files.keys() != expected_files.keys():
            return Outcome(case, "left behind", f"{sorted(files.keys() ^ expected_files.keys())}")
        different = [
            name for name in expected_files if name.endswith(COMPARED) and not _same(name, files, expected_files)
        ]
        return Outcome(case, "wrong", f"{different} differ") if different else Outcome(case, HELD)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _same(name: str, files: dict[str, bytes], expected: dict[str, bytes]) -> bool:
    return (
        name.endswith("metrics.jsonl") or files.get(name) == expected[name]
    )  # records have times; their steps are compared


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
