"""A command's settings from a TOML file, its flags, and ``--option KEY=VALUE``: merged, checked, made a dataclass.

    settings = settings_from(
        FinetuneSettings, config, {"model": model or None, "fit.epochs": epochs}, option or [], what="duonlp finetune"
    )

The later wins: the dataclass's defaults, the TOML file, ``--option``, flags. Keys are paths (``fit.learning_rate``), in TOML
tables (``[fit]``). Paths of files in a TOML file are relative to the working directory, as those of flags are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from duonlp.cli.common import parsed_options
from duonlp.training.settings_file import build, read_toml, set_path

T = TypeVar("T")


def settings_from(
    cls: type[T], config: str = "", flags: Mapping[str, Any] | None = None, options: Sequence[str] = (), *, what: str
) -> T:
    """The settings of a run.

    Args:
        cls: a dataclass, whose fields may be dataclasses themselves, such as a FitConfig.
        config: a TOML file; "" for none.
        flags: values by path; one that is None was not given and is left out.
        options: texts KEY=VALUE, of KEY a path and VALUE JSON or text.
        what: the settings are of, for messages, such as "duonlp finetune".

    Raises:
        InputError: a file that cannot be read or is no TOML, a key that is no setting (the nearest is named), a value of the
            wrong kind, or one that is not allowed.
    """
    return build(cls, merged(config, flags, options), what)


def merged(config: str = "", flags: Mapping[str, Any] | None = None, options: Sequence[str] = ()) -> dict[str, Any]:
    """The same as nested dicts, not checked yet."""
    table = read_toml(config) if config else {}
    for path, value in parsed_options(options, paths=True).items():
        set_path(table, path, value)
    for path, value in (flags or {}).items():
        if value is not None:
            set_path(table, path, value)
    return table
