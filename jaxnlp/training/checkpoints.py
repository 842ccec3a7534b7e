"""Checkpoints of a run, with Orbax: written atomically in the background, restored onto any devices."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from duonlp.errors import CheckpointError, InputError
from duonlp.training.config import PretrainingConfig
from duonlp.training.fit_config import FitConfig
from duonlp.training.run_file import check_run, write_run
from duonlp.util.files import locked_folder, storage_remedy
from duonlp.util.reading import first_line
from jaxnlp.training.distributed import barrier, is_main, run_on_main
from jaxnlp.training.mesh import PyTree

FOLDER, STATE, META = "checkpoints", "state", "meta"
LOSS = "held_out_loss"


class Checkpoints:
    """Checkpoints of a run in ``folder/checkpoints``, next to the ``run.json`` that identifies the run.

    Orbax writes to a temporary folder and renames it when it is complete, so a kill never damages earlier checkpoints. A
    context manager: leaving it waits for pending writes, and releases the folder, which process 0 locks.

    Args:
        folder: Local folder of the run; created if missing.
        config: Settings of the run; they include how many checkpoints to keep.
        description: Everything else that identifies the run: model, head, data.

    Attributes:
        folder: Absolute path of the run's folder.
        resumes: Whether the folder held this run before, possibly without a checkpoint yet.

    Raises:
        InputError: The folder is a URL, holds a run with another model, other data or incompatible settings, or is in use by
            another process or thread.
    """

    def __init__(
        self, folder: str | os.PathLike, config: PretrainingConfig | FitConfig, description: Mapping[str, Any]
    ):
        if re.match(r"[a-z0-9]+:/", str(folder)):
            raise InputError(
                f"{str(folder)!r} is a URL, not a local folder; mount the bucket and pass the folder it is mounted at"
            )
        self.folder = Path(folder).expanduser().resolve()
        with ExitStack() as stack:
            run_on_main(lambda: stack.enter_context(locked_folder(self.folder, "training")))
            self._open(config, description)
            self._lock = stack.pop_all()

    def _open(self, config: PretrainingConfig | FitConfig, description: Mapping[str, Any]) -> None:
        """Check or write run.json and open the checkpoints."""
        self.resumes = check_run(self.folder, config, description)
        barrier("run.json was read")
        if is_main():
            write_run(self.folder, config, description)
        barrier("run.json was written")
        keep: list[policies.PreservationPolicy] = [policies.LatestN(config.keep_last)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        if config.keep_best:
            # reverse: Orbax keeps the last n after sorting, and the lowest loss is the best.
            best = {"get_metric_fn": lambda metrics: metrics[LOSS], "reverse": True, "n": config.keep_best}
            keep.append(policies.BestN(**best, keep_checkpoints_without_metrics=False))
        self._manager = ocp.CheckpointManager(
            self.folder / FOLDER,
            item_names=(STATE, META),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
            ),
        )

        self._remove_superseded(config)

    def _remove_superseded(self, config: PretrainingConfig | FitConfig) -> None:
        """Remove the checkpoints that a process was about to remove when it was killed."""
        steps = sorted(self._manager.all_steps())
        keep = {
            *steps[-config.keep_last :],
            *(step for step in steps if config.keep_every and not step % config.keep_every),
        }
        if config.keep_best:
            losses = {step: (self._manager.metrics(step) or {}).get(LOSS) for step in steps}
            ranked = sorted((loss, -step) for step, loss in losses.items() if loss is not None)
            keep |= {-step for _, step in ranked[: config.keep_best]}
        for step in steps:
            if step not in keep:
                self._write(lambda step=step: self._manager.delete(step))

    @property
    def latest(self) -> int | None:
        """Step of the last complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def restore(self, abstract: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Restore the last complete checkpoint.

        Args:
            abstract: Shapes and dtypes of the state.
            shardings: Sharding of each array of the state; it may differ from the one it was saved with.

        Returns:
            The state, and the metadata saved with it.

        Raises:
            CheckpointError: The checkpoint cannot be read.
        """
        step = self.latest
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        )
        items = {STATE: ocp.args.StandardRestore(target), META: ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise errors of many types
            path = self.folder / FOLDER / str(step)
            raise CheckpointError(
                f"the checkpoint {str(path)!r} cannot be read ({first_line(error)}); delete that folder to resume from the "
                "checkpoint before it"
            ) from error
        return restored[STATE], restored[META]

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], held_out_loss: float | None = None) -> None:
        """Save the state after `step` steps; return once it is copied and write it in the background.

        Args:
            step: Steps done.
            state: Arrays to save.
            meta: JSON-compatible values to save with them.
            held_out_loss: Loss that ranks the checkpoint for ``config.keep_best``; None for an unranked checkpoint.

        Raises:
            CheckpointError: An earlier checkpoint could not be written.
        """
        items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(dict(meta))}
        metrics = None if held_out_loss is None else {LOSS: held_out_loss}
        self._write(lambda: self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics))

    def wait(self) -> None:
        """Wait until everything is on disk; raise CheckpointError if it could not be written."""
        self._write(self._manager.wait_until_finished)

    def _write(self, action: Callable[[], Any]) -> None:
        """Run `action`; raise CheckpointError for errors of any type, including those of the background thread."""
        try:
            action()
        except Exception as error:
            raise CheckpointError(
                f"a checkpoint could not be written to {str(self.folder)!r} ({first_line(error)}); earlier checkpoints are "
                f"intact: {storage_remedy(error)} and resume"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            with self._lock:
                self._manager.close()
