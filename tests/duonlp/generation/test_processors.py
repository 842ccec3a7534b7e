"""Logits processors: the same numbers from NumPy, JAX and TensorFlow. tests/parity compares them with Transformers'."""

import inspect
from importlib import import_module

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.generation import processors
from tests.generation import PROCESSORS, processor_inputs, run_processor


@pytest.fixture(params=["jax", "tf"], scope="module")
def engine(request):
    """Provide the engine's ops and its array constructor."""
    pytest.importorskip({"jax": "jax", "tf": "tensorflow"}[request.param])
    convert = {"jax": "jax.numpy", "tf": "tensorflow"}[request.param]
    name = {"jax": "asarray", "tf": "convert_to_tensor"}[request.param]
    return import_module(f"{request.param}nlp.ops"), getattr(import_module(convert), name)


def test_every_processor_has_test_arguments():
    helpers = {"kth_largest", "column_at", "token_mask"}
    functions = {name for name, _ in inspect.getmembers(processors, inspect.isfunction) if not name.startswith("_")}
    assert functions - helpers == {name for name, _ in PROCESSORS}


@pytest.mark.parametrize(("name", "arguments"), PROCESSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_engines_agree(engine, name, arguments):
    ops, convert = engine
    for seed in range(3):
        ids, logits = processor_inputs(seed)
        if name == "remove_invalid_values":
            logits[0, :3] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            expected = run_processor(numpy_ops, name, arguments, ids, logits, np.asarray)
        actual = run_processor(ops, name, arguments, ids, logits, convert)
        assert actual.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-6)


def test_padding_is_not_text():
    """Check that padding matches nothing, whatever its ids."""
    ids, logits = processor_inputs(0)
    ids[:, :3] = -1
    for name, arguments in (("repetition_penalty", {"penalty": 2.0}), ("no_repeat_ngram", {"size": 2})):
        alone = (
            run_processor(numpy_ops, name, arguments, ids[:, 3:], logits, np.asarray)
            if name.startswith("rep")
            else None
        )
        actual = run_processor(numpy_ops, name, arguments, ids, logits, np.asarray)
        assert alone is None or np.array_equal(actual, alone)
        assert np.array_equal(actual[:, 4:], logits[:, 4:])


def test_names_of_operations_are_alike():
    """Both engines' ops modules define every function of numpy_ops."""
    names = {name for name, _ in inspect.getmembers(numpy_ops, inspect.isfunction)}
    for engine, needs in (("jaxnlp", "jax"), ("tfnlp", "tensorflow")):
        pytest.importorskip(needs)
        ops = import_module(f"{engine}.ops")
        assert names <= {name for name, value in vars(ops).items() if callable(value)}
