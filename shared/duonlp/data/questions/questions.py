"""Questions with contexts and answers, in the form that the `datasets` library has SQuAD in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(frozen=True)
class Questions(Sequence[Mapping[str, Any]]):
    """Questions on contexts. A row is a dict with the keys

    - "id": str, unique.
    - "title": str, the document or product, "" if unknown.
    - "question", "context": str.
    - "answers": {"text": list of str, "answer_start": list of int}, where ``context[start:start + len(text)] == text``; empty
      lists if the context does not answer the question. Equal answers of several annotators are kept.

    and any other columns of the data.

    Attributes:
        rows: The rows.
        name: Name of the data, for messages.
        dropped: Number of rows that were dropped, by reason.
    """

    rows: Sequence[Mapping[str, Any]]
    name: str = "questions"
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Questions": ...
    def __getitem__(self, index: int | slice) -> "Mapping[str, Any] | Questions":
        if isinstance(index, slice):
            return Questions(self.rows[index], self.name, self.dropped)
        return self.rows[index]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)
