"""Corpus, packing and the tokenizer trained from text."""

import numpy as np
import pytest

from shared.data.corpus import read_texts, split_by_path, standard_library_files, text_files
from shared.data.packing import pack_blocks, shuffled_batches
from shared.errors import InputError
from shared.tokenizers.train import train_byte_level_bpe


@pytest.fixture
def folder(tmp_path):
    for i in range(200):
        (tmp_path / f"part_{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"part_{i % 3}" / f"m{i}.py").write_text(f"x = {i}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text("assert True\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    return tmp_path


def test_text_files_are_sorted_and_skips_are_left_out(folder):
    found = text_files(folder, "*.py", frozenset({"tests"}))
    assert len(found) == 200 and found == sorted(found)


def test_text_files_says_what_to_do(folder):
    with pytest.raises(InputError, match="not a folder"):
        text_files(folder / "nowhere")
    with pytest.raises(InputError, match="matches"):
        text_files(folder, "*.rs")


def test_the_split_is_by_path_whatever_else_is_there(folder):
    files = text_files(folder)
    training, held_out = split_by_path(files, folder, 0.2)
    assert 15 <= len(held_out) <= 65 and sorted(training + held_out) == files
    assert split_by_path(files[::2], folder, 0.2)[1] == [f for f in files[::2] if f in held_out]
    assert split_by_path(files, folder, 0.2, salt="b")[1] != held_out
    with pytest.raises(InputError, match="share"):
        split_by_path(files, folder, 5)


def test_read_texts_leaves_out_what_is_no_text(folder):
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "empty.py").write_text("\n")
    assert list(read_texts([folder / "latin.py", folder / "empty.py", folder / "notes.txt"])) == ["no code\n"]


def test_the_standard_library_is_there_without_its_tests():
    files = standard_library_files()
    assert any(path.name == "argparse.py" for path in files)
    assert not any("test" in path.parts or "site-packages" in path.parts for path in files)


def test_pack_blocks_joins_and_cuts():
    blocks = pack_blocks([[1, 2, 3], [4], [5, 6, 7, 8]], 4, 0)
    np.testing.assert_array_equal(blocks, [[1, 2, 3, 0], [4, 0, 5, 6]])
    assert blocks.dtype == np.int32
    for bad in ([], [[1]]):
        with pytest.raises(InputError, match="do not fill"):
            pack_blocks(bad, 4, 0)
    with pytest.raises(InputError, match="at least 2"):
        pack_blocks([[1, 2]], 1, 0)


def test_batches_show_every_block_once_an_epoch_in_a_seeded_order():
    blocks = np.arange(12, dtype=np.int32).reshape(6, 2)
    take = lambda seed: [next(batches) for batches in [shuffled_batches(blocks, 2, seed)] for _ in range(6)]  # noqa: E731
    first, again, other = take(1), take(1), take(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for epoch in (first[:3], first[3:]):
        assert sorted(np.concatenate(epoch).ravel().tolist()) == list(range(12))
    assert not np.array_equal(first[:3], first[3:])
    with pytest.raises(InputError, match="from 1 to 6"):
        next(shuffled_batches(blocks, 7, 0))


def test_the_tokenizer_gives_any_text_back_and_survives_the_disk(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_byte_level_bpe(["def f(x):\n    return x\n"] * 20, 300, max_length=64)
    text = "def g(é, 你好):\n\treturn  🙂 + 1\r\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and len(tokenizer) <= 300
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == ids and loaded.model_max_length == 64
    with pytest.raises(InputError, match="257"):
        train_byte_level_bpe(["a"], 100)
