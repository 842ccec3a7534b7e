"""JSON that every parser reads."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from duonlp.util.json_text import to_json


def test_numbers_that_json_lacks_are_null():
    value = {"a": math.nan, "b": [1.5, -math.inf, (np.float32("inf"), 2)], "c": np.array([1.0, np.nan]), math.inf: 1}
    text = to_json(value)
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"a": None, "b": [1.5, None, [None, 2]], "c": [1.0, None], "inf": 1}


def test_other_values_are_as_from_json():
    value = {"ä": [1, 2.5, None, True], "path": Path("a/b"), "n": np.int64(3)}
    assert to_json(value, indent=2) == json.dumps(
        {"ä": [1, 2.5, None, True], "path": "a/b", "n": 3}, indent=2, ensure_ascii=False
    )
    assert json.loads(to_json(["half \ud83d"])) == ["half \ud83d"]
    assert to_json(["half \ud83d"]).isascii()
    with pytest.raises(TypeError, match="object is not JSON serializable"):
        to_json(object())
