"""Whether generated programs can run on this machine."""

from functools import cache

from duonlp.errors import InputError
from duonlp.evaluation import check_program, isolation_error


@cache
def refusal() -> str:
    """Return why no program can run, isolated or else with ``unsafe``, or "" if one can."""
    try:
        check_program("", seconds=30, unsafe=bool(isolation_error()))
    except InputError as error:
        return str(error)
    return ""
