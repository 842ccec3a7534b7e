"""Translate the tensors of Transformers' TensorFlow and Flax models to the names and layouts of its PyTorch models.

The conventions, from ``modeling_tf_pytorch_utils.py`` and ``modeling_flax_pytorch_utils.py`` of Transformers 4:

- The last part of a name is ``kernel``, ``embeddings``, ``embedding``, ``gamma`` or ``scale`` where PyTorch has ``weight``, and
  ``beta`` where it has ``bias``. A kernel's axes are in the opposite order, or for images height, width, in, out.
- TensorFlow: ``layer_._0`` is item 0 of a list, ``mlm___cls`` is ``cls``, and every name ends in ``:0``. The first one or two
  parts, the layer's and the model's scope (``bert/tf_bert_model_1/bert/...``), depend on the session that saved the file.
- Flax: the tree may be below ``params``.

Names are translated only if the family's weight tables list the result. Other names stay as they are in the file, where they
are reported as unexpected.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.copies import Equality, check_same
from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.config import TransformerConfig

LEAVES = dict.fromkeys(("kernel", "embedding", "embeddings", "gamma", "scale", "weights"), "weight") | {"beta": "bias"}
"""Last part of a PyTorch name by that of another framework."""

MOST_SCOPES = 2
"""Leading parts of a TensorFlow name that may be scopes."""

UNUSED = {"predictions/bias:0": "predictions/decoder/bias:0"}
"""Endings of TensorFlow names of variables that the model does not use, by which variable it uses instead: ALBERT's output."""

AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
"""Order of a kernel's axes in PyTorch, by their number."""


@dataclass(frozen=True)
class TransposedTensor(StoredTensor):
    """A tensor whose axes are in another order on disk.

    Attributes:
        stored: The tensor on disk.
        axes: Its axes in the order of this one.
    """

    stored: StoredTensor = field(kw_only=True)
    axes: tuple[int, ...] = field(kw_only=True)

    @property
    def has_rows(self) -> bool:
        """Whether a range of rows can be read without reading the whole tensor."""
        return False

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start:stop`` of the first axis, by default all, as a view of the whole tensor."""
        return self.stored.read().transpose(self.axes)[start:stop]


def is_foreign(names: Mapping[str, object]) -> bool:
    """Return whether tensors of a safetensors file were saved by one of Transformers' TensorFlow or Flax models."""
    return any(name.endswith((":0", ".kernel")) for name in names)


def translate(tensors: Mapping[str, StoredTensor], cfg: TransformerConfig) -> dict[str, StoredTensor]:
    """Return the tensors of a TensorFlow or Flax model by PyTorch name, in PyTorch's layout.

    Several tensors of one name, such as embeddings that Keras saved for each layer that shares them, must be equal.

    Args:
        tensors: The tensors by the names in their files, whose parts are separated by ``/`` or ``.``.
        cfg: The model that config.json describes.

    Raises:
        CheckpointError: Two tensors stand for the same parameter and differ.
    """
    if cfg.num_all_layer_weights > len(
        tensors
    ):  # config.json does not match; a table of all its layers could exhaust the memory
        return dict(tensors)
    names = _torch_names(cfg)
    translated: dict[str, StoredTensor] = {}
    for origin, tensor in tensors.items():
        if any(origin.endswith(end) and origin.removesuffix(end) + used in tensors for end, used in UNUSED.items()):
            continue
        name = next((names[key] for key in _candidates(origin) if key in names), origin)
        if name != origin:
            tensor = _torch_layout(tensor, name, origin)
        if name in translated:
            check_same(translated[name], tensor, "remove the one that is wrong", Equality())
        else:
            translated[name] = tensor
    return translated


def _torch_names(cfg: TransformerConfig) -> dict[str, str]:
    """Return every name in the family's weight tables by the form in which names are compared."""
    family = architectures.get(cfg.model_type)
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for tied in (True, False):
        for head in family.heads(cfg.model_type):
            for row in family.weights(cfg.replace(lm_head__tied=tied), head):
                names.setdefault(_comparable(row.name.split(".")), row.name)
                for name in (*row.copies, *row.aliases):
                    aliases.setdefault(_comparable(name.split(".")), name)
    names = aliases | names
    prefix = family.PREFIX
    bare = {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}
    return bare | names


def _comparable(parts: list[str]) -> str:
    return ".".join([*parts[:-1], LEAVES.get(parts[-1], parts[-1])])


def _candidates(name: str) -> Iterator[str]:
    """Yield the forms in which a name may be in the tables: with all its scopes, then without the first ones."""
    parts = name.removesuffix(":0").split("/")
    parts = parts[1:] if parts[0] == "params" else parts
    for scopes in range(min(MOST_SCOPES + 1, len(parts))):
        inner = [part.rpartition("___")[2].replace("_._", ".") for part in parts[scopes:]]
        yield _comparable(".".join(inner).split("."))


def _torch_layout(tensor: StoredTensor, name: str, origin: str) -> StoredTensor:
    """Return a tensor under another name and in PyTorch's layout."""
    leaf, shape = origin.removesuffix(":0").replace(".", "/").rpartition("/")[2], tensor.shape
    if leaf == "kernel" and (axes := AXES.get(len(shape))):
        shape = tuple(shape[axis] for axis in axes)
        return TransposedTensor(
            tensor.file, name, shape, tensor.dtype, tensor.offset, origin, stored=tensor, axes=axes
        )  # fmt: skip
    if leaf == "bias" and len(shape) == 2 and shape[0] == 1:  # of TensorFlow's Conv1D
        shape = shape[1:]
    return replace(tensor, name=name, shape=shape, origin=origin)
