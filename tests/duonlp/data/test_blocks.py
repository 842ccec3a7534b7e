"""Blocks on disk: packing, resuming after a kill, reading, and errors for corrupt files."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from duonlp.data.blocks import writer as block_writer
from duonlp.data.blocks.reader import open_blocks, tokenizer_hash, write_blocks
from duonlp.data.rows import manifest as manifest_module
from duonlp.data.rows.manifest import fsync_and_rename
from duonlp.errors import InputError
from duonlp.tokenizers.train import train_tokenizer

pytest.importorskip("array_record")
ROOT = Path(__file__).resolve().parents[3]


def documents(count=400, seed=0):
    """Return texts of many lengths, some empty and one very long."""
    rng = random.Random(seed)
    words = ["def", "return", "import", "value", "index", "é", "数", "self", "<|endoftext|>", "==", "[", "]", "(", ")"]
    lengths = [rng.choice([0, 1, 3, 10, 40, 200]) for _ in range(count)]
    lengths[count // 2] = 4000
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(documents(100, seed=1), vocab_size=300, min_frequency=0)


def plain_stream(tokenizer, texts):
    """Return all tokens, int [n], and the document of each, int [n], tokenizing one document at a time."""
    tokens, owners = [], []
    for index, text in enumerate(texts):
        tokenizer.backend_tokenizer.encode_special_tokens = True
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.backend_tokenizer.encode_special_tokens = False
        ids = [*ids, tokenizer.eos_token_id] if ids else []
        tokens += ids
        owners += [index] * len(ids)
    return np.asarray(tokens), np.asarray(owners)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("batch_characters", [50, 2000, 2**20])
def test_blocks_concatenate_to_the_token_stream(tokenizer, tmp_path, monkeypatch, batch_characters):
    monkeypatch.setattr(block_writer, "BATCH_CHARACTERS", batch_characters)
    texts = documents()
    manifest = write_blocks(iter(texts), tokenizer, tmp_path, block_length=32, segment_ids=True, shard_blocks=50)
    blocks = open_blocks(tmp_path, tokenizer, verify=True)
    tokens, owners = plain_stream(tokenizer, texts)
    count = len(tokens) // 32
    read = blocks.read(np.arange(len(blocks)))
    assert len(blocks) == manifest.blocks == count and blocks.block_length == 32
    assert read["input_ids"].dtype == read["segment_ids"].dtype == np.int32
    assert np.array_equal(read["input_ids"].reshape(-1), tokens[: count * 32])
    owners = owners[: count * 32].reshape(count, 32)
    changes = np.concatenate([np.zeros((count, 1), int), owners[:, 1:] != owners[:, :-1]], axis=1)
    assert np.array_equal(read["segment_ids"], 1 + np.cumsum(changes, axis=1))
    assert manifest.tokens == count * 32 and manifest.tokens + manifest.leftover_tokens == len(tokens)
    assert manifest.documents == len(texts) and manifest.characters == sum(map(len, texts))
    assert manifest.bytes == sum(len(text.encode()) for text in texts) and manifest.complete
    assert manifest.separator_id == tokenizer.eos_token_id and manifest.vocab_size == 300
    assert [shard.blocks for shard in manifest.shards[:-1]] == [50] * (len(manifest.shards) - 1)


def test_files_do_not_depend_on_text_batching(tokenizer, tmp_path, monkeypatch):
    for name, characters in (("a", 100), ("b", 2**20)):
        monkeypatch.setattr(block_writer, "BATCH_CHARACTERS", characters)
        write_blocks(documents(), tokenizer, tmp_path / name, block_length=16, segment_ids=True, shard_blocks=64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_special_tokens_in_text_are_plain_characters(tokenizer, tmp_path):
    write_blocks(["a <|endoftext|> b " * 10], tokenizer, tmp_path, block_length=8)
    read = open_blocks(tmp_path).read(np.arange(2))
    assert (read["input_ids"] != tokenizer.eos_token_id).all() and "segment_ids" not in read
    assert tokenizer.decode(read["input_ids"].reshape(-1)).startswith("a <|endo")


def test_truncation_of_the_tokenizer_is_ignored_and_kept(tokenizer, tmp_path):
    tokenizer("a b c", truncation=True, max_length=2)
    before = tokenizer.backend_tokenizer.truncation
    assert write_blocks(["x " * 500], tokenizer, tmp_path, block_length=8).blocks > 50
    assert tokenizer.backend_tokenizer.truncation == before is not None
    tokenizer("a b c")


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    large = PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="w1")
    manifest = write_blocks(["w69999 w65536 w2"], large, tmp_path, block_length=4)
    assert manifest.token_bytes == 4 and manifest.separator_id == 1
    assert open_blocks(tmp_path, large).read(np.asarray([0]))["input_ids"].tolist() == [[69_999, 65_536, 2, 1]]


# Resuming after a kill

WRITER_SCRIPT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from tokenizers import Tokenizer
from duonlp.data.blocks import writer as block_writer
block_writer.BATCH_CHARACTERS = 500
folder, texts = Path(sys.argv[1]), Path(sys.argv[2]).read_text().split("|")
tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer.from_file(sys.argv[3]), eos_token_id=0)

def slow_texts():
    print("started", flush=True)
    for index, text in enumerate(texts):
        time.sleep(0.001)
        yield text

block_writer.write_blocks(slow_texts(), tokenizer, folder, block_length=16, segment_ids=True, shard_blocks=20)
print("done", flush=True)
"""


def test_killed_runs_resume_to_identical_files(tokenizer, tmp_path):
    texts = [text.replace("|", "") for text in documents()]
    options = {"block_length": 16, "segment_ids": True, "shard_blocks": 20}
    write_blocks(texts, tokenizer, tmp_path / "whole", **options)
    (tmp_path / "texts").write_text("|".join(texts))
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    killed = tmp_path / "killed"
    arguments = [str(killed), str(tmp_path / "texts"), str(tmp_path / "tokenizer.json")]
    shards = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER_SCRIPT, *arguments], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        # Kill it at an arbitrary moment after it has written more shards than the previous run.
        while len(list(killed.glob("blocks-*.array_record"))) <= shards:
            time.sleep(0.001)
        time.sleep(random.Random(shards).uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        shards = len(list(killed.glob("blocks-*.array_record")))
        with pytest.raises(InputError, match="not complete"):
            open_blocks(killed)
    assert shards >= 4
    write_blocks(texts, tokenizer, killed, **options)
    assert contents(killed) == contents(tmp_path / "whole")


@pytest.mark.parametrize(("block_length", "shard_blocks"), [(2, 3), (7, 1), (64, 2)])
def test_documents_longer_than_a_shard_and_shards_that_end_with_a_document(
    tokenizer, tmp_path, monkeypatch, block_length, shard_blocks
):
    """Stop after each document in turn."""
    monkeypatch.setattr(block_writer, "BATCH_CHARACTERS", 1)
    texts = ["self value " * n for n in (1, 0, 30, 2, 0, 0, 1)]
    options = {"block_length": block_length, "shard_blocks": shard_blocks, "segment_ids": True}
    write_blocks(texts, tokenizer, tmp_path / "whole", **options)
    tokens, _ = plain_stream(tokenizer, texts)
    whole = open_blocks(tmp_path / "whole")
    read = whole.read(np.arange(len(whole)))["input_ids"].reshape(-1)
    assert np.array_equal(read, tokens[: len(tokens) // block_length * block_length])
    for after in range(1, len(texts)):
        write_partially(tokenizer, tmp_path / "partial", texts, after, **options)
    write_blocks(texts, tokenizer, tmp_path / "partial", **options)
    assert contents(tmp_path / "partial") == contents(tmp_path / "whole")


class Killed(BaseException):
    pass


def test_interruption_at_any_rename_resumes_to_identical_files(tokenizer, tmp_path, monkeypatch):
    """Stop before or after each rename in turn, and resume every time."""
    options = {"block_length": 16, "segment_ids": True, "shard_blocks": 150}
    write_blocks(documents(), tokenizer, tmp_path / "whole", **options)
    folder = tmp_path / "stopped"
    stops = 0
    for attempt in range(60):
        # Shards are renamed by `writer`, manifests by `manifest`; stop at the next rename or one of the two after it.
        left = [attempt % 3]

        def rename(partial, path, real=fsync_and_rename, after=attempt % 2, left=left):
            left[0] -= 1
            if left[0] >= 0 or after:
                real(partial, path)
            if left[0] < 0:
                raise Killed

        monkeypatch.setattr(block_writer, "fsync_and_rename", rename)
        monkeypatch.setattr(manifest_module, "fsync_and_rename", rename)
        try:
            write_blocks(documents(), tokenizer, folder, **options)
            break
        except Killed:
            stops += 1
    assert 10 < stops < 60 and contents(folder) == contents(tmp_path / "whole")


def write_partially(tokenizer, folder, texts, after=150, **options):
    """Start writing blocks and stop in the middle of the texts."""

    def interrupted_texts():
        yield from texts[:after]
        raise Killed

    with pytest.raises(Killed):
        write_blocks(interrupted_texts(), tokenizer, folder, **{"block_length": 16, "shard_blocks": 20, **options})


def test_resuming_with_other_settings_or_texts_is_an_error(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(block_writer, "BATCH_CHARACTERS", 500)
    texts = documents()
    folder = tmp_path / "partial"
    write_partially(tokenizer, folder, texts)
    other = train_tokenizer(documents(50, seed=3), vocab_size=290, min_frequency=0)
    same = {"block_length": 16, "shard_blocks": 20}
    for change, message in (
        ({"block_length": 32}, "block_length 16, now 32"),
        ({"segment_ids": True}, "segment_ids False, now True"),
        ({"shard_blocks": 30}, "shard_blocks 20, now 30"),
        ({"separator_id": 7}, "separator_id 0, now 7"),
        ({"tokenizer": other}, "vocab_size 300, now 290; tokenizer_hash"),
        ({"texts": [texts[0] + "x", *texts[1:]]}, "started with other texts"),
        ({"texts": texts[1:]}, "started with other texts"),
        ({"texts": texts[:3]}, "more documents than the 3 given"),
    ):
        arguments = {"texts": texts, "tokenizer": tokenizer, **same, **change}
        with pytest.raises(InputError, match=message):
            write_blocks(folder=folder, **arguments)
    # None of these calls changed the folder.
    write_blocks(texts, tokenizer, folder, **same)
    write_blocks(texts, tokenizer, tmp_path / "whole", **same)
    assert contents(tmp_path / "partial") == contents(tmp_path / "whole")


def test_a_complete_folder_is_verified_against_the_texts(tokenizer, tmp_path):
    texts = documents()
    manifest = write_blocks(texts, tokenizer, tmp_path, block_length=16)
    before = contents(tmp_path)
    assert write_blocks(texts, tokenizer, tmp_path, block_length=16) == manifest
    with pytest.raises(InputError, match="more were given"):
        write_blocks([*texts, "y"], tokenizer, tmp_path, block_length=16)
    with pytest.raises(InputError, match="other texts"):
        write_blocks([*texts[:-1], texts[-1] + "y"], tokenizer, tmp_path, block_length=16)
    assert contents(tmp_path) == before


def test_two_concurrent_writers_are_an_error(tokenizer, tmp_path):
    def texts():
        yield "a " * 500
        with pytest.raises(InputError, match="another process"):
            write_blocks(["a " * 500], tokenizer, tmp_path, block_length=16)
        yield "b " * 500

    write_blocks(texts(), tokenizer, tmp_path, block_length=16)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "0 documents with 0 tokens"),
        (["", ""], {}, "2 documents with 0 tokens"),
        (["a"], {}, "1 documents with 2 tokens do not fill one block of 16"),
        (["a"], {"block_length": 1}, "block_length is 1"),
        (["a"], {"shard_blocks": 0}, "shard_blocks is 0"),
        (["a"], {"separator_id": 300}, "from 0 to 299"),
        (["a", b"b"], {}, "document 1 has type bytes"),
        (["a", "\ud800"], {}, "document 1 is not valid Unicode"),
    ],
)
def test_invalid_input_is_an_error(tokenizer, tmp_path, texts, options, message):
    with pytest.raises(InputError, match=message):
        write_blocks(texts, tokenizer, tmp_path / "new", **{"block_length": 16, **options})


def test_unsupported_tokenizers_are_an_error(tokenizer, tmp_path):
    with pytest.raises(InputError, match="not a fast tokenizer"):
        write_blocks(["a"], object(), tmp_path, block_length=16)
    dropping = train_tokenizer(documents(50), vocab_size=290, min_frequency=0)
    dropping.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(InputError, match="dropout"):
        write_blocks(["a"], dropping, tmp_path, block_length=16)
    dropping.backend_tokenizer.model.dropout = None
    dropping.eos_token = None
    with pytest.raises(InputError, match="give separator_id"):
        write_blocks(["a"], dropping, tmp_path, block_length=16)
    (tmp_path / "blocks-00000.array_record").touch()
    with pytest.raises(InputError, match="shards without"):
        write_blocks(["a"], tokenizer, tmp_path, block_length=16)


# Opening and reading


@pytest.fixture
def made(tokenizer, tmp_path):
    write_blocks(documents(), tokenizer, tmp_path / "made", block_length=16, segment_ids=True, shard_blocks=100)
    return tmp_path / "made"


def test_random_access_across_shards(made):
    blocks = open_blocks(made)
    everything = blocks.read(np.arange(len(blocks)))
    indices = np.random.default_rng(0).integers(0, len(blocks), 300)
    for key, value in blocks.read(indices).items():
        assert np.array_equal(value, everything[key][indices])
    assert blocks.read(np.asarray([], dtype=np.int64))["input_ids"].shape == (0, 16)
    for wrong in ([-1], [len(blocks)], [0.5], [[0]]):
        with pytest.raises(InputError, match="indices"):
            blocks.read(np.asarray(wrong))


def test_the_number_of_open_shards_is_limited(made, monkeypatch):
    monkeypatch.setattr("duonlp.data.blocks.reader.MAX_OPEN_SHARDS", 2)
    blocks = open_blocks(made)
    assert len(blocks.manifest.shards) > 4
    everything = blocks.read(np.arange(len(blocks)))["input_ids"]
    assert np.array_equal(blocks.read(np.arange(len(blocks)))["input_ids"], everything)
    assert len(blocks._readers) == 2


def test_threads_and_pickled_copies_read_the_same(made):
    blocks = open_blocks(made)
    everything = blocks.read(np.arange(len(blocks)))["input_ids"]
    wrong = []

    def read(seed):
        for _ in range(20):
            indices = np.random.default_rng(seed).integers(0, len(blocks), 8)
            if not np.array_equal(blocks.read(indices)["input_ids"], everything[indices]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    copy = pickle.loads(pickle.dumps(blocks))
    assert np.array_equal(copy.read(np.arange(9))["input_ids"], everything[:9])


def test_reading_in_a_forked_process_is_an_error(made):
    code = (
        "import os, sys, numpy as np\n"
        "from duonlp.data.blocks.reader import open_blocks\n"
        "blocks = open_blocks(sys.argv[1]); blocks.read(np.arange(9))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: blocks.read(np.arange(9))\n"
        "    except Exception as error: os._exit(3 if 'spawn' in str(error) else 4)\n"
        "    os._exit(5)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code, str(made)], cwd=ROOT, check=True, timeout=60)


def flip_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_corrupt_shards_and_records_are_named(made):
    shard = made / "blocks-00001.array_record"
    flip_byte(shard, shard.stat().st_size // 100)
    with pytest.raises(InputError, match=r"blocks-00001\.array_record' is corrupt: its SHA-256"):
        open_blocks(made, verify=True)
    blocks = open_blocks(made)  # checksums are only compared with verify=True
    failed = []
    for index in range(100, 200):
        try:
            blocks.read(np.asarray([0, index]))
        except InputError as error:
            failed.append(index - 100)
            assert f"record {index - 100} of" in str(error) and "blocks-00001.array_record" in str(error)
    assert len(failed) == 1
    with pytest.raises(InputError, match=f"record {failed[0]} of"):
        blocks.read(np.arange(len(blocks)))


def test_records_with_invalid_contents_are_named(made):
    from array_record.python.array_record_module import ArrayRecordWriter

    shard = made / "blocks-00000.array_record"
    good, high = np.full(16, 5, "<u2").tobytes(), np.full(16, 300, "<u2").tobytes()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in (good, good[:-2], good + b"\0", high, good + b"\x10\0") + (good,) * 95:
        writer.write(record)
    writer.close()
    update_shard_size(made, 0)
    blocks = open_blocks(made)
    assert (blocks.read(np.asarray([0]))["input_ids"] == 5).all()
    for index, message in ((1, "30 bytes"), (2, "33 bytes"), (3, "token id 300"), (4, "begins at 16")):
        with pytest.raises(InputError, match=f"record {index} of .*00000.*{message}"):
            blocks.read(np.asarray([0, index]))
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(good)
    writer.close()
    update_shard_size(made, 0)
    with pytest.raises(InputError, match="1 records, but the manifest says 100"):
        open_blocks(made).read(np.asarray([0]))


def update_shard_size(folder, shard):
    """Write the actual size of a changed shard to the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][shard]["size"] = (folder / manifest["shards"][shard]["file"]).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_missing_and_truncated_shards_are_named(made, tokenizer):
    shard = made / "blocks-00002.array_record"
    data = shard.read_bytes()
    for wrong, message in ((data[:-1], "bytes, but the manifest says"), (None, "is missing")):
        shard.unlink() if wrong is None else shard.write_bytes(wrong)
        with pytest.raises(InputError, match=f"blocks-00002.array_record' .*{message}|has {len(data) - 1} bytes"):
            open_blocks(made)
        with pytest.raises(InputError, match="blocks-00002"):
            write_blocks(documents(), tokenizer, made, block_length=16, segment_ids=True, shard_blocks=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(blocks=m["blocks"] - 1), "counts are inconsistent"),
        (lambda m: m["shards"][0].update(file="../elsewhere"), "counts are inconsistent"),
        (lambda m: m.update(format=2), "format 2"),
        (lambda m: m.update(blocks="many"), "blocks is 'many'"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("separator_id"), "separator_id"),
        (lambda m: m["shards"][0].pop("sha256"), "sha256"),
        (lambda m: m.update(shards=3), "corrupt"),
        (lambda m: m.update(complete=False), "not complete"),
    ],
)
def test_an_inconsistent_manifest_is_an_error(made, change, message):
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        open_blocks(made)


def test_a_missing_or_unreadable_manifest_is_an_error(made, tmp_path):
    with pytest.raises(InputError, match="not a folder of blocks"):
        open_blocks(tmp_path)
    for text in ("", "[1]", "{", '{"format": 1}'):
        (made / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"corrupt|format None"):
            open_blocks(made)
    (made / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="corrupt"):
        open_blocks(made)


def test_blocks_of_another_tokenizer_are_an_error(made, tokenizer):
    open_blocks(made, tokenizer)
    for other in (
        train_tokenizer(documents(50, seed=3), vocab_size=300, min_frequency=0),
        train_tokenizer(documents(100, seed=1), vocab_size=290, min_frequency=0),
    ):
        with pytest.raises(InputError, match="another tokenizer"):
            open_blocks(made, other)
    equal = train_tokenizer(documents(100, seed=1), vocab_size=300, min_frequency=0)
    open_blocks(made, equal)
    equal.add_tokens(["<fim>"])
    with pytest.raises(InputError, match=r"another tokenizer \(300 tokens, .* the one given \(301 tokens"):
        open_blocks(made, equal)


def test_the_tokenizer_hash_depends_only_on_what_changes_ids(tokenizer, tmp_path):
    first = tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(loaded) == first
    loaded("a b", truncation=True, max_length=2)
    loaded(["a", "b c"], padding="max_length", max_length=9)
    assert tokenizer_hash(loaded) == first and os.path.exists(tmp_path / "tokenizer.json")
    loaded.add_tokens(["<fim>"])
    assert tokenizer_hash(loaded) != first


@pytest.mark.parametrize(
    "family", ["BertTokenizerFast", "GPT2TokenizerFast", "RobertaTokenizerFast", "AlbertTokenizerFast"]
)
def test_the_tokenizer_hash_survives_saving(family, tmp_path):
    import transformers

    special = ["<pad>", "<unk>", "<s>", "</s>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>", "<|endoftext|>"]
    tokens = special + list("abcdef")
    if family == "AlbertTokenizerFast":
        arguments = {"vocab": [(token, -1.0) for token in tokens]}
    elif family == "BertTokenizerFast":
        arguments = {"vocab": {token: i for i, token in enumerate(tokens)}}
    else:
        arguments = {"vocab": {token: i for i, token in enumerate([*tokens, "ab"])}, "merges": [("a", "b")]}
    tokenizer = getattr(transformers, family)(**arguments)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_hash(tokenizer)
    assert write_blocks(["ab ab cd " * 20], tokenizer, tmp_path / "blocks", block_length=8).blocks > 4
    open_blocks(tmp_path / "blocks", AutoTokenizer.from_pretrained(tmp_path))
