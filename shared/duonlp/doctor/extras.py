"""Which extras of the distribution are installed."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

DISTRIBUTION = "duonlp"

FOR_DEVELOPERS = "test", "qa-test", "docs", "topology", "all"
"""Extras that nobody needs to run or train models."""


@dataclass(frozen=True)
class Extra:
    """An extra, such as "jax".

    Attributes:
        name: Its name.
        missing: Requirements that are not installed, or in another version.
    """

    name: str
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f'pip install "{DISTRIBUTION}[{self.name}]"'


def extras() -> list[Extra]:
    """Return the extras that users may want, with what each lacks; an empty list if the package was not installed by pip."""
    try:
        names = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []
    return [Extra(name, tuple(sorted(_missing(name, set())))) for name in names if name not in FOR_DEVELOPERS]


def _missing(extra: str, visited: set[str]) -> set[str]:
    """Return the unmet requirements of an extra and of those it includes."""
    from packaging.requirements import Requirement

    if extra in visited:
        return set()
    visited.add(extra)
    unmet: set[str] = set()
    for line in requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or "extra" not in str(requirement.marker):
            continue
        if not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == DISTRIBUTION:
            for other in requirement.extras:
                unmet |= _missing(other, visited)
        elif not _is_met(requirement.name, str(requirement.specifier)):
            unmet.add(f"{requirement.name}{requirement.specifier}")
    return unmet


def _is_met(name: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    # tensorflow and tensorflow-cpu install the same module.
    names = (name, "tensorflow", "tensorflow-cpu") if name in ("tensorflow", "tensorflow-cpu") else (name,)
    for candidate in names:
        try:
            if SpecifierSet(specifier).contains(version(candidate), prereleases=True):
                return True
        except PackageNotFoundError:
            continue
    return False
