"""``duonlp ask``: questions answered from files, with the place of each answer."""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from duonlp.cli.common import (
    Debug,
    Framework,
    Json,
    TaskOption,
    cli_option,
    parsed_options,
    print_json,
    suggest_options,
)
from duonlp.cli.retrieval_parts import (
    BM25,
    Encoding,
    Ranking,
    check_threshold,
    load_encoder,
    load_generator,
    load_ranker,
    make_retriever,
    parse_filters,
)
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.process import say

if TYPE_CHECKING:
    from duonlp.retrieval import Answer, Document, MemoryStore
    from duonlp.retrieval.files import IndexReport
    from duonlp.typing import Engine

PROBLEMS_SHOWN = 5
"""Unreadable files and rows that are named."""

CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")
"""Characters that a terminal obeys, without spaces and line ends."""

CANDIDATES = 5
"""Passages found for each one that is read, if a ranker sorts them."""


def ask(
    question: Annotated[
        str | None, typer.Argument(help="Question (default: lines of standard input, or one after the other).")
    ] = None,
    documents: Annotated[
        str, cli_option("--documents", "-d", help="Folder or file of texts, Markdown, JSONL, JSON or CSV (required).")
    ] = "",
    model: Annotated[
        str, cli_option("--model", "-m", help="Reader: a question-answering checkpoint, a folder or Hub id.")
    ] = "",
    generator: Annotated[
        str, cli_option(help="Generator that writes the answer from the passages, in place of --model.")
    ] = "",
    framework: Framework = "",
    retriever: Annotated[
        str, cli_option(help="bm25, a sentence encoder, DPR's QUESTION,CONTEXT or bm25+ENCODER (default bm25).")
    ] = BM25,
    ranker: Ranking = "",
    top_k: Annotated[int, cli_option("--top-k", "-k", help="Number of answers (default 3).")] = 3,
    passages: Annotated[int, cli_option(help="Number of passages that are read (default 10).")] = 10,
    threshold: Annotated[
        float | None,
        cli_option(
            help="Null gap above which the passages are said to have no answer (default: the one tuned in training, or 0)."
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        cli_option("--filter", metavar="KEY=VALUE", help="Only passages of this file or column value; repeatable."),
    ] = None,
    index: Annotated[str, cli_option(help="Folder of the index (default: below ~/.cache/duonlp/indexes).")] = "",
    words: Annotated[int, cli_option(help="Maximum number of words in a passage (default 200).")] = 200,
    overlap: Annotated[int, cli_option(help="Words that passages of one paragraph share (default 40).")] = 40,
    text_column: Annotated[str, cli_option(help="Text column of tables (default: the first with a usual name).")] = "",
    encoding: Encoding = "",
    option: TaskOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer questions from files, and show where the answers are."""
    settings = Settings(
        documents, model, generator, retriever, ranker, top_k, passages, threshold, tuple(filters or ()), index, words, overlap,
        text_column, encoding, parsed_options(option or []),
    )  # fmt: skip
    questions = read_questions(question)
    task = "question-answering" if settings.model else "text-generation"
    with quiet_stdout(), suggest_options(task, settings.options if settings.model else {}):
        package, name = load_package(framework)
        asker = Asker(package, settings)
    results = []
    for text in questions:
        try:
            with quiet_stdout():
                result = asker.ask(text)
        except InputError as error:
            if question is not None or not questions.interactive:
                raise
            say(str(error))
            continue
        results.append(result)
        if not as_json:
            print_result(result, sys.stdout, titled=question is None and not questions.interactive)
    if as_json:
        report = {"framework": name, "settings": settings.shown, "index": asker.index, "results": results}
        print_json(report)


@dataclass(frozen=True)
class Settings:
    """Settings of ``duonlp ask``; see its options.

    Raises:
        InputError: A setting is missing or out of range.
    """

    documents: str
    model: str = ""
    generator: str = ""
    retriever: str = BM25
    ranker: str = ""
    top_k: int = 3
    passages: int = 10
    threshold: float | None = None
    filters: tuple[str, ...] = ()
    index: str = ""
    words: int = 200
    overlap: int = 40
    text_column: str = ""
    encoding: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from duonlp.retrieval.files import PassageSettings

        if not self.documents:
            raise InputError("no documents; pass --documents with a folder or file of texts")
        if bool(self.model) == bool(self.generator):
            given = "both --model and --generator" if self.model else "neither --model nor --generator"
            raise InputError(
                f"got {given}; pass --model with a checkpoint that finds answers (a question-answering head), or --generator "
                "with one that writes them"
            )
        for name in ("top_k", "passages"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        check_threshold(self.threshold)
        if not self.retriever:
            raise InputError(f"--retriever is empty; give {BM25} or a model")
        parse_filters(self.filters)  # raises
        PassageSettings(self.words, self.overlap, self.text_column, self.encoding)  # raises

    @property
    def shown(self) -> dict[str, Any]:
        """The settings, for the report."""
        return {name: value for name, value in vars(self).items() if value not in ("", (), {}, None)}


class Questions:
    """The questions of a call: an argument, lines of standard input, or what is typed at a prompt.

    Attributes:
        interactive: Whether they are typed.
    """

    def __init__(self, source: Iterator[str], interactive: bool):
        self.source, self.interactive = source, interactive

    def __iter__(self) -> Iterator[str]:
        return self.source


def read_questions(question: str | None) -> Questions:
    """Return the questions.

    Raises:
        InputError: The argument is empty, or standard input has no question.
    """
    if question is not None:
        if not question.strip():
            raise InputError(
                "the question is empty; ask something, such as duonlp ask 'How long does the battery last?'"
            )
        return Questions(iter([question]), False)
    if sys.stdin is not None and sys.stdin.isatty():
        return Questions(_typed(), True)
    try:
        lines = [line.strip() for line in sys.stdin] if sys.stdin is not None else []
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text; give the question as an argument") from None
    if not any(lines):
        raise InputError("no question; give one as an argument, or one per line on standard input")
    return Questions(filter(None, lines), False)


def _typed() -> Iterator[str]:
    """Yield the questions that are typed until an empty line or the end of input."""
    while True:
        print("question> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            if not line:
                print(file=sys.stderr)
            return
        yield line.strip()


class Asker:
    """Answers questions: the models and the index of ``duonlp ask``.

    Attributes:
        index: What was indexed, for the report.
    """

    def __init__(self, package: "Engine", settings: Settings):
        """Load the models and bring the index up to date.

        Args:
            package: tfnlp or jaxnlp.
            settings: The settings.

        Raises:
            InputError: There are no documents, a model has not been trained for its part, or a setting is invalid.
            CheckpointError: A checkpoint cannot be found or read.
            MissingExtraError: A library is not installed.
        """
        from duonlp.retrieval import ExtractiveQA
        from duonlp.retrieval.files import document_files
        from duonlp.retrieval.reader import load_reader

        self.settings, self.filters = settings, parse_filters(settings.filters)
        document_files(
            settings.documents, Path(settings.index) if settings.index else None
        )  # raises before a model loads
        self.reader = self.generator = self.qa = None
        if settings.model:
            self.reader = load_reader(package, settings.model, options=settings.options)
        else:
            self.generator = load_generator(package, settings.generator, dict(settings.options))
        encoder, self.ranker = load_encoder(package, settings.retriever), load_ranker(package, settings.ranker)
        store, self.index = open_index(settings, encoder)
        self.retriever = make_retriever(settings.retriever, store, encoder)
        if self.reader is not None:
            self.qa = ExtractiveQA(self.retriever, self.reader, self.ranker)

    def ask(self, question: str) -> dict[str, Any]:
        """Return the answers to a question, as --json prints them.

        Returns:
            {"query", "no_answer": whether the null gap is above the threshold, "no_ans_gap", "answers", "documents"}, each answer
            and document with its "file" and "line"; or with a generator {"query", "answer", "citations", "documents"}.

        Raises:
            InputError: The question is invalid.
        """
        settings = self.settings
        found = settings.passages * (CANDIDATES if self.ranker is not None else 1)
        if self.qa is not None:
            params: dict[str, dict[str, Any]] = {
                "Retriever": {"top_k": found, "filters": self.filters}, "Reader": {"top_k": settings.top_k},
            }  # fmt: skip
            if self.ranker is not None:
                params["Ranker"] = {"top_k": settings.passages}
            result = self.qa.run(question, params)
            documents = {document.id: document for document in result["documents"]}
            answers = [self._located(answer, documents[answer.document_id]) for answer in result["answers"]]
            gap, threshold = result["no_ans_gap"], settings.threshold
            if threshold is None:
                threshold = self.qa.reader.null_threshold
            return {
                "query": question, "no_answer": gap is None or -gap > threshold, "no_ans_gap": gap, "answers": answers,
                "documents": [self._shown(document) for document in result["documents"]],
            }  # fmt: skip
        assert self.generator is not None
        passages = self.retriever.retrieve([question], top_k=found, filters=self.filters)[0]
        if self.ranker is not None and passages:
            passages = self.ranker.rank(question, passages, top_k=settings.passages)
        if not passages:
            return {"query": question, "answer": "", "citations": [], "documents": []}
        written = self.generator.generate(question, passages)
        documents = [self._shown(document) for document in written.documents]
        return {
            "query": question,
            "answer": written.answer,
            "citations": list(written.citations),
            "documents": documents,
        }

    def _located(self, answer: "Answer", document: "Document") -> dict[str, Any]:
        """Return an answer as a dict with its file and line."""
        from duonlp.retrieval.files import line_of

        place = {"file": self._file(document), "line": line_of(document, answer.start)}
        return answer.to_dict() | place

    def _shown(self, document: "Document") -> dict[str, Any]:
        place = {"file": self._file(document), "line": document.meta["line"]}
        return {"id": document.id, "score": document.score, **place, "content": document.content, "meta": document.meta}

    def _file(self, document: "Document") -> str:
        """Return the path of a passage's file, as the user named the folder."""
        source = self.settings.documents
        return os.path.join(source, document.meta["file"]) if os.path.isdir(source) else source


def open_index(settings: Settings, encoder: Any) -> tuple["MemoryStore", dict[str, Any]]:
    """Bring the index of the documents up to date.

    Args:
        settings: The settings.
        encoder: The encoder of the retriever; None for none.

    Returns:
        The store of passages, and {"folder", "passages", "added", "changed", "deleted", "problems"}.

    Raises:
        InputError: There are no documents, nothing in them can be read, or the index is another one's.
        StorageError: The index cannot be written.
    """
    from duonlp.retrieval.files import IndexFolder, PassageSettings, default_index_folder

    place = settings.index or default_index_folder(settings.documents, encoder.name if encoder is not None else BM25)
    passage = PassageSettings(settings.words, settings.overlap, settings.text_column, settings.encoding)
    index = IndexFolder(place, settings.documents, settings=passage, encoder=encoder)
    with Bars() as bars:
        report = index.update(
            progress=bars.show, on_wait=lambda: say("waiting for another process that writes the index")
        )
    if not report.passages:
        first = f": {report.problems[0]}" if report.problems else ""
        raise InputError(f"{settings.documents!r} has no text that can be read{first}; give other documents")
    report_problems(report)
    names = ("passages", "added", "changed", "deleted", "problems")
    return index.store, {"folder": str(place), **{name: getattr(report, name) for name in names}}


def report_problems(report: "IndexReport") -> None:
    """Print what could not be read on standard error."""
    for problem in report.problems[:PROBLEMS_SHOWN]:
        say(f"not read: {problem}")
    if len(report.problems) > PROBLEMS_SHOWN:
        say(f"not read: {len(report.problems) - PROBLEMS_SHOWN} more; --json lists them all")


class Bars:
    """Progress bars of the steps of an update, one after the other."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.step = ""

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)

    def show(self, step: str, done: int, total: int) -> None:
        """Show how much of a step is done."""
        from duonlp.util.console import Progress

        if step != self.step:
            self.__exit__()
            self.step, self.bar = step, Progress(total, None, f"indexing {step}")
            self.bar.__enter__()
        self.bar.advance(done - self.bar.done)


# -- output ------------------------------------------------------------------------------------------------------------


def print_result(result: Mapping[str, Any], out: TextIO, titled: bool = False) -> None:
    """Print the answers to a question, each with its place and, highlighted, in its context.

    Args:
        result: As :meth:`Asker.ask` returns it.
        out: Where to print.
        titled: Whether to print the question, too.
    """
    from rich.text import Text

    console = plain_console(file=out, soft_wrap=True)
    if titled:
        console.print(f"==> {one_line(result['query'])} <==", style="bold")
    if not result["documents"]:
        console.print("No passage matches the question (or the filter); use other words, or another --retriever.")
    elif "answer" in result:
        console.print(printable(result["answer"]) or "The model wrote no answer.", style="bold")
        for number, document in enumerate(result["documents"], 1):
            if number in result["citations"]:
                console.print(f"  [{number}] {one_line(document['file'])}:{document['line']}")
    else:
        print_answers(result, console, Text)
    if titled:
        console.print()


def print_answers(result: Mapping[str, Any], console: Any, Text: Any) -> None:
    """Print extracted answers."""
    if not result["answers"]:
        console.print("No answer in the passages that match the question.")
    elif result["no_answer"]:
        console.print("The model prefers no answer in each of the passages; its best guesses are:")
    for number, answer in enumerate(result["answers"], 1):
        console.print(
            Text.assemble(
                f"{number}. ", (one_line(answer["answer"]), "bold green"), f"  {answer['score']:.2f}  ",
                (f"{one_line(answer['file'])}:{answer['line']}", "dim"),
            )
        )  # fmt: skip
        start = answer["start"] - answer["context_start"]
        end, context = start + len(answer["answer"]), answer["context"]
        before, after = one_line(context[:start]), one_line(context[end:])
        console.print(Text.assemble("   ", before, (one_line(context[start:end]), "bold green"), after))


def printable(text: str) -> str:
    """Return a text without control characters, by which a document could control the terminal."""
    return CONTROLS.sub("", text)


def one_line(text: str) -> str:
    """Return a text with a space for each run of spaces and line ends, and without control characters."""
    text = printable(text)
    parts = " ".join(text.split())
    return " " * text[:1].isspace() + parts + " " * (text[-1:].isspace() and bool(parts))
