"""The report of a comparison: all finished cells, their means over seeds, a CSV file and the learning curves."""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.fewshot.comparison.cells import AT_THRESHOLD, AT_THRESHOLDS, CELLS, RESULTS, SCORES
from duonlp.fewshot.methods import METHODS
from duonlp.metrics.learning_curves import learning_curve_plot, learning_curve_scores, summarize_runs
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

if TYPE_CHECKING:
    from rich.console import Console

REPORT, TABLE, CURVES, CURVES_AT_HALF = "results.json", "results.csv", "curves.png", "curves-at-0.5.png"
F1 = ("micro_f1", "macro_f1")
VARIANTS = ("", AT_THRESHOLD, AT_THRESHOLDS)
"""Prefixes of scores in the CSV file: at 0.5, at the validation texts' threshold, and at one per label."""


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


def at_threshold(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with the scores at the threshold chosen on the validation texts in place of those at 0.5."""
    return [{**record, **(record.get(AT_THRESHOLD) or {})} for record in records]


def make_report(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report: "cells", "summary" at the validation texts' threshold, "summary_at_half", and `about`."""
    unique = _unique(records)
    summaries = {"summary": [], "summary_at_half": []}
    if unique:
        scores = [name for name in SCORES if any(record.get(name) is not None for record in unique)]
        summaries = {
            "summary": summarize_runs(at_threshold(unique), scores),
            "summary_at_half": summarize_runs(unique, scores),
        }
    return {**summaries, "cells": list(records), **about}


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write results.json, results.csv and the curves, and return the report with their "files"."""
    records = report["cells"]
    files = {"results": str(folder / REPORT), "table": str(folder / TABLE)}
    write_text(folder / TABLE, _csv(records))
    if records and importlib.util.find_spec("matplotlib"):
        unique = _unique(records)
        learning_curve_plot(at_threshold(unique), folder / CURVES, scores=F1)
        files["curves"] = str(folder / CURVES)
        if any(record.get(AT_THRESHOLD) for record in unique):
            learning_curve_plot(unique, folder / CURVES_AT_HALF, scores=F1)
            files["curves_at_half"] = str(folder / CURVES_AT_HALF)
    report = {**report, "files": files}
    write_text(folder / REPORT, to_json(report, indent=1) + "\n")
    return report


def print_report(report: Mapping[str, Any], console: "Console") -> None:
    """Print a table for each F1 score, the cells that failed, and the files."""
    unique = _unique(report["cells"])
    if unique:
        tuned = any(record.get(AT_THRESHOLD) for record in unique)
        if tuned:
            console.print("At the threshold chosen on the validation texts, mean ± standard deviation over seeds:\n")
        for name in F1:
            console.print(learning_curve_scores(at_threshold(unique), name))
            console.print()
        if tuned:
            console.print("At the threshold 0.5:\n")
            for name in F1:
                console.print(learning_curve_scores(unique, name))
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
    names = [(variant, score) for variant in VARIANTS for score in SCORES]
    own = ("method", "size", "slice", "seed", "threshold", "fit_seconds", "score_seconds", "cpu_seconds")
    writer.writerow([*own, *(f"{variant}_{score}".strip("_") for variant, score in names)])
    for record in records:
        scores = [((record.get(variant) or {}) if variant else record).get(score) for variant, score in names]
        writer.writerow(["" if value is None else value for value in [*(record.get(name) for name in own), *scores]])
    return stream.getvalue()
