"""Haystack's embedder and reader components, and pipelines of them, on small random models of both engines."""

import asyncio
import math

import numpy as np
import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")

from haystack import Document, ExtractedAnswer, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from duonlp.errors import InputError
from duonlp.haystack import DocumentEmbedder, ExtractiveReader, TextEmbedder
from tests.duonlp.haystack.models import ENGINES, write_model
from tests.reference import record_pipelines as reference

TEXTS = ["Ada Lovelace wrote the first program in London.", "Zürich is not far.", "a"]
QUERY = "Who wrote the first program?"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("haystack")
    return {task: write_model(task, folder) for task in ("sentence-embedding", "question-answering")}


@pytest.fixture(scope="module", params=ENGINES)
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def embedders(framework, models):
    """Return a text embedder and a document embedder of one engine, with one pipeline."""
    model, options = models["sentence-embedding"], {"framework": framework, "normalize_embeddings": True}
    text = TextEmbedder(model, **options)
    document = DocumentEmbedder(model, **options, meta_fields_to_embed=["title"], batch_size=2)
    document._pipeline = text.pipeline()
    return text, document


@pytest.fixture(scope="module")
def reader(framework, models):
    return ExtractiveReader(models["question-answering"], framework=framework, max_batch_size=4, max_answer_length=7)


def test_texts_and_documents_get_the_vectors_of_the_pipeline(embedders):
    text, document = embedders
    text.warm_up()
    vectors = text.pipeline()(TEXTS, normalize=True)
    got = [text.run(t)["embedding"] for t in TEXTS]
    assert isinstance(got[0], list) and isinstance(got[0][0], float)
    np.testing.assert_allclose(got, vectors, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    documents = [Document(content=t, meta={"n": n}) for n, t in enumerate(TEXTS)]
    embedded = document.run(documents)["documents"]
    assert [(d.id, d.content, d.meta) for d in embedded] == [(d.id, d.content, d.meta) for d in documents]
    assert all(d.embedding is None for d in documents)  # copies
    np.testing.assert_allclose([d.embedding for d in embedded], vectors, atol=1e-6)
    assert document.run([]) == {"documents": []}


def test_prefix_suffix_and_meta_fields_become_part_of_the_text(embedders):
    text, document = embedders
    expected = text.run("passage: Ada\nwrote a program!")["embedding"]
    document.prefix, document.suffix = "passage: ", "!"
    try:
        found = document.run([Document(content="wrote a program", meta={"title": "Ada", "other": 1})])["documents"]
        with pytest.raises(InputError, match="has no text to embed"):
            document.prefix = document.suffix = ""
            document.run([Document(content=None, meta={"title": None})])
    finally:
        document.prefix = document.suffix = ""
    np.testing.assert_allclose(found[0].embedding, expected, atol=1e-6)


def test_pipelines_serialize_to_yaml_and_back(embedders, models):
    text, document = embedders
    model = models["sentence-embedding"]
    pipeline = Pipeline()
    pipeline.add_component("text", copied(text))
    pipeline.add_component("document", copied(document))
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
    assert loaded.dumps() == pipeline.dumps() == Pipeline.loads(loaded.dumps(), unsafe=True).dumps()
    copy = loaded.get_component("document")
    assert isinstance(copy, DocumentEmbedder) and copy.meta_fields_to_embed == ["title"] and copy.batch_size == 2
    assert (copy.model, copy.framework, copy.normalize_embeddings) == (str(model), document.framework, True)
    assert loaded.inputs()["text"]["text"]["is_mandatory"] and "embedding" in loaded.outputs()["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model is ''"),
        ({"framework": "torch"}, "framework"),
        ({"prefix": 1}, "prefix is 1"),
        ({"normalize_embeddings": "yes"}, "normalize_embeddings is 'yes'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"progress_bar": 2}, "progress_bar is 2"),
        ({"meta_fields_to_embed": "title"}, "meta_fields_to_embed is 'title'"),
        ({"model_kwargs": "float16"}, "model_kwargs is 'float16'"),
    ],
)
def test_arguments_are_checked_before_a_model_is_loaded(arguments, message):
    with pytest.raises(InputError, match=message):
        DocumentEmbedder(**{"model": "some/model"} | arguments)


def test_inputs_of_another_type_are_refused(embedders):
    text, document = embedders
    with pytest.raises(InputError, match="use DocumentEmbedder"):
        text.run([Document(content="x")])
    with pytest.raises(InputError, match=r"expected a list of haystack\.Document"):
        document.run("x")


def copied(component):
    """Return a copy of a component for another pipeline, with the same model."""
    copy = type(component).from_dict(component.to_dict())
    copy._pipeline = component.pipeline()
    return copy


def assert_answer(answer, documents):
    """Check that the parts of an answer belong together."""
    (document,) = (d for d in documents if d.id == answer.document.id)
    assert answer.document == document and answer.query == QUERY
    start, end = answer.document_offset.start, answer.document_offset.end
    assert answer.data == document.content[start:end] != ""
    assert answer.data == answer.context[answer.context_offset.start : answer.context_offset.end]
    assert answer.context in document.content
    assert answer.score == pytest.approx(1 / (1 + math.exp(-0.1 * answer.meta["logit"])))
    assert 0 < answer.meta["probability"] <= 1 and isinstance(answer.meta["null_gap"], float)


def test_the_reader_finds_answers_that_are_comparable_across_documents(reader):
    long = reference.LONG_TEXT + "\f" + reference.LONG_TEXT
    documents = [Document(content=t) for t in (*reference.TEXTS[:2], " ")] + [
        Document(content=long, meta={"page_number": 5})
    ]
    answers = reader.run(QUERY, [*documents, Document(content=None)])["answers"]
    assert all(isinstance(answer, ExtractedAnswer) for answer in answers)
    found = [answer for answer in answers if answer.data is not None]
    (null,) = (answer for answer in answers if answer.data is None)
    for answer in found:
        assert_answer(answer, documents)
        back = ExtractedAnswer.from_dict(answer.to_dict())
        assert back == answer
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert null.document is None and null.score == pytest.approx(math.prod(1 - answer.score for answer in found))
    assert len(found) == 9 and {a.document.id for a in found} == {documents[i].id for i in (0, 1, 3)}
    pages = {a.meta.get("answer_page_number") for a in found if a.document.id == documents[3].id}
    assert pages <= {5, 6} and pages
    # The settings of a call, and those of the component.
    best = reader.run(QUERY, documents, top_k=2, no_answer=False)["answers"]
    assert [(a.data, a.document.id) for a in best] == [(a.data, a.document.id) for a in found[:2]]
    limit = found[3].score
    assert [a.data for a in reader.run(QUERY, documents, score_threshold=limit, no_answer=False)["answers"]] == [
        a.data for a in found if a.score >= limit
    ]
    one = reader.run(QUERY, documents, answers_per_document=1, no_answer=False)["answers"]
    assert len({a.document.id for a in one}) == 3 == len(one)
    assert reader.run(QUERY, []) == {"answers": []}
    nothing = reader.run(QUERY, documents[2:3])["answers"]
    assert [(a.data, a.score) for a in nothing] == [(None, 1)]


def test_scores_are_haystacks_on_the_models_logits(reader):
    """Recompute what Haystack's reader does, sigmoid((start + end) * 0.1) of every span, from the logits."""
    context, pipe = TEXTS[0], reader.pipeline()
    options = pipe.task.options(pipe.options, align_to_words=False)
    ((example,),) = pipe.task.encode([{"question": QUERY, "context": context}], options)
    outputs = pipe.forward(pipe._pad([example], 4))
    start, end = (np.asarray(outputs[f"{side}_logits"], np.float64)[0] for side in ("start", "end"))
    window = example.state
    starts, ends, first = window.context.starts, window.context.ends, window.first
    spans = {
        (starts[a], ends[b]): start[first + a] + end[first + b]
        for a in range(len(starts))
        for b in range(a, min(a + reader.max_answer_length, len(ends)))
    }
    answer = reader.run(QUERY, [Document(content=context)], no_answer=False)["answers"][0]
    assert answer.meta["logit"] == pytest.approx(max(spans.values()), abs=1e-5)
    a, b = max(spans, key=spans.__getitem__)
    assert answer.document_offset.start <= a < b <= answer.document_offset.end  # whole words
    assert answer.score == pytest.approx(1 / (1 + math.exp(-0.1 * max(spans.values()))), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"stride": -1}, "stride is -1"),
        ({"no_answer": None}, "no_answer is None"),
        ({"calibration_factor": "0.1"}, "calibration_factor is '0.1'"),
        ({"score_threshold": math.nan}, "score_threshold is nan"),
    ],
)
def test_arguments_of_the_reader_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        ExtractiveReader("some/model", **arguments)


def test_bad_inputs_of_the_reader_name_the_value(reader, models, framework):
    documents = [Document(content=TEXTS[0])]
    with pytest.raises(InputError, match="question 0 is empty"):
        reader.run("", documents)
    with pytest.raises(InputError, match="max_seq_len is 1000, but the model has positions for 64"):
        reader.run(QUERY, documents, max_seq_length=1000)
    with pytest.raises(InputError, match="leave no room"):
        reader.run(QUERY * 30, [Document(content=reference.LONG_TEXT)], max_seq_length=20, stride=10)
    with pytest.raises(InputError, match="no question-answering head"):
        ExtractiveReader(models["sentence-embedding"], framework=framework).warm_up()


def test_a_whole_pipeline_survives_yaml(embedders, reader, framework):
    """Embed and write documents; then embed a question, retrieve and read: in Python, and loaded from YAML."""
    text, document = map(copied, embedders)
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    indexing = Pipeline()
    indexing.add_component("embedder", document)
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    documents = [Document(content=t, meta={"n": n}) for n, t in enumerate(reference.TEXTS[:4])]
    assert indexing.run({"embedder": {"documents": documents}})["writer"] == {"documents_written": 4}

    asking = Pipeline()
    asking.add_component("embedder", text)
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    asking.add_component("reader", copied(reader))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    asking.connect("retriever.documents", "reader.documents")
    loaded = Pipeline.loads(asking.dumps(), allowed_modules=["duonlp.haystack"])
    assert loaded.dumps() == asking.dumps() and f"framework: {framework}" in loaded.dumps()
    for name in ("embedder", "reader"):  # compiled already
        loaded.get_component(name)._pipeline = asking.get_component(name).pipeline()
    not_n = {"field": "meta.n", "operator": "!=", "value": 3}
    inputs = {"embedder": {"text": QUERY}, "retriever": {"filters": not_n}, "reader": {"query": QUERY, "top_k": 3}}
    result = asking.run(inputs, include_outputs_from={"retriever"})
    retrieved, answers = result["retriever"]["documents"], result["reader"]["answers"]
    assert len(retrieved) == 2 and len(answers) == 4
    for answer in answers:
        if answer.data is not None:
            assert_answer(answer, retrieved)
    expected = [(a.data, pytest.approx(a.score)) for a in answers]
    again = loaded.run(inputs)["reader"]["answers"]
    in_threads = asyncio.run(loaded.run_async(inputs))["reader"]["answers"]
    for found in (again, in_threads):
        assert [(a.data, a.score) for a in found] == expected
