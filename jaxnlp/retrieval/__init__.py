"""Train encoders of questions and passages."""

from duonlp.training.in_batch_negatives import InBatchNegatives
from jaxnlp.retrieval.biencoder import BiEncoder, BiEncoderStep, fit_biencoder

__all__ = ["BiEncoder", "BiEncoderStep", "InBatchNegatives", "fit_biencoder"]
