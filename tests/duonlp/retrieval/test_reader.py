"""Reading a question in several documents: ranks by logit, offsets, overlaps, contexts and no answer."""

from types import SimpleNamespace

import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document, Reader
from duonlp.retrieval.answer import context_around
from duonlp.retrieval.reader import load_reader
from duonlp.tasks.reader_config import ReaderConfig, write_reader_config


class Pipe:
    """A stand-in for a pipeline, which finds the capitalized words of a context, and scores later ones higher."""

    def __init__(self):
        self.task = SimpleNamespace(name="question-answering", options=lambda options, **changes: None)
        self.options, self.calls = None, []

    def __call__(self, pairs, top_k, **options):
        pairs = list(pairs)
        self.calls.append((pairs, options))
        return iter([self.answer(pair["context"])[:top_k] for pair in pairs])

    def answer(self, context):
        spans, start = [], 0
        for word in context.split():
            start = context.index(word, start)
            if word.istitle():
                spans += [(start, start + len(word)), (start, start + len(word) - 1)]
        gap = 4.0 - len(spans)
        rows = [
            {
                "score": 0.1 / (i + 1),
                "start": a,
                "end": b,
                "answer": context[a:b],
                "logit": len(context) - i,
                "null_gap": gap,
            }
            for i, (a, b) in enumerate(spans[::-1])
        ]
        return rows or [{"score": 0.5, "start": 0, "end": 0, "answer": "", "logit": 0.0, "null_gap": gap}]


DOCUMENTS = [
    Document("one Two three Four", {"page": 1}, "a"),
    Document("a longer text with Five", {"page": 2}, "b"),
    Document("nothing here", {}, "c"),
    Document("...", {}, "d"),
]


def test_punctuation_is_no_further_answer():
    pipe = Pipe()
    rows = [
        {"score": 0.1, "start": at, "end": at + 1, "logit": 5.0 - n, "null_gap": 0.0} for n, at in enumerate((1, 3, 0))
    ]
    pipe.answer = lambda context: rows
    document = Document("a.b!", id="x")
    assert [answer.answer for answer in Reader(pipe).read("Which?", [document])] == [".", "a"]


def test_answers_are_ranked_across_documents_by_logit():
    pipe = Pipe()
    answers = Reader(pipe, top_k=5).read("Which?", [*DOCUMENTS, DOCUMENTS[0]])
    assert [(a.document_id, a.answer) for a in answers] == [("b", "Fiv"), ("a", "Fou"), ("a", "Tw")]  # no overlaps
    by_id = {document.id: document for document in DOCUMENTS}
    for answer in answers:
        document = by_id[answer.document_id]
        assert document.content[answer.start : answer.end] == answer.answer and answer.meta == document.meta
        assert document.content[answer.context_start :].startswith(answer.context) and answer.answer in answer.context
    ((pairs, options),) = pipe.calls
    assert [pair["context"] for pair in pairs] == [document.content for document in DOCUMENTS[:3]]
    assert options == {"handle_impossible_answer": False}
    assert [a.answer for a in Reader(pipe, answers_per_document=1, top_k=2).read("Q", DOCUMENTS)] == ["Fiv", "Fou"]
    assert Reader(pipe).read("Q", [], top_k=1) == [] and Reader(pipe).read("Q", [DOCUMENTS[3]]) == []


def test_several_questions_are_read_in_one_call():
    pipe = Pipe()
    first, second, none = Reader(pipe, top_k=1).read_batch(["A", "B", "C"], [DOCUMENTS[:1], DOCUMENTS[1:], []])
    gaps = [gap for _, gap in Reader(pipe, top_k=1).read_with_gaps(["A", "B"], [DOCUMENTS, []])]
    assert gaps == [0, None]
    assert [first[0].document_id, second[0].document_id, none, len(pipe.calls)] == ["a", "b", [], 2]


def test_no_answer_wins_where_every_document_prefers_it():
    documents = [DOCUMENTS[1]]  # null gap 2
    first, second = Reader(Pipe(), no_answer=True).read("Q", documents)
    assert first.is_null and (first.answer, first.document_id, first.null_gap) == ("", None, 2.0)
    assert first.logit == second.logit + 2 and 0.5 < first.score < 1
    assert not Reader(Pipe(), no_answer=True, null_threshold=2.5).read("Q", documents)[0].is_null
    assert not Reader(Pipe(), no_answer=True).read("Q", DOCUMENTS)[0].is_null  # the gap of the first is 0


def test_loaded_readers_read_as_they_were_trained(tmp_path):
    seen = []

    def pipeline(task, model, **options):
        pipe = Pipe()
        pipe.task.folder = tmp_path
        pipe.task.options = lambda base, **changes: seen.append(changes)
        return pipe

    engine = SimpleNamespace(pipeline=pipeline)
    assert load_reader(engine, "model").null_threshold == 0.0
    write_reader_config(tmp_path, ReaderConfig(48, 16, 9, -1.5))
    assert load_reader(engine, "model").null_threshold == -1.5
    assert load_reader(engine, "model", options={"doc_stride": 8}, null_threshold=2.0).null_threshold == 2.0
    lengths = {"max_seq_len": 48, "doc_stride": 16, "max_answer_len": 9}
    assert seen == [{}, lengths, {name: value for name, value in lengths.items() if name != "doc_stride"}]


def test_contexts_are_whole_words_around_the_answer():
    text = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so every day."
    start = text.index("lazy")
    for size in range(len(text) + 10):
        first, last = context_around(text, start, start + 4, size)
        assert first <= start and last >= start + 4 and last - first <= max(size, 4)
        assert set(text[first:last].split()) <= set(text.split()) and text[first:last] == text[first:last].strip()
    assert context_around(text, 0, 3, 20) == (0, 19) and context_around("x" * 50, 20, 22, 10) == (20, 22)
    assert context_around("日本" * 25, 20, 22, 10) == (16, 26)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Reader(object()), "needs a .question-answering. pipeline"),
        (lambda: Reader(Pipe(), top_k=0), "top_k is 0"),
        (lambda: Reader(Pipe(), no_answer=1), "no_answer is 1"),
        (lambda: Reader(Pipe(), null_threshold=float("nan")), "null_threshold is nan"),
        (lambda: Reader(Pipe()).read(" ", DOCUMENTS), "question 0 is empty"),
        (lambda: Reader(Pipe()).read("Q", "text"), "a list of Documents"),
        (lambda: Reader(Pipe()).read("Q", ["text"]), "documents contain 'text'"),
        (lambda: Reader(Pipe()).read("Q", DOCUMENTS, top_k=True), "top_k is True"),
        (lambda: Reader(Pipe()).read_batch("Q", [DOCUMENTS]), "a list of questions"),
        (lambda: Reader(Pipe()).read_batch(["Q"], []), "1 questions and 0 lists"),
    ],
)
def test_invalid_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
