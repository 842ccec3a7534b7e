"""Merge a command's settings from a TOML file, ``--option KEY=VALUE`` and flags into a checked dataclass.

    settings = settings_from(
        FinetuneSettings, config, {"model": model or None, "fit.epochs": epochs}, option or [], what="duonlp finetune"
    )

From weakest to strongest: the dataclass's defaults, the TOML file, ``--option``, flags. Keys are paths
(``fit.learning_rate``), in TOML tables (``[fit]``). Relative paths in a TOML file start at the working directory, like
those of flags.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from duonlp.cli.common import parsed_options

T = TypeVar("T")


def settings_from(
    cls: type[T], config: str = "", flags: Mapping[str, Any] | None = None, options: Sequence[str] = (), *, what: str
) -> T:
    """Build the settings of a run.

    Args:
        cls: A dataclass. Its fields may be dataclasses themselves, such as a FitConfig.
        config: A TOML file; "" for none.
        flags: Values by path; None means that the flag was not given.
        options: KEY=VALUE texts with a path as KEY and JSON or a string as VALUE.
        what: The command, for messages, such as "duonlp finetune".

    Raises:
        InputError: The file cannot be read or is not valid TOML, a key is unknown (the message names the nearest one), or a
            value has the wrong type or is not allowed.
    """
    from duonlp.training.settings_file import build

    return build(cls, merged(config, flags, options), what)


def merged(config: str = "", flags: Mapping[str, Any] | None = None, options: Sequence[str] = ()) -> dict[str, Any]:
    """Merge the same sources into nested dicts, without checking keys or values."""
    from duonlp.training.settings_file import read_toml, set_path

    table = read_toml(config) if config else {}
    for path, value in parsed_options(options, paths=True).items():
        set_path(table, path, value)
    for path, value in (flags or {}).items():
        if value is not None:
            set_path(table, path, value)
    return table
