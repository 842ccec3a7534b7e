"""Quantize a checkpoint: from a folder to a folder, with a report on its size and its outputs."""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.benchmark.performance import model_files
from duonlp.checkpoints.atomic_folder import atomic_folder
from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.checkpoints.conversion import check_output, copy_files, small_files
from duonlp.config import TransformerConfig
from duonlp.data.labelled import read_unlabelled_texts
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.inputs import input_specs
from duonlp.parity import AUTO_CLASSES, make_inputs
from duonlp.quantization import (
    QuantizationSettings,
    calibration_batches,
    plot_histograms,
    resolve,
    scheme_of,
    storage_report,
    weight_histograms,
)
from duonlp.typing import Engine
from duonlp.util.pictures import check_picture_file, require_matplotlib
from duonlp.util.reading import read_text_file

CHECKED = 16
"""Texts on which the outputs are compared with the float model's."""

TEXT_ENDINGS = ".txt", ".py", ".md"
"""Endings of files in which each line is a text."""


@dataclass(frozen=True)
class CalibrationData:
    """Texts to calibrate with.

    Attributes:
        source: A file, a folder or a dataset on the Hub as for :func:`duonlp.data.read_labelled_texts`, labeled or not; or a
            text file with one text per line. "" for none.
        split: Its split.
        text_column: Its text column.
        encoding: Its encoding; None for UTF-8.
        limit: Number of texts, evenly spaced.
        batch_size: Texts per batch.
        max_length: Tokens to which they are truncated.
    """

    source: str = ""
    split: str | None = None
    text_column: str | None = None
    encoding: str | None = None
    limit: int = 512
    batch_size: int = 32
    max_length: int = 128

    def __post_init__(self):
        for name in ("limit", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def texts(self) -> list[str]:
        """Read the texts; none without a source.

        Raises:
            InputError: The source cannot be read, or has no texts.
        """
        if not self.source:
            return []
        if self.source.lower().endswith(TEXT_ENDINGS):
            content = read_text_file(self.source, f"the data {self.source!r}", "give a text file", self.encoding)
            lines = [line.strip() for line in content.splitlines() if line.strip()]
            if not lines:
                raise InputError(f"{self.source!r} has no text; give a file with one text per line")
            chosen = np.linspace(0, len(lines) - 1, min(self.limit, len(lines))).round().astype(int)
            return [lines[i] for i in chosen]
        texts = read_unlabelled_texts(
            self.source, self.split, text_column=self.text_column, limit=self.limit, encoding=self.encoding
        )
        return [text if isinstance(text, str) else "\n\n".join(text) for text in texts]


def quantize_checkpoint(
    package: Engine,
    model: str,
    output: str | os.PathLike[str],
    settings: QuantizationSettings | None = None,
    data: CalibrationData | None = None,
    *,
    head: str | None = None,
    overwrite: bool = False,
    plot: str = "",
    on_stage: Callable[[str], Any] = str,
) -> dict[str, Any]:
    """Quantize a checkpoint, and write it with its tokenizer and other small files.

    Args:
        package: tfnlp or jaxnlp.
        model: The checkpoint: a folder or a Hub id.
        output: Folder to write.
        settings: What to quantize, and how. None: what the checkpoint was prepared for by quantization-aware training, or int8.
        data: Texts to calibrate with, and to compare outputs on; by default none, and outputs are compared on three sentences.
        head: Head to load; by default the one the checkpoint was saved with.
        overwrite: Whether ``output`` may hold files; those that are not written are kept.
        plot: A file for a plot of the weights before and after; "" for none.
        on_stage: Called with what happens next, such as "quantizing".

    Returns:
        "source", "output", "model_type", "head", "settings", "texts" (how many calibrated), "size" (bytes of the weight files
        "before" and "after"), "tensors" (see :func:`duonlp.quantization.storage_report`), "outputs" (see :func:`compare_outputs`)
        and "seconds".

    Raises:
        InputError: The output holds files, a setting or a pattern does not fit the model, or calibration data is missing.
        CheckpointError: The checkpoint cannot be read.
    """
    start = time.perf_counter()
    output, data = Path(output).expanduser(), data or CalibrationData()
    checkpoint, cfg, head = _opened(model, output, head, overwrite, plot)
    if cfg.quantization is not None and not cfg.quantization.simulated:
        raise InputError(
            f"{model!r} is already quantized ({scheme_of(cfg.quantization)})",
            remedy="quantize the original, or restore float weights with duonlp.checkpoints.convert(..., dequantize=True)",
            argument="scheme",
        )
    if settings is None and cfg.quantization is None:
        settings = QuantizationSettings()
    if settings is not None:
        resolve(settings, cfg, head)  # raises before weights are read
        if settings.needs_data and not data.source:
            by = f"scheme {settings.scheme}" if settings.rounding == "nearest" else f"rounding {settings.rounding}"
            raise InputError(
                f"{by} needs calibration data",
                remedy="pass typical texts as data, a few hundred suffice",
                argument="calibration",
            )
    texts, batches = data.texts(), None
    if texts:
        on_stage("tokenizing")
        batches = calibration_inputs(checkpoint, cfg, head, texts, data)
    on_stage("loading")
    plain = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint)
    on_stage("calibrating and quantizing" if batches is not None and settings and settings.needs_data else "quantizing")
    options = {} if settings is None else asdict(settings)
    needed = batches if settings is not None and settings.needs_data else None
    quantized = package.quantize(plain, options.pop("scheme", None), batches=needed, **options)
    on_stage("saving")
    _write(quantized, output, checkpoint)
    on_stage("comparing")
    cfg = quantized.config
    before, after = (_reader(package.parameter_tree(m)) for m in (plain, quantized))
    if plot:
        plot_histograms(weight_histograms(before, after, cfg, head), plot)
    return {
        "source": model, "output": str(output), "model_type": cfg.model_type, "head": head,
        "settings": None if settings is None else asdict(settings), "texts": len(texts) if needed is not None else 0,
        "size": {"before": _weight_bytes(checkpoint.folder), "after": _weight_bytes(output)},
        "tensors": [asdict(row) for row in storage_report(before, after, cfg, head)],
        "outputs": compare_outputs(package, plain, quantized, make_inputs(checkpoint, cfg, head, texts[:CHECKED] or None)),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def compare_outputs(package: Engine, plain: Any, quantized: Any, inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Run two models and compare each of their outputs at real tokens.

    Returns:
        Rows with "output" (its name), "relative" (largest difference divided by the largest magnitude), and for logits
        "same_predictions" (share of equal arg max).
    """
    first, second = (package.compiled(model)(**inputs) for model in (plain, quantized))
    mask, rows = np.asarray(inputs.get("attention_mask", True), bool), []
    for name, value in first.items():
        if not hasattr(value, "shape") or name not in second:
            continue
        a, b = np.asarray(value, np.float32), np.asarray(second[name], np.float32)
        if mask.ndim and a.ndim > mask.ndim and a.shape[: mask.ndim] == mask.shape:
            a, b = a[mask], b[mask]
        row = {"output": name, "relative": float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))}
        if name.endswith("logits") and a.ndim and a.shape[-1] > 1:
            row["same_predictions"] = float((a.argmax(-1) == b.argmax(-1)).mean())
        rows.append(row)
    return rows


def calibration_inputs(
    checkpoint: Checkpoint, cfg: TransformerConfig, head: str, texts: Sequence[str], data: CalibrationData
) -> list[dict[str, np.ndarray]]:
    """Return calibration batches; a decoder reads the same texts as the encoder.

    Args:
        checkpoint: Checkpoint with the tokenizer.
        cfg: Configuration of the model.
        head: Its head.
        texts: Texts to calibrate with.
        data: Number of texts in a batch, and of tokens.

    Raises:
        InputError: The model reads no texts, or the tokenizer is not the model's.
        CheckpointError: There is no tokenizer.
    """
    specs = {spec.name for spec in input_specs(cfg, head)}
    if "input_ids" not in specs:
        raise InputError(f"a {cfg.model_type} reads no texts; quantize it in Python, with batches of its inputs")
    batches = calibration_batches(checkpoint.tokenizer(), texts, data.batch_size, min(data.max_length, cfg.max_length))
    words = cfg.embedding.vocab_size
    largest = max(int(batch["input_ids"].max()) for batch in batches)
    if largest >= words:
        raise InputError(
            f"the tokenizer of {str(checkpoint.folder)!r} gives id {largest}, but the model has {words} words; put the model's "
            "own tokenizer into the folder"
        )
    out = []
    for batch in batches:
        batch = {name: values for name, values in batch.items() if name in specs}
        if cfg.decoder is not None:
            batch |= {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": batch["attention_mask"]}
            batch = {name: values for name, values in batch.items() if name in specs}
        if HEADS[head].has_choices:  # [B, T] -> [B, 1, T]
            batch = {name: values[:, None] for name, values in batch.items()}
        out.append(batch)
    return out


def _opened(
    model: str, output: Path, head: str | None, overwrite: bool, plot: str
) -> tuple[Checkpoint, TransformerConfig, str]:
    """Return the checkpoint, its configuration and the head, after checking what is written."""
    check_output(output, overwrite)
    if plot:
        check_picture_file(Path(plot))
        require_matplotlib("weights are plotted")
    checkpoint = open_checkpoint(model)
    if output.resolve() == checkpoint.folder.resolve():
        raise InputError(f"{str(output)!r} is the checkpoint itself; give another folder to write")
    head = checkpoint.head if head is None else head
    cfg = checkpoint.transformer_config(head)
    architectures.class_name(cfg.model_type, head)
    return checkpoint, cfg, head


def _write(model: Any, output: Path, checkpoint: Checkpoint) -> None:
    """Save a model, with the small files of its checkpoint, atomically."""
    with atomic_folder(output) as new:
        saved = new / f".quantized-{secrets.token_hex(6)}"
        model.save_pretrained(saved)
        written = {file.name for file in saved.iterdir()}
        for file in saved.iterdir():
            os.replace(file, new / file.name)
        saved.rmdir()
        copy_files(checkpoint.folder, new, [name for name in small_files(checkpoint.folder) if name not in written])


def _reader(tree: Mapping[str, Any]) -> Callable[[str], np.ndarray]:
    return lambda path: np.asarray(tree[path])


def _weight_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weight files."""
    return sum(file.stat().st_size for file in model_files(folder))
