"""Time pretraining steps of a small GPT-2: jaxnlp and tfnlp against Transformers on PyTorch, float32 and bfloat16.

    python -m benchmarks pretrain [--rounds 7] [--shape 8x256] [--contestants jaxnlp tfnlp ...] [--json]

6 layers of width 384, 6 heads, a vocabulary of 8,192, random weights and tokens, no dropout. Every contestant takes complete
optimizer steps: forward, backward, gradients clipped to a global norm of 1, AdamW with decay on matrices only. bfloat16 is the
compute dtype; parameters and optimizer state are float32 (PyTorch: autocast). A contestant that is not installed is skipped.
"""

import argparse
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks._interleave import Setting, Work, interleave, machine, ratios
from benchmarks._report import drop_missing, footer
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

GPT2: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 8192, "n_positions": 1024, "n_embd": 384, "n_layer": 6, "n_head": 6,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 6e-4, 0.9, 0.95, 1e-8, 0.1, 1.0
REFERENCE = "transformers-torch"
HALF = "-bfloat16"
"""Suffix of a contestant whose compute dtype is bfloat16 instead of float32."""
CONTESTANTS = tuple(name + half for half in ("", HALF) for name in (REFERENCE, "jaxnlp", "tfnlp"))

ENVIRONMENTS = {"tfnlp": {"KERAS_BACKEND": "tensorflow"}}


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that takes one optimizer step and returns its loss.

    Args:
        name: One of CONTESTANTS.
        setting: ``batch`` and ``length``.
    """
    import numpy as np

    shape = setting["batch"], setting["length"]
    ids = np.random.default_rng(0).integers(0, GPT2["vocab_size"], shape).astype(np.int32)
    dtype = "bfloat16" if name.endswith(HALF) else "float32"
    return globals()["_" + name.removesuffix(HALF).replace("-", "_")](ids, dtype)


def _transformers_torch(ids: "np.ndarray", dtype: str) -> Work:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in GPT2.items() if k != "model_type"})).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=True)
    tokens = torch.tensor(ids).long()

    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return work


def _jaxnlp(ids: "np.ndarray", dtype: str) -> Work:
    import jaxnlp
    from duonlp.training import PretrainingConfig
    from jaxnlp.training.model import parameter_reader
    from jaxnlp.training.step import make_step

    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2)
    config = PretrainingConfig(
        steps=1, batch_size=len(ids), optimizer="adamw", weight_decay=WEIGHT_DECAY, beta1=BETA1, beta2=BETA2,
        clip_norm=CLIP_NORM, dtype=dtype,
    )  # fmt: skip
    step = make_step(model, config)
    state = step.init_state(parameter_reader(model))
    batch = step.put({"input_ids": ids, "labels": _shift_labels(ids)})

    def work():
        nonlocal state
        state, metrics = step(state, batch, LEARNING_RATE)
        return float(metrics["loss"])

    return work


def _tfnlp(ids: "np.ndarray", dtype: str) -> Work:
    from duonlp.util import keep_heap

    keep_heap()
    import tensorflow as tf

    import tfnlp
    from tfnlp.training.optimizers import make_optimizer
    from tfnlp.training.pretrainer import Pretrainer

    model = tfnlp.AutoModelForCausalLM.from_config(GPT2, dtype=dtype)
    trainer = Pretrainer(model)
    options = {"weight_decay": WEIGHT_DECAY, "beta1": BETA1, "beta2": BETA2, "clip_norm": CLIP_NORM}
    trainer.compile(make_optimizer("adamw", LEARNING_RATE, model, epsilon=EPSILON, **options))
    trainer.make_train_function()
    batch = {"input_ids": tf.constant(ids), "labels": tf.constant(_shift_labels(ids))}
    train = trainer.train_function
    assert train is not None
    return lambda: float(train(iter([batch]))["step_loss"])


def _shift_labels(ids: "np.ndarray") -> "np.ndarray":
    """Return the next tokens as labels, int32 [B, T]; the last column is -100."""
    import numpy as np

    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], -100)], axis=1)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--shape", default="8x256", help="batch shape, ROWSxTOKENS (default %(default)s)")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"what to compare (default: all of {', '.join(CONTESTANTS)})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    batch, length = map(int, options.shape.split("x"))
    setting = {"batch": batch, "length": length}
    environments = {name + half: variables for name, variables in ENVIRONMENTS.items() for half in ("", HALF)}
    first_calls: dict[str, float] = {}
    records = []
    seconds = interleave(
        "benchmarks.pretrain", options.contestants, setting, options.rounds, environments, first_calls=first_calls
    )
    for half in ("", HALF):
        same_dtype = {name: values for name, values in seconds.items() if name.endswith(HALF) == bool(half)}
        relative = ratios(same_dtype, REFERENCE + half)
        for name, values in drop_missing(same_dtype, options.json):
            median = statistics.median(values)
            records.append(
                setting
                | {"name": name.removesuffix(HALF), "dtype": "bfloat16" if half else "float32", "seconds": median}
                | {"tokens_per_second": batch * length / median, "ratio": relative.get(name)}
                | {"first_call": first_calls[name]}
            )
    report = {"benchmark": "pretrain", "machine": machine(), "rounds": options.rounds, "results": records}
    print(to_json(report, indent=2) if options.json else table(report))


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; a ratio below 1 is faster than PyTorch with the same compute dtype."""
    lines = [
        "| compute dtype | | s per step | tokens per second | ratio to PyTorch | first call, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in report["results"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(
            f"| {r['dtype']} | {r['name']} | {r['seconds']:.2f} | {r['tokens_per_second']:.0f} | {ratio} "
            f"| {r['first_call']:.1f} |"
        )
    return "\n".join([*lines, "", footer(report)])


if __name__ == "__main__":
    main()
