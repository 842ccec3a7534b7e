"""Text generation, and scoring texts by their log probability."""

from tfnlp.generation import processors
from tfnlp.generation.export import export_generate
from tfnlp.generation.scoring import perplexity, sequence_logprob, token_logprobs
from tfnlp.generation.search import generate, stream

__all__ = ["export_generate", "generate", "perplexity", "processors", "sequence_logprob", "stream", "token_logprobs"]
