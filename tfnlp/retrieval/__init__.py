"""Train encoders of questions and passages."""

from duonlp.training.in_batch_negatives import InBatchNegatives
from tfnlp.retrieval.biencoder import BiEncoder, fit_biencoder

__all__ = ["BiEncoder", "InBatchNegatives", "fit_biencoder"]
