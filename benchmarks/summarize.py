"""Summaries by encoder-decoder models: tfnlp and jaxnlp beside Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks summarize [--rounds 2] [--models t5-small bart-base] [--beams 4] [--json]

Models of the shape of t5-small (61M parameters) and bart-base (139M) with random weights write 64 tokens for each of 8
articles of 512 random tokens, with 4 beams (``--beams 4 1``: greedily, too), in float32 with two threads. No text can end
earlier. Ours and PyTorch read one checkpoint, whose weights are such that what is written depends on the article, and must write
the same ids; keras-hub has weights of its own. A contestant that is not installed or writes another number of tokens is left out.

The first call of all, which compiles, is not among the rounds; nothing else is done untimed. keras-hub, whose call takes
several times as long, has the first round alone: a ratio is the median over the rounds that both have.

The first token's time, which is that of the encoder, of the keys and values of its output and of one step, is measured
apart, by contestants that write one token alone; not of keras-hub, which would compile again. Memory is the highest resident
set of a contestant's process, from its start and with compilation (on Linux alone).
"""

import argparse
import atexit
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._interleave import PAUSE, Contestant, machine
from benchmarks._report import footer, that_ran
from benchmarks.forward import CONTESTANTS, ENVIRONMENTS, REFERENCE

MODELS = {
    "t5-small": {
        "model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6,
        "num_decoder_layers": 6, "num_heads": 8, "relative_attention_num_buckets": 32, "feed_forward_proj": "relu",
        "n_positions": 512, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    },
    "bart-base": {
        "model_type": "bart", "vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "activation_function": "gelu", "max_position_embeddings": 1024, "bos_token_id": 0, "pad_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip
# As initialised, attention looks everywhere alike and the decoder repeats the token it was given, whatever the article says.
SCALES = {
    "t5-small": {
        r"^shared\.": 0.1,
        r"Attention\.q\.": 8.0,
        r"EncDecAttention\.o\.": 4.0,
        r"^decoder\.final_layer_norm": 40.0,
    },
    "bart-base": {
        r"attn\.[qk]_proj\.weight": 3.0,
        r"encoder_attn\.(v|out)_proj\.weight": 3.0,
        r"decoder\.layers\.5\.final_layer_norm\.weight": 6.0,
    },
}
OURS = ("tfnlp", "jaxnlp")
SPLIT = (REFERENCE, *OURS)
SLOW = ("keras-hub-tensorflow", "keras-hub-jax")
ARTICLES, LENGTH = 8, 512


def write_checkpoint(model: str, folder: str) -> None:
    """A model's random weights, from its name alone, and its configuration, in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    hf = dict(MODELS[model])
    made = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(hf.pop("model_type"), **hf))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            for pattern, factor in SCALES[model].items():
                if re.search(pattern, name):
                    parameter.mul_(factor)
    made.save_pretrained(folder)


def prepare(name: str, setting: dict):
    """A function that lets the contestant summarize the articles; its last ids and its memory are left when it ends.

    Args:
        name: a contestant; ``tfnlp@1`` writes one token, whatever the setting says.
        setting: ``model``, ``beams``, ``new_tokens``, ``threads``, and ``folder``, which holds the checkpoint and
            takes ``{name}.json``.
    """
    if hasattr(os, "sched_setaffinity"):  # before a framework counts the processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting["threads"]])
    import numpy as np

    contestant, _, tokens = name.partition("@")
    new_tokens = int(tokens or setting["new_tokens"])
    articles = np.random.default_rng(0).integers(5, MODELS[setting["model"]]["vocab_size"], (ARTICLES, LENGTH))
    run = globals()["_" + contestant.replace("-", "_")](setting, articles.astype(np.int32), new_tokens)
    last = None

    def work():
        nonlocal last
        last = np.asarray(run())
        if last.shape != (ARTICLES, 1 + new_tokens):
            raise RuntimeError(f"{name} made {last.shape} for {ARTICLES} articles and {new_tokens} new tokens")

    def leave():
        if last is not None:
            record = {"ids": last.tolist(), "peak_mib": _peak_mib()}
            (Path(setting["folder"]) / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")

    atexit.register(leave)
    return work


def _peak_mib() -> float | None:
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def _transformers_torch(setting, articles, new_tokens):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(setting["threads"])
    model = AutoModelForSeq2SeqLM.from_pretrained(setting["folder"]).eval()
    ids = torch.tensor(articles).long()
    mask = torch.ones_like(ids)
    options = {"num_beams": setting["beams"], "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}

    def run():
        with torch.inference_mode():
            return model.generate(ids, attention_mask=mask, do_sample=False, **options).numpy()

    return run


def _ours(package, setting, articles, new_tokens):
    import numpy as np

    model = package.AutoModelForSeq2SeqLM.from_pretrained(setting["folder"])
    mask = np.ones_like(articles)
    options = {"num_beams": setting["beams"], "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    return lambda: model.generate(articles, attention_mask=mask, **options)


def _tfnlp(setting, articles, new_tokens):
    import tfnlp

    return _ours(tfnlp, setting, articles, new_tokens)


def _jaxnlp(setting, articles, new_tokens):
    import jaxnlp

    return _ours(jaxnlp, setting, articles, new_tokens)


def _keras_hub(setting, articles, new_tokens):
    import numpy as np
    from keras_hub import models
    from keras_hub.samplers import BeamSampler, GreedySampler

    hf = MODELS[setting["model"]]
    if hf["model_type"] == "t5":
        backbone = models.T5Backbone(
            vocabulary_size=hf["vocab_size"],
            num_layers=hf["num_layers"],
            num_heads=hf["num_heads"],
            hidden_dim=hf["d_model"],
            intermediate_dim=hf["d_ff"],
            key_value_dim=hf["d_kv"],
            activation="relu",
            use_gated_activation=False,
        )
        model = models.T5Seq2SeqLM(backbone, preprocessor=None)
    else:
        backbone = models.BartBackbone(
            vocabulary_size=hf["vocab_size"],
            num_layers=hf["encoder_layers"],
            num_heads=hf["encoder_attention_heads"],
            hidden_dim=hf["d_model"],
            intermediate_dim=hf["encoder_ffn_dim"],
            max_sequence_length=hf["max_position_embeddings"],
        )
        model = models.BartSeq2SeqLM(backbone, preprocessor=None)
    sampler = BeamSampler(num_beams=setting["beams"]) if setting["beams"] > 1 else GreedySampler()
    model.compile(sampler=sampler, jit_compile=True)
    start = np.full((ARTICLES, 1), hf["decoder_start_token_id"], np.int32)
    padding = ((0, 0), (0, new_tokens))
    inputs = {
        "encoder_token_ids": articles,
        "encoder_padding_mask": np.ones_like(articles),
        "decoder_token_ids": np.pad(start, padding),
        "decoder_padding_mask": np.pad(np.ones_like(start), padding),
    }
    return lambda: model.generate(inputs, stop_token_ids=None)["decoder_token_ids"]


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # the environment says which backend


def race(names: list[str], setting: dict, rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of the first call and of every round, of contestants that take turns; none where one cannot run."""
    contestants = {
        name: Contestant("benchmarks.summarize", name, setting, ENVIRONMENTS.get(name.partition("@")[0]))
        for name in names
    }
    first_calls, seconds = {}, {name: [] for name in names}
    try:
        for word in ("ready", "first call"):  # none works while another is still importing and building its model
            for name in list(contestants):
                try:
                    first_calls[name] = contestants[name].ask(word)
                except RuntimeError:
                    contestants.pop(name).close()
        for turn in range(rounds):
            for name, contestant in contestants.items():
                if turn == 0 or name not in SLOW:
                    time.sleep(PAUSE)
                    seconds[name].append(contestant.ask("go at once"))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return first_calls, seconds


def _ratio(seconds: list[float], theirs: list[float] | None) -> float | None:
    return statistics.median(a / b for a, b in zip(seconds, theirs, strict=False)) if theirs else None


def measure(model: str, beams: int, folder: str, options) -> list[dict]:
    """One record for each contestant that runs."""
    setting = {"model": model, "beams": beams, "folder": folder, "new_tokens": options.new_tokens}
    setting |= {"threads": options.threads}
    first_calls, seconds = race(options.contestants, setting, options.rounds)
    usual = {name: statistics.median(values) for name, values in that_ran(seconds, options.json)}
    _, one = race([f"{name}@1" for name in SPLIT if name in usual], setting, options.rounds)
    best_peer = min((name for name in usual if name not in OURS), key=usual.get, default=None)
    left = {name: json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8")) for name in usual}
    records = []
    for name, each in usual.items():
        first = statistics.median(one[f"{name}@1"]) if one.get(f"{name}@1") else None
        record = {
            "model": model,
            "beams": beams,
            "name": name,
            "seconds": each,
            "ms_per_token": 1000 * each / options.new_tokens,
            "first_token_seconds": first,
            "ms_per_later_token": first and 1000 * (each - first) / (options.new_tokens - 1),
            "ratio": _ratio(seconds[name], seconds.get(REFERENCE)),
            "ratio_to_best_peer": _ratio(seconds[name], seconds.get(best_peer)),
            "first_call": first_calls[name],
            "peak_mib": left[name]["peak_mib"],
            "same_ids": None,
        }
        if name in SPLIT and REFERENCE in left:
            record["same_ids"] = sum(a == b for a, b in zip(left[name]["ids"], left[REFERENCE]["ids"], strict=True))
            record["different_summaries"] = len({tuple(row) for row in left[name]["ids"]})
            record["different_tokens"] = len({token for row in left[name]["ids"] for token in row[1:]})
        records.append(record)
    return records


def main(arguments=None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks summarize", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--beams", nargs="+", type=int, default=[4], help="1 is greedy search")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="of each contestant")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args(arguments)
    for name, least in (("rounds", 1), ("new_tokens", 2), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least {least}")
    if min(options.beams) < 1:
        parser.error(f"--beams {min(options.beams)} must be at least 1")
    records = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            # in a process of its own, so that no threads of PyTorch's stay here
            writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(model, folder))
            writer.start()
            writer.join()
            if writer.exitcode:
                sys.exit('no checkpoint could be written; it takes PyTorch: pip install "duonlp[parity]"')
            for beams in options.beams:
                if not options.json:
                    print(f"{model}, {beams} beams ...", file=sys.stderr, flush=True)
                records += measure(model, beams, folder, options)
    report = {
        "benchmark": "summarize",
        "machine": machine(),
        "rounds": options.rounds,
        "threads": options.threads,
        "articles": ARTICLES,
        "length": LENGTH,
        "new_tokens": options.new_tokens,
        "results": records,
    }
    print(json.dumps(report, indent=2) if options.json else table(report))


def table(report: dict) -> str:
    """The report as a Markdown table, ratios below 1 being faster than the peer, and whose ids agree."""
    lines = [
        "| model | beams | | s per call | ms per new token | first token, s | ms per later token | ratio to PyTorch "
        "| ratio to the best peer | first call, s | peak MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    agreement = []
    for r in report["results"]:
        figures = [
            "" if r[key] is None else f"{r[key]:.{digits}f}"
            for key, digits in (
                ("seconds", 2), ("ms_per_token", 1), ("first_token_seconds", 2), ("ms_per_later_token", 1), ("ratio", 2),
                ("ratio_to_best_peer", 2), ("first_call", 1), ("peak_mib", 0),
            )
        ]  # fmt: skip
        lines.append(f"| {r['model']} | {r['beams']} | {r['name']} | {' | '.join(figures)} |")
        if r["same_ids"] is not None:
            agreement.append(
                f"{r['model']}, {r['beams']} beams, {r['name']}: {r['same_ids']} of {report['articles']} summaries are "
                f"PyTorch's; {r['different_summaries']} different ones of {r['different_tokens']} different tokens"
            )
    size = f"{report['articles']} articles of {report['length']} tokens, {report['new_tokens']} new tokens each"
    return "\n".join([*lines, "", *agreement, "", f"{size}; {report['threads']} threads; {footer(report)}"])


if __name__ == "__main__":
    main()
