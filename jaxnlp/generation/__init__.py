"""Text generation, and scoring texts by their log probability."""

from jaxnlp.generation import processors
from jaxnlp.generation.scoring import perplexity, sequence_logprob, token_logprobs
from jaxnlp.generation.search import generate, stream

__all__ = ["generate", "perplexity", "processors", "sequence_logprob", "stream", "token_logprobs"]
