"""Reading JSON and TOML: whatever a file contains, the error is one of duonlp's and one line."""

import pytest

from duonlp.errors import CheckpointError, InputError
from duonlp.util.reading import parse_json, parse_toml, read_json, read_json_object, read_toml

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"), (b"{", "Expecting property name"), (DEEP.encode(), "nested"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 levels deep"), (b"9" * 5000, "limit"), (b'"\xff"', "not UTF-8"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"), (bytes(1000), "Expecting value"),
    ],
)  # fmt: skip
def test_invalid_json(tmp_path, content, message):
    file = tmp_path / "f.json"
    file.write_bytes(content)
    for error in (InputError, CheckpointError):
        with pytest.raises(error, match=r"f\.json'? is not valid JSON: ") as raised:
            read_json(file, error=error, advice="save it again")
        assert message in str(raised.value) and str(raised.value).endswith("save it again")
        assert "\n" not in str(raised.value)


def test_valid_json(tmp_path):
    file = tmp_path / "f.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, null, "\xc3\xa9"]}')
    assert read_json_object(file) == {"a": [1, None, "é"]}
    assert parse_json("[" * 100 + "]" * 100) and parse_json('{"a": 1, "a": 2}') == {"a": 2}
    file.write_text("[1]")
    with pytest.raises(InputError, match="holds a list; expected a JSON object"):
        read_json_object(file)
    for missing in (tmp_path / "none.json", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot read"):
            read_json(missing)


@pytest.mark.parametrize(
    "content", ["a = " + DEEP, "a = " + "9" * 5000, "a", "a = 1\na = 2", ".".join("a" * 200) + " = 1"]
)
def test_invalid_toml(tmp_path, content):
    file = tmp_path / "f.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"f\.toml' is not valid TOML: "):
        read_toml(file)
    with pytest.raises(ValueError, match=r"."):
        parse_toml(content)


def test_toml_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "f.toml"
    file.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(file) == {"a": 1}
