"""Writing a checkpoint in Hugging Face layout: whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import INDEX, WEIGHTS, stored_shape
from duonlp.checkpoints.safetensors_file import TensorToWrite, write_tensors
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.positions import fixed_table

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


def save_checkpoint(
    folder,
    cfg: TransformerConfig,
    head: str,
    read: Callable[[str], np.ndarray],
    dtype: np.dtype,
    tokenizer=None,
    max_shard_size: int | str = "5GB",
    generation_config: dict | None = None,
) -> None:
    """Write config.json, safetensors (sharded above ``max_shard_size``) and, if given, the tokenizer.

    Tensors are fetched one at a time. Everything goes to a folder beside ``folder`` that is then renamed, so a kill or a
    full disk leaves what was there before; other files of an existing ``folder`` are kept. A folder that cannot be
    renamed (the current one, a mount point) gets the finished files one by one.

    Args:
        read: parameter path -> its values.
        dtype: what the parameters are stored as.

    Raises:
        InputError: ``folder`` is a file, or max_shard_size is not a size.
    """
    limit = parse_size(max_shard_size)
    rows = _to_write(cfg, head, read, np.dtype(dtype))
    with replaced_folder(folder) as new:
        shards = _shards(rows, limit)
        if len(shards) == 1:
            write_tensors(new / WEIGHTS, shards[0])
        else:
            weight_map = {}
            for i, shard in enumerate(shards, 1):
                file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                write_tensors(new / file, shard)
                weight_map |= {t.name: file for t in shard}
            total = sum(t.nbytes for t in rows)
            _write_json(
                new / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            )
        if tokenizer is not None:
            # by way of a folder of its own: files in `new` may be hard links, which writing would change in place
            tokenizer.save_pretrained(new / ".tokenizer")
            for file in (new / ".tokenizer").iterdir():
                os.replace(file, new / file.name)
            (new / ".tokenizer").rmdir()
        if generation_config:
            _write_json(new / "generation_config.json", generation_config)
        _write_json(new / "config.json", architectures.hf_config(cfg, head) | {"dtype": np.dtype(dtype).name})


def _to_write(cfg, head, read, dtype) -> list[TensorToWrite]:
    """The weight table read backwards: rows that are parts of one stored tensor come together again."""
    prefix = architectures.get(cfg.model_type).PREFIX if head == "base" else ""
    spec = parameters(cfg, head)
    groups: dict[str, list] = {}
    for row in architectures.get(cfg.model_type).weights(cfg, head):
        if row.path is not None:
            for name in (row.name, *row.copies):
                groups.setdefault(name.removeprefix(prefix), []).append(row)
    out = []
    for name, rows in groups.items():
        rows = sorted(rows, key=lambda row: row.part[0])
        shape = stored_shape(rows[0].layout, spec[rows[0].path].shape)
        out.append(TensorToWrite(name, (*shape[:-1], shape[-1] * len(rows)), dtype, _value(rows, read)))
    for row in architectures.get(cfg.model_type).weights(cfg, head):
        if row.path is None and row.layout in FIXED:
            table = fixed_table(FIXED[row.layout](cfg))
            out.append(TensorToWrite(row.name.removeprefix(prefix), table.shape, dtype, lambda table=table: table))
    return out


FIXED = {"positions": lambda cfg: cfg.embedding, "decoder_positions": lambda cfg: cfg.decoder.embedding}
"""Layouts of tensors that are no parameters and are written: the embedding whose positions they are."""


def _value(rows, read):
    def value():
        parts = [read(row.path) for row in rows]
        if rows[0].layout == "linear":
            parts = [part.T for part in parts]
        if rows[0].layout == "row":
            parts = [part[None] for part in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return value


def _shards(rows: list[TensorToWrite], limit: int) -> list[list[TensorToWrite]]:
    shards, size = [[]], 0
    for row in rows:
        if shards[-1] and size + row.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += row.nbytes
    return shards


def parse_size(size: int | str) -> int:
    """``"5GB"``, ``"200MB"``, ``"1GiB"`` or a number, in bytes; raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"size {size!r} is not understood; write it as '5GB', '200MB' or a positive number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


@contextmanager
def replaced_folder(folder) -> Iterator[Path]:
    """A new folder to write into that takes ``folder``'s place when the block ends without an error.

    It starts with hard links to the files that are there, so what is not overwritten stays; the weights alone do not.
    A ``folder`` that is a symbolic link stays one: what it points to is replaced.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; give a folder to save into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = os.path.ismount(folder) or (folder.exists() and not os.access(folder.parent, os.W_OK))
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.saving-", dir=folder if inside else folder.parent))
    try:
        os.chmod(new, 0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
        # The current folder could be renamed, but this process (and a shell) would be left in a deleted one.
        one_by_one = inside or _holds_current(folder)
        if folder.exists() and not one_by_one:
            stale = {path.name for path in _weights(folder)}
            shutil.copytree(
                folder, new, copy_function=_link, symlinks=True, dirs_exist_ok=True,
                ignore=lambda at, names: stale if Path(at) == folder else (),
            )  # fmt: skip
        yield new
        if not folder.exists():
            os.rename(new, folder)
        elif one_by_one:
            _move_files(new, folder)
        else:
            _exchange(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _exchange(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``; when that fails, ``folder`` is where it was."""
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    try:
        os.rename(folder, old / folder.name)
    except OSError:  # busy, on another file system, or not ours to move
        old.rmdir()
        _move_files(new, folder)
        return
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old / folder.name, folder)
        old.rmdir()
        raise
    shutil.rmtree(old)


def _move_files(new: Path, folder: Path) -> None:
    """Move what is in ``new`` over what is in ``folder``, each file whole: weights first, index and config last."""
    if new.parent != folder:
        new = Path(shutil.move(new, folder / new.name))  # from another file system, it is copied here
    try:
        files = [path.relative_to(new) for path in new.rglob("*") if path.is_symlink() or not path.is_dir()]
        for file in sorted(files, key=lambda f: (f.name == "config.json", f.name == INDEX, f.suffix != ".safetensors")):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / file, folder / file)
        for stale in _weights(folder):
            if Path(stale.name) not in files:
                stale.unlink()
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _weights(folder: Path) -> list[Path]:
    return [*folder.glob("model*.safetensors"), *folder.glob(INDEX)]


def _holds_current(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # the current folder was deleted
        return False


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_json(path: Path, data: dict) -> None:
    # unlinked first: the file may be a hard link to the one it replaces
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
