"""Rename, merge and drop labels by a map, and read such maps and lists of label names from files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from duonlp.data.labelled.labels import meaning_of
from duonlp.errors import InputError
from duonlp.util.reading import is_unicode, parse_json, parse_toml, read_text_file

OTHERS = "*"
"""Key of a map that stands for all labels without a key of their own."""


@dataclass(frozen=True)
class LabelMap:
    """New names of labels.

    Attributes:
        names: New name of each label, None to drop it. Keys are what `meaning_of` makes of the old names.
        keys: The old names as given, by the keys of `names`.
        others: Whether labels that `names` lacks are dropped or, if it is a text, what they are renamed to. Otherwise they
            stay.
    """

    names: Mapping[str | int, str | None]
    keys: Mapping[str | int, str]
    others: bool | str = False

    def new_name(self, label: str) -> str | None:
        """Return the new name of a label, or None if it is dropped."""
        meaning = meaning_of(label)
        if meaning in self.names:
            return self.names[meaning]
        if isinstance(self.others, str):
            return self.others
        return None if self.others else label

    def of_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the new names of these labels, each once, in the order of the old ones."""
        new_names = (self.new_name(name) for name in names)
        return tuple(dict.fromkeys(name for name in new_names if name is not None))


def read_label_map(source: Mapping[Any, str | None] | str | Path) -> LabelMap:
    """Check a map of labels, or read it from a file.

    Args:
        source: {old name: new name}, or a .json or .toml file that holds such an object or table. Several old names may have the
            same new name. None or "" drops a label. The key "*" stands for all labels without a key of their own, which
            otherwise keep their names.

    Raises:
        InputError: The file cannot be read, is another kind of file, or a name is not text.
    """
    if isinstance(source, (str, Path)):
        given, where = _read_map(Path(os.path.expanduser(source))), repr(str(source))
    else:
        given, where = source, "label_map"
    if not isinstance(given, Mapping):
        raise InputError(f"label_map is {given!r}; give {{old name: new name, or None to drop it}} or a file with it")
    names: dict[str | int, str | None] = {}
    keys: dict[str | int, str] = {}
    others: bool | str = False
    for old, new in given.items():
        if isinstance(old, bool) or not isinstance(old, (str, int)) or not str(old).strip():
            raise InputError(f"{where} has the key {old!r}; keys are the names of labels")
        if not (new is None or isinstance(new, str)):
            raise InputError(f"{where} maps {old!r} to {new!r}; give the new name as a text, or null to drop the label")
        name = (new or "").strip() or None
        if not all(is_unicode(text) for text in (str(old), name or "")):
            raise InputError(f"{where} maps {old!r} to {new!r}, which has an unpaired surrogate; give valid Unicode")
        if old == OTHERS:
            others = name or True
            continue
        meaning = meaning_of(old if isinstance(old, int) else old.strip())
        if names.get(meaning, name) != name:
            raise InputError(
                f"{where} maps {keys[meaning]!r} and {str(old)!r}, which are the same label, to different names; keep one of them"
            )
        names[meaning], keys[meaning] = name, str(old)
    if not given:
        raise InputError(f"{where} is empty; map at least one label, or leave it out")
    return LabelMap(names, keys, others)


def _read_map(file: Path) -> Mapping[str, Any]:
    parsers = {".json": partial(parse_json, unique=True), ".toml": parse_toml}
    parser = parsers.get(file.suffix.lower())
    if parser is None:
        raise InputError(f"label_map is the file {str(file)!r}; give a .json or .toml file of old and new names")
    try:
        return parser(read_text_file(file, f"the label map {str(file)!r}", "give a readable .json or .toml file"))
    except ValueError as error:
        raise InputError(f"the label map {str(file)!r} is invalid: {error}; fix it") from error


def names_from_file(source: str | Path) -> tuple[str, ...]:
    """Return the label names in a UTF-8 file of text, one on each line.

    Raises:
        InputError: The file cannot be read, is empty, or has an empty line between names.
    """
    path = Path(os.path.expanduser(source))
    text = read_text_file(
        path, f"the label names {str(source)!r}", "give a file with the name of one label on each line"
    )
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise InputError(
            f"{str(source)!r} has an empty line {names.index('') + 1}; give the name of one label on each line, in the order of "
            "their numbers"
        )
    return tuple(names)
