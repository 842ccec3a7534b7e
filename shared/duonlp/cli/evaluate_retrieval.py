"""``duonlp evaluate retrieval``: retrievers, a reader and both together, on questions whose contexts are the documents."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

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
from duonlp.cli.retrieval_parts import BM25, Ranking, check_threshold, load_encoder, load_ranker, make_retriever
from duonlp.cli.training import Encoding, Quoting
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from duonlp.data.questions import Questions
    from duonlp.retrieval import Collection, PipelineScores, Retriever, RetrieverScores
    from duonlp.typing import Engine

TITLE = "title"


def retrieval(
    data: Annotated[str, cli_option(help="Questions: SQuAD JSON, SubjQA CSV or a Hub id (required).")] = "",
    split: Annotated[str, cli_option(help="Split of the data, if it has several.")] = "",
    more_documents: Annotated[
        list[str] | None, cli_option(help="Further questions whose contexts are documents, too; repeatable.")
    ] = None,
    retriever: Annotated[
        list[str] | None,
        cli_option(help="bm25, a sentence encoder, QUESTION,CONTEXT or bm25+ENCODER; repeatable (default: bm25)."),
    ] = None,
    ranker: Ranking = "",
    model: Annotated[
        str, cli_option("--model", "-m", help="Reader: a question-answering checkpoint (default: only retrieval).")
    ] = "",
    framework: Framework = "",
    k: Annotated[str, cli_option("--k", help="Numbers of documents to score (default 1,3,5,10,20).")] = "1,3,5,10,20",
    top_k: Annotated[int, cli_option(help="Documents that the reader reads (default 10).")] = 10,
    filter_by: Annotated[str, cli_option(help='"title": search only the documents of a question\'s own title.')] = "",
    threshold: Annotated[
        float | None,
        cli_option(help="Null gap above which the answer is empty (default: the one tuned in training, or 0)."),
    ] = None,
    right: Annotated[float, cli_option(help="F1 from which an answer is right in the split (default 0.5).")] = 0.5,
    limit: Annotated[int, cli_option(help="Evaluate only N questions, evenly spaced (default: all).")] = 0,
    encoding: Encoding = None,
    quoting: Quoting = None,
    confidence: Annotated[float, cli_option(help="Confidence level of the intervals (default 0.95).")] = 0.95,
    resamples: Annotated[int, cli_option(help="Bootstrap resamples for the intervals (default 1000).")] = 1000,
    seed: Annotated[int, cli_option(help="Seed of the resamples (default 0).")] = 0,
    plot: Annotated[str, cli_option(help="Plot recall and mAP over k to a .png, .svg or .pdf file.")] = "",
    option: TaskOption = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate retrievers on questions with known contexts, and a reader on what the first one finds."""
    settings = Settings(
        data, split, tuple(more_documents or ()), tuple(retriever or (BM25,)), ranker, model, parse_numbers(k), top_k, filter_by,
        threshold, right, limit, encoding or "", quoting, confidence, resamples, seed, plot, parsed_options(option or []),
    )  # fmt: skip
    with quiet_stdout(), suggest_options("question-answering", settings.options):
        report = evaluate(settings, framework)
    if as_json:
        print_json(report.to_dict())
    else:
        report.print(sys.stdout)


@dataclass(frozen=True)
class Settings:
    """Settings of ``duonlp evaluate retrieval``; see its options.

    Raises:
        InputError: A setting is missing or out of range.
    """

    data: str
    split: str = ""
    more_documents: tuple[str, ...] = ()
    retrievers: tuple[str, ...] = (BM25,)
    ranker: str = ""
    model: str = ""
    k: tuple[int, ...] = (1, 3, 5, 10, 20)
    top_k: int = 10
    filter_by: str = ""
    threshold: float | None = None
    right: float = 0.5
    limit: int = 0
    encoding: str = ""
    quoting: bool | None = None
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    plot: str = ""
    options: Any = None

    def __post_init__(self) -> None:
        from duonlp.metrics.bootstrap import check_settings
        from duonlp.util.pictures import check_picture_file, require_matplotlib

        if not self.data:
            raise InputError("no questions; pass --data with SQuAD JSON, SubjQA CSV or rows with SQuAD's columns")
        if self.top_k < 1 or self.limit < 0:
            name, value = ("--top-k", self.top_k) if self.top_k < 1 else ("--limit", self.limit)
            raise InputError(f"{name} is {value}; it must be at least {int(self.top_k < 1)}")
        if self.filter_by:
            choice("--filter-by", self.filter_by, [TITLE])
        if not 0 < self.right <= 1:
            raise InputError(f"--right is {self.right}; it must be an F1 above 0 and at most 1")
        check_threshold(self.threshold)
        if repeated := next((name for name in self.retrievers if self.retrievers.count(name) > 1), ""):
            raise InputError(f"--retriever {repeated!r} is given more than once")
        if self.options and not self.model:
            raise InputError("--option is for the reader, but no --model is given")
        check_settings(self.confidence, self.resamples, self.seed)
        if self.plot:
            check_picture_file(Path(self.plot))
            require_matplotlib("scores are plotted")


@dataclass(frozen=True)
class Report:
    """What ``duonlp evaluate retrieval`` reports."""

    settings: Settings
    retrieval: "RetrieverScores"
    answers: "PipelineScores | None"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        answers = {} if self.answers is None else {"answers": self.answers.to_dict()}
        return {"settings": asdict(self.settings), "retrieval": self.retrieval.to_dict(), **answers}

    def print(self, out: TextIO) -> None:
        """Print the tables."""
        console = plain_console(file=out)
        groups = [group for group, count in self.retrieval.counts.items() if count]
        if self.retrieval.counts[groups[0]] == self.retrieval.counts[groups[-1]]:
            groups = groups[-1:]
        for group in groups:
            console.print(self.retrieval.table(group))
            console.print()
        if self.answers is not None:
            console.print(self.answers.table())
            console.print(f"\nAnswerable questions, an answer being right from F1 {self.answers.right:g}:")
            console.print(self.answers.split_table())
            if total := self.retrieval.counts["all"] - len(self.answers.outcomes):
                gap = self.settings.threshold
                console.print(f"Unanswerable questions left without an answer (null gap above {gap:g}): "
                              f"{self.answers.withheld} of {total}")  # fmt: skip
        if self.settings.plot:
            console.print(f"Plot: {self.settings.plot}")


def evaluate(settings: Settings, framework: str = "") -> Report:
    """Read the questions, index their contexts, and evaluate what the settings name.

    Args:
        settings: The settings.
        framework: tf or jax; "" for the installed one. None is loaded for BM25 alone.

    Raises:
        InputError: Data or settings are invalid, or a model has not been trained for its part.
        CheckpointError: A checkpoint cannot be found or read.
        MissingExtraError: A library is not installed.
    """
    from duonlp.retrieval import (
        ExtractiveQA,
        RerankingRetriever,
        documents_of,
        evaluate_pipeline,
        evaluate_retrievers,
        item_filters,
    )
    from duonlp.retrieval.reader import load_reader

    questions = read(settings.data, settings, settings.split)
    collection = documents_of(questions, *(read(source, settings) for source in settings.more_documents))
    if settings.limit and settings.limit < len(questions):
        questions = spread(questions, settings.limit)
    needs_models = settings.model or settings.ranker or any(name != BM25 for name in settings.retrievers)
    package = load_package(framework)[0] if needs_models else None
    reader = load_reader(package, settings.model, options=settings.options) if package and settings.model else None
    threshold = settings.threshold
    if threshold is None:
        threshold = 0.0 if reader is None else reader.null_threshold
    settings = replace(settings, threshold=threshold)
    ranker = load_ranker(package, settings.ranker) if package else None
    named = make_retrievers(package, settings.retrievers, collection)
    retrievers = dict(zip(labels(settings.retrievers), named.values(), strict=True))
    filters = item_filters(questions) if settings.filter_by else None
    intervals = {"confidence": settings.confidence, "resamples": settings.resamples, "seed": settings.seed}
    systems: dict[str, Retriever] = dict(retrievers)
    if ranker is not None:
        systems |= {f"{name}, ranked": RerankingRetriever(found, ranker) for name, found in retrievers.items()}
    scores = evaluate_retrievers(systems, questions, collection, settings.k, filters=filters, **intervals)
    if settings.plot:
        scores.plot(settings.plot, "answerable" if scores.counts["answerable"] else "all")
    answers = None
    if reader is not None:
        first = next(iter(retrievers))
        first = systems[first if ranker is None else f"{first}, ranked"]
        answers = evaluate_pipeline(
            ExtractiveQA(first, reader), questions, collection, top_k=settings.top_k, filters=filters,
            threshold=threshold, right=settings.right, **intervals,
        )  # fmt: skip
    return Report(settings, scores, answers)


def make_retrievers(
    package: "Engine | None", names: tuple[str, ...], collection: "Collection"
) -> dict[str, "Retriever"]:
    """Return the retrievers of names, each over a store with its own embeddings."""
    from duonlp.retrieval import MemoryStore

    stores: dict[str, tuple[MemoryStore, Any]] = {}
    retrievers = {}
    for name in names:
        model = name.removeprefix(f"{BM25}+")
        if model not in stores:
            encoder = load_encoder(package, model) if package is not None and model != BM25 else None
            store = MemoryStore()
            store.write_documents(collection.documents)
            if encoder is not None:
                store.update_embeddings(encoder)
            stores[model] = store, encoder
        retrievers[name] = make_retriever(name, *stores[model], fill=True)
    return retrievers


def labels(names: Sequence[str]) -> list[str]:
    """Return short names of retrievers: those of models without their folders, unless two would be the same."""
    short = ["+".join(os.path.basename(part.rstrip("/")) or part for part in name.split("+")) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def read(source: str, settings: Settings, split: str = "") -> "Questions":
    """Read questions."""
    from duonlp.data.questions import read_questions

    return read_questions(source, split or None, encoding=settings.encoding or None, quoting=settings.quoting)


def spread(questions: "Questions", count: int) -> "Questions":
    """Return a number of questions, evenly spaced."""
    from duonlp.data.questions import Questions

    rows = [questions[i * len(questions) // count] for i in range(count)]
    return Questions(rows, questions.name, questions.dropped)


def parse_numbers(text: str) -> tuple[int, ...]:
    """Parse the values of k, sorted and without duplicates: "10,1" -> (1, 10).

    Raises:
        InputError: The text is not a list of positive integers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--k is {text!r}; give positive integers separated by commas, such as 1,5,10")
    return tuple(sorted({int(part) for part in parts}))
