"""duonlp convert: pytorch_model.bin and other layouts to safetensors, and layouts that are only recognized."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from duonlp import architectures
from duonlp.checkpoints import convert, list_tensors, open_checkpoint, save_checkpoint
from duonlp.checkpoints.conversion import pickles
from duonlp.errors import CheckpointError, ConfigError, InputError, MissingExtraError, NewHeadWarning
from duonlp.parameters import initial_value, parameters
from tests import cases
from tests.reference.record_legacy import unpack

TOKENIZER = {
    "tokenizer_config.json": "{}",
    "vocab.txt": "[PAD]\nthe\n",
    "generation_config.json": '{"max_new_tokens": 5}',
}


def write(folder, model_type="bert", head="masked-lm", dtype=np.float32, **keys):
    """Write a small checkpoint with other files beside it; return its folder."""
    cfg = architectures.config_from_hf({"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER), **keys})
    spec = parameters(cfg, head)
    save_checkpoint(folder, cfg, head, lambda path: initial_value(path, spec[path]), dtype)
    for name, text in TOKENIZER.items():
        (folder / name).write_text(text)
    return folder


def values(folder):
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).tensors.items()}


def to_bin(folder, change=lambda tensors: tensors, shards=1, **options):
    """Replace the safetensors of a folder by pytorch_model.bin, with `shards` files."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(np.asarray(value)) for name, value in values(folder).items()}
    tensors = change(tensors)
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return folder
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        part, file = names[shard::shards], f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name] for name in part}, folder / file, **options)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def assert_same(folder, expected):
    actual = values(folder)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("name", "options"),
    [("zip", {}), ("shards", {"shards": 3}), ("before torch 1.6", {"_use_new_zipfile_serialization": False})],
)
def test_pytorch_files(tmp_path, name, options):
    folder = write(tmp_path / "a")
    expected = values(folder)

    def change(tensors):
        """Make views: transposed, parts of a larger tensor, shared under two names; and add a buffer of integers."""
        import torch

        key, *_ = (name for name in tensors if name.endswith("query.weight"))
        words = "bert.embeddings.word_embeddings.weight"
        wide = torch.cat([tensors[words], tensors[words]], dim=1)
        tensors |= {key: tensors[key].T.contiguous().T, words: wide[:, : tensors[words].shape[1]]}
        tensors["cls.predictions.decoder.weight"] = tensors[words]
        return tensors | {"bert.embeddings.position_ids": torch.arange(cases.ENCODER["max_position_embeddings"])[None]}

    to_bin(folder, change, **options)
    with pytest.raises(
        CheckpointError, match=r"never read because loading it can run code; .*`duonlp convert .*a OUT`"
    ):
        open_checkpoint(folder).tensors  # noqa: B018
    done = []
    report = convert(folder, tmp_path / "out", on_progress=lambda *counts: done.append(counts))
    assert_same(tmp_path / "out", expected)
    assert done[-1] == (report["parameters"],) * 2 and report["head"] == "masked-lm" and report["dtype"] == "float32"
    assert report["missing"] == report["left_out"] == []
    assert set(report["files"]) == set(TOKENIZER)
    assert {n: (tmp_path / "out" / n).read_text() for n in TOKENIZER} == TOKENIZER
    assert sorted(os.listdir(tmp_path)) == ["a", "out"], "nothing temporary is left"
    again = convert(tmp_path / "out", tmp_path / "again")
    assert again["weights"] == ["model.safetensors"]
    assert_same(tmp_path / "again", expected)


@pytest.mark.parametrize(("stored", "wanted", "expected"), [
    ("float64", None, "float64"), ("bfloat16", None, "bfloat16"), ("float16", "float32", "float32"),
    ("float32", "bfloat16", "bfloat16"),
])  # fmt: skip
def test_dtypes(tmp_path, stored, wanted, expected):
    folder = write(tmp_path / "a")
    original = values(folder)
    torch = pytest.importorskip("torch")
    to_bin(folder, lambda tensors: {name: value.to(getattr(torch, stored)) for name, value in tensors.items()})
    assert convert(folder, tmp_path / "out", dtype=wanted)["dtype"] == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == expected
    for name, tensor in list_tensors(tmp_path / "out" / "model.safetensors").items():
        assert tensor.dtype.name == expected
        np.testing.assert_allclose(tensor.read().astype(np.float32), original[name], rtol=2**-7, atol=1e-6)


class Attack:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "pickle", "beside tensors"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, how, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder, mark = write(tmp_path / "a"), tmp_path / "mark"
    to_bin(folder)
    content = {"bert.embeddings.word_embeddings.weight": Attack(mark)} if how == "beside tensors" else Attack(mark)
    if how == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how != "old torch.save")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*nothing was converted"):
        convert(folder, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_other_contents_of_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    folder = to_bin(write(tmp_path / "a"))
    file = folder / "pytorch_model.bin"
    for content, message in [
        ([torch.zeros(2)], "it holds a list, not a dict of tensors"),
        ({"state_dict": {"a": torch.zeros(2)}}, "its entry 'state_dict' is a dict"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64, which safetensors does not hold"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
        ({"bert.embeddings.word_embeddings.weight": torch.zeros(2)}, "a has .* tensors, but"),
    ]:
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            convert(folder, tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        convert(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a"]


def test_torch_is_only_needed_for_its_own_files(tmp_path, monkeypatch):
    folder = write(tmp_path / "a")
    monkeypatch.setattr(pickles.importlib.util, "find_spec", lambda name: None)
    convert(folder, tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MissingExtraError, match="run `pip install torch`, or convert the folder on another machine"):
        convert(folder, tmp_path / "more")


def test_shards_that_are_missing_or_outside(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    index = folder / "pytorch_model.bin.index.json"
    for name, message in [
        ("a-1.bin", "lists the shard 'a-1.bin', which is missing"),
        ("../a.bin", "must be a .bin file in the same"),
    ]:
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(CheckpointError, match=message):
            convert(folder, tmp_path / "out")


def test_torch_outside_of_the_environment_is_found(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    folder = to_bin(write(tmp_path / "a"))
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "__init__.py").write_text("__version__ = '2.5.1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with pytest.raises(CheckpointError, match=r"torch 2\.5\.1 may run code"):
        convert(folder, tmp_path / "out")


def test_an_index_of_pickles_beside_weights_that_load(tmp_path):
    folder = tmp_path / "a"
    unpack("tf-bert-masked-lm", folder)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "gone.bin"}}))
    assert convert(folder, tmp_path / "out")["weights"] == ["tf_model.h5"]


def test_a_head_that_the_checkpoint_lacks_is_not_invented(tmp_path):
    folder = write(tmp_path / "a", head="base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    report = convert(folder, tmp_path / "out")
    assert report["missing"] == ["classifier/kernel", "classifier/bias"]
    assert not any("classifier" in name for name in values(tmp_path / "out"))
    checkpoint = open_checkpoint(tmp_path / "out")
    with pytest.warns(NewHeadWarning, match="classifier"):
        checkpoint.plan(checkpoint.transformer_config(), "sequence-classification")


def test_a_checkpoint_without_architectures_keeps_its_tensors(tmp_path):
    folder = write(tmp_path / "a", head="token-classification")
    expected = values(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    assert convert(folder, tmp_path / "out")["head"] == "token-classification"
    assert_same(tmp_path / "out", expected)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSomethingElse"]}))
    assert convert(folder, tmp_path / "other")["head"] == "token-classification"
    report = convert(folder, tmp_path / "base", head="base")
    assert report["left_out"] == ["classifier.bias", "classifier.weight"]
    with pytest.raises(ConfigError, match="has no 'seq2seq-lm' head"):
        convert(folder, tmp_path / "no", head="seq2seq-lm")


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "bart", "llama"])
def test_families(tmp_path, model_type):
    head = list(architectures.get(model_type).heads(model_type))[-1]
    folder = write(tmp_path / "a", model_type, head)
    convert(folder, tmp_path / "out", max_shard_size=20_000)
    assert_same(tmp_path / "out", values(folder))


def test_outputs(tmp_path):
    folder, out = write(tmp_path / "a"), tmp_path / "out"
    with pytest.raises(InputError, match="is not empty; give another folder, or pass overwrite=True"):
        convert(folder, folder)
    with pytest.raises(InputError, match="is the checkpoint itself"):
        convert(folder, folder, overwrite=True)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "converted").mkdir()
    (out / "converted" / "notes.txt").write_text("mine, too")
    (out / "model.safetensors").write_text("old")
    with pytest.raises(InputError, match="is not empty"):
        convert(folder, out)
    convert(folder, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "converted" / "notes.txt").read_text() == "mine, too"
    assert sorted(os.listdir(out)) == sorted({*os.listdir(folder), "converted", "notes.txt"})
    assert_same(out, values(folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        convert(folder, tmp_path / "file")


OTHERS = {
    "gguf": ({"model-q4.gguf": b"GGUF"}, "a GGUF file of llama.cpp"),
    "onnx": ({"model.onnx": b"\x08"}, "an ONNX graph"),
    "saved model": ({"saved_model.pb": b"\x08", "variables/variables.index": b""}, "a TensorFlow SavedModel"),
    "keras": ({"model.keras": b"PK"}, r"a Keras model \(model.keras\); load it with keras.models.load_model"),
    "keras weights": ({"model.weights.h5": b"\x89HDF"}, "weights in Keras' own format"),
    "tf1": ({"bert_model.ckpt.index": b"", "bert_model.ckpt.data-00000-of-00001": b""}, "a TensorFlow 1 checkpoint"),
    "t5x": ({"checkpoint": b"\x82\xa9", "target.encoder/.zarray": b"{}"}, "a T5X checkpoint"),
    "orbax": ({"_METADATA": b"{}", "manifest.ocdbt": b""}, "an Orbax checkpoint"),
    "nested orbax": ({"default/_METADATA": b"{}"}, "an Orbax checkpoint"),
    "run": ({"run.json": b"{}", "checkpoints/5/state/_METADATA": b"{}"}, r"of a jaxnlp run; .*training\.export\(RUN"),
    "step of a run": ({"state/_METADATA": b"{}", "meta/metadata": b"{}"}, "the training state of a jaxnlp run"),
    "peft": ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "a PEFT adapter"),
    "llama": ({"consolidated.00.pth": b""}, "PyTorch weights in their authors' own layout"),
    "variant": ({"model.fp16.safetensors": b""}, r"safetensors (under|without) .*\(model\.fp16\.safetensors\)"),
    "renamed": ({"pytorch_model.fp16.bin": b""}, r"pytorch_model\.fp16\.bin\); rename the file"),
    "lightning": ({"epoch=1.ckpt": b""}, "a checkpoint of PyTorch Lightning"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("config", [False, True])
def test_other_layouts_are_recognized(tmp_path, name, config):
    files, message = OTHERS[name]
    folder = write(tmp_path / "a") if config else tmp_path / "a"
    if config:
        (folder / "model.safetensors").unlink()
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder).tensors  # noqa: B018


def test_a_preset_of_keras_hub_is_recognized(tmp_path):
    preset = {
        "module": "keras_hub.src.models.bert",
        "class_name": "BertBackbone",
        "config": {},
        "registered_name": "keras_hub>BertBackbone",
    }
    (tmp_path / "config.json").write_text(json.dumps(preset))
    (tmp_path / "model.weights.h5").write_bytes(b"\x89HDF")
    with pytest.raises(CheckpointError, match=r"a KerasHub preset \(keras_hub>BertBackbone\).*export_to_transformers"):
        open_checkpoint(tmp_path)


def test_weights_without_a_configuration(tmp_path):
    for name in ("tf_model.h5", "flax_model.msgpack", "model-00001-of-00002.safetensors", "pytorch_model.bin"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=rf"has weights \({name}\), but not the config\.json"):
            open_checkpoint(folder)
    folder = write(tmp_path / "a")
    (folder / "model.safetensors").rename(folder / "training_args.bin")
    with pytest.raises(CheckpointError, match=r"has none of model\.safetensors, tf_model\.h5"):
        open_checkpoint(folder).tensors  # noqa: B018


@pytest.mark.parametrize("name", ["model.safetensors", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin"])
def test_shards_without_their_index(tmp_path, name):
    folder = write(tmp_path / "a")
    stem, _, ending = name.rpartition(".")
    (folder / "model.safetensors").rename(folder / f"{stem}-00001-of-00002.{ending}")
    for load in (lambda: open_checkpoint(folder).tensors, lambda: convert(folder, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=rf"not their index; download or copy {name}\.index\.json"):
            load()


def test_files_in_place_of_folders(tmp_path):
    for name, message in [
        ("m.gguf", "a GGUF file"),
        ("m.keras", "a Keras model"),
        ("tf_model.h5", "pass the folder that contains it"),
    ]:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)


def test_the_command(tmp_path):
    folder = write(tmp_path / "a")
    command = [
        sys.executable,
        "-m",
        "duonlp",
        "convert",
        str(folder),
        str(tmp_path / "out"),
        "--dtype",
        "float16",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["dtype"] == "float16" and report["weights"] == ["model.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "or pass --overwrite to replace" in done.stderr and not done.stdout
