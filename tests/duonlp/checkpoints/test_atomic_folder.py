"""Saving over, into and beside folders: leftovers, recovery, permissions, and loads while a folder is replaced."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from duonlp.checkpoints import atomic_folder as module
from duonlp.checkpoints.atomic_folder import MANIFEST, SAVED, SAVING, atomic_folder, exchange, finish_save
from duonlp.checkpoints.checkpoint import open_checkpoint, read_unchanged
from duonlp.checkpoints.safetensors_file import list_tensors
from duonlp.checkpoints.save import save_checkpoint
from duonlp.checkpoints.temporary_folders import ABANDONED_SECONDS, make_locked_folder
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.errors import CheckpointError
from duonlp.util.files import unlock
from duonlp.util.permissions import explain_denied
from tests.cases import cases

BERT = next(c for c in cases() if c.name == "bert-masked-lm")


@pytest.fixture
def folder(tmp_path):
    return BERT.write(tmp_path / "bert")


def save(folder, value=0.0, **options):
    """Save BERT with `value` added to every weight of the test case."""
    from duonlp.parameters import parameters

    spec = parameters(BERT.config, BERT.head)
    save_checkpoint(
        folder, BERT.config, BERT.head, lambda path: np.full(spec[path].shape, value, np.float32), np.float32, **options
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def value(folder):
    """Return the value of all weights of a checkpoint that `save` has written."""
    plan = open_checkpoint(folder).plan(BERT.config, BERT.head)
    found = {float(number) for source in plan for number in np.unique(source.read())}
    assert len(found) == 1
    return found.pop()


# -- what a save removes ---------------------------------------------------------------------------------------------------


def test_files_of_the_user_are_kept_and_those_of_the_index_are_removed(folder):
    mine = ["model_ema.safetensors", "model-fp16.safetensors", "model.backup.safetensors", "model-1-of-2.safetensors"]
    for name in mine:
        (folder / name).write_text("mine")
    save(folder, max_shard_size="10KB")
    index = json.loads((folder / INDEX).read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    os.rename(folder / first, folder / "part-a.safetensors")
    index["weight_map"] = {k: "part-a.safetensors" if v == first else v for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    save(folder)
    assert names(folder) == sorted(["config.json", WEIGHTS, *mine])
    assert all((folder / name).read_text() == "mine" for name in mine)


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_are_kept(folder, tmp_path):
    dead, lock = make_locked_folder(tmp_path, ".bert.saving")
    unlock(lock)
    old, lock = make_locked_folder(tmp_path, ".bert.old")
    unlock(lock)
    inside, lock = make_locked_folder(folder, SAVING)
    unlock(lock)
    for path in (dead, old, inside):
        (path / WEIGHTS).write_text("half")
    live, lock = make_locked_folder(tmp_path, ".bert.saving")
    other = tmp_path / ".bert.saving-00000000-abcdefgh"  # of another host
    other.mkdir()
    unrelated = tmp_path / ".bert.saving-of-mine"
    unrelated.mkdir()
    save(folder)
    assert names(tmp_path) == sorted([live.name, other.name, unrelated.name, "bert"])
    assert SAVING not in " ".join(names(folder))
    unlock(lock)
    os.utime(other, (0, other.stat().st_mtime - ABANDONED_SECONDS - 9))
    save(folder)
    assert names(tmp_path) == sorted([unrelated.name, "bert"])


# -- interrupted saves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_link", [False, True])
def test_a_load_restores_the_folder_between_two_renames(folder, tmp_path, through_link):
    save(folder, 3)
    old, lock = make_locked_folder(tmp_path, ".bert.old")
    os.rename(folder, old / "bert")
    unlock(lock)
    (tmp_path / "latest").symlink_to("bert")
    assert value(tmp_path / "latest" if through_link else folder) == 3
    assert names(tmp_path) == ["bert", "latest"]


def test_two_old_folders_are_ambiguous(folder, tmp_path):
    for _ in range(2):
        old, lock = make_locked_folder(tmp_path, ".bert.old")
        shutil.copytree(folder, old / "bert")
        unlock(lock)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"missing after interrupted saves.*move one of them back"):
        open_checkpoint(folder)


def interrupted(folder, tmp_path):
    """Leave `folder` as a save that was killed while moving files: single file 1 -> shards 2."""
    save(folder, 1)
    save(tmp_path / "new", 2, max_shard_size="10KB")
    new = [INDEX, *(path.name for path in (tmp_path / "new").glob("model-*"))]
    (tmp_path / "new" / MANIFEST).write_text(json.dumps({"new": new, "stale": [WEIGHTS]}))
    shutil.move(tmp_path / "new", folder / SAVED)
    shutil.move(next((folder / SAVED).glob("model-*")), folder)


def test_a_load_moves_the_files_of_a_finished_save(folder, tmp_path):
    interrupted(folder, tmp_path)
    assert value(folder) == 2
    assert WEIGHTS not in names(folder) and SAVED not in names(folder) and not (folder / MANIFEST).exists()


def test_a_load_follows_no_links_out_of_the_folder(folder, tmp_path):
    interrupted(folder, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "precious.safetensors").write_text("precious")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    manifest = json.loads((folder / SAVED / MANIFEST).read_text())
    manifest["stale"] += ["../precious.safetensors", str(tmp_path / "precious.safetensors"), "notes.txt", 5]
    (folder / SAVED / MANIFEST).write_text(json.dumps(manifest))
    (folder / "notes.txt").write_text("mine")
    (folder / SAVED / "sub").mkdir()
    (folder / SAVED / "sub/evil.txt").write_text("evil")
    with pytest.raises(CheckpointError, match="leads out of"):
        open_checkpoint(folder)
    assert not list((tmp_path / "elsewhere").iterdir())
    shutil.rmtree(folder / SAVED / "sub")
    assert value(folder) == 2 and (tmp_path / "precious.safetensors").exists() and (folder / "notes.txt").exists()


def test_a_load_waits_for_a_save_that_moves_files(folder, tmp_path, monkeypatch):
    interrupted(folder, tmp_path)
    descriptor = os.open(folder / SAVED, os.O_RDONLY)
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr("duonlp.checkpoints.temporary_folders.SECONDS", 0.1)
    with pytest.raises(CheckpointError, match="another process has been saving"):
        finish_save(folder)
    os.close(descriptor)
    assert value(folder) == 2


def test_file_systems_without_locks(folder, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    monkeypatch.setattr("duonlp.checkpoints.temporary_folders.UNLOCKED_SECONDS", 0.0)
    interrupted(folder, tmp_path)
    assert value(folder) == 2
    save(folder, 3)
    assert value(folder) == 3 and names(tmp_path) == ["bert"]


def test_the_exchange_is_one_system_call(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        assert sys.platform != "linux"
        return
    assert (tmp_path / "a/b").exists() and (tmp_path / "b/a").exists()
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "a", tmp_path / "c")


def test_files_and_folders_are_synchronized(folder, tmp_path, monkeypatch):
    synchronized, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (synchronized.add(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    save(tmp_path / "made/on/the/way", generation_config={"max_length": 9})
    written = {Path(path).name for path in synchronized}
    assert {"config.json", "generation_config.json", WEIGHTS} <= written
    assert {
        str(tmp_path),
        str(tmp_path / "made"),
        str(tmp_path / "made/on"),
        str(tmp_path / "made/on/the"),
    } <= synchronized


# -- loading while saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [False, True])
def test_a_checkpoint_stays_what_it_was_when_it_was_opened(folder, shards):
    save(folder, 1, max_shard_size="10KB" if shards else "5GB", generation_config={"max_length": 1})
    checkpoint = open_checkpoint(folder)
    for version in (2, 3):
        save(folder, version, generation_config={"max_length": version})
    plan = checkpoint.plan(BERT.config, BERT.head)
    assert all((source.read() == 1).all() for source in plan) and checkpoint.generation_config == {"max_length": 1}
    assert not checkpoint.is_current() and value(folder) == 3
    checkpoint.close()
    with pytest.raises(CheckpointError, match="cannot be read"):
        plan[0].read()


def test_a_file_that_is_overwritten_in_place_is_an_error(folder):
    plan = open_checkpoint(folder).plan(BERT.config, BERT.head)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data + data)
    with pytest.raises(CheckpointError, match="overwritten while it was being read"):
        plan[0].read()


def test_further_files_are_read_again_if_the_folder_is_replaced(folder):
    versions = iter((2, 3))

    def read(checkpoint):
        if version := next(versions, None):
            save(folder, version)
        return checkpoint.config

    checkpoint, _ = read_unchanged(folder, read)
    assert checkpoint.is_current() and next(versions, None) is None
    with pytest.raises(CheckpointError, match="replaced again and again"):
        read_unchanged(folder, lambda checkpoint: save(folder))


def test_a_load_leaks_no_descriptors(folder):
    save(folder, 1, max_shard_size="10KB")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        value(folder)
        (folder / "config.json").rename(folder / "hidden")
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
        (folder / "hidden").rename(folder / "config.json")
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_shards_than_open_files_are_allowed(tmp_path):
    code = """
        import resource, sys
        import numpy as np
        from duonlp.checkpoints import TensorToWrite, open_checkpoint, write_tensors
        from pathlib import Path
        import json
        folder, shards = Path(sys.argv[1]), 300
        (folder / "config.json").write_text('{"model_type": "bert"}')
        names = {f"t{i}": f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(shards)}
        for name, file in names.items():
            write_tensors(folder / file, [TensorToWrite(name, (1,), np.dtype("float32"), lambda: np.ones(1, np.float32))])
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        for hard in (1000, 100):
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            try:
                print(len(open_checkpoint(folder).tensors))
            except OSError as error:
                print(type(error).__name__, error)
    """
    result = run(code, tmp_path)
    first, second = result.splitlines()
    assert (
        first == "300"
        and "CheckpointError" in second
        and "Too many open files; raise the limit with `ulimit -n`" in second
    )


# -- permissions -----------------------------------------------------------------------------------------------------------


def run(code, *arguments):
    """Run code in a process that has duonlp.checkpoints, without the rights of root after ``drop()``."""
    prelude = """
        import os, sys
        from duonlp.checkpoints.atomic_folder import atomic_folder
        from duonlp.checkpoints.checkpoint import open_checkpoint
        from duonlp.checkpoints.save import save_checkpoint
        import pwd
        def drop():
            if os.geteuid() == 0:
                os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    """
    text = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
    drop()
    try:
        checkpoint = open_checkpoint(sys.argv[1])
        checkpoint.generation_config, checkpoint.tensors
        print("read")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, ""])
def test_an_unreadable_file_or_folder_says_so(public, name):
    folder = BERT.write(public / "bert")
    assert run(READ, folder) == "read"
    mode = (folder / name).stat().st_mode
    (folder / name).chmod(0)
    message = run(READ, folder)
    (folder / name).chmod(mode)
    kind = "file" if name else "folder"
    assert message.startswith("CheckpointError") and f"{folder / name}" in message and "No such" not in message
    assert f"permission denied; the {kind} belongs to {(folder / name).owner()} with mode 0000" in message


WRITE = """
    drop()
    try:
        with atomic_folder(sys.argv[1]) as new:
            (new / "config.json").unlink(missing_ok=True)
            (new / "config.json").write_text("{}")
        print("written")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("place", ["folder", "parent"])
def test_a_read_only_target_says_so_and_keeps_no_leftovers(public, place):
    folder = BERT.write(public / "bert")
    (folder / "notes.txt").write_text("mine")
    public.chmod(0o777 if place == "folder" else 0o555)
    folder.chmod(0o555)
    target = folder if place == "folder" else public / "new"
    before = (names(public), names(folder))
    message = run(WRITE, target)
    public.chmod(0o755)
    assert (
        message.startswith("CheckpointError")
        and "cannot be written: permission denied; the folder belongs to" in message
    )
    assert (names(public), names(folder)) == before and (folder / "notes.txt").stat().st_nlink == 1


def test_read_only_folders_inside_are_replaced_without_leftovers(public):
    folder = BERT.write(public / "bert")
    (folder / "sub").mkdir()
    (folder / "sub/mine.txt").write_text("mine")
    (folder / "sub").chmod(0o555)
    for path in (public, folder, folder / "sub", *folder.iterdir(), folder / "sub/mine.txt"):
        os.chown(path, *(65534, 65534) if os.geteuid() == 0 else (-1, -1))
    assert run(WRITE, folder) == "written"
    assert (folder / "sub/mine.txt").read_text() == "mine" and names(public) == ["bert"]
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o555


def test_a_folder_whose_parent_is_read_only_is_written_from_inside(public):
    folder = BERT.write(public / "bert")
    for path in (folder, *folder.iterdir()):
        os.chown(path, *(65534, 65534) if os.geteuid() == 0 else (-1, -1))
    public.chmod(0o555)
    assert run(WRITE, folder) == "written"
    public.chmod(0o755)
    assert (folder / "config.json").read_text() == "{}" and names(public) == ["bert"]


def test_the_folder_on_the_way_is_named(public):
    (public / "closed/model").mkdir(parents=True)
    (public / "closed").chmod(0o600)
    message = run(READ, public / "closed/model")
    (public / "closed").chmod(0o700)
    assert f"(in {public / 'closed'}) cannot be read: permission denied" in message


def test_a_read_only_file_system_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("duonlp.util.permissions._on_read_only_system", lambda path: True)
    assert "its file system is read-only; choose another folder" in explain_denied(tmp_path / "x", "written")


def test_something_else_than_a_file(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        list_tensors(folder / "nowhere")


def test_an_error_in_the_block_is_not_about_the_folder(folder):
    with pytest.raises(PermissionError), atomic_folder(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


def test_a_full_disk_while_linking_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "link", full)
    monkeypatch.setattr(module.shutil, "copy2", full)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="No space left"):
        save(folder)
    assert names(tmp_path) == ["bert"] and names(folder) == ["config.json", WEIGHTS, "notes.txt"]
