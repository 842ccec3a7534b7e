"""The report of a comparison: all finished cells, their means over seeds, a CSV file and the learning curves."""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.fewshot.comparison.cells import AT_THRESHOLD, CELLS, RESULTS, SCORES, VARIANTS
from duonlp.fewshot.methods import METHODS
from duonlp.metrics.learning_curves import learning_curve_plot, learning_curve_scores, summarize_runs
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

if TYPE_CHECKING:
    from rich.console import Console

REPORT, TABLE, CURVES = "results.json", "results.csv", "curves{}.png"
F1 = ("micro_f1", "macro_f1")


def collect_cells(folder: Path) -> list[dict[str, Any]]:
    """Return the results of all finished cells of a folder, by method, size and seed.

    Raises:
        InputError: A file cannot be read.
    """
    files = folder.glob(f"{CELLS}/*/*/*/{RESULTS}")
    records = [read_json_object(file, advice="delete it to run the cell again") for file in files]
    if broken := next((record for record in records if not {"method", "size", "seed"} <= set(record)), None):
        raise InputError(
            f"a {RESULTS} below {folder / CELLS} lacks its method, size or seed ({broken!r:.80}); delete it"
        )
    order = list(METHODS)
    return sorted(records, key=lambda r: (order.index(r["method"]), r["size"], r["slice"] == "all", r["seed"]))


def variant(records: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the records with the scores of one of VARIANTS in place of those at 0.5."""
    return [{**record, **((record.get(key) if key else None) or {})} for record in records]


def variants_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of VARIANTS that the records have: with one label per text, only ""."""
    return [key for key in VARIANTS if not key or any(record.get(key) for record in records)]


def make_report(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report: "cells", "summary" (means over seeds by variant, "half" for the threshold 0.5), and `about`."""
    unique, summary = _unique(records), {}
    if unique:
        scores = [name for name in SCORES if any(record.get(name) is not None for record in unique)]
        summary = {key or "half": summarize_runs(variant(unique, key), scores) for key in variants_of(unique)}
    return {"summary": summary, "cells": list(records), **about}


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write results.json, results.csv and the curves, and return the report with their "files"."""
    records = report["cells"]
    files = {"results": str(folder / REPORT), "table": str(folder / TABLE)}
    write_text(folder / TABLE, _csv(records))
    if records and importlib.util.find_spec("matplotlib"):
        unique = _unique(records)
        for key in variants_of(unique):
            file = folder / CURVES.format(f"-{key.replace('_', '-')}" if key else "")
            learning_curve_plot(
                variant(unique, key), file, scores=F1, title=VARIANTS[key] if unique[0].get(AT_THRESHOLD) else ""
            )
            files[f"curves {key}".strip()] = str(file)
    report = {**report, "files": files}
    write_text(folder / REPORT, to_json(report, indent=1) + "\n")
    return report


def print_report(report: Mapping[str, Any], console: "Console") -> None:
    """Print a table for each F1 score, the cells that failed, and the files."""
    unique = _unique(report["cells"])
    if unique:
        keys = variants_of(unique)
        for key in keys:
            heading = f", {VARIANTS[key]}" if len(keys) > 1 else ""
            console.print(f"Mean ± standard deviation over seeds{heading}:\n", soft_wrap=True)
            for name in F1:
                console.print(learning_curve_scores(variant(unique, key), name))
                console.print()
        console.print("\n".join(_seconds(unique)) + "\n", soft_wrap=True)
    for failure in report["failed"]:
        console.print(
            f"failed: {failure['method']}, {failure['size']}, seed {failure['seed']}: {failure['error']}",
            soft_wrap=True,
        )
    console.print(", ".join(report["files"].values()), soft_wrap=True)


def _seconds(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line per method with the mean time of a cell."""
    lines = []
    for method in dict.fromkeys(record["method"] for record in records):
        times = [(r["fit_seconds"], r["score_seconds"]) for r in records if r["method"] == method]
        fit, score = (sum(values) / len(times) for values in zip(*times))
        lines.append(f"{method}: {fit:.1f} s to train, {score:.1f} s to score, on average")
    return lines


def _unique(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the records without those of a method, size and seed that come again, as when "all" is also given as a number."""
    return list({(record["method"], record["size"], record["seed"]): record for record in records}.values())


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [(key, score) for key in VARIANTS for score in SCORES]
    own = ("method", "size", "slice", "seed", "fit_seconds", "score_seconds", "cpu_seconds")
    writer.writerow([*own, *(f"{key}_{score}".strip("_") for key, score in names)])
    for record in records:
        scores = [((record.get(key) or {}) if key else record).get(score) for key, score in names]
        writer.writerow(["" if value is None else value for value in [*(record.get(name) for name in own), *scores]])
    return stream.getvalue()
