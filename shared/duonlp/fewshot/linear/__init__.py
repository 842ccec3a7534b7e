"""Linear classifiers on features of texts: words or embeddings."""

from duonlp.fewshot.linear.classifier import Features, LinearClassifier, fit_linear, regression, single_texts
from duonlp.fewshot.linear.embeddings import EmbeddingFeatures
from duonlp.fewshot.linear.words import LONGEST_NGRAM, WordFeatures, import_sklearn

__all__ = [
    "LONGEST_NGRAM",
    "EmbeddingFeatures",
    "Features",
    "LinearClassifier",
    "WordFeatures",
    "fit_linear",
    "import_sklearn",
    "regression",
    "single_texts",
]
