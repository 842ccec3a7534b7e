"""In-batch negatives with Keras: towers learn, are saved as what they are, resume, and replicas share negatives."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import tfnlp
from duonlp.errors import InputError
from duonlp.retrieval import DPREncoder, SentenceEncoder
from duonlp.training.in_batch_negatives import InBatchNegatives
from tests.biencoders import CONFIG, NOISE, QUIET, WORDS, batches, hf, tokenizer
from tfnlp.retrieval import BiEncoder, fit_biencoder
from tfnlp.training import make_optimizer

pytestmark = pytest.mark.usefixtures("eagerly")


def towers():
    context = hf(architectures=["DPRContextEncoder"])
    return tfnlp.AutoModel.from_config(hf(), seed=1), tfnlp.AutoModel.from_config(context, seed=2)


def vector(model, text):
    ids = {name: np.array([values]) for name, values in tokenizer()(text).items()}
    return np.asarray(model(**ids)["pooler_output"])


def test_two_towers_learn_and_are_saved(tmp_path):
    question, context = towers()
    result = fit_biencoder(
        question, batches(), replace(CONFIG, evaluate_every="epoch"), tmp_path, passage_model=context,
        validation=batches(shuffle=False), tokenizer=tokenizer(), log=QUIET,
    )  # fmt: skip
    losses = [metrics["loss"] for metrics in result.history]
    assert losses[-1] < 0.9 * losses[0] and result.examples == 6 * 4
    assert isinstance(result.model, BiEncoder) and result.model.passage_model is context
    folders = [result.best_folder / name for name in ("question_encoder", "context_encoder")]
    classes = [json.loads((folder / "config.json").read_text())["architectures"] for folder in folders]
    assert classes == [["DPRQuestionEncoder"], ["DPRContextEncoder"]]
    encoder = DPREncoder(*(tfnlp.pipeline("sentence-embedding", folder) for folder in folders))
    assert np.allclose(encoder.encode_queries([WORDS[0]]), vector(result.model.question_model, WORDS[0]), atol=1e-5)
    assert np.allclose(encoder.encode_documents([WORDS[1]]), vector(result.model.passage_model, WORDS[1]), atol=1e-5)


def test_one_model_for_both_is_saved_as_a_sentence_encoder(tmp_path, compiled):
    model = tfnlp.AutoModel.from_config(hf("bert"), seed=1)
    settings = InBatchNegatives("cls", normalize=True, scale=10.0)
    result = fit_biencoder(model, batches(), replace(CONFIG, epochs=2), settings=settings, log=QUIET)
    result.model.save_pretrained(tmp_path, tokenizer())
    encoder = SentenceEncoder(tfnlp.pipeline("sentence-embedding", tmp_path))
    assert encoder.pipe.task.sentence.pooling == ("cls",) and encoder.normalize
    loaded = tfnlp.AutoModel.from_pretrained(tmp_path)
    assert InBatchNegatives.for_model(loaded) == InBatchNegatives("cls")
    texts = ["Which loom?", "the loom wrote"]
    ids = {name: np.array(values) for name, values in tokenizer()(texts, padding=True).items()}
    expected = model(**ids)["last_hidden_state"].numpy()[:, 0]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(encoder.encode_queries(texts), expected, atol=1e-5)


def test_a_run_resumes_bit_identically(tmp_path):
    whole = fit_biencoder(towers()[0], batches(), CONFIG, passage_model=towers()[1], log=QUIET)
    options = {"save_every": 3, "steps": 8}
    config = replace(CONFIG, **options)

    class Stopped(Exception):
        pass

    def stop(step, metrics):
        raise Stopped

    with pytest.raises(Stopped):
        fit_biencoder(
            towers()[0], batches(), replace(config, evaluate_every=4), tmp_path, passage_model=towers()[1],
            validation=batches(shuffle=False), on_evaluation=stop, log=QUIET,
        )  # fmt: skip
    resumed = fit_biencoder(
        towers()[0], batches(), replace(config, evaluate_every=0), tmp_path, passage_model=towers()[1], log=QUIET
    )
    ours, theirs = (result.model.parameter_tree() for result in (resumed, whole))
    assert resumed.steps == whole.steps == 8 and ours.keys() == theirs.keys() and len(ours) > 40
    assert all(np.array_equal(ours[path].numpy(), theirs[path].numpy()) for path in ours)


def run_steps(strategy):
    """Return losses and parameters of ``fit`` with the rows of an uneven batch spread over replicas."""
    with strategy.scope():
        question, context = towers()
    result = fit_biencoder(
        question, batches(6, words=WORDS[:5]), replace(CONFIG, clip_norm=0.1, evaluate_every="epoch"), passage_model=context,
        validation=batches(4, shuffle=False), log=QUIET,
    )  # fmt: skip
    tree = result.model.parameter_tree().items()
    values = {path: variable.numpy() for path, variable in tree if not path.endswith(NOISE)}
    return {"losses": np.array([result.loss, *(metrics["loss"] for metrics in result.history)])} | values


def test_usage_errors():
    question, context = towers()
    classifier = tfnlp.AutoModelForSequenceClassification.from_config(hf("bert"))
    bert, small = (
        tfnlp.AutoModel.from_config(hf(kind, **o)) for kind, o in (("bert", {}), ("dpr", {"projection_dim": 3}))
    )
    (first, *_) = batches().epoch(0)
    without = {name: value for name, value in first.items() if not name.startswith("passage_")}
    for call, message in {
        lambda: fit_biencoder(
            question, batches(), replace(CONFIG, accumulation=2)
        ): "accumulation is 2, but a question's",
        lambda: fit_biencoder(question, batches(), replace(CONFIG, label_smoothing=0.1)): "label_smoothing is 0.1",
        lambda: fit_biencoder(
            question, batches(), replace(CONFIG, layer_decay=0.9), passage_model=context
        ): "layer_decay is 0.9",
        lambda: BiEncoder(classifier, settings=InBatchNegatives()): "a sequence-classification model is no encoder",
        lambda: BiEncoder(bert, settings=InBatchNegatives("pooler")): "a bert is not embedded by its pooled output",
        lambda: BiEncoder(question, small): "vectors of the two models have 3 and 16 values",
        lambda: InBatchNegatives("max"): "pooling is 'max'",
        lambda: InBatchNegatives(scale=0): "scale is 0",
        lambda: BiEncoder("folder"): "'folder' is not a model; load an encoder",
        lambda: InBatchNegatives(scale="20"): "scale is '20'",
        lambda: InBatchNegatives(normalize="no"): "normalize is 'no'",
        lambda: fit_biencoder(question, [without], CONFIG, log=QUIET): "in-batch negatives need passage_input_ids",
        lambda: fit_biencoder(
            question, [{"input_ids": first["input_ids"]}], CONFIG, log=QUIET
        ): "no candidates and positives",
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_compile_and_fit_of_keras():
    model = BiEncoder(*towers())
    model.compile(make_optimizer("adamw", 1e-2, model), jit_compile=False)
    data = next(iter(batches(6, shuffle=False).epoch(0)))
    history = model.fit(tf.data.Dataset.from_tensors(data).repeat(3), epochs=3, steps_per_epoch=1, verbose=0).history[
        "loss"
    ]
    assert history[2] < history[0] and set(
        model.evaluate(tf.data.Dataset.from_tensors(data), verbose=0, return_dict=True)
    ) == {"loss"}
