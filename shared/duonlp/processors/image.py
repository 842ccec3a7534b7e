"""Images to pixels: open, resize, crop, rescale and normalize, as Transformers' image processors do on Pillow."""

import json
import math
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from duonlp.errors import CheckpointError, InputError, MissingExtraError

IMAGE_CONFIG = "preprocessor_config.json"
"""File of an image processor's configuration in a checkpoint."""

DEFAULTS: dict[str, Any] = {
    "do_convert_rgb": None, "do_resize": True, "size": 224, "resample": 2, "default_to_square": True,
    "do_center_crop": False, "crop_size": None, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": 0.5, "image_std": 0.5,
}  # fmt: skip
"""Settings of ViT's processor for keys that the configuration lacks."""

SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"})
"""Forms of a size."""


class ImageProcessor:
    """Convert an image to the pixels that a model reads; call it on one image.

    Args:
        config: Contents of preprocessor_config.json.
        name: Where they come from, for error messages.

    Raises:
        CheckpointError: The configuration has a step or a size that is not supported.
    """

    def __init__(self, config: Mapping[str, Any], name: str = IMAGE_CONFIG):
        self.config = dict(config)
        self.settings = DEFAULTS | {
            key: value for key, value in config.items() if key in DEFAULTS and value is not None
        }
        for key, value in config.items():
            if key.startswith("do_") and value and key not in DEFAULTS:
                raise CheckpointError(f"{name} has {key}={value!r}, which is not supported; set it to false")
        square = self.settings["default_to_square"]
        self.size = _size(self.settings["size"], f"size of {name}", square)
        self.crop = _size(self.settings["crop_size"] or self.size, f"crop_size of {name}", True)
        if self.settings["do_center_crop"] and set(self.crop) != {"height", "width"}:
            raise CheckpointError(f"crop_size of {name} is {self.crop}; give it a height and a width")

    @classmethod
    def of(cls, value: Any) -> "ImageProcessor":
        """Return an ImageProcessor for one, for its configuration as a dict, or for a processor of Transformers.

        Raises:
            InputError: `value` is none of these.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) and not hasattr(value, "to_dict"):
            raise InputError(
                f"image_processor is a {type(value).__name__}; pass an ImageProcessor, its settings as a dict, or an image "
                "processor of Transformers"
            )
        return cls(value if isinstance(value, Mapping) else value.to_dict(), "image_processor")

    @classmethod
    def from_json(cls, text: str, name: str = IMAGE_CONFIG) -> "ImageProcessor":
        """Return the processor that the text of a preprocessor_config.json describes.

        Raises:
            CheckpointError: The text is no JSON object, or has unsupported settings.
        """
        try:
            config = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{name} is not valid JSON ({error}); download the checkpoint again") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{name} holds a {type(config).__name__}; expected a JSON object")
        return cls(config, name)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / IMAGE_CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    def __call__(self, image: Any, where: str = "the image") -> np.ndarray:
        """Return the pixels of an image.

        Args:
            image: Path of a file, an image of Pillow, or an array [height, width, channels] or [channels, height, width] of
                1, 3 or 4 channels: integers from 0 to 255, or numbers from 0 to 1.
            where: Name of the image, for error messages.

        Returns:
            float32 [channels, height, width].

        Raises:
            InputError: The image cannot be read, or its shape or values do not suit the processor.
            MissingExtraError: Pillow is not installed.
        """
        s = self.settings
        pixels = _channels_first(load_image(image, where), where)
        if s["do_convert_rgb"]:
            pixels = _to_rgb(pixels, where)
        if s["do_resize"]:
            pixels = _resize(pixels, _target(self.size, *pixels.shape[1:]), s["resample"], where)
        if s["do_center_crop"]:
            pixels = _center_crop(pixels, self.crop["height"], self.crop["width"])
        if s["do_rescale"]:
            pixels = pixels.astype(np.float64) * s["rescale_factor"]
        pixels = pixels.astype(np.float32)
        if s["do_normalize"]:
            mean, std = (np.asarray(s[name], np.float32).reshape(-1, 1, 1) for name in ("image_mean", "image_std"))
            if len(mean) not in (1, len(pixels)):
                raise InputError(f"{where} has {len(pixels)} channels; this model's images have {len(mean)}")
            pixels = (pixels - mean) / std
        return pixels


def load_image(image: Any, where: str = "the image") -> np.ndarray:
    """Read an image: files and images of Pillow are turned upright and converted to RGB, arrays stay as they are.

    Returns:
        uint8 [height, width, 3], or the array.

    Raises:
        InputError: The file cannot be read, or `image` is of another type.
        MissingExtraError: Pillow is not installed.
    """
    if isinstance(image, np.ndarray):
        return image
    is_path = isinstance(image, (str, os.PathLike))
    if not is_path and not hasattr(image, "getbands"):
        raise InputError(f"{where} is a {type(image).__name__}; pass a path, an image of Pillow, or an array")
    pillow, name = _pillow(), f"{where}, {os.fspath(image)!r}," if is_path else where
    if is_path and not Path(image).is_file():
        raise InputError(f"{name} is no file; pass the path of an image (download it first if it is a URL)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pillow.Image.DecompressionBombWarning)
            opened = pillow.Image.open(image) if is_path else image
            return np.array(pillow.ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, ValueError, SyntaxError, pillow.Image.DecompressionBombError) as error:
        # SyntaxError is Pillow's for a broken PNG.
        raise InputError(f"{name} cannot be read as an image ({error}); convert it to PNG or JPEG") from None


def _pillow() -> ModuleType:
    """Import Pillow with the modules used here."""
    if find_spec("PIL") is None:
        raise MissingExtraError('reading images needs Pillow, which is not installed; pip install "duonlp[vision]"')
    import PIL.Image
    import PIL.ImageOps

    return PIL


def _size(size: Any, name: str, square: bool) -> dict[str, int]:
    """Return a size as a dict with one of the sets of keys in SIZES."""
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    found = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else {}
    if set(found) not in SIZES or not all(isinstance(value, int) and value > 0 for value in found.values()):
        forms = "; ".join(", ".join(sorted(form)) for form in SIZES)
        raise CheckpointError(f"{name} is {size!r}; expected pixels, or positive numbers of pixels for {forms}")
    return found


def _target(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    """Return the height and width to which an image is resized."""
    if "height" in size:
        return size["height"], size["width"]
    short, long = sorted((height, width))
    edge, scaled = size["shortest_edge"], float(size["shortest_edge"])
    longest = size.get("longest_edge")
    if longest is not None and long / short * edge > longest:
        scaled = longest * short / long
        edge = round(scaled)
    other = long if longest is not None and edge == short else int(scaled * long / short)
    return (edge, other) if height <= width else (other, edge)


def _channels_first(image: np.ndarray, where: str) -> np.ndarray:
    """Return an image as [channels, height, width]; its channels are the first axis if both ends could be."""
    image = image[None] if image.ndim == 2 else image
    if image.dtype.kind not in "uif" or image.ndim != 3 or not {image.shape[0], image.shape[2]} & {1, 3, 4}:
        raise InputError(
            f"{where} is an array {image.dtype} {image.shape}; pass numbers [height, width, channels] or [channels, height, "
            "width] with 1, 3 or 4 channels"
        )
    if 0 in image.shape:
        raise InputError(f"{where} has shape {image.shape}; pass an image with pixels")
    return image if image.shape[0] in (1, 3, 4) else np.moveaxis(image, -1, 0)


def _to_rgb(pixels: np.ndarray, where: str) -> np.ndarray:
    """Return [3, height, width]: gray repeated, and transparency blended onto white."""
    if len(pixels) == 1:
        return np.repeat(pixels, 3, axis=0)
    if len(pixels) == 3:
        return pixels
    whole = pixels.dtype.kind in "ui"
    if not whole and (pixels.min() < 0 or pixels.max() > 1):
        raise InputError(f"{where} has values from {pixels.min()} to {pixels.max()}; pass numbers from 0 to 1")
    white = 255 if whole else 1.0
    alpha = pixels[3:] / white
    blended = alpha * pixels[:3] + (1 - alpha) * white
    return (np.round(blended) if whole else blended).astype(pixels.dtype)


def _resize(pixels: np.ndarray, size: tuple[int, int], resample: int, where: str) -> np.ndarray:
    """Resize [channels, height, width] with a filter of Pillow, which works on whole numbers from 0 to 255."""
    low, high = pixels.min(), pixels.max()
    whole = pixels.dtype == np.uint8 or np.allclose(pixels, pixels.astype(int))
    if low < 0 or high > (255 if whole else 1):
        raise InputError(
            f"{where} has values from {low} to {high}; pass integers from 0 to 255, or numbers from 0 to 1"
        )
    fractions, image = not whole, np.moveaxis(pixels, 0, -1)
    image = (image.astype(np.float64) * 255).astype(np.float32) if fractions else image
    image = image.astype(np.uint8)[..., 0] if image.shape[-1] == 1 else image.astype(np.uint8)
    height, width = size
    resized = np.array(_pillow().Image.fromarray(image).resize((width, height), resample))
    resized = np.moveaxis(resized.reshape(height, width, -1), -1, 0)
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if fractions else resized


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut [channels, height, width] out of the middle of an image, padded with zeros if it is smaller."""
    starts, pads = [], [(0, 0)]
    for have, want in zip(pixels.shape[1:], (height, width)):
        missing = max(want - have, 0)
        pads.append((math.ceil(missing / 2), missing // 2))
        starts.append((have - want) // 2 + pads[-1][0])
    pixels = np.pad(pixels, pads)
    return pixels[:, starts[0] : starts[0] + height, starts[1] : starts[1] + width]
