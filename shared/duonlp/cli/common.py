"""Options and helpers shared by all commands."""

import contextlib
import functools
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Any

import typer

from duonlp.errors import DuonlpError, InputError
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json
from duonlp.util.suggestions import nearest

PIPELINE_OPTIONS = ("batch_size", "dtype", "revision")
"""Options that every pipeline takes besides those of its task."""

REMEDIES = {
    "report": "fix that record or remove it",
    "encoding": "pass the file's encoding with --encoding, such as --encoding cp1252 or --encoding utf-16",
    "quoting": "pass --quoting if its fields are quoted, or --no-quoting if double quotes are characters like any other",
    "overwrite": "give another folder, or pass --overwrite to replace the model in it",
    "kind": "give files of one of these kinds",
    "text_column": "pass the text column with --text-column",
    "text_template": "name existing columns in --text-template",
    "label_column": "pass the label column with --label-column",
    "by": "name another column with --fold-by, such as --fold-by context",
    "candidate_labels": 'pass them with --labels, such as --labels "politics, sports"',
    "calibration": "pass typical texts with --data, a few hundred suffice",
    "scheme": "quantize the original, or restore float weights with duonlp quantize MODEL OUT --dequantize",
    "document_field": "name the document column with --document-field",
    "summary_field": "name the summary column with --summary-field",
}
"""Advice for the command line, by the Python argument of an InputError."""

cli_option = functools.partial(typer.Option, show_default=False)
"""A command-line option whose help text states its default."""

Json = Annotated[bool, cli_option("--json", help="Print only JSON on standard output.")]
Debug = Annotated[bool, cli_option("--debug", help="Show the traceback of an error.", is_eager=True)]
Model = Annotated[
    str, cli_option("--model", "-m", help="Checkpoint: a folder in Hugging Face layout or a Hub id (required).")
]
Framework = Annotated[
    str, cli_option("--framework", "-f", help="tf or jax (default: the installed one, jax if both are).")
]
TaskOption = Annotated[
    list[str] | None,
    cli_option("--option", "-o", metavar="KEY=VALUE", help="Any other option of the task; repeatable."),
]
SettingsFile = Annotated[
    str, cli_option("--config", "-c", help="TOML file of settings; flags and --option override it.")
]
SettingsOption = Annotated[
    list[str] | None,
    cli_option("--option", "-o", metavar="KEY=VALUE", help="Any other setting, such as fit.beta1=0.95; repeatable."),
]


def describe_error(error: DuonlpError) -> str:
    """Return an error as one line, with advice in terms of the command line's flags."""
    text = error.explain(REMEDIES) if isinstance(error, InputError) else str(error)
    return " ".join(text.split())


def parsed_options(pairs: Sequence[str], paths: bool = False) -> dict[str, Any]:
    """Parse KEY=VALUE pairs: ["top_k=3", "truncation=true"] -> {"top_k": 3, "truncation": True}.

    Args:
        pairs: Texts KEY=VALUE. A value is JSON, True, False or None; anything else is a string.
        paths: Whether a key may be a path, such as fit.learning_rate.

    Raises:
        InputError: A text is not KEY=VALUE.
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
            options[key] = words[text] if text in words else parse_json(text)
        except ValueError:
            options[key] = text
    return options


def merge_options(flags: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the flags a user gave with the pairs of --option.

    Args:
        flags: Option name to value; None, False and [] mean that the flag was not given.
        options: The parsed --option pairs.

    Raises:
        InputError: An option is given both ways.
    """
    flags = {name: value for name, value in flags.items() if value is not None and value is not False and value != []}
    for name in flags.keys() & options.keys():
        raise InputError(f"{name} is given twice, by its flag and by --option {name}=...; give one of the two")
    return flags | dict(options)


@contextlib.contextmanager
def suggest_options(task: str, options: Mapping[str, Any]) -> Generator[None, None, None]:
    """Add "did you mean ...?" to an InputError about an option that a task's pipeline does not have."""
    try:
        yield
    except InputError as error:
        from dataclasses import fields

        from duonlp.tasks import get_task

        allowed = [*(field.name for field in fields(get_task(task).Options)), *PIPELINE_OPTIONS]
        unknown = [name for name in options if name not in allowed and repr(name) in error.message]
        hint = "".join(nearest(name, allowed) for name in unknown)
        raise InputError(f"{error.message}{hint}", remedy=error.remedy, argument=error.argument) from error


def with_line_ends(text: str) -> str:
    r"""Return a text in which \n and \t, as typed in a shell, are a line end and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def need_model(model: str) -> None:
    """Raise InputError if no model was given."""
    if not model:
        raise InputError(
            "no model given; pass --model with a folder in Hugging Face layout, or a Hub id such as org/name"
        )


def print_json(value: Any) -> None:
    """Print a report as JSON on standard output."""
    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")  # the stream's own escapes are not JSON's
    print(to_json(value, ensure_ascii=escaped, indent=2))
