"""A tiny RAG model of BERT and BART, its inputs, and Transformers' model of the same weights."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from duonlp.checkpoints.save import tensors_to_write, write_checkpoint
from duonlp.parameters import parameters
from duonlp.rag import RagConfig
from duonlp.rag.checkpoint import HEADS, renamed
from tests.cases import ENCODER, SEQ2SEQ, Case, _value

ROWS, DOCUMENTS, LENGTH, TARGET, QUESTION = 2, 3, 8, 6, 5
BOS, PAD, EOS = 0, 1, 2
GENERATOR = SEQ2SEQ | {
    "model_type": "bart", "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS,
    "encoder_layers": 1, "decoder_layers": 1, "tie_word_embeddings": False, "forced_eos_token_id": None,
}  # fmt: skip
QUESTION_ENCODER = ENCODER | {"num_hidden_layers": 1}
CLASSES = {"RagSequence": "RagSequenceForGeneration", "RagToken": "RagTokenForGeneration"}


@functools.cache
def folder(encoder: str = "dpr") -> Path:
    """Write the checkpoint and return its folder; it is never changed."""
    parts = {"question_encoder": QUESTION_ENCODER | {"model_type": encoder}, "generator": GENERATOR}
    cases = {name: Case(name, hf, HEADS[name]) for name, hf in parts.items()}
    rows = []
    for name, case in cases.items():
        spec = parameters(case.config, case.head)
        read = functools.partial(lambda case, spec, path: _value(case.seed, path, spec[path]), case, spec)
        rows += renamed(tensors_to_write(case.config, case.head, read, np.dtype("float32")), name)
    config = RagConfig(cases["question_encoder"].config, cases["generator"].config, n_docs=DOCUMENTS)
    path = Path(tempfile.mkdtemp()) / "rag"
    write_checkpoint(path, rows, config.hf_config("RagTokenForGeneration"), {})
    return path


def inputs(bos: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Return documents, questions and labels; ``bos``: whether all labels have it after the decoder's start token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, LENGTH + 1, ROWS * DOCUMENTS)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    labels = rng.integers(5, 55, (ROWS, TARGET))
    labels[:, 0], labels[1, -2:] = EOS, (EOS, PAD)
    labels[:, 1] = np.where(bos, BOS, labels[:, 1])
    question_mask = np.ones((ROWS, QUESTION), np.int32)
    question_mask[1, -2:] = 0
    return {
        "input_ids": rng.integers(5, 55, (ROWS, QUESTION)).astype(np.int32) * question_mask,
        "attention_mask": question_mask,
        "context_input_ids": np.where(mask, rng.integers(5, 55, (ROWS * DOCUMENTS, LENGTH)), PAD).astype(np.int32),
        "context_attention_mask": mask,
        "doc_embeddings": rng.standard_normal((ROWS, DOCUMENTS, ENCODER["hidden_size"])).astype(np.float32) * 0.2,
        "labels": labels.astype(np.int32),
    }  # fmt: skip


@functools.cache
def torch_model(name: str, encoder: str = "dpr"):
    """Return Transformers' model, asserting that the names of all tensors match."""
    import transformers

    cls = getattr(transformers, CLASSES[name])
    model, info = cls.from_pretrained(folder(encoder), output_loading_info=True, attn_implementation="eager")
    missing = {key for key in info["missing_keys"] if ".pooler." not in key}
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()
