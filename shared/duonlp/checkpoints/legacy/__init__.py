"""Read the weights of Transformers' TensorFlow and Flax models, which version 5 no longer has; nothing is unpickled or run."""

from duonlp.checkpoints.legacy.files import FLAX, LEGACY, TENSORFLOW, legacy_tensors
from duonlp.checkpoints.legacy.names import is_foreign, translate

__all__ = ["FLAX", "LEGACY", "TENSORFLOW", "is_foreign", "legacy_tensors", "translate"]
