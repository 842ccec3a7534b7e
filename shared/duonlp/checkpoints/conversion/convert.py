"""Convert a checkpoint of any layout that is read to config.json and safetensors, without an engine."""

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from duonlp.checkpoints.conversion.pickles import pickle_files, to_safetensors
from duonlp.checkpoints.formats import ENDINGS
from duonlp.checkpoints.planner import tensor_names
from duonlp.checkpoints.save import parse_size, save_checkpoint, saved_values
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.config import TransformerConfig
from duonlp.dtypes import check_dtype
from duonlp.errors import CheckpointError, InputError, NewHeadWarning
from duonlp.heads import HEADS
from duonlp.util.files import unfinished
from duonlp.util.permissions import explain_denied
from duonlp.util.reading import is_unicode

LARGEST_SMALL_FILE = 256 << 20
"""Size in bytes above which a file beside the weights is not carried over; vocabularies of 64 MB exist."""

WRITTEN = ("config.json",)
"""Files that the conversion writes itself."""

NOT_CARRIED = (*ENDINGS, ".index.json", ".msgpack", ".pkl", ".pickle", ".pb", ".onnx_data", ".data", ".py", ".pyc")
"""Endings of weights, of other pickles, and of code."""


@dataclass(frozen=True)
class _Tensors:
    """What a conversion does with the tensors of a checkpoint.

    Attributes:
        head: The head that is written.
        plan: Where its parameters come from.
        left_out: Names of tensors that no parameter of it holds, buffers apart.
    """

    head: str
    plan: list[Source]
    left_out: list[str]


def convert(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: Any = None,
    head: str | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    dequantize: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint as config.json and safetensors, with its tokenizer and other small files.

    Every layout that ``from_pretrained`` reads is converted, and ``pytorch_model.bin`` (with shards) if torch is installed: a
    process of its own reads nothing but tensors from it. Loading is as strict as ever. Parameters that the checkpoint lacks,
    such as an untrained head, are missing from the output, too. The output replaces nothing until it is complete.

    Args:
        folder: The checkpoint: a folder, or a Hub id.
        output: Folder to write.
        dtype: Dtype to store the parameters in: float32, bfloat16 or float16. Default: the one they have; if they have several,
            the narrowest that holds all of them.
        head: Head to write. Default: the one that config.json names or, if it names none of the family's, the one that holds most
            tensors.
        overwrite: Whether `output` may hold files. Those that the conversion does not write are kept, except weights.
        max_shard_size: See :func:`duonlp.checkpoints.save_checkpoint`.
        dequantize: Whether to write the weights of quantized layers in floating point, as software needs them that does not read
            quantized ones; otherwise they stay as they are.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never access the network.
        on_progress: Called with the number of values written and their total.

    Returns:
        The report: "source" and "output" (paths), "weights" (names of the files read), "model_type", "head", "dtype",
        "parameters", "bytes" (of the weights written), "missing" (parameters that the checkpoint lacks), "left_out" (tensors
        that the head does not have), "files" (names of the files carried over).

    Raises:
        InputError: The output holds files and `overwrite` is False, or an argument is invalid.
        CheckpointError: The checkpoint is not found or damaged, or is of a layout that cannot be converted; the message says
            what it is and what to do.
        ConfigError: The family or the head is not supported.
        MissingExtraError: A library is missing that reads the weights.
    """
    output = Path(output).expanduser()
    dtype = None if dtype is None else check_dtype(dtype)
    parse_size(max_shard_size)
    check_output(output, overwrite)
    with _opened(folder, output, revision, local_files_only) as (checkpoint, source):
        if output.resolve() == source.resolve():
            raise InputError(f"{str(output)!r} is the checkpoint itself; give another folder to write")
        cfg = checkpoint.transformer_config()
        tensors = _choose(checkpoint, cfg, head)
        sources = {s.path: s for s in tensors.plan}
        missing = [path for path, s in sources.items() if s.tensor is None]
        stored = np.dtype(_stored_dtype(tensors.plan) if dtype is None else dtype)
        names = small_files(source)
        with atomic_folder(output) as new:
            read = _reader(sources, on_progress)
            # A folder of its own: `new` begins with links to the files that it replaces.
            converted = new / f".converted-{secrets.token_hex(6)}"
            saved, read = saved_values(cfg, tensors.head, read, dequantize)
            save_checkpoint(
                converted, saved, tensors.head, read, stored, max_shard_size=max_shard_size, without=missing
            )
            _move_files(converted, new)
            copy_files(source, new, names)
        return {
            "source": str(folder), "output": str(output), "weights": _weight_files(checkpoint, source),
            "model_type": cfg.model_type, "head": tensors.head, "dtype": stored.name,
            "parameters": sum(s.parameter.size for s in tensors.plan if s.tensor is not None),
            "bytes": sum(file.stat().st_size for file in output.glob("model*.safetensors")),
            "missing": missing, "left_out": tensors.left_out, "files": names,
        }  # fmt: skip


def check_output(output: Path, overwrite: bool) -> None:
    """Raise InputError unless a folder may be written: it is empty or does not exist, or may be overwritten."""
    try:
        is_folder = output.is_dir()
        is_file, is_filled = not is_folder and output.exists(), is_folder and any(output.iterdir())
    except PermissionError:
        raise CheckpointError(explain_denied(output)) from None
    if is_file:
        raise InputError(f"{str(output)!r} is a file; give a folder to write")
    if is_filled and not overwrite:
        raise InputError(
            f"{str(output)!r} is not empty",
            remedy="give another folder, or pass overwrite=True to replace the model in it",
            argument="overwrite",
        )


@contextmanager
def _opened(
    folder: str | os.PathLike[str], output: Path, revision: str | None, local_files_only: bool
) -> Iterator[tuple[Checkpoint, Path]]:
    """Yield the open checkpoint, of converted pickles if it has no other weights, and the folder of its small files."""
    path = Path(folder).expanduser()
    readable = (WEIGHTS, INDEX, "tf_model*.h5", "flax_model*.msgpack")
    files = pickle_files(path) if path.is_dir() and not any(any(path.glob(name)) for name in readable) else []
    if not files:
        checkpoint = open_checkpoint(folder, revision, local_files_only)
        try:
            yield checkpoint, checkpoint.folder
        finally:
            checkpoint.close()
        return
    architectures.config_from_hf(
        open_checkpoint(path).config, str(path / "config.json")
    )  # raises before anything is read
    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise CheckpointError(explain_denied(parent, "written")) from None
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(explain_denied(parent, "written"))
    with unfinished(output.absolute(), folder=True) as temporary:
        converted = temporary / (path.resolve().name or "checkpoint")  # messages name the folder
        converted.mkdir()
        to_safetensors(files, converted)
        shutil.copyfile(path / "config.json", converted / "config.json")
        checkpoint = Checkpoint(converted)
        try:
            yield checkpoint, path
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(converted), str(path))) from None
        finally:
            checkpoint.close()


def _choose(checkpoint: Checkpoint, cfg: TransformerConfig, head: str | None) -> _Tensors:
    """Return the plan of a head, and which tensors it leaves out."""
    family = architectures.get(cfg.model_type)
    heads = family.heads(cfg.model_type)
    present = {name: tensor_names(cfg, name) & checkpoint.tensors.keys() for name in heads}
    names = set().union(*present.values())  # without buffers
    left_out = {name: sorted(names - present[name]) for name in heads}
    saved_class = (checkpoint.config.get("architectures") or [""])[0]
    # A class that is unknown counts as the base model, whose head has no layers.
    is_declared = HEADS[checkpoint.head].layers or saved_class == heads.get(checkpoint.head)
    bare = {name.removeprefix(family.PREFIX) for name in names}
    lacking = {name: len(_required(cfg, name) - bare) for name in heads}
    best = min(heads, key=lambda name: (len(left_out[name]), lacking[name]))
    chosen = head or (checkpoint.head if is_declared else best)
    architectures.class_name(cfg.model_type, chosen)  # raises for a head that the family does not have
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NewHeadWarning)  # the report names what is missing
        plan = checkpoint.plan(cfg, chosen)
    return _Tensors(chosen, plan, left_out[chosen])


def _required(cfg: TransformerConfig, head: str) -> set[str]:
    """Return the names, without the prefix of the base model, of the tensors that a head cannot do without."""
    family = architectures.get(cfg.model_type)
    rows = architectures.weights(cfg, head)
    return {row.name.removeprefix(family.PREFIX) for row in rows if row.path is not None and not row.optional}


def _stored_dtype(plan: Iterable[Source]) -> np.dtype:
    """Return the narrowest dtype that holds the values of all stored parameters."""
    stored = [source for source in plan if source.tensor is not None]
    dtypes = {s.tensor.dtype for s in stored if s.tensor is not None and s.parameter.dtype is None}
    if stored and not dtypes:  # all layers are quantized
        return np.dtype(np.float32)
    if not dtypes:
        raise CheckpointError("the checkpoint holds none of the model's parameters; pass a folder with weights")
    return dtypes.pop() if len(dtypes) == 1 else np.result_type(np.float32, *(d for d in dtypes if d.itemsize > 4))


def _reader(sources: dict[str, Source], on_progress: Callable[[int, int], None] | None) -> Callable[[str], np.ndarray]:
    """Return a function from the path of a parameter to its values in their stored dtype, which reports progress."""
    total = sum(source.parameter.size for source in sources.values() if source.tensor is not None)
    done: set[str] = set()
    count = 0

    def read(path: str) -> np.ndarray:
        nonlocal count
        source = sources[path]
        assert source.tensor is not None  # parameters that are missing are not written
        values = source.read(source.parameter.dtype or source.tensor.dtype)
        if path not in done:
            done.add(path)
            count += source.parameter.size
        if on_progress is not None:
            on_progress(count, total)
        return values

    return read


def small_files(folder: Path) -> list[str]:
    """Return the names of the files to carry over, relative to the folder: all that are neither weights nor code."""
    names = []
    for pattern in ("*", "[0-9]_*/config.json"):  # the second is the pooling of sentence-transformers
        for file in sorted(folder.glob(pattern)):
            name = file.relative_to(folder).as_posix()
            is_carried = not name.startswith(".") and name not in WRITTEN and not name.lower().endswith(NOT_CARRIED)
            if is_carried and is_unicode(name) and file.is_file() and file.stat().st_size <= LARGEST_SMALL_FILE:
                names.append(name)
    return names


def copy_files(source: Path, target: Path, names: list[str]) -> None:
    """Copy files from one folder to another by their relative names; links there are replaced, not followed."""
    for name in names:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # a link to the file that it replaces
        shutil.copyfile(source / name, file)


def _move_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        os.replace(file, target / file.name)
    source.rmdir()


def _weight_files(checkpoint: Checkpoint, source: Path) -> list[str]:
    """Return the names of the files that the tensors come from."""
    if checkpoint.folder != source:
        return [file.name for file in pickle_files(source)]
    return sorted({tensor.file.path.name for tensor in checkpoint.tensors.values()})
