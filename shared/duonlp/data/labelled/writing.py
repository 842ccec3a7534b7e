"""Write labeled and unlabeled texts as JSON lines that `read_labelled_texts` and other tools read."""

import gzip
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.labelled.records import Text
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError
from duonlp.util.files import may_read, replacing, storage_errors, unfinished, write_text
from duonlp.util.json_text import to_json

UNLABELLED_FILE, LABELS_FILE = "unlabeled.jsonl", "labels.txt"


def write_labelled_texts(texts: LabelledTexts, file: str | os.PathLike) -> None:
    """Write texts with their labels, an object on each line: "id", "text", and "label" or, of several, a list "labels".

    A pair of texts is written as "text" and "text_pair"; read it with ``text_column="text,text_pair"``.

    Args:
        texts: The texts.
        file: A .jsonl or .jsonl.gz file.

    Raises:
        InputError: The file has another ending.
        StorageError: It cannot be written.
    """
    names = texts.label_names
    if texts.multi_label:
        labels: list[dict[str, Any]] = [{"labels": [names[i] for i in np.flatnonzero(row)]} for row in texts.labels]
    else:
        labels = [{"label": names[label]} for label in texts.labels]
    rows = zip(texts.ids, texts.texts, labels, strict=True)
    _write_rows(({"id": id, **_columns(text), **label} for id, text, label in rows), Path(file))


def write_unlabelled_texts(texts: Sequence[Text], file: str | os.PathLike, ids: Sequence[str] = ()) -> None:
    """Write texts without labels, an object on each line: "id", if there are ids, and "text".

    Args:
        texts: The texts.
        file: A .jsonl or .jsonl.gz file.
        ids: Name of each text in its data set.

    Raises:
        InputError: The file has another ending, or there is another number of ids.
        StorageError: It cannot be written.
    """
    if ids and len(ids) != len(texts):
        raise InputError(f"there are {len(ids)} ids for {len(texts)} texts; give one id per text, or none")
    rows = ({**({"id": ids[row]} if ids else {}), **_columns(text)} for row, text in enumerate(texts))
    _write_rows(rows, Path(file))


def _columns(text: Text) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def _write_rows(rows: Iterable[Mapping[str, Any]], file: Path) -> None:
    name = file.name.lower()
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{str(file)!r} is not a .jsonl or .jsonl.gz file; give one that is")
    text = "".join(f"{to_json(row)}\n" for row in rows)
    if not name.endswith(".gz"):
        write_text(file, text)
        return
    with replacing(file) as stream:
        stream.write(gzip.compress(text.encode(), mtime=0))


def check_new_folder(folder: str | os.PathLike) -> None:
    """Raise InputError unless a folder is missing or empty."""
    path = Path(os.path.expanduser(folder))
    if not may_read(path):
        return
    if not path.is_dir():
        raise InputError(f"{str(folder)!r} is a file; give a folder")
    if any(path.iterdir()):
        raise InputError(f"the folder {str(folder)!r} is not empty; give a new one")


def write_label_folder(
    folder: str | os.PathLike,
    splits: Mapping[str, LabelledTexts],
    slices: Mapping[str, LabelledTexts] | None = None,
    unlabelled: Sequence[Text] = (),
    unlabelled_ids: Sequence[str] = (),
) -> list[str]:
    """Write splits, slices and unlabeled texts into a new folder, atomically.

    The folder has a file for each split, unlabeled.jsonl, labels.txt with the label names, and for each slice a folder
    slice-NAME whose train.jsonl is the slice; the other splits are there too. ``duonlp finetune --data`` takes any of these
    folders; where the training texts lack a label that others have, pass ``--class-names`` with labels.txt.

    Args:
        folder: The folder, missing or empty.
        splits: Texts by split: "train" and perhaps "validation" and "test".
        slices: Slices of the training texts by name.
        unlabelled: Texts without labels.
        unlabelled_ids: Their names in the data set.

    Returns:
        Paths of the files in the folder, relative to it.

    Raises:
        InputError: The folder has contents.
        StorageError: It cannot be written.
    """
    check_new_folder(folder)
    target = Path(os.path.expanduser(folder)).absolute()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(target, folder=True) as new:
            for split, texts in splits.items():
                write_labelled_texts(texts, new / f"{split}.jsonl")
            for name, texts in (slices or {}).items():
                own = new / f"slice-{name}"
                own.mkdir()
                write_labelled_texts(texts, own / "train.jsonl")
                for split in splits:
                    if split != "train":
                        shutil.copyfile(new / f"{split}.jsonl", own / f"{split}.jsonl")
            if unlabelled:
                write_unlabelled_texts(unlabelled, new / UNLABELLED_FILE, unlabelled_ids)
            names = next(iter(splits.values())).label_names
            if not any("\n" in name or "\r" in name for name in names):
                write_text(new / LABELS_FILE, "".join(f"{name}\n" for name in names))
            files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
            os.replace(new, target)
    return files
