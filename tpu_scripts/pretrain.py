"""Pretrain a language model on prepared blocks, on one CPU or on a pod; run the same command on every host.

    python tpu_scripts/pretrain.py tpu_scripts/configs/codeparrot_small.py --data /mnt/data --output /mnt/run

All hosts must see both folders, for example in a mounted bucket or on a network file system. With an existing output folder
the run resumes from its last checkpoint. SIGTERM saves a checkpoint and exits with status 0.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # run from a checkout that is not installed

import typer

from duonlp.errors import InputError
from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags
from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="Run file: a Python file with CONFIG, or a .json file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override, such as training.steps=10."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder made by prepare.py.")] = Path("data"),
    output: Annotated[Path, typer.Option(help="Folder of the run, for checkpoints and metrics.")] = Path("run"),
    host_devices: Annotated[int, typer.Option(help="Split the CPU into this many devices; 0 for no split.")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files.")] = False,
    wandb: Annotated[str, typer.Option(help="Log to this Weights & Biases project.")] = "",
    peak_flops: Annotated[
        float,
        typer.Option(help="Peak FLOP/s of all devices together, for the MFU of hardware without published figures."),
    ] = 0.0,
    coordinator: Annotated[
        str | None, typer.Option(help="host:port of process 0 (default: detected on Cloud TPU and SLURM).")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Number of processes, with --coordinator.")] = None,
    process: Annotated[int | None, typer.Option(help="Index of this process, with --coordinator.")] = None,
) -> None:
    """Pretrain a language model on prepared blocks; run the same command on every host."""
    if host_devices:
        if missing := add_xla_flags({HOST_DEVICES: host_devices}, override=True):
            raise InputError(f"--host-devices {host_devices}: the installed XLA has no flag {missing[0]}; leave it out")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from duonlp.runs import load_run, open_prepared
    from jaxnlp import training

    training.start(coordinator, processes, process)
    log: dict[str, Any] = {"tensorboard": tensorboard, "wandb": {"project": wandb} if wandb else None}
    if peak_flops:
        log["peak_flops"] = peak_flops
    result = training.pretrain_run(load_run(config, overrides or ()), open_prepared(data), output, log=log)
    if training.is_main():
        print(
            f"{'stopped and saved' if result.preempted else 'done'} after {result.steps:,} steps, "
            f"{result.tokens:,} tokens, {result.seconds:,.0f} s",
            file=sys.stderr,
        )
        print(output)


if __name__ == "__main__":
    sys.exit(run(app, "pretrain"))
