"""Passages of files, and the index on disk: places, incremental updates, other processes, kills."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.retrieval.files import (
    IndexFolder,
    PassageSettings,
    default_index_folder,
    document_files,
    line_of,
    read_passages,
    split_text,
)
from duonlp.retrieval.files import index_folder as module

SMALL = PassageSettings(words=5, overlap=2)


class Encoder:
    """Counts the texts that it encodes."""

    def __init__(self, name="letters", size=3):
        self.name, self.size, self.texts = name, size, []

    def encode_documents(self, texts, titles=None):
        self.texts += texts
        return np.array([[len(text) + i for i in range(self.size)] for text in texts], np.float32)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("One two three.\r\n\r\nFour five.\n\n\nA paragraph that has more words than five.\n")
    (folder / "deep" / "b.md").write_text("# Title\n\ntext")
    (folder / "c.csv").write_text('id,review,stars\n7,"two\nlines",5\n8,other,1\n')
    (folder / "d.jsonl").write_text('{"text": "row one", "nested": {}, "n": 1}\n\n{"title": "x"}\nnot json\n')
    (folder / "e.json").write_text('[{"content": "entry"}, 3]')
    (folder / ".hidden.txt").write_text("no")
    (folder / "f.pdf").write_text("no")
    return folder


def test_passages_are_whole_paragraphs_or_overlapping_windows():
    text = "a b c\n\nd e\n \t\n\nf\n\n" + " ".join(map(str, range(11))) + "\n\nz"
    pieces = [text[start:end] for start, end in split_text(text, 5, 2)]
    assert pieces == ["a b c\n\nd e", "f", "0 1 2 3 4", "3 4 5 6 7", "6 7 8 9 10", "z"]
    assert split_text("", 5, 2) == [] == split_text(" \n\n ", 5, 2)
    assert [end - start for start, end in split_text("電" * 12, 5, 0)] == [5, 5, 2]
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice(["w", " ", " ", "\n", "\n\n", "long"]) for _ in range(rng.randrange(60)))
        words = rng.randrange(1, 6)
        ranges = split_text(text, words, rng.randrange(words))
        covered = {i for start, end in ranges for i in range(start, end)}
        assert all(text[i].isspace() or i in covered for i in range(len(text)))
        assert all(1 <= len(text[start:end].split()) <= words for start, end in ranges)
        assert ranges == sorted(ranges)


def test_passages_know_their_file_line_and_offset(source):
    passages, problems = read_passages(source / "a.txt", "a.txt", SMALL)
    text = "One two three.\n\nFour five.\n\n\nA paragraph that has more words than five.\n"
    assert [(p.content, p.meta["line"]) for p in passages][:2] == [
        ("One two three.\n\nFour five.", 1), ("A paragraph that has more", 6),
    ]  # fmt: skip
    assert [line_of(p, p.content.index(word)) for p, word in zip(passages, ("Four", "more"))] == [3, 6]
    assert not problems and all(text[p.meta["offset"] :].startswith(p.content) for p in passages)
    passages, problems = read_passages(source / "c.csv", "c.csv", SMALL)
    assert [(p.content, p.meta) for p in passages] == [
        ("two\nlines", {"id": "7", "stars": "5", "file": "c.csv", "line": 2, "offset": 0}),
        ("other", {"id": "8", "stars": "1", "file": "c.csv", "line": 4, "offset": 0}),
    ]
    passages, problems = read_passages(source / "d.jsonl", "d.jsonl", SMALL)
    assert [(p.content, p.meta) for p in passages] == [("row one", {"n": 1, "file": "d.jsonl", "line": 1, "offset": 0})]
    assert len(problems) == 2 and "d.jsonl:3: no text in a column of a usual name" in problems[0] + problems[1]
    passages, problems = read_passages(source / "e.json", "e.json", SMALL)
    assert [p.content for p in passages] == ["entry"] and "e.json:2: int instead of an object" in problems[0]
    (source / "bad.txt").write_bytes(b"caf\xe9")
    assert read_passages(source / "bad.txt", "bad.txt", SMALL)[1] == ["bad.txt: byte 0xe9 at 3 (invalid UTF-8)"]
    assert read_passages(source / "bad.txt", "bad.txt", PassageSettings(encoding="cp1252"))[0][0].content == "café"


def test_text_that_is_not_unicode_is_reported(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x \\ud800"}\n{"text": "ok", "other": "\\ud800"}\n')
    passages, problems = read_passages(tmp_path / "a.jsonl", "a.jsonl", SMALL)
    assert [passage.content for passage in passages] == ["ok"]
    assert len(problems) == 1 and problems[0].startswith("a.jsonl:1: unpaired surrogate")


def test_files_of_a_folder(source, tmp_path):
    assert list(document_files(source)) == ["a.txt", "c.csv", "d.jsonl", "deep/b.md", "e.json"]
    assert list(document_files(source, source / "deep")) == ["a.txt", "c.csv", "d.jsonl", "e.json"]
    assert list(document_files(source / "f.pdf")) == ["f.pdf"]
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "empty", "no documents"), (tmp_path / "none", "does not exist")):
        with pytest.raises(InputError, match=words):
            document_files(path)
    for settings in ({"words": 0}, {"words": 5, "overlap": 5}, {"encoding": "klingon"}):
        with pytest.raises(InputError, match="is"):
            PassageSettings(**settings)


def test_only_what_changed_is_read_and_encoded_again(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RACY", 0)
    read = []
    monkeypatch.setattr(
        module, "read_passages", lambda path, name, s: read.append(name) or read_passages(path, name, s)
    )

    def update():
        read.clear()
        encoder = Encoder()
        index = IndexFolder(tmp_path / "index", source, settings=SMALL, encoder=encoder)
        report = index.update()
        documents = index.store.filter_documents()
        assert report.passages == len(documents) and report.encoded == len(encoder.texts)
        fresh = IndexFolder(tmp_path / f"fresh{time.monotonic_ns()}", source, settings=SMALL, encoder=Encoder())
        was = list(read)
        fresh.update()
        expected = {document.id: document.embedding.tolist() for document in fresh.store.filter_documents()}
        assert {document.id: document.embedding.tolist() for document in documents} == expected
        return report, was, encoder.texts

    report, names, texts = update()
    assert (report.added, report.changed, len(texts)) == (5, 0, report.passages) and len(report.problems) == 3
    report, names, texts = update()
    assert (names, texts, report.unchanged, len(report.problems)) == ([], [], 5, 3)
    os.utime(source / "a.txt", (1, 1))  # touched, but the same
    report, names, texts = update()
    assert (names, texts) == ([], [])
    (source / "a.txt").write_text("One two three.\n\nFour five.\n\nnew")
    (source / "e.json").unlink()
    (source / "g.txt").write_text("added")
    report, names, texts = update()
    assert (report.added, report.changed, report.deleted, report.unchanged) == (1, 1, 1, 3)
    assert names == ["a.txt", "g.txt"] and texts == ["new", "added"]
    assert sorted(os.listdir(tmp_path / "index")) == sorted([".lock", "index.json", stored(tmp_path / "index")])
    report = IndexFolder(tmp_path / "index", source, encoder=Encoder()).update()
    assert report.added == 5 and report.encoded == report.passages  # other settings


def stored(folder):
    return json.loads((folder / "index.json").read_text())["store"]


def contents(index):
    return [document.content for document in index.store.filter_documents()]


def test_a_file_changed_right_after_it_was_read_is_noticed(source, tmp_path):
    index = IndexFolder(tmp_path / "index", source / "a.txt")
    index.update()
    status = (source / "a.txt").stat()
    text = (source / "a.txt").read_bytes()
    (source / "a.txt").write_bytes(text.replace(b"One", b"Uno"))
    os.utime(source / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert index.update().changed == 1 and contents(index)[0].startswith("Uno")


def test_an_index_of_something_else_is_refused(source, tmp_path):
    folder = tmp_path / "index"
    IndexFolder(folder, source, encoder=Encoder()).update()
    for arguments, words in (
        ((source / "deep",), "is of .*docs', not of"),
        ((source,), "vectors of 'letters', but keyword search"),
        ((source, Encoder("other")), "vectors of 'letters' with 3 values, but the retriever is 'other' with 3"),
        ((source, Encoder(size=4)), "'letters' with 4"),
    ):
        with pytest.raises(InputError, match=words):
            IndexFolder(folder, arguments[0], encoder=(*arguments, None)[1])
    with pytest.raises(InputError, match="no index, but other files"):
        IndexFolder(source, source)
    with pytest.raises(InputError, match="is a file"):
        IndexFolder(source / "a.txt", source)


def test_damaged_data_is_built_anew_and_a_file_of_another_kind_is_kept(source, tmp_path):
    folder = tmp_path / "index"
    IndexFolder(folder, source).update()
    (folder / stored(folder) / "documents.jsonl").write_text("no JSON\n")
    assert IndexFolder(folder, source).update().added == 5
    for version in (0, 1):
        (folder / "index.json").write_text(f'{{"kind": "duonlp passages", "format": {version}}}')
        assert IndexFolder(folder, source).update().added == 5
    for text, words in (("{", "delete that folder"), ('{"pages": []}', "is not an index of passages")):
        (folder / "index.json").write_text(text)
        with pytest.raises(InputError, match=words):
            IndexFolder(folder, source)


def test_an_unreadable_file_is_reported_and_tried_again(source, tmp_path):
    (source / "a.txt").unlink()
    (source / "a.txt").symlink_to("/proc/self/mem")  # exists, but reading it fails
    if not (source / "a.txt").is_file():
        pytest.skip("no /proc")
    index = IndexFolder(tmp_path / "index", source)
    assert any(problem.startswith("a.txt: ") for problem in index.update().problems)
    (source / "a.txt").unlink()
    (source / "a.txt").write_text("readable")
    assert not any(problem.startswith("a.txt: ") for problem in index.update().problems)


def test_a_second_process_waits(source, tmp_path):
    index = IndexFolder(tmp_path / "index", source)
    index.update()
    (source / "new.txt").write_text("new")
    waited = []
    with index._locked(None):
        thread = threading.Thread(target=lambda: index.update(on_wait=lambda: waited.append(1)))
        thread.start()
        while not waited and thread.is_alive():
            time.sleep(0.01)
        assert IndexFolder(tmp_path / "index", source)._load() is not None  # readable meanwhile
    thread.join()
    assert waited == [1] and "new" in contents(index)


KILLED = """
import os, signal, sys
from duonlp.retrieval.files import IndexFolder, index_folder
index_folder.write_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
IndexFolder(sys.argv[1], sys.argv[2]).update()
"""


def test_a_kill_while_writing_leaves_the_old_index_readable(source, tmp_path):
    index = IndexFolder(tmp_path / "index", source)
    index.update()
    old = contents(index)
    (source / "new.txt").write_text("new")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "index"), str(source)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [document.content for document in index._load().store.filter_documents()] == old
    assert len([name for name in os.listdir(tmp_path / "index") if name.startswith("store-")]) == 2
    assert index.update().added == 1 and sorted(contents(index)) == sorted([*old, "new"])
    assert len([name for name in os.listdir(tmp_path / "index") if name.startswith("store-")]) == 1


def test_the_default_folder_depends_on_source_and_retriever(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = default_index_folder("some/my docs", "bm25")
    assert folder.parent == tmp_path / "duonlp" / "indexes" and folder.name.startswith("my_docs-")
    assert len({folder, default_index_folder("some/my docs", "x"), default_index_folder("other/my docs", "bm25")}) == 3
