"""InputError: a message, and a remedy that each caller words its own way."""

import pickle

import pytest

from duonlp.errors import InputError


@pytest.mark.parametrize(
    ("error", "python", "command_line"),
    [
        (InputError("a is 3"), "a is 3", "a is 3"),
        (InputError("a is 3", remedy="pass b", argument="b"), "a is 3; pass b", "a is 3; give --b"),
        (InputError("a is 3", argument="b"), "a is 3", "a is 3; give --b"),
        (InputError("a is 3", remedy="pass c", argument="c"), "a is 3; pass c", "a is 3; pass c"),
        (
            InputError("did you mean 4?", remedy="pass b", argument="b"),
            "did you mean 4? Pass b",
            "did you mean 4? Give --b",
        ),
    ],
)
def test_callers_word_the_remedy(error, python, command_line):
    assert str(error) == python
    assert error.explain({"b": "give --b"}) == command_line
    restored = pickle.loads(pickle.dumps(error))
    assert (str(restored), restored.argument) == (python, error.argument)
