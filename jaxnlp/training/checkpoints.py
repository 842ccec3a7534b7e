"""Checkpoints of a run with Orbax: written in the background, whole or not at all, kept by policy, restored anywhere."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxnlp.training.distributed import barrier, is_main
from shared.errors import CheckpointError, InputError
from shared.training.config import PretrainingConfig

RUN_FILE, FOLDER, STATE, META = "run.json", "checkpoints", "state", "meta"
LOSS = "held_out_loss"


class Checkpoints:
    """The checkpoints of a run, in ``folder/checkpoints``, and ``folder/run.json``, which says what the run is.

    Orbax writes each into a folder of another name that is renamed when it is whole, so a kill at any moment leaves the
    ones before it as they were. Use it as a context manager: leaving it waits for what is being written.

    Raises:
        InputError: the folder holds another run: another model, other data, or settings that would break the curve.
    """

    def __init__(self, folder: str | os.PathLike, config: PretrainingConfig, description: Mapping[str, Any]):
        if re.match(r"[a-z0-9]+:/", str(folder)):
            raise InputError(
                f"{str(folder)!r} is no folder of this machine; mount the bucket, and give the folder it is at"
            )
        self.folder = Path(folder).expanduser().resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{str(self.folder)!r} is a file; give a folder for the run")
        self.resumes = (self.folder / RUN_FILE).exists()
        """Whether the folder held this run already; it may have been ended before its first checkpoint."""
        self._check_run(config, description)
        keep = [policies.LatestN(config.keep_last)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        if config.keep_best:
            # the lowest loss is the best, and Orbax takes the last of those it has sorted
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[LOSS], reverse=True, n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )  # fmt: skip
        self._manager = ocp.CheckpointManager(
            self.folder / FOLDER,
            item_names=(STATE, META),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
            ),
        )

    def _check_run(self, config: PretrainingConfig, description: Mapping[str, Any]) -> None:
        file = self.folder / RUN_FILE
        description = json.loads(json.dumps(description))
        if self.resumes:
            stored = read_run(self.folder)
            for name, value in description.items():
                if stored.get(name) != value:
                    raise InputError(
                        f"{str(self.folder)!r} holds a run with another {name}: {_difference(stored.get(name), value)}; "
                        "give the same to resume it, or another folder"
                    )
            config.check_resumable(stored["config"])
        barrier("run.json was read")
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".partial")
            part.write_text(json.dumps({**description, "config": config.to_dict()}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, file)
        barrier("run.json was written")

    @property
    def latest(self) -> int | None:
        """The number of steps of the last whole checkpoint; None when there is none."""
        return self._manager.latest_step()

    def restore(self, abstract, shardings) -> tuple[Any, dict]:
        """The last whole checkpoint's state, on the devices that `shardings` say, and what was saved with it.

        Raises:
            CheckpointError: it cannot be read.
        """
        step = self.latest
        target = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, shardings
        )
        items = {STATE: ocp.args.StandardRestore(target), META: ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise whatever they meet
            where = self.folder / FOLDER / str(step)
            raise CheckpointError(
                f"the checkpoint {str(where)!r} cannot be read ({_first_line(error)}); remove that folder to go on from "
                "the one before it"
            ) from error
        return restored[STATE], restored[META]

    def save(self, step: int, state, meta: Mapping[str, Any], held_out_loss: float | None = None) -> None:
        """Saves the state after `step` steps; returns when it is copied, and goes on writing in the background.

        Raises:
            CheckpointError: an earlier one could not be written.
        """
        items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(dict(meta))}
        metrics = None if held_out_loss is None else {LOSS: held_out_loss}
        self._guarded(lambda: self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics))

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointError where it could not be written."""
        self._guarded(self._manager.wait_until_finished)

    def _guarded(self, do) -> None:
        try:
            do()
        except Exception as error:  # the background thread's, of whatever kind
            raise CheckpointError(
                f"a checkpoint could not be written below {str(self.folder)!r}: {_first_line(error)}; the ones before it "
                "are whole: make room and resume"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._manager.close()


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """What ``run.json`` says: model, head, data and config.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    file = Path(folder).expanduser() / RUN_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {_first_line(error)}; give the folder of a run") from None


def _difference(stored, now) -> str:
    if isinstance(stored, dict) and isinstance(now, dict):
        names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
        return ", ".join(f"{name} is {stored.get(name)!r} there and {now.get(name)!r} here" for name in names)
    return f"{stored!r} there and {now!r} here"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
