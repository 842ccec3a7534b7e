"""Sentence embedding: the files of sentence-transformers, pooling, normalization, prompts."""

import json
import math
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from duonlp.architectures import config_from_hf
from duonlp.errors import CheckpointError, InputError
from duonlp.pipelines.pipeline import make_pipeline
from duonlp.tasks.sentence_config import l2_normalize, read_sentence_config
from tests.reference import record_pipelines as reference

TEXTS = ["Ada Lovelace wrote", "The loom", "a"]
NEW, OLD = "sentence_transformers.sentence_transformer.modules.", "sentence_transformers.models."


def write(folder, modules=("Transformer", "Pooling"), prefix=OLD, pooling=None, **files):
    """Write a folder like sentence-transformers does; ``files`` are further JSON files by name."""
    places = [
        {"idx": i, "name": str(i), "path": f"{i}_{m}" if i else "", "type": prefix + m} for i, m in enumerate(modules)
    ]
    for place in places:
        (folder / place["path"]).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(places))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def make(folder=None, tokenizer="wordpiece", **options):
    tokenizer = reference.load_tokenizer(tokenizer)
    hf = {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2}
    config = config_from_hf(hf | {"max_position_embeddings": 128})
    model = reference.NumpyModel(len(tokenizer))
    return make_pipeline("sentence-embedding", model, tokenizer, config, folder, **options), model


def mean(model, tokenizer, text):
    row = {key: np.array([value]) for key, value in tokenizer(text).items()}
    return model.hidden(**row)[0].mean(0)


def test_shapes_and_the_mean(tmp_path):
    pipe, model = make(write(tmp_path))
    vectors = pipe(TEXTS)
    assert vectors.shape == (3, 16) and vectors.dtype == np.float32
    assert np.allclose(vectors, [mean(model, pipe.tokenizer, text) for text in TEXTS], atol=1e-6)
    one = pipe(TEXTS[0])
    assert one.shape == (16,) and np.allclose(one, vectors[0], atol=1e-6)
    assert pipe([]).shape == (0, 16)
    assert [v.shape for v in pipe(iter(TEXTS))] == [(16,)] * 3


def test_normalization(tmp_path):
    pipe, _ = make(write(tmp_path, ("Transformer", "Pooling", "Normalize")))
    assert np.allclose(np.linalg.norm(pipe(TEXTS), axis=1), 1)
    raw = pipe(TEXTS, normalize=False)
    assert np.allclose(l2_normalize(raw), pipe(TEXTS)) and not np.allclose(raw, pipe(TEXTS))
    plain, _ = make(write(tmp_path))
    assert np.allclose(plain(TEXTS), raw) and np.allclose(plain(TEXTS, normalize=True), pipe(TEXTS))
    assert np.allclose(l2_normalize(np.zeros((1, 3))), 0)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["weightedmean", "cls"]}, ("weightedmean", "cls")),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
    ],
)
@pytest.mark.parametrize("prefix", [OLD, NEW])
def test_poolings(tmp_path, pooling, modes, prefix):
    folder = write(tmp_path, pooling={"word_embedding_dimension": 16, **pooling}, prefix=prefix)
    assert read_sentence_config(folder).pooling == modes
    pipe, _ = make(folder)
    assert pipe(TEXTS).shape == (3, 16 * len(modes)) and pipe([]).shape == (0, 16 * len(modes))


def test_a_dense_layer(tmp_path):
    write(tmp_path, ("Transformer", "Pooling", "Dense", "Normalize"))
    random = np.random.RandomState(0)
    weight, bias = random.normal(size=(3, 16)).astype(np.float32), random.normal(size=3).astype(np.float32)
    (tmp_path / "2_Dense" / "config.json").write_text(
        json.dumps({"in_features": 16, "out_features": 3, "activation_function": "torch.nn.modules.activation.Tanh"})
    )
    with pytest.raises(
        CheckpointError, match=r"2_Dense/model.safetensors is missing; convert the module's weights to safetensors"
    ):
        make(tmp_path)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")
    pipe, model = make(tmp_path)
    expected = l2_normalize(np.tanh(np.array([mean(model, pipe.tokenizer, t) for t in TEXTS]) @ weight.T + bias))
    assert np.allclose(pipe(TEXTS), expected, atol=1e-6) and pipe([]).shape == (0, 3)


def test_the_activations_of_dense_layers():
    from duonlp.tasks.sentence_config import ACTIVATIONS

    x = np.array([-1.5, 0.0, 2.0], np.float32)
    exact = {
        "Identity": x,
        "Tanh": [math.tanh(v) for v in x],
        "ReLU": [max(v, 0) for v in x],
        "Sigmoid": [1 / (1 + math.exp(-v)) for v in x],
        "GELU": [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x],
    }
    for name, values in exact.items():
        assert np.allclose(ACTIVATIONS[name](x), values, atol=1e-6), name


def test_lengths_and_lower_case(tmp_path):
    write(tmp_path, sentence_bert_config={"max_seq_length": 7, "do_lower_case": True})
    pipe, _ = make(tmp_path, "bpe")
    seen = []
    forward = pipe.forward
    pipe.forward = lambda batch: seen.append(batch) or forward(batch)
    long = pipe("ADA " * 30)
    assert seen[0]["attention_mask"].sum(1).tolist() == [7]
    assert np.allclose(long, pipe("ada " * 30)) and np.allclose(pipe("Ada"), pipe("ada"))
    pipe("Ada " * 30, max_length=5)
    assert seen[-1]["attention_mask"].sum(1).tolist() == [5]
    with pytest.raises(InputError, match="positions for 128; shorten it, or leave truncation=True"):
        pipe("Ada " * 300, truncation=False)


def test_the_length_in_the_files_overrides_the_tokenizer(tmp_path):
    pipe, _ = make(write(tmp_path, sentence_bert_config={"max_seq_length": 100}))
    assert pipe.tokenizer.model_max_length == 64 and pipe.task.limit() == 100


def test_prompts(tmp_path):
    saved = {"prompts": {"query": "The loom ", "doc": "Ada "}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    pipe, model = make(write(tmp_path, config_sentence_transformers=saved))
    assert pipe.task.similarity == "dot"
    with_prompt = pipe("weaves", prompt_name="query")
    assert np.allclose(with_prompt, pipe("The loom weaves")) and np.allclose(
        with_prompt, pipe("weaves", prompt="The loom ")
    )
    with pytest.raises(InputError, match="prompt_name is 'passage', but the checkpoint's prompts are 'query', 'doc'"):
        pipe("weaves", prompt_name="passage")
    default, _ = make(write(tmp_path, config_sentence_transformers=saved | {"default_prompt_name": "query"}))
    assert np.allclose(default("weaves"), with_prompt) and np.allclose(default("weaves", prompt=""), pipe("weaves"))

    write(tmp_path, pooling={"pooling_mode": "mean", "include_prompt": False}, config_sentence_transformers=saved)
    pipe, _ = make(tmp_path)
    skipped = len(pipe.tokenizer("The loom ")["input_ids"]) - 1
    row = {key: np.array([value]) for key, value in pipe.tokenizer("The loom weaves").items()}
    expected = model.hidden(**row)[0, skipped:].mean(0)
    assert np.allclose(pipe("weaves", prompt_name="query"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (
            ("Transformer", "CNN"),
            None,
            r"has an unsupported module, 'sentence_transformers.models.CNN'; use a checkpoint with only Transformer",
        ),
        (
            ("WordEmbeddings", "Pooling"),
            None,
            r"has an unsupported module, 'sentence_transformers.models.WordEmbeddings'",
        ),
        (("Transformer",), None, "has no Pooling module; use feature-extraction"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode": "median"},
            "has unsupported pooling 'median'; supported are cls, max",
        ),
        (("Transformer", "Pooling"), {"pooling_mode_median": True}, "has unsupported pooling 'pooling_mode_median'"),
    ],
)
def test_unsupported_checkpoints(tmp_path, modules, pooling, message):
    with pytest.raises(CheckpointError, match=message):
        make(write(tmp_path, modules, pooling=pooling))


def change_modules(folder, change):
    """Rewrite modules.json after ``change(modules)``."""
    modules = json.loads((folder / "modules.json").read_text())
    change(modules)
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (2, "evil.module.Dense"),
        (2, "Dense"),
        (2, "sentence_transformers.models.evil.Dense"),
        (2, "sentence_transformers.models.Dense.evil"),
        (1, "evil.Pooling"),
        (0, None),
        (0, ["sentence_transformers.models.Transformer"]),
    ],
)
def test_modules_that_sentence_transformers_does_not_have(tmp_path, number, kind):
    write(tmp_path, ("Transformer", "Pooling", "Normalize"))
    change_modules(tmp_path, lambda modules: modules[number].update(type=kind))
    with pytest.raises(CheckpointError, match=r"has an unsupported module, |\['type'\] is .*; it must be a text"):
        make(tmp_path)


@pytest.mark.parametrize(
    "name", ["base.modules.dense.Dense", "models.Dense.Dense", "sentence_transformer.modules.Dense"]
)
def test_every_version_of_a_module_is_known(tmp_path, name):
    from duonlp.tasks.sentence_config import MODULE_TYPES

    assert MODULE_TYPES[f"sentence_transformers.{name}"] == "Dense"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (("Transformer", "Pooling", "Pooling"), "has a second Pooling module"),
        (("Transformer", "Transformer", "Pooling"), "has a second Transformer module"),
        (
            ("Transformer", "Normalize", "Pooling"),
            "has Normalize as module 1; expected are Transformer, Pooling and then",
        ),
        (("Transformer", "Dense", "Pooling"), "has Dense as module 1"),
        (("Pooling", "Transformer"), "has Pooling as module 0"),
        (("Pooling",), "has no Transformer module"),
        ((), "has no Transformer module"),
    ],
)
def test_modules_in_another_order(tmp_path, modules, message):
    with pytest.raises(CheckpointError, match=message):
        make(write(tmp_path, modules))


@pytest.mark.parametrize("path", ["..", "../other", "a/../../b", "/etc", "C:\\x", "..\\x", "a\0b", None, 5, ["x"]])
def test_paths_of_modules_stay_in_the_folder(tmp_path, path):
    write(tmp_path)
    change_modules(tmp_path, lambda modules: modules[1].update(path=path))
    with pytest.raises(
        CheckpointError,
        match=r"modules.json has a module with path .*; expected the name of a folder in|\['path'\] is .*; it must be a text",
    ):
        make(tmp_path)


def test_links_of_modules_stay_in_the_folder(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "model").mkdir()
    write(tmp_path / "model")
    (tmp_path / "model/1_Pooling").rename(tmp_path / "other/pooling")
    (tmp_path / "model/1_Pooling").symlink_to(tmp_path / "other/pooling")
    with pytest.raises(CheckpointError, match="leads out of"):
        make(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"activation_function": "evil.Tanh"}, {}, "unsupported activation 'evil.Tanh'"),
        ({"activation_function": ["x"]}, {}, "activation_function is .*; it must be a text"),
        ({}, {"linear.weight": np.ones((3, 16), np.int32)}, "has dtype int32"),
        (
            {},
            {"linear.weight": np.ones((3, 16), np.float32), "other": np.ones(1, np.float32)},
            "has an unexpected other",
        ),
        ({}, {"linear.bias": np.ones(3, np.float32)}, "has no linear.weight"),
        (
            {},
            {"linear.weight": np.ones((3, 16), np.float32), "linear.bias": np.ones(4, np.float32)},
            "expected .out, in. and .out.",
        ),
    ],
)
def test_dense_layers_that_are_refused(tmp_path, settings, tensors, message):
    write(tmp_path, ("Transformer", "Pooling", "Dense"))
    (tmp_path / "2_Dense/config.json").write_text(json.dumps(settings))
    save_file(tensors, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        make(tmp_path)


def test_broken_and_missing_files(tmp_path):
    write(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json is missing"):
        make(tmp_path)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"modules.json is not valid JSON"):
        make(tmp_path)


def test_a_checkpoint_without_files_warns_and_uses_mean_pooling(tmp_path):
    with pytest.warns(UserWarning, match="has no modules.json; using mean pooling"):
        pipe, model = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(pipe("Ada"), mean(model, pipe.tokenizer, "Ada"), atol=1e-6)


def test_pairs_are_embedded_as_one_sequence(tmp_path):
    pipe, model = make(write(tmp_path))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    vectors = pipe([TEXTS[2], pair])
    row = {key: np.array([value]) for key, value in pipe.tokenizer(TEXTS[0], TEXTS[1]).items()}
    assert np.allclose(vectors[0], pipe(TEXTS[2]), atol=1e-6)
    assert np.allclose(vectors[1], model.hidden(**row)[0].mean(0), atol=1e-6)
    assert np.array_equal(pipe(pair), vectors[1])
    with pytest.raises(InputError, match="input 0 has the keys 'title'; expected \"text\""):
        pipe({"title": "a"})


def test_dpr_is_embedded_by_its_own_pooled_output(tmp_path):
    tokenizer = reference.load_tokenizer("wordpiece")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = config_from_hf({"model_type": "dpr", **sizes, "projection_dim": 3})
    forward = lambda batch: {"pooler_output": batch["input_ids"][:, :3] * 1.0}  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = make_pipeline("sentence-embedding", forward, tokenizer, config, tmp_path)
    assert np.array_equal(pipe(TEXTS[:1]), [tokenizer(TEXTS[0])["input_ids"][:3]])
    assert pipe.task.size == 3 and pipe.task.similarity == "dot" and pipe([]).shape == (0, 3)
    assert np.allclose(np.linalg.norm(pipe(TEXTS, normalize=True), axis=1), 1)
