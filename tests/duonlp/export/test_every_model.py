"""Export every family and head, with small random weights, to every format; each export is compared with its model."""

import importlib

import pytest

from duonlp.heads import HEADS
from duonlp.runs.export import FRAMEWORKS
from tests.cases import cases

MODELS = [case for case in cases() if "[" not in case.name]
WHOLE = [case for case in MODELS if HEADS[case.head].generates]
"""Models that generate text, which are also exported as one pass over whole texts."""


@pytest.mark.exports
@pytest.mark.parametrize("to", FRAMEWORKS)
@pytest.mark.parametrize(
    ("case", "cache"), [(case, True) for case in MODELS] + [(case, False) for case in WHOLE],
    ids=[case.name for case in MODELS] + [f"{case.name}-no-cache" for case in WHOLE],
)  # fmt: skip
def test_every_head_is_exported(case, cache, to, tmp_path):
    name = {"tf": "tfnlp", "jax": "jaxnlp"}[FRAMEWORKS[to]]
    engine, heads = importlib.import_module(name), importlib.import_module(f"{name}.heads").HEADS
    model = heads[case.head].from_pretrained(case.write(tmp_path / "model"))
    report = engine.export_model(model, tmp_path / "out", to, cache=cache)
    assert max(report["differences"].values()) <= (1e-4 if to == "litert" else 1e-5)
