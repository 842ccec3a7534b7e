"""Documents: ids, and what cannot be one."""

import datetime

import pytest

from duonlp.errors import InputError
from duonlp.retrieval import Document

ITSELF: dict = {}
ITSELF["itself"] = ITSELF


def test_ids_depend_on_content_and_meta_only():
    document = Document("A text.", {"page": 1, "item": "a"})
    assert document.id == Document("A text.", {"item": "a", "page": 1}, score=0.5).id
    assert len({document.id, Document("A text.").id, Document("Another text.", {"page": 1, "item": "a"}).id}) == 3
    assert Document("A text.", id="own").id == "own"


@pytest.mark.parametrize(
    ("content", "meta", "words"),
    [
        (3, {}, "content is a int"),
        ("A text.", [1], "expected a dict"),
        ("A text.", {1: 2}, "names as keys"),
        ("A text.", {"date": datetime.date(2026, 1, 2)}, "datetime.date.* which JSON cannot hold"),
        ("A text.", ITSELF, "which JSON cannot hold"),
    ],
)
def test_invalid_documents_are_refused(content, meta, words):
    with pytest.raises(InputError, match=words):
        Document(content, meta)


def test_an_id_that_is_no_text_is_refused():
    with pytest.raises(InputError, match=r"id is 5 \(int\); expected a text"):
        Document("A text.", id=5)
