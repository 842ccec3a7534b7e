"""Image classification around a stand-in for a model: kinds of images, batches, and errors."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from duonlp.architectures import config_from_hf
from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.pipelines.pipeline import make_pipeline

HF = {
    "model_type": "vit", "image_size": 4, "patch_size": 2, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "id2label": {"0": "dark", "1": "bright"},
}  # fmt: skip


class Brightness:
    """Logits that rise with the mean of the pixels; keeps the shapes of the batches."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        pixels = batch["pixel_values"]
        assert pixels.dtype == np.float32
        self.shapes.append(pixels.shape)
        mean = pixels.mean((1, 2, 3))
        return {"logits": np.stack([-mean, mean], 1)}


def make(hf=HF, size=4, **options):
    processor = ViTImageProcessorPil(size={"height": size, "width": size})
    return make_pipeline("image-classification", Brightness(), processor, config_from_hf(hf), **options)


def gray(value, height=6, width=5):
    return np.full((height, width, 3), value, np.uint8)


def test_kinds_of_images(tmp_path):
    image = Image.fromarray(gray(255))
    image.save(tmp_path / "image.png")
    pipe, expected = make(), make()(gray(255))
    assert [result["label"] for result in expected] == ["bright", "dark"] and expected[0]["score"] > 0.8
    for same in (image, tmp_path / "image.png", str(tmp_path / "image.png"), np.moveaxis(gray(255), -1, 0)):
        assert pipe(same) == expected
        assert pipe([same, gray(0)])[0] == expected
    assert list(pipe(iter([image]))) == [expected]
    assert pipe(np.stack([gray(255), gray(0)]))[1][0]["label"] == "dark"


def test_batches_of_images():
    pipe = make(batch_size=4)
    results = pipe([gray(50 * i) for i in range(6)])
    assert len(results) == 6 and pipe.forward.shapes == [(4, 3, 4, 4), (2, 3, 4, 4)]
    scores = [{r["label"]: r["score"] for r in result}["bright"] for result in results]
    assert scores == sorted(scores)


def test_options():
    assert len(make()(gray(9), top_k=1)) == 1 and len(make()(gray(9), top_k=9)) == 2
    raw = make()(gray(255), function_to_apply="None")
    assert raw[0] == {"label": "bright", "score": pytest.approx(1.0)}
    several = make(HF | {"problem_type": "multi_label_classification"})(gray(255))
    assert several[0]["score"] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)
    for option in ({"top_k": 0}, {"top_k": None}, {"function_to_apply": "tanh"}):
        with pytest.raises(InputError, match=next(iter(option))):
            make(**option)


def test_unusable_images(tmp_path):
    truncated = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(truncated, "png")
    for name, content in (("text.png", b"no image"), ("half.png", truncated.getvalue()[:2000]), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"input 1, '.*{name}', cannot be read as an image"):
            make()([gray(0), tmp_path / name])
    with pytest.raises(InputError, match=r"input 0, '.*nowhere.png', is not a file"):
        make()(str(tmp_path / "nowhere.png"))
    with pytest.raises(InputError, match=r"input 0, 'https://example.org/x.png', is not a file.*download it first"):
        make()("https://example.org/x.png")
    with pytest.raises(InputError, match=r"input 0, uint8 \(6, 5\), is not an image for this model"):
        make()(gray(0)[..., 0])
    with pytest.raises(InputError, match=r"input 0, float64 \(6, 5, 3\), is not an image for this model"):
        make()(gray(0) - 3.5)
    with pytest.raises(InputError, match=r"input 0, uint8 \(6, 5, 2\), is not an image for this model"):
        make()(gray(0)[..., :2])
    with pytest.raises(InputError, match=r"\(3, 6, 6\) after preprocessing.*height=4, width=4"):
        make(size=6)(gray(0))


def test_a_processor_is_needed():
    with pytest.raises(InputError, match="image-classification needs an image processor of Transformers, got dict"):
        make_pipeline("image-classification", Brightness(), {}, config_from_hf(HF))


def test_missing_pillow(monkeypatch, tmp_path):
    from duonlp.checkpoints.checkpoint import Checkpoint

    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config.json; save one there, or pass image_proc"):
        Checkpoint(tmp_path).image_processor()
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the image processor in .* cannot be loaded"):
        Checkpoint(tmp_path).image_processor()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "PIL")
    with pytest.raises(MissingExtraError, match=r'needs Pillow.*pip install "duonlp\[vision\]"'):
        Checkpoint(tmp_path).image_processor()
