"""Load a checkpoint in each framework. Frameworks are imported lazily, inside functions."""

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Checkpoint
from duonlp.checkpoints.conversion import convert
from duonlp.config import TransformerConfig
from duonlp.parity.report import Report
from duonlp.util import frameworks as available

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

Forward = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Model inputs -> float32 outputs, by name."""

Generate = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(ids, mask, number of new tokens) -> ids, prompts included."""

Runner = tuple[Forward, Generate]


def load(name: str, checkpoint: Checkpoint, head: str) -> Runner:
    """Load a model of one of our engines."""
    package = available.package(name)
    model = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint)
    call = package.compiled(model)

    def forward(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return _arrays(call(**batch))

    def generate(prompts: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
        return model.generate(prompts, mask, max_new_tokens=count, do_sample=False, num_beams=1)

    return forward, generate


def load_torch(checkpoint: Checkpoint, config: TransformerConfig, head: str, report: Report) -> Runner | None:
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
