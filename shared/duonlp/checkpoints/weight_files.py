"""The files that hold the weights of a checkpoint: one, or shards and an index."""

import os
import re
from pathlib import Path
from typing import Any

from duonlp.checkpoints.open_files import OpenFile, OpenFolder
from duonlp.checkpoints.safetensors_file import StoredTensor, list_tensors
from duonlp.errors import CheckpointError
from duonlp.util.reading import parse_json, parse_json_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""Names of shards that this library, like Transformers, writes."""


def is_file_name(name: str) -> bool:
    """Return whether `name` is that of a safetensors file, without a folder."""
    return Path(name).name == name and name.endswith(".safetensors") and not set(name) & {"\0", "\\"}


def shard_names(index: Any) -> list[str]:
    """Return the valid names of shards in an index, which may be damaged; `index` has a method ``read_bytes``."""
    try:
        weight_map = parse_json(index.read_bytes())["weight_map"]
        return sorted(name for name in set(weight_map.values()) if isinstance(name, str) and is_file_name(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weights that a save replaces: those this library writes, and those that the index lists."""
    names = {WEIGHTS, INDEX, *shard_names(folder / INDEX), *(n for n in os.listdir(folder) if SHARD.fullmatch(n))}
    return sorted(name for name in names if os.path.lexists(folder / name))


def stored_tensors(files: OpenFolder) -> dict[str, StoredTensor] | None:
    """Return all tensors of a checkpoint by name, or None if it has no weights; only headers are read.

    Raises:
        CheckpointError: it has two sets of weights, a shard is missing or damaged, or the index does not match the shards.
    """
    weights, index = files.open(WEIGHTS), files.open(INDEX)
    if weights is None:
        return None if index is None else _sharded(files, index)
    # An index alone is what Transformers leaves when it saves one file over shards.
    shards = [] if index is None else [name for name in shard_names(index) if name != WEIGHTS]
    if present := [name for name in shards if files.open(name) is not None]:
        raise CheckpointError(
            f"{files.folder} has both {WEIGHTS} and {INDEX} with {present[0]!r}; only one of them is the model: remove the other"
        )
    return list_tensors(weights)


def _sharded(files: OpenFolder, index: OpenFile) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    weight_map = _weight_map(index)
    for shard in sorted(set(weight_map.values())):
        if not is_file_name(shard):
            raise CheckpointError(
                f"{index} refers to {shard!r}; a shard must be a .safetensors file in the same folder"
            )
        file = files.open(shard)
        if file is None:
            raise CheckpointError(f"{index} lists the shard {shard!r}, which is missing; download or copy it")
        stored = list_tensors(file)
        if both := sorted(set(stored) & set(tensors)):
            raise CheckpointError(
                f"{tensors[both[0]].file} and {file} both hold {list_names(both)}; download the checkpoint again"
            )
        tensors |= stored
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{index} lists tensors that are in no shard: {list_names(missing)}; download the checkpoint again"
        )
    for name, shard in weight_map.items():
        if (actual := tensors[name].file.path.name) != shard:
            raise CheckpointError(
                f"{index} lists {name!r} in {shard!r}, but it is in {actual!r}; download the checkpoint again"
            )
    return tensors


def _weight_map(index: OpenFile) -> dict[str, str]:
    advice = "download the checkpoint again"
    content = parse_json_object(index.read_bytes(), str(index), error=CheckpointError, advice=advice)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names; save the model again")
    return weight_map


def list_names(names: list[str], limit: int = 8) -> str:
    """Return names for an error message, at most `limit` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names[:limit]) + more
