"""Read and write checkpoints in Hugging Face layout."""

from duonlp.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint
from duonlp.checkpoints.conversion import convert
from duonlp.checkpoints.pretrained import PretrainedBase, check_head, pretraining_head, resolve_config
from duonlp.checkpoints.safetensors_file import StoredTensor, TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.save import parse_size, save_checkpoint

__all__ = [
    "Checkpoint",
    "PretrainedBase",
    "Source",
    "StoredTensor",
    "TensorToWrite",
    "check_head",
    "convert",
    "list_tensors",
    "open_checkpoint",
    "parse_size",
    "pretraining_head",
    "resolve_config",
    "save_checkpoint",
    "write_tensors",
]
