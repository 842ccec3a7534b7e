"""Load the tokenizer and the image processor of a checkpoint with Transformers, and check what tasks read from them."""

from contextlib import suppress
from pathlib import Path

from duonlp.errors import CheckpointError
from duonlp.schema import TEXT, check, choice, integer, list_of, number, table
from duonlp.typing import ImageProcessor, Tokenizer
from duonlp.util import frameworks
from duonlp.util.panics import without_panics
from duonlp.util.reading import first_line, parse_json
from duonlp.util.tokenization import tokenize

IMAGE_CONFIG = "preprocessor_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

IMAGE_SIDE = integer(1, 4096)
IMAGE_SIZE = IMAGE_SIDE | list_of(IMAGE_SIDE, 1, 2) | None
IMAGE_SIZE |= table(dict.fromkeys(("height", "width", "shortest_edge", "longest_edge"), IMAGE_SIDE | None))
IMAGE_SCHEMA = table({"size": IMAGE_SIZE, "crop_size": IMAGE_SIZE})
"""Kinds of the sizes in preprocessor_config.json, which decide what an image is enlarged to."""

TOKENIZER_SCHEMA = {
    "model_max_length": number(1, 1e31) | None,
    "model_input_names": list_of(TEXT, longest=20),
    "padding_side": choice("left", "right") | None,
    "truncation_side": choice("left", "right") | None,
}
"""Kinds of the settings of a tokenizer that tasks read."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer in a folder with Transformers' AutoTokenizer.

    Raises:
        CheckpointError: the folder has no tokenizer, or it cannot be loaded.
    """
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        # AutoTokenizer would create an empty tokenizer from config.json alone.
        raise CheckpointError(
            f"{folder} has no tokenizer (none of {', '.join(VOCABULARIES)}); save one there, or pass tokenizer="
        )
    AutoTokenizer = frameworks.transformers().AutoTokenizer
    where = f"the tokenizer in {folder}"
    try:
        # All files are local; a tokenizer must not download anything else.
        with without_panics(f"{where} is damaged"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            with suppress(Exception):  # a small vocabulary may lack the letter
                tokenize(tokenizer, "a", verbose=False)  # panics if a template names tokens that are not there
    except Exception as error:
        raise CheckpointError(
            f"{where} cannot be loaded ({type(error).__name__}: {first_line(error)}); save a working one there, or pass "
            "tokenizer="
        ) from None
    settings = {name: getattr(tokenizer, name, None) for name in TOKENIZER_SCHEMA}
    check(where, settings, TOKENIZER_SCHEMA, CheckpointError)
    return tokenizer


def load_image_processor(folder: Path, config: str | None) -> ImageProcessor:
    """Load the image processor in a folder with Transformers' AutoImageProcessor, on Pillow whatever else is installed.

    Args:
        folder: The folder.
        config: Text of its preprocessor_config.json, or None if there is none.

    Raises:
        CheckpointError: the folder has no image processor, or it cannot be loaded.
        MissingExtraError: Pillow is not installed.
    """
    if config is None:
        raise CheckpointError(f"{folder} has no {IMAGE_CONFIG}; save one there, or pass image_processor=")
    with suppress(ValueError):  # Transformers' own error comes below
        check(str(folder), {IMAGE_CONFIG: parse_json(config)}, {IMAGE_CONFIG: IMAGE_SCHEMA}, CheckpointError)
    frameworks.require_pillow()
    AutoImageProcessor = frameworks.transformers().AutoImageProcessor
    try:
        options = {"local_files_only": True, "trust_remote_code": False, "backend": "pil"}
        return AutoImageProcessor.from_pretrained(folder, **options)
    except Exception as error:
        raise CheckpointError(
            f"the image processor in {folder} cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            "save a working one there, or pass image_processor="
        ) from None
