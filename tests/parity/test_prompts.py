"""Prompts in both frameworks: logits at given positions, loss curves, classifiers, and gradients against PyTorch."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("orbax.checkpoint")

import jaxnlp
import jaxnlp.losses
import jaxnlp.ops
import jaxnlp.training
import tfnlp
import tfnlp.losses
import tfnlp.ops
import tfnlp.training
from duonlp.errors import InputError
from duonlp.fewshot import FewShotData, load_classifier
from duonlp.fewshot.in_context import InContext, label_tokens
from duonlp.fewshot.prompting import Adapet, PromptTuning, PromptZeroShot
from duonlp.inputs import model_inputs
from duonlp.prompts import PromptBatches, Verbalizer, as_patterns
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.objectives import DecoupledLoss, PromptAndTextLoss
from tests.cases import SIZES, Case
from tests.intents import LABELS
from tests.prompts import LENGTH, PATTERN, VERBALIZER, labelled, mask_tokenizer, masked_checkpoint

ENGINES = {"tfnlp": tfnlp, "jaxnlp": jaxnlp}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_checkpoint(tmp_path_factory.mktemp("prompts") / "bert")


def make_batches(multi_label: bool, text_mode: str) -> PromptBatches:
    data = labelled(6, multi_label)
    return PromptBatches(
        mask_tokenizer(), as_patterns(PATTERN), Verbalizer.of(LABELS, VERBALIZER), data.texts, data.labels, 4,
        max_length=LENGTH, text_mode=text_mode, other_texts=data.texts,
    )  # fmt: skip


def make_objective(multi_label: bool, text_mode: str):
    words = Verbalizer.of(LABELS, VERBALIZER).tokens(mask_tokenizer(), as_patterns(PATTERN))
    if text_mode == "label":
        return DecoupledLoss(words, multi_label)
    return PromptAndTextLoss(words, multi_label, prior=(0.1, -0.2, 0.0, 0.3) if multi_label else (), alpha=0.3)


@pytest.mark.parametrize("package", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("model_type", "head"), [("bert", "masked-lm"), ("gpt2", "causal-lm")])
def test_logits_at_positions_are_those_of_all_positions(tmp_path, package, model_type, head):
    case = Case(model_type, {"model_type": model_type, **SIZES.get(model_type, SIZES["albert"])}, head)
    case.write(tmp_path)
    auto = package.AutoModelForMaskedLM if model_type == "bert" else package.AutoModelForCausalLM
    model, rng = auto.from_pretrained(tmp_path), np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(1, 50, (3, 9)), "attention_mask": np.ones((3, 9), int)}
    positions = np.array([[8, 0], [3, 3], [1, 2]])
    every = np.asarray(model(**inputs)["logits"])
    some = package.compiled(model)(**inputs, logit_positions=positions)["logits"]
    np.testing.assert_allclose(some, every[np.arange(3)[:, None], positions], atol=1e-5)
    if package is jaxnlp:
        with pytest.raises(InputError, match="logit_positions contains 9"):
            model(**inputs, logit_positions=positions + 1)
        with pytest.raises(InputError, match="logit_positions leaves out the logits that labels"):
            model(**inputs, logit_positions=positions, labels=inputs["input_ids"])
        with pytest.raises(InputError, match=r"logit_positions has shape \(3,\)"):
            model(**inputs, logit_positions=positions[:, 0])


@pytest.mark.parametrize(("multi_label", "text_mode"), [(False, "mask"), (True, "label")])
def test_the_curves_agree(tmp_path, folder, multi_label, text_mode):
    """With six texts, so that the second batch of each epoch has rows that do not count."""
    losses = {}
    for name, package in ENGINES.items():
        config = FitConfig(steps=4, learning_rate=3e-3, log_every=1, evaluate_every=0, save_every=0)
        model = package.AutoModelForMaskedLM.from_pretrained(folder)
        objective, options = make_objective(multi_label, text_mode), {"log": {"console": False}}
        package.training.fit(
            model, make_batches(multi_label, text_mode), config, tmp_path / name, objective=objective, **options
        )
        losses[name] = [record["loss"] for record in read_metrics(tmp_path / name)]
    assert len(losses["jaxnlp"]) == 4
    np.testing.assert_allclose(losses["tfnlp"], losses["jaxnlp"], rtol=0, atol=1e-4)


def test_classifiers_agree_and_can_be_loaded_by_the_other_engine(tmp_path, folder):
    data, texts = FewShotData(labelled(8)), labelled(5).texts
    options = {"pattern": PATTERN, "verbalizer": VERBALIZER, "max_length": LENGTH, "batch_size": 4}
    for package, other in ((tfnlp, jaxnlp), (jaxnlp, tfnlp)):
        classifier = PromptZeroShot(str(folder), **options).fit(package, data)
        scores = classifier.scores(texts)
        assert scores.shape == (5, 4) and scores.dtype == np.float32
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
        classifier.save(tmp_path / package.__name__)
        loaded = load_classifier(tmp_path / package.__name__, other)
        assert loaded.label_names == LABELS and not loaded.multi_label
        np.testing.assert_allclose(loaded.scores(texts), scores, atol=1e-5)


def test_training_learns_and_the_seed_decides(folder):
    """The tiny model learns the keywords; two patterns are averaged."""
    data = labelled(16, multi_label=True)
    method = PromptTuning(
        str(folder), [PATTERN, "{text} is {mask} ."], VERBALIZER, max_length=LENGTH, steps=60, learning_rate=2e-2
    )
    classifier = method.fit(jaxnlp, FewShotData(data), seed=1)
    assert ((classifier.scores(data.texts) > 0.5) == data.labels).mean() > 0.85
    method = Adapet(str(folder), PATTERN, VERBALIZER, max_length=LENGTH, steps=2)
    scores = [method.fit(jaxnlp, FewShotData(data), seed=seed).scores(data.texts) for seed in (1, 1, 2)]
    assert (scores[0] == scores[1]).all() and (scores[0] != scores[2]).any()


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """Write a small GPT-2 with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("in-context") / "gpt2"
    tokenizer = json.loads((Path(__file__).parents[1] / "reference/pipelines/gpt2.json").read_text())
    Case("gpt2", SIZES["gpt2"] | {"model_type": "gpt2", "vocab_size": 2000, "n_positions": 128}, "causal-lm").write(
        folder
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_behind_examples_have_the_log_probability_of_their_texts(tmp_path, causal, multi_label):
    """In one forward pass for all labels, they are those of sequence_logprob, which reads each of them behind the prompt."""
    data, scores = FewShotData(labelled(8, multi_label)), {}
    texts = ["hello the song", "rain today please now"]
    for name, package in ENGINES.items():
        classifier = InContext(str(causal), shots=3, max_length=8, batch_size=2).fit(package, data, seed=1)
        assert classifier.examples.count("Label:") == 3
        scores[name] = classifier.raw_scores(texts)
        tokens = label_tokens(classifier.tokenizer, classifier.template, classifier.words)
        assert max(map(len, tokens)) > 1
        sequence_logprob = importlib.import_module(f"{name}.generation").sequence_logprob
        for i, prompt in enumerate(classifier.prompts(texts, 110)):
            rows = [np.concatenate([prompt, word]) for word in tokens]
            ids, mask = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
            for row, values in enumerate(rows):
                ids[row, : len(values)], mask[row, : len(values)] = values, 1
            expected = sequence_logprob(classifier.model, ids, len(prompt), mask)
            np.testing.assert_allclose(scores[name][i], expected, atol=1e-4)
        probabilities = classifier.scores(texts)
        classifier.save(tmp_path / name)
    np.testing.assert_allclose(scores["tfnlp"], scores["jaxnlp"], atol=1e-4)
    loaded = load_classifier(tmp_path / "jaxnlp", tfnlp)
    np.testing.assert_allclose(loaded.scores(texts), probabilities, atol=1e-5)
    with pytest.raises(InputError, match="set fewer shots"):
        InContext(str(causal), shots=8).fit(jaxnlp, FewShotData(labelled(8)))


@pytest.mark.parity
@pytest.mark.parametrize("multi_label", [False, True])
def test_adapet_gradients_match_torch(folder, multi_label):
    torch = pytest.importorskip("torch")
    from duonlp import architectures
    from duonlp.checkpoints.layouts import our_layout
    from tests.engines import difference, torch_model

    objective, batch = make_objective(multi_label, "label"), make_batches(multi_label, "label").batch(0, 1)
    model = torch_model(folder, "masked-lm").eval()
    logits = []
    for group in objective.groups:
        inputs = {name: torch.tensor(value).long() for name, value in group.inputs(jax_config(folder), batch).items()}
        positions = inputs.pop("logit_positions")
        out = model(**inputs).logits
        logits.append(torch.take_along_dim(out, positions[..., None], 1))
    expected = torch_loss(torch, logits, objective.words, batch, multi_label)
    expected.backward()

    ours = jaxnlp.AutoModelForMaskedLM.from_pretrained(folder)
    apply, params = jaxnlp.functional(ours)

    def loss(params):
        outputs = [
            apply(params, **model_inputs(ours.config, group.inputs(ours.config, batch))) for group in objective.groups
        ]
        terms = objective.terms(jaxnlp.ops, jaxnlp.losses, "masked-lm", ours.config, outputs, batch, {})
        return sum(total / count * factor for total, count, factor in terms.values())

    value, tree = jax.value_and_grad(loss)(params)
    keras = tfnlp.AutoModelForMaskedLM.from_pretrained(folder)
    with tf.GradientTape() as tape:
        outputs = [keras(group.inputs(keras.config, batch), training=False) for group in objective.groups]
        terms = objective.terms(tfnlp.ops, tfnlp.losses, "masked-lm", keras.config, outputs, batch, {})
        total = tf.add_n([total / count * factor for total, count, factor in terms.values()])
    variables = tfnlp.parameter_tree(keras)
    slopes = tape.gradient(total, [variable.value for variable in variables.values()])
    in_keras = {
        path: tf.convert_to_tensor(slope).numpy() for path, slope in zip(variables, slopes) if slope is not None
    }
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    in_jax = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
    named, compared = dict(model.named_parameters()), 0
    for row in architectures.get("bert").weights(ours.config, "masked-lm"):
        if row.path in in_jax and row.name in named and named[row.name].grad is not None:
            slope = our_layout(row.layout, named[row.name].grad.numpy())
            if row.path.endswith(
                "key/bias"
            ):  # adds the same to all scores of a query, so its gradient is 0 but for rounding
                assert max(np.abs(x).max() for x in (slope, in_jax[row.path], in_keras[row.path])) < 1e-6
                continue
            assert difference(in_jax[row.path], slope) < 1e-4, row.path
            assert difference(in_keras[row.path], slope) < 1e-4, row.path
            compared += 1
    assert compared > 15


def jax_config(folder):
    return jaxnlp.AutoModelForMaskedLM.from_pretrained(folder).config


def torch_loss(torch, logits, words, batch, multi_label):
    """Return ADAPET's loss of a batch, written out token by token."""
    bce = torch.nn.functional.binary_cross_entropy
    masks, texts = logits
    own = [{word[k] for label in words for word in label if len(word) > k} for k in range(masks.shape[1])]
    decoupled, conditioned = [], []
    for i in np.flatnonzero(batch["row_mask"]):
        labels = batch["labels"][i]
        has = [bool(labels[c]) if multi_label else c == labels for c in range(len(words))]
        positive = {(k, v) for c in np.flatnonzero(has) for word in words[c] for k, v in enumerate(word)}
        for k, v in ((k, v) for label in words for word in label for k, v in enumerate(word)):
            p = masks[i, k].softmax(-1)[v]
            if multi_label:
                rest = [t for t in range(masks.shape[-1]) if t not in own[k]]
                p = torch.cat([masks[i, k, v][None], masks[i, k, rest]]).softmax(-1)[0]
            decoupled.append(bce(p, torch.tensor(float((k, v) in positive))))
        for j in np.flatnonzero(batch["text_labels"][i] >= 0):
            p = texts[i, j].softmax(-1)[batch["text_labels"][i, j]]
            conditioned.append(bce(p, torch.tensor(float(batch["text_target"][i]))))
    return torch.stack(decoupled).mean() + torch.stack(conditioned).mean()
