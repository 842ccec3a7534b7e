"""What the settings of every kind of training have in common."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

from duonlp.errors import InputError
from duonlp.training.schedules import learning_rate_at
from duonlp.util.suggestions import unknown_setting


class Settings:
    """Mixin of frozen dataclasses that have ``learning_rate``, ``schedule``, ``warmup_share`` and ``final_share``.

    of_what: what they are the settings of, for messages.
    curve: the names of those that a run is resumed with unchanged; the others may change on the way.
    """

    of_what: ClassVar[str]
    curve: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From a mapping, such as a TOML table; raises InputError for a key that is no setting, with the nearest."""
        known = [f.name for f in fields(cls)]
        for key in settings:
            if key not in known:
                raise InputError(unknown_setting(key, known, cls.of_what))
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, for JSON."""
        return asdict(self)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when `progress`, a share from 0 to 1, of the run is done."""
        return learning_rate_at(
            progress, schedule=self.schedule, peak=self.learning_rate, warmup_share=self.warmup_share,
            final_share=self.final_share,
        )  # fmt: skip

    def check_resumable(self, stored: Mapping[str, Any]) -> None:
        """Raises InputError where this run would not continue the curve of the one whose settings were stored."""
        changed = [name for name in self.curve if name in stored and stored[name] != getattr(self, name)]
        if changed:
            was = ", ".join(f"{name}={stored[name]!r} (now {getattr(self, name)!r})" for name in changed)
            raise InputError(
                f"the run to resume was started with {was}; use the same settings, or another folder for a new run"
            )
