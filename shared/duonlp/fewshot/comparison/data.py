"""The texts of a comparison: one test set and one validation set for all methods, and nested training slices."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.labelled.preparation import prepare_labels, read_unlabelled_texts
from duonlp.data.labelled.splits import indicators, nested_slices, stratified_split
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData
from duonlp.fewshot.comparison.settings import ComparisonSettings
from duonlp.fewshot.descriptions import label_texts, read_descriptions, with_descriptions
from duonlp.util.files import may_read, write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object

SPLIT = "split.json"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ComparisonData:
    """The texts of a comparison.

    Attributes:
        train: Labeled texts to take slices of.
        validation: Labeled texts for thresholds, and for what methods tune themselves.
        test: Labeled texts to score.
        unlabelled: Texts without labels, those of `train` among them, which is the same for every slice.
        report: Report of preparing the data.
        descriptions: Descriptions of labels that are added to the training texts, by name.
        copies: How often each of them is added.
    """

    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    unlabelled: tuple[str, ...]
    report: Mapping[str, Any]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    copies: int = 1

    def few(self, train: LabelledTexts) -> FewShotData:
        """Return what a method may learn from, with a slice of the training texts."""
        described = with_descriptions(train, self.descriptions, self.copies) if self.descriptions else train
        return FewShotData(described, self.validation, self.unlabelled)

    def slices(self, settings: ComparisonSettings, seed: int) -> dict[int | str, LabelledTexts]:
        """Return the training texts of each size; each slice is part of all larger ones.

        Raises:
            InputError: A size is larger than the data.
        """
        if not settings.per_label:
            return dict(zip(settings.sizes, nested_slices(self.train, settings.sizes, seed), strict=True))
        return dict(zip(settings.per_label, slices_per_label(self.train, settings.per_label, seed), strict=True))

    def describe(self) -> dict[str, Any]:
        """Return the split as JSON-compatible values: label names, ids and hashes of the texts and labels of each part."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            "label_names": list(self.train.label_names),
            "multi_label": self.train.multi_label,
            "ids": {name: list(texts.ids) for name, texts in parts.items()},
            "sha256": {name: _fingerprint(texts) for name, texts in parts.items()}
            | {"unlabelled": hashlib.sha256(to_json(list(self.unlabelled)).encode()).hexdigest()}
            | ({"description": self._hash_descriptions()} if self.descriptions else {}),
        }

    def _hash_descriptions(self) -> str:
        return hashlib.sha256(to_json([sorted(self.descriptions.items()), self.copies]).encode()).hexdigest()

    def counts(self) -> dict[str, Any]:
        """Return the number of texts of each part, and of each label in it."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            "texts": {name: len(texts) for name, texts in parts.items()} | {"unlabelled": len(self.unlabelled)},
            "labels": {name: texts.counts() for name, texts in parts.items()},
        }


def prepare(settings: ComparisonSettings) -> ComparisonData:
    """Read the labeled and the unlabeled texts, and split off those to validate and to test on.

    Raises:
        InputError: The data cannot be read, or is too small for the split.
    """
    options: dict[str, Any] = {
        "config": settings.config, "text_column": settings.text_column, "text_template": settings.text_template,
        "label_column": settings.label_column, "label_map": settings.label_map,
        "label_separator": settings.label_separator, "class_names": settings.class_names,
        "column_names": settings.column_names, "encoding": settings.encoding, "quoting": settings.quoting,
    }  # fmt: skip
    prepared = prepare_labels(settings.data, settings.train_split, most_frequent=settings.labels, **options)
    labelled = prepared.labelled
    _check_texts(labelled)
    own_test = settings.test_data is not None or settings.test_split is not None
    sizes = [_share("validation", settings.validation, len(labelled))]
    if not own_test:
        sizes.append(_share("test", settings.test, len(labelled)))
    if sum(sizes) >= 1:
        raise InputError(
            f"validation and test take {sum(sizes):.0%} of the {len(labelled)} labeled texts; leave some to train on"
        )
    parts = stratified_split(labelled, [1 - sum(sizes), *sizes], settings.split_seed)
    if own_test:
        test = prepare_labels(
            settings.test_data or settings.data, settings.test_split, label_names=labelled.label_names, **options
        ).labelled
        _check_texts(test)
        seen = set(labelled.texts)
        rows = [row for row, text in enumerate(test.texts) if text not in seen]
        parts.append(test.take(rows))
        if not rows:
            raise InputError("every test text is among the training texts; give others to test on")
    train, validation, test = parts
    unlabelled = [str(text) for text in prepared.unlabelled]
    if settings.unlabelled is not None:
        reading = ("config", "text_column", "text_template", "column_names", "encoding", "quoting")
        further = read_unlabelled_texts(settings.unlabelled, **{name: options[name] for name in reading})
        unlabelled += [str(text) for text in further]
    kept_out = {*validation.texts, *test.texts}
    pool = (text for text in [*unlabelled, *map(str, train.texts)] if text not in kept_out)
    descriptions = {} if settings.descriptions is None else read_descriptions(settings.descriptions)
    label_texts(labelled.label_names, descriptions)
    return ComparisonData(
        train, validation, test, tuple(dict.fromkeys(pool)), prepared.report.to_dict(), descriptions,
        settings.description_copies,
    )  # fmt: skip


def slices_per_label(texts: LabelledTexts, sizes: Sequence[int], seed: int) -> list[LabelledTexts]:
    """Return slices in which every label has at least so many texts, each slice within all larger ones.

    Labels are served from the rarest on, in a random order of their texts; a text with several labels counts for all of them.

    Args:
        texts: Texts with one or several labels each.
        sizes: Number of texts of each label.
        seed: Seed of the order.

    Raises:
        InputError: A label has fewer texts.
    """
    labels, order = indicators(texts).astype(bool), np.random.default_rng(seed).permutation(len(texts))
    counts = labels.sum(0)
    for size in sizes:
        if (counts < size).any():
            rarest = int(counts.argmin())
            raise InputError(
                f"{size} texts of each label are wanted, but {texts.label_names[rarest]!r} has {int(counts[rarest])}; give a "
                "smaller number or fewer labels"
            )
    chosen: list[int] = []
    slices = {}
    for size in sorted(set(sizes)):
        for label in np.argsort(counts, kind="stable"):
            missing = size - int(labels[chosen, label].sum()) if chosen else size
            candidates = [int(row) for row in order if labels[row, label] and row not in set(chosen)]
            chosen += candidates[: max(missing, 0)]
        slices[size] = texts.take(sorted(chosen))
    return [slices[size] for size in sizes]


def verify_split(folder: Path, data: ComparisonData) -> None:
    """Write split.json, or check that the split is the one that the folder has.

    Raises:
        InputError: It is another, since the data or the settings of the split have changed.
    """
    file, split = folder / SPLIT, data.describe()
    if not may_read(file):
        write_text(file, to_json(split, indent=1) + "\n")
        return
    stored = read_json_object(file, advice="give another output folder")
    for name, what in (("label_names", "labels"), ("multi_label", "number of labels per text")):
        if stored.get(name) != split[name]:
            raise InputError(
                f"{file} has other {what} ({_shortened(stored.get(name))}, not {_shortened(split[name])}); use the same data and "
                "settings, or another output"
            )
    for part in {**stored.get("sha256", {}), **split["sha256"]}:
        if stored.get("sha256", {}).get(part) != split["sha256"].get(part):
            raise InputError(
                f"{file} has other {part} texts; all methods must be compared on the same split, so use the same data and "
                "settings, or another output"
            )


def _fingerprint(texts: LabelledTexts) -> str:
    digest = hashlib.sha256(to_json([texts.ids, texts.texts]).encode())
    digest.update(np.ascontiguousarray(texts.labels).tobytes())
    return digest.hexdigest()


def _share(name: str, value: float, count: int) -> float:
    if value >= count:
        raise InputError(f"{name} is {value:g}, but there are {count} labeled texts; give fewer, or a share")
    return value / count if value >= 1 else value


def _check_texts(texts: LabelledTexts) -> None:
    if any(not isinstance(text, str) for text in texts.texts):
        raise InputError("the texts are pairs; name one text column, or give a text template")


def _shortened(value: Any) -> str:
    listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return listed if len(listed) < 100 else f"{listed[:97]}..."
