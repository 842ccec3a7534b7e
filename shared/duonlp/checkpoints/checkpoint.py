"""Open checkpoints in Hugging Face layout: find them, read config.json, match tensors with a model's parameters.

Only safetensors are read. Nothing is unpickled and no code from a checkpoint is run.
"""

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
from numpy.typing import DTypeLike

from duonlp import architectures
from duonlp.architectures._common import BUFFERS, Part, Weight
from duonlp.checkpoints.layouts import is_readable, our_layout, resized_positions, stored_shape
from duonlp.checkpoints.processors import IMAGE_CONFIG, load_image_processor, load_tokenizer
from duonlp.checkpoints.safetensors_file import StoredTensor, list_tensors
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError, NewHeadWarning
from duonlp.parameters import HEAD_PREFIXES, Parameter, initial_value, parameters
from duonlp.typing import ImageProcessor, Tokenizer
from duonlp.util.reading import read_json_object, why_unreadable

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")


def open_checkpoint(
    name_or_path: str | os.PathLike[str], revision: str | None = None, local_files_only: bool = False
) -> "Checkpoint":
    """Open a local checkpoint, or one from the Hub, which is downloaded unless it is in the cache.

    Args:
        name_or_path: A folder with config.json, or a Hub id such as ``"google-bert/bert-base-uncased"``.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never access the network; the environment variable ``HF_HUB_OFFLINE=1`` does the same.

    Raises:
        InputError: ``name_or_path`` is neither a string nor a path.
        CheckpointError: the folder or Hub id does not exist, or is not in the cache while offline.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InputError(
            f"the model is a {type(name_or_path).__name__}; pass a folder in Hugging Face layout or a Hub id such as org/name"
        )
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return Checkpoint(path)
    text = str(name_or_path)
    if path.exists():
        raise CheckpointError(f"{text!r} is a file; pass the folder that contains it")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise CheckpointError(
            f"no folder {text!r}, and it is not a valid Hub id; pass a folder or an id such as org/model"
        )
    hub = (text, revision, local_files_only)
    return Checkpoint(_download(*hub), hub)


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    try:
        # Subfolders can hold other formats (onnx/, openvino/), but also the pooling of sentence-transformers.
        patterns = [*DOWNLOAD, "1_Pooling/config.json"]
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=patterns,
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )  # fmt: skip
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise CheckpointError(
            f"no accessible model {name!r}{at} on the Hub; check the name, or log in if it is private ({error})"
        ) from None
    except (OSError, hub.HTTPError) as error:
        # An HTTPError with a response is also an OSError; one without a response means that the Hub was unreachable.
        unreachable = (hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)  # includes OfflineModeIsEnabled
        if isinstance(error, unreachable) or not isinstance(error, OSError):
            raise CheckpointError(
                f"no folder {name!r}, and the Hub model {name!r}{at} is not in the cache and the Hub is unreachable "
                f"({type(error).__name__}); pass a folder, or go online once to download it"
            ) from None
        raise CheckpointError(f"the Hub model {name!r}{at} could not be downloaded: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a Hub id ({error})") from None


def _no_safetensors_message(name: str, revision: str | None, local_files_only: bool) -> str:
    """Explain why a Hub model has no weights; pickles are not downloaded, so the folder alone does not show them."""
    files = []
    if not local_files_only:
        from huggingface_hub import HfApi

        with suppress(Exception):  # the list only improves the message
            files = HfApi().list_repo_files(name, revision=revision)
    weights = sorted(file for file in files if any(Path(file).match(pattern) for pattern in PICKLES))
    has = f"it has {_list_names(weights)}, but " if weights else ""
    return (
        f"the Hub model {name!r} has neither {WEIGHTS} nor {INDEX}; {has}other formats are never downloaded or read: "
        "convert it with Transformers' save_pretrained, or pass the revision of a conversion such as "
        "revision='refs/pr/1' (see the model's pull requests)"
    )


@dataclass(frozen=True)
class Source:
    """Origin of one parameter's values: a stored tensor (or a part of one), or the initializer.

    Attributes:
        path: Path of the parameter.
        parameter: Its shape and initializer.
        tensor: The stored tensor, or None to initialize the parameter.
        layout: Layout of the stored tensor, see ``Weight``.
        part: Place of the parameter in the tensor, see ``Weight``.
        grid: Rows and columns of patches, if the parameter is the position table of an image.
        seed: Seed of the initializer.
    """

    path: str
    parameter: Parameter
    tensor: StoredTensor | None = None
    layout: str = ""
    part: Part | None = None
    grid: tuple[int, ...] = ()
    seed: int = 0

    def read(self, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Return the values in the parameter's shape, possibly as a transposed view."""
        if self.tensor is None:
            return initial_value(self.path, self.parameter, self.seed).astype(dtype, copy=False)
        values = our_layout(self.layout, self.tensor.read())
        values = values if self.part is None else self.part.of(values)
        values = resized_positions(values, self.parameter.shape[0], self.grid) if self.grid else values
        return values.astype(dtype, copy=False)

    def chunks(self, dtype: DTypeLike = np.float32, max_bytes: int = 4 << 20) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows) pairs that cover the parameter.

        Embedding tables are split into chunks of about ``max_bytes``; other parameters are one chunk.
        """
        if self.tensor is None or self.layout != "embedding" or len(self.parameter.shape) < 2:
            yield 0, self.read(dtype)
            return
        rows, width = self.parameter.shape
        step = max(1, max_bytes // (width * self.tensor.dtype.itemsize))
        for start in range(0, rows, step):
            yield start, self.tensor.read(start, start + step).astype(dtype, copy=False)


class Checkpoint:
    """A folder in Hugging Face layout, read lazily: opening it reads only config.json.

    Args:
        folder: The folder.
        hub: Hub id, revision and ``local_files_only`` with which ``folder`` was downloaded.

    Raises:
        CheckpointError: the folder has no valid config.json.
    """

    def __init__(self, folder: Path, hub: tuple[str, str | None, bool] | None = None):
        self.folder, self._hub = Path(folder), hub
        if not (self.folder / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} has no config.json; pass the folder of a model in Hugging Face layout"
            )
        self.config: dict[str, Any] = _read_json(self.folder / "config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json, or {} if there is none."""
        path = self.folder / "generation_config.json"
        return _read_json(path) if path.is_file() else {}

    @property
    def head(self) -> str:
        """Head with which the checkpoint was saved."""
        return architectures.head_of(self.config)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer with Transformers' AutoTokenizer.

        Raises:
            CheckpointError: the folder has no tokenizer, or it cannot be loaded.
        """
        return load_tokenizer(self.folder)

    @cached_property
    def image_config(self) -> str | None:
        """Text of preprocessor_config.json, or None if there is none."""
        path = self.folder / IMAGE_CONFIG
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"cannot read {str(path)!r}: {why_unreadable(error)}; save or download the checkpoint again"
            ) from None

    def image_processor(self) -> ImageProcessor:
        """Load the image processor with Transformers' AutoImageProcessor, on Pillow whatever else is installed.

        Raises:
            CheckpointError: the folder has no image processor, or it cannot be loaded.
            MissingExtraError: Pillow is not installed.
        """
        return load_image_processor(self.folder, self.image_config)

    def transformer_config(self, **overrides: Any) -> TransformerConfig:
        """Return config.json as a TransformerConfig, with some keys overridden.

        Raises:
            InputError: an override is not a key of this family's config.json.
        """
        file = str(self.folder / "config.json")
        return architectures.config_from_hf(override(self.config, overrides, file), file)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name; only file headers are read.

        Raises:
            CheckpointError: there are no safetensors, a shard is missing or damaged, or the index is invalid.
        """
        if (self.folder / WEIGHTS).is_file():
            return list_tensors(self.folder / WEIGHTS)
        if (self.folder / INDEX).is_file():
            return self._sharded()
        if self._hub:
            raise CheckpointError(_no_safetensors_message(*self._hub))
        pickles = sorted(p.name for pattern in PICKLES for p in self.folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{self.folder} has only {', '.join(pickles)}, which is never read because loading it can run code; "
                "convert it to model.safetensors with Transformers' save_pretrained"
            )
        raise CheckpointError(f"{self.folder} has neither {WEIGHTS} nor {INDEX}; pass a folder with weights")

    def _sharded(self) -> dict[str, StoredTensor]:
        path = self.folder / INDEX
        weight_map = _read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise CheckpointError(f"{path} has no weight_map from tensor names to file names; save the model again")
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{path} refers to {shard!r}; a shard must be a .safetensors file in the same folder"
                )
            if not (self.folder / shard).is_file():
                raise CheckpointError(f"{path} lists the shard {shard!r}, which is missing; download or copy it")
            tensors |= list_tensors(self.folder / shard)
        missing = sorted(set(weight_map) - set(tensors))
        if missing:
            raise CheckpointError(
                f"{path} lists tensors that are in no shard: {_list_names(missing)}; download the checkpoint again"
            )
        return tensors

    def plan(
        self, cfg: TransformerConfig, head: str, seed: int = 0, ignore_mismatched_sizes: bool = False
    ) -> list[Source]:
        """Decide where every parameter of a model comes from, before any value is read.

        Sources are sorted by size, largest first, so that the largest tensor is held twice (read and placed) while little
        else is in memory. Head parameters that the checkpoint lacks are initialized; one warning lists them.

        Args:
            cfg: The model.
            head: Its head.
            seed: Seed for initialized parameters.
            ignore_mismatched_sizes: Initialize head parameters whose stored shape does not match, instead of raising.

        Returns:
            One source per parameter.

        Raises:
            CheckpointError: a tensor of the base model is missing, a tensor is unexpected, or a shape does not match.
        """
        self._check_depth(cfg)
        spec = parameters(cfg, head)
        rows = [row for row in architectures.get(cfg.model_type).weights(cfg, head) if row.path is not None]
        sources: dict[str, Source] = {}
        missing: list[Weight] = []
        mismatched: list[tuple[Weight, StoredTensor]] = []
        used: set[str] = set()
        for row in rows:
            tensor = self._find(row, cfg)
            parameter = spec[row.path]
            if tensor is not None:
                used.add(tensor.name)
            if tensor is not None and is_readable(row, parameter.shape, tensor.shape):
                grid = row.shape if row.layout == "image_positions" else ()
                sources[row.path] = Source(row.path, parameter, tensor, row.layout, row.part, grid)
                continue
            sources[row.path] = Source(row.path, parameter, seed=seed)
            if tensor is not None:
                mismatched.append((row, tensor))
            elif not row.optional:
                missing.append(row)
        if mismatched:
            self._check_shapes(mismatched, spec, ignore_mismatched_sizes)
        self._check_names(missing, rows, used, cfg)
        initialized = [_path(row) for row in (*missing, *(row for row, _ in mismatched))]
        if initialized:
            warnings.warn(
                f"{self.folder.name}: the {head} head starts from random values because the checkpoint lacks "
                f"{_list_names(initialized)}; fine-tune it before use",
                NewHeadWarning,
                stacklevel=3,
            )
        return sorted(sources.values(), key=lambda s: -s.parameter.size)

    def _names(self, row: Weight, cfg: TransformerConfig) -> list[str]:
        prefix = architectures.get(cfg.model_type).PREFIX
        names = [row.name, *row.aliases]
        return names + [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def _find(self, row: Weight, cfg: TransformerConfig) -> StoredTensor | None:
        return next((self.tensors[name] for name in self._names(row, cfg) if name in self.tensors), None)

    def _check_depth(self, cfg: TransformerConfig) -> None:
        """Raise CheckpointError if there are fewer tensors than layers, before anything is made for each layer."""
        layers = cfg.num_layer_weights + (0 if cfg.decoder is None else cfg.decoder.num_layer_weights)
        if layers > len(self.tensors):
            raise CheckpointError(
                f"{self.folder} has {len(self.tensors)} tensors, but its config.json describes {layers} layers; config.json does "
                "not match the weights"
            )

    def _check_shapes(
        self, mismatched: list[tuple[Weight, StoredTensor]], spec: Mapping[str, Parameter], ignore: bool
    ) -> None:
        """Raise CheckpointError for mismatched shapes, unless they are to be ignored and only concern the head."""
        base = [row for row, _ in mismatched if not _of_head(row)]
        if ignore and not base:
            return
        lines = [
            f"{row.name}: {list(tensor.shape)} in the checkpoint, {list(_stored_shape(row, spec[_path(row)]))} expected"
            for row, tensor in mismatched[:8]
        ] + [f"and {len(mismatched) - 8} more"] * (len(mismatched) > 8)
        advice = "config.json does not match the weights" if base else (
            "pass ignore_mismatched_sizes=True to initialize the head"
        )  # fmt: skip
        raise CheckpointError(f"{self.folder}: mismatched shapes; {advice}:\n  " + "\n  ".join(lines))

    def _check_names(self, missing: list[Weight], rows: list[Weight], used: set[str], cfg: TransformerConfig) -> None:
        """Raise CheckpointError if tensors of the base model or parts of a layer are missing, or any are unexpected."""
        # An untrained head lacks whole layers; a partial layer, or anything missing in the base model, is damage.
        present = {_module(row) for row in rows if row not in missing}
        lacking = [row.name for row in missing if not _of_head(row) or _module(row) in present]
        family = architectures.get(cfg.model_type)
        recognized = {
            name
            for tied in (True, False)
            for head in family.heads(cfg.model_type)
            for row in family.weights(cfg.replace(lm_head__tied=tied), head)
            for name in (*self._names(row, cfg), *row.copies)
        }
        others = set(self.tensors) - used - recognized
        unexpected = [name for name in others if not any(re.search(pattern, name) for pattern in BUFFERS)]
        if lacking or unexpected:
            parts = [f"missing {_list_names(sorted(set(lacking)))}"] if lacking else []
            parts += [f"unexpected {_list_names(sorted(unexpected))}"] if unexpected else []
            raise CheckpointError(
                f"the tensors in {self.folder} do not match its config.json ({cfg.model_type}): {'; '.join(parts)}"
            )


def override(hf: Mapping[str, Any], overrides: Mapping[str, Any], file: str = "config.json") -> dict[str, Any]:
    """Return config.json with some keys replaced, as in ``from_pretrained(..., num_labels=3)``.

    Args:
        hf: Contents of config.json.
        overrides: New values by key.
        file: Name of the file, for error messages.

    Raises:
        InputError: an override is not a key of this family's config.json.
    """
    out = dict(hf)
    if not overrides:
        return out
    cfg = architectures.config_from_hf(out, file)
    allowed = set(architectures.hf_config(cfg)) | {"num_labels", "problem_type"} | set(out)
    for key in overrides:
        if key not in allowed:
            raise InputError(
                f"unknown keyword {key!r}; the keys of a {cfg.model_type} config are {', '.join(sorted(allowed))}"
            )
    if overrides.get("num_labels") not in (None, cfg.num_labels) and "id2label" not in overrides:
        out.pop("id2label", None)
        out.pop("label2id", None)
    return out | dict(overrides)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, error=CheckpointError, advice="save or download the checkpoint again")


def _module(row: Weight) -> str:
    return _path(row).rpartition("/")[0]


def _path(row: Weight) -> str:
    assert row.path is not None  # rows without a path are not loaded
    return row.path


def _of_head(row: Weight) -> bool:
    return _path(row).split("/")[0] in HEAD_PREFIXES


def _stored_shape(row: Weight, parameter: Parameter) -> tuple[int, ...]:
    return stored_shape(row, parameter.shape)


def _list_names(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names[:limit]) + more
