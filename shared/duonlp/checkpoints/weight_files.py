"""The files that hold the weights of a checkpoint: one, or shards and an index."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.checkpoints.open_files import OpenFile, OpenFolder
from duonlp.checkpoints.safetensors_file import StoredTensor, list_tensors
from duonlp.errors import CheckpointError
from duonlp.util.reading import parse_json, parse_json_object

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""Names of shards that this library, like Transformers, writes."""


@dataclass(frozen=True)
class WeightFormat:
    """A file format of weights.

    Attributes:
        weights: Name of a single file.
        index: Name of the index of shards.
        list_tensors: Return the tensors of a file by name without reading their values.
    """

    weights: str
    index: str
    list_tensors: Callable[[OpenFile], dict[str, StoredTensor]]

    @property
    def ending(self) -> str:
        """Ending of the name of a file or shard."""
        return Path(self.weights).suffix


SAFETENSORS = WeightFormat(WEIGHTS, INDEX, list_tensors)


def is_file_name(name: str, ending: str = ".safetensors") -> bool:
    """Return whether `name` is that of a file of weights, without a folder."""
    return Path(name).name == name and name.endswith(ending) and not set(name) & {"\0", "\\"}


def shard_names(index: Any, ending: str = ".safetensors") -> list[str]:
    """Return the valid names of shards in an index, which may be damaged; `index` has a method ``read_bytes``."""
    try:
        weight_map = parse_json(index.read_bytes())["weight_map"]
        return sorted(name for name in set(weight_map.values()) if isinstance(name, str) and is_file_name(name, ending))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weights that a save replaces: those this library writes, and those that the index lists."""
    names = {WEIGHTS, INDEX, *shard_names(folder / INDEX), *(n for n in os.listdir(folder) if SHARD.fullmatch(n))}
    return sorted(name for name in names if os.path.lexists(folder / name))


def stored_tensors(files: OpenFolder, weight_format: WeightFormat = SAFETENSORS) -> dict[str, StoredTensor] | None:
    """Return all tensors of a checkpoint by name, or None if it has no weights; only headers are read.

    Raises:
        CheckpointError: it has two sets of weights, a shard is missing or damaged, or the index does not match the shards.
    """
    weights, index = files.open(weight_format.weights), files.open(weight_format.index)
    if weights is None:
        return None if index is None else _sharded(files, index, weight_format)
    # An index alone is what Transformers leaves when it saves one file over shards.
    shards = [] if index is None else shard_names(index, weight_format.ending)
    if present := [name for name in shards if name != weight_format.weights and files.open(name) is not None]:
        raise CheckpointError(
            f"{files.folder} has both {weight_format.weights} and {weight_format.index} with {present[0]!r}; only one of them is "
            "the model: remove the other"
        )
    return weight_format.list_tensors(weights)


def _sharded(files: OpenFolder, index: OpenFile, weight_format: WeightFormat) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    weight_map = _weight_map(index)
    for shard in sorted(set(weight_map.values())):
        if not is_file_name(shard, weight_format.ending):
            raise CheckpointError(
                f"{index} refers to {shard!r}; a shard must be a {weight_format.ending} file in the same folder"
            )
        file = files.open(shard)
        if file is None:
            raise CheckpointError(f"{index} lists the shard {shard!r}, which is missing; download or copy it")
        stored = weight_format.list_tensors(file)
        if both := sorted(set(stored) & set(tensors)):
            raise CheckpointError(
                f"{tensors[both[0]].file} and {file} both hold {list_names(both)}; download the checkpoint again"
            )
        tensors |= stored
    # The index of a TensorFlow model has names with the model's scope, its shards mostly have them without.
    names = {name: name if name in tensors else name.partition("/")[2] for name in weight_map}
    missing = sorted(name for name, stored_name in names.items() if stored_name not in tensors)
    if missing:
        raise CheckpointError(
            f"{index} lists tensors that are in no shard: {list_names(missing)}; download the checkpoint again"
        )
    for name, shard in weight_map.items():
        if (actual := tensors[names[name]].file.path.name) != shard:
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
