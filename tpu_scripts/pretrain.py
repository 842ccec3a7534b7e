"""Pretrains a language model on prepared blocks, on one CPU or on all hosts of a pod; run it on each of them alike.

    python tpu_scripts/pretrain.py tpu_scripts/configs/codeparrot_small.py --data /mnt/data --output /mnt/run

All hosts see both folders: a bucket that is mounted, or a file system of the network. Called again with the same output it
goes on from the last checkpoint. SIGTERM saves and leaves with 0.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # a checkout that nobody installed

import typer

from duonlp.errors import InputError
from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags
from tpu_scripts._program import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="A run: a Python file with CONFIG, or a .json file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="training.steps=10")] = None,
    data: Annotated[Path, typer.Option(help="What prepare.py made.")] = Path("data"),
    output: Annotated[Path, typer.Option(help="The run's folder: checkpoints and metrics.")] = Path("run"),
    host_devices: Annotated[int, typer.Option(help="On a CPU: show it as so many devices.")] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files.")] = False,
    wandb: Annotated[str, typer.Option(help="Log to this Weights & Biases project.")] = "",
    peak_flops: Annotated[float, typer.Option(help="Of all devices, for the MFU where none is published.")] = 0.0,
    coordinator: Annotated[str | None, typer.Option(help="host:port of process 0; not on Cloud TPU or SLURM.")] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes, with --coordinator.")] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, with --coordinator.")] = None,
) -> None:
    """Pretrains a language model on prepared blocks, on one CPU or on all hosts of a pod; run it on each of them alike."""
    if host_devices:
        if missing := add_xla_flags({HOST_DEVICES: host_devices}, override=True):
            raise InputError(f"--host-devices {host_devices}: the installed XLA has no flag {missing[0]}; leave it out")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from duonlp.runs import load_run, open_prepared
    from jaxnlp import training

    training.start(coordinator, processes, process)
    log = {"tensorboard": tensorboard, "wandb": {"project": wandb} if wandb else None}
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
