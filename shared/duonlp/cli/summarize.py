"""``duonlp summarize``: text files in, a summary of each out."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli.common import (
    Debug,
    Framework,
    Json,
    Model,
    TaskOption,
    cli_option,
    merge_options,
    need_model,
    parsed_options,
    print_json,
    suggest_options,
)
from duonlp.cli.training import Encoding
from duonlp.errors import InputError
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.reading import read_text_file
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from duonlp.typing import Engine

LONG = ("chunk", "truncate", "error")
"""Values of --long; the first is the default."""


def summarize(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|-...", help="Text files, one document each; - for standard input."),
    ] = None,
    model: Model = "",
    framework: Framework = "",
    long: Annotated[
        str,
        cli_option(
            help="Documents longer than the model reads: chunk (summarize in parts), truncate or error (default chunk)."
        ),
    ] = "",
    max_length: Annotated[
        int | None, cli_option(help="Maximum length of a summary in tokens (default: the model's).")
    ] = None,
    min_length: Annotated[
        int | None, cli_option(help="Minimum length of a summary in tokens (default: the model's).")
    ] = None,
    beams: Annotated[
        int | None, cli_option(help="Number of beams; 1 is greedy decoding (default: the model's).")
    ] = None,
    language: Annotated[str, cli_option(help="Language of the documents, for splitting sentences (default en).")] = "",
    chunks: Annotated[
        bool, cli_option("--chunks", help="Also print the summaries of a long document's parts.")
    ] = False,
    encoding: Encoding = None,
    option: TaskOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Summarize documents of any length."""
    need_model(model)
    flags = {
        "long_documents": choice("--long", long, LONG) if long else None, "max_length": max_length,
        "min_length": min_length, "num_beams": beams, "language": language or None, "return_chunks": chunks,
    }  # fmt: skip
    options = merge_options(flags, parsed_options(option or []))
    documents = read_documents(files or [], encoding or None)
    with quiet_stdout(), suggest_options("summarization", options):
        package, name = load_package(framework)
        report = summarize_documents(package, name, model, documents, options)
    if as_json:
        print_json(report)
    else:
        write_summaries(report, sys.stdout)


@dataclass(frozen=True)
class Document:
    """A text and its source: a path, or "-" for standard input."""

    file: str
    text: str


def read_documents(files: Sequence[str], encoding: str | None = None) -> list[Document]:
    """Read the documents to summarize, one per file; standard input for "-" or if no file is named.

    Args:
        files: Text files.
        encoding: Their encoding; None for UTF-8.

    Raises:
        InputError: There is nothing to read, or a file cannot be read, is not UTF-8 text, or is empty.
    """
    if not files and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError("no document; name text files, or - and give a text on standard input")
    files = list(files) or ["-"]
    if files.count("-") > 1:
        raise InputError("- is given more than once; standard input can be read only once")
    return [Document(file, _read(file, encoding)) for file in files]


def _read(file: str, encoding: str | None) -> str:
    name = "standard input" if file == "-" else repr(file)
    text = read_text_file(file, name, "give a text file", encoding)
    if not text.strip():
        raise InputError(f"{name} is empty; give a document with text")
    return text


def summarize_documents(
    package: "Engine", framework: str, model: str, documents: Sequence[Document], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Summarize documents.

    Args:
        package: tfnlp or jaxnlp.
        framework: The framework's name, for the report.
        model: A folder in Hugging Face layout, or a Hub id.
        documents: The documents to summarize.
        options: Options of the summarization pipeline; ``long_documents`` defaults to the first of LONG.

    Returns:
        The report that --json prints, with a result per document: {"file", "summary_text"} and, with return_chunks,
        "chunks".

    Raises:
        InputError: An option is unknown or has an invalid value, or a document is too long (the message names its file).
        CheckpointError: The checkpoint cannot be found or read.
    """
    options = dict(options)
    if "truncation" not in options:
        options.setdefault("long_documents", LONG[0])
    if options.get("return_tensors") or (options.get("num_return_sequences") or 1) > 1:
        raise InputError(
            "duonlp summarize prints one text per document; for token ids or several texts use duonlp run summarization"
        )
    pipe = package.pipeline("summarization", model, **options)
    try:
        results = pipe([document.text for document in documents])
    except InputError as error:
        message = re.sub(r"\binput (\d+)\b", lambda match: repr(documents[int(match[1])].file), str(error))
        raise InputError(message) from error
    rows = [{"file": document.file} | result for document, result in zip(documents, results, strict=True)]
    return {"model": model, "framework": framework, "options": options, "results": rows}


def write_summaries(report: Mapping[str, Any], out: TextIO) -> None:
    """Write the summaries, each below its file's name if there are several and after its chunks if they were returned."""
    for number, result in enumerate(report["results"]):
        if len(report["results"]) > 1:
            print(f"{'' if number == 0 else chr(10)}==> {result['file']} <==", file=out)
        for level, chunks in enumerate(result.get("chunks", ()), 1):
            for place, chunk in enumerate(chunks, 1):
                print(f"[round {level}, part {place} of {len(chunks)}] {chunk['summary_text']}", file=out)
        print(result["summary_text"], file=out)
    out.flush()
