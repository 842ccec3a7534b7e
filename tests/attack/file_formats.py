"""The files that the library reads, registered for the attacks of ``tests.attack.formats``."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.save import save_checkpoint
from duonlp.config import POSITION_TABLES, TransformerConfig
from duonlp.parameters import initial_value, parameters
from tests import cases
from tests.attack.formats import fuzzed

TEXTS = ["the cat sat on the mat", "dogs chase the cat [red]:smile:[/]"] * 10


def write_checkpoint(folder: Path, model_type: str = "bert", head: str | None = None, **keys: Any) -> Path:
    """Write a small random checkpoint and return its folder."""
    family = architectures.get(model_type)
    head = head or list(family.heads(model_type))[-1]
    causal = {"is_decoder": True} if head == "causal-lm" and "is_decoder" in getattr(family, "DEFAULTS", {}) else {}
    cfg = architectures.config_from_hf(
        {"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)} | causal | keys
    )
    spec = parameters(cfg, head)
    save_checkpoint(folder, cfg, head, lambda path: initial_value(path, spec[path]), np.float32)
    return folder


def read_checkpoint(folder: Path) -> TransformerConfig:
    """Do everything that loading a model does before a framework is needed."""
    from duonlp import numpy_ops
    from duonlp.checkpoints import open_checkpoint
    from duonlp.checkpoints.pretrained import default_generation_config
    from duonlp.positions import fixed_table, relative_bucket_table, rotary_tables

    checkpoint = open_checkpoint(folder)
    cfg = checkpoint.transformer_config()
    for source in checkpoint.plan(cfg, checkpoint.head):
        source.read()
    for part in (cfg, cfg.as_decoder()):
        if part.embedding.positions in POSITION_TABLES[1:]:
            fixed_table(part.embedding)
        if part.attention.relative_buckets:
            relative_bucket_table(part.attention.relative_buckets, part.attention.relative_max_distance, True)
        for rotary in part.layers.rotaries:
            rotary_tables(numpy_ops, rotary, np.arange(4)[None])
        assert part.max_length > 0 and part.inputs and part.id2label is not None
    architectures.hf_config(cfg, checkpoint.head)
    generation = default_generation_config(cfg, checkpoint.generation_config)
    generation.new_tokens(1, max(2, cfg.max_length))
    return cfg


def register_family(model_type: str) -> None:
    """Register config.json of an architecture."""

    def write(folder: Path) -> Path:
        write_checkpoint(folder, model_type)
        file = folder / "config.json"
        # All keys that the family writes and that the tests set, so that each of them is mutated.
        keys = {**cases.SIZES.get(model_type, cases.ENCODER), **json.loads(file.read_text())}
        file.write_text(json.dumps(keys))
        return file

    fuzzed(f"config.json of {model_type}", "json", write=write, group="mutated configs")(
        lambda file: read_checkpoint(file.parent)
    )


for name in architectures.families():
    register_family(name)


def beside_checkpoint(name: str, content: Any = None, **keys: Any) -> Callable[[Path], Path]:
    """Return a writer of a file beside a small checkpoint with a head."""

    def write(folder: Path) -> Path:
        write_checkpoint(folder, **keys)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
        return folder / name

    return write


@fuzzed("bert with every key", "json", group="mutated configs", write=beside_checkpoint("config.json", {
    "model_type": "bert", **cases.ENCODER, "architectures": ["BertForSequenceClassification"], "num_labels": 3,
    "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "problem_type": None,
    "torch_dtype": "float32", "initializer_range": 0.02, "pad_token_id": 0, "eos_token_id": [1, 2], "bos_token_id": 1,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout": None,
    "layer_norm_eps": 1e-12, "is_decoder": False, "tie_word_embeddings": True, "type_vocab_size": 2, "max_length": 20,
    "num_beams": 1, "position_embedding_type": "absolute", "transformers_version": "5.0", "use_cache": True,
}, head="sequence-classification", num_labels=3))  # fmt: skip
def read_every_key(file: Path) -> None:
    read_checkpoint(file.parent)


@fuzzed("llama with rotary scaling", "json", group="mutated configs", write=beside_checkpoint("config.json", {
    "model_type": "llama", **cases.SIZES["llama"], "architectures": ["LlamaForCausalLM"], "rope_theta": 500.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 40,
    }, "partial_rotary_factor": 1.0, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
}, model_type="llama", head="causal-lm"))  # fmt: skip
def read_rotary_scaling(file: Path) -> None:
    read_checkpoint(file.parent)


LONGROPE = dict(cases.ROTARY[-1]) | {"factor": 2.0, "attention_factor": 1.1, "beta_fast": 32, "beta_slow": 1}


@fuzzed("llama with longrope", "json", group="mutated configs", write=beside_checkpoint("config.json", {
    "model_type": "llama", **cases.SIZES["llama"], "architectures": ["LlamaForCausalLM"], "rope_parameters": LONGROPE,
}, model_type="llama", head="causal-lm"))  # fmt: skip
def read_longrope(file: Path) -> None:
    read_checkpoint(file.parent)


@fuzzed("llama with yarn", "json", group="mutated configs", write=beside_checkpoint("config.json", {
    "model_type": "llama", **cases.SIZES["llama"], "architectures": ["LlamaForCausalLM"], "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 1.5, "mscale_all_dim": 0.7, "truncate": False, "attention_factor": None,
    },
}, model_type="llama", head="causal-lm"))  # fmt: skip
def read_yarn(file: Path) -> None:
    read_checkpoint(file.parent)


GENERATION = {
    "max_new_tokens": 5, "max_length": 10, "min_length": 0, "do_sample": True, "num_beams": 2, "num_return_sequences": 1,
    "temperature": 0.7, "top_k": 10, "top_p": 0.9, "typical_p": 1.0, "repetition_penalty": 1.2, "length_penalty": 1.0,
    "no_repeat_ngram_size": 3, "early_stopping": True, "eos_token_id": [2, 3], "pad_token_id": 0, "bos_token_id": 1,
    "bad_words_ids": [[5, 6]], "sequence_bias": [[[1, 2], -1.5]], "suppress_tokens": [4], "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": [3, 1.1], "stop_strings": ["a"], "num_beam_groups": 1, "seed": 3,
    "renormalize_logits": True, "transformers_version": "5.0", "max_time": None, "constraints": None, "epsilon_cutoff": 0.0,
    "output_scores": False, "return_dict_in_generate": False, "num_assistant_tokens": 5, "guidance_scale": 1.0,
}  # fmt: skip


@fuzzed(
    "generation_config.json", "json", write=beside_checkpoint("generation_config.json", GENERATION, model_type="gpt2")
)
def read_generation_config(file: Path) -> None:
    """Use the options as well as reading them."""
    from duonlp.checkpoints import open_checkpoint
    from duonlp.checkpoints.pretrained import default_generation_config

    checkpoint = open_checkpoint(file.parent)
    config = default_generation_config(checkpoint.transformer_config(), checkpoint.generation_config)
    config.with_options(max_new_tokens=3)
    assert isinstance(config.strategy, str) and isinstance(config.padding, int) and config.eos_ids is not None
    json.dumps(config.to_dict())


@fuzzed("model.safetensors", "bytes", write=beside_checkpoint("model.safetensors"))
def read_weights(file: Path) -> None:
    read_checkpoint(file.parent)


def write_quantized(folder: Path, model_type: str = "llama", **settings: Any) -> Path:
    """Write a small quantized checkpoint and return the file of its weights."""
    from duonlp.quantization import QuantizationSettings, quantized_values

    head = list(architectures.get(model_type).heads(model_type))[-1]
    cfg = architectures.config_from_hf({"model_type": model_type, **cases.SIZES.get(model_type, cases.ENCODER)})
    values = {path: initial_value(path, parameter) for path, parameter in parameters(cfg, head).items()}

    def record(paths: Any, observe: Callable[[str, np.ndarray], Any], replaced: Any) -> None:
        for path in paths:
            observe(path, np.ones((4, len(values[f"{path}/kernel"])), np.float32))

    quantized, new = quantized_values(values.__getitem__, cfg, head, QuantizationSettings(**settings), record)
    save_checkpoint(folder, quantized, head, lambda path: new.get(path, values.get(path)), np.float32)
    return folder / "model.safetensors"


QUANTIZED: dict[str, dict[str, Any]] = {
    "int8 of every table": {"model_type": "gpt2"},
    "static int8": {"scheme": "int8-static", "embeddings": False},
    "packed int8": {"scheme": "int8-weights", "embeddings": False},
    "packed int4": {"scheme": "int4", "group_size": 8, "embeddings": False},
    "int4 with scaled channels": {"model_type": "gpt2", "scheme": "int4", "rounding": "awq"},
}


def register_quantized(name: str) -> None:
    """Register the weights and config.json of a quantized checkpoint."""

    def write_config(folder: Path) -> Path:
        return write_quantized(folder, **QUANTIZED[name]).parent / "config.json"

    def read(file: Path) -> None:
        """Load the checkpoint; whatever is read must be quantized like the sample, with scales that can be used."""
        from duonlp.checkpoints import open_checkpoint
        from duonlp.checkpoints.save import saved_values

        read_checkpoint(file.parent)
        checkpoint = open_checkpoint(file.parent)
        cfg = checkpoint.transformer_config()
        values = {s.path: s.read(s.parameter.stored_dtype("float32")) for s in checkpoint.plan(cfg, checkpoint.head)}
        for path, parameter in parameters(cfg, checkpoint.head).items():
            assert values[path].shape == parameter.shape and values[path].dtype == (parameter.dtype or "float32"), path
            assert parameter.dtype != "float32" or (np.isfinite(values[path]) & (values[path] > 0)).all(), path
        plain, floats = saved_values(cfg, checkpoint.head, values.__getitem__, dequantize=True)
        assert all(
            floats(path).shape == parameter.shape for path, parameter in parameters(plain, checkpoint.head).items()
        )

    def write(folder: Path) -> Path:
        return write_quantized(folder, **QUANTIZED[name])

    fuzzed(f"weights of {name}", "bytes", write=write)(read)
    fuzzed(f"config.json of {name}", "json", write=write_config, group="mutated configs")(read)


for name in QUANTIZED:
    register_quantized(name)


def write_shards(folder: Path) -> Path:
    """Write a checkpoint of several shards."""
    cfg = architectures.config_from_hf({"model_type": "bert", **cases.ENCODER})
    spec = parameters(cfg, "base")
    save_checkpoint(folder, cfg, "base", lambda p: initial_value(p, spec[p]), np.float32, max_shard_size=8000)
    return folder / "model.safetensors.index.json"


@fuzzed("model.safetensors.index.json", "json", write=write_shards)
def read_index(file: Path) -> None:
    read_checkpoint(file.parent)


def write_tokenizer(name: str, kind: str = "wordpiece") -> Callable[[Path], Path]:
    """Return a writer of a checkpoint with a trained tokenizer, of which one file is mutated."""

    def write(folder: Path) -> Path:
        from duonlp.tokenizers.train import train_tokenizer

        write_checkpoint(folder)
        train_tokenizer(TEXTS, vocab_size=300, min_frequency=0, max_length=32, kind=kind).save_pretrained(folder)
        return folder / name

    return write


def read_tokenizer(file: Path) -> None:
    """Load the tokenizer of a checkpoint and encode texts like a task."""
    from duonlp.checkpoints import open_checkpoint
    from duonlp.tasks import make_task

    checkpoint = open_checkpoint(file.parent)
    task = make_task("feature-extraction", checkpoint.tokenizer(), checkpoint.transformer_config(), file.parent)
    for rows in task.encode(["the cat sat on the mat", "dogs"], task.options()):
        assert rows[0].length


for name, kind in (("tokenizer.json", "wordpiece"), ("tokenizer_config.json", "wordpiece")):
    fuzzed(name, "json", write=write_tokenizer(name, kind))(read_tokenizer)
fuzzed("tokenizer.json, byte-level", "json", write=write_tokenizer("tokenizer.json", "bpe"))(read_tokenizer)

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]
SENTENCE_FILES: dict[str, Any] = {
    "modules.json": MODULES,
    "1_Pooling/config.json": {
        "word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "include_prompt": True,
    },
    "2_Dense/config.json": {
        "in_features": 24, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh",
    },
    "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
    "config_sentence_transformers.json": {
        "prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": "query", "similarity_fn_name": "cosine",
    },
}  # fmt: skip


def write_sentence_files(folder: Path) -> None:
    """Write the files of a sentence-transformers checkpoint with a Dense module."""
    from safetensors.numpy import save_file

    for name, content in SENTENCE_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    weights = {"linear.weight": np.ones((6, 24), np.float32), "linear.bias": np.zeros(6, np.float32)}
    save_file(weights, folder / "2_Dense/model.safetensors")


def register_sentence_file(name: str) -> None:
    """Register one of the files of a sentence-transformers checkpoint."""

    def write(folder: Path) -> Path:
        write_sentence_files(folder)
        return folder / name

    def read(file: Path) -> None:
        from duonlp.tasks.sentence_config import read_sentence_config

        config = read_sentence_config(file.parents[name.count("/")])
        vectors = np.ones((2, 24), np.float32)
        for step in config.steps:
            vectors = step(vectors)
        assert config.max_length is None or min(config.max_length, 3) > 0
        assert config.prompts is None or all(prompt + "text" for prompt in config.prompts.values())
        assert config.default_prompt is None or isinstance(config.default_prompt, str)

    fuzzed(name, "json", write=write)(read)


for name in SENTENCE_FILES:
    register_sentence_file(name)


@fuzzed("weights of a Dense module", "bytes", write=lambda folder: (
    write_sentence_files(folder), folder / "2_Dense/model.safetensors")[1])  # fmt: skip
def read_dense_weights(file: Path) -> None:
    """Read the module and apply it."""
    from duonlp.tasks.sentence_config import read_sentence_config

    for step in read_sentence_config(file.parents[1]).steps:
        step(np.ones((2, 24), np.float32))


PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 12, "width": 12}, "resample": 2,
    "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


@fuzzed("preprocessor_config.json", "json", write=beside_checkpoint(
    "preprocessor_config.json", PREPROCESSOR, model_type="vit"))  # fmt: skip
def read_preprocessor(file: Path) -> None:
    """Load the image processor and preprocess an image like the task does."""
    from duonlp.checkpoints import open_checkpoint
    from duonlp.tasks.image_classification import ImageClassificationTask

    checkpoint = open_checkpoint(file.parent)
    task = ImageClassificationTask(checkpoint.image_processor(), checkpoint.transformer_config(), file.parent)
    task.encode([np.zeros((9, 7, 3), np.uint8)], task.Options())


def write_settings(folder: Path) -> Path:
    """Write the settings of a fine-tuning run."""
    from duonlp.runs.finetuning import FinetuneSettings
    from duonlp.training import write_toml

    file = folder / "settings.toml"
    write_toml(file, FinetuneSettings(model="a/b", data="texts.csv", output="run", limit=5, max_length=16), "a run")
    return file


@fuzzed("settings of duonlp finetune", "toml", write=write_settings)
def read_settings(file: Path) -> None:
    """Read and write the settings."""
    from duonlp.cli.settings import settings_from
    from duonlp.runs.finetuning import FinetuneSettings
    from duonlp.training import to_toml

    to_toml(settings_from(FinetuneSettings, str(file), what="duonlp finetune"))


def write_tuning(folder: Path) -> Path:
    """Write the settings of a search."""
    file = folder / "tune.toml"
    file.write_text(
        'model = "a/b"\ndata = "texts.csv"\n'
        'tune = { trials = 3, minutes = 1.5, objective = ["accuracy"], seed = 1, prune = true, run = "finetune" }\n'
        'search = { "fit.learning_rate" = { low = 1e-5, high = 1e-3, log = true }, batch_size = { choices = [8, 16] }, '
        '"fit.epochs" = { low = 1, high = 3 } }\nfit = { epochs = 2 }\n'
    )
    return file


@fuzzed("settings of duonlp tune", "toml", write=write_tuning)
def read_tuning(file: Path) -> None:
    """Do what the command does before it loads a framework."""
    from duonlp.cli.settings import merged
    from duonlp.cli.tune import _pop_table
    from duonlp.training.settings_file import build
    from duonlp.tuning.runs import RunSearch, TuneSettings

    table = merged(str(file))
    search, options = (
        _pop_table(table, "search"),
        build(TuneSettings, _pop_table(table, "tune"), "duonlp tune", "tune."),
    )
    RunSearch(table, search, options, str(file.parent / "out"))


def write_run_file(folder: Path) -> Path:
    """Write run.json of a training run."""
    from duonlp.training.fit_config import FitConfig
    from duonlp.training.run_file import write_run

    write_run(folder, FitConfig(epochs=2), {"model": "bert", "head": "base", "data": {"train": "x", "rows": [1, 2]}})
    return folder / "run.json"


@fuzzed("run.json", "json", write=write_run_file)
def read_run_file(file: Path) -> None:
    """Check whether the run can be resumed."""
    from duonlp.training.fit_config import FitConfig
    from duonlp.training.run_file import check_run

    description = {"model": "bert", "head": "base", "data": {"train": "x", "rows": [1, 2]}}
    check_run(file.parent, FitConfig(epochs=2), description)


def write_manifest_file(folder: Path) -> Path:
    """Write the manifest of a folder of blocks."""
    from duonlp.data.rows.manifest import Manifest, Shard, shard_file, write_manifest

    (folder / shard_file(0)).write_bytes(b"12345")
    shard = Shard(shard_file(0), 2, 5, "ab")
    write_manifest(Manifest(8, 2, 3, 16, 1, 50, 60, "cd", 100, 1, "ef", False, 2, (shard,), True), folder)
    return folder / "manifest.json"


@fuzzed("manifest.json of blocks", "json", write=write_manifest_file)
def read_manifest_file(file: Path) -> None:
    """Read the manifest and check the shards."""
    from duonlp.data.rows.manifest import check_shards, read_manifest

    manifest = read_manifest(file.parent)
    check_shards(file.parent, manifest)
    assert manifest.token_bytes


def write_metrics_file(folder: Path) -> Path:
    """Write the metrics of a run."""
    rows = [{"kind": "step", "step": step, "loss": 1.5 / (step + 1), "lr": 1e-4} for step in range(4)]
    rows.append({"kind": "evaluation", "step": 3, "loss": "nan", "accuracy": 0.5})
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@fuzzed("metrics.jsonl", "jsonl", write=write_metrics_file)
def read_metrics_file(file: Path) -> None:
    """Read the records, then truncate them to a step, as a resumed run does, and plot what is left."""
    from duonlp.runs.folder import read_evaluations
    from duonlp.training.log.metrics_file import read_metrics, remove_after

    read_metrics(file)
    read_evaluations(file.parent)
    remove_after(file, 2)


def write_problems(folder: Path) -> Path:
    """Write problems in HumanEval's format."""
    row = {"task_id": "T/0", "prompt": "def f(x):\n", "test": "def check(f): pass", "entry_point": "f"}
    file = folder / "problems.jsonl"
    rows = [row | {"task_id": f"T/{i}", "canonical_solution": "    return x\n"} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@fuzzed("problems of evaluate code", "jsonl", write=write_problems)
def read_problem_file(file: Path) -> None:
    from duonlp.evaluation.human_eval import _fingerprint, cut_at_first_block, read_problems

    for problem in read_problems(file):
        cut_at_first_block(problem.prompt, problem.canonical_solution)
        _fingerprint(problem)


def write_problem_record(folder: Path) -> Path:
    """Write the record of an evaluation of problems."""
    row = {
        "task_id": "T/0", "label": "model", "samples": 1, "fingerprint": "ab", "completions": ["    return x\n"],
        "results": [{"passed": True, "status": "passed", "error": "", "seconds": 0.1}], "problem": "cd",
    }  # fmt: skip
    file = folder / "record.jsonl"
    file.write_text("".join(json.dumps(row | {"task_id": f"T/{i}"}) + "\n" for i in range(3)))
    return file


@fuzzed("record of evaluate code", "jsonl", write=write_problem_record)
def read_problem_record(file: Path) -> None:
    from duonlp.evaluation.human_eval import _read_record

    _read_record(file, 1, "model")


def write_prediction_file(folder: Path) -> Path:
    """Write predictions of three examples."""
    file = folder / "predictions.jsonl"
    file.write_text("".join(json.dumps({"id": f"{i}", "prediction": f"text {i}"}) + "\n" for i in range(3)))
    return file


@fuzzed("predictions", "jsonl", write=write_prediction_file)
def read_prediction_file(file: Path) -> None:
    from duonlp.metrics.predictions import read_predictions

    read_predictions(file, ["0", "1", "2"])


def write_benchmark(folder: Path) -> Path:
    """Write a benchmark's run file."""
    from duonlp.benchmark.record import BenchmarkRecord, Latency, Memory, pack_flags, write_records

    latency = Latency.from_seconds([0.1] * 10 + [0.2] * 10)
    flags = pack_flags(np.arange(20) % 2 == 0)
    record = BenchmarkRecord(
        "small", "run 1", "2024-01-01", "data", 20, {"accuracy": 0.5}, flags, latency, throughput=50.0, size=1000,
        memory=Memory(2000, 500),
    )  # fmt: skip
    write_records(folder / "benchmark.json", [record])
    return folder / "benchmark.json"


@fuzzed("run file of a benchmark", "json", write=write_benchmark)
def read_benchmark(file: Path) -> None:
    """Read the records and print them."""
    from duonlp.benchmark import record as records

    for stored in records.read_records(file):
        stored.to_dict()
        stored.latency.by_query()


def write_pretraining(folder: Path) -> Path:
    """Write the configuration of a pretraining run."""
    from duonlp.runs.pretraining import RunConfig

    file = folder / "run_config.json"
    config = RunConfig(corpus=[str(folder)], corpus_options={"limit": 3}, model={"model_type": "gpt2", "n_layer": 2})
    file.write_text(json.dumps(config.to_dict()))
    return file


@fuzzed("configuration of a pretraining run", "json", write=write_pretraining)
def read_pretraining(file: Path) -> None:
    """Read the configuration and derive what `prepare` derives from it."""
    from duonlp.runs.pretraining import load_run

    run = load_run(file)
    assert run.sources is not None and run.tokenizer_options is not None
    run.to_dict()
    asdict(run)


def write_inputs(folder: Path) -> Path:
    """Write inputs of `duonlp run`."""
    file = folder / "inputs.jsonl"
    rows = ["a text", {"question": "who?", "context": "Ada."}, "[red]text[/]"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@fuzzed("inputs of duonlp run", "jsonl", write=write_inputs)
def read_run_inputs(file: Path) -> None:
    """Read the inputs and check them as a task does."""
    from duonlp.cli.run import read_inputs
    from duonlp.tasks.base import check_text

    for item in read_inputs([], str(file)):
        check_text(item if isinstance(item, str) else "text", "the input")


def write_labelled(folder: Path) -> Path:
    """Write labeled texts."""
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": f"{i % 2}"}) + "\n" for i, text in enumerate(TEXTS)))
    return file


@fuzzed("labeled texts", "jsonl", write=write_labelled)
def read_labelled(file: Path) -> None:
    """Read them like a training run."""
    from duonlp.data import read_labelled_texts

    read_labelled_texts(file)


def write_study(folder: Path) -> Path:
    """Write the study of a search with one finished trial."""
    read_study(folder / "study.db")
    (folder / "study.db-wal").unlink(missing_ok=True)
    return folder / "study.db"


@fuzzed("study.db of a search", "bytes", write=write_study)
def read_study(file: Path) -> None:
    """Resume the study, if Optuna is installed."""
    from importlib.util import find_spec

    if not find_spec("optuna"):
        file.touch()
        return
    from duonlp.tuning.search_space import Objective, read_space
    from duonlp.tuning.study import close_running, finished, open_study, quiet_optuna

    for ending in ("-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    space = read_space({"batch_size": {"choices": [8, 16]}})
    with quiet_optuna(), open_study(file.parent, space, [Objective("accuracy", True)], 0, {}) as (study, storage):
        close_running(study, storage, "stopped")
        finished(study, space)
    shutil.rmtree(file.parent / "trials", ignore_errors=True)
