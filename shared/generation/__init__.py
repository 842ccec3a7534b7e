"""Text generation: options, processors, and the decoding loop, written once for both engines."""

from shared.generation.config import GenerationConfig
from shared.generation.output import GenerationOutput

__all__ = ["GenerationConfig", "GenerationOutput"]
