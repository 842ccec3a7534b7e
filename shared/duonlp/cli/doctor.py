"""``duonlp doctor``: what models will run on here, what is missing, and what slows them down."""

from typing import TYPE_CHECKING

from duonlp.cli.common import Debug, Json, print_json
from duonlp.util.console import plain_console

if TYPE_CHECKING:
    from duonlp.doctor import Diagnosis


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Report versions, processor, devices, kernels, missing extras, and settings that make models slow."""
    from duonlp.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        print_diagnosis(diagnosis)


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """Print a diagnosis as tables."""
    from rich.table import Table
    from rich.text import Text

    console = plain_console()

    def section(title: str) -> Table:
        console.print(Text(title, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        return table

    machine, memory = diagnosis.machine, diagnosis.memory
    table = section("machine")
    table.add_row("processor", machine["processor"] or "unknown")
    quota = "" if diagnosis.cpu_quota is None else f", {diagnosis.cpu_quota:g} on average in this container"
    load = "" if machine["load"] is None else f"; {machine['load']:g} processes running"
    table.add_row("cores", f"{machine['cores']}{quota}{load}")
    features = "unknown on this system" if diagnosis.features is None else " ".join(diagnosis.features) or "none"
    table.add_row("instruction sets", features)
    sizes = [f"{size / 2**30:,.1f} GB {name}" for name, size in memory.items() if size is not None]
    table.add_row("memory", ", ".join(sizes) or "unknown")
    table.add_row("system", f"{machine['system']}, Python {machine['python']}")
    console.print(table)
    table = section("versions")
    for name, version in machine["versions"].items():
        table.add_row(name, version)
    console.print(table)
    for engine in diagnosis.engines:
        table = section(f"{engine.package}, framework {engine.framework}")
        if engine.problem:
            table.add_row("does not run" if engine.installed else "missing", Text(engine.problem, "yellow"))
        else:
            table.add_row("devices", ", ".join(engine.devices))
            table.add_row("threads", "one per core" if engine.threads is None else str(engine.threads))
            for name, kernel in engine.kernels.items():
                table.add_row(name, kernel)
        console.print(table)
    if diagnosis.extras:
        table = section("extras")
        for extra in diagnosis.extras:
            if extra.missing:
                table.add_row(extra.name, Text(f"lacks {', '.join(extra.missing)}; {extra.command}", "yellow"))
            else:
                table.add_row(extra.name, Text("installed", "green"))
        console.print(table)
    if machine["environment"]:
        table = section("environment")
        for name, value in machine["environment"].items():
            table.add_row(name, value)
        console.print(table)
    for warning in diagnosis.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning), soft_wrap=True)
    if not diagnosis.warnings:
        console.print(Text("Nothing here slows models down.", "green"))
