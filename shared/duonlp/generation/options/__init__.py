"""Options of ``generate``: which values and combinations are valid, and what of a stored file can be used."""

from duonlp.generation.options.stored import StoredOptions, describe_unusable, read_options, unused_options
from duonlp.generation.options.validation import check_config, check_memory, check_option, check_vocabulary

__all__ = [
    "StoredOptions", "check_config", "check_memory", "check_option", "check_vocabulary", "describe_unusable", "read_options",
    "unused_options",
]  # fmt: skip
