"""Errors that users can cause, and therefore fix.

Each message names the value, what was expected, and what to do. The command line prints such an error as
one line and exits with status 2; any other exception is a bug in duonlp.
"""


class DuonlpError(Exception):
    """Base class of duonlp's errors."""


class ConfigError(DuonlpError, ValueError):
    """A model configuration that no engine can build."""


class CheckpointError(DuonlpError, OSError):
    """A checkpoint that cannot be found, read, or matched to its model."""


class InputError(DuonlpError, ValueError):
    """An invalid text, argument or option value."""


class MissingExtraError(DuonlpError, ImportError):
    """A feature whose optional dependency is not installed."""


class NonFiniteLossError(DuonlpError, ArithmeticError):
    """A training run whose loss became NaN or infinite."""
