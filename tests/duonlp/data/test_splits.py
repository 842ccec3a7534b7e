"""Writing the training and held-out files of a corpus."""

import pytest

from duonlp.data.cleaning.splits import write_split
from duonlp.data.reading.corpus import is_held_out
from duonlp.data.reading.documents import Document, read_documents
from duonlp.errors import InputError

DOCUMENTS = [Document(f"é = {i}\n", f"{i}.py", "o/r" if i % 2 else None, "MIT" if i % 3 else None) for i in range(100)]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_split_is_read_back(tmp_path, ending):
    files = write_split(iter(DOCUMENTS), tmp_path / "new", held_out=0.2, ending=ending)
    held_out = list(read_documents(files["held_out"]))
    assert held_out == [document for document in DOCUMENTS if is_held_out(document.name, 0.2)] and held_out
    assert list(read_documents(files["training"])) == [d for d in DOCUMENTS if not is_held_out(d.name, 0.2)]
    before = [file.read_bytes() for file in files.values()]
    write_split(DOCUMENTS, tmp_path / "new", held_out=0.2, ending=ending)
    assert [file.read_bytes() for file in files.values()] == before, "files are reproducible"
    assert sorted(tmp_path.glob("new/.*")) == []


def test_a_failed_split_keeps_existing_files(tmp_path):
    files = write_split(DOCUMENTS, tmp_path)
    before = [file.read_bytes() for file in files.values()]

    def failing_documents():
        yield from DOCUMENTS[:50]
        raise InputError("a corrupt line")

    with pytest.raises(InputError, match="a corrupt line"):
        write_split(failing_documents(), tmp_path)
    with pytest.raises(InputError, match="0 documents split into 0 for training"):
        write_split([], tmp_path)
    assert [file.read_bytes() for file in files.values()] == before
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


def test_arguments_are_checked_before_anything_is_read(tmp_path):
    def unread_documents():
        raise AssertionError
        yield

    for options, message in [({"held_out": 5}, "held_out is 5"), ({"ending": ".csv"}, r"'\.csv'.*\.jsonl\.zst")]:
        with pytest.raises(InputError, match=message):
            write_split(unread_documents(), tmp_path, **options)
