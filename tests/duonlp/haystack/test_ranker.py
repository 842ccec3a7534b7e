"""Haystack's ranker component on small random models of both engines."""

import math

import pytest

pytest.importorskip("haystack", reason="the extra qa is not installed")

from haystack import Document, Pipeline

from duonlp.errors import InputError
from duonlp.haystack import Ranker
from tests.duonlp.haystack.models import ENGINES, write_model

QUERY = "Who wrote the first program?"
TEXTS = ["Ada Lovelace wrote the first program in London.", "Zürich is not far.", "The engine weaves patterns."]
DOCUMENTS = [Document(content=text, meta={"title": "Ada"}) for text in TEXTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("text-classification", tmp_path_factory.mktemp("ranker"), id2label={"0": "relevant"})


@pytest.mark.parametrize("framework", ENGINES)
def test_documents_are_sorted_by_the_classifier(framework, model):
    ranker = Ranker(model, framework=framework, batch_size=4)
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
    assert pipeline.get_component("ranker").to_dict() == ranker.to_dict()
    pipe = ranker.pipeline()
    pairs = [{"text": QUERY, "text_pair": text} for text in TEXTS]
    expected = {
        text: r[0]["score"] for text, r in zip(TEXTS, pipe(pairs, top_k=None, function_to_apply="none"), strict=True)
    }
    no_text = [Document(content=None, meta={"x": 1}), Document(content=" ")]
    ranked = ranker.run(QUERY, DOCUMENTS + no_text)["documents"]
    assert [d.content for d in ranked] == sorted(TEXTS, key=lambda text: -expected[text])
    for document in ranked:
        assert document.score == pytest.approx(1 / (1 + math.exp(-expected[document.content])), abs=1e-6)
        assert document.id in {d.id for d in DOCUMENTS} and document.meta == {"title": "Ada"}
    assert all(document.score is None for document in DOCUMENTS)  # copies
    best = ranker.run(QUERY, DOCUMENTS, top_k=1)["documents"]
    assert [d.id for d in best] == [ranked[0].id]
    assert len(ranker.run(QUERY, DOCUMENTS, score_threshold=ranked[1].score)["documents"]) == 2
    assert ranker.run(QUERY, []) == {"documents": []}
    raw = Ranker(model, framework=framework, batch_size=4, scale_score=False, meta_fields_to_embed=["title"])
    raw._pipeline = pipe  # already compiled
    (titled,) = raw.run(QUERY, DOCUMENTS[:1])["documents"]
    (pair,) = pipe([{"text": QUERY, "text_pair": f"Ada\n{TEXTS[0]}"}], top_k=None, function_to_apply="none")
    assert titled.score == pytest.approx(pair[0]["score"], abs=1e-5)
    for arguments, message in (
        ((1, DOCUMENTS), "query is 1"),
        ((" ", DOCUMENTS), "query is ' '"),
        ((QUERY, "x"), "Document"),
    ):
        with pytest.raises(InputError, match=message):
            ranker.run(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"scale_score": 1}, "scale_score"),
        ({"score_threshold": "high"}, "score_threshold is 'high'"),
    ],
)
def test_arguments_are_checked_before_a_model_is_loaded(arguments, message):
    with pytest.raises(InputError, match=message):
        Ranker("some/model", **arguments)


@pytest.mark.parametrize("framework", ENGINES)
def test_a_checkpoint_without_a_classifier_is_refused(framework, tmp_path):
    with pytest.raises(InputError, match="has no sequence-classification head, so its results would be random"):
        Ranker(write_model("feature-extraction", tmp_path), framework=framework).warm_up()
