"""What a comparison finds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Comparison of one output of one framework with the reference.

    Attributes:
        output: Name of the output.
        framework: "tf", "jax" or "torch".
        reference: Framework it is compared with.
        shape: Shape of the output.
        difference: Largest absolute difference over real tokens; infinite if either lacks the output or
            shapes differ.
        relative: ``difference`` divided by the largest magnitude in the reference.
        ok: Whether ``relative`` is within the tolerance.
    """

    output: str
    framework: str
    reference: str
    shape: tuple[int, ...]
    difference: float
    relative: float
    ok: bool


@dataclass
class Report:
    """Result of :func:`compare`.

    Attributes:
        checkpoint: Folder or Hub id.
        model_type: Model family.
        head: Head that was run.
        tolerance: Largest relative difference allowed.
        rows: One comparison per framework and output.
        generated: Framework to the ids generated after the prompt.
        generated_together: Framework to the ids generated after two prompts, the second one shorter and padded.
        load_seconds: Framework to the time to load the model.
        forward_seconds: Framework to the time of the second forward pass, after compilation.
        skipped: Framework to the reason why it was skipped.
        reference: What the outputs are compared with, in words.
    """

    checkpoint: str
    model_type: str
    head: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    generated: dict[str, list[int]] = field(default_factory=dict)
    generated_together: dict[str, list[list[int]]] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    forward_seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    reference: str = ""

    @property
    def same_ids(self) -> bool | None:
        """Whether every framework generated the same ids; None if nothing was generated."""
        if not self.generated:
            return None
        by_framework: tuple[Mapping[str, list], ...] = (self.generated, self.generated_together)
        return all(ids == next(iter(generated.values())) for generated in by_framework for ids in generated.values())

    @property
    def ok(self) -> bool:
        """Whether there is at least one comparison, all are within the tolerance, and all generated ids agree."""
        return bool(self.rows) and all(row.ok for row in self.rows) and self.same_ids is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self) | {"same_ids": self.same_ids, "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.checkpoint} ({self.model_type}, {self.head}), tolerance {self.tolerance:g}:"]
        lines += [f"  reference: {self.reference}"] if self.reference else []
        lines += [
            f"  {row.output} {list(row.shape)}: {row.framework} - {row.reference} = {row.difference:.2e}"
            f" (relative {row.relative:.2e}) {'ok' if row.ok else 'EXCEEDS TOLERANCE'}"
            for row in self.rows
        ]
        for framework, ids in self.generated.items():
            lines.append(f"  {framework} generated {ids}, and {self.generated_together[framework]} in a batch of two")
        lines += [f"  {framework} was skipped: {reason}" for framework, reason in self.skipped.items()]
        return "\n".join(lines)
