"""Check whether a training step fits a pod and how fast it can be, on a machine without a TPU.

    python tpu_scripts/compile_check.py tpu_scripts/configs/codeparrot_xl.py --topology v5e:16x16
    python tpu_scripts/compile_check.py --topology v5e:16x16 --model gpt2-xl --mesh data=-1,fsdp=16 --remat full
    python tpu_scripts/compile_check.py --sweep

The trainer's step is compiled ahead of time for the pod's chips (`pip install "duonlp[jax,topology]"`). Exits with status 0
if it fits, 1 if it does not, and 2 for invalid input.
"""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ["JAX_PLATFORMS"] = "cpu"  # libtpu compiles, and must not look for chips
if __package__ in (None, ""):
    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root / "shared"), str(root)]  # run from a checkout that is not installed

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from duonlp.errors import InputError
from duonlp.training import PretrainingConfig
from duonlp.training.config import OPTIMIZERS, REMAT
from duonlp.util.console import plain_console
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object
from tpu_scripts._program import run

if TYPE_CHECKING:
    from jaxnlp.training.compile_check.report import StepReport
    from jaxnlp.training.compile_check.topology import Topology
    from jaxnlp.training.model import LazyModel

SWEEP_MODELS = ("codeparrot-small", "codeparrot")
SWEEP_FSDP = (1, 16)
SWEEP_REMAT = ("none", "full")
GIB = 2**30

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]", help="Run file, as for pretrain.py; replaces the options that describe a step."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of RUN to override, such as training.remat=full."),
    ] = None,
    topology: Annotated[str, typer.Option(help="Slice: v5e:AxB, v6e:AxB, v5p:AxBxC or v4:AxBxC.")] = "v5e:16x16",
    model: Annotated[
        str,
        typer.Option(
            help="gpt2 (default), gpt2-medium, gpt2-large, gpt2-xl, codeparrot-small, codeparrot, or a config.json."
        ),
    ] = "",
    mesh: Annotated[
        str, typer.Option(help="Chips along each mesh axis, such as data=-1,fsdp=16,tensor=1.")
    ] = "data=-1",
    batch_per_chip: Annotated[int, typer.Option(help="Rows of a batch per chip.")] = 4,
    sequence_length: Annotated[int, typer.Option(help="Tokens per row, or per source of an encoder-decoder.")] = 1024,
    target_length: Annotated[
        int, typer.Option(help="Tokens per target of an encoder-decoder; 0 for the source's.")
    ] = 0,
    accumulation: Annotated[int, typer.Option(help="Gradient accumulation: microbatches per step.")] = 1,
    remat: Annotated[str, typer.Option(help=f"Rematerialization: {', '.join(REMAT)}.")] = "none",
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Scan over layers, which compiles one layer for all.")
    ] = True,
    optimizer: Annotated[str, typer.Option(help=f"Optimizer: {', '.join(OPTIMIZERS)}.")] = "adamw",
    dtype: Annotated[str, typer.Option(help="Compute dtype: bfloat16 or float32.")] = "bfloat16",
    dropout: Annotated[
        bool, typer.Option("--dropout/--no-dropout", help="Apply the dropout in the model's config.")
    ] = True,
    head_room: Annotated[float, typer.Option(help="Fraction of a chip's memory that must stay free.")] = 0.05,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Check GPT-2 small and XL, with and without FSDP and rematerialization.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")] = False,
    hlo: Annotated[str, typer.Option(help="File for the compiled program's text.")] = "",
) -> None:
    """Check whether a training step fits a pod and how fast it can be, on a machine without a TPU."""
    from jaxnlp.training.compile_check.topology import topology as describe

    if batch_per_chip < 1:
        raise InputError(f"--batch-per-chip is {batch_per_chip}; give at least 1 row")
    if not 0 <= head_room < 1:
        raise InputError(f"--head-room is {head_room}; give a fraction of at least 0 and below 1")
    if sweep and hlo:
        raise InputError("--hlo writes one program and --sweep compiles several; give one of the two")
    slice_of_pod = describe(topology)
    if run_file is not None:
        if model or sweep:
            raise InputError(f"{run_file} names the model; leave out --model and --sweep")
        lazy_model, name, config, length, segment_ids = read_run(run_file, overrides or [], dropout)
        report = check(name, lazy_model, config, slice_of_pod, length, head_room, hlo, segment_ids, target_length)
        raise typer.Exit(show(name, config, report, head_room, as_json))
    config = PretrainingConfig(
        steps=1, batch_size=batch_per_chip * len(slice_of_pod.devices), accumulation=accumulation, remat=remat, scan=scan,
        optimizer=optimizer, dtype=dtype, mesh=parse_mesh(mesh),
    )  # fmt: skip
    if sweep:
        models = {name: load_model(name, dropout) for name in (model.split(",") if model else SWEEP_MODELS)}
        rows = run_sweep(models, config, slice_of_pod, sequence_length, head_room, quiet=as_json)
        if as_json:
            print(to_json(rows, indent=2))
        raise typer.Exit(0 if any(row["fits"] for row in rows) else 1)
    name = model or "gpt2"
    report = check(
        name, load_model(name, dropout), config, slice_of_pod, sequence_length, head_room, hlo, False, target_length
    )
    raise typer.Exit(show(name, config, report, head_room, as_json))


def show(name: str, config: PretrainingConfig, report: "StepReport", head_room: float, as_json: bool) -> int:
    """Print a report and return the exit status."""
    from jaxnlp.training.compile_check.report import advice

    if as_json:
        print(to_json({"model": name} | settings_of(config) | report.to_dict(), indent=2))
    else:
        print_report(name, config, report)
    if report.fits:
        return 0
    remedies = "; ".join(advice(report, config))
    print(f"The step does not fit: {shortfall(report, head_room)}. Try: {remedies}.", file=sys.stderr)
    return 1


def read_run(file: Path, overrides: list[str], dropout: bool) -> tuple["LazyModel", str, PretrainingConfig, int, bool]:
    """Return the model of a run file, its name, its training settings, its block length and whether it uses segment ids."""
    from duonlp.data import head_of
    from duonlp.runs import load_run
    from jaxnlp.training.model import LazyModel

    settings = load_run(file, overrides)
    if settings.name_or_path:
        from duonlp.checkpoints import open_checkpoint

        config = open_checkpoint(settings.name_or_path).transformer_config()
    else:
        from duonlp.checkpoints import resolve_config

        # The tokenizer, which does not exist yet, determines the vocabulary size unless the model does.
        sizes = {"vocab_size": settings.tokenizer["vocab_size"]} if "vocab_size" in settings.tokenizer else {}
        config = resolve_config({**sizes, **settings.model}, {})
    config = config if dropout else config.without_dropout()
    model = LazyModel.from_config(config, head=head_of(settings.objective))
    return model, file.stem, settings.training, settings.block_length, settings.segment_ids


def parse_mesh(text: str) -> dict[str, int]:
    """Parse a mesh: "data=-1,fsdp=16" -> {"data": -1, "fsdp": 16}.

    Raises:
        InputError: The text is not a list of axes with sizes, or names an axis twice.
    """
    mesh: dict[str, int] = {}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if not equals or not size.strip().lstrip("-").isdigit() or axis.strip() in mesh:
            raise InputError(f"--mesh has {part!r}; write it as data=-1,fsdp=16,tensor=1, each axis once")
        mesh[axis.strip()] = int(size)
    return mesh


def load_model(name: str, dropout: bool) -> "LazyModel":
    """Return the model of a preset's name or of a config.json.

    Raises:
        InputError: The preset is unknown, or the file cannot be read.
    """
    from duonlp.checkpoints import resolve_config
    from jaxnlp.training.compile_check.report import preset
    from jaxnlp.training.model import LazyModel

    if Path(name).suffix == ".json" or os.sep in name:
        settings = read_json_object(name, advice="give a model's config.json")
    else:
        settings = preset(name)
    config = resolve_config(settings, {})
    head = "seq2seq-lm" if config.decoder is not None else "causal-lm" if config.causal else "masked-lm"
    return LazyModel.from_config(config if dropout else config.without_dropout(), head=head)


def check(
    name: str,
    model: "LazyModel",
    config: PretrainingConfig,
    slice_of_pod: "Topology",
    sequence_length: int,
    head_room: float,
    hlo: str = "",
    segment_ids: bool = False,
    target_length: int = 0,
) -> "StepReport":
    """Compile one step, and show the elapsed time on standard error meanwhile.

    Args:
        name: Name of the model, for the progress line.
        model: The model.
        config: Settings of the step, whose batch_size is that of the whole slice.
        slice_of_pod: The slice to compile for.
        sequence_length: Tokens per row.
        head_room: Fraction of a chip's memory that must stay free.
        hlo: File for the compiled program's text; "" for none.
        segment_ids: Whether rows hold several documents.
        target_length: Tokens per target of an encoder-decoder; 0 for `sequence_length`.
    """
    from jaxnlp.training.compile_check.report import compile_step

    with progress(f"compiling {name} for {slice_of_pod.name}"):
        return compile_step(
            model, config, slice_of_pod, sequence_length, head_room, segment_ids=segment_ids,
            target_length=target_length or None, save_text=hlo or None,
        )  # fmt: skip


@contextmanager
def progress(task: str) -> Generator[None, None, None]:
    """Show a task's elapsed time on standard error while it runs."""
    console = plain_console(stderr=True)
    if not console.is_terminal:
        start = time.perf_counter()
        print(f"{task} ...", file=sys.stderr, flush=True)
        yield
        print(f"{task}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(task, total=None)
        yield


def run_sweep(
    models: dict[str, "LazyModel"],
    config: PretrainingConfig,
    slice_of_pod: "Topology",
    sequence_length: int,
    head_room: float,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Check every model with and without FSDP and rematerialization; print a table and return its rows as dicts."""
    table, rows = Table(box=None, pad_edge=False, header_style="bold"), []
    for title, justify in SWEEP_COLUMNS:
        table.add_column(title, justify=justify, no_wrap=True)
    for name, model in models.items():
        for fsdp in SWEEP_FSDP:
            for remat in SWEEP_REMAT:
                variant = replace(config, mesh={"data": -1, "fsdp": fsdp}, remat=remat)
                report = check(name, model, variant, slice_of_pod, sequence_length, head_room)
                table.add_row(*sweep_row(name, variant, report))
                rows.append({"model": name} | settings_of(variant) | report.to_dict())
    if not quiet:
        chips = len(slice_of_pod.devices)
        wide_console().print(
            f"{slice_of_pod.name}, {chips} chips, {config.batch_size // chips} x {sequence_length} tokens per chip, "
            f"{config.dtype}, {config.optimizer}; GiB and milliseconds per chip and step",
            style="bold",
        )
        wide_console().print(table)
    return rows


SWEEP_COLUMNS = (
    ("model", "left"), ("fsdp", "right"), ("remat", "left"), ("fits", "left"), ("state", "right"), ("total", "right"),
    ("free", "right"), ("TFLOP", "right"), ("recompute", "right"), ("compute", "right"), ("memory", "right"),
    ("links", "right"), ("compiler", "right"), ("MFU <=", "right"), ("tokens/s <=", "right"), ("compiled in", "right"),
)  # fmt: skip


def sweep_row(name: str, config: PretrainingConfig, report: "StepReport") -> list[str]:
    """Return a row of the sweep's table."""
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
    """Return a console on standard output that does not wrap lines of a file or pipe."""
    return plain_console(width=None if sys.stdout.isatty() else 150)


def settings_of(config: PretrainingConfig) -> dict[str, Any]:
    """Return the settings that a report depends on."""
    names = ("batch_size", "accumulation", "remat", "scan", "optimizer", "dtype")
    return {name: getattr(config, name) for name in names}


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds for a table; None as "-"."""
    return "-" if seconds is None else f"{1000 * seconds:,.1f}"


def gib(size: float | None) -> str:
    """Format bytes as GiB for a table; None as "-"."""
    return "-" if size is None else f"{size / GIB:,.2f} GiB"


def shortfall(report: "StepReport", head_room: float) -> str:
    """Describe by how much a step does not fit."""
    memory = report.memory
    over = memory.total - (1 - head_room) * memory.available
    return (
        f"it needs {gib(memory.total)} of {gib(memory.available)} per chip, of which {head_room:.0%} must stay free, "
        f"that is {gib(max(over, 0))} too much"
    )


def print_report(name: str, config: PretrainingConfig, report: "StepReport") -> None:
    """Print a step's report as tables."""
    console = wide_console()
    axes = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    console.print(f"{name} ({report.parameters / 1e6:,.0f}M parameters) on {report.topology}: {axes}", style="bold")
    console.print(
        f"{report.tokens:,} tokens per step, {config.dtype}, {config.optimizer}, remat {config.remat}, "
        f"accumulation {config.accumulation}; compiled in {report.compile_seconds:.0f} s"
    )
    memory = report.memory
    table = Table("memory per chip", "", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for title in ("parameters", "optimizer", "arguments", "outputs", "aliased", "temporaries", "code", "total"):
        table.add_row(title, gib(getattr(memory, title)))
    table.add_row("available", gib(memory.available))
    table.add_row("free", f"{memory.head_room:.1%}")
    console.print(table)
    if report.flops is None:
        return
    print_costs(console, report)


def print_costs(console: Console, report: "StepReport") -> None:
    """Print FLOPs, memory traffic and collectives with lower bounds of their times; `report.flops` must be known."""
    table = Table("per chip and step", "", "at least", "", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:3]:
        column.justify = "right"
    assert report.flops is not None and report.traffic is not None  # set together, by a step that compiled
    assert report.xla_flops is not None and report.xla_bytes is not None
    extra = report.flops / report.model_flops - 1
    compute, traffic = f"{report.flops / 1e12:.3f} TFLOP", f"{report.traffic / 1e9:.2f} GB"
    links = f"{sum(exchange.sent for exchange in report.exchanges) / 1e9:.3f} GB"
    table.add_row(
        "matrix products", compute, f"{milliseconds(report.compute_seconds)} ms",
        f"{extra:+.1%} relative to the model; XLA reports {report.xla_flops / 1e12:.3f}, counting loops once",
    )  # fmt: skip
    table.add_row(
        "memory traffic", traffic, f"{milliseconds(report.memory_seconds)} ms",
        f"XLA reports {report.xla_bytes / 1e9:.2f}, counting loops once and vector memory too",
    )  # fmt: skip
    table.add_row(
        "collectives", links, f"{milliseconds(report.interconnect_seconds)} ms", "sent over the links along each group"
    )
    if report.compiler_seconds is not None:
        table.add_row(
            "all but collectives", "", f"{milliseconds(report.compiler_seconds)} ms", "the compiler's estimate"
        )
    console.print(table)
    if report.exchanges:
        table = Table("collective", "axes", box=None, pad_edge=False, header_style="bold")
        for title in ("chips", "times", "arrays", "sent per chip", "at least"):
            table.add_column(title, justify="right")
        for exchange in report.exchanges:
            table.add_row(
                exchange.kind, exchange.axes, str(exchange.group), str(exchange.times), f"{exchange.bytes / 1e6:,.2f} MB",
                f"{exchange.sent / 1e6:,.2f} MB", f"{milliseconds(exchange.seconds)} ms",
            )  # fmt: skip
        console.print(table)
    if report.unknown_loops:
        console.print(
            f"{report.unknown_loops} loops are counted once, because their trip counts are unknown", style="yellow"
        )
    console.print(
        f"A step takes at least {milliseconds(report.step_seconds)} ms, bound by {report.bound_by}: "
        f"at most {report.mfu_bound:.1%} MFU and {report.tokens_per_second:,.0f} tokens/s."
    )


if __name__ == "__main__":
    sys.exit(run(app, "compile_check"))
