"""Reading and writing checkpoints, including damaged ones."""

import errno
import json
import os
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors as hub
from hypothesis import given, settings
from hypothesis import strategies as st

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.save import atomic_folder, parse_size, save_checkpoint
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.errors import CheckpointError, ConfigError, InputError, NewHeadWarning
from duonlp.parameters import parameters
from tests.cases import Case, cases

BERT = next(c for c in cases() if c.name == "bert-masked-lm")
GPT2 = next(c for c in cases() if c.name == "gpt2-causal-lm")


@pytest.fixture
def folder(tmp_path):
    return BERT.write(tmp_path / "bert")


def values(folder, case=BERT, head=None, **options):
    checkpoint = open_checkpoint(folder)
    plan = checkpoint.plan(case.config, head or case.head, **options)
    return {source.path: source.read() for source in plan}


def tensors_of(folder):
    return {name: t.read() for name, t in list_tensors(folder / WEIGHTS).items()}


def rewrite(folder, tensors):
    rows = [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()]
    write_tensors(folder / WEIGHTS, rows)


# -- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_saved_values_are_read_back(case, tmp_path):
    once = values(case.write(tmp_path / "a"), case)
    save_checkpoint(tmp_path / "b", case.config, case.head, once.__getitem__, np.float32)
    again = values(tmp_path / "b", case)
    assert set(once) == set(parameters(case.config, case.head))
    assert all(np.array_equal(once[path], again[path]) for path in once)


def test_shards_hold_the_same_as_one_file(folder, tmp_path):
    once = values(folder)
    save_checkpoint(tmp_path / "shards", BERT.config, BERT.head, once.__getitem__, np.float32, max_shard_size="10KB")
    files = sorted(p.name for p in (tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(np.array_equal(v, once[k]) for k, v in values(tmp_path / "shards").items())


def test_saving_again_leaves_no_stale_shards_and_keeps_other_files(folder, tmp_path):
    once, target = values(folder), tmp_path / "out"
    save_checkpoint(target, BERT.config, BERT.head, once.__getitem__, np.float32, max_shard_size="10KB")
    (target / "notes.txt").write_text("mine")
    save_checkpoint(target, BERT.config, BERT.head, once.__getitem__, np.float32)
    assert sorted(p.name for p in target.iterdir()) == ["config.json", WEIGHTS, "notes.txt"]


def test_half_precision_is_stored_and_read(folder, tmp_path):
    once = values(folder)
    save_checkpoint(tmp_path / "half", BERT.config, BERT.head, once.__getitem__, ml_dtypes.bfloat16)
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    for path, value in values(tmp_path / "half").items():
        assert value.dtype == np.float32
        assert np.array_equal(value, once[path].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_chunks_cover_a_table(folder):
    source = open_checkpoint(folder).plan(BERT.config, BERT.head)[0]
    chunks = list(source.chunks(max_bytes=500))
    assert len(chunks) > 3
    assert np.array_equal(np.concatenate([rows for _, rows in chunks]), source.read())
    assert [start for start, _ in chunks] == list(np.cumsum([0] + [len(rows) for _, rows in chunks[:-1]]))


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["float32", "float16", "int64", "uint8"])),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_the_safetensors_library_reads_what_is_written(tmp_path_factory, described):
    from safetensors.numpy import load_file

    path = tmp_path_factory.mktemp("st") / WEIGHTS
    rng = np.random.default_rng(0)
    tensors = {n: rng.integers(0, 99, shape).astype(dtype) for n, (shape, dtype) in described.items()}
    rewrite(path.parent, tensors)
    theirs, ours = load_file(path), tensors_of(path.parent)
    for name, value in tensors.items():
        assert theirs[name].dtype == ours[name].dtype == value.dtype
        assert np.array_equal(theirs[name], value) and np.array_equal(ours[name], value)


# -- tensor names of other Transformers versions ----------------------------------------------------------------


def test_old_names_prefixes_and_buffers_are_recognized(folder):
    once, tensors = values(folder), tensors_of(folder)
    renamed = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = np.arange(20)
    renamed["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    rewrite(folder, renamed)
    assert all(np.array_equal(v, once[k]) for k, v in values(folder).items())


def test_a_base_checkpoint_has_no_prefix_and_loads_into_a_head(tmp_path):
    base = Case("bert-base", BERT.hf, "base")
    base.write(tmp_path / "base")
    assert "embeddings.word_embeddings.weight" in tensors_of(tmp_path / "base")
    with pytest.warns(NewHeadWarning, match=r"the masked-lm head starts from random values.*lm_head/transform/kernel"):
        loaded = values(tmp_path / "base", head="masked-lm")
    assert np.array_equal(
        loaded["embeddings/word_embeddings/embedding"],
        values(tmp_path / "base", base)["embeddings/word_embeddings/embedding"],
    )


def test_a_gpt2_saved_under_the_name_of_its_output(tmp_path):
    folder = GPT2.write(tmp_path / "gpt2")
    once, tensors = values(folder, GPT2), tensors_of(folder)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    tensors["transformer.h.0.attn.bias"] = np.tri(20, dtype=np.uint8)[None, None]
    tensors["transformer.h.0.attn.masked_bias"] = np.float32(-1e4).reshape(())
    rewrite(folder, tensors)
    assert all(np.array_equal(v, once[k]) for k, v in values(folder, GPT2).items())


def test_another_head_of_the_same_family_is_ignored(folder):
    with pytest.warns(UserWarning, match="pooler/dense/kernel"):
        assert "classifier/kernel" in values(folder, head="sequence-classification")


def test_a_model_without_token_types(tmp_path):
    case = Case("bert-base", BERT.hf | {"type_vocab_size": 0}, "base")
    loaded = values(case.write(tmp_path / "m"), case)
    assert set(loaded) == set(parameters(case.config)) and "embeddings/token_type_embeddings/embedding" not in loaded


def test_a_question_answering_head_of_three_labels_names_the_fix(folder):
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ConfigError, match="pass num_labels=2"):
        parameters(checkpoint.transformer_config(num_labels=3), "question-answering")
    assert parameters(checkpoint.transformer_config(num_labels=2), "question-answering")


def test_a_complete_checkpoint_loads_without_warnings(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values(folder)


# -- damaged checkpoints ----------------------------------------------------------------------------------------


def assert_fails(folder, message, **options):
    with pytest.raises(CheckpointError, match=message):
        values(folder, **options)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_unknown_hub_id_while_offline(monkeypatch):
    with pytest.raises(CheckpointError, match=r"'nobody/nothing' is not in the cache and the Hub is unreachable"):
        open_checkpoint("nobody/nothing", local_files_only=True)


@pytest.mark.parametrize("local", [False, True])
def test_a_hub_model_with_only_pickles(folder, monkeypatch, local):
    (folder / WEIGHTS).unlink()
    files = ["config.json", "pytorch_model.bin", "tf_model.h5", "README.md"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision=None: files)
    checkpoint = open_checkpoint("some/model", local_files_only=local)
    has = "" if local else r"it has pytorch_model\.bin, tf_model\.h5, but "
    with pytest.raises(CheckpointError, match=rf"'some/model' has neither .*; {has}other formats .* never .*refs/pr/1"):
        checkpoint.plan(BERT.config, BERT.head)
    (folder / "pytorch_model.bin").write_bytes(b"")  # by Transformers, into the same cache
    with pytest.raises(CheckpointError, match=r"has only pytorch_model\.bin, .*`duonlp convert .* OUT`"):
        _ = open_checkpoint("some/model", local_files_only=local).tensors


def test_a_hub_model_with_only_pickles_that_cannot_be_listed(folder, monkeypatch):
    def unreachable(self, name, revision=None):
        raise ConnectionError

    (folder / WEIGHTS).unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    with pytest.raises(CheckpointError, match=r"has neither .*; other formats are never downloaded"):
        _ = open_checkpoint("some/model").tensors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "could not be downloaded: .*No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied"), "could not be downloaded: .*Permission denied"),
        (ConnectionResetError("reset"), r"not in the cache and the Hub is unreachable \(ConnectionResetError"),
        (TimeoutError("slow"), "and the Hub is unreachable"),
        (hub.LocalEntryNotFoundError("no"), "and the Hub is unreachable"),
        (hub.OfflineModeIsEnabled("off"), "and the Hub is unreachable"),
        (hub.HTTPError("no route"), "and the Hub is unreachable"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_download_reports_the_reason(monkeypatch, error, message):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint("some/model")


def test_a_file_or_a_folder_without_config(folder):
    with pytest.raises(CheckpointError, match="is a file; pass the folder"):
        open_checkpoint(folder / "config.json")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_config_that_is_not_a_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -100])
def test_truncated_weights(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    assert_fails(folder, "not a valid safetensors file")


def test_corrupt_header(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[20:60] = b"\x00" * 40
    (folder / WEIGHTS).write_bytes(data)
    assert_fails(folder, "not a valid safetensors file")


def test_only_a_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert_fails(folder, r"has only pytorch_model\.bin, which is never read")


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert_fails(folder, r"has none of model\.safetensors, .*, and no index of shards")


@pytest.fixture
def sharded(folder, tmp_path):
    once = values(folder)
    save_checkpoint(tmp_path / "shards", BERT.config, BERT.head, once.__getitem__, np.float32, max_shard_size="10KB")
    return tmp_path / "shards"


def test_missing_shard(sharded):
    (sharded / sorted(p.name for p in sharded.glob("*.safetensors"))[1]).unlink()
    assert_fails(sharded, "lists the shard 'model-00002.*which is missing")


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin"])
def test_an_index_that_refers_to_another_folder(sharded, target):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = target
    (sharded / INDEX).write_text(json.dumps(index))
    assert_fails(sharded, "in the same folder")


def test_an_index_that_lists_a_tensor_of_no_shard(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    assert_fails(sharded, "ghost")


def test_missing_and_unexpected_tensors_are_named(folder):
    tensors = tensors_of(folder)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    tensors["bert.encoder.layer.9.output.dense.weight"] = np.zeros((2, 2), np.float32)
    rewrite(folder, tensors)
    assert_fails(folder, r"missing bert\.encoder\.layer\.1\.output\.dense\.weight; unexpected bert\.encoder\.layer\.9")


def test_a_partial_head_is_an_error(folder):
    tensors = tensors_of(folder)
    del tensors["cls.predictions.transform.dense.bias"]
    rewrite(folder, tensors)
    assert_fails(folder, r"missing cls\.predictions\.transform\.dense\.bias")


def test_wrong_shapes(folder):
    tensors = tensors_of(folder)
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((7, 24), np.float32)
    rewrite(folder, tensors)
    assert_fails(folder, r"word_embeddings\.weight: \[7, 24\] in the checkpoint, \[61, 24\] expected")


def test_a_head_of_another_size_can_be_initialized(tmp_path):
    case = next(c for c in cases() if c.name == "bert-sequence-classification")
    folder = case.write(tmp_path / "m")
    wider = Case(case.name, case.hf | {"num_labels": 5}, case.head)
    assert_fails(folder, "ignore_mismatched_sizes=True", case=wider)
    with pytest.warns(UserWarning, match="classifier/kernel"):
        loaded = values(folder, wider, ignore_mismatched_sizes=True)
    assert loaded["classifier/kernel"].shape == (24, 5)


def test_missing_and_invalid_tokenizers(folder):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_checkpoint(folder).tokenizer()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be loaded"):
        open_checkpoint(folder).tokenizer()


# -- atomic saving ------------------------------------------------------------------------------------------------


def test_a_failed_save_keeps_the_previous_contents(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full_disk(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, BERT.config, BERT.head, full_disk, np.float32)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_first_save_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "new") as new:
        (new / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_saving_onto_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="is a file; pass a folder"):
        save_checkpoint(tmp_path / "f", BERT.config, BERT.head, dict, np.float32)


def save_again(folder, source, **options):
    save_checkpoint(folder, BERT.config, BERT.head, values(source).__getitem__, np.float32, **options)


def fail_renames(monkeypatch, refused, number):
    """Make os.rename fail with errno ``number`` if ``refused(source, target)``; without the call that exchanges folders."""
    monkeypatch.setattr("duonlp.checkpoints.atomic_folder.exchange", lambda first, second: False)
    rename = os.rename

    def rename_or_fail(source, target, **options):
        if refused(os.fspath(source), os.fspath(target)):
            raise OSError(number, os.strerror(number))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", rename_or_fail)


@pytest.mark.parametrize("where", [".", "sub"])
def test_saving_into_the_current_folder(folder, tmp_path, monkeypatch, where):
    source = BERT.write(tmp_path / "source")
    save_again(folder, source, max_shard_size="10KB")
    (folder / "sub").mkdir()
    (folder / "sub/mine.txt").write_text("mine")
    monkeypatch.chdir(folder / where)
    save_again(os.path.relpath(folder), source)
    assert os.path.samefile(os.getcwd(), folder / where)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", WEIGHTS, "sub"]
    assert (folder / "sub/mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "source"]
    values(folder)


def test_a_failed_save_into_the_current_folder_keeps_the_previous_contents(folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.chdir(folder)
    with pytest.raises(RuntimeError), atomic_folder(".") as new:
        (new / WEIGHTS).write_text("half")
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM, errno.ENOTEMPTY])
@pytest.mark.parametrize("other_system", [False, True])
def test_a_folder_that_cannot_be_renamed_is_filled_file_by_file(folder, tmp_path, monkeypatch, number, other_system):
    source = BERT.write(tmp_path / "source")
    (folder / "notes.txt").write_text("mine")

    def refused(a, b):
        return a == str(folder) or (other_system and b.startswith(str(folder)) and not a.startswith(str(folder)))

    fail_renames(monkeypatch, refused, number)
    save_again(folder, source, max_shard_size="10KB")
    names = sorted(p.name for p in folder.iterdir())
    assert {"config.json", "notes.txt", INDEX} < set(names) and WEIGHTS not in names
    assert not [name for name in names if name.startswith(".")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "source"]
    assert all(np.array_equal(v, values(source)[k]) for k, v in values(folder).items())


def test_a_mount_point_is_written_from_inside(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(folder))
    source = BERT.write(tmp_path / "source")
    with atomic_folder(folder) as new:
        assert new.parent == folder
        for file in source.iterdir():
            shutil.copy(file, new)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", WEIGHTS]


def test_files_are_moved_weights_first_and_config_last(folder, tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(os.path.basename(b)), replace(a, b)))
    (folder / "a.txt").write_text("")
    monkeypatch.chdir(folder)
    save_again(folder, BERT.write(tmp_path / "source"), max_shard_size="10KB", generation_config={"max_length": 9})
    assert all(name.endswith(".safetensors") for name in moved[:-3])
    assert moved[-3:] == ["generation_config.json", INDEX, "config.json"]


def test_the_old_folder_is_restored_if_the_new_one_cannot_be_renamed(folder, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    source = BERT.write(tmp_path / "source")
    fail_renames(monkeypatch, lambda a, b: b == str(folder) and ".saving-" in a, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        save_again(folder, source)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "source"]


def test_a_symbolic_link_is_kept(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder.name)
    (folder / "notes.txt").symlink_to("elsewhere.txt")
    save_again(tmp_path / "latest", BERT.write(tmp_path / "source"))
    assert os.readlink(tmp_path / "latest") == folder.name
    assert os.readlink(folder / "notes.txt") == "elsewhere.txt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert", "latest", "source"]
    values(folder)


def test_weights_in_subfolders_are_kept(folder, tmp_path):
    below = BERT.write(folder / "checkpoint-1")
    save_again(folder, BERT.write(tmp_path / "source"))
    values(below)


def test_rewriting_does_not_reach_through_hard_links(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)
    before = (tmp_path / "copy/config.json").read_bytes()
    save_checkpoint(folder, BERT.config.replace(hidden_dropout=0.7), BERT.head, values(folder).__getitem__, np.float32)
    assert (tmp_path / "copy/config.json").read_bytes() == before != (folder / "config.json").read_bytes()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5e9), ("1.5MB", 1.5e6), ("2GiB", 2**31), (123, 123), ("7", 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "5XB", "0", None])
def test_invalid_sizes(text):
    with pytest.raises(InputError, match="invalid size"):
        parse_size(text)
