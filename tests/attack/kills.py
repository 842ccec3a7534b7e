"""Runs killed at random moments, and resumed until they end: the model and the log must be those of an uninterrupted run."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from duonlp.training.log.metrics_file import read_metrics
from tests.attack._runs import KINDS
from tests.attack.harness import HELD, Budget, Outcome, attack

ROOT = Path(__file__).parents[2]
QUICK = {"tfnlp": 3, "jaxnlp": 1}
"""Cases in the test suite, where a number of cases is set; each takes seconds."""

COMPARED = ("kind", "name", "step", "loss", "learning_rate", "examples", "tokens", "gradient_norm")
"""Entries of a record that do not depend on time, nor on how often the run was interrupted."""

STATUSES = {-signal.SIGKILL, -signal.SIGALRM, -signal.SIGTERM, 130, 143}
"""Statuses of an interrupted run."""


class Server:
    """Runs each request in a child forked from a process that has imported the engine.

    Args:
        engine: "tfnlp", "jaxnlp", or "duonlp" for work without a framework.
        folder: An empty folder for the runs.
    """

    def __init__(self, engine: str, folder: Path):
        folder.mkdir()
        environment = os.environ | {"ATTACK_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        self.engine, self.folder, self.whole = engine, folder, {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack._runs", engine], cwd=ROOT, env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, kind: str, folder: Path, interrupt: tuple[int, int, float] = (0, 0, 0.0)) -> int:
        """Run, interrupted at a file event, and return the exit status, negative for a signal."""
        return self.run_all(kind, folder, interrupt)[0]

    def run_all(
        self, kind: str, folder: Path, interrupt: tuple[int, int, float] = (0, 0, 0.0), delays: Sequence[float] = (0.0,),
        threads: bool = False,
    ) -> list[int]:  # fmt: skip
        """Run once after each delay, at the same time, in children or in threads of one; return their exit statuses."""
        files = {"folder": str(folder), "result": f"{folder}.json", "log": f"{folder}.log"}
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"kind": kind, "interrupt": interrupt, "delays": delays, "threads": threads, **files}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def outcome(self, folder: Path) -> dict[str, Any]:
        """Return all of a finished run that must not depend on interruptions, and its number of file "events"."""
        records = [{name: r[name] for name in COMPARED if name in r} for r in read_metrics(folder)]
        paths = [path.relative_to(folder) for path in folder.rglob("*")]
        files = sorted(str(path) for path in paths if len(path.parts) <= 2)
        best = folder / "best" / "model.safetensors"
        result = json.loads(Path(f"{folder}.json").read_text())
        return {**result, "metrics": records, "files": files, "best": best.read_bytes() if best.exists() else b""}

    def uninterrupted(self, kind: str) -> dict[str, Any]:
        """Return the outcome of the run without interruptions."""
        if kind not in self.whole:
            folder = self.folder / f"{kind}-whole"
            status = self.run(kind, folder)
            assert status == 0, Path(f"{folder}.log").read_text()[-2000:]
            self.whole[kind] = self.outcome(folder)
        return self.whole[kind]

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def killed_runs(engine: str, budget: Budget) -> Iterator[Outcome]:
    """Kill the runs of an engine: at file events or shortly after them, in one case in four with SIGTERM or Ctrl-C."""
    rng, quick = budget.rng, QUICK[engine] if math.isfinite(budget.cases) else math.inf
    with Server(engine, budget.folder / engine) as server:
        for number in budget:
            if number >= quick:
                return
            kind = KINDS[engine][number % len(KINDS[engine])]
            whole, folder = server.uninterrupted(kind), server.folder / f"{kind}-{number}"
            plan, status = [], 1
            for _ in range(int(rng.integers(1, 4))):
                number_of_signal = int(rng.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT]))
                delay = float(rng.choice([0, rng.exponential(0.003), rng.exponential(0.05)]))
                plan.append((int(rng.integers(1, whole["events"] + 1)), number_of_signal, delay))
                status = server.run(kind, folder, plan[-1])
                if status not in STATUSES:
                    break
            if status in STATUSES:
                status = server.run(kind, folder)
            case = f"{engine} {kind}, interrupted at {plan} (event, signal, delay)"
            if status != 0:
                yield Outcome(case, "lost", f"status {status}, {Path(f'{folder}.log').read_text()[-1500:]}")
            else:
                yield _compare(case, server.outcome(folder), whole)
                shutil.rmtree(folder)


def _compare(case: str, ours: dict[str, Any], whole: dict[str, Any]) -> Outcome:
    for name in ("digest", "best", "metrics"):
        if ours[name] != whole[name]:
            detail = f"{ours[name]}, expected {whole[name]}" if name == "metrics" else ""
            return Outcome(case, "wrong", f"another {name} than without interruptions {detail}")
    left = set(ours["files"]) ^ set(whole["files"])
    return Outcome(case, "left behind", ", ".join(sorted(left))) if left else Outcome(case, HELD)


@attack("killed tfnlp runs")
def killed_tfnlp_runs(budget: Budget) -> Iterator[Outcome]:
    """Kill fit, distill and the Pretrainer of tfnlp."""
    return killed_runs("tfnlp", budget)


@attack("killed jaxnlp runs")
def killed_jaxnlp_runs(budget: Budget) -> Iterator[Outcome]:
    """Kill fit, distill and pretrain of jaxnlp."""
    return killed_runs("jaxnlp", budget)
