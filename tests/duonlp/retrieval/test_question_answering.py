"""The pipeline of retriever, ranker and reader: results, parameters, and errors that list what exists."""

import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document, ExtractiveQA, Reader
from duonlp.retrieval.question_answering import current_filters
from tests.duonlp.retrieval.test_reader import DOCUMENTS, Pipe


class Retriever:
    """A stand-in that returns the first documents, and records what it was asked."""

    def __init__(self, documents=DOCUMENTS):
        self.documents, self.calls = documents, []

    def retrieve(self, queries, *, top_k=None, filters=None):
        self.calls.append((list(queries), top_k, filters))
        return [self.documents[: top_k or 2] for _ in queries]


class Reversed:
    """A ranker that reverses the documents."""

    def rank_all(self, queries, documents, top_k=None):
        return [list(found)[::-1][:top_k] for found in documents]


def test_run_finds_reads_and_ranks():
    retriever = Retriever()
    qa = ExtractiveQA(retriever, Reader(Pipe()))
    condition = {"field": "meta.page", "operator": "==", "value": 1}
    result = qa.run("Which?", {"Retriever": {"top_k": 3, "filters": condition}, "Reader": {"top_k": 1}})
    assert list(result) == ["query", "no_ans_gap", "answers", "documents"]
    assert result["query"] == "Which?" and result["documents"] == DOCUMENTS[:3] and result["no_ans_gap"] == 0
    assert [answer.answer for answer in result["answers"]] == ["Fiv"]
    assert retriever.calls == [(["Which?"], 3, condition)]
    assert len(qa.run("Which?")["answers"]) == 3
    ranked = ExtractiveQA(Retriever(), Reader(Pipe()), Reversed())
    result = ranked.run("Q", {"Retriever": {"top_k": 3}, "Ranker": {"top_k": 2}})
    assert [document.id for document in result["documents"]] == ["c", "b"]


def test_a_batch_has_one_filter_per_question():
    retriever = Retriever()
    filters = [{"item_id": ["x", "y"], "split": "train"}, None]
    first, second = ExtractiveQA(retriever, Reader(Pipe())).run_batch(["A", "B"], {"Retriever": {"filters": filters}})
    assert (first["query"], second["query"]) == ("A", "B") and retriever.calls[0][2] == [
        current_filters(filters[0]),
        None,
    ]
    assert current_filters(filters[0]) == {
        "operator": "AND",
        "conditions": [
            {"field": "meta.item_id", "operator": "in", "value": ["x", "y"]},
            {"field": "meta.split", "operator": "in", "value": ["train"]},
        ],
    }
    assert ExtractiveQA(retriever, Reader(Pipe())).run_batch([]) == []


def test_without_documents_there_are_no_answers():
    result = ExtractiveQA(Retriever([]), Reader(Pipe())).run("the of")
    assert result == {"query": "the of", "no_ans_gap": None, "answers": [], "documents": []}
    result = ExtractiveQA(Retriever([Document("-")]), Reader(Pipe()), Reversed()).run("the of")
    assert (result["answers"], result["no_ans_gap"]) == ([], None)


@pytest.mark.parametrize(
    ("query", "params", "words"),
    [
        ("Q", {"Retreiver": {}}, "'Retreiver'; this pipeline has Retriever, Reader; did you mean 'Retriever'"),
        ("Q", {"Ranker": {}}, "this pipeline has Retriever, Reader"),
        ("Q", {"Retriever": {"topk": 1}}, "Retriever takes top_k, filters; did you mean 'top_k'"),
        ("Q", {"Reader": {"filters": {}}}, "Reader takes top_k"),
        ("Q", {"Reader": {"top_k": 0}}, "'top_k'. is 0"),
        ("Q", {"Reader": 3}, "params.'Reader'. is 3"),
        ("Q", [1], "give a dict by node"),
        ("Q", {"Retriever": {"filters": "x"}}, "filters are 'x'"),
        ("Q", {"Retriever": {"filters": [None, None]}}, "2 filters for 1 questions"),
        ("Q", {"Retriever": {"filters": {"a": object()}}}, "a filter has 'a'"),
        ("", None, "question 0 is empty"),
        (["Q"], None, "use run_batch"),
    ],
)
def test_invalid_parameters_are_refused(query, params, words):
    with pytest.raises(InputError, match=words):
        ExtractiveQA(Retriever(), Reader(Pipe())).run(query, params)


def test_parts_of_another_kind_are_refused():
    for arguments in ((object(), Reader(Pipe())), (Retriever(), Pipe()), (Retriever(), Reader(Pipe()), object())):
        with pytest.raises(InputError, match=r"is a (object|Pipe)"):
            ExtractiveQA(*arguments)
