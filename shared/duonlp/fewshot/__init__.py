"""Learn to classify from few labels, or none: one interface for all methods, and their comparison.

method = method_class("setfit")(model="sentence-transformers/all-MiniLM-L6-v2")
classifier = method.fit(jaxnlp, FewShotData(train, validation, unlabeled))
classifier.scores(["The download hangs at 99%"])
"""

from duonlp.fewshot.classifier import Classifier, FewShotData, Method
from duonlp.fewshot.descriptions import with_descriptions
from duonlp.fewshot.methods import METHODS, load_classifier, method_class
from duonlp.fewshot.zero_shot import classify_by_embeddings

__all__ = [
    "METHODS",
    "Classifier",
    "FewShotData",
    "Method",
    "classify_by_embeddings",
    "load_classifier",
    "method_class",
    "with_descriptions",
]
