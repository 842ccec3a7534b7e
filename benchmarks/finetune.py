"""Time fine-tuning steps of a MiniLM-L6 text classifier: jaxnlp and tfnlp against Transformers on PyTorch and keras-hub.

    python -m benchmarks finetune [--rounds 9] [--shape 32x32] [--no-dropout] [--contestants jaxnlp tfnlp ...] [--json]

A BERT of 6 layers of width 384 with 151 labels (as CLINC150), random weights from one shared checkpoint and random tokens; the
last quarter of every other row is padding. Every contestant takes complete optimizer steps: forward with dropout of 0.1 where
BERT has it, backward, gradients clipped to a global norm of 1, AdamW with a decay of 0.01 on matrices only. bfloat16 is the
compute dtype; parameters and optimizer state are float32 (PyTorch: autocast; Keras: mixed_bfloat16).

With --no-dropout the run fails unless the losses of the first three steps agree between all contestants; the second and third
depend on gradients, clipping and optimizer. A contestant that is not installed is skipped. ``tfnlp`` uses the default of
``compile()``; ``tfnlp-xla`` and ``tfnlp-graph`` set jit_compile to True and False.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks._interleave import Setting, Work, interleave, machine, ratios, write_in_subprocess
from benchmarks._report import drop_missing, footer
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

Arrays: TypeAlias = "dict[str, np.ndarray]"
Step: TypeAlias = Callable[[], float]
"""Take one optimizer step and return its loss."""

BERT: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "max_position_embeddings": 512, "num_labels": 151,
}  # fmt: skip
LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 1e-8, 0.01, 1.0
DROPOUT = 0.1
COMPARED = 3
"""Number of first steps whose losses are compared."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Compute dtype -> largest allowed relative difference from PyTorch's loss."""
OTHER_GELU = 5e-4
"""TOLERANCE of keras-hub, whose BERT uses the tanh approximation of gelu."""

REFERENCE = "transformers-torch"
HALF = "-bfloat16"
"""Suffix of a contestant whose compute dtype is bfloat16 instead of float32."""
DEFAULTS = (REFERENCE, "jaxnlp", "tfnlp", "keras-hub-tensorflow", "keras-hub-jax")
NAMES = *DEFAULTS, "tfnlp-xla", "tfnlp-graph"
CONTESTANTS = tuple(name + half for half in ("", HALF) for name in NAMES)
ENVIRONMENTS = {
    name + half: {"KERAS_BACKEND": "jax" if name.endswith("-jax") else "tensorflow"}
    for half in ("", HALF)
    for name in NAMES
    if name not in (REFERENCE, "jaxnlp")
}


def write_checkpoint(folder: str, dropout: float) -> None:
    """Write the random weights that all contestants start from, in Hugging Face layout."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    BertForSequenceClassification(BertConfig(**BERT, **rates)).save_pretrained(folder)


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that takes one optimizer step.

    Args:
        name: One of CONTESTANTS.
        setting: ``batch``, ``length``, ``dropout``, and ``folder``, which contains the checkpoint; the losses of the first
            COMPARED steps are written to ``{name}.json`` in it.
    """
    import numpy as np

    batch, length = setting["batch"], setting["length"]
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": rng.integers(1000, BERT["vocab_size"], (batch, length)).astype(np.int32),
        "attention_mask": np.ones((batch, length), np.int32),
        "token_type_ids": np.zeros((batch, length), np.int32),
    }
    inputs["attention_mask"][1::2, length - length // 4 :] = 0
    labels = rng.integers(0, BERT["num_labels"], batch).astype(np.int32)
    dtype = "bfloat16" if name.endswith(HALF) else "float32"
    step = globals()["_" + name.removesuffix(HALF).replace("-", "_")](setting, dtype, inputs, labels)
    losses: list[float] = []

    def work() -> None:
        loss = step()
        if len(losses) < COMPARED:
            losses.append(loss)
            if len(losses) == COMPARED:
                (Path(setting["folder"]) / f"{name}.json").write_text(to_json(losses), encoding="utf-8")

    return work


def _transformers_torch(setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray") -> Step:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(setting["folder"]).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=True)
    batch = {name: torch.tensor(value).long() for name, value in (inputs | {"labels": labels}).items()}

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def _jaxnlp(setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray") -> Step:
    from duonlp.util import keep_heap

    keep_heap()  # as fit does
    import jaxnlp
    from duonlp.training import FitConfig
    from jaxnlp.training.mesh import make_mesh
    from jaxnlp.training.step import FitStep

    model = jaxnlp.AutoModelForSequenceClassification.from_pretrained(setting["folder"], dtype=dtype)
    config = FitConfig(weight_decay=WEIGHT_DECAY, beta1=BETA1, beta2=BETA2, clip_norm=CLIP_NORM)
    fit_step = FitStep(model, config, make_mesh())
    state = fit_step.init_state()
    batch = fit_step.put(inputs | {"labels": labels})

    def step():
        nonlocal state
        state, metrics = fit_step(state, batch, LEARNING_RATE)
        return float(metrics["loss"])

    return step


def _tfnlp(
    setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray", jit_compile: bool | str = "auto"
) -> Step:
    from duonlp.util import keep_heap

    keep_heap()  # as fit does
    import tfnlp
    from tfnlp.training.optimizers import make_optimizer

    model = tfnlp.AutoModelForSequenceClassification.from_pretrained(setting["folder"], dtype=dtype)
    options = {"weight_decay": WEIGHT_DECAY, "beta1": BETA1, "beta2": BETA2, "clip_norm": CLIP_NORM}
    optimizer = make_optimizer("adamw", LEARNING_RATE, model, epsilon=EPSILON, **options)
    model.compile(optimizer, jit_compile=jit_compile)
    return _keras_step(model, inputs | {"labels": labels}, None)


def _tfnlp_xla(setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray") -> Step:
    return _tfnlp(setting, dtype, inputs, labels, jit_compile=True)


def _tfnlp_graph(setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray") -> Step:
    return _tfnlp(setting, dtype, inputs, labels, jit_compile=False)


def _keras_hub(setting: Setting, dtype: str, inputs: Arrays, labels: "np.ndarray") -> Step:
    import keras
    import numpy as np
    from keras_hub.models import BertBackbone, BertTextClassifier
    from safetensors.numpy import load_file

    policy = "mixed_bfloat16" if dtype == "bfloat16" else "float32"
    backbone = BertBackbone.from_preset(setting["folder"], dropout=setting["dropout"], dtype=policy)
    model = BertTextClassifier(backbone, BERT["num_labels"], dropout=setting["dropout"])
    weights = load_file(Path(setting["folder"]) / "model.safetensors")
    model.output_dense.set_weights([np.ascontiguousarray(weights["classifier.weight"].T), weights["classifier.bias"]])
    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, beta_1=BETA1, beta_2=BETA2, epsilon=EPSILON, global_clipnorm=CLIP_NORM
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) <= 1])
    model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
    return _keras_step(model, {name: inputs[ours] for name, ours in names.items()}, labels)


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # ENVIRONMENTS sets the backend


def _keras_step(model: Any, x: Arrays, y: "np.ndarray | None") -> Step:
    def step():
        model.reset_metrics()  # Keras reports the mean loss since the last reset
        return float(model.train_on_batch(x, y, return_dict=True)["loss"])

    return step


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--shape", default="32x32", help="batch shape, ROWSxTOKENS (default %(default)s)")
    parser.add_argument(
        "--no-dropout", action="store_true", help="disable dropout and fail unless the first losses agree"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, metavar="NAME",
        default=[name + half for half in ("", HALF) for name in DEFAULTS],
        help=f"what to compare: {', '.join(NAMES)}, each also with {HALF} (default: all but tfnlp-xla and tfnlp-graph)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    batch, length = map(int, options.shape.split("x"))
    setting = {"batch": batch, "length": length, "dropout": 0.0 if options.no_dropout else DROPOUT}
    first_calls: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_in_subprocess(write_checkpoint, folder, setting["dropout"])
        seconds = interleave(
            "benchmarks.finetune", options.contestants, setting | {"folder": folder}, options.rounds, ENVIRONMENTS,
            first_calls=first_calls,
        )  # fmt: skip
        for name, _ in drop_missing(seconds, options.json):
            losses[name] = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    records = [record for half in ("", HALF) for record in _records(half, setting, seconds, first_calls, losses)]
    report = {"benchmark": "finetune", "machine": machine(), "rounds": options.rounds, "results": records}
    print(to_json(report, indent=2) if options.json else table(report))
    if options.no_dropout:
        _check_losses(records)


def _records(
    half: str,
    setting: Setting,
    seconds: Mapping[str, list[float]],
    first_calls: Mapping[str, float],
    losses: Mapping[str, list[float]],
) -> list[dict[str, Any]]:
    """Return one record for each contestant that ran with a compute dtype: float32 if `half` is empty, bfloat16 if it is HALF."""
    same_dtype = {name: values for name, values in seconds.items() if values and name.endswith(HALF) == bool(half)}
    relative = ratios(same_dtype, REFERENCE + half)
    return [
        setting
        | {"name": name.removesuffix(HALF), "dtype": "bfloat16" if half else "float32"}
        | {"seconds": statistics.median(values), "examples_per_second": setting["batch"] / statistics.median(values)}
        | {"ratio": relative.get(name), "first_call": first_calls[name], "losses": losses[name]}
        for name, values in same_dtype.items()
    ]


def _check_losses(records: list[dict[str, Any]]) -> None:
    """Exit with an error unless the losses of all contestants agree with PyTorch's."""
    reference = {record["dtype"]: record["losses"] for record in records if record["name"] == REFERENCE}
    for record in records:
        expected = reference.get(record["dtype"])
        if expected is None:
            continue
        difference = max(abs(a - b) / abs(b) for a, b in zip(record["losses"], expected, strict=True))
        tolerance = TOLERANCE[record["dtype"]]
        if record["name"].startswith("keras-hub"):
            tolerance = max(tolerance, OTHER_GELU)
        if not difference <= tolerance:  # also if it is NaN
            sys.exit(
                f"{record['name']} in {record['dtype']} has the losses {record['losses']}, but PyTorch has {expected}: the "
                f"relative difference {difference:.1e} exceeds {tolerance:.0e}"
            )
    print(f"the losses of the first {COMPARED} steps agree", file=sys.stderr)


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; a ratio below 1 is faster than PyTorch with the same compute dtype."""
    lines = [
        "| compute dtype | | ms per step | examples per second | ratio to PyTorch | first call, s | first losses |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        losses = " ".join(f"{loss:.4f}" for loss in r["losses"])
        lines.append(
            f"| {r['dtype']} | {r['name']} | {1000 * r['seconds']:.0f} | {r['examples_per_second']:.0f} | {ratio} "
            f"| {r['first_call']:.1f} | {losses} |"
        )
    r = report["results"][0] if report["results"] else {"batch": 0, "length": 0, "dropout": 0}
    size = f"{r['batch']} texts of {r['length']} tokens, dropout {r['dropout']}"
    return "\n".join([*lines, "", f"{size}; {footer(report)}"])


if __name__ == "__main__":
    main()
