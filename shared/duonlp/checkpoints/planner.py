"""Match the tensors of a checkpoint with the parameters of a model."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from duonlp import architectures
from duonlp.architectures._common import OUTPUT, Weight
from duonlp.checkpoints.copies import (
    BUFFERS,
    CONSTANTS,
    Equality,
    Resolution,
    check_copies,
    check_kind,
    check_same,
    owners,
    present,
)
from duonlp.checkpoints.layouts import is_readable, stored_dtype, stored_shape
from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.checkpoints.source import Source
from duonlp.checkpoints.weight_files import list_names
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, CheckpointWarning, NewHeadWarning
from duonlp.parameters import HEAD_PREFIXES, Parameter, parameters


class Planner:
    """Decides where every parameter of a model comes from; see ``Checkpoint.plan``.

    Args:
        folder: Folder of the checkpoint, for messages.
        tensors: Its tensors by name.
        cfg: The model.
        head: Its head.
        resolution: What to do with tied tensors that differ; None if nothing is known about any.
        equal: Comparison of tensors.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, StoredTensor], cfg: TransformerConfig, head: str,
        resolution: Resolution | None, equal: Equality,
    ):  # fmt: skip
        self.folder, self.tensors, self.cfg, self.head, self.equal = folder, tensors, cfg, head, equal
        self.family = architectures.get(cfg.model_type)
        self.resolution = Resolution(cfg, {}, frozenset(), ()) if resolution is None else resolution

    def plan(self, seed: int, ignore_mismatched_sizes: bool) -> list[Source]:
        """Return one source per parameter, largest first."""
        check_depth(self.folder, self.tensors, self.cfg)
        spec, table = parameters(self.cfg, self.head), architectures.weights(self.cfg, self.head)
        rows = [row for row in table if row.path is not None]
        sources: dict[str, Source] = {}
        missing: list[Weight] = []
        mismatched: list[tuple[Weight, StoredTensor]] = []
        used: set[str] = set()
        owned, outputs = owners(rows), self._outputs()
        for row in rows:
            parameter = spec[_path(row)]
            tensor = self._find(row, parameter, owned, outputs)
            if tensor is not None:
                used.add(tensor.name)
            if tensor is not None and is_readable(row, parameter.shape, tensor.shape):
                grid = row.shape if row.layout == "image_positions" else ()
                sources[_path(row)] = Source(_path(row), parameter, tensor, row.layout, row.part, grid)
                continue
            sources[_path(row)] = Source(_path(row), parameter, seed=seed)
            if tensor is not None:
                mismatched.append((row, tensor))
            elif not row.optional:
                missing.append(row)
        if mismatched:
            self._check_shapes(mismatched, spec, ignore_mismatched_sizes)
        self._check_names(missing, rows, used, spec)
        self._check_quantized(table)
        self._check_copies([row for row in table if row.path is None], sources)
        initialized = [_path(row) for row in (*missing, *(row for row, _ in mismatched))]
        if initialized:
            warnings.warn(
                f"{self.folder.name}: the {self.head} head starts from random values because the checkpoint lacks "
                f"{list_names(initialized)}; fine-tune it before use",
                NewHeadWarning,
                stacklevel=4,
            )
        return sorted(sources.values(), key=lambda s: -s.parameter.size)

    def _outputs(self) -> set[str]:
        """Return the names of tied outputs of any head, which are compared with the words where the head has one."""
        tables = (architectures.weights(self.cfg, head) for head in self.family.heads(self.cfg.model_type))
        return {row.name for rows in tables for row in rows if row.own_path == OUTPUT}

    def _find(
        self, row: Weight, parameter: Parameter, owned: Mapping[str, set[str]], outputs: set[str]
    ) -> StoredTensor | None:
        """Return the tensor of a row; raise CheckpointError if there are several that differ, or it is of another kind."""
        tensors, chosen = present(row, self.family.PREFIX, self.tensors), self.resolution.chosen.get(_path(row))
        if chosen is not None:
            tensors = [chosen, *(tensor for tensor in tensors if tensor != chosen)]
        if not tensors:
            return None
        check_kind(tensors[0], stored_dtype(row, parameter.stored_dtype("float32")))
        for other in tensors[1:]:
            if other.name in outputs or other.name in self.resolution.settled:
                continue
            # A name that other rows read as well, or that Transformers saves without using it, is a substitute for a tensor
            # that is missing, and may differ from one that is not.
            full = other.name if other.name in owned else self.family.PREFIX + other.name
            if owned.get(full) == {row.name} and full not in row.copies:
                check_same(tensors[0], other, "remove the one that is wrong", self.equal)
        return tensors[0]

    def _check_shapes(
        self, mismatched: list[tuple[Weight, StoredTensor]], spec: Mapping[str, Parameter], ignore: bool
    ) -> None:
        """Raise CheckpointError for mismatched shapes, unless they are to be ignored and only concern the head."""
        base = [row for row, _ in mismatched if not _of_head(row) or spec[_path(row)].dtype is not None]
        if ignore and not base:
            return
        lines = [
            f"{row.name}{_origin(tensor)}: {list(tensor.shape)} in the checkpoint, "
            f"{list(stored_shape(row, spec[_path(row)].shape))} expected"
            for row, tensor in mismatched[:8]
        ] + [f"and {len(mismatched) - 8} more"] * (len(mismatched) > 8)
        advice = "config.json does not match the weights" if base else (
            "pass ignore_mismatched_sizes=True to initialize the head"
        )  # fmt: skip
        raise CheckpointError(f"{self.folder}: mismatched shapes; {advice}:\n  " + "\n  ".join(lines))

    def _check_names(
        self, missing: list[Weight], rows: list[Weight], used: set[str], spec: Mapping[str, Parameter]
    ) -> None:
        """Raise CheckpointError if tensors of the base model or parts of a layer are missing, or any are unexpected."""
        # An untrained head lacks whole layers; a partial layer, or anything missing in the base model, is damage. Integers are
        # not initialized.
        complete = {_module(row) for row in rows if row not in missing}
        complete |= {_module(row) for row in missing if spec[_path(row)].dtype is not None}
        lacking = [row.name for row in missing if not _of_head(row) or _module(row) in complete]
        recognized = {name for head in self.family.heads(self.cfg.model_type) for name in tensor_names(self.cfg, head)}
        others = set(self.tensors) - used - recognized
        unexpected = [name for name in others if not any(re.search(pattern, name) for pattern in BUFFERS)]
        if lacking or unexpected:
            parts = [f"missing {list_names(sorted(set(lacking)))}"] if lacking else []
            parts += [f"unexpected {list_names(sorted(unexpected))}"] if unexpected else []
            raise CheckpointError(
                f"the tensors in {self.folder} do not match its config.json ({self.cfg.model_type}): {'; '.join(parts)}"
            )

    def _check_quantized(self, table: list[Weight]) -> None:
        """Raise CheckpointError if integers have zero points, or packed ones are of another shape than they say."""
        plain = parameters(self.cfg.replace(quantization=None), self.head)
        for row in table:
            for tensor in present(row, self.family.PREFIX, self.tensors) if row.layout in ("packed", "zeros") else ():
                if row.layout == "zeros":
                    if tensor.read().any():
                        raise CheckpointError(
                            f"{tensor.file}: tensor {tensor.name!r} is not zero; only symmetric quantization is supported"
                        )
                    continue
                shape, stored = plain[_path(row)].shape, self.tensors.get(tensor.name.removesuffix("packed") + "shape")
                expected = (shape if row.part is None else row.part.whole_shape(shape))[::-1]
                if stored is not None and (stored.shape != (2,) or tuple(stored.read().tolist()) != expected):
                    values = stored.read().ravel()[:8].tolist()
                    raise CheckpointError(
                        f"{stored.file}: tensor {stored.name!r} has the shape {values} of {tensor.name!r}; config.json says "
                        f"{list(expected)}: they do not belong together"
                    )

    def _check_copies(self, rows: list[Weight], sources: Mapping[str, Source]) -> None:
        """Check the tensors that are not loaded; warn once about those that differ from what they should be."""
        loaded = {path: source.tensor for path, source in sources.items()}
        stored = [
            (row, tensor)
            for row in rows
            for tensor in present(row, self.family.PREFIX, self.tensors)
            if tensor.name not in self.resolution.settled
        ]
        ignored = check_copies(stored, loaded, self.cfg, self.equal)
        for name, tensor in self.tensors.items():
            constants = (constant for pattern, constant in BUFFERS.items() if re.search(pattern, name))
            if not all(CONSTANTS[constant](self.cfg, tensor) for constant in constants):
                ignored.append(name)
        notes = list(self.resolution.notes)
        if ignored:
            notes.append(
                f"the values of {list_names(ignored)} are not those that {self.cfg.model_type} computes, and are ignored, as "
                "Transformers does; remove the tensors to silence this warning"
            )
        if notes:
            warnings.warn(f"{self.folder.name}: {'. '.join(notes)}", CheckpointWarning, stacklevel=5)


def tensor_names(cfg: TransformerConfig, head: str) -> set[str]:
    """Return all names under which a checkpoint may hold the tensors of a head, whether or not its output is tied."""
    family = architectures.get(cfg.model_type)
    names = {
        name
        for tied in (True, False)
        for row in architectures.weights(cfg.replace(lm_head__tied=tied), head)
        for name in (row.name, *row.aliases, *row.copies)
    }
    return names | {name.removeprefix(family.PREFIX) for name in names}


def without_new_layers(cfg: TransformerConfig, tensors: Mapping[str, StoredTensor]) -> TransformerConfig:
    """Return a configuration in which the layers of heads that a checkpoint lacks are not quantized, so that they can be trained.

    ``quantization_config`` of other software quantizes all linear layers of a class, also of heads that the model never had.

    Args:
        cfg: The model.
        tensors: The checkpoint's tensors by name.
    """
    quantization = cfg.quantization
    if quantization is None or quantization.simulated:
        return cfg
    family = architectures.get(cfg.model_type)
    stored = set()
    for head in family.heads(cfg.model_type):
        for row in (*family.weights(cfg, head), *architectures.weights(cfg, head)):
            if row.path is not None and present(row, family.PREFIX, tensors):
                stored.add(_module(row) if row.path.endswith(("/kernel", "/embedding")) else "")
    layers = tuple(
        (path, kind) for path, kind in quantization.layers if path in stored or path.split("/")[0] not in HEAD_PREFIXES
    )
    return cfg.replace(quantization=replace(quantization, layers=layers))


def check_depth(folder: Path, tensors: Mapping[str, StoredTensor], cfg: TransformerConfig) -> None:
    """Raise CheckpointError if there are fewer tensors than layers, before anything is made for each layer.

    Args:
        folder: Folder of the checkpoint, for the message.
        tensors: Its tensors by name.
        cfg: The model.
    """
    layers = cfg.num_all_layer_weights
    if layers > len(tensors):
        raise CheckpointError(
            f"{folder} has {len(tensors)} tensors, but its config.json describes {layers} layers; config.json does "
            "not match the weights"
        )


def _origin(tensor: StoredTensor) -> str:
    return f" ({tensor.origin!r} in {tensor.file.path.name})" if tensor.origin else ""


def _module(row: Weight) -> str:
    return _path(row).rpartition("/")[0]


def _path(row: Weight) -> str:
    assert row.path is not None  # rows without a path are not loaded
    return row.path


def _of_head(row: Weight) -> bool:
    return _path(row).split("/")[0] in HEAD_PREFIXES
