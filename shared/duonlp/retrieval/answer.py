"""An answer: a span of a document, or none."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Ranges of Chinese, Japanese and Korean characters, which are words of their own: no spaces are between them."""

_BREAK = re.compile(rf"[\s{CJK}]")


@dataclass(frozen=True)
class Answer:
    """An answer to a question, found in a document; or the statement that the documents read have none.

    Attributes:
        answer: Its text, ``document.content[start:end]``; "" for no answer.
        score: Probability of the answer within its document, between 0 and 1. Not comparable across documents.
        logit: Start logit + end logit, comparable across documents.
        null_gap: Logit of no answer minus that of the document's best answer; above 0, the model prefers no answer there. Of the
            answer "", the smallest gap of the documents.
        document_id: Id of its document; None for no answer.
        start: First character in the document.
        end: Character after the last one in the document.
        context: Part of the document around the answer, cut between words.
        context_start: First character of `context` in the document.
        meta: Meta of its document.
    """

    answer: str
    score: float
    logit: float
    null_gap: float
    document_id: str | None
    start: int = 0
    end: int = 0
    context: str = ""
    context_start: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def is_null(self) -> bool:
        """Whether this is "no answer"."""
        return self.document_id is None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict."""
        return asdict(self)


def context_around(content: str, start: int, end: int, size: int) -> tuple[int, int]:
    """Return the character range of the context of a span: about `size` characters, whole words, the span included.

    The span is in the middle unless the document begins or ends near it.

    Args:
        content: The document.
        start: First character of the span.
        end: Character after its last one.
        size: Number of characters; a longer span is returned alone.
    """
    room = max(0, size - (end - start))
    first = max(0, min(start - room // 2, len(content) - size))
    last = min(len(content), max(end + room - room // 2, size))
    first, last = min(first, start), max(last, end)
    while 0 < first < start and not _BREAK.search(content, first - 1, first + 1):  # leave out a word that is cut
        first += 1
    while end < last < len(content) and not _BREAK.search(content, last - 1, last + 1):
        last -= 1
    while first < start and content[first].isspace():
        first += 1
    while end < last and content[last - 1].isspace():
        last -= 1
    return first, last
