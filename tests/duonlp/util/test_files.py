"""Locks of folders, atomic writes, full disks, and files without permissions."""

import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from duonlp.data.cleaning.splits import write_split
from duonlp.data.labelled.texts import read_labelled_texts
from duonlp.data.pairs.summaries import read_pairs
from duonlp.data.reading.documents import Document, read_documents
from duonlp.data.rows.length_batches import load_or_build_rows
from duonlp.data.rows.token_rows import TokenRows
from duonlp.errors import DuonlpError, InputError, StorageError
from duonlp.metrics.predictions import write_predictions
from duonlp.runs.pretraining import load_run
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.log.metrics_log import MetricsLog
from duonlp.training.run_file import check_run, write_run
from duonlp.training.settings_file import read_toml
from duonlp.util.files import UNFINISHED, locked_file, locked_folder, may_read, replacing, updating, write_text

ROOT = Path(__file__).resolve().parents[3]
RECORD = {"step": 1, "loss": 1.0, "tokens": 8}


def in_thread(function):
    """Return what a function raises in another thread, or None."""
    raised = []

    def call():
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


# Locks


def lock(folder, use=""):
    with locked_folder(folder, use):
        pass


def test_a_locked_folder_is_shared_by_layers_alone(tmp_path):
    folder = tmp_path / "a" / "run"
    with locked_folder(folder, "run"):
        with locked_folder(folder, "training"), locked_folder(tmp_path / "a" / ".." / "a" / "run", "metrics"):
            for use in ("run", "training", "metrics", ""):
                with pytest.raises(InputError, match="run' is being written by another process or thread; wait"):
                    lock(folder, use)
        assert "is being written" in str(in_thread(lambda: lock(folder, "training")))
        lock(folder, "training")
    assert not folder.exists()  # it stayed empty
    folder.mkdir()
    lock(folder)
    assert folder.exists() and in_thread(lambda: lock(folder)) is None
    with locked_folder(folder), pytest.raises(InputError, match="is being written"):
        lock(folder, "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file' is a file; give a folder"):
        lock(tmp_path / "file")


def test_another_process_is_refused_until_the_first_ends_however_that_is(tmp_path):
    code = (
        "import sys, time; from duonlp.util.files import locked_folder\n"
        "with locked_folder(sys.argv[1]): print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(InputError, match="another process"):
        lock(tmp_path)
    process.kill()
    process.communicate()
    lock(tmp_path)


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    reader, writer = os.pipe()
    with locked_folder(tmp_path):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    lock(tmp_path)
    os.close(writer), os.close(reader)
    assert os.waitpid(child, 0)[1] == 0


def test_two_logs_in_one_folder(tmp_path):
    with MetricsLog(tmp_path, total_steps=2, console=False) as log:
        log.step(RECORD)
        error = in_thread(lambda: MetricsLog(tmp_path, total_steps=2, console=False, resumed_from=0))
        assert "being written by another process or thread" in str(error)
        log.step(RECORD | {"step": 2})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_locked_file(tmp_path):
    file = tmp_path / "record.jsonl"
    with locked_file(file), pytest.raises(InputError, match="is being written"), locked_file(file):
        pass
    assert not file.exists()
    with locked_file(file):
        file.write_text("a\n")
    assert file.read_text() == "a\n"


def test_updates_of_one_file_are_all_kept(tmp_path):
    file = tmp_path / "counts.json"
    write_text(file, "0")

    def add():
        for _ in range(20):
            with updating(file):
                write_text(file, str(int(file.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == "80" and os.listdir(tmp_path) == ["counts.json"]


# Atomic writes


def test_writes_of_one_file_at_once_leave_one_of_them(tmp_path):
    file, texts = tmp_path / "a", [letter * 100_000 for letter in "abcd"]
    threads = [threading.Thread(target=lambda text=text: [write_text(file, text) for _ in range(5)]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts and os.listdir(tmp_path) == ["a"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    code = (
        "import os, sys, signal; from duonlp.util.files import replacing\n"
        "with replacing(sys.argv[1]) as stream: stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    file = tmp_path / "[a].json"
    subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT)
    assert [name.endswith(UNFINISHED) for name in os.listdir(tmp_path)] == [True]
    with replacing(file) as stream:
        write_text(file, "inner")  # the outer one is not taken for a leftover
        stream.write(b"outer")
    assert file.read_text() == "outer" and os.listdir(tmp_path) == ["[a].json"]
    with pytest.raises(ZeroDivisionError), replacing(file):
        raise ZeroDivisionError
    assert file.read_text() == "outer" and os.listdir(tmp_path) == ["[a].json"]


def rows_of(seed):
    return TokenRows.of(np.random.default_rng(seed).integers(0, 99, (50, 40)).tolist())


def test_two_threads_that_build_a_damaged_cache_never_mix(tmp_path):
    def build():
        barrier.wait()
        return [rows_of(0), rows_of(1)]

    for _ in range(5):
        folder = tmp_path / "cache" / "key"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.values.npy").write_bytes(b"damaged")
        barrier, loaded = threading.Barrier(3), []
        threads = [
            threading.Thread(target=lambda: loaded.append(load_or_build_rows(folder, ("a", "b"), 50, build)))  # noqa: B023
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loaded) == 3 and os.listdir(tmp_path / "cache") == ["key"]
        for pair in (*loaded, load_or_build_rows(folder, ("a", "b"), 50, build)):
            assert all((rows.values == rows_of(seed).values).all() for seed, rows in enumerate(pair))


# Full disks


@contextmanager
def full_disk(bytes_left):
    """Let files grow to this size only, in this process."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_picture(folder):
    pytest.importorskip("matplotlib")
    from duonlp.util.pictures import picture

    with picture(folder / "a.png", 2, 2):
        pass


def write_logits(folder):
    from types import SimpleNamespace

    from duonlp.distillation.teacher_logits import load_or_compute_logits

    class Ordered:
        def order(self, number):
            return np.arange(64).reshape(8, 8)

        def epoch(self, number):
            return iter(())

    model = SimpleNamespace(config=None, head="h", dtype="float32")
    load_or_compute_logits(Ordered(), folder, model, {}, lambda *_: np.zeros((64, 50), np.float32))


WRITERS = {
    "text": lambda folder: write_text(folder / "a", "x" * 9000),
    "run": lambda folder: write_run(folder, FitConfig(), {"data": "x" * 9000}),
    "predictions": lambda folder: write_predictions(folder / "a.jsonl", ["1"], ["x" * 9000]),
    "split": lambda folder: write_split(
        [Document(np.random.default_rng(i).bytes(400).hex(), f"{i}.py") for i in range(99)], folder, held_out=0.5
    ),
    "rows": lambda folder: load_or_build_rows(folder / "cache", ("a",), 50, lambda: [rows_of(0)]),
    "picture": write_picture,
    "logits": write_logits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path, name):
    WRITERS[name](tmp_path)
    before = contents(tmp_path)
    if name in ("rows", "logits"):  # which are not written again
        for path in (tmp_path / file for file in before):
            path.write_bytes(b"damaged")
        before = contents(tmp_path)
    with full_disk(100), pytest.raises(StorageError, match=rf"cannot write '{tmp_path}.*; free disk space") as error:
        WRITERS[name](tmp_path)
    assert contents(tmp_path) == before and "\n" not in str(error.value)
    assert error.value.errno == errno.EFBIG or "written" in str(error.value)


def test_a_full_disk_leaves_whole_records(tmp_path):
    with MetricsLog(tmp_path, total_steps=9, console=False) as log:
        log.step(RECORD)
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with full_disk(size + 20), pytest.raises(StorageError, match=r"metrics.jsonl': .*; free disk space"):
            log.step(RECORD | {"step": 2})
        log.step(RECORD | {"step": 3})
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3]


def test_a_full_disk_keeps_the_finished_shards_of_blocks(tmp_path):
    pytest.importorskip("array_record")
    from types import SimpleNamespace

    from tokenizers import Tokenizer, models, pre_tokenizers

    from duonlp.data.blocks.writer import write_blocks

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(999)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = SimpleNamespace(backend_tokenizer=backend, eos_token_id=0)
    texts = [" ".join(f"w{i}" for i in np.random.default_rng(0).integers(0, 999, 9000))]

    def write(folder, shard_blocks):
        return write_blocks(iter(texts), tokenizer, folder, block_length=100, shard_blocks=shard_blocks)

    for shard_blocks in (1, 90):
        folder = tmp_path / str(shard_blocks)
        with (
            full_disk(6000),
            pytest.raises(StorageError, match=r"cannot write '.*(partial|manifest.json)'.*free disk space"),
        ):
            write(folder, shard_blocks)
        assert not [name for name in os.listdir(folder) if name.endswith((UNFINISHED, ".partial"))]
        write(folder, shard_blocks), write(tmp_path / "whole", shard_blocks)
        assert contents(folder) == contents(tmp_path / "whole")
        for path in (tmp_path / "whole").iterdir():
            path.unlink()


def test_a_full_disk_ends_a_search(tmp_path):
    pytest.importorskip("optuna")
    from duonlp.tuning.search import tune

    def objective(parameters, report):
        if not parameters.get("whole"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return {"accuracy": parameters["x"]}

    space = {"x": {"low": 0.0, "high": 1.0}}
    with full_disk(resource.RLIM_INFINITY), pytest.raises(StorageError, match=r"study.db': .*; "):
        tune(objective, space, tmp_path, trials=2, console=False)
    assert len(tune(lambda p, _: {"accuracy": p["x"]}, space, tmp_path, trials=2, console=False).trials) == 2


# Permissions


@contextmanager
def without_permission(path):
    """Take the permissions of a file or folder away, and the privileges of root."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(mode)


ROWS = [{"text": "a", "label": "b", "document": "d", "summary": "s"}] * 2
READERS = {
    "a.jsonl": lambda path: list(read_documents(path)),
    "a.jsonl.gz": lambda path: list(read_documents(path)),
    "tree/a.py": lambda path: list(read_documents(path.parent)),
    "a.json": lambda path: read_labelled_texts(path),
    "a.csv": lambda path: read_labelled_texts(path),
    "pairs.csv": lambda path: list(read_pairs(path)),
    "metrics.jsonl": lambda path: read_metrics(path),
    "settings.toml": lambda path: read_toml(path),
    "run.json": lambda path: check_run(path.parent, FitConfig(), {}),
    "config.json": lambda path: load_run(path),
}


@pytest.mark.parametrize("name", READERS)
def test_an_unreadable_file_or_folder_is_named_as_such(public, name):
    path = public / "folder" / name
    path.parent.mkdir(parents=True)
    text = (
        "text,label,document,summary\na,b,d,s\n"
        if path.suffix == ".csv"
        else "".join(json.dumps(r) + "\n" for r in ROWS)
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    with suppress(DuonlpError):
        READERS[name](path)  # so that everything is imported
    for denied in (path, path.parent):
        with without_permission(denied), pytest.raises(DuonlpError, match=r"[Pp]ermission denied") as error:
            READERS[name](path)
        assert not any(words in str(error.value) for words in ("No such file", "does not exist", "no file", "\n"))
    path.unlink()
    assert not may_read(path)


def test_a_folder_that_may_not_be_written(public):
    root, folder = os.geteuid() == 0, public / "folder"
    folder.mkdir()
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(
            StorageError, match=r"cannot write '.*Permission denied; change the permissions, or use another"
        ):
            write_text(folder / "a", "a")
        with pytest.raises(StorageError, match="Permission denied"):
            lock(folder / "new")
        lock(folder)
    finally:
        if root:
            os.seteuid(0)
    assert os.listdir(folder) == []
