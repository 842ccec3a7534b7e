"""The body of `duonlp summarize`: text files in, a summary of each out."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from duonlp.errors import InputError

LONG = ("chunk", "truncate", "error")
"""What may become of documents longer than the model reads; the first is the default."""


@dataclass(frozen=True)
class Document:
    """A text and where it is from: a path, or "-" for standard input."""

    file: str
    text: str


def read_documents(files: Sequence[str]) -> list[Document]:
    """The documents to summarize, each file one; standard input for "-", and where no file is named.

    Raises:
        InputError: there is nothing to read, or a file cannot be read, is no text, or holds none.
    """
    if not files and (sys.stdin is None or sys.stdin.isatty()):
        raise InputError("no document; name text files, or - and give a text on standard input")
    files = list(files) or ["-"]
    if files.count("-") > 1:
        raise InputError("- is named more than once; standard input can be read once")
    return [Document(file, _read(file)) for file in files]


def _read(file: str) -> str:
    name = "standard input" if file == "-" else repr(file)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read {name}: {why}; give a text file") from None
    if not text.strip():
        raise InputError(f"{name} holds no text; leave it out, or give it some words")
    return text


def run(
    package, framework: str, model: str, documents: Sequence[Document], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Summarize documents.

    Args:
        package: tfnlp or jaxnlp.
        framework: its name for the report.
        model: a folder in Hugging Face layout, or a Hub id.
        options: of the summarization pipeline; ``long_documents`` is the first of LONG where nothing says otherwise.

    Returns:
        the report that --json prints: a result for each document, {"file", "summary_text"} and, with return_chunks, "chunks".

    Raises:
        InputError: an unknown option, a value that is not allowed, a document that is too long; it names the file.
        CheckpointError: the checkpoint cannot be found or read.
    """
    options = dict(options)
    if "truncation" not in options:
        options.setdefault("long_documents", LONG[0])
    if options.get("return_tensors") or (options.get("num_return_sequences") or 1) > 1:
        raise InputError(
            "duonlp summarize prints one text for each document; for ids or several texts use duonlp run summarization"
        )
    pipe = package.pipeline("summarization", model, **options)
    try:
        results = pipe([document.text for document in documents])
    except InputError as error:
        message = re.sub(r"\binput (\d+)\b", lambda match: repr(documents[int(match[1])].file), str(error))
        raise InputError(message) from error
    found = [{"file": document.file} | result for document, result in zip(documents, results, strict=True)]
    return {"model": model, "framework": framework, "options": options, "results": found}


def write(report: Mapping[str, Any], out: TextIO) -> None:
    """The summaries, each below its file's name where there are several; with chunks, what was written of the parts first."""
    for number, result in enumerate(report["results"]):
        if len(report["results"]) > 1:
            print(f"{'' if number == 0 else chr(10)}==> {result['file']} <==", file=out)
        for level, chunks in enumerate(result.get("chunks", ()), 1):
            for place, chunk in enumerate(chunks, 1):
                print(f"[round {level}, part {place} of {len(chunks)}] {chunk['summary_text']}", file=out)
        print(result["summary_text"], file=out)
    out.flush()
