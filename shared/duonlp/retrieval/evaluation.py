"""Evaluate question answering over documents: what retrievers find, what a reader makes of it, and which of them misses what.

The documents are the contexts of questions in SQuAD's form. The relevant document of a question is its own context: the one in
which annotators looked for the answer. Other documents may answer it as well, so that scores are a lower bound.

Questions without an answer count in two ways. For retrieval, either only answerable questions count, or all of them, each with
its own context as the relevant document. For answers, either only answerable questions count and the best text is scored, or
all of them do: "" is then the right answer to an unanswerable question, and the prediction wherever the null gap is above a
threshold.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duonlp.errors import InputError
from duonlp.metrics.bootstrap import Score
from duonlp.metrics.question_answering import SquadScores, squad_scores, token_f1
from duonlp.metrics.retrieval import check_k, retrieval_scores
from duonlp.retrieval.document import Document, Filters, Retriever
from duonlp.retrieval.question_answering import ExtractiveQA
from duonlp.retrieval.reader import Reader

if TYPE_CHECKING:
    from rich.table import Table

ITEM = "item_id"
"""Key of a document's meta with the title of its questions: the article, or the product that is reviewed."""

GROUPS = ("answerable", "all")
"""Which questions count."""

SHOWN = ("recall", "map", "mrr", "ndcg")
"""Metrics in tables."""

PLOTTED = ("recall", "map")

RIGHT = "right"
OUTCOMES = {
    RIGHT: "right, from the question's own document",
    "right elsewhere": "right, from another document",
    "retriever missed": "the retriever did not find the document",
    "reader missed": "the reader found no right answer in the document, even read alone",
    "outranked": "the reader found the answer, but preferred one of another document",
}
"""What can happen to an answerable question."""


@dataclass(frozen=True)
class Collection:
    """Documents, and which of them belongs to a question.

    Attributes:
        documents: One per distinct title and context; their meta has the title as "item_id".
        document_ids: {id of a question: id of its document}.
    """

    documents: list[Document]
    document_ids: Mapping[str, str]

    def document_of(self, question_id: str) -> str:
        """Return the id of a question's document; raise InputError if the collection was made without the question."""
        if question_id not in self.document_ids:
            raise InputError(
                f"the question {question_id!r} is not one of the collection's; pass it to documents_of, too"
            )
        return self.document_ids[question_id]


def documents_of(*sources: Iterable[Mapping[str, Any]]) -> Collection:
    """Return the contexts of questions as documents.

    Args:
        sources: Questions, such as :func:`duonlp.data.read_questions` returns: those to evaluate, and any others whose contexts
            make the search harder.

    Raises:
        InputError: There are no questions, or two with one id have different contexts.
    """
    documents: dict[tuple[str, str], Document] = {}
    owners: dict[str, str] = {}
    for row in (row for source in sources for row in source):
        key = row["title"], row["context"]
        if key not in documents:
            documents[key] = Document(row["context"], {ITEM: row["title"]})
        if owners.setdefault(row["id"], documents[key].id) != documents[key].id:
            raise InputError(f"two questions have the id {row['id']!r}; give each its own")
    if not documents:
        raise InputError("there are no questions, and so no documents; give at least one")
    return Collection(list(documents.values()), owners)


def item_filters(questions: Iterable[Mapping[str, Any]]) -> list[Filters]:
    """Return a filter per question that lets only documents of its own title through."""
    return [{"field": f"meta.{ITEM}", "operator": "==", "value": row["title"]} for row in questions]


# -- retrievers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrieverScores:
    """Scores of retrievers. `rich.print` shows a table.

    Attributes:
        scores: {retriever: {group of GROUPS: {"recall@1": Score(low, value, high), ...}}}; a group without questions is left out.
        k: Numbers of documents.
        counts: Number of questions in each group.
        documents: Number of documents.
    """

    scores: Mapping[str, Mapping[str, Mapping[str, Score]]]
    k: Sequence[int]
    counts: Mapping[str, int]
    documents: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        scores = {
            name: {group: {key: score._asdict() for key, score in row.items()} for group, row in groups.items()}
            for name, groups in self.scores.items()
        }
        return {"scores": scores, "k": list(self.k), "questions": dict(self.counts), "documents": self.documents}

    def table(self, group: str = GROUPS[0]) -> "Table":
        """Return a rich table with a row per retriever and metric, and a column per number of documents."""
        from rich.table import Table
        from rich.text import Text

        title = f"{self.counts[group]} {'' if group == 'all' else group + ' '}questions, {self.documents} documents"
        table = Table(
            box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="", min_width=len(title)
        )  # fmt: skip
        for name in ("retriever", "metric"):
            table.add_column(name)
        for k in self.k:
            table.add_column(f"k={k}", justify="right")
        for name, groups in self.scores.items():
            for row, metric in enumerate(SHOWN):
                cells = (f"{groups[group][f'{metric}@{k}'].value:.3f}" for k in self.k)
                table.add_row(Text("" if row else name), metric, *cells)
        return table

    def __rich__(self) -> "Table":
        return self.table(GROUPS[0] if self.counts[GROUPS[0]] else GROUPS[1])

    def plot(self, file: str | os.PathLike, group: str = GROUPS[0]) -> None:
        """Plot recall and mean average precision over k, a line per retriever, with the intervals that there are.

        Args:
            file: A .png, .svg or .pdf file in an existing folder.
            group: Questions that count.

        Raises:
            InputError: The file format is unsupported, or the folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        from duonlp.util.pictures import COLOURS, check_picture_file, picture, require_matplotlib

        path = Path(file)
        check_picture_file(path)
        require_matplotlib("scores are plotted")
        with picture(path, 8.5, 3.6) as figure:
            panels = figure.subplots(1, len(PLOTTED), squeeze=False)[0]
            for axes, metric in zip(panels, PLOTTED, strict=True):
                for number, (name, groups) in enumerate(self.scores.items()):
                    rows = [groups[group][f"{metric}@{k}"] for k in self.k]
                    color = COLOURS[number % len(COLOURS)]
                    axes.plot(self.k, [row.value for row in rows], "o-", color=color, label=name, markersize=4)
                    if rows[0].low is not None:
                        axes.fill_between(
                            self.k, [row.low for row in rows], [row.high for row in rows], color=color, alpha=0.12, linewidth=0
                        )  # fmt: skip
                axes.set_title({"recall": "recall@k", "map": "mAP@k"}[metric], fontsize=10)
                axes.set_xlabel("k")
                axes.set_xticks(self.k)
                axes.set_ylim(0, 1)
                axes.grid(alpha=0.25, linewidth=0.6)
                axes.spines[["top", "right"]].set_visible(False)
            panels[0].legend(fontsize=8, frameon=False, loc="lower right")


def evaluate_retrievers(
    retrievers: Mapping[str, Retriever],
    questions: Sequence[Mapping[str, Any]],
    collection: Collection,
    k: Sequence[int] = (1, 3, 5, 10, 20),
    *,
    filters: Sequence[Filters | None] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrieverScores:
    """Return how often retrievers find the documents of questions among the first k.

    Args:
        retrievers: {name: retriever} over the documents of the collection.
        questions: The questions.
        collection: As :func:`documents_of` returns it.
        k: Numbers of documents.
        filters: A filter per question, such as :func:`item_filters` returns; None for none.
        confidence: Confidence level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples of the questions; 0 computes no intervals.
        seed: Seed of the resamples.

    Raises:
        InputError: There are no questions or retrievers, or a setting is invalid.
    """
    cuts, rows = check_k(k), list(questions)
    if not rows or not retrievers:
        raise InputError(f"there are no {'retrievers' if rows else 'questions'} to evaluate; give at least one")
    gold = [{collection.document_of(row["id"])} for row in rows]
    members = {
        GROUPS[0]: [i for i, row in enumerate(rows) if row["answers"]["text"]],
        GROUPS[1]: list(range(len(rows))),
    }
    scores: dict[str, dict[str, dict[str, Score]]] = {}
    for name, retriever in retrievers.items():
        found = retriever.retrieve([row["question"] for row in rows], top_k=cuts[-1], filters=filters)
        ids = [[document.id for document in documents] for documents in found]
        scores[name] = {
            group: retrieval_scores(
                [ids[i] for i in numbers], [gold[i] for i in numbers], cuts, confidence=confidence, resamples=resamples, seed=seed
            )
            for group, numbers in members.items()
            if numbers
        }  # fmt: skip
    return RetrieverScores(
        scores, cuts, {name: len(group) for name, group in members.items()}, len(collection.documents)
    )


# -- readers and pipelines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerScores:
    """Scores of answers, with unanswerable questions counted both ways.

    Attributes:
        answerable: Scores of the best texts, of the answerable questions only; None if there are none.
        all: Scores with "" where the null gap is above the threshold, of all questions; also the best thresholds.
        predictions: {id: best text}, "" where no document was read.
        null_gaps: {id: null gap}, infinite where no document was read.
    """

    answerable: SquadScores | None
    all: SquadScores
    predictions: Mapping[str, str] = field(repr=False)
    null_gaps: Mapping[str, float] = field(repr=False)

    @property
    def groups(self) -> dict[str, SquadScores]:
        """The scores by group of GROUPS."""
        return {"all": self.all} if self.answerable is None else {"answerable": self.answerable, "all": self.all}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        scores = {group: scores.to_dict() for group, scores in self.groups.items()}
        return {**scores, "predictions": dict(self.predictions), "null_gaps": dict(self.null_gaps)}


def evaluate_reader(
    reader: Reader, questions: Sequence[Mapping[str, Any]], *, threshold: float = 0.0, **options: Any
) -> AnswerScores:
    """Return how well a reader answers questions from their own contexts.

    Args:
        reader: The reader.
        questions: The questions.
        threshold: Null gap above which "" is the prediction.
        options: Confidence, resamples and seed of :func:`duonlp.metrics.squad_scores`.

    Raises:
        InputError: There are no questions, or a setting is invalid.
    """
    rows = list(questions)
    documents = [[Document(row["context"])] for row in rows]
    read = reader.read_with_gaps([row["question"] for row in rows], documents, top_k=2)
    texts = [next((answer.answer for answer in answers if not answer.is_null), "") for answers, _ in read]
    return _answer_scores(rows, texts, [gap for _, gap in read], threshold, options)


def _answer_scores(
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    gaps: Sequence[float | None],
    threshold: float,
    options: Any,
) -> AnswerScores:
    predictions = {row["id"]: text for row, text in zip(rows, texts, strict=True)}
    null_gaps = {row["id"]: float("inf") if gap is None else gap for row, gap in zip(rows, gaps, strict=True)}
    answerable = [row for row in rows if row["answers"]["text"]]
    best = {row["id"]: predictions[row["id"]] for row in answerable}
    return AnswerScores(
        squad_scores(best, answerable, **options) if answerable else None,
        squad_scores(predictions, rows, null_gaps=null_gaps, threshold=threshold, **options),
        predictions,
        null_gaps,
    )


@dataclass(frozen=True)
class PipelineScores:
    """Scores of a pipeline of retriever and reader, and where its errors come from. `rich.print` shows a table.

    Attributes:
        reader: Scores of the reader on each question's own document.
        pipeline: Scores of the pipeline's first answers.
        outcomes: {id: one of OUTCOMES} of the answerable questions, by their best texts.
        right: F1 from which an answer counts as right in `outcomes`.
        found: Share of the answerable questions whose document was read, or None without any.
        withheld: Unanswerable questions to which "" was the prediction.
    """

    reader: AnswerScores
    pipeline: AnswerScores
    outcomes: Mapping[str, str]
    right: float
    found: float | None
    withheld: int

    @property
    def split(self) -> dict[str, int]:
        """Number of answerable questions with each outcome."""
        values = list(self.outcomes.values())
        return {name: values.count(name) for name in OUTCOMES}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        parts = {"reader": self.reader.to_dict(), "pipeline": self.pipeline.to_dict(), "split": self.split}
        rest = {"outcomes": dict(self.outcomes), "right": self.right, "found": self.found, "withheld": self.withheld}
        return parts | rest

    def table(self) -> "Table":
        """Return a rich table with EM and F1 of reader and pipeline, a row for each way to count."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("answers", "questions"):
            table.add_column(name)
        for name in ("count", "EM", "F1", "best F1", "at gap"):
            table.add_column(name, justify="right")
        for name, scores in (("reader, own document", self.reader), ("pipeline", self.pipeline)):
            for number, (group, values) in enumerate(scores.groups.items()):
                best = ("best_f1", "best_f1_thresh") if "best_f1" in values else ()
                cells = (f"{values[key]:.1f}" for key in ("exact", "f1", *best))
                table.add_row("" if number else name, group, f"{int(values['total'])}", *cells)
        return table

    def split_table(self) -> "Table":
        """Return a rich table with the number of answerable questions with each outcome."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column(justify="right")
        table.add_column()
        for name, count in self.split.items():
            table.add_row(str(count), f"{count / max(1, len(self.outcomes)):.0%}", OUTCOMES[name])
        return table

    def __rich__(self) -> "Table":
        return self.table()


def evaluate_pipeline(
    qa: ExtractiveQA,
    questions: Sequence[Mapping[str, Any]],
    collection: Collection,
    *,
    top_k: int = 10,
    filters: Sequence[Filters | None] | None = None,
    threshold: float = 0.0,
    right: float = 0.5,
    **options: Any,
) -> PipelineScores:
    """Return how well a pipeline answers questions from a collection, and which part its errors come from.

    Args:
        qa: The pipeline, over the documents of the collection.
        questions: The questions.
        collection: As :func:`documents_of` returns it.
        top_k: Number of documents that are read.
        filters: A filter per question; None for none.
        threshold: Null gap above which "" is the prediction; of several documents the smallest gap counts.
        right: F1 from which an answer counts as right in the split of errors.
        options: Confidence, resamples and seed of :func:`duonlp.metrics.squad_scores`.

    Raises:
        InputError: There are no questions, or a setting is invalid.
    """
    if isinstance(right, bool) or not isinstance(right, (int, float)) or not 0 < right <= 1:
        raise InputError(f"right is {right!r}; it must be an F1 above 0 and at most 1")
    rows = list(questions)
    alone = evaluate_reader(qa.reader, rows, threshold=threshold, **options)
    params: dict[str, dict[str, Any]] = {"Retriever": {"top_k": top_k, "filters": filters}, "Reader": {"top_k": 2}}
    results = qa.run_batch([row["question"] for row in rows], params)
    best = [next((answer for answer in result["answers"] if not answer.is_null), None) for result in results]
    gaps = [None if result["no_ans_gap"] is None else -result["no_ans_gap"] for result in results]
    texts = [answer.answer if answer is not None else "" for answer in best]
    scores = _answer_scores(rows, texts, gaps, threshold, options)
    outcomes, found = {}, 0
    for row, result, answer in zip(rows, results, best, strict=True):
        references = row["answers"]["text"]
        if not references:
            continue
        own = collection.document_of(row["id"])
        has_own = any(document.id == own for document in result["documents"])
        found += has_own
        if answer is not None and token_f1(answer.answer, references) >= right:
            outcomes[row["id"]] = RIGHT if answer.document_id == own else "right elsewhere"
        elif not has_own:
            outcomes[row["id"]] = "retriever missed"
        else:
            is_right = token_f1(alone.predictions[row["id"]], references) >= right
            outcomes[row["id"]] = "outranked" if is_right else "reader missed"
    withheld = sum(not row["answers"]["text"] and scores.null_gaps[row["id"]] > threshold for row in rows)
    return PipelineScores(alone, scores, outcomes, right, found / len(outcomes) if outcomes else None, withheld)
