"""Panics of Rust libraries, which are raised as a BaseException that ``except Exception`` does not catch."""

from collections.abc import Generator
from contextlib import contextmanager

from duonlp.errors import DuonlpError, InputError
from duonlp.util.reading import first_line


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic; each extension module has a class of its own for them."""
    return type(error).__name__ == "PanicException"


@contextmanager
def without_panics(message: str, error: type[DuonlpError] = InputError) -> Generator[None, None, None]:
    """Raise a panic of a Rust library as an error that users can handle.

    Args:
        message: What failed and what to do; the panic's own message follows.
        error: Class of the error.
    """
    try:
        yield
    except BaseException as panic:
        if not is_panic(panic):
            raise
        raise error(f"{message} ({first_line(panic)})") from None
