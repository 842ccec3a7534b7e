"""RAG without a framework: configuration, marginalization, contexts, batches, decoding and the pipeline."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from duonlp import numpy_ops as ops
from duonlp.architectures import config_from_hf
from duonlp.errors import CheckpointError, ConfigError, InputError
from duonlp.generation import GenerationConfig, driver
from duonlp.rag import RagBatches, RagConfig, RagContexts, RagPipeline, RagTokenizers, SequenceBase
from duonlp.rag.decoding import fast_scores
from duonlp.rag.inputs import check_batch, check_documents, check_shapes
from duonlp.rag.marginal import sequence_nll, token_nll
from duonlp.retrieval import Document
from duonlp.training.layer_decay import check_layer_decay
from tests import rag


@pytest.fixture(scope="module")
def config():
    return RagConfig.from_hf(json.loads((rag.folder() / "config.json").read_text()))


def test_losses_are_the_paper_s_sums():
    rng = np.random.default_rng(0)
    logits, scores = rng.standard_normal((6, 4, 9)).astype(np.float32), rng.standard_normal((2, 3)).astype(np.float32)
    labels = np.array([[2, 0, 5, 7], [2, 0, 3, 1]])  # 1 is padding
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p, prior = p.reshape(2, 3, 4, 9), np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for row, count in enumerate((3, 2)):
        steps = np.array([p[row, :, i, labels[row, i + 1]] for i in range(count)])  # [steps, documents]
        whole = -np.log((prior[row] * steps.prod(0)).sum())
        assert np.isclose(sequence_nll(ops, logits, scores, labels, padding=1)[row], whole, rtol=1e-5)
        after_start = -np.log((prior[row] * steps[1:].prod(0)).sum())
        without = sequence_nll(ops, logits, scores, labels, padding=1, excluded_start=0)
        assert np.isclose(without[row], after_start, rtol=1e-5)
        by_token = -np.log((prior[row] * steps).sum(1)).sum()
        assert np.isclose(token_nll(ops, logits, scores, labels, padding=1)[row], by_token, rtol=1e-5)
    kept = sequence_nll(ops, logits, scores, labels, padding=1, excluded_start=5)  # not the first token of every row
    assert np.allclose(kept, sequence_nll(ops, logits, scores, labels, padding=1))


def test_fast_decoding_adds_up_the_documents_that_propose_an_answer():
    answers, scores = fast_scores(np.array([[2, 5], [2, 6], [2, 5], [2, 7]]), np.log([0.1, 0.25, 0.2, 0.05]))
    assert answers.tolist() == [[2, 5], [2, 6], [2, 7]] and np.allclose(np.exp(scores), [0.3, 0.25, 0.05])


def test_config_round_trip_and_errors(config):
    hf = config.hf_config("RagTokenForGeneration") | {"index_name": "exact"}
    again = RagConfig.from_hf(hf)
    assert again == config and again.n_docs == rag.DOCUMENTS
    assert again.hf_config("RagTokenForGeneration") == hf
    for changes, message in (
        ({"model_type": "bart"}, "from_pretrained_question_encoder_generator"),
        ({"generator": None}, "no generator"),
        ({"n_docs": 0}, "n_docs is 0"),
        ({"title_sep": 3}, "title_sep is 3"),
        ({"generator": hf["question_encoder"]}, "no encoder-decoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            RagConfig.from_hf(hf | changes)
    with pytest.raises(InputError, match="unknown keyword 'docs'"):
        config.with_options(docs=3)


def test_what_does_not_suit_a_model_of_two_parts_is_refused(config):
    check_layer_decay(config, 1.0)
    with pytest.raises(InputError, match=r"layer_decay is 0\.9, but a rag model has several parts"):
        check_layer_decay(config, 0.9)
    with pytest.raises(ConfigError, match="load it with RagSequence or RagToken"):
        config_from_hf({"model_type": "rag"})


def test_contexts_are_those_of_rag_retriever(config):
    contexts = RagContexts(rag.tokenizers().generator, config)
    document = Document("the  fox is red", {"title": '"fox"'})
    assert contexts.combine("what color ?", document) == "fox / the fox is red // what color ?"
    encoded = contexts.encode(rag.QUESTIONS, rag.documents())
    assert encoded["context_input_ids"].shape == (2, 3, 16) == encoded["context_attention_mask"].shape
    decoded = rag.tokenizers().generator.decode(encoded["context_input_ids"][1, 2], skip_special_tokens=True)
    assert decoded == "hen / the cow is green // what color is the hen ?"


def test_a_long_document_is_shortened_and_the_question_kept(config):
    contexts = RagContexts(rag.tokenizers().generator, config.with_options(max_combined_length=15))
    (ids,) = contexts.encode(rag.QUESTIONS[:1], [[Document("red " * 100_000, {"title": "fox"})]])["context_input_ids"][
        0
    ]
    assert len(ids) == 15 and rag.tokenizers().generator.decode(ids, skip_special_tokens=True) == (
        "fox / red red red red // what color is the fox ?"
    )
    for question, documents, message in (
        ("what " * 20, [Document("red")], "the generator reads 15"),
        (" ", [Document("red")], "question 0 is an empty text"),
        ("what ?", [], "at least one"),
    ):
        with pytest.raises(InputError, match=message):
            contexts.encode([question], [documents])


def test_batches(config):
    batches = RagBatches(
        [*rag.QUESTIONS, rag.QUESTIONS[0]], [*rag.ANSWERS, "the red fox"], [*rag.documents(), rag.documents()[0]],
        rag.tokenizers(), config, 2, shuffle=False,
    )  # fmt: skip
    first, last = batches.epoch(0)
    assert first["labels"].tolist() == [[2, 0, 11, 2, 1, 1, 1, 1], [2, 0, 12, 2, 1, 1, 1, 1]]
    assert last["labels"][0].tolist() == [2, 0, 7, 11, 8, 2, 1, 1] and last["row_mask"].tolist() == [1, 0]
    assert first["doc_embeddings"].shape == (2, 3, 24) and first["row_mask"].tolist() == [1, 1]
    for batch in (first, last):
        check_batch(config, batch)
    shorter = [[Document("red", embedding=np.zeros(3))]] * 2
    for documents, message in (
        (rag.documents(embedded=False), "no embedding of 24 values"),
        (shorter, "no embedding of 24 values"),
        ([rag.documents()[0], rag.documents()[1][:1]], "1, 3 documents for each"),
    ):
        with pytest.raises(InputError, match=message):
            RagBatches(rag.QUESTIONS, rag.ANSWERS, documents, rag.tokenizers(), config, 2)
    with pytest.raises(InputError, match="max_answer_length is 0"):
        RagBatches(rag.QUESTIONS, rag.ANSWERS, rag.documents(), rag.tokenizers(), config, 2, max_answer_length=0)
    with pytest.raises(InputError, match="2 questions, 1 answers"):
        RagBatches(rag.QUESTIONS, rag.ANSWERS[:1], rag.documents(), rag.tokenizers(), config, 2)
    with pytest.raises(InputError, match="unknown input 'documents'"):
        check_batch(config, first | {"documents": 1})
    with pytest.raises(InputError, match="no labels"):
        check_batch(config, {name: value for name, value in first.items() if name != "labels"})


def test_shapes_that_do_not_match_are_refused(config):
    scores, ids, labels = np.zeros((2, 3)), np.ones((6, 4), int), np.ones((2, 5), int)
    for inputs, message in (
        ({"doc_scores": scores}, "no context_input_ids"),
        ({"context_input_ids": ids}, "neither doc_scores"),
        ({"context_input_ids": ids, "doc_embeddings": np.zeros((2, 3, 8))}, "needs the questions"),
        ({"context_input_ids": ids[:5], "doc_scores": scores}, r"\[2, 3, S\] or \[6, S\]"),
        ({"context_input_ids": ids, "doc_scores": scores[0]}, "expected 2 axes"),
        ({"context_input_ids": ids, "doc_scores": scores, "labels": labels[:1]}, "labels has 1 rows"),
        ({"context_input_ids": ids, "doc_scores": scores, "context_attention_mask": ids[:, :3]}, "same shape"),
        ({"context_input_ids": ids, "doc_scores": scores}, "neither labels nor decoder_input_ids"),
        (
            {"context_input_ids": ids, "doc_scores": scores, "labels": labels, "decoder_input_ids": labels[:, 1:]},
            r"labels has shape \(2, 5\) and decoder_input_ids \(2, 4\)",
        ),
        (
            {"context_input_ids": ids, "doc_embeddings": np.zeros((2, 3, 8)), "input_ids": ids[:2], "labels": labels},
            "vectors of 8 values, but those of questions have 24",
        ),
    ):
        with pytest.raises(InputError, match=message):
            check_shapes(config, inputs)


def test_scores_that_are_no_numbers_are_refused(config):
    ids = np.ones((6, 4), int)
    assert check_documents(config, {"context_input_ids": ids, "doc_scores": np.zeros((2, 3))})["doc_scores"].shape == (
        2,
        3,
    )
    for scores in (np.full((2, 3), np.nan), np.full((2, 3), "a")):
        with pytest.raises(InputError, match="doc_scores has values that are not finite numbers"):
            check_documents(config, {"context_input_ids": ids, "doc_scores": scores})


def test_tokenizers_are_in_subfolders(tmp_path):
    with pytest.raises(CheckpointError, match="no folder question_encoder_tokenizer"):
        RagTokenizers.from_pretrained(tmp_path)
    for subfolder, tokenizer in rag.tokenizers().by_folder().items():
        tokenizer.save_pretrained(tmp_path / subfolder)
    loaded = RagTokenizers.from_pretrained(tmp_path)
    assert loaded.question_encoder("red")["input_ids"] == [11] and loaded.generator("red")["input_ids"] == [0, 11, 2]


class Model(SequenceBase):
    """A model that answers with two colors, and keeps the scores and options it was passed."""

    def __init__(self, config):
        self.config, self.generation_config, self.calls = config, GenerationConfig(), []

    def encode_questions(self, input_ids, attention_mask=None):
        return np.tile(np.float32([1, 0, 0]), (len(input_ids), 8))

    def generate(self, *, doc_scores, num_return_sequences, context_input_ids, **options):
        self.calls.append((doc_scores, options))
        count = len(doc_scores) * num_return_sequences
        return {"sequences": np.tile([2, 0, 11, 2, 1], (count, 1)), "sequences_scores": -np.arange(count, dtype=float)}


def test_the_pipeline_returns_answers_with_their_documents(config):
    model, found = Model(config), rag.Found()
    pipe = RagPipeline(model, found, rag.tokenizers(), top_k=2, num_beams=2, max_length=9)
    answers = pipe(rag.QUESTIONS[0])
    assert [(answer.answer, answer.score) for answer in answers] == [("red", 0.0)]
    assert [document.id for document in answers[0].documents] == ["fox0", "fox1"]
    scores, options = model.calls[0]
    products = [document.embedding @ np.tile([1, 0, 0], 8) for document in answers[0].documents]
    assert np.allclose(scores, [products]) and options["num_beams"] == 2 and options["max_length"] == 9
    assert np.allclose(answers[0].probabilities, np.exp(products) / np.exp(products).sum())
    result = pipe.run(rag.QUESTIONS[1], {"Retriever": {"top_k": 1, "filters": {}}, "Generator": {"top_k": 3}})
    assert len(result["answers"]) == 3 and [d.id for d in result["documents"]] == ["hen0"]
    assert found.calls[-1] == ([rag.QUESTIONS[1]], 1, {}) and model.calls[-1][1]["num_beams"] == 3
    assert [len(row) for row in pipe(rag.QUESTIONS, top_k_generator=2)] == [2, 2]
    found.documents[1] = []
    assert [len(row) for row in pipe(rag.QUESTIONS)] == [1, 0]


def test_the_pipeline_takes_the_scores_of_a_keyword_retriever(config):
    model = Model(config)
    RagPipeline(model, rag.Found(embedded=False), rag.tokenizers())(rag.QUESTIONS[0])
    assert model.calls[0][0].tolist() == [[0, -1, -2]]
    with pytest.raises(InputError, match="doc_scores is 'question'"):
        RagPipeline(model, rag.Found(embedded=False), rag.tokenizers(), doc_scores="question")(rag.QUESTIONS[0])
    for options, message in (({"top_k": 0}, "top_k is 0"), ({"doc_scores": "bm25"}, "doc_scores is 'bm25'")):
        with pytest.raises(InputError, match=message):
            RagPipeline(model, rag.Found(), rag.tokenizers(), **options)
    with pytest.raises(InputError, match="unknown parameter 'Reader'"):
        RagPipeline(model, rag.Found(), rag.tokenizers()).run(rag.QUESTIONS[0], {"Reader": {}})
    with pytest.raises(InputError, match="expected a question or a list of questions"):
        RagPipeline(model, rag.Found(), rag.tokenizers())(3)
    with pytest.raises(InputError, match="pass tokenizers"):
        RagPipeline(model, rag.Found())


def test_documents_of_generate_are_checked(config):
    model = SimpleNamespace(config=config.generator, generation_config=GenerationConfig())
    decoder = SimpleNamespace(config=config_from_hf({"model_type": "gpt2"}), generation_config=GenerationConfig())
    ids = np.full((6, 4), 5)
    for changes, message in (
        ({"doc_scores": np.zeros((2, 2))}, r"doc_scores has shape \(2, 2\), but there are 6 sources"),
        ({"doc_scores": np.full((2, 3), np.nan)}, "not finite"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "cannot be combined with assistant_model"),
        ({"encoder_no_repeat_ngram_size": 2}, "reads one source"),
        ({"model": decoder}, "a gpt2 has none"),
    ):
        given = {"model": model, "doc_scores": np.zeros((2, 3)), **changes}
        extras = driver.Extras(doc_scores=given.pop("doc_scores"))
        with pytest.raises(InputError, match=message):
            driver.prepare(given.pop("model"), ids, None, None, extras, given)
    (call,) = driver.prepare(
        model, ids, None, None, driver.Extras(doc_scores=np.zeros((2, 3))), {"decoder_start_token_id": 2}
    )
    assert call.plan.documents == 3 and call.values["source_ids"].shape == (6, 4) and len(call.prompt.original) == 2
