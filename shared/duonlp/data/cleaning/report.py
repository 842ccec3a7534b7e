"""Report of reading and cleaning a corpus: what was kept, dropped and masked, and why."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Dropped:
    """Documents dropped for one reason.

    Attributes:
        documents: Number of documents.
        bytes: Their size in bytes.
        examples: The first few, each a path and what was wrong with it.
    """

    documents: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class CleaningReport:
    """Counts that `read_documents` and `clean` update while documents stream through them.

    Attributes:
        kept: Number of documents kept.
        kept_bytes: Their size in bytes of UTF-8, after masking.
        dropped: Dropped documents by reason. A document counts for the first reason that applies.
        masked: Number of masks in kept documents by kind: "email", "key", "password".
        masked_documents: Number of kept documents with at least one mask.
        most_examples: Maximum number of examples stored per reason.
    """

    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    masked_documents: int = 0
    most_examples: int = 5

    def keep(self, byte_count: int, masked: dict[str, int]) -> None:
        """Count a kept document of `byte_count` bytes and its masks by kind."""
        self.kept += 1
        self.kept_bytes += byte_count
        self.masked_documents += bool(masked)
        for kind, count in masked.items():
            self.masked[kind] = self.masked.get(kind, 0) + count

    def drop(self, reason: str, example: str, byte_count: int) -> None:
        """Count a dropped document of `byte_count` bytes; `example` names it, and what is wrong with it."""
        entry = self.dropped.setdefault(reason, Dropped())
        entry.documents += 1
        entry.bytes += byte_count
        if len(entry.examples) < self.most_examples:
            entry.examples.append(example)

    @property
    def documents(self) -> int:
        """Number of documents read, including unreadable ones."""
        return self.kept + sum(entry.documents for entry in self.dropped.values())

    @property
    def bytes(self) -> int:
        """Bytes of all documents; kept documents count with their size after masking."""
        return self.kept_bytes + sum(entry.bytes for entry in self.dropped.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dict, with the most frequent reasons first."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "kept": {"documents": self.kept, "bytes": self.kept_bytes},
            "dropped": {
                reason: {"documents": entry.documents, "bytes": entry.bytes, "examples": list(entry.examples)}
                for reason, entry in self._by_frequency()
            },
            "masked": {"documents": self.masked_documents, **dict(sorted(self.masked.items()))},
        }

    def table(self) -> "Table":
        """Return a `rich.table.Table` with a row per reason, followed by kept and masked documents."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", no_wrap=True)
        for column in ("documents", "share", "MB"):
            table.add_column(column, justify="right", no_wrap=True)
        # The only column that shrinks on a narrow terminal: no_wrap is set on its cells instead of the column.
        table.add_column("for example", style="dim")
        for reason, entry in self._by_frequency():
            example = Text(entry.examples[0] if entry.examples else "", no_wrap=True, overflow="ellipsis")
            table.add_row(Text(reason), *self._format_counts(entry.documents, entry.bytes), example)
        table.add_row("kept", *self._format_counts(self.kept, self.kept_bytes), "", style="bold")
        if self.masked_documents:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.masked.items()))
            share = f"{self.masked_documents / max(1, self.documents):.1%}"
            table.add_row(
                "masked in", f"{self.masked_documents:,}", share, "", Text(kinds, no_wrap=True, overflow="ellipsis")
            )
        return table

    def _by_frequency(self) -> list[tuple[str, Dropped]]:
        return sorted(self.dropped.items(), key=lambda item: (-item[1].documents, item[0]))

    def _format_counts(self, documents: int, byte_count: int) -> tuple[str, str, str]:
        return f"{documents:,}", f"{documents / max(1, self.documents):.1%}", f"{byte_count / 1e6:,.2f}"
