"""The files that hold the weights of Transformers' TensorFlow and Flax models."""

from duonlp.checkpoints.legacy.hdf5 import list_datasets
from duonlp.checkpoints.legacy.msgpack import list_arrays
from duonlp.checkpoints.legacy.names import translate
from duonlp.checkpoints.open_files import OpenFolder
from duonlp.checkpoints.safetensors_file import StoredTensor
from duonlp.checkpoints.weight_files import WeightFormat, stored_tensors
from duonlp.config import TransformerConfig

TENSORFLOW = WeightFormat("tf_model.h5", "tf_model.h5.index.json", list_datasets)
FLAX = WeightFormat("flax_model.msgpack", "flax_model.msgpack.index.json", list_arrays)
LEGACY = (TENSORFLOW, FLAX)
"""In the order in which they are looked for; a folder normally has both only if they hold the same model."""


def legacy_tensors(files: OpenFolder, cfg: TransformerConfig) -> dict[str, StoredTensor] | None:
    """Return the tensors of a TensorFlow or Flax model as those of a PyTorch model, or None if there is neither.

    Args:
        files: The folder.
        cfg: The model that its config.json describes.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    for weight_format in LEGACY:
        tensors = stored_tensors(files, weight_format)
        if tensors is not None:
            return translate(tensors, cfg)
    return None
