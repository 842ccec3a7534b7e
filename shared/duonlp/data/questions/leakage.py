"""Count what a split shares with the training split."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from duonlp.data.questions.questions import Questions
from duonlp.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Shared:
    """What two splits share of one kind.

    Attributes:
        count: Number of different ones in the other split.
        shared: Number of these that the training split has too.
        questions: Number of the other split's questions that these belong to.
        examples: The first few, in order.
    """

    count: int
    shared: int
    questions: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Leakage:
    """What a split shares with the training split. `rich.print` shows it as a table.

    Attributes:
        train: Name of the training split.
        other: Name of the other split.
        questions: Number of questions of the other split.
        kinds: Counts by kind: "ids", "titles", "contexts", "questions" and "questions on the same context".
    """

    train: str
    other: str
    questions: int
    kinds: Mapping[str, Shared]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)

    def table(self) -> "Table":
        """Return a rich table with a row per kind."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("also in the training split")
        for name in ("different", "shared", "share", "questions", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        for kind, counts in self.kinds.items():
            shares = (counts.shared / max(1, counts.count), counts.questions / self.questions)
            table.add_row(
                Text(kind), f"{counts.count:,}", f"{counts.shared:,}", f"{shares[0]:.1%}", f"{counts.questions:,}",
                f"{shares[1]:.1%}",
            )  # fmt: skip
        return table

    def __rich__(self) -> "Table":
        return self.table()


EXAMPLES = 5


def leakage(train: Questions, other: Questions) -> Leakage:
    """Count the ids, titles, contexts and questions of a split that also occur in the training split.

    Scores on questions whose contexts, or products, were trained on are too optimistic for new ones; :func:`folds` splits by
    them. Texts are compared without regard to case and spacing; empty titles are not compared.

    Args:
        train: The training split.
        other: The split to evaluate on.

    Raises:
        InputError: A split has no questions.
    """
    for name, split in (("train", train), ("other", other)):
        if not len(split):
            raise InputError(f"{name} has no questions; give at least one")
    kinds: dict[str, Shared] = {}
    keys_of_train, keys_of_other = _keys(train), _keys(other)
    for kind, keys in keys_of_other.items():
        known, counts = set(keys_of_train[kind]), dict.fromkeys(keys, 0)
        for key in keys:
            counts[key] += 1
        counts.pop("", None)
        shared = [key for key in counts if key in known]
        examples = tuple(" / ".join(key) if isinstance(key, tuple) else key for key in shared[:EXAMPLES])
        kinds[kind] = Shared(len(counts), len(shared), sum(counts[key] for key in shared), examples)
    return Leakage(train.name, other.name, len(other), kinds)


def _keys(questions: Questions) -> dict[str, list[Any]]:
    """Return what is compared of each question, by kind."""
    contexts: dict[str, str] = {}  # SQuAD has five questions per context
    for row in questions:
        if row["context"] not in contexts:
            contexts[row["context"]] = _plain(row["context"])
    texts = [_plain(row["question"]) for row in questions]
    return {
        "ids": [row["id"] for row in questions],
        "titles": [_plain(row.get("title") or "") for row in questions],
        "contexts": [contexts[row["context"]] for row in questions],
        "questions": texts,
        "questions on the same context": [
            (text, contexts[row["context"]]) for text, row in zip(texts, questions, strict=True)
        ],
    }


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
