"""Weights that are refused: integers, copies that differ, two sets of weights, headers and indexes that contradict."""

import json
import shutil

import numpy as np
import pytest

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.save import save_checkpoint
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.errors import CheckpointError
from tests.cases import Case, cases

CASES = {case.name: case for case in cases()}
BERT, BART, PEGASUS = CASES["bert-masked-lm"], CASES["bart-seq2seq-lm"], CASES["pegasus-seq2seq-lm"]
WORDS = "bert.embeddings.word_embeddings.weight"


def values(folder, case=BERT):
    plan = open_checkpoint(folder).plan(case.config, case.head)
    return {source.path: source.read() for source in plan}


def tensors_of(folder, file=WEIGHTS):
    return {name: tensor.read() for name, tensor in list_tensors(folder / file).items()}


def rewrite(file, tensors):
    write_tensors(file, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()])


def with_tensors(tmp_path, case, **changes):
    """Write a case with more, or other, tensors; ``changes`` maps names with / for . to values."""
    folder = case.write(tmp_path / case.name)
    tensors = tensors_of(folder)
    rewrite(folder / WEIGHTS, tensors | {name.replace("/", "."): value(tensors) for name, value in changes.items()})
    return folder


def refused(folder, message, case=BERT):
    with pytest.raises(CheckpointError, match=message):
        values(folder, case)


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "bool"])
def test_integers_are_no_parameters(tmp_path, dtype):
    folder = with_tensors(tmp_path, BERT, **{WORDS: lambda tensors: tensors[WORDS].astype(dtype)})
    refused(folder, rf"tensor '{WORDS}' has dtype {dtype}; expected one of float64, float32, float16, bfloat16")


SECOND_NAMES = {
    "bert/embeddings/LayerNorm/gamma": ("bert.embeddings.LayerNorm.weight", BERT),
    "embeddings/word_embeddings/weight": (WORDS, BERT),
    "cls/predictions/decoder/weight": (WORDS, BERT),
    "cls/predictions/decoder/bias": ("cls.predictions.bias", BERT),
    "model/encoder/embed_tokens/weight": ("model.shared.weight", BART),
    "lm_head/weight": ("model.shared.weight", BART),
}


@pytest.mark.parametrize("other", SECOND_NAMES)
def test_tensors_that_stand_for_the_same_values_must_be_equal(tmp_path, other):
    name, case = SECOND_NAMES[other]
    expected = values(case.write(tmp_path / "expected"), case)
    equal = with_tensors(tmp_path, case, **{other: lambda tensors: tensors[name]})
    assert all(np.array_equal(v, expected[k]) for k, v in values(equal, case).items())
    wide = with_tensors(tmp_path, case, **{other: lambda tensors: tensors[name].astype(np.float64)})
    assert all(np.array_equal(v, expected[k]) for k, v in values(wide, case).items())
    for change in (lambda v: v + np.float32(1e-3), lambda v: v[:-1], lambda v: np.full_like(v, np.nan)):
        different = with_tensors(tmp_path, case, **{other: lambda tensors, change=change: change(tensors[name])})
        refused(different, r"the tensors '.*' and '.*' stand for the same values and differ", case)


def test_a_tied_output_that_differs_names_the_setting(tmp_path):
    folder = with_tensors(tmp_path, BERT, **{"cls/predictions/decoder/weight": lambda tensors: tensors[WORDS] + 1})
    refused(folder, "set tie_word_embeddings to false in config.json")
    untied = Case(BERT.name, BERT.hf | {"tie_word_embeddings": False}, BERT.head)
    assert np.array_equal(
        values(folder, untied)["lm_head/output/kernel"],
        values(folder, untied)["embeddings/word_embeddings/embedding"].T + 1,
    )


def test_tables_of_two_stacks_may_differ_from_the_shared_one(tmp_path):
    """Transformers saves the unused shared table of a model whose stacks have their own."""
    case = next(c for c in CASES.values() if c.hf["model_type"] == "bart" and c.hf.get("tie_word_embeddings") is False)
    folder = with_tensors(
        tmp_path, case, **{"model/shared/weight": lambda tensors: tensors["model.encoder.embed_tokens.weight"] + 1}
    )
    expected = values(case.write(tmp_path / "expected"), case)
    assert all(np.array_equal(v, expected[k]) for k, v in values(folder, case).items())


def test_the_bias_that_transformers_does_not_use_may_differ(tmp_path):
    """An untied model has two, of which only the one of the decoder is trained."""
    untied = Case(BERT.name, BERT.hf | {"tie_word_embeddings": False}, BERT.head)
    expected = values(untied.write(tmp_path / "expected"), untied)
    folder = with_tensors(
        tmp_path, untied, **{"cls/predictions/bias": lambda tensors: tensors["cls.predictions.bias"] + 1}
    )
    assert all(np.array_equal(v, expected[k]) for k, v in values(folder, untied).items())


def test_stored_positions_must_be_those_that_are_computed(tmp_path):
    name = "model.encoder.embed_positions.weight"
    half = with_tensors(tmp_path, PEGASUS, **{name: lambda tensors: tensors[name].astype(np.float16)})
    assert values(half, PEGASUS)
    for change in (lambda v: v[::-1], lambda v: v * np.nan, lambda v: v[:, :-1], lambda v: v.astype(np.int64)):
        folder = with_tensors(tmp_path, PEGASUS, **{name: lambda tensors, change=change: change(tensors[name])})
        refused(folder, "positions .* differ from those that pegasus computes|has dtype int64", PEGASUS)


# -- files -----------------------------------------------------------------------------------------------------------------


def header_of(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length].decode(), data[8 + length :]


def test_a_tensor_that_a_header_describes_twice(tmp_path):
    folder = BERT.write(tmp_path / "m")
    text, data = header_of(folder / WEIGHTS)
    words = json.dumps({WORDS: json.loads(text)[WORDS]})[1:-1]
    text = text.rstrip()[:-1] + "," + words + "}"
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    refused(folder, f"not a valid safetensors file .it has the key '{WORDS}' twice")


@pytest.mark.parametrize(
    "text", ["[" * 50_000, '{"a":' * 50_000, "{\0}", "[]", '{"a": 1}', '{"\\udc80": {}}', "{" + " " * 20 + "}"]
)
def test_headers_that_are_none(tmp_path, text):
    folder = BERT.write(tmp_path / "m")
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"data")
    refused(folder, "not a valid safetensors file")


@pytest.fixture
def sharded(tmp_path):
    once = values(BERT.write(tmp_path / "m"))
    save_checkpoint(tmp_path / "s", BERT.config, BERT.head, once.__getitem__, np.float32, max_shard_size="10KB")
    return tmp_path / "s"


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors"))


def test_a_file_beside_shards_is_ambiguous_and_beside_a_stale_index_it_is_not(sharded, tmp_path):
    shutil.copy(tmp_path / "m" / WEIGHTS, sharded)
    refused(sharded, rf"has both {WEIGHTS} and {INDEX} with 'model-00001-of-.*'; only one of them is the model")
    for shard in shards_of(sharded):
        shard.unlink()
    expected = values(tmp_path / "m")  # Transformers leaves the index when it saves one file over shards
    assert all(np.array_equal(v, expected[k]) for k, v in values(sharded).items())


def test_an_index_that_names_the_single_file(tmp_path):
    folder = BERT.write(tmp_path / "m")
    expected = values(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(list_tensors(folder / WEIGHTS), WEIGHTS)}))
    assert all(np.array_equal(v, expected[k]) for k, v in values(folder).items())


def test_a_tensor_in_two_shards(sharded):
    first, second = shards_of(sharded)[:2]
    name, value = next(iter(tensors_of(sharded, first.name).items()))
    rewrite(second, tensors_of(sharded, second.name) | {name: value})
    refused(sharded, f"{first.name} and .*{second.name} both hold {name}")


def test_an_index_that_names_another_shard(sharded):
    index = json.loads((sharded / INDEX).read_text())
    name, shard = next(iter(index["weight_map"].items()))
    other = next(file.name for file in shards_of(sharded) if file.name != shard)
    index["weight_map"][name] = other
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, f"lists '{name}' in '{other}', but it is in '{shard}'")


@pytest.mark.parametrize(
    "text", ["{", "[" * 50_000, "[]", '{"weight_map": {"a": "x", "a": "y"}}', '{"weight_map": {"a": 1}}', "\xff"]
)
def test_indexes_that_are_none(sharded, text):
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    refused(sharded, "is not valid JSON|holds a list|has no weight_map")
