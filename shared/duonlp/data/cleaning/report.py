"""What cleaning did to a corpus: how much came in, how much was dropped and why, how much was masked."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Dropped:
    """Documents dropped for one reason. examples: the first few, each a path and what was wrong with it."""

    documents: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class CleaningReport:
    """Counts that `read_documents` and `clean` fill in while documents stream through them.

    kept, kept_bytes: documents that came out, and their bytes as UTF-8, masks included.
    dropped: reason -> what was dropped for it. A document is dropped for the first reason that holds.
    masked: kind ("email", "key", "password") -> how many were replaced in the documents that were kept.
    masked_documents: documents with at least one of them.
    most_examples: how many examples of each reason are remembered.
    """

    kept: int = 0
    kept_bytes: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    masked_documents: int = 0
    most_examples: int = 5

    def keep(self, number_of_bytes: int, masked: dict[str, int]) -> None:
        """Counts a document that came out, and what was masked in it."""
        self.kept += 1
        self.kept_bytes += number_of_bytes
        self.masked_documents += bool(masked)
        for kind, count in masked.items():
            self.masked[kind] = self.masked.get(kind, 0) + count

    def drop(self, reason: str, example: str, number_of_bytes: int) -> None:
        """Counts a document that was dropped."""
        entry = self.dropped.setdefault(reason, Dropped())
        entry.documents += 1
        entry.bytes += number_of_bytes
        if len(entry.examples) < self.most_examples:
            entry.examples.append(example)

    @property
    def documents(self) -> int:
        """Documents that came in, those that could not be read among them."""
        return self.kept + sum(entry.documents for entry in self.dropped.values())

    @property
    def bytes(self) -> int:
        """Bytes that came in; of the documents that were kept, those that came out."""
        return self.kept_bytes + sum(entry.bytes for entry in self.dropped.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has; the reasons by how much they dropped."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "kept": {"documents": self.kept, "bytes": self.kept_bytes},
            "dropped": {
                reason: {"documents": entry.documents, "bytes": entry.bytes, "examples": list(entry.examples)}
                for reason, entry in self._by_size()
            },
            "masked": {"documents": self.masked_documents, **dict(sorted(self.masked.items()))},
        }

    def table(self):
        """Returns a `rich.table.Table`: a row a reason, the kept and the masked below."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", no_wrap=True)
        for column in ("documents", "share", "MB"):
            table.add_column(column, justify="right", no_wrap=True)
        # This column alone gives way on a narrow terminal: its cells, not the column, are kept on one line.
        table.add_column("for example", style="dim")
        for reason, entry in self._by_size():
            example = Text(entry.examples[0] if entry.examples else "", no_wrap=True, overflow="ellipsis")
            table.add_row(reason, *self._figures(entry.documents, entry.bytes), example)
        table.add_row("kept", *self._figures(self.kept, self.kept_bytes), "", style="bold")
        if self.masked_documents:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.masked.items()))
            share = f"{self.masked_documents / max(1, self.documents):.1%}"
            table.add_row(
                "masked in", f"{self.masked_documents:,}", share, "", Text(kinds, no_wrap=True, overflow="ellipsis")
            )
        return table

    def _by_size(self) -> list[tuple[str, Dropped]]:
        return sorted(self.dropped.items(), key=lambda item: (-item[1].documents, item[0]))

    def _figures(self, documents: int, number_of_bytes: int) -> tuple[str, str, str]:
        return f"{documents:,}", f"{documents / max(1, self.documents):.1%}", f"{number_of_bytes / 1e6:,.2f}"
