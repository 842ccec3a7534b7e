"""Compare quantized checkpoints with Transformers and compressed-tensors: what we write, and what compressed-tensors writes."""

from contextlib import contextmanager

import numpy as np
import pytest

from tests import cases

pytestmark = pytest.mark.parity
IDS = (np.arange(54).reshape(6, 9) + 1).astype(np.int32)
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
SCHEMES = {
    "dynamic": {"weights": WEIGHTS, "input_activations": WEIGHTS | {"strategy": "token", "dynamic": True}},
    "static": {"weights": WEIGHTS, "input_activations": WEIGHTS | {"strategy": "tensor"}},
    "int8": {"weights": WEIGHTS},
    "int4": {"weights": WEIGHTS | {"num_bits": 4, "strategy": "group", "group_size": 8}},
}


@contextmanager
def same_dynamic_scales():
    """Let compressed-tensors divide the largest magnitude of a row by 127, as we do, and not by 127.5.

    That is all in which the two differ. Otherwise logits agree as well as either agrees with the model in floating point (0.5%).
    """
    from compressed_tensors.quantization.utils import helpers

    def scales(*args, original=helpers.calculate_qparams, **options):
        scale, zero_point = original(*args, **options)
        return scale * (127.5 / 127), zero_point

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "calculate_qparams", scales)
        yield


def theirs(folder, class_name):
    import torch
    import transformers

    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad(), same_dynamic_scales():
        return model(input_ids=torch.tensor(IDS.astype(np.int64))).logits.numpy()


def ours(framework, folder, head):
    if framework == "jax":
        from jaxnlp.heads import HEADS
    else:
        from tfnlp.heads import HEADS
    return np.asarray(HEADS[head].from_pretrained(folder)(input_ids=IDS)["logits"])


def assert_close(actual, expected, is_dynamic):
    """Compare logits; those of quantized activations whose rounding depends on the last bit of a float may differ in few rows."""
    errors = np.abs(actual - expected) / np.abs(expected).max()
    assert errors.max() < (5e-3 if is_dynamic else 1e-5)
    assert np.median(errors) < 1e-5


@pytest.mark.parametrize(
    "settings",
    # compressed-tensors has a scale per row only for inputs of three axes, and per number for the pooler's two.
    [{"skip": ["pooler/dense"]}, {"scheme": "int8-static", "batches": [{"input_ids": IDS}]}, {"scheme": "int8-weights"},
     {"scheme": "int4", "group_size": 8, "skip": ["*layer_0/*"]}],
    ids=["dynamic", "static", "int8", "int4"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("model_type", "head", "class_name"),
    [("bert", "sequence-classification", "BertForSequenceClassification"), ("llama", "causal-lm", "LlamaForCausalLM")],
)
def test_our_checkpoints_in_transformers(model_type, head, class_name, settings, tmp_path):
    pytest.importorskip("compressed_tensors")
    from jaxnlp import quantize
    from jaxnlp.heads import HEADS

    model = HEADS[head].from_config({"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)})
    if model_type == "llama" and settings.get("skip") == ["pooler/dense"]:
        settings = {}
    model = quantize(model, embeddings=False, output=False, **settings)
    model.save_pretrained(tmp_path)
    assert_close(np.asarray(model(input_ids=IDS)["logits"]), theirs(tmp_path, class_name), "scheme" not in settings)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_checkpoints_of_compressed_tensors(scheme, tmp_path):
    pytest.importorskip("compressed_tensors")
    write_compressed(tmp_path, scheme)
    expected = theirs(tmp_path, "LlamaForCausalLM")
    for framework in ("jax", "tf"):
        assert_close(ours(framework, tmp_path, "causal-lm"), expected, scheme == "dynamic")


def write_compressed(folder, scheme):
    """Quantize a small model with compressed-tensors."""
    import torch
    import transformers
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**cases.SIZES["llama"], tie_word_embeddings=False))
    group = QuantizationScheme(targets=["Linear"], **SCHEMES[scheme])
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            weight, args = module.weight.detach(), module.quantization_scheme.weights
            values = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
            scale, _ = calculate_qparams(values.amin(-1), values.amax(-1), args)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "input_scale"):
                module.input_scale.data.fill_(0.03)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
