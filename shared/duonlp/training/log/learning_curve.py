"""The learning curve of a run: the training loss of each epoch beside the results of its evaluations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.util.files import may_read, unreadable, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json

if TYPE_CHECKING:
    from rich.table import Table

CURVE_FILE = "learning_curve.json"
"""File of a run's learning curve, in its folder."""

RECORD = ("step", "epoch", "learning_rate", "train_loss", "examples", "tokens")
"""Entries of a record besides the results of an evaluation."""


class LearningCurve:
    """The learning curve of a run: a record at each evaluation and at the end of each epoch.

    A record has "step" (steps done), "epoch" (that of the step, from 1), the unit ("examples" or "tokens" seen),
    "learning_rate" (of the step), "train_loss", and after an evaluation its results, the validation loss as "loss". The
    training loss is the mean over the epoch so far, every label weighing the same as in an evaluation; but with dropout, and
    while the model changes. On an endless stream of blocks it is the mean over the steps since the record before.

    Args:
        unit: "examples", or "tokens" for blocks.
        folder: Folder of the run, where :data:`CURVE_FILE` is written after each record; None writes nothing.

    Attributes:
        records: The records so far, including those before a resume.
    """

    def __init__(self, unit: str = "examples", folder: Path | None = None):
        self.unit, self.folder = unit, folder
        self.records: list[dict[str, Any]] = []
        self._sums: dict[str, list[float]] = {}  # (sum, count) of each term of the loss since the last reset

    def add(self, terms: Mapping[str, tuple[float, float]]) -> None:
        """Add a step: the (sum, count) of each term of its loss, which is the total of sum / count."""
        for name, (total, count) in terms.items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + float(total), sums[1] + float(count)

    def record(
        self, step: int, epoch: int, count: int, learning_rate: float, results: Mapping[str, float] | None,
        ends_epoch: bool,
    ) -> None:  # fmt: skip
        """Add the record after a step, whose terms have been added.

        Args:
            step: Steps done.
            epoch: Epoch of the step, from 1.
            count: Examples or tokens seen.
            learning_rate: Learning rate of the step.
            results: Results of the evaluation after the step, none of them named as in :data:`RECORD`; None without one.
            ends_epoch: Whether the step was the last of its epoch.
        """
        loss = sum(total / count for total, count in self._sums.values() if count)
        values = {"step": step, "epoch": epoch, self.unit: count, "learning_rate": learning_rate, "train_loss": loss}
        self.records.append({**values, **(results or {})})
        if ends_epoch or self.unit == "tokens":
            self._sums = {}
        self._write()

    def state(self) -> dict[str, Any]:
        """Return the state as JSON-compatible values, for :meth:`restore`: "records", and "sums" by term."""
        return {
            "records": [dict(record) for record in self.records],
            "sums": {name: list(sums) for name, sums in self._sums.items()},
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Restore the state that :meth:`state` returned; None, of a run of an older version, has no records."""
        if state is not None:
            self.records = [dict(record) for record in state["records"]]
            self._sums = {name: list(sums) for name, sums in state["sums"].items()}
        self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        file, text = self.folder / CURVE_FILE, to_json(self.records, indent=1) + "\n"
        if self.records or file.exists():  # so that it has no record after a restored one
            write_text(file, text)


def read_learning_curve(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the records of a run's learning curve; a number that is not finite is None.

    Args:
        folder: Folder of the run.

    Raises:
        InputError: The folder has no learning curve, or its file is damaged.
    """
    file = Path(folder) / CURVE_FILE
    if not may_read(file) or not file.is_file():
        raise InputError(f"{str(file)!r} does not exist; give the folder of a run of fit, distill or pretrain")
    try:
        records = parse_json(file.read_bytes())
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise InputError(f"{str(file)!r} is damaged ({error}); resume the run to write it again") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{str(file)!r} is not a list of records; resume the run to write it again")
    return records


def learning_curve_table(records: Sequence[Mapping[str, Any]]) -> "Table":
    """Return a rich table of a learning curve, a row for each record.

    Args:
        records: Records of a LearningCurve.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    known = ("epoch", "step", "train_loss", "loss")
    others = list(dict.fromkeys(name for record in records for name in record if name not in (*known, *RECORD)))
    for name in ("epoch", "step", "training loss", "validation loss", *others):
        table.add_column(name, justify="right")
    for record in records:
        values = (record.get(name) for name in ("train_loss", "loss", *others))
        cells = ("" if value is None else f"{value:.4f}" for value in values)
        table.add_row(str(record.get("epoch", "")), str(record.get("step", "")), *cells)
    return table
