"""Train encoders of questions and passages."""

from tfnlp.retrieval.biencoder import BiEncoder, fit_biencoder

__all__ = ["BiEncoder", "fit_biencoder"]
