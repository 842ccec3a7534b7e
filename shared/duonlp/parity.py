"""One checkpoint through several frameworks, and how far their numbers are apart.

The reference is Transformers' PyTorch model when torch is there. Frameworks are imported inside the functions, when
they are asked for: importing this module imports none.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.errors import CheckpointError, InputError, MissingExtraError
from duonlp.util import frameworks as available

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
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "next-sentence-prediction": "AutoModelForNextSentencePrediction",
    "pretraining": "AutoModelForPreTraining",
    "replaced-token-detection": "AutoModelForPreTraining",
}
"""The AutoModel class of a head; the same name in tfnlp and in jaxnlp."""


@dataclass(frozen=True)
class Row:
    """One output of one framework against the reference.

    difference: largest absolute difference over real tokens, infinite where one of the two lacks the output or has
    another shape. relative: that over the reference's largest magnitude.
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
    """What :func:`compare` found.

    skipped: framework to why. generated: framework to the ids after the prompt. generated_together: framework to the ids
    after two prompts, the second shorter and padded on the left.
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

    @property
    def same_ids(self) -> bool | None:
        """Whether every framework generated the same ids; None where nothing was generated."""
        if not self.generated:
            return None
        return all(
            ids == next(iter(found.values()))
            for found in (self.generated, self.generated_together)
            for ids in found.values()
        )

    @property
    def ok(self) -> bool:
        """Whether there was something to compare, all of it is within the tolerance, and all ids are the same."""
        return bool(self.rows) and all(row.ok for row in self.rows) and self.same_ids is not False

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return asdict(self) | {"same_ids": self.same_ids, "ok": self.ok}

    def __str__(self):
        lines = [f"{self.checkpoint} ({self.model_type}, {self.head}), tolerance {self.tolerance:g}:"]
        lines += [
            f"  {row.output} {list(row.shape)}: {row.framework} - {row.reference} = {row.difference:.2e}"
            f" (relative {row.relative:.2e}) {'ok' if row.ok else 'BEYOND TOLERANCE'}"
            for row in self.rows
        ]
        for framework, ids in self.generated.items():
            lines.append(f"  {framework} generated {ids}; from two prompts {self.generated_together[framework]}")
        lines += [f"  {framework} was left out: {why}" for framework, why in self.skipped.items()]
        return "\n".join(lines)


def compare(
    checkpoint,
    head: str | None = None,
    inputs: Sequence[str] | Mapping[str, np.ndarray] | None = None,
    frameworks: Iterable[str] = FRAMEWORKS,
    *,
    tolerance: float = 1e-5,
    max_new_tokens: int = 16,
    local_files_only: bool = False,
) -> Report:
    """Runs a checkpoint through each framework in float32 and compares all outputs.

    Args:
        checkpoint: a folder or a Hub id.
        head: one of ``duonlp.architectures.HEADS``; the one the checkpoint was saved with by default.
        inputs: texts, or arrays by name (``input_ids`` int [B, T] and others); a few sentences by default, or random
            ids where the checkpoint has no tokenizer.
        frameworks: which of "tf", "jax" and "torch". Those not installed are left out, and the report says so.
        tolerance: largest difference allowed, relative to the largest magnitude of the reference's output.
        max_new_tokens: tokens a causal language model continues the first input with, greedily; 0 for none. It is
            continued alone, and in a batch with a shorter prompt, its own first half.
        local_files_only: never go to the network.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: the family has no such head.
        InputError: an unknown framework, or unusable inputs.
        MissingExtraError: fewer than two of the frameworks are installed.
    """
    frameworks = list(dict.fromkeys(frameworks))
    for name in frameworks:
        if name not in FRAMEWORKS:
            raise InputError(f"framework {name!r} is not one of {', '.join(FRAMEWORKS)}")
    opened = open_checkpoint(checkpoint, local_files_only=local_files_only)
    config = opened.transformer_config()
    head = opened.head if head is None else head
    architectures.class_name(config.model_type, head)
    report = Report(str(checkpoint), config.model_type, head, tolerance)

    installed = [name for name in frameworks if available.installed(name)]
    report.skipped = {
        name: f"{available.NEEDS[name]} is not installed ({available.INSTALL[name]})"
        for name in frameworks
        if name not in installed
    }
    if len(installed) < 2:
        missing = "; ".join(report.skipped.values()) or "ask for one more with frameworks="
        raise MissingExtraError(
            f"a comparison needs two frameworks, and {', '.join(installed) or 'none'} is here: {missing}"
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
        if head in ("causal-lm", "seq2seq-lm") and max_new_tokens:
            prompt = batch["input_ids"][:1, np.asarray(batch["attention_mask"][0], bool)]
            if config.decoder is None:
                prompt = prompt[
                    :, : max(1, config.max_length - max_new_tokens)
                ]  # room to go on, however long the input
                count = min(max_new_tokens, config.max_length - prompt.shape[1])
            else:
                count = min(max_new_tokens, config.decoder.max_length - 1)
            (report.generated[name],) = _continued(generate, config, prompt, np.ones_like(prompt), count)
            report.generated_together[name] = _continued(generate, config, *_with_its_half(prompt, config), count)
    _fill_rows(report, outputs, batch["attention_mask"])
    return report


def assert_parity(
    checkpoint, head: str | None = None, inputs=None, frameworks: Iterable[str] = FRAMEWORKS, **options
) -> Report:
    """:func:`compare` for a test: raises AssertionError with all the numbers unless everything agrees."""
    report = compare(checkpoint, head, inputs, frameworks, **options)
    if not report.ok:
        raise AssertionError(str(report))
    return report


def make_inputs(checkpoint: Checkpoint, config, head: str, inputs=None) -> dict[str, np.ndarray]:
    """A batch of int32 arrays with padding on the right: from texts, from arrays, or made up."""
    if isinstance(inputs, Mapping):
        if "input_ids" not in inputs:
            raise InputError(f"inputs has {', '.join(inputs) or 'nothing'}; it needs input_ids, int [batch, length]")
        batch = {name: np.asarray(value, np.int32) for name, value in inputs.items()}
        return {"attention_mask": np.ones_like(batch["input_ids"])} | batch
    texts = [inputs] if isinstance(inputs, str) else list(TEXTS if inputs is None else inputs)
    try:
        rows = _tokenized(checkpoint, config, texts)
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
    if config.decoder is not None and head in ("base", "seq2seq-lm"):
        # Of a few tokens: what matters is that all are told the same.
        ids = np.random.default_rng(0).integers(0, config.decoder.embedding.vocab_size, (len(rows), DECODED), np.int32)
        batch["decoder_input_ids"] = ids
    if head == "multiple-choice":  # [B, T] -> [1, choices, T]
        batch = {name: value[None] for name, value in batch.items()}
    return batch


DECODED = 5
"""Tokens that a decoder is given."""


def _continued(generate, config, prompts: np.ndarray, mask: np.ndarray, count: int) -> list[list[int]]:
    ids = np.asarray(generate(prompts, mask, count))
    return ids[:, prompts.shape[1] if config.decoder is None else 1 :].tolist()


def _with_its_half(prompt: np.ndarray, config) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, int32 [2, T], of a prompt [1, T] and its first half, padded on the left; of a source, on the right."""
    length = prompt.shape[1]
    half = max(1, length // 2)
    where = slice(length - half, None) if config.decoder is None else slice(half)
    mask = np.ones((2, length), np.int32)
    mask[1] = 0
    mask[1, where] = 1
    ids = np.repeat(prompt, 2, axis=0)
    ids[1] = config.pad_token_id if config.pad_token_id is not None else 0
    ids[1, where] = prompt[0, :half]
    return ids, mask


def _tokenized(checkpoint, config, texts) -> list[list[int]]:
    tokenizer = checkpoint.tokenizer()
    limit = min(config.max_length, int(min(tokenizer.model_max_length, 10**9)))
    encoded = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    if not all(encoded):
        raise InputError("an input has no token the tokenizer knows; leave it out")
    return encoded


Runner = tuple[Callable[[dict], dict[str, np.ndarray]], Callable[[np.ndarray, np.ndarray, int], np.ndarray]]


def _load(name: str, checkpoint: Checkpoint, head: str) -> Runner:
    package = available.package(name)
    model = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint.folder, local_files_only=True)
    call = package.compiled(model)

    def forward(batch):
        return _arrays(call(**batch))

    def generate(prompts, mask, count):
        return model.generate(prompts, mask, max_new_tokens=count, do_sample=False, num_beams=1)

    return forward, generate


def _load_torch(checkpoint: Checkpoint, config, head: str, report: Report) -> Runner | None:
    import torch
    import transformers

    model_class = getattr(transformers, architectures.class_name(config.model_type, head))
    with _silent_transformers():
        model, info = model_class.from_pretrained(
            checkpoint.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        report.skipped["torch"] = (
            f"the checkpoint has no weights for the {head} head ({names}), so torch makes up its own"
        )
        return None
    model.eval()

    def forward(batch):
        with torch.no_grad():
            return _arrays(model(**{key: torch.from_numpy(value).long() for key, value in batch.items()}))

    def generate(prompts, mask, count):
        ids, mask = torch.from_numpy(prompts).long(), torch.from_numpy(mask).long()
        with _silent_transformers(), torch.no_grad():
            return model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, num_beams=1).numpy()

    return forward, generate


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """What it says of loading and generating is not about the numbers."""
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
    """The outputs that are one float array each; caches and lists of layers are left out."""
    arrays = {}
    for name, value in outputs.items():
        if not hasattr(value, "shape"):
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "iub":
            arrays[RENAMED.get(name, name)] = array.astype(np.float32)
    return arrays


RENAMED: dict[str, str] = {"sop_scores": "sop_logits"}
"""Outputs that Transformers calls otherwise."""


def _fill_rows(report: Report, outputs: dict[str, dict[str, np.ndarray]], mask: np.ndarray) -> None:
    reference = "torch" if "torch" in outputs else next(iter(outputs))
    real = np.asarray(mask, bool)
    for framework, arrays in outputs.items():
        if framework == reference:
            continue
        for name in dict.fromkeys([*outputs[reference], *arrays]):
            got, wanted = arrays.get(name), outputs[reference].get(name)
            if got is None or wanted is None or got.shape != wanted.shape:
                shape = (wanted if got is None else got).shape
                report.rows.append(Row(name, framework, reference, shape, float("inf"), float("inf"), False))
                continue
            # What stands at padding is nobody's result.
            per_token = wanted.ndim >= 2 and wanted.shape[: real.ndim] == real.shape
            a, b = (got[real], wanted[real]) if per_token else (got, wanted)
            difference = float(np.abs(a - b).max(initial=0.0))
            relative = difference / max(float(np.abs(b).max(initial=0.0)), 1e-30)
            ok = bool(relative <= report.tolerance)  # False for a nan, too
            report.rows.append(Row(name, framework, reference, wanted.shape, difference, relative, ok))
