"""Will this training step fit a pod, and how fast could it be? Answered on a machine without a TPU.

    python tpu_scripts/compile_check.py tpu_scripts/configs/codeparrot_xl.py --topology v5e:16x16
    python tpu_scripts/compile_check.py --topology v5e:16x16 --model gpt2-xl --mesh data=-1,fsdp=16 --remat full
    python tpu_scripts/compile_check.py --sweep

The real step is compiled ahead of time for the pod's chips (`pip install "duonlp[jax,topology]"`). Leaves with 0 when it
fits, 1 when it does not, 2 for input that makes no sense.
"""

import json
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu is asked to compile, never to look for chips
if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # a checkout that nobody installed

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from duonlp.errors import InputError
from duonlp.training import PretrainingConfig
from duonlp.training.config import OPTIMIZERS, REMAT
from tpu_scripts._program import run

SWEEP_MODELS = ("codeparrot-small", "codeparrot")
SWEEP_FSDP = (1, 16)
SWEEP_REMAT = ("none", "full")
GIB = 2**30

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_file: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run as pretrain.py takes it; in place of the options of a step."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="training.remat=full")] = None,
    topology: Annotated[
        str, typer.Option(help="A slice: v5e:16x16, v6e:16x16, v5p:4x4x4, v4:4x4x4, ...")
    ] = "v5e:16x16",
    model: Annotated[
        str,
        typer.Option(help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, codeparrot-small, codeparrot, or a config.json."),
    ] = "",
    mesh: Annotated[str, typer.Option(help="Chips along each axis, such as data=-1,fsdp=16,tensor=1.")] = "data=-1",
    batch_per_chip: Annotated[int, typer.Option(help="Rows of a batch, divided by the chips.")] = 4,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a row; of an encoder-decoder, in a source.")] = 1024,
    target_length: Annotated[
        int, typer.Option(help="Tokens in a target of an encoder-decoder; 0 for as many as in a source.")
    ] = 0,
    accumulation: Annotated[int, typer.Option(help="Pieces that a batch is computed in.")] = 1,
    remat: Annotated[str, typer.Option(help=f"What is computed again: {', '.join(REMAT)}.")] = "none",
    scan: Annotated[bool, typer.Option("--scan/--no-scan", help="One compiled layer for all.")] = True,
    optimizer: Annotated[str, typer.Option(help=f"{', '.join(OPTIMIZERS)}.")] = "adamw",
    dtype: Annotated[str, typer.Option(help="What is computed in: bfloat16 or float32.")] = "bfloat16",
    dropout: Annotated[bool, typer.Option("--dropout/--no-dropout", help="As in the model's config, or none.")] = True,
    head_room: Annotated[float, typer.Option(help="Share of a chip's memory that must stay free.")] = 0.05,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="GPT-2 small and XL, with and without FSDP and rematerialisation.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
    hlo: Annotated[str, typer.Option(help="Write the compiled program's text to this file.")] = "",
) -> None:
    """Will this training step fit a pod, and how fast could it be? Answered on a machine without a TPU."""
    """The command."""
    from jaxnlp.training.compile_check.topology import topology as describe

    if batch_per_chip < 1:
        raise InputError(f"--batch-per-chip is {batch_per_chip}; give at least one row")
    if not 0 <= head_room < 1:
        raise InputError(f"--head-room is {head_room}; give a share from 0 to 1")
    if sweep and hlo:
        raise InputError("--hlo is for one program; leave out --sweep")
    slice_of_pod = describe(topology)
    if run_file is not None:
        if model or sweep:
            raise InputError(f"{run_file} says which model and how; leave out --model and --sweep")
        model, name, config, sequence_length, segment_ids = described_run(run_file, overrides or [], dropout)
        report = check(name, model, config, slice_of_pod, sequence_length, head_room, hlo, segment_ids, target_length)
        raise typer.Exit(show(name, config, report, head_room, as_json))
    config = PretrainingConfig(
        steps=1, batch_size=batch_per_chip * len(slice_of_pod.devices), accumulation=accumulation, remat=remat, scan=scan,
        optimizer=optimizer, dtype=dtype, mesh=mesh_of(mesh),
    )  # fmt: skip
    if sweep:
        models = {name: model_of(name, dropout) for name in (model.split(",") if model else SWEEP_MODELS)}
        rows = run_sweep(models, config, slice_of_pod, sequence_length, head_room, quiet=as_json)
        if as_json:
            print(json.dumps(rows, indent=2))
        raise typer.Exit(0 if any(row["fits"] for row in rows) else 1)
    name = model or "gpt2"
    report = check(
        name, model_of(name, dropout), config, slice_of_pod, sequence_length, head_room, hlo, False, target_length
    )
    raise typer.Exit(show(name, config, report, head_room, as_json))


def show(name: str, config: PretrainingConfig, report, head_room: float, as_json: bool) -> int:
    """Print a report; returns the exit status."""
    from jaxnlp.training.compile_check.report import advice

    if as_json:
        print(json.dumps({"model": name} | settings_of(config) | report.to_dict(), indent=2))
    else:
        print_report(name, config, report)
    if report.fits:
        return 0
    ways = "; ".join(advice(report, config))
    print(f"The step does not fit: {shortfall(report, head_room)}. Try: {ways}.", file=sys.stderr)
    return 1


def described_run(file: Path, overrides: list[str], dropout: bool):
    """(LazyModel, its name, PretrainingConfig, sequence length, whether rows hold several documents) of a run's file."""
    from duonlp.data import head_of
    from duonlp.runs import load_run
    from jaxnlp.training.model import LazyModel

    settings = load_run(file, overrides)
    if settings.name_or_path:
        from duonlp.checkpoints import open_checkpoint

        config = open_checkpoint(settings.name_or_path).transformer_config()
    else:
        from duonlp.checkpoints import resolve_config

        # What the tokenizer will fill in, as far as it is known before there is one.
        known = {"vocab_size": settings.tokenizer["vocab_size"]} if "vocab_size" in settings.tokenizer else {}
        config = resolve_config({**known, **settings.model}, {})
    config = config if dropout else config.without_dropout()
    model = LazyModel.from_config(config, head=head_of(settings.objective))
    return model, file.stem, settings.training, settings.block_length, settings.segment_ids


def mesh_of(text: str) -> dict[str, int]:
    """ "data=-1,fsdp=16" as a dict; raises InputError for what is no list of axes and numbers."""
    found = {}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if not equals or not size.strip().lstrip("-").isdigit() or axis.strip() in found:
            raise InputError(f"--mesh has {part!r}; write it as data=-1,fsdp=16,tensor=1, each axis once")
        found[axis.strip()] = int(size)
    return found


def model_of(name: str, dropout: bool):
    """A LazyModel by a preset's name or from a config.json."""
    from jaxnlp.training.compile_check.report import preset
    from jaxnlp.training.model import LazyModel

    if Path(name).suffix == ".json" or os.sep in name:
        try:
            described = json.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{name} cannot be read as a config.json: {error}") from error
    else:
        described = preset(name)
    from duonlp.checkpoints import resolve_config

    config = resolve_config(described, {})
    head = "seq2seq-lm" if config.decoder is not None else "causal-lm" if config.causal else "masked-lm"
    return LazyModel.from_config(config if dropout else config.without_dropout(), head=head)


def check(
    name, model, config: PretrainingConfig, slice_of_pod, sequence_length, head_room, hlo="", segment_ids=False,
    target_length=0,
):  # fmt: skip
    """Compile one step, with the time it takes shown on standard error."""
    from jaxnlp.training.compile_check.report import compile_step

    with progress(f"compiling {name} for {slice_of_pod.name}"):
        return compile_step(
            model, config, slice_of_pod, sequence_length, head_room, segment_ids=segment_ids,
            target_length=target_length or None, save_text=hlo or None,
        )  # fmt: skip


@contextmanager
def progress(what: str):
    """A line on standard error that shows how long something has been going on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        start = time.perf_counter()
        print(f"{what} ...", file=sys.stderr, flush=True)
        yield
        print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(what, total=None)
        yield


def run_sweep(
    models: dict, config: PretrainingConfig, slice_of_pod, sequence_length: int, head_room: float, quiet: bool
) -> list[dict]:
    """Every model with and without FSDP and rematerialisation: printed as one table, returned as dicts."""
    table, rows = Table(box=None, pad_edge=False, header_style="bold"), []
    for title, justify in SWEEP_COLUMNS:
        table.add_column(title, justify=justify, no_wrap=True)
    for name, model in models.items():
        for fsdp in SWEEP_FSDP:
            for remat in SWEEP_REMAT:
                one = replace(config, mesh={"data": -1, "fsdp": fsdp}, remat=remat)
                report = check(name, model, one, slice_of_pod, sequence_length, head_room)
                table.add_row(*sweep_row(name, one, report))
                rows.append({"model": name} | settings_of(one) | report.to_dict())
    if not quiet:
        chips = len(slice_of_pod.devices)
        wide_console().print(
            f"{slice_of_pod.name}, {chips} chips, {config.batch_size // chips} x {sequence_length} tokens a chip, "
            f"{config.dtype}, {config.optimizer}; GiB and milliseconds a chip and step",
            style="bold",
        )
        wide_console().print(table)
    return rows


SWEEP_COLUMNS = (
    ("model", "left"), ("fsdp", "right"), ("remat", "left"), ("fits", "left"), ("state", "right"), ("total", "right"),
    ("left", "right"), ("TFLOP", "right"), ("again", "right"), ("compute", "right"), ("memory", "right"),
    ("links", "right"), ("compiler", "right"), ("MFU <=", "right"), ("tokens/s <=", "right"), ("compiled in", "right"),
)  # fmt: skip


def sweep_row(name: str, config: PretrainingConfig, report) -> list[str]:
    """One line of the table of a sweep."""
    memory = report.memory
    start = [
        f"{name} {report.parameters / 1e6:,.0f}M", str(report.mesh["fsdp"]), config.remat, "yes" if report.fits else "NO",
        f"{(memory.parameters + memory.optimizer) / GIB:.2f}", f"{'' if memory.code else '> '}{memory.total / GIB:.2f}",
        f"{memory.head_room:.0%}",
    ]  # fmt: skip
    if report.flops is None:
        return [*start, *["-"] * 8, f"{report.compile_seconds:.0f} s"]
    compiler = report.compiler_seconds
    return [
        *start, f"{report.flops / 1e12:.2f}", f"{report.flops / report.model_flops - 1:.0%}",
        milliseconds(report.compute_seconds), milliseconds(report.memory_seconds),
        milliseconds(report.interconnect_seconds), "-" if compiler is None else milliseconds(compiler),
        f"{report.mfu_bound:.0%}", f"{report.tokens_per_second:,.0f}", f"{report.compile_seconds:.0f} s",
    ]  # fmt: skip


def wide_console() -> Console:
    """Standard output; a file or a pipe gets lines that do not wrap."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 150)


def settings_of(config: PretrainingConfig) -> dict:
    """What of the configuration a report depends on."""
    names = ("batch_size", "accumulation", "remat", "scan", "optimizer", "dtype")
    return {name: getattr(config, name) for name in names}


def milliseconds(seconds: float) -> str:
    """For a column of a table."""
    return f"{1000 * seconds:,.1f}"


def gib(size: int | None) -> str:
    """For a column of a table."""
    return "-" if size is None else f"{size / GIB:,.2f} GiB"


def shortfall(report, head_room: float) -> str:
    """By how much a step does not fit."""
    memory = report.memory
    over = memory.total - (1 - head_room) * memory.available
    return (
        f"it needs {gib(memory.total)} a chip of {gib(memory.available)}, of which {head_room:.0%} must stay free: "
        f"{gib(max(over, 0))} too much"
    )


def print_report(name: str, config: PretrainingConfig, report) -> None:
    """One step's report as tables."""
    console = wide_console()
    axes = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(f"{name} ({report.parameters / 1e6:,.0f}M parameters) on {report.topology}: {axes}", style="bold")
    console.print(
        f"{report.tokens:,} tokens a step, {config.dtype}, {config.optimizer}, remat {config.remat}, "
        f"accumulation {config.accumulation}; compiled in {report.compile_seconds:.0f} s"
    )
    memory = report.memory
    table = Table("memory a chip", "", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for title in ("parameters", "optimizer", "arguments", "outputs", "aliased", "temporaries", "code", "total"):
        table.add_row(title, gib(getattr(memory, title)))
    table.add_row("available", gib(memory.available))
    table.add_row("left", f"{memory.head_room:.1%}")
    console.print(table)
    if report.flops is None:
        return
    print_costs(console, report)


def print_costs(console: Console, report) -> None:
    """FLOPs, traffic and collectives, each with the time it takes at least."""
    table = Table("a chip and step", "", "at least", "", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:3]:
        column.justify = "right"
    again = report.flops / report.model_flops - 1
    compute, traffic = f"{report.flops / 1e12:.3f} TFLOP", f"{report.traffic / 1e9:.2f} GB"
    links = f"{sum(exchange.sent for exchange in report.exchanges) / 1e9:.3f} GB"
    table.add_row("matrix products", compute, f"{milliseconds(report.compute_seconds)} ms",
                  f"{again:+.1%} of what the model needs; XLA counts {report.xla_flops / 1e12:.3f}, each loop once")  # fmt: skip
    table.add_row("memory traffic", traffic, f"{milliseconds(report.memory_seconds)} ms",
                  f"XLA counts {report.xla_bytes / 1e9:.2f}, each loop once, vector memory too")  # fmt: skip
    table.add_row(
        "collectives", links, f"{milliseconds(report.interconnect_seconds)} ms", "sent, over the links along the group"
    )
    if report.compiler_seconds is not None:
        table.add_row(
            "all but collectives", "", f"{milliseconds(report.compiler_seconds)} ms", "the compiler's own estimate"
        )
    console.print(table)
    if report.exchanges:
        table = Table("collective", "axes", box=None, pad_edge=False, header_style="bold")
        for title in ("chips", "times", "arrays", "sent a chip", "at least"):
            table.add_column(title, justify="right")
        for each in report.exchanges:
            table.add_row(each.kind, each.axes, str(each.group), str(each.times), f"{each.bytes / 1e6:,.2f} MB",
                          f"{each.sent / 1e6:,.2f} MB", f"{milliseconds(each.seconds)} ms")  # fmt: skip
        console.print(table)
    if report.unknown_loops:
        console.print(f"{report.unknown_loops} loops count once: how often they run could not be read", style="yellow")
    console.print(
        f"A step takes {milliseconds(report.step_seconds)} ms or more, bound by {report.bound_by}: "
        f"MFU at most {report.mfu_bound:.1%}, at most {report.tokens_per_second:,.0f} tokens/s."
    )


if __name__ == "__main__":
    sys.exit(run(app, "compile_check"))
