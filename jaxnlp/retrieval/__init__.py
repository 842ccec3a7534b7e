"""Train encoders of questions and passages."""

from jaxnlp.retrieval.biencoder import BiEncoder, BiEncoderStep, fit_biencoder

__all__ = ["BiEncoder", "BiEncoderStep", "fit_biencoder"]
