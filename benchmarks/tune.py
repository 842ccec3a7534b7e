"""What a trial of a search costs besides its objective: duonlp.tuning.tune against Optuna alone.

    python -m benchmarks tune [--trials N] [--rounds R] [--json]

The objective is a formula. ``tune`` stores the search, its tables and its plots; "optuna, file" is Optuna's study in an SQLite
file with the same journal, "optuna, memory" one that nothing survives. Contestants take turns in one process, after one search
each to import everything, and times are CPU times, which other load on the machine affects least.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from duonlp.tuning import tune
from duonlp.tuning.study import _connect
from duonlp.util import machine
from duonlp.util.json_text import to_json

SPACE = {
    "x": {"low": 0.0, "high": 1.0},
    "rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "layers": {"choices": [1, 2, 3, 4]},
}


def score(parameters: dict[str, Any]) -> float:
    """Return a number to minimize."""
    return (parameters["x"] - 0.3) ** 2 + 0.1 * abs(parameters["layers"] - 2)


def by_tune(folder: Path, trials: int) -> None:
    """Search with duonlp."""
    tune(
        lambda parameters, _: {"error": score(parameters)},
        SPACE,
        folder,
        objectives="error",
        trials=trials,
        console=False,
    )


def by_optuna(storage: Any, trials: int) -> None:
    """Search with Optuna's own loop."""
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.TPESampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        layers = trial.suggest_categorical("layers", [1, 2, 3, 4])
        return score({
            "x": trial.suggest_float("x", 0.0, 1.0), "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True), "layers": layers,
        })  # fmt: skip

    study.optimize(objective, n_trials=trials)


def in_a_file(folder: Path, trials: int) -> None:
    """Search with Optuna in an SQLite file."""
    with contextlib.closing(_connect(folder / "study.db")) as connection:
        storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": lambda: connection})
        by_optuna(storage, trials)
        storage.remove_session()


CONTESTANTS: dict[str, Callable[[Path, int], None]] = {
    "duonlp": by_tune,
    "optuna, file": in_a_file,
    "optuna, memory": lambda _, trials: by_optuna(None, trials),
}


def seconds(name: str, trials: int) -> float:
    """Return the CPU time of a new search."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        CONTESTANTS[name](Path(folder), trials)
        return time.process_time() - start


def main(arguments: list[str] | None = None) -> None:
    """Time the contestants in turns, and print the median milliseconds per trial and of a whole search."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tune", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200, help="trials of a search (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="searches of each contestant (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    first = {name: seconds(name, 20) for name in CONTESTANTS}
    short: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    whole: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(options.rounds):
        for name in CONTESTANTS:
            short[name].append(seconds(name, options.trials // 2))
            whole[name].append(seconds(name, options.trials))
    report = {
        name: {
            "first_search_s": first[name],
            "search_s": statistics.median(whole[name]),
            "trial_ms": 1e3 * statistics.median(whole[name]) / options.trials,
            # The second half of a search has neither its start nor its plots.
            "further_trial_ms": 1e3
            * statistics.median(b - a for a, b in zip(short[name], whole[name]))
            / (options.trials - options.trials // 2),
        }
        for name in CONTESTANTS
    }
    if options.json:
        print(to_json({"trials": options.trials, "contestants": report, "machine": machine()}, indent=2))
        return
    print(f"{options.trials} trials, median of {options.rounds} rounds, CPU time")
    print(f"{'':16}{'first 20 trials':>18}{'a search':>12}{'a trial':>12}{'a further trial':>18}")
    for name, row in report.items():
        print(
            f"{name:16}{row['first_search_s']:16.2f} s{row['search_s']:10.2f} s{row['trial_ms']:9.1f} ms"
            f"{row['further_trial_ms']:15.1f} ms"
        )


if __name__ == "__main__":
    main()
