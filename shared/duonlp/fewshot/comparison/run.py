"""Run the cells of a comparison that are not finished, in one process, and report all that are.

Each (method, size, seed) has a folder of its own, whose results.json is written last; so a comparison that was stopped, even with
SIGKILL, resumes with the cell that was running, and methods, sizes and seeds can be added later.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.comparison.cells import WITHOUT_LABELS, Cell, finished, run_cell
from duonlp.fewshot.comparison.data import ComparisonData, prepare, verify_split
from duonlp.fewshot.comparison.progress import ComparisonProgress
from duonlp.fewshot.comparison.report import collect_cells, make_report, write_report
from duonlp.fewshot.comparison.settings import ComparisonSettings, described
from duonlp.training.settings_file import as_table, write_toml
from duonlp.typing import Engine
from duonlp.util.files import locked_folder, may_read
from duonlp.util.reading import read_toml

SETTINGS_FILE = "settings.toml"


def compare(
    settings: ComparisonSettings, load_engine: Callable[[], Engine] | None = None, *, console: Any = True
) -> dict[str, Any]:
    """Train and score the methods on slices of growing size, with several seeds, and write table, curves and models.

    All methods are validated and tested on the same texts. Called again, it skips what is finished.

    Args:
        settings: The settings.
        load_engine: Returns tfnlp or jaxnlp; called once, if a method that is left to run needs it.
        console: Whether to show progress, or the rich Console to show it on. True is standard error.

    Returns:
        The report that is also written to results.json: "cells" (see ``run_cell``), "summary" (mean and spread over seeds by
        method and size, for each way to choose thresholds), "data" (numbers of texts and labels), "failed" (cells that raised
        InputError, with the message), "interrupted", "files", "settings".

    Raises:
        InputError: Settings and data are invalid, the output has another comparison or is in use, or a cell that is finished
            there has other settings.
    """
    methods = settings.made_methods()
    data = prepare(settings)
    slices = {seed: data.slices(settings, seed) for seed in range(settings.seeds)}
    cells = cells_of(settings)
    folder, framework = settings.folder, settings.framework
    with locked_folder(folder, "comparison"):
        _check_framework(folder, framework)
        verify_split(folder, data)
        abouts = {name: described(method) for name, method in methods.items()}
        done = {cell: finished(folder, cell, abouts[cell.method]) for cell in cells}
        heading = f"Repeat or resume this comparison: duonlp fewshot --config {folder / SETTINGS_FILE}"
        write_toml(folder / SETTINGS_FILE, settings, heading)
        package, failed, interrupted = None, [], False
        with ComparisonProgress(cells, done, console) as progress:
            for cell in cells:
                if done[cell] is not None:
                    continue
                method = methods[cell.method]
                try:
                    if method.needs_engine and package is None:
                        package = _engine(load_engine, cell.method)
                    progress.start(cell)
                    train = _slice(cell, slices, data)
                    keep = settings.keep_models == "all"
                    record = run_cell(folder, cell, method, abouts[cell.method], package, data, train, keep)
                    progress.finish(cell, record)
                except InputError as error:
                    failed.append({"method": cell.method, "size": cell.size, "seed": cell.seed, "error": str(error)})
                    progress.fail(cell, str(error))
                except KeyboardInterrupt:
                    interrupted = True
                    break
        about = {"settings": as_table(settings), "data": data.counts(), "failed": failed, "interrupted": interrupted}
        report = make_report(collect_cells(folder), about)
        return write_report(folder, report)


def plan(settings: ComparisonSettings) -> dict[str, Any]:
    """Return what a comparison would do, without running it: "data", and the cells "to_run" and "finished".

    Args:
        settings: The settings.

    Raises:
        InputError: As for :func:`compare`.
    """
    methods = settings.made_methods()
    data = prepare(settings)
    folder = settings.folder
    if may_read(folder / SETTINGS_FILE):
        _check_framework(folder, settings.framework)
        verify_split(folder, data)
    for seed in range(settings.seeds):
        data.slices(settings, seed)
    done, left = [], []
    for cell in cells_of(settings):
        record = finished(folder, cell, described(methods[cell.method]))
        (left if record is None else done).append(str(cell))
    return {
        "settings": as_table(settings), "data": data.counts(), "preparation": dict(data.report), "to_run": left,
        "finished": done, "methods": {name: described(method) for name, method in methods.items()},
    }  # fmt: skip


def cells_of(settings: ComparisonSettings) -> list[Cell]:
    """Return the cells in the order in which they are run: all methods and sizes of the first seed, then those of the next."""
    sizes: Sequence[int | str] = settings.per_label or settings.sizes
    per_label = bool(settings.per_label)
    cells = []
    for seed in range(settings.seeds):
        for method in settings.methods:
            if method not in WITHOUT_LABELS:
                cells += [Cell(method, size, seed, per_label) for size in sizes]
            elif seed == 0:
                cells.append(Cell(method, 0, 0))
    return cells


def _slice(cell: Cell, slices: Mapping[int, Mapping[int | str, LabelledTexts]], data: ComparisonData) -> LabelledTexts:
    return data.train.take([]) if cell.method in WITHOUT_LABELS else slices[cell.seed][cell.size]


def _engine(load_engine: Callable[[], Engine] | None, method: str) -> Engine:
    if load_engine is None:
        raise InputError(f"{method} runs a model; pass load_engine=, such as lambda: jaxnlp")
    return load_engine()


def _check_framework(folder: Path, framework: str) -> None:
    """Raise InputError if the folder has the comparison of another framework."""
    file = folder / SETTINGS_FILE
    if not may_read(file):
        if any(folder.glob("*")) and not may_read(folder / "split.json"):
            names = ", ".join(sorted(path.name for path in folder.glob("[!.]*"))[:3])
            if names:
                raise InputError(f"output {str(folder)!r} holds something else ({names}); give another folder")
        return
    stored = read_toml(file).get("framework", "")
    if stored and framework and stored != framework:
        raise InputError(
            f"output {str(folder)!r} holds a comparison in {stored}, and this one is in {framework}; give another folder"
        )
