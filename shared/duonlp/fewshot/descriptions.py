"""Descriptions of labels: what zero-shot methods compare texts with, and training texts that cost no labeling."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.tasks.base import check_int, check_text, describe
from duonlp.tasks.zero_shot_classification import check_template
from duonlp.util.reading import read_json_object, read_toml
from duonlp.util.suggestions import nearest


def read_descriptions(source: Mapping[str, str] | str | Path) -> dict[str, str]:
    """Return descriptions of labels by name.

    Args:
        source: The descriptions, or a .json or .toml file with an object or table of them.

    Raises:
        InputError: The file cannot be read, or is another kind of file.
    """
    if isinstance(source, Mapping):
        return dict(source)
    file = Path(os.path.expanduser(source))
    if file.suffix.lower() == ".toml":
        return dict(read_toml(file))
    if file.suffix.lower() == ".json":
        return dict(read_json_object(file, advice="write an object of label names and descriptions"))
    raise InputError(
        f"descriptions is the file {str(source)!r}; give a .json or .toml file of label names and descriptions"
    )


def with_descriptions(texts: LabelledTexts, descriptions: Mapping[str, str], copies: int = 2) -> LabelledTexts:
    """Return the texts and, as further training texts, the descriptions of labels.

    So that every label has a text even where few are labeled.

    Args:
        texts: Labeled texts, or none.
        descriptions: Description of some or all labels by name.
        copies: How often each is added, its weight.

    Raises:
        InputError: A description is of no label or empty, two labels have the same one, or copies is not positive.
    """
    check_int("copies", copies, minimum=1)
    names = texts.label_names
    label_texts(names, descriptions)
    described = [name for name in names if name in descriptions]
    classes = np.array([names.index(name) for name in described for _ in range(copies)], np.int32)
    labels = np.eye(len(names), dtype=np.float32)[classes] if texts.multi_label else classes
    ids = [f"description:{name}:{copy}" for name in described for copy in range(copies)]
    added = [descriptions[name] for name in described for _ in range(copies)]
    return LabelledTexts(texts.texts + added, np.concatenate([texts.labels, labels]), names, texts.ids + ids)


def label_texts(label_names: Sequence[str], descriptions: Mapping[str, str] | None, template: str = "{}") -> list[str]:
    """Return the text that stands for each label: its description, or else its name, put into a template.

    Args:
        label_names: Names of the labels.
        descriptions: Descriptions by name; a label without one is described by its name.
        template: Text with "{}" in place of the description.

    Raises:
        InputError: A description is of no label or empty, two labels have the same text, or the template has no "{}".
    """
    check_template(template)
    descriptions = {} if descriptions is None else descriptions
    if not isinstance(descriptions, Mapping):
        raise InputError(f"descriptions is {describe(descriptions)}; pass a dict from the names of labels to texts")
    for name, description in descriptions.items():
        if name not in label_names:
            known = [str(other) for other in label_names]
            raise InputError(f"descriptions has {name!r}, which is no label{nearest(str(name), known)}; drop it")
        check_text(description, f"the description of {name!r}")
    texts = [template.format(descriptions.get(name, name)) for name in label_names]
    for i, described in enumerate(texts):
        if described in texts[:i]:
            raise InputError(
                f"the labels {label_names[texts.index(described)]!r} and {label_names[i]!r} are both described as "
                f"{described!r}; give them different descriptions"
            )
    return texts
