"""In-batch negatives in JAX: towers learn, are saved as what they are, resume, and devices share negatives."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxnlp
from duonlp.errors import InputError
from duonlp.retrieval import DPREncoder, SentenceEncoder
from duonlp.training.in_batch_negatives import InBatchNegatives
from jaxnlp.pretrained import split
from jaxnlp.retrieval import BiEncoder, BiEncoderStep, fit_biencoder
from jaxnlp.training import make_mesh
from tests.biencoders import CONFIG, NOISE, QUIET, WORDS, batches, hf, tokenizer


def towers():
    context = hf(architectures=["DPRContextEncoder"])
    return jaxnlp.AutoModel.from_config(hf(), seed=1), jaxnlp.AutoModel.from_config(context, seed=2)


def one_device():
    return make_mesh({}, jax.devices()[:1])


def leaves(model):
    models = (model.question_model, *([model.passage_model] if model.passage_model is not None else []))
    flat = [jax.tree_util.tree_leaves_with_path(split(part)[1]) for part in models]
    return {f"{i}/{'/'.join(k.key for k in path)}": np.asarray(v) for i, part in enumerate(flat) for path, v in part}


def vector(model, text):
    ids = {name: np.array([values]) for name, values in tokenizer()(text).items()}
    return np.asarray(model(**ids)["pooler_output"])


def test_two_towers_learn_are_saved_and_resume(tmp_path):
    question, context = towers()
    config = replace(CONFIG, evaluate_every="epoch", save_every="epoch")
    options = {"passage_model": context, "validation": batches(shuffle=False), "mesh": one_device(), "log": QUIET}
    result = fit_biencoder(question, batches(), config, tmp_path / "a", tokenizer=tokenizer(), **options)
    losses = [metrics["loss"] for metrics in result.history]
    assert losses[-1] < 0.9 * losses[0] and result.examples == 6 * 4
    folders = [result.best_folder / name for name in ("question_encoder", "context_encoder")]
    classes = [json.loads((folder / "config.json").read_text())["architectures"] for folder in folders]
    assert classes == [["DPRQuestionEncoder"], ["DPRContextEncoder"]]
    encoder = DPREncoder(*(jaxnlp.pipeline("sentence-embedding", folder) for folder in folders))
    assert np.allclose(encoder.encode_queries([WORDS[0]]), vector(result.model.question_model, WORDS[0]), atol=1e-5)
    assert np.allclose(encoder.encode_documents([WORDS[1]]), vector(result.model.passage_model, WORDS[1]), atol=1e-5)

    class Stopped(Exception):
        pass

    def stop(step, metrics):
        if step == 6:
            raise Stopped

    with pytest.raises(Stopped):
        fit_biencoder(question, batches(), config, tmp_path / "b", on_evaluation=stop, **options)
    resumed = fit_biencoder(question, batches(), config, tmp_path / "b", **options)
    assert resumed.steps == result.steps == 8
    expected = leaves(result.model)
    assert all(np.array_equal(values, expected[path]) for path, values in leaves(resumed.model).items())


def test_one_model_for_both_is_saved_as_a_sentence_encoder(tmp_path):
    model = jaxnlp.AutoModel.from_config(hf("bert"), seed=1)
    settings = InBatchNegatives("cls", normalize=True, scale=10.0)
    result = fit_biencoder(model, batches(), replace(CONFIG, epochs=2), settings=settings, mesh=one_device(), log=QUIET)
    result.model.save_pretrained(tmp_path, tokenizer())
    encoder = SentenceEncoder(jaxnlp.pipeline("sentence-embedding", tmp_path))
    assert encoder.pipe.task.sentence.pooling == ("cls",) and encoder.normalize
    assert InBatchNegatives.for_model(jaxnlp.AutoModel.from_pretrained(tmp_path)) == InBatchNegatives("cls")
    texts = ["Which loom?", "the loom wrote"]
    ids = {name: np.array(values) for name, values in tokenizer()(texts, padding=True).items()}
    expected = np.asarray(result.model.question_model(**ids)["last_hidden_state"])[:, 0]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(encoder.encode_queries(texts), expected, atol=1e-5)


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_the_negatives_are_those_of_all_devices(parallelism):
    config = replace(CONFIG, epochs=2, clip_norm=0.1)
    question, context = towers()
    one, several = (
        fit_biencoder(
            question, batches(6, words=WORDS[:5]), replace(config, parallelism=kind), passage_model=context,
            validation=batches(shuffle=False), mesh=make_mesh({"data": count}, jax.devices()[:count]), log=QUIET,
        )
        for kind, count in (("jit", 1), (parallelism, 2))
    )  # fmt: skip
    assert several.loss == pytest.approx(one.loss, rel=1e-5)
    expected = leaves(one.model)
    for path, values in leaves(several.model).items():
        if not path.endswith(NOISE):
            np.testing.assert_allclose(values, expected[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_usage_errors():
    question, context = towers()
    classifier = jaxnlp.AutoModelForSequenceClassification.from_config(hf("bert"))
    (first, *_) = batches().epoch(0)
    without = {name: value for name, value in first.items() if not name.startswith("passage_")}
    step = BiEncoderStep(BiEncoder(question, context), CONFIG, one_device())
    for call, message in {
        lambda: fit_biencoder(
            question, batches(), replace(CONFIG, accumulation=2)
        ): "accumulation is 2, but a question's",
        lambda: fit_biencoder(
            classifier, batches(), settings=InBatchNegatives()
        ): "sequence-classification model is no",
        lambda: fit_biencoder("folder", batches()): "'folder' is not a model; load an encoder",
        lambda: BiEncoder(classifier, settings=InBatchNegatives()): "sequence-classification model is no",
        lambda: step.put(without): "in-batch negatives need passage_input_ids",
        lambda: step.put({"input_ids": first["input_ids"]}): "no candidates and positives",
        lambda: step.put(first | {"candidates": first["candidates"][:1]}): r"they must be \[B, P, length\]",
        lambda: step.put(first | {"passage_input_ids": first["passage_input_ids"] + 900}): "input_ids contains",
    }.items():
        with pytest.raises(InputError, match=message):
            call()
