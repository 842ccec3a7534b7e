"""Prune a fine-tuned classifier while it is distilled from itself, and compare accuracy, size and speed.

    python -m benchmarks pruning_accuracy MODEL DATA --work FOLDER [--framework jax] [--epochs 4] [--plot accuracy.png]

MODEL is fine-tuned on DATA (`duonlp finetune`). Each row is a run in FOLDER, which resumes if it is interrupted: 70% of the
weights by magnitude and by movement, and half of the heads and feed-forward rows, which are then removed and timed at 1x32 and
32x128.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.pruning import Pruning, plot_accuracy, sparsity_report, total_sparsity
from duonlp.util.json_text import to_json

RUNS: dict[str, Pruning] = {
    "magnitude": Pruning(sparsity=0.7),
    "movement": Pruning(sparsity=0.7, method="movement", scope="layer"),
    "units": Pruning(sparsity=0.5, method="movement", structure="units"),
}
SHAPES, ROUNDS = ((1, 32), (32, 128)), 15


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pruning_accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a fine-tuned classifier: a folder or a Hub id")
    parser.add_argument("data", nargs="?", help="labeled texts")
    parser.add_argument("--work", type=Path, help="folder for the runs")
    parser.add_argument("--framework", default="jax", help="tf or jax (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each run (default %(default)s)")
    parser.add_argument("--plot", default="", help="figure of accuracy against sparsity")
    options = parser.parse_args(arguments)
    if options.model is None or options.data is None or options.work is None:
        print("pruning_accuracy needs MODEL, DATA and --work; skipped")
        return
    rows = [_run(name, pruning, options) for name, pruning in RUNS.items()]
    if options.plot:
        dense = rows[0]["dense_accuracy"]
        plot_accuracy(options.plot, {row["run"]: [(0.0, dense), (row["sparsity"], row["accuracy"])] for row in rows})
    print(to_json({"benchmark": "pruning_accuracy", "results": rows}, indent=2))


def _run(name: str, pruning: Pruning, options: argparse.Namespace) -> dict[str, Any]:
    """Distill the model into a pruned copy of itself; return its scores, sparsity and, of units, the speed-up."""
    from dataclasses import replace

    from duonlp.runs.distillation import DistillSettings, distill
    from duonlp.runs.labelled import FIT
    from duonlp.util.frameworks import load_package

    package, _ = load_package(options.framework)
    fit = replace(FIT, epochs=options.epochs, pruning=pruning)
    settings = DistillSettings(
        data=options.data, output=str(options.work / name), teacher=options.model, student=options.model, fit=fit
    )
    report = distill(package, settings)
    auto = package.AutoModelForSequenceClassification
    model = auto.from_pretrained(options.work / name / "best")
    tree = {path: np.asarray(value) for path, value in package.parameter_tree(model).items()}
    layers = sparsity_report({path: value for path, value in tree.items() if "/layer_" in path})
    row = {
        "run": name, "accuracy": report["metrics"]["accuracy"], "dense_accuracy": report["teacher"]["metrics"]["accuracy"],
        "sparsity": total_sparsity(layers),
    }  # fmt: skip
    if pruning.structure == "units":
        smaller = package.shrink(model)
        smaller.save_pretrained(options.work / f"{name}-removed")
        row |= {"parameters": [model.num_parameters(), smaller.num_parameters()]}
        row |= {f"speedup_{b}x{t}": _speedup(package, model, smaller, (b, t)) for b, t in SHAPES}
    return row


def _speedup(package: Any, dense: Any, smaller: Any, shape: tuple[int, int]) -> float:
    """Return how many times faster the smaller model is: the ratio of medians, timed in turns."""
    ids = np.random.default_rng(0).integers(5, dense.config.embedding.vocab_size, shape).astype(np.int32)
    runs = [package.compiled(model) for model in (dense, smaller)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for own, run in zip(times, runs, strict=True):
            start = time.perf_counter()
            np.asarray(run(input_ids=ids)["logits"])
            own.append(time.perf_counter() - start)
    before, after = (float(np.median(own[1:])) for own in times)  # without the first call, which compiles
    return before / after


if __name__ == "__main__":
    main()
