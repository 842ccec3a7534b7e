"""Time summarization with encoder-decoders: tfnlp and jaxnlp against Transformers on PyTorch and keras-hub on both backends.

    python -m benchmarks summarize [--rounds 2] [--models t5-small bart-base] [--beams 4] [--json]

Models of the sizes of t5-small (61M parameters) and bart-base (139M) with random weights generate exactly 64 tokens for each of 8
articles of 512 random tokens, with 4 beams (``--beams 4 1``: also greedily), in float32 with two threads. tfnlp, jaxnlp and
PyTorch load one checkpoint, whose weights are scaled so that a summary depends on its article, and the report counts the
summaries that agree with PyTorch's; keras-hub has its own weights. A contestant that is not installed or generates another
number of tokens is skipped.

The first call of each contestant compiles and is not part of a round; there are no other untimed calls. keras-hub, whose calls
take several times as long, takes part in the first round only: a ratio is the median over the rounds of both.

The time of the first token (encoder, keys and values of its output, and one step) is measured separately, by contestants that
generate one token; not for keras-hub, which would compile again. Memory is the peak resident set of a contestant's process,
compilation included (Linux only).
"""

import argparse
import atexit
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks._interleave import PAUSE, Contestant, Setting, Work, machine, write_in_subprocess
from benchmarks._report import drop_missing, footer
from benchmarks.forward import CONTESTANTS, ENVIRONMENTS, REFERENCE
from duonlp.typing import Array, Engine
from duonlp.util.json_text import to_json

if TYPE_CHECKING:
    import numpy as np

Generate: TypeAlias = Callable[[], Array]
"""Summarize the articles once; return ids, int [ARTICLES, 1 + new_tokens]."""

MODELS: dict[str, dict[str, Any]] = {
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
# With the initial weights, attention is uniform and the decoder repeats its input token, regardless of the article.
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
"""Contestants whose first token is timed separately."""
SLOW = ("keras-hub-tensorflow", "keras-hub-jax")
"""Contestants that take part in the first round only."""
ARTICLES, LENGTH = 8, 512


def write_checkpoint(model: str, folder: str) -> None:
    """Write a model's configuration and random weights.

    Args:
        model: Key of MODELS, which determines the weights.
        folder: Folder to write to, in Hugging Face layout.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    hf = dict(MODELS[model])
    torch_model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(hf.pop("model_type"), **hf))
    with torch.no_grad():
        for name, parameter in torch_model.named_parameters():
            for pattern, factor in SCALES[model].items():
                if re.search(pattern, name):
                    parameter.mul_(factor)
    torch_model.save_pretrained(folder)


def prepare(name: str, setting: Setting) -> Work:
    """Return a function that summarizes the articles; at exit, the process writes its last ids and its peak memory.

    Args:
        name: One of CONTESTANTS; ``tfnlp@1`` generates one token regardless of the setting.
        setting: ``model``, ``beams``, ``new_tokens``, ``threads``, and ``folder``, which contains the checkpoint and in which
            ``{name}.json`` is written.
    """
    if hasattr(os, "sched_setaffinity"):  # before a framework counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting["threads"]])
    import numpy as np

    contestant, _, tokens = name.partition("@")
    new_tokens = int(tokens or setting["new_tokens"])
    articles = np.random.default_rng(0).integers(5, MODELS[setting["model"]]["vocab_size"], (ARTICLES, LENGTH))
    run: Generate = globals()["_" + contestant.replace("-", "_")](setting, articles.astype(np.int32), new_tokens)
    ids: np.ndarray | None = None

    def work() -> None:
        nonlocal ids
        ids = np.asarray(run())
        if ids.shape != (ARTICLES, 1 + new_tokens):
            raise RuntimeError(f"{name} returned ids {ids.shape}; expected {(ARTICLES, 1 + new_tokens)}")

    def write_record() -> None:
        if ids is not None:
            record = {"ids": ids.tolist(), "peak_mib": _peak_mib()}
            (Path(setting["folder"]) / f"{name}.json").write_text(to_json(record), encoding="utf-8")

    atexit.register(write_record)
    return work


def _peak_mib() -> float | None:
    """Return the peak resident memory of this process; None except on Linux."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def _transformers_torch(setting: Setting, articles: "np.ndarray", new_tokens: int) -> Generate:
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


def _ours(engine: Engine, setting: Setting, articles: "np.ndarray", new_tokens: int) -> Generate:
    import numpy as np

    model = engine.AutoModelForSeq2SeqLM.from_pretrained(setting["folder"])
    mask = np.ones_like(articles)
    options = {"num_beams": setting["beams"], "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    return lambda: model.generate(articles, attention_mask=mask, **options)


def _tfnlp(setting: Setting, articles: "np.ndarray", new_tokens: int) -> Generate:
    import tfnlp

    return _ours(tfnlp, setting, articles, new_tokens)


def _jaxnlp(setting: Setting, articles: "np.ndarray", new_tokens: int) -> Generate:
    import jaxnlp

    return _ours(jaxnlp, setting, articles, new_tokens)


def _keras_hub(setting: Setting, articles: "np.ndarray", new_tokens: int) -> Generate:
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


_keras_hub_tensorflow = _keras_hub_jax = _keras_hub  # ENVIRONMENTS sets the backend


def time_in_turns(
    names: Sequence[str], setting: Setting, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Time contestants in turns, those of SLOW in the first round only.

    Args:
        names: Contestants, as :func:`prepare` takes them.
        setting: Passed to ``prepare``.
        rounds: Number of timed turns.

    Returns:
        {name: seconds of the first call}, without contestants that cannot run, and {name: [seconds of each round]}, empty
        for those.
    """
    contestants = {
        name: Contestant("benchmarks.summarize", name, setting, ENVIRONMENTS.get(name.partition("@")[0]))
        for name in names
    }
    first_calls: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for command in ("ready", "first call"):  # none works while another is still importing and building its model
            for name in list(contestants):
                try:
                    first_calls[name] = contestants[name].request(command)
                except RuntimeError:
                    contestants.pop(name).close()
                    first_calls.pop(name, None)
        for turn in range(rounds):
            for name, contestant in contestants.items():
                if turn == 0 or name not in SLOW:
                    time.sleep(PAUSE)
                    seconds[name].append(contestant.request("run"))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return first_calls, seconds


def _ratio(seconds: list[float], peer_seconds: list[float] | None) -> float | None:
    """Return the median ratio over the rounds that both have."""
    return statistics.median(a / b for a, b in zip(seconds, peer_seconds, strict=False)) if peer_seconds else None


def measure(model: str, beams: int, folder: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all contestants with a model and a number of beams.

    Args:
        model: Key of MODELS.
        beams: Number of beams; 1 is greedy search.
        folder: Folder of the model's checkpoint.
        options: Command-line options.

    Returns:
        One record for each contestant that ran.
    """
    setting = {"model": model, "beams": beams, "folder": folder, "new_tokens": options.new_tokens}
    setting |= {"threads": options.threads}
    first_calls, seconds = time_in_turns(options.contestants, setting, options.rounds)
    medians = {name: statistics.median(values) for name, values in drop_missing(seconds, options.json)}
    _, first_tokens = time_in_turns([f"{name}@1" for name in SPLIT if name in medians], setting, options.rounds)
    best_peer = min((name for name in medians if name not in OURS), key=medians.__getitem__, default="")
    outputs = {name: json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8")) for name in medians}
    records = []
    for name, median in medians.items():
        first = statistics.median(first_tokens[f"{name}@1"]) if first_tokens.get(f"{name}@1") else None
        record: dict[str, Any] = {
            "model": model,
            "beams": beams,
            "name": name,
            "seconds": median,
            "ms_per_token": 1000 * median / options.new_tokens,
            "first_token_seconds": first,
            "ms_per_later_token": first and 1000 * (median - first) / (options.new_tokens - 1),
            "ratio": _ratio(seconds[name], seconds.get(REFERENCE)),
            "ratio_to_best_peer": _ratio(seconds[name], seconds.get(best_peer)),
            "first_call": first_calls[name],
            "peak_mib": outputs[name]["peak_mib"],
            "same_ids": None,
        }
        if name in SPLIT and REFERENCE in outputs:
            record["same_ids"] = sum(
                a == b for a, b in zip(outputs[name]["ids"], outputs[REFERENCE]["ids"], strict=True)
            )
            record["different_summaries"] = len({tuple(row) for row in outputs[name]["ids"]})
            record["different_tokens"] = len({token for row in outputs[name]["ids"] for token in row[1:]})
        records.append(record)
    return records


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks summarize", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="timed turns of each contestant (default %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="model sizes (default: all)")
    parser.add_argument(
        "--beams", nargs="+", type=int, default=[4], help="numbers of beams; 1 is greedy search (default: 4)"
    )
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME",
        help=f"what to compare (default: all of {', '.join(CONTESTANTS)})",
    )  # fmt: skip
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens per summary (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    for name, minimum in (("rounds", 1), ("new_tokens", 2), ("threads", 1)):
        if getattr(options, name) < minimum:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least {minimum}")
    if min(options.beams) < 1:
        parser.error(f"--beams {min(options.beams)} must be at least 1")
    records = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            write_in_subprocess(write_checkpoint, model, folder)
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
    print(to_json(report, indent=2) if options.json else table(report))


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table (a ratio below 1 is faster than the peer) and the agreement of the summaries."""
    lines = [
        "| model | beams | | s per call | ms per new token | first token, s | ms per later token | ratio to PyTorch "
        "| ratio to the best peer | first call, s | peak MiB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    agreement = []
    for r in report["results"]:
        cells = [
            "" if r[key] is None else f"{r[key]:.{digits}f}"
            for key, digits in (
                ("seconds", 2), ("ms_per_token", 1), ("first_token_seconds", 2), ("ms_per_later_token", 1), ("ratio", 2),
                ("ratio_to_best_peer", 2), ("first_call", 1), ("peak_mib", 0),
            )
        ]  # fmt: skip
        lines.append(f"| {r['model']} | {r['beams']} | {r['name']} | {' | '.join(cells)} |")
        if r["same_ids"] is not None:
            agreement.append(
                f"{r['model']}, {r['beams']} beams, {r['name']}: {r['same_ids']} of {report['articles']} summaries agree with "
                f"PyTorch's; {r['different_summaries']} distinct summaries with {r['different_tokens']} distinct tokens"
            )
    size = f"{report['articles']} articles of {report['length']} tokens, {report['new_tokens']} new tokens each"
    return "\n".join([*lines, "", *agreement, "", f"{size}; {report['threads']} threads; {footer(report)}"])


if __name__ == "__main__":
    main()
