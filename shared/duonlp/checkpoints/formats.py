"""Recognize weights that are not in Hugging Face layout, and say what to do with them. No file is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_ENTRIES = 10_000
"""Number of entries of a folder that are looked at."""

ORIGINAL = "pass the original checkpoint in Hugging Face layout"

KERAS = (
    "load it with keras.models.load_model after `import tfnlp` if tfnlp saved it, and write a folder with "
    "model.save_pretrained; for a model of another library, use that library"
)

ENDINGS = {
    ".gguf": ("a GGUF file of llama.cpp, mostly quantized", f"{ORIGINAL}, from which it was made"),
    ".onnx": ("an ONNX graph, which has no parameters to train", f"{ORIGINAL}, from which it was exported"),
    ".keras": ("a Keras model", KERAS),
    ".tflite": ("a TensorFlow Lite model", f"{ORIGINAL}, from which it was exported"),
    ".mlmodel": ("a Core ML model", f"{ORIGINAL}, from which it was exported"),
    ".weights.h5": (
        "weights in Keras' own format",
        "build the model that saved them and call its load_weights, then write a folder with model.save_pretrained",
    ),
    ".h5": ("an HDF5 file other than Transformers' tf_model.h5", KERAS),
    ".bin": (
        "PyTorch weights under another name than pytorch_model.bin",
        "rename the file if it is the whole model, then run `duonlp convert` on its folder",
    ),
    ".safetensors": ("safetensors without the config.json of a model", "pass the folder of a model in Hugging Face layout"),
    ".ckpt": (
        "a checkpoint of PyTorch Lightning or TensorFlow 1",
        "write a folder with the save_pretrained of Transformers in the program that made it",
    ),
    ".pth": (
        "PyTorch weights in their authors' own layout",
        "convert them with their authors' script, or get the model in Hugging Face layout",
    ),
    ".npz": ("NumPy arrays", "get the model in Hugging Face layout"),
}  # fmt: skip
"""Ending of a file -> (what it is, what to do instead)."""
ENDINGS[".pt"] = ENDINGS[".pth"]

IN_LAYOUT = re.compile(r"((?:tf_|flax_|pytorch_)?model)(-\d+-of-\d+)?(\.(?:safetensors|h5|msgpack|bin))")
"""Names of weights in Hugging Face layout: stem, number of a shard, ending."""

NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "trainer_state")
"""What the names of files begin with that trainers leave beside the weights."""

TF1 = (
    "a TensorFlow 1 checkpoint",
    "convert it with Transformers 4 and TensorFlow (for BERT: BertForPreTraining.from_pretrained(FILE, from_tf=True, "
    "config=...), then save_pretrained), or get the model in Hugging Face layout",
)
T5X = (
    "a T5X checkpoint",
    "convert it with Transformers' convert_t5x_checkpoint_to_flax.py, then run `duonlp convert` on the result, or get the "
    "model in Hugging Face layout",
)
ORBAX = (
    "an Orbax checkpoint",
    "restore it with Orbax in the program that wrote it, and write the parameters in Hugging Face layout",
)
RUN = (
    "the training state of a jaxnlp run",
    "pass the run's best folder if it has one, or write a model from the training state with jaxnlp.training.export(RUN, OUT)",
)
SAVED_MODEL = ("a TensorFlow SavedModel, a graph for serving", f"load it with tf.saved_model.load, or {ORIGINAL}")
ADAPTER = ("a PEFT adapter", "merge it into its base model with PEFT's merge_and_unload, then save_pretrained")
RENAMED = ("safetensors under another name than model.safetensors", "rename the file if it is the whole model")
OPENVINO = ("an OpenVINO model", f"{ORIGINAL}, from which it was exported")


def describe_file(name: str) -> str | None:
    """Return what a file of weights is and what to do, from its name; None if it is unknown or in Hugging Face layout."""
    if IN_LAYOUT.fullmatch(name):
        return None
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)
    return None if ending is None else _sentence(*ENDINGS[ending], name)


def describe_folder(folder: Path, config: Mapping[str, Any] | None = None) -> str | None:
    """Return what weights a folder holds that are not in Hugging Face layout, and what to do; None if it has none.

    Args:
        folder: The folder.
        config: Contents of its config.json, if it has one.
    """
    if config is not None and (registered := keras_class(config)):
        return (
            f"it holds a KerasHub preset ({registered}), whose weights have other names and layouts; in an environment with "
            "keras-hub, run keras_hub.models.Backbone.from_preset(FOLDER).export_to_transformers(OUT), or get the model in "
            "Hugging Face layout"
        )
    try:
        names = sorted(path.name for _, path in zip(range(MOST_ENTRIES), folder.iterdir()))
    except OSError:
        return None
    if found := _layout(folder, set(names)):
        return _sentence(*found)
    if weights := next(filter(None, map(IN_LAYOUT.fullmatch, names)), None):
        if config is None:
            return (
                f"it has weights ({weights[0]}), but not the config.json that describes them; download or copy it, too"
            )
        if weights[2]:
            index = f"{weights[1]}{weights[3]}.index.json"
            return f"it has shards of weights ({weights[0]}), but not their index; download or copy {index}, too"
    names = [name for name in names if not name.startswith(NOT_WEIGHTS)]
    for ending in ENDINGS:
        if name := next((name for name in names if name.lower().endswith(ending)), None):
            is_renamed = ending == ".safetensors" and config is not None
            return _sentence(*(RENAMED if is_renamed else ENDINGS[ending]), name)
    return None


def keras_class(config: Mapping[str, Any]) -> str | None:
    """Return the registered name of the class of a Keras configuration, such as "keras_hub>BertBackbone"; None for others."""
    registered = config.get("registered_name")
    if "model_type" in config or not isinstance(registered, str) or not isinstance(config.get("class_name"), str):
        return None
    return registered[:100]


def _layout(folder: Path, names: set[str]) -> tuple[str, str] | None:
    """Return what the layout of a folder is and what to do, or None."""
    if "adapter_config.json" in names:
        return ADAPTER
    if "saved_model.pb" in names or "saved_model.pbtxt" in names:
        return SAVED_MODEL
    if any(name.endswith((".ckpt.index", ".ckpt.meta")) or ".ckpt.data-" in name for name in names):
        return TF1
    steps = folder / "checkpoints"
    is_run = "run.json" in names and steps.is_dir()
    if is_run or ({"state", "meta"} <= names and _is_orbax(folder, names)):
        return RUN
    if folder.name == "checkpoints" and (folder.parent / "run.json").is_file():
        return RUN
    if "checkpoint" in names and (folder / "checkpoint").is_file():
        return T5X if not _begins(folder / "checkpoint", b"model_checkpoint_path") else TF1
    if any(name.startswith("target.") and (folder / name / ".zarray").is_file() for name in names):
        return T5X
    if _is_orbax(folder, names):
        return ORBAX
    if any(name.startswith("openvino") and name.endswith(".xml") for name in names):
        return OPENVINO
    return None


def _is_orbax(folder: Path, names: set[str]) -> bool:
    signs = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")
    inner = (folder / part / sign for part in ("default", "state", "params") for sign in signs)
    return not names.isdisjoint(signs) or any(path.exists() for path in inner)


def _begins(file: Path, start: bytes) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(len(start)) == start
    except OSError:
        return False


def _sentence(what: str, remedy: str, name: str = "") -> str:
    return f"it holds {what}{f' ({name})' if name else ''}; {remedy}"
