"""Compare RAG models with Transformers' RagSequenceForGeneration and RagTokenForGeneration.

Without torch, with what it has computed before (tests/reference/rag.npz); with ``-m parity``, with the models themselves.
"""

import functools
from importlib import import_module

import numpy as np
import pytest

from duonlp.rag import RagBatches, RagPipeline, RagTokenizers
from duonlp.training.fit_config import FitConfig
from tests import rag
from tests.engines import difference
from tests.reference.record_rag import FILE, projection

FRAMEWORKS = ("jaxnlp", "tfnlp")
load = functools.cache(rag.load)


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", rag.CLASSES)
def test_losses_and_logits(framework, name):
    model, data = load(framework, name), rag.inputs()
    arrays = {key: value.reshape(rag.ROWS, rag.DOCUMENTS, -1) for key, value in rag.context(data).items()}
    arrays |= {"labels": np.where(data["labels"] == rag.PAD, -100, data["labels"]), "doc_scores": rag.SCORES}
    for label, out in rag.outputs(framework, model, rag.LOSSES[name], **arrays).items():
        for key in ("loss", "logits"):
            assert difference(out[key], recorded()[f"{name}/{label}/{key}"]) < 1e-5, (label, key)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", rag.CLASSES)
def test_gradients_reach_both_parts(framework, name):
    loss, gradients = rag.gradients(framework, load(framework, name))
    assert abs(loss - recorded()[f"{name}/trained/loss"]) < 1e-5 * loss
    prefix = f"{name}/gradient/"
    expected = {key.removeprefix(prefix): value for key, value in recorded().items() if key.startswith(prefix)}
    # Where the gradient is 0, as for the biases of keys, both have only rounding errors.
    scale = max(value[0] for value in expected.values())
    for path, (norm, product) in expected.items():
        ours = projection(path, gradients[path])
        assert np.abs(ours - (norm, product)).max() < 1e-4 * max(norm, 1e-3 * scale), path
    assert max(np.abs(value).max() for path, value in gradients.items() if path.startswith("question_encoder")) > 1e-3


QUICK = ("ends", "fast")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("name", "label"),
    [
        pytest.param(name, label, marks=() if label in QUICK else pytest.mark.parity)
        for name in rag.CLASSES
        for label in rag.DECODING[name]
    ],
)
def test_generated_ids(framework, name, label):
    options = rag.DECODING[name][label]
    ids = load(framework, name).generate(**rag.context(rag.inputs()), doc_scores=rag.SCORES, max_length=8, **options)
    end = options.get("eos_token_id", rag.EOS)
    assert rag.without_padding(ids, end) == rag.without_padding(recorded()[f"{name}/ids/{label}"], end)


@pytest.mark.parity
@pytest.mark.parametrize("name", rag.CLASSES)
def test_the_record_is_what_torch_computes(name):
    answers = rag.torch_answers(name)
    # Where the gradient is 0, as for the biases of keys, both have only rounding errors.
    scale = max(np.abs(value).max() for key, value in answers.items() if key.startswith("gradient/"))
    for key, value in answers.items():
        path, expected = key.removeprefix("gradient/"), recorded()[f"{name}/{key}"]
        if path == key:
            assert (value.shape == expected.shape) and difference(value, expected) < 1e-6, key
            continue
        assert np.abs(projection(path, value) - expected).max() < 1e-5 * max(expected[0], 1e-2 * scale), key
        for framework in FRAMEWORKS:
            ours = _gradients(framework, name)[path]
            assert np.abs(ours - value).max() < 1e-4 * max(np.abs(value).max(), 1e-3 * scale), (framework, path)


@functools.cache
def _gradients(framework: str, name: str) -> dict[str, np.ndarray]:
    return rag.gradients(framework, load(framework, name))[1]


@pytest.mark.parity
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", rag.CLASSES)
def test_saved_models_load_into_transformers(framework, name, tmp_path):
    import torch
    import transformers

    model, data = load(framework, name), rag.inputs()
    model.save_pretrained(tmp_path / "saved")
    cls = getattr(transformers, rag.CLASSES[name])
    theirs, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True)
    missing = {key for key in info["missing_keys"] if ".pooler." not in key}
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    tensors = {key: torch.tensor(value).long() for key, value in rag.context(data).items()}
    loss = theirs.eval()(
        **tensors, labels=torch.tensor(data["labels"]).long(), doc_scores=torch.tensor(rag.SCORES)
    ).loss
    assert difference(loss.detach().numpy(), recorded()[f"{name}/plain/loss"]) < 1e-5


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_training_lowers_the_loss_and_saving_keeps_the_model(framework, tmp_path):
    model = rag.load(framework, "RagToken")
    before = np.asarray(model.encode_questions(**rag.questions()))
    batches = RagBatches(
        rag.QUESTIONS, rag.ANSWERS, rag.documents(), rag.tokenizers(), model.config, 2, shuffle=False
    )  # fmt: skip
    fit = import_module(f"{framework}.training").fit
    config = FitConfig(steps=4, learning_rate=3e-3, evaluate_every=4, warmup_share=0.0)
    result = fit(model, batches, config, tmp_path / "run", validation=batches)
    losses = [record["train_loss"] for record in result.learning_curve]
    assert result.history[-1]["loss"] < 0.8 * losses[0]
    trained = result.model
    assert np.abs(np.asarray(trained.encode_questions(**rag.questions())) - before).max() > 1e-3
    saved = type(trained).from_pretrained(tmp_path / "run/best")
    assert difference(saved.encode_questions(**rag.questions()), trained.encode_questions(**rag.questions())) < 1e-6
    answers = RagPipeline(saved, rag.Found(), rag.tokenizers(), num_beams=2, max_length=6)(
        rag.QUESTIONS[0], top_k_generator=2
    )
    assert len(answers) == 2 and answers[0].score >= answers[1].score
    assert [document.id for document in answers[0].documents] == ["fox0", "fox1", "fox2"]
    assert abs(sum(answers[0].probabilities) - 1) < 1e-6


@pytest.mark.parity
@pytest.mark.parametrize("name", rag.CLASSES)
def test_both_engines_learn_the_same(name):
    curves = []
    for framework in FRAMEWORKS:
        model = rag.load(framework, name)
        batches = RagBatches(rag.QUESTIONS, rag.ANSWERS, rag.documents(), rag.tokenizers(), model.config, 2)
        config = FitConfig(steps=6, learning_rate=1e-3, evaluate_every=0, label_smoothing=0.1)
        result = import_module(f"{framework}.training").fit(model, batches, config)
        curves.append([record["train_loss"] for record in result.learning_curve])
    assert difference(*map(np.array, curves)) < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("encoder", ["dpr", "bert"])
def test_models_saved_by_transformers_load(encoder, tmp_path):
    import transformers

    theirs, data = rag.torch_model("RagSequence", encoder), rag.inputs()
    theirs.save_pretrained(tmp_path / "saved")
    for subfolder, tokenizer in rag.tokenizers().by_folder().items():
        tokenizer.save_pretrained(tmp_path / "saved" / subfolder)
    arrays = {**rag.context(data), "labels": data["labels"], "doc_scores": rag.SCORES}
    for framework in FRAMEWORKS:
        model = import_module(f"{framework}.rag").RagSequence.from_pretrained(tmp_path / "saved", n_docs=4)
        (out,) = rag.outputs(framework, model, {"plain": {}}, **arrays).values()
        assert model.config.n_docs == 4 and difference(out["loss"], recorded()["RagSequence/plain/loss"]) < 1e-5
        model.save_pretrained(tmp_path / framework, RagTokenizers.from_pretrained(tmp_path / "saved"))
        assert transformers.AutoConfig.from_pretrained(tmp_path / framework).n_docs == 4
        assert RagTokenizers.from_pretrained(tmp_path / framework).generator("red")["input_ids"] == [0, 11, 2]
