"""Settings from TOML and back, and invalid settings."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from duonlp.cli.settings import merged, settings_from
from duonlp.errors import InputError
from duonlp.training.settings_file import as_table, build, read_toml, replace_settings, to_toml, write_toml


@dataclass(frozen=True)
class Inner:
    """A nested table."""

    rate: float = 0.5
    limit: float | None = 1.0
    words: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rate < 0:
            raise InputError(f"rate is {self.rate}; it must be 0 or more")


@dataclass(frozen=True)
class Outer:
    """A table."""

    name: str
    count: int | None = None
    flag: bool = False
    every: int | str = "epoch"
    pairs: tuple[tuple[int, int], ...] | None = None
    file: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.one_of(
    st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), text, st.lists(st.integers(), max_size=3)
)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Outer,
        name=text, count=st.none() | st.integers(), flag=st.booleans(), every=st.integers() | text,
        pairs=st.none() | st.lists(st.tuples(st.integers(), st.integers()), max_size=3).map(tuple),
        file=st.none() | st.just(Path("a/b")), extra=st.dictionaries(text, values, max_size=3),
        inner=st.builds(
            Inner, rate=st.floats(0, 1e300), limit=st.none() | st.floats(allow_nan=False),
            words=st.lists(text, max_size=3).map(tuple),
        ),
    )
)  # fmt: skip
def test_round_trip(one):
    assert build(Outer, tomllib.loads(to_toml(one, "heading"))) == one
    assert build(Outer, as_table(one)) == one


def test_a_nested_table_is_completed_from_the_default():
    assert build(Outer, {"name": "a", "inner": {"limit": 2}}).inner == Inner(rate=0.25, limit=2.0)
    assert replace_settings(Outer("a"), {"inner.rate": 1}).inner == Inner(rate=1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "a run lacks name"),
        ({"name": "a", "nmae": "b"}, "'nmae' is not a setting of a run; .*did you mean 'name'"),
        ({"name": "a", "rate": 1}, "'rate' is not a setting of a run; it belongs to a table: inner.rate"),
        ({"name": "a", "inner": {"rat": 1}}, "'inner.rat' is not a setting.*did you mean 'inner.rate'"),
        ({"name": 3}, "name is 3; it must be a string"),
        ({"name": "a", "count": True}, "count is True; it must be an integer or none"),
        ({"name": "a", "count": 1.5}, "count is 1.5"),
        ({"name": "a", "flag": 1}, "flag is 1; it must be true or false"),
        ({"name": "a", "pairs": [[1]]}, "pairs has 1 values; it must have 2"),
        ({"name": "a", "inner": {"rate": "none"}}, "inner.rate is none; it must be a number"),
        ({"name": "a", "inner": {"rate": -1}}, "inner: rate is -1"),
        ({"name": "a", "inner": 3}, "inner is 3; it must be a table"),
    ],
)
def test_invalid_settings(table, message):
    with pytest.raises(InputError, match=message):
        build(Outer, table)


def test_later_sources_win_and_none_is_ignored(tmp_path):
    write_toml(tmp_path / "run.toml", Outer("file", count=1))
    assert read_toml(tmp_path / "run.toml")["name"] == "file" and not list(tmp_path.glob(".*"))
    settings = settings_from(
        Outer, str(tmp_path / "run.toml"), {"count": 3, "name": None}, ["count=2", "inner.rate=0.1", "extra.a=[1]"], what="x"
    )  # fmt: skip
    assert (settings.name, settings.count, settings.inner.rate, settings.extra) == ("file", 3, 0.1, {"a": [1]})
    with pytest.raises(InputError, match="name is 'file', which has no settings of its own"):
        merged(str(tmp_path / "run.toml"), {"name.first": 1})
