"""Quantized checkpoints on disk: written, read back, read as other software writes them, and damaged."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from duonlp import architectures
from duonlp.architectures import _quantization
from duonlp.checkpoints import convert, list_tensors, open_checkpoint, save_checkpoint
from duonlp.checkpoints.pretrained import fresh_plan, with_values
from duonlp.checkpoints.save import saved_values
from duonlp.config import LayerQuantization, QuantizationConfig
from duonlp.errors import CheckpointError, ConfigError, InputError, NewHeadWarning
from duonlp.parameters import initial_value, parameters
from duonlp.quantization import QuantizationSettings, dequantized_values, quantized_values
from duonlp.quantization.arithmetic import unpack_int4
from tests import cases

FAMILIES = [
    ("bert", "masked-lm"), ("gpt2", "causal-lm"), ("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("bart", "seq2seq-lm"),
    ("modernbert", "sequence-classification"), ("albert", "base"), ("vit", "image-classification"),
]  # fmt: skip
SCHEMES = [
    {"scheme": "int8"}, {"scheme": "int8-static"}, {"scheme": "int8-weights", "embeddings": False, "output": False},
    {"scheme": "int4", "group_size": 8, "embeddings": False}, {"scheme": "int4", "group_size": 7, "rounding": "awq"},
]  # fmt: skip
W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8, "observer": "mse"}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
TENSOR = TOKEN | {"strategy": "tensor", "dynamic": False}


def config(model_type, **keys):
    return architectures.config_from_hf(
        {"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER), **keys}
    )


def quantized(cfg, head, **settings):
    """Return the configuration and the values of a random model, calibrated on random rows."""
    spec, rng = parameters(cfg, head), np.random.default_rng(0)
    values = {path: initial_value(path, parameter) for path, parameter in spec.items()}

    def record(paths, observe, replaced):
        for path in paths:
            observe(path, rng.standard_normal((16, len(values[f"{path}/kernel"])), np.float32))

    new, changed = quantized_values(values.__getitem__, cfg, head, QuantizationSettings(**settings), record)
    return new, {path: changed.get(path, values.get(path)) for path in parameters(new, head)}


def write(folder, model_type="bert", head="masked-lm", dtype=np.float32, **settings):
    """Write a quantized checkpoint; return its configuration and values."""
    keys = {"is_decoder": True} if (model_type, head) == ("bert", "causal-lm") else {}
    cfg, values = quantized(config(model_type, **keys), head, **settings)
    save_checkpoint(folder, cfg, head, values.__getitem__, dtype)
    return cfg, values


def load(folder, head=None, dtype=np.float32):
    checkpoint = open_checkpoint(folder)
    head = head or checkpoint.head
    cfg = checkpoint.transformer_config(head)
    return cfg, {s.path: s.read(s.parameter.stored_dtype(dtype)) for s in checkpoint.plan(cfg, head)}


def edit(folder, change=None, **keys):
    """Change the tensors of a checkpoint, and keys of its quantization_config."""
    tensors = {name: np.array(tensor.read()) for name, tensor in open_checkpoint(folder).tensors.items()}
    if change is not None:
        from safetensors.numpy import save_file

        change(tensors)
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = content.get("quantization_config", {}) | keys
    (folder / "config.json").write_text(json.dumps(content))


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        assert actual[path].dtype == np.asarray(value).dtype, path
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


@pytest.mark.parametrize("settings", SCHEMES, ids=str)
@pytest.mark.parametrize(("model_type", "head"), FAMILIES)
def test_a_checkpoint_is_read_as_it_was_written(tmp_path, model_type, head, settings):
    cfg, values = write(tmp_path / "a", model_type, head, **settings)
    loaded, actual = load(tmp_path / "a")
    assert [loaded.quantization.of(path) for path, _ in cfg.quantization.layers] == [
        k for _, k in cfg.quantization.layers
    ]
    assert_same(actual, values)
    plain, expected = dequantized_values(values.__getitem__, cfg, head)
    convert(tmp_path / "a", tmp_path / "float", dequantize=True)
    loaded, actual = load(tmp_path / "float")
    assert loaded.quantization is None and loaded == plain
    assert_same(actual, {path: expected.get(path, values.get(path)) for path in parameters(plain, head)})
    report = convert(tmp_path / "a", tmp_path / "again", dtype="bfloat16")
    assert report["dtype"] == "bfloat16" and not report["missing"]
    loaded, actual = load(tmp_path / "again")
    integers = {path for path, parameter in parameters(cfg, head).items() if parameter.dtype is not None}
    assert_same({path: actual[path] for path in integers}, {path: values[path] for path in integers})


def test_what_compressed_tensors_expresses_is_in_its_words(tmp_path):
    def described(model_type, head, **settings):
        cfg, _ = write(tmp_path, model_type, head, **settings)
        assert architectures.config_from_hf(architectures.hf_config(cfg)) == cfg  # exact, whatever the format
        return json.loads((tmp_path / "config.json").read_text())["quantization_config"]

    bert = described("bert", "masked-lm", embeddings=False, output=False)
    assert bert["quant_method"] == "compressed-tensors" and bert["ignore"] == ["cls.predictions.decoder"]
    assert bert["config_groups"]["group_0"]["input_activations"]["strategy"] == "token"
    llama = described("llama", "causal-lm", scheme="int4", group_size=8, embeddings=False, output=False)
    assert llama["format"] == "pack-quantized" and llama["ignore"] == ["lm_head"]
    assert described("llama", "base", embeddings=False, skip=["*_0/*"])["ignore"][0] == "layers.0.mlp.down_proj"
    assert described("modernbert", "base", embeddings=False)["quant_method"] == "compressed-tensors"
    for settings in ({}, {"scheme": "int4", "group_size": 7, "embeddings": False}):
        assert described("bert", "masked-lm", **settings)["quant_method"] == "duonlp"
    assert described("gpt2", "causal-lm", embeddings=False)["quant_method"] == "duonlp"


def test_configurations_of_other_software():
    def read(model_type="llama", head="causal-lm", **keys):
        group = {"targets": ["Linear"], "weights": W8, "input_activations": TOKEN}
        method = {"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"]}
        hf = {"quantization_config": method | {"config_groups": {"group_0": group}} | keys}
        return config(model_type, **hf).quantization

    dynamic = read()
    assert dynamic.of("decoder/layer_1/feed_forward/down") == LayerQuantization(activations="dynamic")
    assert dynamic.of("lm_head/output") is None and dynamic.of("embeddings/word_embeddings") is None
    groups = {
        "a": {"targets": ["Linear"], "weights": W4, "output_activations": None},
        "b": {"targets": [r"re:.*self_attn\..*"], "weights": W8, "input_activations": TENSOR},
        "c": {"targets": ["model.layers.0.self_attn.q_proj"], "weights": W4 | {"group_size": 4}},
    }
    mixed = read(config_groups=groups, ignore=[r"re:.*down_proj", "lm_head"], format="mixed-precision")
    assert mixed.of("decoder/layer_0/attention/query") == LayerQuantization(4, 4)
    assert mixed.of("decoder/layer_0/attention/key") == LayerQuantization(activations="static")
    assert mixed.of("decoder/layer_0/feed_forward/up") == LayerQuantization(4, 8)
    assert mixed.of("decoder/layer_0/feed_forward/down") is None
    assert all(kind == LayerQuantization(activations="dynamic") for _, kind in read("bert", "base").layers)

    def group(weights=W8, inputs=None, **keys):
        return {
            "config_groups": {"g": {"targets": ["Linear"], "weights": weights, "input_activations": inputs, **keys}}
        }

    for keys, message in [
        ({"quant_method": "gptq"}, "supported are 'duonlp' and 'compressed-tensors'"),
        ({"format": "float-quantized"}, "format 'float-quantized'"),
        (group(W8 | {"type": "float"}), "type 'float'"), (group(W4 | {"symmetric": False}), "symmetric False"),
        (group(W8 | {"strategy": "tensor"}), "strategy 'tensor'"), (group(W8, TENSOR | {"dynamic": "local"}), "dynamic 'local'"),
        (group(W8 | {"num_bits": 3}), "num_bits 3"), (group(W4 | {"group_size": -1}), "group_size -1"),
        (group(W4 | {"actorder": "group"}), "actorder 'group'"), (group(output_activations=TOKEN), "output_activations"),
        (group(W4, TOKEN), "quantized activations need weights of 8 bits"), ({"kv_cache_scheme": TENSOR}, "kv_cache_scheme"),
        ({"quantization_status": "frozen"}, "quantization_status 'frozen'"), ({"ignore": ["re:("]}, "invalid pattern"),
        ({"ignore": ["Linear"]}, "leave no linear layer"), ({"transform_config": {"a": 1}}, "transform_config"),
        ({"config_groups": {"g": {"targets": ["Embedding"], "weights": W8}}}, "quantizes the table"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            read(**keys)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(.|[a-z._])" * 24 + "$", "takes too long to match"), ("a" * 1001, "1001 characters")]
)
def test_patterns_take_bounded_time(pattern, message, monkeypatch):
    monkeypatch.setattr(_quantization, "SECONDS", 0.05)
    group = {"targets": [f"re:{pattern}"], "weights": W8}
    with pytest.raises(ConfigError, match=message):
        config("llama", quantization_config={"quant_method": "compressed-tensors", "config_groups": {"g": group}})


def own(**options):
    kind = asdict(LayerQuantization())
    return {"quant_method": "duonlp", "layers": [{"paths": ["encoder/layer_0/attention/query"], **kind, **options}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "must be an object"),
        (own(paths=["encoder/layer_7/attention/query"]), "which no head of this model has"),
        (own(paths=["embeddings/word_embeddings"], bits=4), "tables that are looked up have 8 bits"),
        (own(paths=["embeddings/word_embeddings"], activations="static"), "tables that are looked up have 8 bits"),
        (own(paths=["pooler/dense", "pooler/dense"]), "twice"), (own(bits="8"), "bits '8', a str"), (own(bits=2), "bits is 2"),
        (own(group_size=0), "group_size 0"), (own(scale=1), "save or download"), (own(activations="fp8"), "'fp8' are unknown"),
    ],
)  # fmt: skip
def test_invalid_descriptions_of_our_own(content, message):
    with pytest.raises(ConfigError, match=message):
        config("bert", quantization_config=content)


QUERY = "bert.encoder.layer.0.attention.self.query"


def replaced(name, value):
    return lambda tensors: tensors.update({name: np.asarray(value, getattr(value, "dtype", None))})


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, lambda t: t[f"{QUERY}.weight_scale"].__setitem__(3, np.nan), "weight_scale' has the scale nan"),
        ({}, lambda t: t[f"{QUERY}.weight_scale"].__setitem__(3, 0), "has the scale 0.0"),
        ({}, lambda t: t[f"{QUERY}.weight_scale"].__setitem__(3, -1), "has the scale -1.0"),
        ({}, replaced(f"{QUERY}.weight_scale", np.full((24, 1), 1e300)), "has the scale inf in float32"),
        ({}, replaced(f"{QUERY}.weight_scale", np.full((24, 1), np.inf, np.float16)), "has the scale inf"),
        ({}, replaced(f"{QUERY}.weight_scale", np.ones((24, 2), np.float32)), r"\[24, 2\] in the checkpoint, \[24, 1\]"),
        ({}, replaced(f"{QUERY}.weight", np.ones((24, 24), np.float32)), "dtype float32; expected int8"),
        ({}, replaced(f"{QUERY}.weight_zero_point", np.ones((24, 1), np.int8)), "only symmetric quantization"),
        ({}, lambda t: t.pop(f"{QUERY}.weight_scale"), f"missing {QUERY}.weight_scale"),
        ({}, lambda t: t.pop("cls.predictions.transform.dense.weight_scale"), "missing cls.predictions.transform.dense"),
        ({}, replaced(f"{QUERY}.input_scale", np.ones(1, np.float32)), f"unexpected {QUERY}.input_scale"),
        ({}, replaced("bert.pooler.dense.weight_scale", np.ones(1, np.float32)), "unexpected bert.pooler"),
        ({"scheme": "int8-static"}, replaced(f"{QUERY}.input_scale", np.float32(1e-40)), "has the scale 9.999"),
        ({"scheme": "int4"}, replaced(f"{QUERY}.weight_shape", np.array([24, 23])), r"the shape \[24, 23\]"),
        ({"scheme": "int4"}, replaced(f"{QUERY}.weight_packed", np.zeros((24, 3))), "dtype float64; expected int32"),
    ],
)  # fmt: skip
def test_damaged_tensors(tmp_path, settings, change, message):
    write(tmp_path, **settings)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_integers_without_a_description_and_a_description_without_integers(tmp_path):
    write(tmp_path, embeddings=False)
    content = json.loads((tmp_path / "config.json").read_text())
    described = content.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="dtype int8"):
        load(tmp_path)
    cfg = config("bert")
    spec = parameters(cfg, "masked-lm")
    save_checkpoint(tmp_path, cfg, "masked-lm", lambda path: initial_value(path, spec[path]), np.float32)
    edit(tmp_path, **described)
    with pytest.raises(CheckpointError, match="expected int8 of a quantized layer"):
        load(tmp_path)


def test_scales_in_half_precision_are_read_into_float32(tmp_path):
    _, values = write(tmp_path)
    edit(tmp_path, lambda t: t.update({n: v.astype(np.float16) for n, v in t.items() if n.endswith("_scale")}))
    scale = load(tmp_path)[1]["encoder/layer_0/attention/query/kernel_scale"]
    expected = values["encoder/layer_0/attention/query/kernel_scale"].astype(np.float16)
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, expected.astype(np.float32))


def test_eight_bits_are_packed_if_activations_are_not_quantized(tmp_path):
    """As compressed-tensors does; other versions of it did not."""
    _, values = write(tmp_path, scheme="int8-weights", embeddings=False)
    name, path = "bert.encoder.layer.0.output.dense.weight", "encoder/layer_0/feed_forward/down/kernel"
    packed = list_tensors(tmp_path / "model.safetensors")[f"{name}_packed"].read()
    assert packed.shape == (24, 10)
    for i in range(40):
        np.testing.assert_array_equal((packed[:, i // 4] >> 8 * (i % 4) & 255) - 128, values[path][i])
    assert_same(load(tmp_path)[1], values)
    edit(tmp_path, lambda tensors: None, format="int-quantized")  # writes the tensors as they are read
    assert f"{name}_packed" not in list_tensors(tmp_path / "model.safetensors")
    assert_same(load(tmp_path)[1], values)


def test_four_bits_lie_in_an_int32_from_the_lowest(tmp_path):
    """The first of eight values is in the lowest bits, each as value + 8, as compressed-tensors packs them."""
    _, values = write(tmp_path, "llama", "causal-lm", scheme="int4", group_size=8, embeddings=False)
    path, name = "decoder/layer_0/feed_forward/up/kernel", "model.layers.0.mlp.up_proj.weight_packed"
    kernel, packed = unpack_int4(values[path], 24), open_checkpoint(tmp_path).tensors[name].read()
    assert packed.shape == (40, 3)
    for i in range(24):
        np.testing.assert_array_equal((packed[:, i // 8] >> 4 * (i % 8) & 15) - 8, kernel[i])


def test_one_input_scale_of_a_fused_tensor_is_that_of_all_parts(tmp_path):
    _, values = write(tmp_path, "modernbert", "base", scheme="int8-static", embeddings=False)
    module = "layers.0.attn.Wqkv"

    def fuse(tensors):
        for part in ("query", "key", "value"):
            tensors[f"{module}.input_scale"] = tensors.pop(f"{module}.{part}.input_scale")

    edit(tmp_path, fuse)
    actual = load(tmp_path)[1]
    for part in ("query", "key", "value"):
        path = f"encoder/layer_0/attention/{part}/input_scale"
        np.testing.assert_array_equal(actual[path], values["encoder/layer_0/attention/value/input_scale"])


def test_another_head_is_not_quantized(tmp_path):
    """Its layers start from random values, in floating point; those that it does not have are left out."""
    write(tmp_path, embeddings=False)  # all linear layers of the class
    with pytest.warns(NewHeadWarning, match="classifier"):
        cfg, values = load(tmp_path, "sequence-classification")
    assert values["classifier/kernel"].std() > 0 and cfg.quantization.of("classifier") is None
    assert values["encoder/layer_0/attention/query/kernel"].dtype == np.int8
    save_checkpoint(tmp_path / "new", cfg, "sequence-classification", values.__getitem__, np.float32)
    assert_same(load(tmp_path / "new")[1], values)


def test_weights_for_quantization_aware_training_are_floats(tmp_path):
    cfg = config("bert", num_labels=3)
    layers = (("encoder/layer_0/attention/query", LayerQuantization(activations="dynamic")),)
    cfg = cfg.replace(quantization=QuantizationConfig(layers, simulated=True))
    spec = parameters(cfg, "sequence-classification")
    values = {path: initial_value(path, parameter) for path, parameter in spec.items()}
    save_checkpoint(tmp_path / "a", cfg, "sequence-classification", values.__getitem__, np.float32)
    content = json.loads((tmp_path / "a/config.json").read_text())
    assert "quantization_config" not in content and content["quantization_aware"]
    loaded, actual = load(tmp_path / "a")
    assert loaded.quantization == cfg.quantization
    assert_same(actual, values)
    plain, read = saved_values(cfg, "sequence-classification", values.__getitem__, dequantize=True)
    assert plain.quantization is None and read("classifier/kernel") is values["classifier/kernel"]


def test_integers_are_neither_initialized_nor_replaced_by_floats(tmp_path):
    cfg, values = write(tmp_path)
    with pytest.raises(ConfigError, match="integers cannot be initialized"):
        fresh_plan(cfg, "masked-lm", 0)
    plan = open_checkpoint(tmp_path).plan(cfg, "masked-lm")
    path = "encoder/layer_0/attention/query/kernel"
    with pytest.raises(InputError, match="is float32; as a part of a quantized layer it must be int8"):
        with_values(plan, {path: np.zeros((24, 24), np.float32)})
    assert with_values(plan, {path: values[path]})


def test_a_quantized_head_of_another_size_is_an_error(tmp_path):
    write(tmp_path, "bert", "sequence-classification")
    checkpoint = open_checkpoint(tmp_path)
    cfg = checkpoint.transformer_config("sequence-classification", num_labels=5)
    with pytest.raises(CheckpointError, match="mismatched shapes"):
        checkpoint.plan(cfg, "sequence-classification", ignore_mismatched_sizes=True)
