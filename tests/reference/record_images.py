"""Record what Transformers' image classification pipeline returns, for tests that run without torch.

    python -m tests.reference.record_images

Writes tests/reference/pipelines/image_classification.json: for each processor of PROCESSORS and each call of CALLS, the results
for all of images().
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).parent / "pipelines" / "image_classification.json"

PROCESSORS: dict[str, dict[str, Any]] = {
    "square": {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}, "resample": 3},
    "cropped": {
        "image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 15}, "do_center_crop": True, "crop_size": 12,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 2,
    },
    "old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 12, "do_normalize": False},
    "scaled": {"size": [12, 12], "do_rescale": False, "image_mean": [100, 120, 90], "image_std": [60, 70, 80], "resample": 0},
}  # fmt: skip
CALLS: list[dict[str, Any]] = [
    {},
    {"top_k": 2},
    {"function_to_apply": "Sigmoid"},
    {"function_to_apply": "none", "top_k": 1},
]


def images() -> list:
    """Return images of Pillow of several modes and sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def image(height: int, width: int, *channels: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, *channels), np.uint8))

    turned = image(18, 13, 3)
    turned.getexif()[0x0112] = 6  # Orientation: to be turned by a quarter
    return [image(20, 16, 3), image(9, 30, 3), image(12, 12), image(14, 15, 4), image(14, 15, 3).convert("P"), turned]


def write_model(folder: Path, processor: str) -> Path:
    """Write a small ViT of random weights with an image processor."""
    from tests.cases import cases

    case = next(case for case in cases() if case.name == "vit-image-classification")
    case.write(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[processor]))
    return folder


def main() -> None:
    """Record all processors and calls."""
    import transformers

    recorded = {}
    for processor in PROCESSORS:
        with tempfile.TemporaryDirectory() as folder:
            pipe = transformers.pipeline(
                "image-classification", str(write_model(Path(folder), processor)), device="cpu"
            )
            recorded[processor] = [pipe(images(), **options) for options in CALLS]
    FILE.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
