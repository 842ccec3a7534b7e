"""Labels and weights in random forms: a form gives the loss of the plain one, or an InputError, in both engines."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from tests.attack.harness import HELD, Budget, Outcome, attack

HF = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
ROWS, LENGTH = 4, 5
HEADS = (
    "sequence-classification", "token-classification", "question-answering", "masked-lm", "next-sentence-prediction",
    "pretraining", "replaced-token-detection",
)  # fmt: skip
EQUAL = {
    "plain": lambda v: v,
    "uint8": lambda v: v.astype(np.uint8),
    "int8": lambda v: v.astype(np.int8),
    "uint64": lambda v: v.astype(np.uint64),
    "column": lambda v: v[:, None] if v.ndim == 1 else v,
    "list": lambda v: v.tolist(),
    "Fortran order": lambda v: np.asfortranarray(v),
    "strided": lambda v: np.repeat(v, 2, 0)[::2],
    "read-only": lambda v: np.frombuffer(np.ascontiguousarray(v).tobytes(), v.dtype).reshape(v.shape),
}
"""Forms that train like the plain one."""
OTHER = {
    "float": lambda v: v.astype(np.float64),
    "one-hot": lambda v: np.eye(30, dtype=int)[v],
    "text": lambda v: v.astype(str),
    "objects": lambda v: v.astype(object),
    "None": lambda v: np.full(v.shape, None),
    "NaN": lambda v: np.full(v.shape, np.nan),
    "beyond": lambda v: np.where(np.arange(v.size).reshape(v.shape) == v.size - 1, 200, v).astype(np.uint8),
    "negative": lambda v: np.where(np.arange(v.size).reshape(v.shape) == 0, -3, v),
    "fewer rows": lambda v: v[:-1],
    "another axis": lambda v: v[..., None, None],
    "scalar": lambda v: v.flat[0],
    "ragged": lambda v: [[1], [2, 3], [1], [1]],
    "empty": lambda v: v[:0],
    "complex": lambda v: v.astype(complex),
    "dates": lambda v: v.astype("datetime64[D]"),
    "dict": lambda v: {"a": v},
}
"""Forms of which some heads take some, and which end in a loss or an InputError."""


@cache
def _models(head: str) -> dict[str, Any]:
    """Return a small model of both engines."""
    import jaxnlp.heads
    import tfnlp.heads

    hf = HF | {"num_labels": 2 if head == "question-answering" else 3}
    if head == "replaced-token-detection":
        hf |= {"model_type": "electra", "embedding_size": 8}
    heads = {"tfnlp": tfnlp.heads.HEADS, "jaxnlp": jaxnlp.heads.HEADS}
    return {engine: classes[head].from_config(hf, seed=1) for engine, classes in heads.items()}


@attack("labels")
def labels(budget: Budget) -> Iterator[Outcome]:
    """Call every head with labels in random forms, and compare the loss with that of the plain ones."""
    from duonlp.errors import InputError
    from duonlp.heads import outputs_of

    count = 1 if budget.cases <= 20 else len(HEADS)  # the first call of a model takes seconds
    for _ in budget:
        rng, head = budget.rng, HEADS[budget.rng.integers(count)]
        ids, config = rng.integers(1, 30, (ROWS, LENGTH)), _models(head)["tfnlp"].config
        plain = {}
        for output in outputs_of(head, config):
            classes = LENGTH if output.over == "positions" else output.classes(config)
            plain[output.labels] = rng.integers(0, classes, (ROWS, LENGTH) if output.per_token else ROWS)
        name = str(rng.choice(list(EQUAL | OTHER)))
        changed = str(rng.choice(list(plain)))
        form = plain | {changed: (EQUAL | OTHER)[name](plain[changed])}
        found = {}
        for engine, model in _models(head).items():
            case = f"{head}, {changed} as {name}, {engine}"
            expected = float(model(input_ids=ids, **plain)["loss"])
            try:
                found[engine] = float(model(input_ids=ids, **form)["loss"])
            except InputError as error:
                found[engine] = "InputError"
                refused = name in EQUAL
                yield Outcome(case, "wrong" if refused else HELD, str(error) if refused else "")
                continue
            except Exception as error:
                yield Outcome(case, "traceback", f"{type(error).__name__}: {error}")
                continue
            right = np.isfinite(found[engine]) and (name in OTHER or abs(found[engine] - expected) < 1e-5 * expected)
            yield Outcome(case, HELD if right else "wrong", "" if right else f"{found[engine]}, not {expected}")
        if len({isinstance(value, str) for value in found.values()}) > 1:
            yield Outcome(f"{head}, {changed} as {name}", "wrong", f"the engines differ: {found}")
