"""``duonlp models``: the model families, or one checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from duonlp.cli.common import Debug, Json, print_json
from duonlp.errors import ConfigError
from duonlp.util.console import plain_console

if TYPE_CHECKING:
    from duonlp.config import TransformerConfig


def models(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint to describe: a folder or a Hub id (default: list all families).")
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List model families with their heads and sizes, or describe one checkpoint."""
    if checkpoint:
        description = describe_checkpoint(checkpoint)
    else:
        description = describe_families()
    if as_json:
        print_json(description)
    elif checkpoint:
        print_checkpoint(description)
    else:
        print_families(description)


def describe_families() -> dict[str, Any]:
    """Return {family: {head: {"class", "parameters"}}} for each family's default sizes."""
    from duonlp import architectures

    return {name: _heads(architectures.config_from_hf({"model_type": name})) for name in architectures.families()}


def describe_checkpoint(name_or_path: str) -> dict[str, Any]:
    """Return a checkpoint's sizes, its head, and every head it can be loaded with.

    Raises:
        CheckpointError: The checkpoint cannot be found or read.
    """
    from duonlp.architectures._pruning import layer_sizes
    from duonlp.checkpoints.checkpoint import open_checkpoint
    from duonlp.quantization import scheme_of

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
        "inputs": {spec.name: str(spec) for spec in config.inputs},
        "labels": list(config.labels),
        "quantization": scheme_of(config.quantization),
        "pruned_layers": [list(sizes) for sizes in layer_sizes(config.layers)] if config.unpruned_sizes else None,
        "heads": _heads(config),
    }


def _heads(config: "TransformerConfig") -> dict[str, dict[str, Any]]:
    from duonlp import architectures
    from duonlp.parameters import count_parameters

    heads = {}
    for head, class_name in architectures.get(config.model_type).heads(config.model_type).items():
        try:
            count = count_parameters(config, head)
        except ConfigError:  # the configuration rules this head out, such as three labels for question answering
            continue
        heads[head] = {"class": class_name, "parameters": count}
    return heads


def print_families(families: Mapping[str, Any]) -> None:
    """Print :func:`describe_families` as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("family", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("heads")
    for name, heads in families.items():
        size = heads["base"]["parameters"] if "base" in heads else max(h["parameters"] for h in heads.values())
        table.add_row(name, format_count(size), ", ".join(heads))
    console = plain_console()
    console.print(table)
    console.print("Parameters of the base model at the family's default sizes.", style="dim")


def print_checkpoint(description: Mapping[str, Any]) -> None:
    """Print :func:`describe_checkpoint` as text and a table."""
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    console.print(
        f"{description['checkpoint']}: {description['model_type']}, {description['layers']} layers of width "
        f"{description['hidden_size']} with {description['attention_heads']} attention heads, "
        + (
            f"{description['vocab_size']} tokens in the vocabulary, up to {description['max_length']} positions"
            if description["vocab_size"]
            else "reads " + ", ".join(f"{name} {axes}" for name, axes in description["inputs"].items())
        )
        + (f"; quantized: {description['quantization']}" if description["quantization"] else "")
        + (
            f"; pruned, heads and feed-forward rows by layer: {', '.join(f'{h}, {n}' for h, _, n in pruned)}"
            if (pruned := description["pruned_layers"])
            else ""
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("head", "Transformers class"):
        table.add_column(name, no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for head, row in description["heads"].items():
        name = Text(f"{head} (saved)", style="bold") if description["head"] == head else head
        table.add_row(name, row["class"], format_count(row["parameters"]))
    console.print(table)


def format_count(number: int) -> str:
    """Format a count: 1234567 -> "1.2M"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
