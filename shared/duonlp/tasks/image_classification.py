"""Image classification: labels with scores for an image."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.processors import ImageProcessor
from duonlp.tasks.base import Example, Options, ParsedInputs, Task, check_choice, check_int, class_scores


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
        if isinstance(self.function_to_apply, str):  # accept "Sigmoid"
            object.__setattr__(self, "function_to_apply", self.function_to_apply.lower())
        check_choice("function_to_apply", self.function_to_apply, ("sigmoid", "softmax", "none", None))


class ImageClassificationTask(Task[ImageClassificationOptions]):
    """Image -> [{"label", "score"}, ...], best first, like Transformers' ImageClassificationPipeline.

    An image is the path of a file, an image of Pillow, or an array (see :class:`duonlp.processors.ImageProcessor`).

    Args:
        image_processor: An ImageProcessor, its settings, or an image processor of Transformers.
        config: The model's configuration.
        folder: Folder of the checkpoint.
    """

    name = "image-classification"
    head = "image-classification"
    needs = "image_processor"
    Options = ImageClassificationOptions
    per_token = False

    def __init__(
        self, image_processor: Any, config: TransformerConfig, folder: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(ImageProcessor.of(image_processor), config, folder)
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
            pixels = self.processor(item, where)
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
        order = np.argsort(-scores, kind="stable")[: options.top_k]
        return [{"label": self.config.labels[i], "score": float(scores[i])} for i in order.tolist()]
