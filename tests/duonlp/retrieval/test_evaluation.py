"""Evaluation of retrievers, readers and pipelines on a small collection whose scores are known."""

import pytest

from duonlp.errors import InputError
from duonlp.retrieval import (
    ExtractiveQA,
    Reader,
    documents_of,
    evaluate_pipeline,
    evaluate_reader,
    evaluate_retrievers,
    item_filters,
)
from tests.duonlp.retrieval.test_reader import Pipe


def row(name, title, context, *answers):
    starts = [context.index(answer) for answer in answers]
    answers = {"text": list(answers), "answer_start": starts}
    return {"id": name, "title": title, "question": f"{name}?", "context": context, "answers": answers}


QUESTIONS = [
    row("found", "x", "the cat saw Anna", "Anna"),
    row("elsewhere", "x", "it was Bert here", "Bert"),
    row("missed", "x", "nobody but Carl knows", "Carl"),
    row("misread", "y", "dora met Emil", "dora"),
    row("outranked", "y", "so Fred", "Fred"),
    row("none", "y", "no names at all"),
    row("guess", "z", "One Two Three"),
]
OTHER = row("other", "x", "a long text that also has Bert", "Bert")
LONG = row("long", "y", "a much longer text that ends in Gustav", "Gustav")
PLAN = {
    "found": [0, 5], "elsewhere": [7], "missed": [5], "misread": [3], "outranked": [8, 4], "none": [5], "guess": [6],
}  # fmt: skip
"""Numbers of the documents that are found for each question."""


class Retriever:
    """Returns the documents of PLAN, and records its filters."""

    def __init__(self, documents):
        self.documents, self.filters = documents, []

    def retrieve(self, queries, *, top_k=None, filters=None):
        self.filters.append(filters)
        return [[self.documents[i] for i in PLAN[query[:-1]]][:top_k] for query in queries]


class WordPipe(Pipe):
    """Finds whole capitalized words only."""

    def answer(self, context):
        rows = super().answer(context)
        return [row for row in rows if not row["answer"] or f" {row['answer']} " in f" {context} "]


@pytest.fixture
def collection():
    return documents_of(QUESTIONS, [OTHER, LONG])


def test_documents_are_the_distinct_contexts(collection):
    assert len(collection.documents) == 9 and collection.documents[0].meta == {"item_id": "x"}
    again = documents_of([*QUESTIONS, QUESTIONS[0] | {"id": "new"}])
    assert len(again.documents) == 7 and again.document_ids["new"] == again.document_ids["found"]
    assert len(documents_of([QUESTIONS[0], QUESTIONS[0] | {"id": "new", "title": "y"}]).documents) == 2
    with pytest.raises(InputError, match="two questions have the id 'found'"):
        documents_of([QUESTIONS[0], QUESTIONS[1] | {"id": "found"}])
    with pytest.raises(InputError, match="no questions"):
        documents_of([])


def test_retrievers_with_unanswerable_questions_counted_both_ways(collection, tmp_path):
    retriever = Retriever(collection.documents)
    filters = item_filters(QUESTIONS)
    scores = evaluate_retrievers({"plan": retriever}, QUESTIONS, collection, (1, 2), filters=filters, resamples=100)
    assert retriever.filters == [filters] and filters[0]["value"] == "x"
    assert scores.counts == {"answerable": 5, "all": 7}
    plan = scores.scores["plan"]
    assert [plan["answerable"][f"recall@{k}"].value for k in (1, 2)] == [0.4, 0.6]
    assert [plan["all"][f"recall@{k}"].value for k in (1, 2)] == pytest.approx([4 / 7, 5 / 7])
    assert plan["answerable"]["map@2"].value == 0.5 and plan["all"]["recall@1"].low < 4 / 7
    assert scores.to_dict()["scores"]["plan"]["all"]["mrr@2"]["value"] == pytest.approx(4.5 / 7)
    assert scores.table("all").row_count == 4
    pytest.importorskip("matplotlib")
    scores.plot(tmp_path / "scores.svg")
    assert "recall@k" in (tmp_path / "scores.svg").read_text() or (tmp_path / "scores.svg").stat().st_size > 1000
    only = evaluate_retrievers({"plan": retriever}, QUESTIONS[5:], collection, (1,), resamples=0)
    assert list(only.scores["plan"]) == ["all"] and only.__rich__().row_count == 4


def test_errors_are_split_into_those_of_retriever_and_reader(collection):
    qa = ExtractiveQA(Retriever(collection.documents), Reader(WordPipe()))
    scores = evaluate_pipeline(qa, QUESTIONS, collection, threshold=2.5, resamples=0)
    assert scores.outcomes == {
        "found": "right", "elsewhere": "right elsewhere", "missed": "retriever missed", "misread": "reader missed",
        "outranked": "outranked",
    }  # fmt: skip
    assert scores.split == {
        "right": 1, "right elsewhere": 1, "retriever missed": 1, "reader missed": 1, "outranked": 1,
    }  # fmt: skip
    assert scores.found == 0.6 and scores.withheld == 1  # "none"
    assert (scores.reader.answerable["exact"], scores.pipeline.answerable["exact"]) == (80, 40)
    assert scores.pipeline.all["total"] == 7 and scores.pipeline.all["NoAns_exact"] == 50
    assert scores.pipeline.predictions["none"] == "" and scores.pipeline.null_gaps["none"] == float("inf")
    assert scores.table().row_count == 4 and scores.split_table().row_count == 5
    assert set(scores.to_dict()) == {"reader", "pipeline", "split", "outcomes", "right", "found", "withheld"}
    for right in (0, True, 2):
        with pytest.raises(InputError, match="right is"):
            evaluate_pipeline(qa, QUESTIONS, collection, right=right)


def test_a_reader_that_may_give_no_answer_is_scored_by_its_texts():
    plain = evaluate_reader(Reader(WordPipe()), QUESTIONS, threshold=2.5, resamples=0)
    null = evaluate_reader(Reader(WordPipe(), no_answer=True), QUESTIONS, threshold=2.5, resamples=0)
    assert plain.predictions == null.predictions and plain.predictions["guess"] == "Three"
    unanswerable = evaluate_reader(Reader(WordPipe()), QUESTIONS[5:], resamples=0)
    assert unanswerable.answerable is None and list(unanswerable.groups) == ["all"]


def test_a_question_without_a_document_is_refused():
    row = {"id": "1", "title": "t", "question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}
    with pytest.raises(InputError, match="'2' is not one of the collection's"):
        evaluate_retrievers({"any": None}, [row | {"id": "2"}], documents_of([row]))
