"""Weights of Transformers 4's TensorFlow and Flax models, as recorded by tests/reference/record_legacy.py."""

import json
import struct
import warnings

import ml_dtypes
import numpy as np
import pytest

from duonlp.checkpoints import open_checkpoint
from duonlp.checkpoints.copies import Equality
from duonlp.checkpoints.legacy.hdf5 import list_datasets
from duonlp.checkpoints.legacy.msgpack import list_arrays
from duonlp.checkpoints.legacy.names import TransposedTensor
from duonlp.checkpoints.open_files import OpenFile
from duonlp.checkpoints.safetensors_file import StoredTensor, TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import CheckpointError
from tests.reference.record_legacy import recorded_files, unpack
from tests.reference.record_models import projections

BERT = {"tf": "tf-bert-masked-lm", "flax": "flax-bert-masked-lm"}
FILE = {"tf": "tf_model.h5", "flax": "flax_model.msgpack"}


def values(folder, **options):
    checkpoint = open_checkpoint(folder)
    plan = checkpoint.plan(checkpoint.transformer_config(), checkpoint.head, **options)
    return {source.path: source.read() for source in plan}


def tensors(folder):
    checkpoint = open_checkpoint(folder)
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


def assert_fails(folder, message, **options):
    with pytest.raises(CheckpointError, match=message):
        values(folder, **options)


@pytest.fixture(params=["tf", "flax"])
def framework(request):
    return request.param


# -- every recorded file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(recorded_files()))
def test_tensors_are_those_of_transformers(name, tmp_path):
    recorded = unpack(name, tmp_path / "m")
    torch = {key.removeprefix("torch/"): array for key, array in recorded.items() if key.startswith("torch/")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(tmp_path / "m")
    half = {"half": 1e-2, "bfloat16": 5e-2}.get(name.rpartition("-")[2])
    compared = 0
    for tensor_name, tensor in tensors(tmp_path / "m").items():
        if tensor_name in torch:
            ours = projections(tensor_name, tensor)
            np.testing.assert_allclose(ours, torch[tensor_name], rtol=1e-6, atol=half or 1e-7, err_msg=tensor_name)
            compared += 1
    assert compared >= 0.8 * len(torch)


def test_a_kernel_is_read_by_rows(framework, tmp_path):
    unpack(BERT[framework], tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    tensor = checkpoint.tensors["bert.encoder.layer.0.intermediate.dense.weight"]
    assert tensor.shape == tensor.read().shape == (12, 8)
    np.testing.assert_array_equal(tensor.read(3, 7), tensor.read()[3:7])
    np.testing.assert_array_equal(tensor.read(9, 100), tensor.read()[9:])


def test_the_output_of_albert_is_the_bias_that_tensorflow_uses(tmp_path):
    unpack("tf-albert-pretraining", tmp_path / "m")
    name = "predictions/tf_albert_for_pre_training/predictions/decoder/bias:0"
    datasets = list_datasets(OpenFile.open(tmp_path / "m" / "tf_model.h5"))
    np.testing.assert_array_equal(values(tmp_path / "m")["lm_head/bias"], datasets[name].read())


def test_the_head_of_a_flax_decoder(tmp_path):
    unpack(BERT["flax"], tmp_path / "m")
    edit_config(tmp_path / "m", architectures=["BertForCausalLM"])
    assert open_checkpoint(tmp_path / "m").head == "causal-lm"


def edit_config(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


# -- which files are read -----------------------------------------------------------------------------------------


def test_safetensors_win_and_a_save_keeps_the_old_file(framework, tmp_path):
    folder = tmp_path / "m"
    unpack(BERT[framework], folder)
    once = values(folder)
    checkpoint = open_checkpoint(folder)
    cfg, head = checkpoint.transformer_config(), checkpoint.head
    save_checkpoint(folder, cfg, head, lambda path: once[path] + 1, np.float32)
    assert (folder / FILE[framework]).exists()
    assert all(np.array_equal(value, once[path] + 1) for path, value in values(folder).items())


def test_without_safetensors_tensorflow_wins(tmp_path):
    unpack(BERT["tf"], tmp_path / "m")
    once = values(tmp_path / "m")
    (tmp_path / "m" / FILE["flax"]).write_bytes(recorded_files()[BERT["flax"]][FILE["flax"]])
    assert all(np.array_equal(value, once[path]) for path, value in values(tmp_path / "m").items())


def test_files_of_the_hub_are_downloaded_if_there_are_no_safetensors(framework, tmp_path, monkeypatch):
    folder = tmp_path / ("0123456789" * 4)
    unpack(BERT[framework], folder)
    weights, calls = (folder / FILE[framework]).read_bytes(), []
    (folder / FILE[framework]).unlink()

    def snapshot(name, revision, allow_patterns, **options):
        calls.append((revision, allow_patterns))
        if any((tmp_path / FILE[framework]).match(pattern) for pattern in allow_patterns):
            (folder / FILE[framework]).write_bytes(weights)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert open_checkpoint("some/model", revision="v1").tensors
    assert [revision for revision, _ in calls] == ["v1", *[folder.name] * {"tf": 1, "flax": 2}[framework]]


# -- damaged and edited checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def h5(tmp_path):
    """Return a folder with a TensorFlow model, and h5py."""
    unpack(BERT["tf"], tmp_path / "m")
    return tmp_path / "m", pytest.importorskip("h5py")


DENSE = "bert/tf_bert_for_masked_lm/bert/encoder/layer_._1/output/dense/kernel:0"


def test_a_missing_an_unexpected_and_a_misshaped_dataset_are_named(h5):
    folder, h5py = h5
    with h5py.File(folder / FILE["tf"], "r+") as file:
        values_of_dense = file[DENSE][()]
        del file[DENSE]
    assert_fails(folder, r"missing bert\.encoder\.layer\.1\.output\.dense\.weight")
    with h5py.File(folder / FILE["tf"], "r+") as file:
        file[DENSE] = values_of_dense[:5]
    assert_fails(
        folder, r"layer\.1\.output\.dense\.weight \('bert/tf_bert_for_masked_lm/.*kernel:0' in tf_model\.h5\): \[8, 5\]"
    )
    with h5py.File(folder / FILE["tf"], "r+") as file:
        del file[DENSE]
        file[DENSE] = values_of_dense
        file["bert/tf_bert_for_masked_lm/bert/adapter/kernel:0"] = values_of_dense
    assert_fails(folder, r"unexpected bert/tf_bert_for_masked_lm/bert/adapter/kernel:0")


def test_names_of_other_versions_and_sessions(h5):
    folder, h5py = h5
    once = values(folder)
    with h5py.File(folder / FILE["tf"], "r") as old, h5py.File(folder / "new.h5", "w") as new:
        for layer, scope in (("bert", "bert"), ("mlm___cls", "mlm___cls")):
            new.copy(old[f"{layer}/tf_bert_for_masked_lm"], new.create_group(layer), "tf_bert_for_pre_training_1")
            for i in range(9):  # Keras splits long attributes
                new[layer].attrs[f"weight_names{i}"] = np.array([b"x" * 100] * 600)
            assert f"{layer}/tf_bert_for_pre_training_1/{scope}" in new
        new.create_group("top_level_model_weights")
        words = "bert/tf_bert_for_pre_training_1/bert/embeddings/word_embeddings"
        new.move(f"{words}/weight:0", f"{words}/embeddings:0")
    (folder / "new.h5").replace(folder / FILE["tf"])
    assert all(np.array_equal(value, once[path]) for path, value in values(folder).items())


def test_copies_of_a_shared_variable_that_differ(h5):
    folder, h5py = h5
    name = "tf_bert_for_masked_lm/bert/embeddings/word_embeddings/weight:0"
    with h5py.File(folder / FILE["tf"], "r+") as file:
        assert np.array_equal(file[f"bert/{name}"][()], file[f"mlm___cls/{name}"][()])
        file[f"mlm___cls/{name}"][0] += 1
    assert_fails(folder, f"the tensors 'mlm___cls/{name}' and 'bert/{name}' stand for the same values and differ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "gzip"}, "is compressed; write the file again"),
        ({"chunks": (2, 2)}, "is not stored in one piece"),
        ({"dtype": "S3"}, "holds neither float16"),
        ({"dtype": "c8"}, "holds neither float16"),
    ],
)
def test_a_dataset_that_cannot_be_read(h5, options, message):
    folder, h5py = h5
    with h5py.File(folder / FILE["tf"], "r+") as file:
        file.create_dataset("bert/x", (4, 4), **{"dtype": "f4"} | options)
    assert_fails(folder, rf"the dataset 'bert/x' {message}")


def test_kinds_of_datasets_and_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays = {f"g/{t}": np.arange(6, dtype=t).reshape(2, 3) for t in ("f2", "f4", "f8", "i1", "i4", "i8", "u2", ">f4")}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 3), np.float32)}
    for version in ("earliest", "v108", "latest"):
        file = tmp_path / f"{version}.h5"
        with h5py.File(file, "w", libver=version) as writer:
            for name, array in arrays.items():
                writer[name] = array
        datasets = list_datasets(OpenFile.open(file))
        assert set(datasets) == set(arrays)
        for name, array in arrays.items():
            assert datasets[name].dtype == array.dtype
            np.testing.assert_array_equal(datasets[name].read(), array)


def test_a_group_in_a_newer_form_says_how_to_write_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as writer:
        for i in range(20):
            writer[f"{i}"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match='libver="earliest"'):
        list_datasets(OpenFile.open(tmp_path / "x.h5"))


def test_an_address_that_is_that_of_another_dataset(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as writer:
        for name in "ab":
            writer[name] = np.zeros(3, np.float32)
        first, second = (writer[name].id.get_offset().to_bytes(8, "little") for name in "ab")
    data = (tmp_path / "x.h5").read_bytes()
    assert data.count(second) == 1
    (tmp_path / "x.h5").write_bytes(data.replace(second, first))
    with pytest.raises(CheckpointError, match="the datasets 'a' and 'b' overlap"):
        list_datasets(OpenFile.open(tmp_path / "x.h5"))


def test_many_datasets_in_a_group(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as writer:  # a B-tree of two levels
        for i in range(1000):
            writer[f"{i}"] = np.full(2, i, np.float32)
    datasets = list_datasets(OpenFile.open(tmp_path / "x.h5"))
    assert all(datasets[f"{i}"].read()[1] == i for i in range(1000)) and len(datasets) == 1000


def test_links_are_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py")
    for number, link in enumerate((h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/a"))):
        file = tmp_path / f"{number}.h5"
        with h5py.File(file, "w") as writer:
            writer["a"] = np.zeros(3, np.float32)
            writer["b"] = link
        with pytest.raises(CheckpointError, match="not a hard link"):
            list_datasets(OpenFile.open(file))


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -100])
def test_truncated_files(framework, keep, tmp_path):
    unpack(BERT[framework], tmp_path / "m")
    file = tmp_path / "m" / FILE[framework]
    file.write_bytes(file.read_bytes()[:keep])
    assert_fails(tmp_path / "m", "is not a valid (HDF5|msgpack) file")


def test_a_pointer_of_git_lfs(framework, tmp_path):
    unpack(BERT[framework], tmp_path / "m")
    (tmp_path / "m" / FILE[framework]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_fails(tmp_path / "m", "is not a valid (HDF5|msgpack) file")


def test_shards_and_their_index(framework, tmp_path):
    folder = tmp_path / "m"
    unpack(f"{BERT[framework]}-sharded", folder)
    index = folder / f"{FILE[framework]}.index.json"
    text = index.read_text()
    content = json.loads(text)
    name, shard = next(iter(content["weight_map"].items()))
    for weight_map, message in (
        ({"ghost/kernel": shard}, "in no shard: ghost/kernel"),
        ({name: "../secret" + (folder / shard).suffix}, "in the same folder"),
        ({name: sorted(set(content["weight_map"].values()))[-1]}, "but it is in"),
    ):
        index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | weight_map}))
        assert_fails(folder, message)
    index.write_text("{")
    assert_fails(folder, "index.json")
    index.write_text(text)
    assert values(folder)
    (folder / shard).unlink()
    assert_fails(folder, f"lists the shard '{shard}', which is missing")


# -- msgpack --------------------------------------------------------------------------------------------------------


def packed_array(array, code=1):
    msgpack = pytest.importorskip("msgpack")
    return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def packed(tree):
    """Return what ``flax.serialization.to_bytes`` makes of nested dicts of arrays."""
    msgpack = pytest.importorskip("msgpack")

    def pack(value):
        return {key: pack(child) for key, child in value.items()} if isinstance(value, dict) else (
            packed_array(value) if isinstance(value, np.ndarray) else value
        )  # fmt: skip

    return msgpack.packb(pack(tree), strict_types=True)


def tree_of(folder):
    """Return the arrays of a Flax model as nested dicts."""
    tree = {}
    for name, tensor in list_arrays(OpenFile.open(folder / FILE["flax"])).items():
        *parts, leaf = name.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = tensor.read()
    return tree


def chunked(array, size):
    """Return an array in Flax's form of those over 1 GiB."""
    flat = array.reshape(-1)
    chunks = {str(i): flat[start : start + size] for i, start in enumerate(range(0, flat.size, size))}
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": chunks,
    }


@pytest.fixture
def flax(tmp_path):
    """Return a folder with a Flax model, and its arrays."""
    unpack(BERT["flax"], tmp_path / "m")
    return tmp_path / "m", tree_of(tmp_path / "m")


def test_a_missing_an_unexpected_and_a_misshaped_array_are_named(flax):
    folder, tree = flax
    dense = tree["bert"]["encoder"]["layer"]["1"]["output"]["dense"]
    kernel = dense.pop("kernel")
    (folder / FILE["flax"]).write_bytes(packed(tree))
    assert_fails(folder, r"missing bert\.encoder\.layer\.1\.output\.dense\.weight")
    dense["kernel"] = kernel[:5]
    (folder / FILE["flax"]).write_bytes(packed(tree))
    assert_fails(folder, r"\('bert/encoder/layer/1/output/dense/kernel' in flax_model\.msgpack\): \[8, 5\] in the")
    dense["kernel"] = kernel
    tree["bert"]["adapter"] = {"kernel": kernel}
    (folder / FILE["flax"]).write_bytes(packed(tree))
    assert_fails(folder, r"unexpected bert/adapter/kernel")


def test_a_tree_below_params_and_arrays_in_chunks(flax):
    folder, tree = flax
    once = values(folder)
    embeddings, dense = tree["bert"]["embeddings"], tree["bert"]["encoder"]["layer"]["0"]["output"]["dense"]
    embeddings["word_embeddings"] = {"embedding": chunked(embeddings["word_embeddings"]["embedding"], 30)}
    dense["kernel"] = chunked(dense["kernel"], 1000)
    (folder / FILE["flax"]).write_bytes(packed({"params": tree}))
    assert all(np.array_equal(value, once[path]) for path, value in values(folder).items())
    checkpoint = open_checkpoint(folder)
    words = checkpoint.tensors["bert.embeddings.word_embeddings.weight"]
    for start, stop in ((0, 1), (2, 9), (3, 4), (16, 20), (0, None)):
        np.testing.assert_array_equal(words.read(start, stop), words.read()[start:stop])


def test_kinds_of_arrays(tmp_path):
    arrays = {t: np.arange(6).reshape(2, 3).astype(t) for t in ("f2", "f4", "f8", "i1", "i8", "u4", ml_dtypes.bfloat16)}
    arrays = {str(i): array for i, array in enumerate(arrays.values())} | {"empty": np.zeros((0, 3), np.float32)}
    (tmp_path / "x").write_bytes(packed(arrays))
    read = list_arrays(OpenFile.open(tmp_path / "x"))
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name].read(), array)


def test_what_is_not_a_tree_of_arrays(tmp_path):
    msgpack = pytest.importorskip("msgpack")
    array = np.zeros(3, np.float32)
    extension = packed_array(array)
    wrong = {
        "other number instead of map": msgpack.packb(-1),
        "list instead of map": msgpack.packb([extension]),
        "'a' is null": msgpack.packb({"a": None}),
        "'a/b' is list": msgpack.packb({"a": {"b": [extension]}}),
        "an extension of type 7": msgpack.packb({"a": packed_array(array, code=7)}),
        "dtype 'object'": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}),
        r"of shape \[9\] has 12 bytes": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((9,), "f4", b"x" * 12)))})
        .replace(b"\xa2f4", b"\xa7float32")
        .replace(struct.pack("B", 19), struct.pack("B", 24)),
        "'a' twice": b"\x82" + 2 * msgpack.packb({"a": extension})[1:],
        "end at byte": msgpack.packb({"a": extension}) + b"x",
        "nested more than": b"\x81\xa1a" * 10_000,
        "lacks a chunk": packed({"a": chunked(array, 1) | {"chunks": {"0": array, "2": array}}}),
        "chunks of other sizes": packed({"a": chunked(array, 1) | {"chunks": {"0": array, "1": array}}}),
    }
    for message, data in wrong.items():
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            list_arrays(OpenFile.open(tmp_path / "x"))


def test_a_transposed_kernel_is_read_once_to_be_compared(tmp_path, monkeypatch):
    words = np.random.default_rng(0).standard_normal((3000, 1000), np.float32)  # three pieces of 4 MB
    rows = [
        TensorToWrite(name, x.shape, x.dtype, lambda x=x: x) for name, x in {"words": words, "out": words.T}.items()
    ]
    write_tensors(tmp_path / "file.safetensors", rows)
    stored = list_tensors(tmp_path / "file.safetensors")
    out, reads = stored["out"], []
    kernel = TransposedTensor(out.file, "lm_head", words.shape, out.dtype, out.offset, stored=out, axes=(1, 0))
    read = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self, *a: reads.append(self.name) or read(self, *a))
    assert Equality()(stored["words"], kernel)
    assert reads.count("out") == 1 and reads.count("words") == 3
