"""Make new training texts from those you have: word substitution, random edits, back-translation.

augmenter = RandomEdits(alpha=0.1)
copies = augmenter.augment(["The download hangs at 99%"], per_text=4, seed=1)
"""

from duonlp.augmentation.augmenter import Augmenter, Unchanged, count_unchanged
from duonlp.augmentation.edits import RandomEdits
from duonlp.augmentation.masked import MaskedSubstitution
from duonlp.augmentation.synonyms import STOP_WORDS, Synonyms
from duonlp.augmentation.words import PATTERNS, Protection

__all__ = [
    "PATTERNS",
    "STOP_WORDS",
    "Augmenter",
    "MaskedSubstitution",
    "Protection",
    "RandomEdits",
    "Synonyms",
    "Unchanged",
    "count_unchanged",
]
