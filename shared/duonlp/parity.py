"""Compare the outputs of one checkpoint across frameworks.

The reference is Transformers' PyTorch model if torch is installed. For a checkpoint with quantized weights it is that model with
the floating-point weights that the integers stand for; activations that are quantized, too, have no reference but the other
engine. Frameworks are imported lazily, inside functions.
"""

import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.checkpoints.conversion import convert
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.heads import HEADS
from duonlp.inputs import input_specs
from duonlp.util import frameworks as available
from duonlp.util.tokenization import tokenize

FRAMEWORKS = ("tf", "jax", "torch")
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Paris is the capital of France, and has been so for most of a thousand years.",
    "Yes!",
)
AUTO_CLASSES = {
    "base": "AutoModel",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "next-sentence-prediction": "AutoModelForNextSentencePrediction",
    "pretraining": "AutoModelForPreTraining",
    "replaced-token-detection": "AutoModelForPreTraining",
}
"""Auto class by head; tfnlp and jaxnlp use the same names."""


TOLERANCE, TOLERANCE_OF_QUANTIZED = 1e-5, 1e-3
"""Largest difference, relative to the largest output: of float32 products, and where activations are rounded to integers, which
may differ by one."""


@dataclass(frozen=True)
class Row:
    """Comparison of one output of one framework with the reference.

    Attributes:
        output: Name of the output.
        framework: "tf", "jax" or "torch".
        reference: Framework it is compared with.
        shape: Shape of the output.
        difference: Largest absolute difference over real tokens; infinite if either lacks the output or
            shapes differ.
        relative: ``difference`` divided by the largest magnitude in the reference.
        ok: Whether ``relative`` is within the tolerance.
    """

    output: str
    framework: str
    reference: str
    shape: tuple[int, ...]
    difference: float
    relative: float
    ok: bool


@dataclass
class Report:
    """Result of :func:`compare`.

    Attributes:
        checkpoint: Folder or Hub id.
        model_type: Model family.
        head: Head that was run.
        tolerance: Largest relative difference allowed.
        rows: One comparison per framework and output.
        generated: Framework to the ids generated after the prompt.
        generated_together: Framework to the ids generated after two prompts, the second one shorter and padded.
        load_seconds: Framework to the time to load the model.
        forward_seconds: Framework to the time of the second forward pass, after compilation.
        skipped: Framework to the reason why it was skipped.
        reference: What the outputs are compared with, in words.
    """

    checkpoint: str
    model_type: str
    head: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    generated: dict[str, list[int]] = field(default_factory=dict)
    generated_together: dict[str, list[list[int]]] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    forward_seconds: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    reference: str = ""

    @property
    def same_ids(self) -> bool | None:
        """Whether every framework generated the same ids; None if nothing was generated."""
        if not self.generated:
            return None
        by_framework: tuple[Mapping[str, list], ...] = (self.generated, self.generated_together)
        return all(ids == next(iter(generated.values())) for generated in by_framework for ids in generated.values())

    @property
    def ok(self) -> bool:
        """Whether there is at least one comparison, all are within the tolerance, and all generated ids agree."""
        return bool(self.rows) and all(row.ok for row in self.rows) and self.same_ids is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self) | {"same_ids": self.same_ids, "ok": self.ok}

    def __str__(self) -> str:
        lines = [f"{self.checkpoint} ({self.model_type}, {self.head}), tolerance {self.tolerance:g}:"]
        lines += [f"  reference: {self.reference}"] if self.reference else []
        lines += [
            f"  {row.output} {list(row.shape)}: {row.framework} - {row.reference} = {row.difference:.2e}"
            f" (relative {row.relative:.2e}) {'ok' if row.ok else 'EXCEEDS TOLERANCE'}"
            for row in self.rows
        ]
        for framework, ids in self.generated.items():
            lines.append(f"  {framework} generated {ids}, and {self.generated_together[framework]} in a batch of two")
        lines += [f"  {framework} was skipped: {reason}" for framework, reason in self.skipped.items()]
        return "\n".join(lines)


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
    if len(installed) < 2:
        remedy = "; ".join(report.skipped.values()) or "add one with frameworks="
        raise MissingExtraError(
            f"a comparison needs two frameworks, but got {', '.join(installed) or 'none'}: {remedy}"
        )

    if rounds and "torch" in installed:
        installed.remove("torch")
        report.skipped["torch"] = (
            "the checkpoint rounds activations to integers, which the engines do alike but torch does not"
        )
    batch = make_inputs(opened, config, head, inputs)
    outputs: dict[str, dict[str, np.ndarray]] = {}
    for name in installed:
        start = time.perf_counter()
        runner = _load_torch(opened, config, head, report) if name == "torch" else _load(name, opened, head)
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


def make_inputs(
    checkpoint: Checkpoint,
    config: TransformerConfig,
    head: str,
    inputs: str | Sequence[str] | Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return a batch made from texts, right-padded, or from arrays; by default from default texts or random numbers.

    Raises:
        InputError: The arrays lack the model's main input, a text has no tokens, or the model reads no texts.
    """
    specs = {spec.name: spec for spec in input_specs(config, head)}
    main = next(iter(specs.values()))
    if isinstance(inputs, Mapping):
        if main.name not in inputs:
            raise InputError(
                f"inputs has {', '.join(inputs) or 'no arrays'}; it needs {main.name}, {main.dtype} {main}"
            )
        dtypes = {name: spec.dtype for name, spec in specs.items()}
        batch = {name: np.asarray(value, dtypes.get(name, "int32")) for name, value in inputs.items()}
        return ({"attention_mask": np.ones_like(batch[main.name])} if "attention_mask" in specs else {}) | batch
    if main.source != "tokens":
        if inputs is not None:
            raise InputError(
                f"a {config.model_type} reads no texts; pass {main.name}, {main.dtype} {main}, as an array"
            )
        shape = [3 if size is None else size for size in main.shape]
        return {main.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    texts = [inputs] if isinstance(inputs, str) else list(TEXTS if inputs is None else inputs)
    try:
        rows = _tokenize(checkpoint, config, texts)
    except CheckpointError:
        if inputs is not None:
            raise
        rng = np.random.default_rng(0)
        lengths = [min(n, config.max_length) for n in (12, 7, 3)]
        rows = [rng.integers(0, config.embedding.vocab_size, n).tolist() for n in lengths]
        if config.classification.token == "last_eos":
            rows = [[*(i for i in row[:-1] if i != config.eos_token_id), config.eos_token_id] for row in rows]
    length = max(map(len, rows))
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    batch = {
        "input_ids": np.array([row + [pad] * (length - len(row)) for row in rows], np.int32),
        "attention_mask": np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32),
    }
    if config.decoder is not None and HEADS[head].reads_target:
        # Random ids will do: all frameworks get the same ones.
        rng, size = np.random.default_rng(0), (len(rows), DECODER_LENGTH)
        batch["decoder_input_ids"] = rng.integers(0, config.decoder.embedding.vocab_size, size, np.int32)
    if HEADS[head].has_choices:  # [B, T] -> [1, choices, T]
        batch = {name: value[None] for name, value in batch.items()}
    return batch


DECODER_LENGTH = 5
"""Number of decoder input tokens."""

Forward = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Model inputs -> float32 outputs, by name."""

Generate = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(ids, mask, number of new tokens) -> ids, prompts included."""

Runner = tuple[Forward, Generate]


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


def _tokenize(checkpoint: Checkpoint, config: TransformerConfig, texts: list[str]) -> list[list[int]]:
    tokenizer: Any = checkpoint.tokenizer()
    limit = min(config.max_length, int(min(tokenizer.model_max_length, 10**9)))
    encoded = tokenize(tokenizer, texts, truncation=True, max_length=limit)["input_ids"]
    if not all(encoded):
        raise InputError("an input has no tokens after tokenization; remove it")
    return encoded


def _load(name: str, checkpoint: Checkpoint, head: str) -> Runner:
    package = available.package(name)
    model = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint)
    call = package.compiled(model)

    def forward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _arrays(call(**batch))

    def generate(prompts: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
        return model.generate(prompts, mask, max_new_tokens=count, do_sample=False, num_beams=1)

    return forward, generate


def _load_torch(checkpoint: Checkpoint, config: TransformerConfig, head: str, report: Report) -> Runner | None:
    """Load Transformers' model; None, with the reason in ``report.skipped``, if the checkpoint lacks the head."""
    import torch
    import transformers

    model_class = getattr(transformers, architectures.class_of(config, head))
    with _silent_transformers(), _float_folder(checkpoint, config, head) as folder:
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        report.skipped["torch"] = (
            f"the checkpoint has no weights for the {head} head ({names}), so torch would initialize random ones"
        )
        return None
    model.eval()

    def forward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        with torch.no_grad():
            tensors = {n: t if t.is_floating_point() else t.long() for n, t in tensors.items()}
            if not architectures.base_classes(config.model_type):
                return _arrays(model(**tensors))
            outputs = model(**tensors, output_hidden_states=True)  # which these classes do not return the last of
            return _arrays({"last_hidden_state": outputs["hidden_states"][-1], **outputs})

    def generate(prompts: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
        inputs = {"input_ids": torch.from_numpy(prompts).long(), "attention_mask": torch.from_numpy(mask).long()}
        with _silent_transformers(), torch.no_grad():
            return model.generate(**inputs, max_new_tokens=count, do_sample=False, num_beams=1).numpy()

    return forward, generate


@contextmanager
def _float_folder(checkpoint: Checkpoint, config: TransformerConfig, head: str) -> Generator[Path, None, None]:
    """Yield the checkpoint's folder; of quantized weights, a temporary copy in floating point, which Transformers reads."""
    if config.quantization is None:
        yield checkpoint.folder
        return
    with TemporaryDirectory(prefix="duonlp-parity-") as temporary:
        copy = Path(temporary) / "model"
        convert(checkpoint.folder, copy, head=head, dequantize=True)
        yield copy


@contextmanager
def _silent_transformers() -> Generator[None, None, None]:
    """Silence Transformers' messages about loading and generating, which do not concern the comparison."""
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the outputs that are a single float array; skip caches and per-layer lists."""
    arrays = {}
    for name, value in outputs.items():
        if not hasattr(value, "shape"):
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "iub":
            arrays[RENAMED.get(name, name)] = array.astype(np.float32)
    return arrays


RENAMED: dict[str, str] = {"sop_scores": "sop_logits"}
"""Transformers' output names that differ from ours, with our names."""


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
