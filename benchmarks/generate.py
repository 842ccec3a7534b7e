"""Text generation with GPT-2: tfnlp and jaxnlp beside Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks generate [--rounds 5] [--settings batch1 batch8 beams5 sample] [--json]
    python -m benchmarks generate --growth [--rounds 3] [--settings batch1]

A model of GPT-2's size (124M parameters) with random weights continues prompts of 32 random tokens by 64, in float32 with
all cores; no token ends a text. A contestant that is not installed, lacks the setting, or adds another number of tokens is
left out. A step is one new token in every row, or one more column of the beams; the prompt's pass is part of the first.

What stands beside it is the time in which memory gives up every weight that a step reads, once each: no step of a few rows
is faster. Memory is read by a process of its own before and after all the others, and the best of its turns counts.

``--growth`` instead compares the first 64 steps with the last 64 of 512, by differences of the best times for 1, 64, 448 and
512 new tokens: how much more a step costs when the text before it is long. tfnlp and jaxnlp alone.
"""

import argparse
import json
import statistics
import sys

from benchmarks._interleave import interleave, machine, ratios
from benchmarks._report import footer, that_ran
from benchmarks.forward import CONTESTANTS, ENVIRONMENTS, REFERENCE

HF = {
    "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SETTINGS = {
    "batch1": {"batch": 1},
    "batch8": {"batch": 8},
    "beams5": {"batch": 1, "num_beams": 5},
    "sample": {"batch": 1, "do_sample": True, "top_k": 50, "top_p": 0.95},
}
OURS = ("tfnlp", "jaxnlp")
PROMPT = 32
MEMORY = "memory"
MEMORY_ROUNDS = 10
BYTES_READ = 640_000_000  # by one turn of the memory's reader: more than any cache holds


def weight_bytes() -> int:
    """Bytes of the float32 weights that a step reads: all but the position table; the tied output matrix once."""
    d = HF["n_embd"]
    block = 12 * d * d + 13 * d  # kernels; biases and norms
    return 4 * (HF["vocab_size"] * d + HF["n_layer"] * block + 2 * d)


def prepare(name: str, setting: dict):
    """A function that lets the contestant continue one batch of prompts.

    Args:
        name: a contestant, or "memory"; ``tfnlp@448`` adds 448 tokens, whatever the setting says.
        setting: ``batch``, ``new_tokens`` and the options of generation.
    """
    import numpy as np

    name, _, tokens = name.partition("@")
    if name == MEMORY:
        return _memory()
    setting = dict(setting)
    batch, new_tokens = setting.pop("batch"), setting.pop("new_tokens")
    new_tokens = int(tokens or new_tokens)
    prompt = np.random.default_rng(0).integers(5, HF["vocab_size"], (batch, PROMPT)).astype(np.int32)
    run = globals()["_" + name.replace("-", "_")](prompt, new_tokens, setting)

    def work():
        ids = run()
        if ids.shape != (batch, PROMPT + new_tokens) or (ids[:, :PROMPT] != prompt).any():
            raise RuntimeError(f"{name} made {ids.shape} of {prompt.shape} and {new_tokens} new tokens")

    return work


def _memory():
    """Reads matrix times vector, as a step does, with all cores."""
    import numpy as np

    matrix, vector = np.ones((BYTES_READ // 16_000, 4000), np.float32), np.ones(4000, np.float32)
    try:
        import torch

        matrix, vector = torch.from_numpy(matrix), torch.from_numpy(vector)
    except ImportError:
        pass
    return lambda: matrix @ vector


def _transformers_torch(prompt, new_tokens, options):
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


def _ours(package, prompt, new_tokens, options):
    model = package.AutoModelForCausalLM.from_config(HF)
    return lambda: model.generate(prompt, max_new_tokens=new_tokens, eos_token_id=None, **options)


def _tfnlp(prompt, new_tokens, options):
    import tfnlp

    return _ours(tfnlp, prompt, new_tokens, options)


def _jaxnlp(prompt, new_tokens, options):
    import jaxnlp

    return _ours(jaxnlp, prompt, new_tokens, options)


def _keras_hub(prompt, new_tokens, options):
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
        written = np.flatnonzero((ids != 0).any(axis=0))[-1] + 1  # columns still as they were padded do not count
        return ids[:, :written]

    return run


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # the environment says which backend


def measure(name: str, options) -> list[dict]:
    """One record for each contestant that runs in a setting."""
    setting = SETTINGS[name] | {"new_tokens": options.new_tokens}
    first_calls = {}
    seconds = interleave(
        "benchmarks.generate", options.contestants, setting, options.rounds, ENVIRONMENTS,
        settle=False, first_calls=first_calls,
    )  # fmt: skip
    relative = ratios(seconds, REFERENCE)
    records = []
    for contestant, values in that_ran(seconds, options.json):
        usual = statistics.median(values)
        record = {
            "setting": name,
            "name": contestant,
            "ms_per_step": 1000 * usual / options.new_tokens,
            "tokens_per_second": setting["batch"] * options.new_tokens / usual,
            "ratio": relative.get(contestant),
            "compile_seconds": first_calls[contestant] - usual,
        }
        records.append(record)
    return records


def memory_speed() -> float | None:
    """Bytes a second, read with all cores: the best of several turns."""
    seconds = interleave("benchmarks.generate", [MEMORY], {}, MEMORY_ROUNDS)[MEMORY]
    return BYTES_READ / min(seconds) if seconds else None


def with_limit(records: list[dict], speeds: list[float | None]) -> list[dict]:
    """The records with the limit of the best memory speed, and their ratio to it."""
    best = max((speed for speed in speeds if speed), default=None)
    if best is None:
        return records
    limit = 1000 * weight_bytes() / best
    return [
        r | {"gb_per_second": best / 1e9, "limit_ms": limit, "ratio_to_limit": r["ms_per_step"] / limit}
        for r in records
    ]


def measure_growth(name: str, options) -> list[dict]:
    """One record for each of ours: the prompt, and a step at the text's beginning and at its end."""
    n = options.new_tokens
    counts = (1, n, 7 * n, 8 * n)
    records = []
    for contestant in (c for c in options.contestants if c in OURS):
        names = [f"{contestant}@{count}" for count in counts]
        environments = dict.fromkeys(names, ENVIRONMENTS.get(contestant))
        setting = SETTINGS[name] | {"new_tokens": n}
        seconds = interleave("benchmarks.generate", names, setting, options.rounds, environments, settle=False)
        if len(list(that_ran(seconds, options.json))) < len(names):
            continue
        one, few, most, all_ = (seconds[each] for each in names)
        # noise only adds, and a hundredth of the longest time is a tenth of the difference: the best rounds are compared
        first = (min(few) - min(one)) / (n - 1)
        last = (min(all_) - min(most)) / n
        record = {
            "setting": name,
            "name": contestant,
            "new_tokens": 8 * n,
            "first_token_ms": 1000 * min(one),
            "first_ms_per_step": 1000 * first,
            "last_ms_per_step": 1000 * last,
            "growth": last / first,
        }
        records.append(record)
    return records


def main(arguments=None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks generate", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="all of them; of --growth, batch1")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--new-tokens", type=int, default=64, help="of --growth, eight times as many")
    parser.add_argument("--growth", action="store_true", help="compare the first steps of a long text with its last")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be at least 1")
    most = (HF["n_positions"] - PROMPT) // (8 if options.growth else 1)
    if not 2 <= options.new_tokens <= most:
        parser.error(f"--new-tokens {options.new_tokens} must be between 2 and {most}")
    records, speeds = [], []
    if not options.growth:
        speeds.append(memory_speed())
    for name in options.settings or (["batch1"] if options.growth else SETTINGS):
        if not options.json:
            print(f"{name} ...", file=sys.stderr, flush=True)
        records += measure_growth(name, options) if options.growth else measure(name, options)
    if not options.growth:
        speeds.append(memory_speed())
    report = {
        "benchmark": "generate growth" if options.growth else "generate",
        "machine": machine(),
        "rounds": options.rounds,
        "prompt": PROMPT,
        "new_tokens": options.new_tokens,
        "results": with_limit(records, speeds),
    }
    print(json.dumps(report, indent=2) if options.json else table(report))


def table(report: dict) -> str:
    """The report as a Markdown table; a ratio to PyTorch below 1 is faster than it."""
    results = report["results"]
    if report["benchmark"] == "generate":
        lines = [
            "| setting | | ms per step | tokens per second | ratio to PyTorch | compile seconds | ratio to memory's limit |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for r in results:
            ratio, limit = (f"{r[k]:.2f}" if r.get(k) else "" for k in ("ratio", "ratio_to_limit"))
            lines.append(
                f"| {r['setting']} | {r['name']} | {r['ms_per_step']:.1f} | {r['tokens_per_second']:.1f} | {ratio} "
                f"| {r['compile_seconds']:.1f} | {limit} |"
            )
        if results and "limit_ms" in results[0]:
            r = results[0]
            lines += ["", f"Memory's limit: {r['limit_ms']:.1f} ms per step ({weight_bytes() / 1e6:.0f} MB of weights at "
                      f"{r['gb_per_second']:.1f} GB/s)"]  # fmt: skip
    else:
        n = report["new_tokens"]
        lines = [
            f"| setting | | first token ms | ms per step, first {n} | last {n} of {8 * n} | last to first |",
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
