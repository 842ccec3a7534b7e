"""Base class of the training settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, Self

from duonlp.errors import InputError
from duonlp.training.schedules import learning_rate_at
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json
from duonlp.util.suggestions import unknown_setting


class Scheduled(Protocol):
    """Settings of a learning rate, as :func:`duonlp.training.learning_rate_at` takes them."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_share(self) -> float: ...
    @property
    def final_share(self) -> float: ...


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses with the fields of :class:`Scheduled`.

    Attributes:
        settings_for: What is being configured, for error messages.
        fixed_on_resume: Names of the settings that must not change when a run is resumed.
    """

    settings_for: ClassVar[str]
    fixed_on_resume: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from a mapping, such as a TOML table; raise InputError for an unknown key."""
        names = [f.name for f in fields(cls)]
        for key in settings:
            if key not in names:
                raise InputError(unknown_setting(key, names, cls.settings_for))
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-compatible values."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(self).items()}

    def learning_rate_at(self: Scheduled, progress: float) -> float:
        """Return the learning rate at `progress`, the share of the run that is done, in [0, 1]."""
        return learning_rate_at(
            progress, schedule=self.schedule, peak=self.learning_rate, warmup_share=self.warmup_share,
            final_share=self.final_share,
        )  # fmt: skip

    def check_effects(self, unused: Mapping[str, str]) -> None:
        """Raise InputError for a setting that was changed although it has no effect.

        Args:
            unused: Settings without effect, each with the reason.
        """
        defaults = {f.name: f.default for f in fields(self)}
        for name, reason in unused.items():
            if getattr(self, name) not in (defaults[name], 0, None):  # which turn something off that is off
                raise InputError(f"{name} is {getattr(self, name)}, which has no effect with {reason}; omit it")

    def check_resumable(self, stored: Mapping[str, Any]) -> None:
        """Raise InputError if resuming would change a setting in `fixed_on_resume`.

        Args:
            stored: Settings the run was started with, as :meth:`to_dict` returned them.
        """
        stored, now = (parse_json(to_json(settings)) for settings in (dict(stored), self.to_dict()))  # tuples as lists
        changed = [name for name in self.fixed_on_resume if name in stored and stored[name] != now[name]]
        if changed:
            differences = ", ".join(f"{name}={stored[name]!r} (now {now[name]!r})" for name in changed)
            raise InputError(
                f"the run to resume was started with {differences}; use the same settings, or another folder for a new run"
            )
