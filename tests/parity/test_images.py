"""Models that read images, in both engines: calls, other image sizes, saving, pipelines, fine-tuning."""

import importlib
import json
from importlib.util import find_spec

import numpy as np
import pytest

from duonlp.checkpoints.checkpoint import Checkpoint
from duonlp.errors import CheckpointError, InputError
from duonlp.parity import compare
from duonlp.positions import interpolate_positions
from duonlp.training.fit_config import FitConfig
from tests.cases import cases
from tests.engines import difference
from tests.parity.test_pipelines import assert_close
from tests.reference import record_images

PACKAGES = ("tfnlp", "jaxnlp")
CASE = next(case for case in cases() if case.name == "vit-image-classification")
PIXELS = CASE.inputs()["pixel_values"]

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record_images.write_model(tmp_path_factory.mktemp("vit") / "model", "square")


@pytest.mark.parametrize("package", PACKAGES)
def test_calls(package, folder):
    engine = importlib.import_module(package)
    model = engine.AutoModelForImageClassification.from_pretrained(folder)
    logits = np.asarray(model(pixel_values=PIXELS)["logits"])
    for out in (model(PIXELS), model(PIXELS.astype(np.float64)), engine.compiled(model)(pixel_values=PIXELS)):
        assert difference(np.asarray(out["logits"]), logits) < 1e-6
    many = np.repeat(PIXELS, 40, axis=0)  # more tokens than tfnlp compiles with XLA
    assert (
        difference(engine.compiled(model)(pixel_values=many)["logits"][:2], np.asarray(model(many)["logits"])[:2])
        < 1e-5
    )
    with pytest.raises(InputError, match="unknown input 'attention_mask'"):
        model(PIXELS, np.ones((3, 10)))
    with pytest.raises(InputError, match="pixel_values has shape"):
        model(PIXELS[:, :, :8])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("processor", record_images.PROCESSORS)
def test_pipelines_return_what_transformers_recorded(package, processor, tmp_path):
    path = record_images.write_model(tmp_path, processor)
    pipe = importlib.import_module(package).pipeline("image-classification", path, batch_size=4)
    recorded = json.loads(record_images.FILE.read_text())[processor]
    for options, expected in zip(record_images.CALLS, recorded, strict=True):
        assert_close(pipe(record_images.images(), **options), expected, 1e-5)
    assert len(pipe.shapes) == 2


@pytest.mark.parametrize("package", PACKAGES)
def test_saving_keeps_the_image_processor(package, folder, tmp_path):
    engine = importlib.import_module(package)
    model = engine.AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "own")
    stored = (folder / "preprocessor_config.json").read_text()
    assert (tmp_path / "own" / "preprocessor_config.json").read_text() == stored
    processor = Checkpoint(record_images.write_model(tmp_path / "other", "old")).image_processor()
    model.save_pretrained(tmp_path / "new", processor)
    saved = Checkpoint(tmp_path / "new").image_processor()
    assert (saved.do_normalize, saved.size["height"]) == (False, 12)
    with pytest.raises(InputError, match="got a loaded model but no image_processor"):
        engine.pipeline("image-classification", model)
    pipe = engine.pipeline("image-classification", model, image_processor=processor)
    assert pipe(record_images.images()[0], top_k=1)[0]["label"] in model.config.labels
    with pytest.raises(InputError, match="image-classification has no use for tokenizer="):
        engine.pipeline("image-classification", folder, tokenizer=processor)


@pytest.mark.parametrize("package", PACKAGES)
def test_loading_for_another_image_size(package, folder, tmp_path):
    cls = importlib.import_module(package).AutoModelForImageClassification
    model = cls.from_pretrained(folder, image_size=[8, 20])
    assert model.config.embedding.patches.grid == (2, 5)
    larger = np.random.default_rng(0).standard_normal((2, 3, 8, 20), np.float32)
    logits = np.asarray(model(larger)["logits"])
    model.save_pretrained(tmp_path / "larger")
    assert np.array_equal(np.asarray(cls.from_pretrained(tmp_path / "larger")(larger)["logits"]), logits)
    with pytest.raises(CheckpointError, match=r"config\.json does not match the weights"):  # not from square images
        cls.from_pretrained(tmp_path / "larger", image_size=[8, 12])


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), [(8, 20), (24, 24), (4, 4)])
def test_positions_of_another_image_size_agree_with_torch(folder, height, width):
    import torch

    from tests.engines import torch_model

    pixels = np.random.default_rng(0).standard_normal((2, 3, height, width), np.float32)
    model = torch_model(folder, "image-classification").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(pixels), interpolate_pos_encoding=True)["logits"].numpy()
    for package in PACKAGES:
        cls = importlib.import_module(package).AutoModelForImageClassification
        ours = cls.from_pretrained(folder, image_size=[height, width])(pixels)["logits"]
        assert difference(np.asarray(ours), theirs) < 1e-5, package


def test_interpolating_to_the_same_size_changes_nothing():
    table = np.random.default_rng(0).standard_normal((10, 4), np.float32)
    assert np.abs(interpolate_positions(table, 3, 3, 1) - table).max() < 1e-6
    assert np.abs(interpolate_positions(np.ones((9, 4)), 7, 2, 0) - 1).max() < 1e-6


def test_compare(folder):
    report = compare(folder, frameworks=("tf", "jax"))
    assert report.ok and [row.output for row in report.rows] == ["logits"]
    assert compare(folder, inputs={"pixel_values": PIXELS}, frameworks=("tf", "jax")).ok
    with pytest.raises(InputError, match=r"a vit reads no texts; pass pixel_values, float32 \[batch, channels=3"):
        compare(folder, inputs=["a text"], frameworks=("tf", "jax"))


@pytest.mark.parity
def test_compare_with_torch(folder):
    assert compare(folder).ok and compare(folder, "base", frameworks=("torch", "jax")).skipped


@pytest.mark.parametrize("package", PACKAGES)
def test_fine_tuning(package, folder, tmp_path):
    """Learn whether an image is bright, with a last batch that is smaller, and keep the processor with the best model."""
    engine, training = importlib.import_module(package), importlib.import_module(f"{package}.training")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 22).astype(np.int32)
    pixels = (labels.reshape(-1, 1, 1, 1) - 1 + 0.1 * rng.standard_normal((22, 3, 12, 12))).astype(np.float32)
    batches = [{"pixel_values": pixels[i : i + 8], "labels": labels[i : i + 8]} for i in range(0, 22, 8)]
    model = engine.AutoModelForImageClassification.from_config(CASE.hf, seed=1)
    model.image_config = (folder / "preprocessor_config.json").read_text()
    config = FitConfig(epochs=8, learning_rate=1e-2, warmup_share=0.0)
    result = training.fit(model, batches, config, tmp_path / "run", validation=batches)
    assert result.examples == 8 * 22 and result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    best = engine.AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "best")
    assert (np.asarray(best(pixels)["logits"]).argmax(1) == labels).all()
    assert best.image_config == model.image_config
    with pytest.raises(InputError, match="labels contains 3"):
        training.fit(model, [{"pixel_values": pixels, "labels": labels + 1}], config)


def test_keras_fit_and_export(folder, tmp_path):
    import tensorflow as tf

    import tfnlp

    model = tfnlp.AutoModelForImageClassification.from_pretrained(folder)
    expected = model.predict(PIXELS, verbose=0)["logits"]
    assert difference(model(PIXELS)["logits"], expected) < 1e-6
    assert model.input_signature()["pixel_values"].shape.as_list() == [None, 3, 12, 12]
    model.export(tmp_path / "exported")
    exported = tf.saved_model.load(tmp_path / "exported")
    served = exported.serve({"pixel_values": tf.constant(PIXELS)})
    assert difference(served["logits"], expected) < 1e-5
    model.save(tmp_path / "model.keras")
    assert difference(tf.keras.models.load_model(tmp_path / "model.keras")(PIXELS)["logits"], expected) < 1e-6
    model.compile("adam", metrics=["sparse_categorical_accuracy"])
    labels = CASE.inputs()["labels"]
    history = model.fit(PIXELS, labels, epochs=2, batch_size=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0] and "sparse_categorical_accuracy" in history
    model.fit({"pixel_values": PIXELS, "labels": labels}, epochs=1, verbose=0)


@pytest.mark.parametrize("package", PACKAGES)
def test_distillation(package, folder):
    engine = importlib.import_module(package)
    teacher = engine.AutoModelForImageClassification.from_pretrained(folder)
    student = engine.AutoModelForImageClassification.from_config(CASE.hf | {"num_hidden_layers": 1}, seed=1)
    batches = [{"pixel_values": PIXELS, "labels": CASE.inputs()["labels"]}]
    result = engine.distill(student, teacher, batches, FitConfig(epochs=4, learning_rate=1e-2), validation=batches)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_command_line(folder, tmp_path, capsys):
    from duonlp.cli.app import main

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert not end.value.code
        return capsys.readouterr().out

    record_images.images()[0].save(tmp_path / "image.png")
    arguments = [
        "run",
        "image-classification",
        str(tmp_path / "image.png"),
        "-m",
        str(folder),
        "-f",
        "jax",
        "-o",
        "top_k=2",
    ]
    (results,) = json.loads(run(*arguments, "--json"))["results"]
    expected = json.loads(record_images.FILE.read_text())["square"][1][0]
    assert_close(results, expected, 1e-5)
    assert "LABEL_0" in run(*arguments)
    assert "reads pixel_values [batch, channels=3, height=12, width=12]" in run("models", str(folder))
