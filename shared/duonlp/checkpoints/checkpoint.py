"""Checkpoints in Hugging Face layout: find one, read its configuration, match its tensors with a model's parameters.

Only safetensors are read: never a pickle, never code from the checkpoint.
"""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.architectures._common import BUFFERS, Weight
from duonlp.checkpoints.safetensors_file import StoredTensor, list_tensors
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError
from duonlp.parameters import HEAD_PREFIXES, Parameter, initial_value, parameters
from duonlp.util import frameworks

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")


def open_checkpoint(name_or_path, revision: str | None = None, local_files_only: bool = False) -> "Checkpoint":
    """A folder, or a Hub id that is downloaded (or found in the cache), as a Checkpoint.

    Args:
        name_or_path: a folder with config.json, or an id such as ``"google-bert/bert-base-uncased"``.
        revision: branch, tag or commit on the Hub.
        local_files_only: never go to the network; so does the environment variable ``HF_HUB_OFFLINE=1``.

    Raises:
        CheckpointError: there is no such folder or Hub id, or it is not in the cache while offline.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InputError(
            f"the model is a {type(name_or_path).__name__}; give a folder in Hugging Face layout, or a Hub id such as org/name"
        )
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return Checkpoint(path)
    text = str(name_or_path)
    if path.exists():
        raise CheckpointError(f"{text!r} is a file; give the folder that holds it")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise CheckpointError(
            f"no folder {text!r}, and it is no Hub id either; give a folder or an id such as org/model"
        )
    hub = (text, revision, local_files_only)
    return Checkpoint(_download(*hub), hub)


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        # subfolders may hold other formats (onnx/, openvino/); sentence-transformers' pooling is in one, too
        patterns = [*DOWNLOAD, "1_Pooling/config.json"]
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=patterns,
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )  # fmt: skip
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the Hub has no model {name!r}{at} that you may see; check the name, or log in if it is private ({error})"
        ) from None
    except (OSError, hub.HTTPError) as error:
        # of HTTP errors, those with an answer are OSErrors of the Hub's; the others never got through
        lost = (hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)  # OfflineModeIsEnabled is among them
        if isinstance(error, lost) or not isinstance(error, OSError):
            raise CheckpointError(
                f"no folder {name!r} here, and the Hub's model {name!r}{at} is neither in the cache nor within reach "
                f"({type(error).__name__}); give a folder, or go online once to download it"
            ) from None
        raise CheckpointError(f"the Hub's model {name!r}{at} could not be downloaded: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a Hub id ({error})") from None


def _without_safetensors(name: str, revision: str | None, local_files_only: bool) -> str:
    """Why a model of the Hub has no weights here; pickles are not downloaded, so the folder does not tell."""
    files = []
    if not local_files_only:
        from huggingface_hub import HfApi

        with suppress(Exception):  # the list only makes the message better
            files = HfApi().list_repo_files(name, revision=revision)
    weights = sorted(file for file in files if any(Path(file).match(pattern) for pattern in PICKLES))
    has = f"it has {_some(weights)}, but " if weights else ""
    return (
        f"the Hub's model {name!r} has neither {WEIGHTS} nor {INDEX}; {has}pickles and the like are never downloaded or "
        "read here. Convert it with Transformers' save_pretrained, or pass the revision of a conversion, such as "
        "revision='refs/pr/1' (see the model's pull requests)"
    )


@dataclass(frozen=True)
class Source:
    """Where one parameter's values come from: a stored tensor (or a part of it), or the initializer."""

    path: str
    parameter: Parameter
    tensor: StoredTensor | None = None
    layout: str = ""
    part: tuple[int, int] = (0, 1)
    seed: int = 0

    def read(self, dtype=np.float32) -> np.ndarray:
        """All values, shaped as the parameter. May be a transposed view."""
        if self.tensor is None:
            return initial_value(self.path, self.parameter, self.seed).astype(dtype, copy=False)
        values = self.tensor.read()
        i, n = self.part
        if n > 1:
            width = values.shape[-1] // n
            values = values[..., i * width : (i + 1) * width]
        if self.layout == "linear":
            values = values.T
        if self.layout == "row":
            values = values[0]
        return values.astype(dtype, copy=False)

    def chunks(self, dtype=np.float32, max_bytes: int = 4 << 20) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) pairs that cover the parameter, each of about ``max_bytes`` where the layout allows."""
        if self.tensor is None or self.layout != "embedding" or len(self.parameter.shape) < 2:
            yield 0, self.read(dtype)
            return
        rows, width = self.parameter.shape
        step = max(1, max_bytes // (width * self.tensor.dtype.itemsize))
        for start in range(0, rows, step):
            yield start, self.tensor.read(start, start + step).astype(dtype, copy=False)


class Checkpoint:
    """A folder in Hugging Face layout. Reading is lazy: opening it reads config.json alone."""

    def __init__(self, folder: Path, hub: tuple[str, str | None, bool] | None = None):
        """hub: the id, revision and local_files_only that ``folder`` was downloaded by."""
        self.folder, self._hub = Path(folder), hub
        if not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} has no config.json; give the folder of a model in Hugging Face layout"
            )
        self.config: dict[str, Any] = _read_json(self.folder / "config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or {} where there is none."""
        path = self.folder / "generation_config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def head(self) -> str:
        """The head this checkpoint was saved with."""
        return architectures.head_of(self.config)

    def tokenizer(self):
        """The fast tokenizer of this folder, by Transformers.

        Raises:
            CheckpointError: the folder has no tokenizer that loads.
        """
        if not any(next(self.folder.glob(pattern), None) for pattern in VOCABULARIES):
            # Transformers would make an empty tokenizer of config.json alone
            raise CheckpointError(
                f"{self.folder} has no tokenizer (none of {', '.join(VOCABULARIES)}); save one there, or pass tokenizer="
            )
        AutoTokenizer = frameworks.transformers().AutoTokenizer
        try:
            # local_files_only: the files are here, and a tokenizer must never fetch anything else
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(
                f"{self.folder} has no tokenizer that loads ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "save one there, or pass tokenizer="
            ) from None

    def transformer_config(self, **overrides) -> TransformerConfig:
        """config.json, with keys of it overridden, as a TransformerConfig.

        Raises:
            InputError: an override is no key of this family's config.json.
        """
        return architectures.config_from_hf(override(self.config, overrides))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by name; the headers of the files are read, the values are not.

        Raises:
            CheckpointError: no safetensors here, a shard is missing or damaged, or the index points elsewhere.
        """
        if (self.folder / WEIGHTS).is_file():
            return list_tensors(self.folder / WEIGHTS)
        if (self.folder / INDEX).is_file():
            return self._sharded()
        if self._hub:
            raise CheckpointError(_without_safetensors(*self._hub))
        pickles = sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{self.folder} has only {', '.join(pickles)}, which is never read here because loading such a file "
                "can run code; convert it to model.safetensors with Transformers' save_pretrained"
            )
        raise CheckpointError(f"{self.folder} has neither {WEIGHTS} nor {INDEX}")

    def _sharded(self) -> dict[str, StoredTensor]:
        path = self.folder / INDEX
        weight_map = _read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{path} has no weight_map of tensor names to file names; save the model again")
        tensors = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{path} points to {shard!r}; a shard must be a .safetensors file in the same folder"
                )
            if not (self.folder / shard).is_file():
                raise CheckpointError(f"{path} names the shard {shard!r}, which is missing; download or copy it")
            tensors |= list_tensors(self.folder / shard)
        lost = sorted(set(weight_map) - set(tensors))
        if lost:
            raise CheckpointError(f"{path} names tensors that no shard has: {_some(lost)}")
        return tensors

    def plan(
        self, cfg: TransformerConfig, head: str, seed: int = 0, ignore_mismatched_sizes: bool = False
    ) -> list[Source]:
        """Where every parameter of (cfg, head) comes from, largest first, decided before any value is read.

        Largest first, so that the one moment a tensor is held twice comes while little else is held. Parameters of a
        head that the checkpoint lacks start afresh from ``seed``; one warning names them.

        Raises:
            CheckpointError: a tensor of the base model is missing, a tensor is unknown, or a shape does not fit.
        """
        spec = parameters(cfg, head)
        rows = [row for row in architectures.get(cfg.model_type).weights(cfg, head) if row.path is not None]
        sources, missing, mismatched, used = {}, [], [], set()
        for row in rows:
            tensor = self._find(row, cfg)
            parameter = spec[row.path]
            if tensor is not None:
                used.add(tensor.name)
            if tensor is None and row.optional:
                sources[row.path] = Source(row.path, parameter, seed=seed)
            elif tensor is None or not _fits(tensor, row, parameter):
                (missing if tensor is None else mismatched).append((row, tensor))
                sources[row.path] = Source(row.path, parameter, seed=seed)
            else:
                sources[row.path] = Source(row.path, parameter, tensor, row.layout, row.part)
        if mismatched:
            self._refuse_shapes(mismatched, spec, ignore_mismatched_sizes)
        self._refuse_missing_and_unexpected([row for row, _ in missing], rows, used, cfg)
        fresh = [row.path for row, _ in missing + mismatched]
        if fresh:
            warnings.warn(
                f"{self.folder.name}: the {head} head starts from random values, since the checkpoint has none for "
                f"{_some(fresh)}; fine-tune it before use",
                stacklevel=3,
            )
        return sorted(sources.values(), key=lambda s: -s.parameter.size)

    def _names(self, row: Weight, cfg) -> list[str]:
        prefix = architectures.get(cfg.model_type).PREFIX
        names = [row.name, *row.aliases]
        return names + [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def _find(self, row: Weight, cfg) -> StoredTensor | None:
        return next((self.tensors[name] for name in self._names(row, cfg) if name in self.tensors), None)

    def _refuse_shapes(self, mismatched, spec, ignore):
        base = [row for row, _ in mismatched if not _of_head(row.path)]
        if ignore and not base:
            return
        lines = [
            f"{row.name}: {list(tensor.shape)} in the checkpoint, {list(_stored_shape(row, spec[row.path]))} expected"
            for row, tensor in mismatched
        ]
        advice = "config.json does not belong to these weights" if base else (
            "pass ignore_mismatched_sizes=True to start the head afresh"
        )  # fmt: skip
        raise CheckpointError(f"{self.folder}: wrong shapes; {advice}:\n  " + "\n  ".join(lines))

    def _refuse_missing_and_unexpected(self, missing, rows, used, cfg):
        # A head that was never trained lacks whole layers; half a layer, or any of the body, is damage.
        whole = {_module(row) for row in rows if row not in missing}
        lacking = [row.name for row in missing if not _of_head(row.path) or _module(row) in whole]
        family = architectures.get(cfg.model_type)
        known = {
            name
            for tied in (True, False)
            for head in family.heads(cfg.model_type)
            for row in family.weights(cfg.replace(lm_head__tied=tied), head)
            for name in (*self._names(row, cfg), *row.copies)
        }
        others = set(self.tensors) - used - known
        unexpected = [name for name in others if not any(re.search(pattern, name) for pattern in BUFFERS)]
        if lacking or unexpected:
            parts = [f"missing {_some(sorted(set(lacking)))}"] if lacking else []
            parts += [f"unexpected {_some(sorted(unexpected))}"] if unexpected else []
            raise CheckpointError(
                f"{self.folder} does not hold a {cfg.model_type} model of this config.json: {'; '.join(parts)}"
            )


def override(hf: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with some keys replaced, as ``from_pretrained(..., num_labels=3)`` does.

    Raises:
        InputError: a key that this family's config.json does not have.
    """
    hf = dict(hf)
    if not overrides:
        return hf
    cfg = architectures.config_from_hf(hf)
    allowed = set(architectures.hf_config(cfg)) | {"num_labels", "problem_type"} | set(hf)
    for key in overrides:
        if key not in allowed:
            raise InputError(
                f"unknown keyword {key!r}; keys of a {cfg.model_type} config are {', '.join(sorted(allowed))}"
            )
    if overrides.get("num_labels") not in (None, cfg.num_labels) and "id2label" not in overrides:
        hf.pop("id2label", None)
        hf.pop("label2id", None)
    return hf | overrides


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, it holds {type(data).__name__}")
    return data


def _module(row: Weight) -> str:
    return row.path.rpartition("/")[0]


def _of_head(path: str) -> bool:
    return path.split("/")[0] in HEAD_PREFIXES


def _stored_shape(row: Weight, parameter: Parameter) -> tuple[int, ...]:
    shape = stored_shape(row.layout, parameter.shape)
    return (*shape[:-1], shape[-1] * row.part[1])


def stored_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter, or its transpose, has in a checkpoint."""
    return shape[::-1] if layout == "linear" else (1, *shape) if layout == "row" else shape


def _fits(tensor: StoredTensor, row: Weight, parameter: Parameter) -> bool:
    return tensor.shape == _stored_shape(row, parameter)


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
