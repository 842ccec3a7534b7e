"""What every command of `duonlp` has in common: the framework, quiet streams, JSON, KEY=VALUE options, and choices."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from duonlp.errors import InputError
from duonlp.util.suggestions import nearest

PIPELINE_OPTIONS = ("batch_size", "dtype", "revision")
"""What every pipeline takes besides the options of its task."""
REMEDIES = (
    (", or pass report=CleaningReport() to count and drop such records", ", or remove it"),
    ("label_column", "--label-column"),
    ("text_column", "--text-column"),
)
"""What read_labelled_texts tells a caller to do, and what a person at the command line can."""

Json = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)]
Framework = Annotated[
    str, typer.Option("--framework", "-f", help="tf or jax; by default the one that is installed, jax if both are.")
]
SettingsFile = Annotated[
    str, typer.Option("--config", "-c", help="A TOML file of settings; flags and --option win over it.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any other setting, such as fit.beta1=0.95; repeat it."),
]


@contextlib.contextmanager
def remedies():
    """While it lasts, an InputError says what can be done at the command line, rather than in Python."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for said, instead in REMEDIES:
            text = text.replace(said, instead)
        if text == str(error):
            raise
        raise InputError(text) from error


def parsed_options(pairs: Sequence[str], paths: bool = False) -> dict[str, Any]:
    """["top_k=3", "truncation=true"] -> {"top_k": 3, "truncation": True}: values are JSON, or else text.

    Args:
        paths: whether keys may be paths, such as fit.learning_rate.

    Raises:
        InputError: something that is not KEY=VALUE.
    """
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not all(part.isidentifier() for part in (key.split(".") if paths else [key])):
            example = "fit.beta1=0.95" if paths else "top_k=3"
            raise InputError(f"--option {pair!r} is not KEY=VALUE; write for example --option {example}")
        words = {"True": True, "False": False, "None": None}
        try:
            options[key] = words[text] if text in words else json.loads(text)
        except ValueError:
            options[key] = text
    return options


def option_hint(error: Exception, options: dict, task) -> str:
    """The end of a message: the nearest option of a task's pipeline to one that the error complains about."""
    from dataclasses import fields

    known = [*(f.name for f in fields(task.Options)), *PIPELINE_OPTIONS]
    return "".join(nearest(name, known) for name in options if name not in known and repr(name) in str(error))


def need_model(model: str) -> None:
    """Raises InputError where no model was given."""
    if not model:
        raise InputError(
            "no model given; pass --model with a folder in Hugging Face layout, or a Hub id such as org/name"
        )


def print_json(value: Any) -> None:
    """A report on standard output."""
    print(json.dumps(value, default=plain_value, ensure_ascii=False, indent=2))


def plain_value(value: Any) -> Any:
    """NumPy and paths for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
