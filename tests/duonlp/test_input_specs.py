"""What config.inputs lists for each kind of model, and the checks that follow from it."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import ConfigError, InputError
from duonlp.inputs import check_inputs, input_specs, main_input, model_inputs, named_inputs, num_tokens
from duonlp.parameters import count_parameters, parameters
from tests.cases import SIZES, cases

VIT = config_from_hf({"model_type": "vit", **SIZES["vit"]})
PIXELS = np.zeros((2, 3, 12, 12), np.float32)
IDS = np.ones((2, 5), int)


def config(model_type: str, **options):
    return config_from_hf({"model_type": model_type, **SIZES.get(model_type, {}), **options})


@pytest.mark.parametrize(
    ("cfg", "names"),
    [
        (config("bert"), ["input_ids", "attention_mask", "token_type_ids", "position_ids"]),
        (config("distilbert"), ["input_ids", "attention_mask", "position_ids"]),
        (config("gpt2"), ["input_ids", "attention_mask", "token_type_ids", "position_ids"]),
        (
            config("t5"),
            [
                "input_ids", "attention_mask", "position_ids", "decoder_input_ids", "decoder_attention_mask",
                "decoder_position_ids",
            ],
        ),
        (VIT, ["pixel_values"]),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_inputs_of_each_kind_of_model(cfg, names):
    assert [spec.name for spec in cfg.inputs] == names
    assert [spec.name for spec in cfg.inputs if spec.required] == names[:1] and main_input(cfg) == names[0]
    assert {spec.source for spec in cfg.inputs} == {"pixels" if cfg is VIT else "tokens"}
    assert hash(cfg.inputs) == hash(cfg.replace(labels=("x",)).inputs)


def test_specs_of_values_and_shapes():
    (pixels,) = VIT.inputs
    assert (str(pixels), pixels.shape) == ("[batch, channels=3, height=12, width=12]", (None, 3, 12, 12))
    assert (pixels.dtype, pixels.limit, pixels.exported) == ("float32", None, True)
    limits = {spec.name: spec.limit for spec in config("bert").inputs}
    assert limits == {"input_ids": 30522, "attention_mask": None, "token_type_ids": 2, "position_ids": 512}
    assert {spec.name: spec.limit for spec in config("t5").inputs}["decoder_position_ids"] is None
    choices = input_specs(config("bert"), "multiple-choice")
    assert {spec.axes for spec in choices} == {("batch", "choices", "length")}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_inputs_of_the_other_tests_are_listed(case):
    specs = {spec.name: spec for spec in input_specs(case.config, case.head)}
    for name, value in case.inputs().items():
        if name in specs:
            assert value.ndim == len(specs[name].axes) and value.dtype == specs[name].dtype
            assert all(size in (None, actual) for size, actual in zip(specs[name].shape, value.shape))
        else:
            assert "label" in name or name.endswith("_positions")


def test_selecting_inputs():
    batch = {"pixel_values": PIXELS, "labels": IDS[:, 0], "input_ids": IDS, "teacher_pixel_values": PIXELS[:1]}
    assert list(model_inputs(VIT, batch)) == ["pixel_values"]
    assert len(model_inputs(VIT, batch, as_teacher=True)["pixel_values"]) == 1
    assert list(named_inputs(VIT, PIXELS)) == ["pixel_values"] and named_inputs(VIT, batch) == batch
    assert num_tokens(VIT, {"pixel_values": PIXELS}) == 2 * 10 and num_tokens(config("bert"), {"input_ids": IDS}) == 10
    with pytest.raises(InputError, match="the batch has labels; a model needs pixel_values"):
        model_inputs(VIT, {"labels": IDS})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the inputs are empty; a model needs pixel_values"),
        ({"labels": [0, 1]}, "the inputs are labels; a model needs pixel_values"),
        ({"input_ids": IDS}, "unknown input 'input_ids'; a image-classification model takes pixel_values, labels"),
        ({"pixel_values": PIXELS, "attention_mask": IDS}, "unknown input 'attention_mask'"),
        ({"pixel_values": PIXELS[0]}, r"shape \(3, 12, 12\); a .* takes \[batch, channels=3, height=12, width=12\]"),
        ({"pixel_values": IDS}, r"pixel_values has shape \(2, 5\)"),
        ({"pixel_values": np.moveaxis(PIXELS, 1, -1)}, r"shape \(2, 12, 12, 3\), but this vit takes .*image_size="),
        ({"pixel_values": PIXELS[..., :8]}, r"shape \(2, 3, 12, 8\), but this vit takes"),
        ({"pixel_values": PIXELS, "labels": [0, 2]}, "labels contains 2, but this model's class ids are 0 to 1"),
        (
            {"pixel_values": PIXELS, "labels": [0]},
            r"labels has shape \(1,\) and pixel_values \(2, 3, 12, 12\); they must",
        ),
    ],
)
def test_refused_images(inputs, message):
    with pytest.raises(InputError, match=message):
        check_inputs(VIT, "image-classification", inputs)


def test_refused_sizes():
    for options in ({"image_size": 13}, {"image_size": [12, 10]}, {"patch_size": 24}):
        with pytest.raises(ConfigError, match="is not a multiple of patch_size"):
            config("vit", **options)
    with pytest.raises(ConfigError, match="patch_size is 0; it must be an integer from 1"):
        config("vit", patch_size=0)
    with pytest.raises(ConfigError, match="pooler_output_size=7"):
        config("vit", pooler_output_size=7)


def test_a_model_without_vocabulary_has_no_word_table():
    tree = parameters(VIT, "image-classification")
    assert not any("word" in path or "pooler" in path for path in tree)
    assert tree["embeddings/patches/projection/kernel"].shape == (3 * 4 * 4, 24)
    assert tree["embeddings/patches/class_token"].shape == (1, 24)
    assert tree["embeddings/position_embeddings/embedding"].shape == (10, 24)
    assert not any("pooler" in path for path in parameters(VIT.replace(pooler=None), "base"))
    base = config_from_hf({"model_type": "vit", "num_labels": 1000})
    assert count_parameters(base, "image-classification") == 86_567_656  # google/vit-base-patch16-224
