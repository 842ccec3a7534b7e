"""Clean a corpus (licenses, filters, duplicates, secrets) and split it into training and held-out parts."""

from duonlp.data.cleaning.cleaner import CleaningConfig, clean
from duonlp.data.cleaning.duplicates import NearDuplicateConfig, NearDuplicates, content_digest
from duonlp.data.cleaning.filters import PRESETS, FilterConfig, reason_to_drop
from duonlp.data.cleaning.licences import LicenceConfig
from duonlp.data.cleaning.masking import MaskingConfig, mask
from duonlp.data.cleaning.report import CleaningReport, Dropped
from duonlp.data.cleaning.splits import write_split

__all__ = [
    "PRESETS",
    "CleaningConfig",
    "CleaningReport",
    "Dropped",
    "FilterConfig",
    "LicenceConfig",
    "MaskingConfig",
    "NearDuplicateConfig",
    "NearDuplicates",
    "clean",
    "content_digest",
    "mask",
    "reason_to_drop",
    "write_split",
]
