"""Negative passages from a retriever, and labelled pairs."""

import pytest

from duonlp.data import read_labelled_texts
from duonlp.data.questions import Questions, RetrievalExample
from duonlp.errors import InputError
from duonlp.retrieval import BM25Retriever, Document, MemoryStore, hard_negatives, labelled_pairs, write_pairs

TEXTS = ["the sound is great", "the sound is bad", "sound and vision", "nothing here"]


def row(number, question, context, *answers):
    starts = [context.index(answer) for answer in answers]
    fields = {"id": str(number), "title": "T", "question": question, "context": context}
    return fields | {"answers": {"text": list(answers), "answer_start": starts}}


QUESTIONS = Questions([
    row(0, "how is the sound", TEXTS[0], "great"),
    row(1, "how is the sound", TEXTS[3]),
    row(2, "what else is there", TEXTS[2], "vision"),
])  # fmt: skip


@pytest.fixture(scope="module")
def retriever():
    pytest.importorskip("bm25s")
    store = MemoryStore()
    store.write_documents(
        [Document(text, {"title": "T", "n": i}) for i, text in enumerate([*TEXTS, "great sound, the best"])]
    )
    return BM25Retriever(store, fill=True)


def test_negatives_neither_answer_the_question_nor_contain_its_answer(retriever):
    first, second = hard_negatives(QUESTIONS, retriever)
    assert (first.question, first.positive) == ("how is the sound", TEXTS[0])
    assert first.negatives[0] == TEXTS[1] and set(first.negatives) == {TEXTS[1], TEXTS[2], TEXTS[3]}
    assert TEXTS[2] not in second.negatives and len(second.negatives) == 4
    (first, _) = hard_negatives(QUESTIONS, retriever, 4, keep_answers=True)
    assert "great sound, the best" in first.negatives and TEXTS[0] not in first.negatives
    filters = [{"field": "meta.n", "operator": "<", "value": i + 2} for i in range(3)]
    first, second = hard_negatives(QUESTIONS, retriever, 1, filters=filters, title="title")
    assert first.negatives == (("T", TEXTS[1]),) and first.positive == ("T", TEXTS[0]) and len(second.negatives) == 1
    with pytest.raises(InputError, match="there are 2 filters for 3 questions"):
        hard_negatives(QUESTIONS, retriever, filters=filters[:2])


def test_pairs_are_labelled_once_and_written(tmp_path):
    examples = [
        RetrievalExample("q", "a", ["b", ("T", "c")]),
        RetrievalExample("q", ("", "b")),  # relevant, whatever the first one says
    ]
    pairs = labelled_pairs(examples, QUESTIONS)
    expected = {("q", "a"): 1, ("q", "b"): 1, ("q", "T c"): 0, ("how is the sound", TEXTS[3]): 0}
    assert dict(zip(pairs.texts, pairs.labels.tolist())) == expected and pairs.label_names[1] == "relevant"
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    again = read_labelled_texts(tmp_path / "pairs.jsonl", text_column="question,passage", label_names=pairs.label_names)
    assert again.texts == pairs.texts and again.labels.tolist() == pairs.labels.tolist()
    with pytest.raises(InputError, match="no examples to make pairs of"):
        labelled_pairs([])


def test_documents_without_a_title_are_refused_where_titles_are_asked_for():
    class Found:
        def retrieve(self, queries, **options):
            return [[Document("red", {"title": None}, "red")] for _ in queries]

    with pytest.raises(InputError, match="document 'red' has no meta entry 'title'; give all documents titles"):
        hard_negatives(QUESTIONS, Found(), title="title")
