"""Image classification: labels with scores for an image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.tasks.base import (
    Example,
    Options,
    ParsedInputs,
    Task,
    check_function_to_apply,
    check_int,
    class_scores,
    describe,
    ranked_labels,
)
from duonlp.typing import ImageProcessor
from duonlp.util.files import may_read
from duonlp.util.frameworks import require_pillow


@dataclass(frozen=True)
class ImageClassificationOptions(Options):
    """Options of image classification.

    Attributes:
        top_k: Number of labels to return, best first.
        function_to_apply: "sigmoid", "softmax" or "none"; None chooses by the model's problem type and labels.
    """

    top_k: int = 5
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        check_int("top_k", self.top_k, minimum=1)
        check_function_to_apply(self)


class ImageClassificationTask(Task[ImageClassificationOptions]):
    """Image -> [{"label", "score"}, ...], best first, like Transformers' ImageClassificationPipeline.

    An image is the path of a file, an image of Pillow, or an array [height, width, channels] or [channels, height, width].

    Args:
        image_processor: An image processor of Transformers.
        config: See :class:`Task`.
        folder: See :class:`Task`.

    Raises:
        InputError: the image processor is of another type.
    """

    name = "image-classification"
    head = "image-classification"
    needs = "image_processor"
    Options = ImageClassificationOptions
    per_token = False

    def __init__(
        self, image_processor: ImageProcessor, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        if not hasattr(image_processor, "preprocess"):
            raise InputError(
                f"{self.name} needs an image processor of Transformers, got {type(image_processor).__name__}; load one with "
                'transformers.AutoImageProcessor.from_pretrained(..., backend="pil")'
            )
        super().__init__(image_processor, config, folder)
        self.spec = next(spec for spec in config.inputs if spec.source == "pixels")

    @property
    def accepted_inputs(self) -> str:
        return "an image (a path, an image of Pillow, or an array), or a list or an iterator of images"

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        single = isinstance(inputs, os.PathLike) or hasattr(inputs, "getbands")
        if single or (isinstance(inputs, np.ndarray) and inputs.ndim < 4):
            return ParsedInputs("one", [inputs], keywords=keywords)
        return super().parse_inputs(inputs, keywords)

    def output_width(self) -> int:
        return self.config.num_labels

    def encode(self, items: Sequence[Any], options: ImageClassificationOptions, first: int = 0) -> list[list[Example]]:
        rows = []
        for i, item in enumerate(items):
            where = f"{self.name}: input {first + i}"
            image = load_image(item, where)
            try:
                pixels = np.asarray(self.processor(images=image, return_tensors="np")[self.spec.name][0], np.float32)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{where}, {image.dtype} {image.shape}, is not an image for this model: {error}"
                ) from None
            if pixels.shape != self.spec.shape[1:]:
                raise InputError(
                    f"{where} has shape {pixels.shape} after preprocessing, but this {self.config.model_type} takes "
                    f"{self.spec}; set the size in preprocessor_config.json, or load the model with image_size="
                )
            rows.append([Example({self.spec.name: pixels})])
        return rows

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: ImageClassificationOptions,
    ) -> list[dict[str, Any]]:
        scores = class_scores(outputs[0]["logits"], self.config, options.function_to_apply)
        return ranked_labels(scores, self.config, options.top_k)


def load_image(image: Any, where: str) -> np.ndarray:
    """Return an image as an array: a file or an image of Pillow turned upright and converted to RGB, an array as it is.

    Args:
        image: The image.
        where: Name of the image, for error messages.

    Raises:
        InputError: the file cannot be read, or ``image`` is of another type.
        MissingExtraError: Pillow is not installed.
    """
    if isinstance(image, np.ndarray):
        return image
    is_path = isinstance(image, (str, os.PathLike))
    if not is_path and not hasattr(image, "getbands"):
        raise InputError(f"{where} is {describe(image)}; expected a path, an image of Pillow, or an array")
    require_pillow()
    from PIL import Image, ImageOps

    name = f"{where}, {os.fspath(image)!r}," if is_path else where
    if is_path and not (may_read(image) and Path(image).is_file()):
        raise InputError(f"{name} is not a file; pass the path of an image (download it first if it is a URL)")
    try:
        return np.array(ImageOps.exif_transpose(Image.open(image) if is_path else image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise InputError(f"{name} cannot be read as an image ({error}); save it as PNG or JPEG") from None
