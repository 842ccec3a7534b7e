"""Compare exported graphs with the model they were exported from, on random inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.export.graphs import Graph
from duonlp.export.model import ExportedModel
from duonlp.export.settings import ExportSettings
from duonlp.input_specs import InputSpec
from duonlp.inputs import input_specs
from duonlp.positions import position_ids

ROWS, LENGTHS = (1, 3), (7, 12)
"""Two shapes: of one row, which batches of a static graph lack, and of rows with padding."""

Forward = Callable[..., Mapping[str, Any]]


def compare(
    model: ExportedModel, forward: Forward, graphs: tuple[Graph, ...], settings: ExportSettings
) -> dict[str, float]:
    """Run a model and its exported graphs on random inputs of two shapes.

    Args:
        model: The exported model.
        forward: The engine's model.
        graphs: Its graphs.
        settings: Settings of the export.

    Returns:
        Largest difference of each output, relative to its largest magnitude.

    Raises:
        InputError: An output is not finite, or differs by more than the settings accept.
    """
    rng, differences = np.random.default_rng(0), {}
    for rows, length in zip(ROWS, LENGTHS, strict=True):
        if len(graphs) == 1 and graphs[0].name == "serve":
            inputs = random_inputs(rng, model.config, graphs[0].inputs, rows, length)
            expected, actual = forward(**inputs), model(**inputs)
        else:
            specs = tuple(s for s in input_specs(model.config, model.head) if s.exported and "token_type" not in s.name)
            inputs = random_inputs(rng, model.config, specs, rows, length)
            expected, actual = forward(**inputs), {"logits": _decoded(model, inputs)}
        for name, value in actual.items():
            differences[name] = max(differences.get(name, 0.0), relative_difference(value, np.asarray(expected[name])))
    largest = max(differences.values())
    if not np.isfinite(largest):
        raise InputError(f"the exported graph returns NaN or infinite numbers where the model does not; {_REMEDY}")
    if settings.limit is not None and largest > settings.limit:
        name = max(differences, key=lambda name: differences[name])
        raise InputError(
            f"{name} of the exported graph differs from the model's by {largest:.1e}, relative, more than {settings.limit:.0e}; "
            f"nothing was written; {_REMEDY}"
        )
    return differences


_REMEDY = "pass a larger tolerance if that is acceptable, or another opset or format"


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest magnitude of the expected values; infinity for NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    error = np.abs(np.asarray(actual, np.float64) - expected).max(initial=0) / max(
        np.abs(expected).max(initial=0), 1e-6
    )
    return float(error) if np.isfinite(error) else float("inf")


def random_inputs(
    rng: np.random.Generator, config: TransformerConfig, specs: tuple[InputSpec, ...], rows: int, length: int
) -> dict[str, np.ndarray]:
    """Return random inputs of a graph; the last half of its rows is padded.

    Args:
        rng: Random numbers.
        config: Configuration of the model.
        specs: The inputs; axes of a fixed size have it.
        rows: Size of the batch.
        length: Number of tokens, if the model has as many positions.
    """
    fixed = {axis: size for spec in specs for axis, size in spec.sizes}
    target = min(length - 2, config.as_decoder().max_length)
    free = {"batch": rows, "choices": 2, "length": min(length, config.max_length), "target_length": target} | fixed
    inputs: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = tuple(free[axis] for axis in spec.axes)
        if spec.dtype == "float32":
            inputs[spec.name] = rng.standard_normal(shape, np.float32)
        elif spec.limit is None:
            inputs[spec.name] = np.ones(shape, np.int32)
        else:
            inputs[spec.name] = rng.integers(0, spec.limit, shape, np.int32)
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape[-1] > 1:
        mask[(mask.shape[0] + 1) // 2 :, ..., -1] = 0
    if mask is not None and config.classification.token == "last_eos":
        ids, eos = inputs["input_ids"], config.eos_token_id
        ids[ids == eos] = 1 if eos == 0 else 0
        ids[..., min(1, ids.shape[-1] - 1)] = eos
    return inputs


def _decoded(model: ExportedModel, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return logits [B, T, V] of a text, all but the last token in one step, and the last one from the cache."""
    config, source = model.config.as_decoder(), None
    ids, mask, offset = inputs["input_ids"], inputs["attention_mask"], 0
    if model.config.decoder is not None:
        source, ids, offset = (ids, mask), inputs["decoder_input_ids"], config.embedding.position_offset  # see `decode`
        mask = np.ones_like(ids)
    positions = position_ids(config, ids, mask) - offset
    (rows, length), columns = ids.shape, np.arange(ids.shape[1])
    distance = columns[:, None] - columns[None]
    seen = (distance >= 0) & (mask[:, None] != 0)
    visible = [seen if window is None else seen & (distance < window) for window in config.layers.windows]
    cache, logits = model.start_cache(rows, length, source), []
    for part in (slice(0, length - 1), slice(length - 1, length)):
        views, index = tuple(view[:, part] for view in visible), (part.start,) * len(visible)
        step, cache = model.decode(ids[:, part], positions[:, part], views, cache, index)
        logits.append(step)
    return np.concatenate(logits, axis=1)
