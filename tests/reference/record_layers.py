"""Record the hidden states and gradients of Transformers' models of tests/layer_kinds.py, for tests without torch.

    python -m tests.reference.record_layers

Writes tests/reference/layers.npz: of each model the last hidden states, and two random projections of each gradient.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.reference.record_models import projections

if TYPE_CHECKING:
    from tests.layer_kinds import Kind

FILE = Path(__file__).with_name("layers.npz")


def digest(states: np.ndarray, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays to record: hidden states, and "gradients" float32 [parameters, 2] in the order of their paths."""
    return {
        "last_hidden_state": np.asarray(states, np.float32),
        "gradients": np.stack([projections(path, gradients[path]) for path in sorted(gradients)]),
    }


def run_torch(kind: "Kind") -> dict[str, np.ndarray]:
    """Return the digest of Transformers' model."""
    import torch
    import transformers

    from duonlp.checkpoints.layouts import our_layout
    from tests.layer_kinds import cotangent, inputs

    cls = getattr(transformers, kind.model)
    model = cls(cls.config_class(**kind.options, attn_implementation="eager")).eval()
    tensors = {name: torch.tensor(values) for name, values in kind.tensors().items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    states = model(**{name: torch.tensor(x).long() for name, x in inputs().items()}).last_hidden_state
    (states * torch.tensor(cotangent())).sum().backward()
    named, gradients = dict(model.named_parameters()), {}
    for row in kind.weights:
        gradient = our_layout(row.layout, named[row.name].grad.numpy())
        gradients[row.path] = gradient if row.part is None else row.part.of(gradient)
    return digest(states.detach().numpy(), gradients)


def main() -> None:
    """Record all models."""
    from tests.layer_kinds import KINDS

    np.savez_compressed(FILE, **{f"{name}/{k}": v for name, kind in KINDS.items() for k, v in run_torch(kind).items()})


if __name__ == "__main__":
    main()
