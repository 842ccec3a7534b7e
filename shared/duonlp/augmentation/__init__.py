"""Make new training texts from those you have: word substitution, random edits, back-translation.

augmenter = RandomEdits(alpha=0.1)
copies = augmenter.augment(["The download hangs at 99%"], per_text=4, seed=1)
"""

from duonlp.augmentation.augmenter import Augmenter, Unchanged, count_unchanged
from duonlp.augmentation.back_translation import BackTranslation
from duonlp.augmentation.batches import AugmentedBatches
from duonlp.augmentation.cache import CachedAugmenter, cached
from duonlp.augmentation.chain import Chain, compose
from duonlp.augmentation.edits import RandomEdits
from duonlp.augmentation.labelled import augment_texts
from duonlp.augmentation.masked import MaskedSubstitution
from duonlp.augmentation.rows import Rows, augment_rows, read_rows
from duonlp.augmentation.synonyms import STOP_WORDS, Synonyms
from duonlp.augmentation.words import PATTERNS, Protection

__all__ = [
    "PATTERNS",
    "STOP_WORDS",
    "AugmentedBatches",
    "Augmenter",
    "BackTranslation",
    "CachedAugmenter",
    "Chain",
    "MaskedSubstitution",
    "Protection",
    "RandomEdits",
    "Rows",
    "Synonyms",
    "Unchanged",
    "augment_rows",
    "augment_texts",
    "cached",
    "compose",
    "count_unchanged",
    "read_rows",
]
