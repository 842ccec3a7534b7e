"""Haystack's embedder components on small random models of both engines."""

import numpy as np
import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")

from haystack import Document, Pipeline

from duonlp.errors import InputError
from duonlp.haystack import DocumentEmbedder, TextEmbedder
from tests.duonlp.haystack.models import ENGINES, write_model

TEXTS = ["Ada Lovelace wrote the first program in London.", "Zürich is not far.", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("sentence-embedding", tmp_path_factory.mktemp("embedders"))


@pytest.fixture(scope="module", params=ENGINES)
def embedders(request, model):
    """Return a text embedder and a document embedder of one engine."""
    options = {"framework": request.param, "normalize_embeddings": True}
    return TextEmbedder(model, **options), DocumentEmbedder(
        model, **options, meta_fields_to_embed=["title"], batch_size=2
    )


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


def test_pipelines_serialize_to_yaml_and_back(embedders, model):
    text, document = embedders
    pipeline = Pipeline()
    pipeline.add_component("text", text)
    pipeline.add_component("document", document)
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
    assert loaded.dumps() == pipeline.dumps() == Pipeline.loads(loaded.dumps(), unsafe=True).dumps()
    copy = loaded.get_component("document")
    assert isinstance(copy, DocumentEmbedder) and copy.meta_fields_to_embed == ["title"] and copy.batch_size == 2
    assert (copy.model, copy.framework, copy.normalize_embeddings) == (str(model), document.framework, True)
    data = {"text": {"text": TEXTS[0]}, "document": {"documents": [Document(content=TEXTS[1])]}}
    ours, theirs = pipeline.run(data), loaded.run(data)
    np.testing.assert_allclose(ours["text"]["embedding"], theirs["text"]["embedding"], atol=1e-6)
    assert loaded.inputs()["text"]["text"]["is_mandatory"] and "embedding" in loaded.outputs()["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model is ''"),
        ({"framework": "torch"}, "framework"),
        ({"prefix": None}, "prefix is None"),
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
