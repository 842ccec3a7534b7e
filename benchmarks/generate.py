"""Time text generation with GPT-2: tfnlp and jaxnlp against Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks generate [--rounds 5] [--settings batch1 batch8 beams5 sample] [--json]
    python -m benchmarks generate --growth [--rounds 3] [--settings batch1]

A model of GPT-2's size (124M parameters) with random weights continues prompts of 32 random tokens by 64 tokens, in float32 on
all cores, without an end-of-sequence token. A contestant that is not installed, lacks the setting, or generates another number of
tokens is skipped. A step is one new token in every row or beam; the first step includes the pass over the prompt.

The memory bound is the time to read the weights that a step needs from memory once; no step of a few rows can be faster. Memory
bandwidth is measured in a separate process before and after all contestants, and the best measurement counts.

``--growth`` instead compares the first 64 steps with the last 64 of 512, from differences of the best times for 1, 64, 448 and
512 new tokens: how much more a step costs after a long text. It runs tfnlp and jaxnlp only.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks._interleave import Setting, Work, interleave, machine, ratios
from benchmarks._report import drop_missing, footer
from benchmarks.forward import CONTESTANTS, ENVIRONMENTS, REFERENCE
from duonlp.typing import Engine
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

Generate: TypeAlias = "Callable[[], np.ndarray]"
"""Generate once; return ids, int [B, T]."""

HF: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "batch1": {"batch": 1},
    "batch8": {"batch": 8},
    "beams5": {"batch": 1, "num_beams": 5},
    "sample": {"batch": 1, "do_sample": True, "top_k": 50, "top_p": 0.95},
}
OURS = ("tfnlp", "jaxnlp")
PROMPT = 32
"""Tokens of a prompt."""
MEMORY = "memory"
"""Contestant that measures memory bandwidth."""
MEMORY_ROUNDS = 10
BYTES_READ = 640_000_000
"""Bytes that MEMORY reads per turn: more than any cache holds."""


def count_weight_bytes() -> int:
    """Return the bytes of the float32 weights that a step reads: all but the position table, the tied output matrix once."""
    d = HF["n_embd"]
    block = 12 * d * d + 13 * d  # kernels; biases and norms
    return 4 * (HF["vocab_size"] * d + HF["n_layer"] * block + 2 * d)


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that continues one batch of prompts.

    Args:
        name: One of CONTESTANTS or MEMORY; ``tfnlp@448`` generates 448 tokens regardless of the setting.
        setting: ``batch``, ``new_tokens`` and generation options.
    """
    import numpy as np

    name, _, tokens = name.partition("@")
    if name == MEMORY:
        return _read_memory()
    setting = dict(setting)
    batch, new_tokens = setting.pop("batch"), setting.pop("new_tokens")
    new_tokens = int(tokens or new_tokens)
    prompt = np.random.default_rng(0).integers(5, HF["vocab_size"], (batch, PROMPT)).astype(np.int32)
    run: Generate = globals()["_" + name.replace("-", "_")](prompt, new_tokens, setting)

    def work() -> None:
        ids = run()
        if ids.shape != (batch, PROMPT + new_tokens) or (ids[:, :PROMPT] != prompt).any():
            raise RuntimeError(
                f"{name} returned ids {ids.shape}; expected the prompts {prompt.shape} and {new_tokens} new tokens each"
            )

    return work


def _read_memory() -> Work:
    """Return a function that multiplies a matrix and a vector, as a step does, on all cores."""
    import numpy as np

    matrix: Any = np.ones((BYTES_READ // 16_000, 4000), np.float32)
    vector: Any = np.ones(4000, np.float32)
    try:
        import torch

        matrix, vector = torch.from_numpy(matrix), torch.from_numpy(vector)
    except ImportError:
        pass
    return lambda: matrix @ vector


def _transformers_torch(prompt: "np.ndarray", new_tokens: int, options: dict[str, Any]) -> Generate:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in HF.items() if k != "model_type"})).eval()
    ids = torch.tensor(prompt).long()
    mask = torch.ones_like(ids)
    options = {"do_sample": False} | options | {"max_new_tokens": new_tokens, "pad_token_id": 0, "eos_token_id": None}

    def run():
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask, **options).numpy()

    return run


def _ours(engine: Engine, prompt: "np.ndarray", new_tokens: int, options: dict[str, Any]) -> Generate:
    model = engine.AutoModelForCausalLM.from_config(HF)
    return lambda: model.generate(prompt, max_new_tokens=new_tokens, eos_token_id=None, **options)


def _tfnlp(prompt: "np.ndarray", new_tokens: int, options: dict[str, Any]) -> Generate:
    import tfnlp

    return _ours(tfnlp, prompt, new_tokens, options)


def _jaxnlp(prompt: "np.ndarray", new_tokens: int, options: dict[str, Any]) -> Generate:
    import jaxnlp

    return _ours(jaxnlp, prompt, new_tokens, options)


def _keras_hub(prompt: "np.ndarray", new_tokens: int, options: dict[str, Any]) -> Generate:
    import numpy as np
    from keras_hub.models import GPT2Backbone, GPT2CausalLM
    from keras_hub.samplers import BeamSampler, GreedySampler, TopPSampler

    backbone = GPT2Backbone(
        vocabulary_size=HF["vocab_size"],
        num_layers=HF["n_layer"],
        num_heads=HF["n_head"],
        hidden_dim=HF["n_embd"],
        intermediate_dim=4 * HF["n_embd"],
        max_sequence_length=HF["n_positions"],
    )
    sampler = GreedySampler()
    if "num_beams" in options:
        sampler = BeamSampler(num_beams=options["num_beams"])
    elif "do_sample" in options:
        sampler = TopPSampler(p=options["top_p"], k=options["top_k"])
    model = GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler=sampler, jit_compile=True)
    padding = ((0, 0), (0, new_tokens))
    inputs = {"token_ids": np.pad(prompt, padding), "padding_mask": np.pad(np.ones_like(prompt), padding)}

    def run():
        ids = model.generate(inputs, stop_token_ids=None)["token_ids"]
        length = np.flatnonzero((ids != 0).any(axis=0))[-1] + 1  # without the columns that are still padding
        return ids[:, :length]

    return run


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # ENVIRONMENTS sets the backend


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all contestants in a setting.

    Args:
        name: Key of SETTINGS.
        options: Command-line options.

    Returns:
        One record for each contestant that ran.
    """
    setting = SETTINGS[name] | {"new_tokens": options.new_tokens}
    first_calls: dict[str, float] = {}
    seconds = interleave(
        "benchmarks.generate", options.contestants, setting, options.rounds, ENVIRONMENTS,
        settle=False, first_calls=first_calls,
    )  # fmt: skip
    relative = ratios(seconds, REFERENCE)
    records = []
    for contestant, values in drop_missing(seconds, options.json):
        median = statistics.median(values)
        record = {
            "setting": name,
            "name": contestant,
            "ms_per_step": 1000 * median / options.new_tokens,
            "tokens_per_second": setting["batch"] * options.new_tokens / median,
            "ratio": relative.get(contestant),
            "compile_seconds": first_calls[contestant] - median,
        }
        records.append(record)
    return records


def measure_bandwidth() -> float | None:
    """Return the bytes per second that all cores read from memory, the best of several turns; None if it fails."""
    seconds = interleave("benchmarks.generate", [MEMORY], {}, MEMORY_ROUNDS)[MEMORY]
    return BYTES_READ / min(seconds) if seconds else None


def add_memory_bound(records: list[dict[str, Any]], bandwidths: Sequence[float | None]) -> list[dict[str, Any]]:
    """Return the records with the memory bound of the best bandwidth (``limit_ms``) and their ratio to it."""
    best = max((bandwidth for bandwidth in bandwidths if bandwidth), default=None)
    if best is None:
        return records
    limit = 1000 * count_weight_bytes() / best
    return [
        r | {"gb_per_second": best / 1e9, "limit_ms": limit, "ratio_to_limit": r["ms_per_step"] / limit}
        for r in records
    ]


def measure_growth(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the first token, the first steps and the last steps of a long text.

    Args:
        name: Key of SETTINGS.
        options: Command-line options.

    Returns:
        One record for each of tfnlp and jaxnlp that ran.
    """
    n = options.new_tokens
    counts = (1, n, 7 * n, 8 * n)
    records = []
    for contestant in (c for c in options.contestants if c in OURS):
        names = [f"{contestant}@{count}" for count in counts]
        environments = dict.fromkeys(names, ENVIRONMENTS.get(contestant, {}))
        setting = SETTINGS[name] | {"new_tokens": n}
        seconds = interleave("benchmarks.generate", names, setting, options.rounds, environments, settle=False)
        if len(list(drop_missing(seconds, options.json))) < len(names):
            continue
        # Minima, because noise only adds time and 1% of the longest time is about 10% of the difference.
        one, few, most, longest = (min(seconds[variant]) for variant in names)
        first = (few - one) / (n - 1)
        last = (longest - most) / n
        record = {
            "setting": name,
            "name": contestant,
            "new_tokens": 8 * n,
            "first_token_ms": 1000 * one,
            "first_ms_per_step": 1000 * first,
            "last_ms_per_step": 1000 * last,
            "growth": last / first,
        }
        records.append(record)
    return records


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks generate", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, help="what to generate (default: all; with --growth: batch1)"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"what to compare (default: all of {', '.join(CONTESTANTS)})",
    )  # fmt: skip
    parser.add_argument(
        "--new-tokens", type=int, default=64,
        help="tokens to generate; --growth generates up to eight times as many (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--growth", action="store_true", help="compare the first and the last steps of a long text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be at least 1")
    most = (HF["n_positions"] - PROMPT) // (8 if options.growth else 1)
    if not 2 <= options.new_tokens <= most:
        parser.error(f"--new-tokens {options.new_tokens} must be between 2 and {most}")
    records: list[dict[str, Any]] = []
    bandwidths: list[float | None] = []
    if not options.growth:
        bandwidths.append(measure_bandwidth())
    for name in options.settings or (["batch1"] if options.growth else SETTINGS):
        if not options.json:
            print(f"{name} ...", file=sys.stderr, flush=True)
        records += measure_growth(name, options) if options.growth else measure(name, options)
    if not options.growth:
        bandwidths.append(measure_bandwidth())
    report = {
        "benchmark": "generate growth" if options.growth else "generate",
        "machine": machine(),
        "rounds": options.rounds,
        "prompt": PROMPT,
        "new_tokens": options.new_tokens,
        "results": add_memory_bound(records, bandwidths),
    }
    print(to_json(report, indent=2) if options.json else table(report))


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table; a ratio to PyTorch below 1 is faster than PyTorch."""
    results = report["results"]
    if report["benchmark"] == "generate":
        lines = [
            "| setting | | ms per step | tokens per second | ratio to PyTorch | compile, s | ratio to the memory bound |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for r in results:
            ratio, bound = (f"{r[k]:.2f}" if r.get(k) else "" for k in ("ratio", "ratio_to_limit"))
            lines.append(
                f"| {r['setting']} | {r['name']} | {r['ms_per_step']:.1f} | {r['tokens_per_second']:.1f} | {ratio} "
                f"| {r['compile_seconds']:.1f} | {bound} |"
            )
        if results and "limit_ms" in results[0]:
            r = results[0]
            lines += ["", f"Memory bound: {r['limit_ms']:.1f} ms per step ({count_weight_bytes() / 1e6:.0f} MB of weights at "
                      f"{r['gb_per_second']:.1f} GB/s)"]  # fmt: skip
    else:
        n = report["new_tokens"]
        lines = [
            f"| setting | | first token, ms | ms per step, first {n} | ms per step, last {n} of {8 * n} | ratio last to first |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for r in results:
            lines.append(
                f"| {r['setting']} | {r['name']} | {r['first_token_ms']:.1f} | {r['first_ms_per_step']:.1f} "
                f"| {r['last_ms_per_step']:.1f} | {r['growth']:.2f} |"
            )
    return "\n".join([*lines, "", footer(report)])


if __name__ == "__main__":
    main()
