"""Linear classifiers on features of texts: words or embeddings."""

from duonlp.fewshot.linear.classifier import Features, LinearClassifier, fit_linear, regression, single_texts
from duonlp.fewshot.linear.embeddings import ENCODER, ENCODER_SETTINGS, EmbeddingFeatures, load_encoder
from duonlp.fewshot.linear.words import LONGEST_NGRAM, WordFeatures, import_sklearn

__all__ = [
    "ENCODER",
    "ENCODER_SETTINGS",
    "LONGEST_NGRAM",
    "EmbeddingFeatures",
    "Features",
    "LinearClassifier",
    "WordFeatures",
    "fit_linear",
    "import_sklearn",
    "load_encoder",
    "regression",
    "single_texts",
]
