"""Write checkpoints in Hugging Face layout atomically."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from duonlp import architectures
from duonlp.architectures._common import Weight
from duonlp.architectures._quantization import PACKED, standard_quantization
from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.checkpoints.checkpoint import IMAGE_CONFIG
from duonlp.checkpoints.layouts import WRITTEN_POSITIONS, fixed_positions, stored_dtype, stored_layout, stored_shape
from duonlp.checkpoints.safetensors_file import TensorToWrite, packed_bytes, write_tensors
from duonlp.checkpoints.weight_files import INDEX, WEIGHTS
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.parameters import QUANTIZED_LEAVES, parameters
from duonlp.quantization.driver import dequantized_value
from duonlp.typing import Tokenizer
from duonlp.util.json_text import to_json

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


def save_checkpoint(
    folder: str | os.PathLike[str],
    cfg: TransformerConfig,
    head: str,
    read: Callable[[str], np.ndarray],
    dtype: DTypeLike,
    tokenizer: Tokenizer | None = None,
    max_shard_size: int | str = "5GB",
    generation_config: dict[str, Any] | None = None,
    image_config: str | None = None,
    without: Collection[str] = (),
) -> None:
    """Write config.json, safetensors, and optionally the processor and its or the generation's configuration.

    Tensors are read one at a time. Files are written to a temporary folder that then replaces ``folder`` atomically, so an
    interrupted save or a full disk leaves the previous contents intact; the next save removes what an interrupted one left.
    Other files in an existing ``folder`` are kept, except the weights that its index lists. If ``folder`` cannot be renamed
    (it is the current directory or a mount point), the finished files are moved one by one, and if the process is killed
    meanwhile, loading the folder moves the rest.

    Args:
        folder: Folder to write to.
        cfg: The model.
        head: Its head.
        read: Function from a parameter path to its values.
        dtype: Dtype in which parameters are stored, except for those that Parameter.stored_dtype keeps in float32, as computed
            positions are.
        tokenizer: Tokenizer or image processor to save.
        max_shard_size: Largest file size before weights are sharded, such as "5GB", or bytes.
        generation_config: Contents of generation_config.json.
        image_config: Text of preprocessor_config.json, which an image processor to save replaces.
        without: Paths of parameters to leave out.

    Raises:
        InputError: ``folder`` is a file, or ``max_shard_size`` is invalid.
        CheckpointError: ``folder`` cannot be written to.
    """
    rows = tensors_to_write(cfg, head, read, np.dtype(dtype), without)
    config = architectures.hf_config(cfg, head) | {"dtype": np.dtype(dtype).name} | _quantization(cfg, head)
    if config.get("quantization_config", {}).get("format") == PACKED:
        rows = [part for row in rows for part in (packed_bytes(row) if row.dtype == np.int8 else [row])]
    write_checkpoint(folder, rows, config, {"": tokenizer}, max_shard_size, generation_config, image_config)


def _quantization(cfg: TransformerConfig, head: str) -> dict[str, Any]:
    """Return the keys of config.json that describe a quantization as other software reads it; {} if that is not possible."""
    if cfg.quantization is None or cfg.quantization.simulated:
        return {}
    family, plain = architectures.get(cfg.model_type), parameters(cfg.replace(quantization=None), head)
    sizes = {path: parameter.shape[0] for path, parameter in plain.items() if parameter.shape}
    prefix = "" if HEADS[head].layers else family.PREFIX
    standard = standard_quantization(cfg.quantization, family.weights(cfg, head), sizes, prefix)
    return {} if standard is None else {"quantization_config": standard}


def saved_values(
    cfg: TransformerConfig, head: str, read: Callable[[str], np.ndarray], dequantize: bool
) -> tuple[TransformerConfig, Callable[[str], np.ndarray]]:
    """Return the configuration and the reader to save a model with, as it is or with floating-point weights.

    Args:
        cfg: The model.
        head: Its head.
        read: Function from a parameter path to its values.
        dequantize: Whether to save the weights of quantized layers in floating point, each computed when it is written.
    """
    plain, quantization = cfg.replace(quantization=None), cfg.quantization
    if not dequantize or quantization is None or quantization.simulated:
        return plain if dequantize else cfg, read
    spec = parameters(plain, head)

    def read_float(path: str) -> np.ndarray:
        layer, _, leaf = path.rpartition("/")
        kind = quantization.of(layer) if leaf in QUANTIZED_LEAVES else None
        return read(path) if kind is None else dequantized_value(read, path, spec[path].shape, kind)

    return plain, read_float


def write_checkpoint(
    folder: str | os.PathLike[str],
    rows: list[TensorToWrite],
    config: dict[str, Any],
    tokenizers: Mapping[str, Tokenizer | None],
    max_shard_size: int | str = "5GB",
    generation_config: dict[str, Any] | None = None,
    image_config: str | None = None,
) -> None:
    """Write the files of a checkpoint; see :func:`save_checkpoint`.

    Args:
        folder: Folder to write to.
        rows: The tensors.
        config: Contents of config.json.
        tokenizers: Tokenizers or image processors to save by subfolder, "" for the folder itself.
        max_shard_size: See save_checkpoint.
        generation_config: Contents of generation_config.json.
        image_config: Text of preprocessor_config.json.
    """
    limit = parse_size(max_shard_size)
    with atomic_folder(folder) as new:
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
        if image_config is not None:
            (new / IMAGE_CONFIG).unlink(missing_ok=True)
            (new / IMAGE_CONFIG).write_text(image_config, encoding="utf-8")
        for subfolder, tokenizer in tokenizers.items():
            if tokenizer is not None:
                # Written to a subfolder first: files in `new` can be hard links, which would be modified in place.
                tokenizer.save_pretrained(new / ".tokenizer")
                (new / subfolder).mkdir(exist_ok=True)
                for file in (new / ".tokenizer").iterdir():
                    os.replace(file, new / subfolder / file.name)
                (new / ".tokenizer").rmdir()
        if generation_config:
            _write_json(new / "generation_config.json", generation_config)
        _write_json(new / "config.json", config)


def tensors_to_write(
    cfg: TransformerConfig,
    head: str,
    read: Callable[[str], np.ndarray],
    dtype: np.dtype,
    without: Collection[str] = (),
) -> list[TensorToWrite]:
    """Return the tensors to write; rows of the weight table that are parts of one tensor are concatenated."""
    prefix = architectures.get(cfg.model_type).PREFIX if not HEADS[head].layers else ""
    spec = parameters(cfg, head)
    groups: dict[str, list[Weight]] = {}
    for row in architectures.weights(cfg, head):
        if row.path is not None and row.path not in without:
            for name in (row.name, *row.copies):
                groups.setdefault(name.removeprefix(prefix), []).append(row)
    out = []
    for name, rows in groups.items():
        rows = sorted(rows, key=lambda row: 0 if row.part is None else row.part.index)
        path = rows[0].path
        assert path is not None
        shape, stored = stored_shape(rows[0], spec[path].shape), stored_dtype(rows[0], spec[path].stored_dtype(dtype))
        out.append(TensorToWrite(name, shape, stored, _value(rows, read)))
    out += _packed_shapes(groups, cfg, head)
    for row in architectures.get(cfg.model_type).weights(cfg, head):
        if row.path is None and row.layout in WRITTEN_POSITIONS:
            table = fixed_positions(row.layout, cfg)
            # Rounded ones would be read as a table of the checkpoint's own.
            out.append(
                TensorToWrite(row.name.removeprefix(prefix), table.shape, table.dtype, lambda table=table: table)
            )
    return out


def _packed_shapes(groups: Mapping[str, list[Weight]], cfg: TransformerConfig, head: str) -> list[TensorToWrite]:
    """Return the shape [out, in] of each packed weight, which other software reads."""
    plain = parameters(cfg.replace(quantization=None), head)
    out = []
    for name, rows in groups.items():
        if rows[0].layout == "packed":
            assert rows[0].path is not None
            shape = (
                plain[rows[0].path].shape
                if rows[0].part is None
                else rows[0].part.whole_shape(plain[rows[0].path].shape)
            )
            values = np.array(shape[::-1], np.int64)
            out.append(
                TensorToWrite(name.replace("_packed", "_shape"), (2,), values.dtype, lambda values=values: values)
            )
    return out


def _value(rows: Sequence[Weight], read: Callable[[Any], np.ndarray]) -> Callable[[], np.ndarray]:
    def value() -> np.ndarray:
        values, part = [read(row.path) for row in rows], rows[0].part
        return stored_layout(rows[0], values[0] if part is None else part.join(values))

    return value


def _shards(rows: list[TensorToWrite], limit: int) -> list[list[TensorToWrite]]:
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for row in rows:
        if shards[-1] and size + row.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += row.nbytes
    return shards


def parse_size(size: int | str) -> int:
    """Convert a size such as ``"5GB"``, ``"200MB"``, ``"1GiB"`` or a number of bytes to bytes.

    Raises:
        InputError: ``size`` is anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"invalid size {size!r}; use '5GB', '200MB' or a positive number of bytes")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _write_json(path: Path, data: dict[str, Any]) -> None:
    # Unlink first: the file can be a hard link to the one it replaces.
    path.unlink(missing_ok=True)
    path.write_text(to_json(data, indent=2) + "\n", encoding="utf-8")
