"""The errors a person can cause, and therefore mend.

Each message names the value it got, what was allowed, and what to do. The command line prints them as one line
and leaves with status 2; anything else that is raised is a bug of ours.
"""


class DuonlpError(Exception):
    """Base of every error below."""


class ConfigError(DuonlpError, ValueError):
    """A model configuration that no engine can build."""


class CheckpointError(DuonlpError, OSError):
    """A checkpoint that cannot be found, read, or fitted onto its model."""


class InputError(DuonlpError, ValueError):
    """A text, a keyword or a value handed to a task that it cannot work on."""


class MissingExtraError(DuonlpError, ImportError):
    """A part that needs an extra which is not installed."""


class NonFiniteLossError(DuonlpError, ArithmeticError):
    """A training run whose loss is not a number any more."""
