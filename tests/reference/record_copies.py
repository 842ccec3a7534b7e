"""Record the logits of Transformers' PyTorch models with tensors of their own (tests/copies.py), for tests without torch.

    python -m tests.reference.record_copies

Writes tests/reference/copies.npz.
"""

import tempfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("copies.npz")

NAMES = (
    "gpt2-causal-lm+lm_head.weight",
    "t5-seq2seq-lm+lm_head.weight",
    "bart-seq2seq-lm+model.decoder.embed_tokens.weight",
    "pegasus-seq2seq-lm+model.encoder.embed_positions.weight+model.decoder.embed_positions.weight",
)
"""The models: an output, an output with scaled hidden states, words of the decoder, and positions."""


def main() -> None:
    """Record all models."""
    from tests.copies import OWN
    from tests.engines import run

    models, recorded = {own.name: own for own in OWN}, {}
    for name in NAMES:
        own = models[name]
        with tempfile.TemporaryDirectory() as folder:
            outputs, _ = run(
                "torch", own.write(Path(folder) / "model"), own.case.head, own.case.inputs(), gradients=False
            )
        recorded[name] = outputs["logits"].astype(np.float32)
    np.savez_compressed(FILE, **recorded)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
