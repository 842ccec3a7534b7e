"""`duonlp prune`, and what it writes in the other commands."""

import json

import pytest

from tests.duonlp.cli.test_app import checkpoint, needs, run  # noqa: F401  (fixtures)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["nothing to prune"]),
        (["--sparsity", "1.5"], ["sparsity is 1.5", "[0, 1)"]),
        (["--structure", "units"], ["sparsity is missing"]),
        (["--sparsity", "0.5", "--layers", "*/feedforward/*"], ["'*/feedforward/*'", "matches no layer"]),
        (["--structure", "3:7"], ["do not divide into 3:7"]),
    ],
)
@needs("flax")
def test_usage_errors_come_before_the_model(arguments, parts, run, checkpoint, tmp_path):  # noqa: F811
    status, out, err = run("prune", checkpoint, tmp_path / "out", "-f", "jax", *arguments)
    assert status == 2 and not out and all(part in err for part in parts), err
    assert not (tmp_path / "out").exists()


@needs("flax")
def test_units_are_removed(run, checkpoint, tmp_path):  # noqa: F811
    options = "--sparsity", "0.5", "--structure", "units", "--remove", "--json"
    status, out, err = run("prune", checkpoint, tmp_path / "out", "-f", "jax", *options)
    assert status == 0, err
    report = json.loads(out)
    assert report["size"]["after"] < report["size"]["before"] and 0 < report["sparsity"] < 0.5
    status, out, err = run("models", tmp_path / "out")
    assert status == 0 and "pruned, heads and feed-forward rows by layer" in out, err
