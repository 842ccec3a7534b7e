"""Record checkpoints written by Transformers' TensorFlow and Flax models, which version 5 no longer has.

Install beside this repository, into an environment of its own::

    pip install "transformers==4.57.6" "tensorflow==2.20.*" tf-keras "jax<0.8" "flax<0.12" torch h5py msgpack ml_dtypes
    TF_USE_LEGACY_KERAS=1 PYTHONPATH=.:shared python -m tests.reference.record_legacy

Writes tests/reference/legacy.tar.xz, with a folder "FRAMEWORK-FAMILY-HEAD" for each model: config.json, its weights as
``save_pretrained`` writes them, and recorded.npz with the inputs, the outputs, and for each tensor of the PyTorch model that
Transformers makes of the file two projections (see record_models.py). With ``--folder``, every head of every family is written to
a folder instead.
"""

import argparse
import io
import json
import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.record_models import projections

ARCHIVE = Path(__file__).with_name("legacy.tar.xz")

VOCABULARY, LENGTH = 17, 5
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 10, "pad_token_id": 0, "num_labels": 3,
}  # fmt: skip
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 8, "max_position_embeddings": 10, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "num_labels": 3,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "albert": ENCODER | {"embedding_size": 4, "num_hidden_groups": 2},
    "bart": SEQ2SEQ,
    "bert": ENCODER,
    "camembert": ENCODER | {"pad_token_id": 1},
    "distilbert": {
        "vocab_size": VOCABULARY, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 10,
        "num_labels": 3,
    },
    "electra": ENCODER | {"embedding_size": 4},
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12, "n_positions": 10,
        "bos_token_id": 15, "eos_token_id": 16, "pad_token_id": 0, "num_labels": 3,
    },
    "llama": ENCODER | {"num_key_value_heads": 1, "head_dim": 4, "bos_token_id": 15, "eos_token_id": 16},
    "marian": SEQ2SEQ | {"pad_token_id": 16, "decoder_start_token_id": 16},
    "mbart": SEQ2SEQ,
    "pegasus": SEQ2SEQ,
    "roberta": ENCODER | {"pad_token_id": 1},
    "t5": {
        "vocab_size": VOCABULARY, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 12, "num_layers": 2,
        "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
    },
    "vit": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 6,
        "patch_size": 2, "num_labels": 3,
    },
    "xlm-roberta": ENCODER | {"pad_token_id": 1},
}  # fmt: skip
VARIANTS = {
    ("bert", "masked-lm", "tf"): {"half": {}, "sharded": {}, "safetensors": {}, "sharded-safetensors": {}},
    ("bert", "masked-lm", "flax"): {
        "half": {},
        "bfloat16": {},
        "sharded": {},
        "safetensors": {},
        "untied": {"tie_word_embeddings": False},
    },
    ("t5", "seq2seq-lm", "tf"): {"v1.1": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}},
    ("t5", "seq2seq-lm", "flax"): {"v1.1": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}},
    ("gpt2", "causal-lm", "flax"): {"untied": {"tie_word_embeddings": False}},
    ("bart", "seq2seq-lm", "flax"): {"untied": {"tie_word_embeddings": False}},
}
"""Further models by name; those without keys of config.json are other ways to save the same one."""

COMMITTED = {
    "albert": "pretraining", "bart": "sequence-classification", "bert": "masked-lm", "distilbert": "masked-lm",
    "electra": "replaced-token-detection", "gpt2": "causal-lm", "llama": "causal-lm", "marian": "seq2seq-lm",
    "mbart": "seq2seq-lm", "pegasus": "seq2seq-lm", "roberta": "masked-lm", "t5": "seq2seq-lm", "vit": "image-classification",
}  # fmt: skip
"""The head of each family in the archive."""


@cache
def recorded_files() -> dict[str, dict[str, bytes]]:
    """Return the files of the archive by folder and name."""
    folders: dict[str, dict[str, bytes]] = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            folder, name = member.name.split("/")
            folders.setdefault(folder, {})[name] = stream.read()
    return folders


def unpack(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Write a recorded model to a new folder and return its recorded arrays."""
    folder.mkdir(parents=True)
    for file, data in recorded_files()[name].items():
        if file != "recorded.npz":
            (folder / file).write_bytes(data)
    return dict(np.load(io.BytesIO(recorded_files()[name]["recorded.npz"])))


def class_of(framework: str, model_type: str, head: str) -> Any:
    """Return Transformers' class of a (family, head) pair, or None if it had none."""
    import transformers

    from duonlp import architectures

    name = architectures.class_name(model_type, head)
    names = (name, name.replace("LMHeadModel", "ForCausalLM")) if framework == "flax" else (name,)
    prefix = {"tf": "TF", "flax": "Flax", "torch": ""}[framework]
    return next((cls for n in names if (cls := getattr(transformers, prefix + n, None)) is not None), None)


def config_of(model_type: str, head: str, keys: dict[str, Any]) -> Any:
    """Return the configuration of a small model."""
    from transformers import AutoConfig

    causal = {"is_decoder": True} if head == "causal-lm" and model_type not in ("gpt2", "llama") else {}
    labels = {"num_labels": 2} if head in ("question-answering", "next-sentence-prediction", "pretraining") else {}
    return AutoConfig.for_model(model_type, **SIZES[model_type] | causal | labels | keys)


def inputs_of(config: Any, head: str) -> dict[str, np.ndarray]:
    """Return a batch."""
    rng = np.random.default_rng(3)
    if config.model_type == "vit":
        return {"pixel_values": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)}
    shape = (2, 2, LENGTH) if head == "multiple-choice" else (2, LENGTH)
    ids = rng.integers(3, 15, shape).astype(np.int32)
    if head in ("sequence-classification", "question-answering") and config.is_encoder_decoder:
        ids[:, -1] = config.eos_token_id
    inputs = {"input_ids": ids, "attention_mask": np.ones(shape, np.int32)}
    if config.model_type == "electra":  # Flax's default is ones
        inputs["token_type_ids"] = np.zeros(shape, np.int32)
    if config.is_encoder_decoder and head != "sequence-classification":
        inputs |= {"decoder_input_ids": rng.integers(3, 15, (2, 4)).astype(np.int32)}
        inputs |= {"decoder_attention_mask": np.ones((2, 4), np.int32)}
    return inputs


def outputs_of(output: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a model's output."""
    return {k: np.asarray(v, np.float32) for k, v in output.items() if hasattr(v, "shape")}


def random_value(shape: Any, rng: np.random.Generator) -> np.ndarray:
    """Return random values for a weight, none of which has a mean of zero or one by itself."""
    return rng.normal(0.1, 0.3, tuple(shape)).astype(np.float32)


def write_tf(cls: Any, config: Any, folder: Path, inputs: dict[str, np.ndarray], how: str) -> Any:
    """Write a random TensorFlow model and return it and its outputs."""
    import h5py
    import tensorflow as tf

    tf.keras.backend.clear_session()
    model, rng = cls(config), np.random.default_rng(1)
    model.build_in_name_scope()
    fixed = "embed_positions" if config.model_type in ("marian", "pegasus") else "\0"
    for weight in model.weights:
        if fixed not in weight.name:
            weight.assign(random_value(weight.shape, rng))
    sizes = {"max_shard_size": "3KB"} if how.startswith("sharded") else {}
    model.save_pretrained(folder, safe_serialization=how.endswith("safetensors"), **sizes)
    if how == "half":  # what people made of it with h5py; TensorFlow's models save in float32
        with h5py.File(folder / "tf_model.h5", "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            for name in names:
                values = file[name][()].astype(np.float16)
                del file[name]
                file[name] = values
    return model, outputs_of(model(**inputs, training=False))


def write_flax(cls: Any, config: Any, folder: Path, inputs: dict[str, np.ndarray], how: str) -> Any:
    """Write a random Flax model and return it and its outputs."""
    import jax

    kwargs = {"input_shape": (1, 2, 2)} if cls.__name__.endswith("MultipleChoice") else {}
    model, rng = cls(config, **kwargs), np.random.default_rng(2)
    model.params = jax.tree_util.tree_map(lambda x: random_value(x.shape, rng), model.params)
    params = model.params
    if how in ("half", "bfloat16"):
        params = model.to_fp16(params) if how == "half" else model.to_bf16(params)
    sizes = {"max_shard_size": "3KB"} if how.startswith("sharded") else {}
    model.save_pretrained(folder, params=params, **sizes, safe_serialization=how.endswith("safetensors"))
    return model, outputs_of(model(**inputs, train=False))


def torch_tensors(model: Any, model_type: str, head: str, framework: str) -> dict[str, np.ndarray]:
    """Return projections of the tensors of the PyTorch model that Transformers makes of another one."""
    from transformers.modeling_flax_pytorch_utils import load_flax_weights_in_pytorch_model
    from transformers.modeling_tf_pytorch_utils import load_tf2_model_in_pytorch_model

    torch_model = class_of("torch", model_type, head)(model.config)
    if framework == "tf":
        load_tf2_model_in_pytorch_model(torch_model, model, allow_missing_keys=True)
    else:
        load_flax_weights_in_pytorch_model(torch_model, model.params)
    # Transformers does not convert the first of these from TensorFlow, and of ALBERT takes the bias that TensorFlow does not use.
    wrong = ("final_logits_bias", "predictions.bias", "predictions.decoder.bias") if framework == "tf" else ()
    tensors = {k: v for k, v in torch_model.state_dict().items() if v.is_floating_point() and k not in wrong}
    return {k: projections(k, v.numpy()) for k, v in tensors.items()}


def record(folder: Path, framework: str, model_type: str, head: str, keys: dict[str, Any], how: str) -> bool:
    """Write the folder of a model; return whether Transformers had it."""
    cls = class_of(framework, model_type, head)
    if cls is None:
        return False
    config = config_of(model_type, head, keys)
    inputs = inputs_of(config, head)
    write = write_tf if framework == "tf" else write_flax
    arrays = {f"inputs/{k}": v for k, v in inputs.items()}
    model, outputs = write(cls, config, folder, inputs, how)
    arrays |= {f"outputs/{k}": v for k, v in outputs.items()}
    arrays |= {f"torch/{k}": v for k, v in torch_tensors(model, model_type, head, framework).items()}
    np.savez_compressed(folder / "recorded.npz", **arrays)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in written.items() if not k.startswith("_")}))
    return True


def models(everything: bool) -> Iterator[tuple[str, str, str, str, dict[str, Any], str]]:
    """Yield name, framework, family, head, keys of config.json and the way to save of each model."""
    from duonlp import architectures

    for model_type in SIZES:
        for head in architectures.get(model_type).heads(model_type):
            if not everything and COMMITTED.get(model_type) != head:
                continue
            for framework in ("tf", "flax"):
                name = f"{framework}-{model_type}-{head}"
                yield name, framework, model_type, head, {}, ""
                for variant, keys in VARIANTS.get((model_type, head, framework), {}).items():
                    yield f"{name}-{variant}", framework, model_type, head, keys, "" if keys else variant
                if everything and "safetensors" not in VARIANTS.get((model_type, head, framework), {}):
                    yield f"{name}-safetensors", framework, model_type, head, {}, "safetensors"


def main() -> None:
    """Record all models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="write every head of every family here")
    parser.add_argument("--only", default="", help="regular expression of the names to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        target = options.folder or Path(temporary)
        for name, *model in models(everything=options.folder is not None):
            if not re.search(options.only, name):
                continue
            try:
                print(name, "recorded" if record(target / name, *model) else "does not exist", flush=True)
            except Exception as error:
                if options.folder is None:
                    raise
                print(name, f"fails in Transformers: {error!r:.200}", flush=True)
        if options.folder is None:
            with lzma.open(ARCHIVE, "wb", preset=9) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
                for path in sorted(target.rglob("*")):
                    if path.is_file():
                        archive.add(path, str(path.relative_to(target)))
            print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
