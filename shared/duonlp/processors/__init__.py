"""Processors, which convert raw inputs other than text to arrays."""

from duonlp.processors.image import IMAGE_CONFIG, ImageProcessor, load_image

__all__ = ["IMAGE_CONFIG", "ImageProcessor", "load_image"]
