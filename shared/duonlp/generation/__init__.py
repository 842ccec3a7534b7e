"""Text generation: options, logits processors and the decoding loop, written once for both engines."""

from duonlp.generation.choices import choices_table, top_choices
from duonlp.generation.config import GenerationConfig
from duonlp.generation.output import GenerationOutput
from duonlp.generation.plots import plot_next_token
from duonlp.generation.stop_strings import StopStrings
from duonlp.generation.streaming import TextStream

__all__ = [
    "GenerationConfig",
    "GenerationOutput",
    "StopStrings",
    "TextStream",
    "choices_table",
    "plot_next_token",
    "top_choices",
]
