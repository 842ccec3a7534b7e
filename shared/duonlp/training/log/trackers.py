"""Experiment trackers: TensorBoard and, on request, Weights & Biases."""

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import write_text

FOLDER = "tensorboard"
RUN_ID = "wandb_run_id"


class Tracker(Protocol):
    """Receives the numbers of a run's records."""

    def log(self, group: str, step: int, record: Mapping[str, Any]) -> None:
        """Log the numbers of a record as `group/name`."""
        ...

    def close(self, failed: bool) -> None:
        """Flush and end the log."""
        ...


class TensorBoard:
    """TensorBoard event files in the subfolder `tensorboard` of a run.

    Args:
        folder: Folder of the run.
        resumed_from: Step the run resumes from; TensorBoard hides the steps after it. None for a new run.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, resumed_from: int | None = None):
        purge_step = None if resumed_from is None else resumed_from + 1
        # tensorboardX names files by the second, so a run resumed within the same second would overwrite its own file.
        suffix = f".{time.time_ns()}"
        self.writer = summary_writer()(
            str(folder / FOLDER), purge_step=purge_step, flush_secs=30, filename_suffix=suffix
        )

    def log(self, group: str, step: int, record: Mapping[str, Any]) -> None:
        """Write the numbers of a record as `group/name`."""
        for name, value in record.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self, failed: bool) -> None:
        """Flush and close the event file."""
        self.writer.close()


def summary_writer() -> type:
    """Return tensorboardX's SummaryWriter class.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """
    # tensorboardX imports PyTorch if it is installed, which costs seconds and memory and is not needed here.
    modules = cast(dict[str, Any], sys.modules)
    without_torch = "torch" not in modules
    if without_torch:
        modules["torch"] = None
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            'TensorBoard event files need tensorboardX, which is not installed; pip install "duonlp[pretrain]"'
        ) from error
    finally:
        if without_torch:
            del modules["torch"]


class WeightsAndBiases:
    """A run on Weights & Biases. Its data leaves this machine, so it is only used on request.

    The id of the run is stored beside the metrics, so that a resumed run continues the same one.

    Args:
        folder: Folder of the run.
        options: Options of ``wandb.init``: project, name, config, mode, ...
        resumed_from: Step the run resumes from; None for a new run.

    Raises:
        InputError: `options` is not a mapping.
        MissingExtraError: wandb is not installed.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], resumed_from: int | None = None):
        if not isinstance(options, Mapping):
            raise InputError(f"wandb is {options!r}; it must be options of wandb.init, such as {{'project': 'code'}}")
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingExtraError(
                "Weights & Biases logging needs wandb, which is not installed; pip install wandb"
            ) from error
        options, id_file = {"dir": str(folder), **options}, folder / RUN_ID
        if resumed_from is not None and "id" not in options and id_file.is_file():
            options |= {"id": id_file.read_text(encoding="utf-8").strip(), "resume": "allow"}
        self.run = wandb.init(**options)
        write_text(id_file, f"{self.run.id}\n")
        # wandb's own step must never decrease, but ours does on resume; plot against ours.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, group: str, step: int, record: Mapping[str, Any]) -> None:
        """Send the numbers of a record as `group/name`."""
        self.run.log({"step": step, **{f"{group}/{name}": value for name, value in record.items()}})

    def close(self, failed: bool) -> None:
        """Finish the run, marking it as failed if it did."""
        self.run.finish(exit_code=int(failed))
