"""Test copies on disk: what is made again, damaged files, several writers and a full disk."""

import os
import threading

import pytest

from duonlp.augmentation import MaskedSubstitution, RandomEdits, cached
from duonlp.augmentation import cache as module
from duonlp.errors import InputError, StorageError
from tests.augmentation import TEXTS, fill_mask


def test_copies_are_made_once(tmp_path):
    edits = RandomEdits()
    first = cached(edits, tmp_path / "new" / "folder")
    copies = first.augment(TEXTS, 3, seed=7)
    assert copies == edits.augment(TEXTS, 3, seed=7) and first.made == 15
    again = cached(edits, tmp_path / "new" / "folder")
    assert again.augment(TEXTS[::-1], 2, seed=7) == [of_text[:2] for of_text in copies][::-1] and again.made == 0
    again.augment(TEXTS, 4, seed=7)
    assert again.made == 20
    again.augment(TEXTS[:1], 1, seed=8)
    assert again.made == 21
    other = cached(RandomEdits(alpha=0.3), tmp_path / "new" / "folder")
    assert other.augment(TEXTS, 3, seed=7) != copies and other.made == 15


def test_a_model_is_identified(tmp_path):
    with pytest.raises(InputError, match="pass name="):
        cached(MaskedSubstitution(fill_mask()), tmp_path)
    cached(MaskedSubstitution(fill_mask(), name="a"), tmp_path).augment(TEXTS)
    other = cached(MaskedSubstitution(fill_mask(), name="b"), tmp_path)
    other.augment(TEXTS)
    assert other.made == 5 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty", "swap"])
def test_damaged_lines_are_made_again(tmp_path, damage):
    edits = RandomEdits()
    copies = cached(edits, tmp_path).augment(TEXTS, 2)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        del data[-7:]
    elif damage == "flip":
        data[40] ^= 1
    elif damage == "garbage":
        data[100:100] = b"\xff\n\x00\n"
    elif damage == "empty":
        data.clear()
    else:  # the hash of one line before the payload of another
        lines = data.split(b"\n")
        lines[0], lines[1] = lines[0][:17] + lines[1][17:], lines[1][:17] + lines[0][17:]
        data = b"\n".join(lines)
    file.write_bytes(data)
    damaged = cached(edits, tmp_path)
    assert damaged.augment(TEXTS, 2) == copies and damaged.made > 0
    repaired = cached(edits, tmp_path)
    assert repaired.augment(TEXTS, 2) == copies and repaired.made == 0


def test_the_first_of_two_writers_decides(tmp_path):
    class Counted:
        made = 0

        def settings(self):
            return {}

        def augment(self, texts, per_text=1, seed=0):
            Counted.made += 1
            return [[f"{text} {Counted.made} {number}" for number in range(per_text)] for text in texts]

    first, second = cached(Counted(), tmp_path), cached(Counted(), tmp_path)
    made = first.augment(["a"])
    second.augmenter.augment = lambda texts, per_text, seed: [["other"] * per_text for _ in texts]
    second._files[0] = module._CopyFile(next(tmp_path.iterdir()))
    assert second.augment(["a"]) == made
    results = {}
    writers = [cached(Counted(), tmp_path) for _ in range(4)]
    texts = [f"text {number}" for number in range(50)]
    for writer in writers:
        writer.chunk = 5
    threads = [
        threading.Thread(target=lambda n=n: results.__setitem__(n, writers[n].augment(texts, 2))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2] == results[3] == cached(Counted(), tmp_path).augment(texts, 2)


def test_a_full_disk(tmp_path, monkeypatch):
    edits = RandomEdits()
    real = open

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def write(self, data):
            self.stream.write(bytes(data[:50]))
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(
        module,
        "open",
        lambda path, mode, **k: (Full if "a" in mode else lambda s: s)(real(path, mode, **k)),
        raising=False,
    )
    with pytest.raises(StorageError, match="free disk space"):
        cached(edits, tmp_path).augment(TEXTS)
    monkeypatch.undo()
    assert cached(edits, tmp_path).augment(TEXTS) == edits.augment(TEXTS)
    last = cached(edits, tmp_path)
    assert last.augment(TEXTS) == edits.augment(TEXTS) and last.made == 0


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError):
        cached(RandomEdits(), tmp_path / "file").augment(TEXTS)
