"""Compare the quantized models of both engines: the same integers, scales and predictions."""

import numpy as np
import pytest

import jaxnlp
import tfnlp
from tests import quantization as checks

ENGINES = tfnlp, jaxnlp


@pytest.mark.parametrize(("scheme", "settings"), checks.SCHEMES, ids=str)
@pytest.mark.parametrize("name", checks.HEADS)
def test_both_engines_have_the_same_integers_and_predictions(name, scheme, settings):
    inputs, trees, logits = checks.inputs_of(name), [], []
    for engine in ENGINES:
        quantized = engine.quantize(checks.model_of(engine, name), scheme, [inputs], **settings)
        trees.append({path: np.asarray(value) for path, value in engine.parameter_tree(quantized).items()})
        logits.append(checks.logits(quantized, inputs))
    ours, theirs = trees
    calibrated = settings.get("rounding", "nearest") != "nearest"  # with inputs that differ in their last digits
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype, path
        if path.endswith(("input_scale", "channel_scale")) or calibrated:
            np.testing.assert_allclose(value.astype(float), theirs[path].astype(float), rtol=1e-5, err_msg=path)
        else:
            np.testing.assert_array_equal(value, theirs[path], err_msg=path)
    assert checks.difference(*logits) < 1e-3
    np.testing.assert_array_equal(logits[0].argmax(-1), logits[1].argmax(-1))


@pytest.mark.parametrize("scheme", ["int8", "int8-static", "int4"])
def test_both_engines_round_alike_in_training(scheme):
    inputs, logits, configs = checks.inputs_of("bert"), [], []
    for engine in ENGINES:
        prepared = engine.prepare_qat(checks.model_of(engine, "bert"), scheme, [inputs])
        logits += [checks.logits(prepared, inputs), checks.logits(engine.quantize(prepared), inputs)]
        configs.append(dict(prepared.config.quantization.layers))
    for values in logits[1:]:
        assert checks.difference(values, logits[0]) < 1e-3
    assert configs[0].keys() == configs[1].keys()
    for path, layer in configs[0].items():
        scales = layer.input_scale or 0, configs[1][path].input_scale or 0
        assert scales[0] == pytest.approx(scales[1], rel=1e-5), path
