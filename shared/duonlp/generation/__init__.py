"""Text generation: options, processors, and the decoding loop, written once for both engines."""

from duonlp.generation.config import GenerationConfig
from duonlp.generation.output import GenerationOutput

__all__ = ["GenerationConfig", "GenerationOutput"]
