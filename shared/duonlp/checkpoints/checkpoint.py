"""Open checkpoints in Hugging Face layout: find them, read config.json, match tensors with a model's parameters.

Weights are read from safetensors or, without them, from the files of Transformers 4's TensorFlow and Flax models. Nothing is
unpickled and no code from a checkpoint is run.
"""

import os
import re
import stat
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from duonlp import architectures
from duonlp.checkpoints.atomic_folder import finish_save, is_being_finished
from duonlp.checkpoints.copies import Equality, Resolution, resolve
from duonlp.checkpoints.formats import describe_file, describe_folder, keras_class
from duonlp.checkpoints.hub import download, no_safetensors_message
from duonlp.checkpoints.legacy import LEGACY, is_foreign, legacy_tensors, translate
from duonlp.checkpoints.open_files import OpenFile, OpenFolder
from duonlp.checkpoints.planner import Planner, check_depth, without_new_layers
from duonlp.checkpoints.processors import IMAGE_CONFIG, load_image_processor, load_tokenizer
from duonlp.checkpoints.safetensors_file import StoredTensor, with_bytes
from duonlp.checkpoints.source import Source
from duonlp.checkpoints.weight_files import PICKLE, PICKLE_INDEX, SAFETENSORS, list_names, shard_names, stored_tensors
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, DuonlpError, InputError
from duonlp.typing import ImageProcessor, Tokenizer
from duonlp.util.permissions import explain_denied
from duonlp.util.reading import parse_json_object, why_unreadable

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHT_FORMATS = (SAFETENSORS, *LEGACY)
"""In the order in which they are looked for."""

ATTEMPTS = 20
"""Maximum number of attempts to open a folder that another process keeps replacing."""

T = TypeVar("T")


def open_checkpoint(
    name_or_path: "str | os.PathLike[str] | Checkpoint", revision: str | None = None, local_files_only: bool = False
) -> "Checkpoint":
    """Open a local checkpoint, or one from the Hub, which is downloaded unless it is in the cache.

    A folder whose last save was interrupted is first brought into the state before or after that save.

    Args:
        name_or_path: A folder with config.json, a Hub id such as ``"google-bert/bert-base-uncased"``, or an open checkpoint,
            which is returned.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never access the network; the environment variable ``HF_HUB_OFFLINE=1`` does the same.

    Raises:
        InputError: ``name_or_path`` is neither a string nor a path.
        CheckpointError: the folder or Hub id does not exist, or is not in the cache while offline.
    """
    if isinstance(name_or_path, Checkpoint):
        return name_or_path
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InputError(
            f"the model is a {type(name_or_path).__name__}; pass a folder in Hugging Face layout or a Hub id such as org/name"
        )
    path, text = Path(name_or_path).expanduser(), str(name_or_path)
    try:
        if not path.exists():
            finish_save(path)  # may restore it
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except CheckpointError:
        raise
    except PermissionError:
        raise CheckpointError(explain_denied(path)) from None
    except (OSError, ValueError):
        pass
    else:
        if is_folder:
            return Checkpoint(path)
        found = describe_file(path.name)
        raise CheckpointError(f"{text!r} is a file; {found or 'pass the folder that contains it'}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise CheckpointError(
            f"no folder {text!r}, and it is not a valid Hub id; pass a folder or an id such as org/model"
        )
    hub = (text, revision, local_files_only)
    return Checkpoint(download(*hub), hub)


def read_unchanged(
    name_or_path: "str | os.PathLike[str] | Checkpoint", read: Callable[["Checkpoint"], T], revision: str | None = None,
    local_files_only: bool = False,
) -> "tuple[Checkpoint, T]":  # fmt: skip
    """Open a checkpoint and read further files of its folder, again if another process replaces it meanwhile.

    Args:
        name_or_path: See :func:`open_checkpoint`.
        read: Function that reads files by their paths, such as the tokenizer's.
        revision: See :func:`open_checkpoint`.
        local_files_only: See :func:`open_checkpoint`.

    Returns:
        The checkpoint and what `read` returned, both of one version of the folder.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, or is replaced again and again.
    """
    for _ in range(ATTEMPTS):
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        try:
            result = read(checkpoint)
        except (DuonlpError, OSError):
            if checkpoint.is_current():
                raise
        else:
            if checkpoint.is_current():
                return checkpoint, result
    raise CheckpointError(
        f"{name_or_path} is replaced again and again while it is being loaded; wait for the other process"
    )


class Checkpoint:
    """A folder in Hugging Face layout, read lazily, and as of one moment.

    Opening it reads config.json and opens the other files of the model, which stay open: whatever another process saves to
    the folder later, configuration and tensors are those of one version. Close it after the load; it also closes itself with
    the last reference to it and its tensors.

    Args:
        folder: The folder.
        hub: Hub id, revision and ``local_files_only`` with which ``folder`` was downloaded.

    Raises:
        CheckpointError: the folder has no valid config.json, or files that may not be read.
    """

    def __init__(self, folder: Path, hub: tuple[str, str | None, bool] | None = None):
        self.folder, self._hub = Path(folder), hub
        self._files = _open_files(self.folder, local=hub is None)
        config = self._files.open(CONFIG)
        if config is None:
            found = describe_folder(self.folder)
            raise CheckpointError(
                f"{self.folder} has no config.json; {found or 'pass the folder of a model in Hugging Face layout'}"
            )
        self.config: dict[str, Any] = _read_json(config)
        if keras_class(self.config) is not None:
            raise CheckpointError(
                f"{self.folder} is not in Hugging Face layout; {describe_folder(self.folder, self.config)}"
            )
        self._equal = Equality()
        self._resolutions: dict[str | None, Resolution] = {}  # by the head that transformer_config was called with

    def is_current(self) -> bool:
        """Return whether the folder still is as it was when it was opened."""
        # In this order: whatever was opened while a save moved its files is not current after that.
        return not is_being_finished(self.folder) and self._files.is_current()

    def close(self) -> None:
        """Close all files; tensors cannot be read any more."""
        self._files.close()

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json, or {} if there is none."""
        file = self._files.open(GENERATION_CONFIG)
        return {} if file is None else _read_json(file)

    @property
    def head(self) -> str:
        """Head with which the checkpoint was saved."""
        return architectures.head_of(self.config)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer with Transformers' AutoTokenizer.

        Raises:
            CheckpointError: the folder has no tokenizer, or it cannot be loaded.
        """
        if not os.access(self.folder, os.R_OK):
            raise CheckpointError(explain_denied(self.folder))
        return self._load(lambda: load_tokenizer(self.folder))

    @cached_property
    def image_config(self) -> str | None:
        """Text of preprocessor_config.json, or None if there is none."""
        file = self._files.open(IMAGE_CONFIG)
        try:
            return None if file is None else file.read_text()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"cannot read {str(file)!r}: {why_unreadable(error)}; save or download the checkpoint again"
            ) from None

    def image_processor(self) -> ImageProcessor:
        """Load the image processor with Transformers' AutoImageProcessor, on Pillow whatever else is installed.

        Raises:
            CheckpointError: the folder has no image processor, or it cannot be loaded.
            MissingExtraError: Pillow is not installed.
        """
        return self._load(lambda: load_image_processor(self.folder, self.image_config))

    def transformer_config(self, head: str | None = None, /, **overrides: Any) -> TransformerConfig:
        """Return config.json as a TransformerConfig, with some keys overridden.

        Where the tensors contradict it, the configuration is what Transformers makes of both: tensors that it says are tied and
        that differ are not, and a table of fixed positions replaces the computed one; :meth:`plan` warns about the former.

        Args:
            head: The head that will be loaded; by default, the configuration is right for all heads.
            overrides: Keys of config.json to replace.

        Raises:
            InputError: an override is not a key of this family's config.json.
        """
        cfg = self._config(overrides)
        names = (name for weight_format in WEIGHT_FORMATS for name in (weight_format.weights, weight_format.index))
        if self._hub and all(self._files.open(name) is None for name in names):
            return cfg
        try:
            check_depth(self.folder, self.tensors, cfg)
            cfg = architectures.with_base_class(cfg, self.config | overrides, self.tensors)
            cfg = without_new_layers(cfg, self.tensors)
            self._resolutions[head] = resolution = resolve(cfg, head, self.tensors, self._equal)
        except CheckpointError:  # no weights, or damaged ones, which `plan` reports
            return cfg
        return resolution.cfg

    def _config(self, overrides: Mapping[str, Any] = MappingProxyType({})) -> TransformerConfig:
        """Return config.json as a TransformerConfig, whatever the tensors are."""
        file = str(self.folder / "config.json")
        return architectures.config_from_hf(override(self.config, overrides, file), file)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name; only file headers are read.

        Those of Transformers' TensorFlow and Flax models have the names and the layout of its PyTorch models.

        Raises:
            CheckpointError: there are no weights, a shard is missing or damaged, or the index is invalid.
        """
        tensors = stored_tensors(self._files)
        if tensors is not None and not is_foreign(tensors):
            return with_bytes(tensors) if self.config.get("quantization_config") else tensors
        cfg = self._config()
        tensors = legacy_tensors(self._files, cfg) if tensors is None else translate(tensors, cfg)
        if tensors is not None:
            if cfg.quantization is not None and not cfg.quantization.simulated:
                raise CheckpointError(
                    f"{self.folder} has weights of a TensorFlow or Flax model, and quantization_config in its config.json; "
                    "quantized weights are only read from safetensors of PyTorch's layout: remove the key, or quantize again"
                )
            return tensors
        # Transformers may have downloaded them to the cache.
        if any((self.folder / name).is_file() for name in (PICKLE, PICKLE_INDEX)) and (
            pickles := sorted(path.name for path in self.folder.glob("pytorch_model*.bin"))
        ):
            raise CheckpointError(
                f"{self.folder} has only {list_names(pickles)}, which is never read because loading it can run code; convert "
                f"it to safetensors with `duonlp convert {self.folder} OUT`"
            )
        if self._hub:
            raise CheckpointError(no_safetensors_message(*self._hub))
        if found := describe_folder(self.folder, self.config):
            raise CheckpointError(f"{self.folder} has no weights in Hugging Face layout; {found}")
        names = ", ".join(weight_format.weights for weight_format in WEIGHT_FORMATS)
        raise CheckpointError(f"{self.folder} has none of {names}, and no index of shards; pass a folder with weights")

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
        resolutions = (self._resolutions.get(key) for key in dict.fromkeys((head, None, *self._resolutions)))
        resolution = next((r for r in resolutions if r is not None and r.applies_to(cfg)), None)
        planner = Planner(self.folder, self.tensors, cfg, head, resolution, self._equal)
        return planner.plan(seed, ignore_mismatched_sizes)

    def _load(self, load: Callable[[], T]) -> T:
        """Return what `load` reads by the paths of files; raise CheckpointError if the folder was replaced meanwhile."""
        try:
            return load()
        finally:
            if not self.is_current():
                raise CheckpointError(f"{self.folder} was replaced while it was being loaded; load it again")


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


def _open_files(folder: Path, local: bool) -> OpenFolder:
    """Open the files of a model, all of one version; finish an interrupted save first if the folder is `local`."""
    for _ in range(ATTEMPTS):
        if local:
            finish_save(folder)
        files = OpenFolder(folder)
        try:
            for name in (CONFIG, GENERATION_CONFIG, IMAGE_CONFIG):
                files.open(name)
            for weight_format in WEIGHT_FORMATS:
                weights, index = files.open(weight_format.weights), files.open(weight_format.index)
                for name in shard_names(index, weight_format.ending) if index is not None else ():
                    files.open(name)
                if weights is not None or index is not None:
                    break
            if not is_being_finished(folder) and files.is_current():
                return files
        except BaseException:
            files.close()
            raise
        files.close()
    raise CheckpointError(f"{folder} is replaced again and again while it is being loaded; wait for the other process")


def _read_json(file: OpenFile) -> dict[str, Any]:
    advice = "save or download the checkpoint again"
    return parse_json_object(file.read_bytes(), str(file), error=CheckpointError, advice=advice)
