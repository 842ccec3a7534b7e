"""Errors that users can cause, and therefore fix; and warnings that callers may want to tell apart.

Each message names the value, what was expected, and what to do. The command line prints such an error as
one line and exits with status 2; any other exception is a bug in duonlp.
"""

from collections.abc import Mapping

LONGEST = 4000
"""Characters of a message, which may quote a value from a file."""


def shorten_message(text: str) -> str:
    """Return a message of at most LONGEST characters, without the middle of a longer one."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 4 :]}"


class DuonlpError(Exception):
    """Base class of duonlp's errors."""

    def __str__(self) -> str:
        return shorten_message(super().__str__())


class ConfigError(DuonlpError, ValueError):
    """A model configuration that no engine can build."""


class CheckpointError(DuonlpError, OSError):
    """A checkpoint that cannot be found, read, or matched to its model."""


class InputError(DuonlpError, ValueError):
    """An invalid argument, setting or input.

    Attributes:
        message: The value, what was expected, and usually what to do.
        remedy: What a Python caller can do, where another caller would do something else; otherwise "".
        argument: The Python argument that `remedy` is about, by which other callers look up their own advice.
    """

    def __init__(self, message: object = "", *, remedy: str = "", argument: str = ""):
        super().__init__(message)
        self.message, self.remedy, self.argument = shorten_message(str(message)), remedy, argument

    def __str__(self) -> str:
        return self.explain()

    def explain(self, remedies: Mapping[str, str] | None = None) -> str:
        """Return the message with a remedy: the one in `remedies` for `argument`, or else the error's own."""
        remedy = (remedies or {}).get(self.argument, self.remedy)
        if not remedy:
            return self.message
        if self.message.endswith("?"):  # "did you mean ...?"
            return f"{self.message} {remedy[0].upper()}{remedy[1:]}"
        return f"{self.message}; {remedy}"


class StorageError(InputError, OSError):
    """A file or folder that cannot be written, for example because the disk is full; what it held before is intact."""


class MissingExtraError(DuonlpError, ImportError):
    """A feature whose optional dependency is not installed."""


class NonFiniteLossError(DuonlpError, ArithmeticError):
    """A training run whose loss became NaN or infinite."""


class NonFiniteOutputError(DuonlpError, ArithmeticError):
    """An output of a model that is NaN or infinite.

    Attributes:
        where: The input for which it is, such as "prompt 3".
        output: Name of the output.
        row: Index of the input in its batch.
    """

    def __init__(self, where: str, output: str, row: int = 0):
        super().__init__(where, output, row)
        self.where, self.output, self.row = where, output, row

    def __str__(self) -> str:
        return (
            f"{self.where}: the model's {self.output} are not finite (NaN or infinity); check its weights, and if it computes in "
            "float16 or bfloat16, load it with dtype='float32'"
        )


class CheckpointWarning(UserWarning):
    """A checkpoint's tensors contradict its config.json, or are ignored although they are not what the model computes."""


class NewHeadWarning(UserWarning):
    """A checkpoint lacks the requested head, which therefore starts from random values."""
