"""Checkpoints with tensors that are taken to equal others, or what the model computes, and do not."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duonlp.checkpoints.safetensors_file import TensorToWrite, list_tensors, write_tensors
from duonlp.checkpoints.weight_files import WEIGHTS
from tests.cases import Case, cases

CASES = {case.name: case for case in cases()}


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Replace the tensors of a checkpoint."""
    write_tensors(folder / WEIGHTS, [TensorToWrite(n, v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()])


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint by name."""
    return {name: tensor.read() for name, tensor in list_tensors(folder / WEIGHTS).items()}


@dataclass(frozen=True)
class Own:
    """A checkpoint with tensors of its own.

    Attributes:
        case: The model.
        added: Names of the tensors that are added, and their shapes or the names of tensors of the same shapes.
        removed: Names of tensors that are removed.
        stays_tied: What the saved config.json says about ``tie_word_embeddings``.
        warns: Whether there is a warning.
        gradients: Whether gradients are those of Transformers, by the rows of the weight table.
    """

    case: Case
    added: dict[str, str | tuple[int, ...]]
    removed: tuple[str, ...] = ()
    stays_tied: bool = False
    warns: bool = True
    gradients: bool = True

    @property
    def name(self) -> str:
        """Name for the tests."""
        return "+".join((self.case.name, *self.added, *(f"-{name}" for name in self.removed)))

    def write(self, folder: Path) -> Path:
        """Write the checkpoint and return its folder."""
        self.case.write(folder)
        tensors, rng = read(folder), np.random.default_rng(7)
        for name, like in self.added.items():
            shape = tensors[like].shape if isinstance(like, str) else like
            tensors[name] = rng.normal(size=shape).astype(np.float32) * np.float32(0.3)
        rewrite(folder, {name: value for name, value in tensors.items() if name not in self.removed})
        return folder


OUTPUTS = {
    "bert-masked-lm": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "bert-pretraining": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta-masked-lm": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "albert-masked-lm": ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    "electra-masked-lm": ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    "distilbert-masked-lm": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "modernbert-masked-lm": ("decoder.weight", "model.embeddings.tok_embeddings.weight"),
    "gpt2-causal-lm": ("lm_head.weight", "transformer.wte.weight"),
    "llama-causal-lm[tie_word_embeddings=True,rms_norm_eps=0.001]": ("lm_head.weight", "model.embed_tokens.weight"),
    "t5-seq2seq-lm": ("lm_head.weight", "shared.weight"),
    **{f"{name}-seq2seq-lm": ("lm_head.weight", "model.shared.weight") for name in (
        "bart", "mbart", "pegasus", "m2m_100", "marian",
    )},
}  # fmt: skip
"""Outputs that may be tied to the words: by case, the name of the output and of the words."""

L = "lm_head.weight"
TABLE = 20, 24
POSITIONS = {f"{stack}.embed_positions.weight": TABLE for stack in ("encoder", "decoder")}


def _stacks(name: str, prefix: str = "model.") -> list[Own]:
    """Return models whose stacks have words of their own: every set of them, with and without a shared table."""
    shared, encoder, decoder = (
        f"{prefix}{part}.weight" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    out = []
    for names in ((encoder,), (decoder,), (encoder, decoder), (encoder, L), (decoder, L), (encoder, decoder, L)):
        for removed in ((), (shared,)) if len(names) > 1 else ((),):
            # Without a shared table, Transformers takes the first of the others for it.
            order = (L, decoder, encoder) if prefix else (encoder, decoder, L)
            source = next(name for name in order if name in names) if removed else shared
            tied = (decoder if decoder in names else source) == (L if L in names else source)
            out.append(Own(CASES[name], dict.fromkeys(names, shared), removed, stays_tied=tied, gradients=False))
    return out


OWN = [
    *(Own(CASES[case], {output: words}) for case, (output, words) in OUTPUTS.items()),
    *(
        Own(CASES[case], {bias: other}, stays_tied=True, gradients=False)
        for case, bias, other in (
            ("bert-masked-lm", "cls.predictions.decoder.bias", "cls.predictions.bias"),
            ("roberta-masked-lm", "lm_head.decoder.bias", "lm_head.bias"),
            ("albert-masked-lm", "predictions.decoder.bias", "predictions.bias"),
        )
    ),
    Own(CASES["marian-seq2seq-lm[share_encoder_decoder_embeddings=False,decoder_vocab_size=70]"], {L: (70, 24)}),
    *_stacks("bart-seq2seq-lm"),
    *_stacks("t5-seq2seq-lm", prefix=""),
    *_stacks("marian-seq2seq-lm")[::3],
    Own(CASES["bart-base"], {"encoder.embed_tokens.weight": "shared.weight"}, stays_tied=True, gradients=False),
    *(
        Own(CASES[case], {f"{prefix}{name}": TABLE for name in names}, stays_tied=True, warns=False)
        for case, prefix, names in (
            ("pegasus-seq2seq-lm", "model.", [*POSITIONS]),
            ("pegasus-seq2seq-lm", "model.", [*POSITIONS][1:]),
            ("marian-seq2seq-lm", "model.", [*POSITIONS]),
            ("pegasus-base", "", [*POSITIONS]),
        )
    ),
]
