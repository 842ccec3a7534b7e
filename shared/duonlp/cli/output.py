"""What `duonlp` shows: results, parity reports and models as tables on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from duonlp import architectures
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import ConfigError
from duonlp.parameters import count_parameters

INPUT_WIDTH = 48

WRITTEN = {"generated_text", "summary_text", "translation_text"}
"""What tasks that write call their text."""


def print_results(items: Sequence, results: Sequence) -> None:
    """One table of all results; texts that a model wrote are printed as they are."""
    console = Console()
    entries = [(item, entry) for item, result in zip(items, results, strict=True) for entry in _entries(result)]
    if entries and all(len(entry) == 1 and WRITTEN.issuperset(entry) for _, entry in entries):
        for _, entry in entries:
            console.print(*entry.values(), markup=False, highlight=False, soft_wrap=True)
        return
    columns = list(dict.fromkeys(key for _, entry in entries for key in entry))
    table = Table("input", *columns, box=None, pad_edge=False, header_style="bold")
    previous = None
    for item, entry in entries:
        shown = "" if item is previous else escape(_short(item))
        table.add_row(shown, *(escape(_value(entry[key])) if key in entry else "" for key in columns))
        previous = item
    console.print(table)


def _entries(result: Any) -> list[dict]:
    """A result as rows: a dict is one, a list of dicts is several (or none was found), anything else is one value."""
    if isinstance(result, Mapping):
        return [dict(result)]
    if isinstance(result, list) and all(isinstance(part, (Mapping, list)) for part in result):
        if all(isinstance(part, Mapping) for part in result):
            return [dict(part) for part in result] or [{}]
        if any(isinstance(part, Mapping) for inner in result for part in inner):
            return [entry for part in result for entry in _entries(part)]
    array = np.asarray(result)
    first = ", ".join(f"{value:.4f}" for value in array.ravel()[:4])
    return [{"shape": str(list(array.shape)), "values": first + (", ..." if array.size > 4 else "")}]


def _short(item: Any) -> str:
    text = " | ".join(str(part) for part in item.values()) if isinstance(item, Mapping) else str(item)
    text = " ".join(text.split())
    return text if len(text) <= INPUT_WIDTH else text[: INPUT_WIDTH - 3] + "..."


def _value(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (float, np.floating)) else str(value)


def print_report(report) -> None:
    """A parity Report as tables."""
    console = Console()
    console.print(f"{report.checkpoint}  ({report.model_type}, {report.head})", style="bold", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("output", "shape", "compared"):
        table.add_column(name, no_wrap=True)
    for name in ("largest difference", "relative", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        verdict = "[green]ok[/]" if row.ok else "[bold red]differs[/]"
        compared = f"{row.framework} - {row.reference}"
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.output, shape, compared, f"{row.difference:.2e}", f"{row.relative:.2e}", verdict)
    console.print(table)
    if report.generated:
        same = "[green]the same[/]" if report.same_ids else "[bold red]not the same[/]"
        count = max(map(len, report.generated.values()))
        console.print(f"{count} tokens generated greedily: {same} in {', '.join(report.generated)}")
    for name, seconds in report.forward_seconds.items():
        console.print(f"{name}: loaded in {report.load_seconds[name]:.1f} s, forward {1000 * seconds:.1f} ms")
    for name, why in report.skipped.items():
        console.print(f"{name} was left out: {why}", style="yellow", markup=False)
    verdict = "[green]agree[/]" if report.ok else "[bold red]do not agree[/]"
    console.print(f"They {verdict} (tolerance {report.tolerance:g}).")


def describe_families() -> dict[str, Any]:
    """Family -> head -> {"class", "parameters"}, for the family's default sizes."""
    return {name: _heads(architectures.config_from_hf({"model_type": name})) for name in architectures.families()}


def describe_checkpoint(name_or_path: str) -> dict[str, Any]:
    """What a checkpoint is: its sizes, its head, and every head it could be loaded with."""
    checkpoint = open_checkpoint(name_or_path)
    config = checkpoint.transformer_config()
    return {
        "checkpoint": name_or_path,
        "model_type": config.model_type,
        "head": checkpoint.head,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.attention.num_heads,
        "vocab_size": config.embedding.vocab_size,
        "max_length": config.max_length,
        "labels": list(config.labels),
        "heads": _heads(config),
    }


def _heads(config) -> dict[str, dict]:
    found = {}
    for head, name in architectures.get(config.model_type).heads(config.model_type).items():
        try:
            count = count_parameters(config, head)
        except ConfigError:  # a head that this configuration cannot have, such as three labels for spans
            continue
        found[head] = {"class": name, "parameters": count}
    return found


def print_families(found: dict[str, Any]) -> None:
    """:func:`describe_families` as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("family", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("heads")
    for name, heads in found.items():
        size = heads["base"]["parameters"] if "base" in heads else max(h["parameters"] for h in heads.values())
        table.add_row(name, count(size), ", ".join(heads))
    console = Console()
    console.print(table)
    console.print("Parameters of the base model at the family's default sizes.", style="dim")


def print_checkpoint(found: dict[str, Any]) -> None:
    """:func:`describe_checkpoint` as text and a table."""
    console = Console()
    console.print(
        f"{found['checkpoint']}: {found['model_type']}, {found['layers']} layers of {found['hidden_size']} with "
        f"{found['attention_heads']} attention heads, {found['vocab_size']} tokens, length up to {found['max_length']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("head", "Transformers class"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for head, row in found["heads"].items():
        name = f"[bold]{head} (saved)[/]" if head == found["head"] else head
        table.add_row(name, row["class"], count(row["parameters"]))
    console.print(table)


def count(number: int) -> str:
    """1234567 -> "1.2M"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
