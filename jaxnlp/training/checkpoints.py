"""Checkpoints of a run with Orbax: written in the background, whole or not at all, kept by policy, restored anywhere."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from duonlp.errors import CheckpointError, InputError
from duonlp.training.run_file import check_run, first_line, write_run
from duonlp.training.settings import Settings
from jaxnlp.training.distributed import barrier, is_main

FOLDER, STATE, META = "checkpoints", "state", "meta"
LOSS = "held_out_loss"


class Checkpoints:
    """The checkpoints of a run, in ``folder/checkpoints``, and ``folder/run.json``, which says what the run is.

    Orbax writes each into a folder of another name that is renamed when it is whole, so a kill at any moment leaves the
    ones before it as they were. Use it as a context manager: leaving it waits for what is being written.

    Raises:
        InputError: the folder holds another run: another model, other data, or settings that would break the curve.
    """

    def __init__(self, folder: str | os.PathLike, config: Settings, description: Mapping[str, Any]):
        if re.match(r"[a-z0-9]+:/", str(folder)):
            raise InputError(
                f"{str(folder)!r} is no folder of this machine; mount the bucket, and give the folder it is at"
            )
        self.folder = Path(folder).expanduser().resolve()
        self.resumes = check_run(self.folder, config, description)
        """Whether the folder held this run already; it may have been ended before its first checkpoint."""
        barrier("run.json was read")
        if is_main():
            write_run(self.folder, config, description)
        barrier("run.json was written")
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
                f"the checkpoint {str(where)!r} cannot be read ({first_line(error)}); remove that folder to go on from "
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
                f"a checkpoint could not be written below {str(self.folder)!r}: {first_line(error)}; the ones before it "
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
