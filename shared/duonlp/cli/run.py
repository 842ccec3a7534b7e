"""``duonlp run``: a task's pipeline on texts from arguments, a file or standard input."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from duonlp.cli.common import (
    Debug,
    Framework,
    Json,
    Model,
    TaskOption,
    cli_option,
    need_model,
    parsed_options,
    print_json,
    suggest_options,
)
from duonlp.cli.training import Encoding
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.reading import parse_json, read_text_file
from duonlp.util.suggestions import choice

INPUT_WIDTH = 48
"""Characters of an input shown in the table of results."""

WRITTEN = {"generated_text", "summary_text", "translation_text"}
"""Result keys of text that a model wrote, which is printed as it is."""


def run(
    task: Annotated[
        str, typer.Argument(help="Task, such as text-classification, text-generation or translation_en_to_fr.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Inputs; a JSON object gives an input of several parts."),
    ] = None,
    model: Model = "",
    framework: Framework = "",
    input_file: Annotated[
        str,
        cli_option("--input", "-i", help="Input file: .json, .jsonl, or one text per line; - for standard input."),
    ] = "",
    encoding: Encoding = None,
    labels: Annotated[
        str, cli_option(help="Comma-separated labels of zero-shot-classification, or a JSON list of them.")
    ] = "",
    option: TaskOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a task on texts from the arguments, a file or standard input."""
    from duonlp.tasks import ALIASES, TASKS, get_task

    get_task(task if task.startswith("translation_") else choice("task", task, [*TASKS, *ALIASES]))
    need_model(model)
    options = run_options(task, labels, option or [])
    items = read_inputs(texts or [], input_file, encoding or None)
    with quiet_stdout(), suggest_options(task, options):
        package, name = load_package(framework)
        # An iterator gives one result per input; for a list of one input, some tasks return its result bare.
        results = list(package.pipeline(task, model, **options)(iter(items)))
    if as_json:
        print_json({"task": task, "model": model, "framework": name, "results": results})
    else:
        print_results(items, results)


def run_options(task: str, labels: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Return the options of a task's pipeline from --labels and the pairs of --option.

    Raises:
        InputError: A pair is invalid, labels are given twice, or the task takes none.
    """
    options = parsed_options(pairs)
    if labels and task != "zero-shot-classification":
        raise InputError(f"--labels has no effect on {task}; leave it out, or run zero-shot-classification")
    if labels and "candidate_labels" in options:
        raise InputError("candidate_labels is given twice, by --labels and by --option; give one of the two")
    candidates = {"candidate_labels": parse_labels(labels)} if labels else {}
    return options | candidates


def parse_labels(text: str) -> Any:
    """Return the list of labels that a text is in JSON, for labels with commas; else the text."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return parse_json(text)
    return text


def read_inputs(texts: Sequence[str], input_file: str, encoding: str | None = None) -> list[Any]:
    """Return the inputs from the arguments, a file, or standard input unless that is a terminal.

    Args:
        texts: The arguments.
        input_file: The file; "-" for standard input, "" for none.
        encoding: Its encoding; None for UTF-8.

    Raises:
        InputError: There are no inputs, they are given twice, or the file cannot be read or parsed.
    """
    if texts and input_file:
        raise InputError("texts were given both as arguments and with --input; give one of the two")
    if not texts and not input_file and sys.stdin is not None and not sys.stdin.isatty():
        input_file = "-"
    if texts:
        return [parse_item(text) for text in texts]
    if not input_file:
        raise InputError("no input; give texts as arguments, --input FILE, or lines on standard input")
    content = read_text_file(input_file, f"--input {input_file!r}", "give a text, .json or .jsonl file", encoding)
    if "\0" in content:
        raise InputError(
            f"--input {input_file!r} is binary: it has a NUL character at {content.index(chr(0))}; give a text, .json or "
            ".jsonl file"
        )
    lines = [line for line in content.splitlines() if line.strip()]
    try:
        if input_file.endswith(".json"):
            items = parse_json(content)
            items = items if isinstance(items, list) else [items]
        elif input_file.endswith(".jsonl"):
            items = [parse_json(line) for line in lines]
        else:
            items = [parse_item(line) for line in lines]
    except ValueError as error:
        raise InputError(
            f"--input {input_file!r} is not valid JSON ({error}); fix it, or give one text per line"
        ) from None
    if not items:
        name = "standard input" if input_file == "-" else repr(input_file)
        raise InputError(f"{name} is empty; give texts as arguments, --input FILE, or lines on standard input")
    return items


def parse_item(text: str) -> Any:
    """Parse a JSON object, for tasks with inputs of several parts such as a question and its context; else return the text."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return parse_json(text)
    return text


def print_results(items: Sequence[Any], results: Sequence[Any]) -> None:
    """Print all results as one table, or as plain text if a model wrote them."""
    from rich.table import Table

    console = plain_console()
    rows = [(item, row) for item, result in zip(items, results, strict=True) for row in _rows(result)]
    if rows and all(len(row) == 1 and WRITTEN.issuperset(row) for _, row in rows):
        for _, row in rows:
            console.print(*row.values(), soft_wrap=True)
        return
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    table = Table("input", *columns, box=None, pad_edge=False, header_style="bold")
    previous = None
    for item, row in rows:
        label = "" if item is previous else _shorten(item)
        table.add_row(label, *(_format(row[key]) if key in row else "" for key in columns))
        previous = item
    console.print(table)


def _rows(result: Any) -> list[dict[str, Any]]:
    """Return the rows of a result: one for a dict, several for a list of dicts (one empty row if none), else one value.

    Labels with scores, as of zero-shot classification, are one row each.
    """
    import numpy as np

    if isinstance(result, Mapping) and {"labels", "scores"} <= set(result):
        return [{"label": label, "score": score} for label, score in zip(result["labels"], result["scores"])]
    if isinstance(result, Mapping):
        return [dict(result)]
    if isinstance(result, list) and all(isinstance(part, (Mapping, list)) for part in result):
        if all(isinstance(part, Mapping) for part in result):
            return [dict(part) for part in result] or [{}]
        if any(isinstance(part, Mapping) for inner in result for part in inner):
            return [row for part in result for row in _rows(part)]
    array = np.asarray(result)
    first = ", ".join(f"{value:.4f}" for value in array.ravel()[:4])
    return [{"shape": str(list(array.shape)), "values": first + (", ..." if array.size > 4 else "")}]


def _shorten(item: Any) -> str:
    text = " | ".join(str(part) for part in item.values()) if isinstance(item, Mapping) else str(item)
    text = " ".join(text.split())
    return text if len(text) <= INPUT_WIDTH else text[: INPUT_WIDTH - 3] + "..."


def _format(value: Any) -> str:
    import numpy as np

    return f"{value:.4f}" if isinstance(value, (float, np.floating)) else str(value)
