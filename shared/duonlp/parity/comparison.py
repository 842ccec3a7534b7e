"""Compare the outputs of one checkpoint across frameworks.

The reference is Transformers' PyTorch model if torch is installed. For a checkpoint with quantized weights it is that model with
the floating-point weights that the integers stand for; activations that are quantized, too, have no reference but the other
engine.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.errors import InputError, MissingExtraError
from duonlp.heads import HEADS
from duonlp.parity.inputs import make_inputs
from duonlp.parity.report import Report, Row
from duonlp.parity.runners import Generate, load, load_torch
from duonlp.util import frameworks as available

FRAMEWORKS = ("tf", "jax", "torch")

TOLERANCE, TOLERANCE_OF_QUANTIZED = 1e-5, 1e-3
"""Largest difference, relative to the largest output: of float32 products, and where activations are rounded to integers, which
may differ by one."""


def compare(
    checkpoint: str | PathLike[str],
    head: str | None = None,
    inputs: Sequence[str] | Mapping[str, np.ndarray] | None = None,
    frameworks: Iterable[str] = FRAMEWORKS,
    *,
    tolerance: float | None = None,
    max_new_tokens: int = 16,
    local_files_only: bool = False,
) -> Report:
    """Run a checkpoint through each framework in float32 and compare all outputs.

    Args:
        checkpoint: Folder or Hub id.
        head: One of ``duonlp.heads.HEADS`` (default: the head the checkpoint was saved with).
        inputs: Texts, or arrays by name (``input_ids`` int [B, T] and others). By default a few sentences,
            or random inputs if the checkpoint has no tokenizer or reads no texts.
        frameworks: Any of "tf", "jax" and "torch". The report lists those that were skipped because they
            are not installed.
        tolerance: Largest difference allowed, relative to the largest magnitude in the reference's output; by default
            TOLERANCE, or TOLERANCE_OF_QUANTIZED if activations are quantized.
        max_new_tokens: Number of tokens a language model generates greedily from the first input, alone and
            in a batch with the input's first half; 0 to skip generation.
        local_files_only: Do not access the network.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: The family does not support the head.
        InputError: A framework is unknown, or the inputs are unusable.
        MissingExtraError: Fewer than two of the frameworks are installed.
    """
    frameworks = list(dict.fromkeys(frameworks))
    for name in frameworks:
        if name not in FRAMEWORKS:
            raise InputError(f"framework {name!r} is unknown; choose from {', '.join(FRAMEWORKS)}")
    opened = open_checkpoint(checkpoint, local_files_only=local_files_only)
    head = opened.head if head is None else head
    config = opened.transformer_config(head)
    architectures.class_name(config.model_type, head)
    rounds = _rounds_activations(config)
    if tolerance is None:
        tolerance = TOLERANCE_OF_QUANTIZED if rounds else TOLERANCE
    report = Report(str(checkpoint), config.model_type, head, tolerance)

    installed = [name for name in frameworks if available.installed(name)]
    report.skipped = {
        name: f"{available.NEEDS[name]} is not installed ({available.INSTALL[name]})"
        for name in frameworks
        if name not in installed
    }
    if rounds and "torch" in frameworks:
        installed = [name for name in installed if name != "torch"]
        report.skipped["torch"] = (
            "the checkpoint rounds activations to integers, which the engines do alike but torch does not"
        )
    if len(installed) < 2:
        remedy = "; ".join(report.skipped.values()) or "add one with frameworks="
        raise MissingExtraError(
            f"a comparison needs two frameworks, but got {', '.join(installed) or 'none'}: {remedy}"
        )

    batch = make_inputs(opened, config, head, inputs)
    outputs: dict[str, dict[str, np.ndarray]] = {}
    for name in installed:
        start = time.perf_counter()
        runner = load_torch(opened, config, head, report) if name == "torch" else load(name, opened, head)
        if runner is None:
            continue
        report.load_seconds[name] = time.perf_counter() - start
        forward, generate = runner
        outputs[name] = forward(batch)
        start = time.perf_counter()
        forward(batch)
        report.forward_seconds[name] = time.perf_counter() - start
        if HEADS[head].generates and max_new_tokens:
            prompt = batch["input_ids"][:1, np.asarray(batch["attention_mask"][0], bool)]
            if config.decoder is None:
                # Leave room for new tokens, however long the input is.
                prompt = prompt[:, : max(1, config.max_length - max_new_tokens)]
                count = min(max_new_tokens, config.max_length - prompt.shape[1])
            else:
                count = min(max_new_tokens, config.decoder.max_length - 1)
            (report.generated[name],) = _generate_ids(generate, config, prompt, np.ones_like(prompt), count)
            pair, mask = _pair_with_half(prompt, config)
            report.generated_together[name] = _generate_ids(generate, config, pair, mask, count)
    _fill_rows(report, outputs, batch.get("attention_mask"))
    report.reference = _describe_reference(next((n for n in ("torch", *outputs) if n in outputs), ""), config)
    return report


def _rounds_activations(config: TransformerConfig) -> bool:
    """Return whether a model rounds what it computes to integers."""
    quantization = config.quantization
    return quantization is not None and (
        quantization.simulated or any(how.activations != "float" for _, how in quantization.layers)
    )


def _describe_reference(framework: str, config: TransformerConfig) -> str:
    if framework == "torch":
        weights = "" if config.quantization is None else " with the floating-point weights that the integers stand for"
        return f"Transformers' PyTorch model{weights}"
    return available.PACKAGES.get(framework, "")


def assert_parity(
    checkpoint: str | PathLike[str],
    head: str | None = None,
    inputs: Sequence[str] | Mapping[str, np.ndarray] | None = None,
    frameworks: Iterable[str] = FRAMEWORKS,
    **options: Any,
) -> Report:
    """Run :func:`compare` and raise AssertionError with the full report unless everything agrees."""
    report = compare(checkpoint, head, inputs, frameworks, **options)
    if not report.ok:
        raise AssertionError(str(report))
    return report


def _generate_ids(
    generate: Generate, config: TransformerConfig, prompts: np.ndarray, mask: np.ndarray, count: int
) -> list[list[int]]:
    """Return the ids of ``count`` new tokens per prompt."""
    ids = np.asarray(generate(prompts, mask, count))
    return ids[:, prompts.shape[1] if config.decoder is None else 1 :].tolist()


def _pair_with_half(prompt: np.ndarray, config: TransformerConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask, int32 [2, T], of a prompt [1, T] and its first half.

    The half is padded on the left, or on the right if it is the source of an encoder-decoder.
    """
    length = prompt.shape[1]
    half = max(1, length // 2)
    real = slice(length - half, None) if config.decoder is None else slice(half)
    mask = np.ones((2, length), np.int32)
    mask[1] = 0
    mask[1, real] = 1
    ids = np.repeat(prompt, 2, axis=0)
    ids[1] = config.pad_token_id if config.pad_token_id is not None else 0
    ids[1, real] = prompt[0, :half]
    return ids, mask


def _fill_rows(report: Report, outputs: dict[str, dict[str, np.ndarray]], mask: np.ndarray | None) -> None:
    """Add a row to the report for each output of each framework but the reference."""
    reference = "torch" if "torch" in outputs else next(iter(outputs))
    real = np.ones((), bool) if mask is None else np.asarray(mask, bool)
    for framework, arrays in outputs.items():
        if framework == reference:
            continue
        for name in dict.fromkeys([*outputs[reference], *arrays]):
            actual, expected = arrays.get(name), outputs[reference].get(name)
            if actual is None or expected is None or actual.shape != expected.shape:
                shape = next(array.shape for array in (actual, expected) if array is not None)
                report.rows.append(Row(name, framework, reference, shape, float("inf"), float("inf"), False))
                continue
            # Outputs at padding are arbitrary.
            per_token = expected.ndim >= 2 and expected.shape[: real.ndim] == real.shape
            a, b = (actual[real], expected[real]) if per_token else (actual, expected)
            difference = float(np.abs(a - b).max(initial=0.0))
            relative = difference / max(float(np.abs(b).max(initial=0.0)), 1e-30)
            ok = bool(relative <= report.tolerance)  # False for NaN, too
            report.rows.append(Row(name, framework, reference, expected.shape, difference, relative, ok))
