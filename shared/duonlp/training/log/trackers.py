"""Where a run's figures go besides its own file: TensorBoard, and Weights & Biases when it is asked for."""

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import write_text

FOLDER = "tensorboard"
RUN_ID = "wandb_run_id"


class TensorBoard:
    """Event files in a folder `tensorboard` of the run's own.

    Args:
        folder: the run's.
        resumed_from: the step resumed from, whose successors TensorBoard hides; None for a new run.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, resumed_from: int | None = None):
        purge_step = None if resumed_from is None else resumed_from + 1
        # tensorboardX names a file by the second, and would write over that of a run resumed within the same one.
        suffix = f".{time.time_ns()}"
        self.writer = summary_writer()(
            str(folder / FOLDER), purge_step=purge_step, flush_secs=30, filename_suffix=suffix
        )

    def log(self, group: str, step: int, record: Mapping[str, Any]) -> None:
        """Writes the numbers of a record as `group/name`."""
        for name, value in record.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self, failed: bool) -> None:
        """Writes what is still in memory."""
        self.writer.close()


def summary_writer():
    """tensorboardX's SummaryWriter."""
    # tensorboardX imports PyTorch wherever it is installed: seconds of a start, and memory, for nothing used here.
    without_torch = "torch" not in sys.modules
    if without_torch:
        sys.modules["torch"] = None
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            'event files for TensorBoard are written by tensorboardX, which is missing; pip install "duonlp[pretrain]"'
        ) from error
    finally:
        if without_torch:
            del sys.modules["torch"]


class WeightsAndBiases:
    """A run on Weights & Biases: the one kind of log that leaves this machine, so it is never on by itself.

    The run's id is kept beside the metrics, so that a resumed run goes on where it was.

    Args:
        folder: the run's.
        options: handed to ``wandb.init``: project, name, config, mode, ...
        resumed_from: the step resumed from; None for a new run.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], resumed_from: int | None = None):
        if not isinstance(options, Mapping):
            raise InputError(f"wandb={options!r} must be the options of wandb.init, such as {{'project': 'code'}}")
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingExtraError("Weights & Biases was asked for and wandb is missing; pip install wandb") from error
        options, stored = {"dir": str(folder), **options}, folder / RUN_ID
        if resumed_from is not None and "id" not in options and stored.is_file():
            options |= {"id": stored.read_text(encoding="utf-8").strip(), "resume": "allow"}
        self.run = wandb.init(**options)
        write_text(stored, f"{self.run.id}\n")
        # Its own step may never go back, as ours does on resuming.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, group: str, step: int, record: Mapping[str, Any]) -> None:
        """Sends the numbers of a record as `group/name`."""
        self.run.log({"step": step, **{f"{group}/{name}": value for name, value in record.items()}})

    def close(self, failed: bool) -> None:
        """Ends the run."""
        self.run.finish(exit_code=int(failed))
