"""Loading, starting afresh, saving and exporting: what every model class of heads.py can do."""

import json

import keras
import numpy as np
import tensorflow as tf

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Source
from duonlp.checkpoints.pretrained import PretrainedBase
from duonlp.checkpoints.save import save_checkpoint
from duonlp.dtypes import check_dtype
from duonlp.errors import ConfigError, InputError
from duonlp.generation import GenerationConfig
from duonlp.parameters import parameters


class Pretrained(PretrainedBase):
    """Mixin of the model classes; they bring ``head`` and ``config``."""

    @classmethod
    def from_config(cls, config, *, seed=0, dtype=None, param_dtype="float32", **config_overrides):
        """As PretrainedBase.from_config; Keras passes what get_config gave."""
        if isinstance(config, dict) and "hf_config" in config:
            return _from_keras_config(cls, dict(config))
        return super().from_config(config, seed=seed, dtype=dtype, param_dtype=param_dtype, **config_overrides)

    @classmethod
    def _dtypes(cls, dtype, param_dtype):
        if dtype is None:  # Keras' global policy, which mixed precision is usually set by
            policy = keras.config.dtype_policy()
            dtype, param_dtype = (
                policy.compute_dtype,
                policy.variable_dtype if param_dtype == "float32" else param_dtype,
            )
        return super()._dtypes(dtype, param_dtype)

    @classmethod
    def _from_plan(cls, cfg, plan, dtype, param_dtype):
        model = cls(cfg, dtype=dtype, param_dtype=param_dtype, seed=None)
        fill(model, plan)
        return model

    def get_config(self):
        """What Keras writes into a ``.keras`` file: config.json and what was done to the layers."""
        quantized = {
            layer.path.removeprefix(f"{self.path}/"): keras.dtype_policies.serialize(layer.dtype_policy)
            for layer in self._flatten_layers()
            if layer.quantization_mode is not None
        }
        return {
            "hf_config": json.dumps(architectures.hf_config(self.config, self.head)),
            "generation_config": json.dumps(self.generation_config.to_dict()),
            "dtype": self.compute_dtype,
            "param_dtype": self.variable_dtype,
            "name": self.name,
            "quantized": quantized,
        }

    def save_pretrained(self, folder, tokenizer=None, max_shard_size="5GB"):
        """Write the model in Hugging Face layout, LoRA weights merged; see duonlp.checkpoints.save_checkpoint.

        Raises:
            InputError: the model is quantised.
        """
        if any(layer.quantization_mode is not None for layer in self._flatten_layers()):
            raise InputError(
                "a quantised model has no Hugging Face layout; use model.save('model.keras'), or save it before"
            )
        save_checkpoint(
            folder, self.config, self.head, lambda path: merged_values(self, path), np.dtype(self.variable_dtype), tokenizer,
            max_shard_size, self.generation_config.to_dict() if self.head in ("causal-lm", "seq2seq-lm") else None,
        )  # fmt: skip

    def input_signature(self) -> dict[str, tf.TensorSpec]:
        """The inputs a served model takes: int32 [B, T] each ([B, C, T] for multiple choice, [B, U] what a decoder reads)."""
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * bool(self.config.embedding.type_vocab_size)
        # A classifier of this kind reads its source a second time, and needs no other text.
        names += ["decoder_input_ids"] * (self.config.decoder is not None and self.head in ("base", "seq2seq-lm"))
        shape = [None] * (3 if self.head == "multiple-choice" else 2)
        return {name: tf.TensorSpec(shape, tf.int32, name=name) for name in names}

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """keras.Model.export with a signature of its own, so that no call need come before it.

        The artifact takes a dict of the inputs of :meth:`input_signature` and gives a dict of the head's outputs.
        """
        signature = [self.input_signature()] if input_signature is None else input_signature
        if format != "tf_saved_model":
            return super().export(filepath, format, verbose, input_signature=signature, **kwargs)
        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serve", lambda inputs: self(inputs, training=False), signature)
        return archive.write_out(filepath, verbose=bool(verbose))


class StoredAs(keras.DTypePolicy):
    """A dtype policy whose compute and variable dtypes are any two; Keras has names for the usual pairs only."""

    def _parse_name(self, name):
        return tuple(name.split("_stored_as_"))


def dtype_policy(dtype, param_dtype) -> keras.DTypePolicy:
    """The Keras policy that computes in ``dtype`` and stores ``param_dtype``; raises InputError for other dtypes."""
    dtype, param_dtype = check_dtype(dtype), check_dtype(param_dtype, "param_dtype")
    if dtype == param_dtype:
        return keras.DTypePolicy(dtype)
    return (
        keras.DTypePolicy(f"mixed_{dtype}")
        if param_dtype == "float32"
        else StoredAs(f"{dtype}_stored_as_{param_dtype}")
    )


def _from_keras_config(cls, config):
    cfg = architectures.config_from_hf(json.loads(config.pop("hf_config")))
    generation, quantized = json.loads(config.pop("generation_config")), config.pop("quantized")
    model = cls(cfg, **config)
    model.generation_config = GenerationConfig.for_model(cfg, generation)
    for layer in model._flatten_layers():
        policy = quantized.get((layer.path or "").removeprefix(f"{model.path}/"))
        if policy is not None:
            layer.dtype_policy = keras.dtype_policies.deserialize(policy)  # quantises the layer
    return model


LEAVES = {"kernel": "_kernel", "embedding": "_embeddings", "scale": "gamma"}
"""Last path components where Keras has another name. A norm's ``bias`` is its ``beta``."""


def _layer_of(model, path: str):
    """The layer that holds a parameter, and the last component of the path."""
    *parts, leaf = path.split("/")
    for part in parts:
        model = (
            model.output_layer if part == "output" else getattr(model, part)
        )  # a Keras layer's own `output` is another thing
    return model, leaf


def parameter_tree(model) -> dict[str, keras.Variable]:
    """Path -> variable of every parameter, e.g. ``encoder/layer_0/attention/query/kernel``; the same paths as jaxnlp's."""
    return {path: _variable(*_layer_of(model, path)) for path in parameters(model.config, model.head)}


def _variable(layer, leaf: str) -> keras.Variable:
    if leaf == "bias" and isinstance(layer, keras.layers.LayerNormalization):
        return layer.beta
    return getattr(layer, LEAVES.get(leaf, leaf))


def merged_values(model, path: str) -> np.ndarray:
    """A parameter's values, with what LoRA adds to them."""
    layer, leaf = _layer_of(model, path)
    if getattr(layer, "lora_enabled", False) and leaf in ("kernel", "embedding"):
        return np.asarray(layer.kernel if leaf == "kernel" else layer.embeddings)
    return _variable(layer, leaf).numpy()


def fill(model, plan: list[Source]) -> None:
    """Give every parameter its values, in pieces of a megabyte where the checkpoint's layout allows it."""
    variables, expected = parameter_tree(model), {source.path for source in plan}
    if set(variables) != expected or len(variables) != len(model.weights):
        raise ConfigError(
            f"engine and parameter table disagree on {sorted(set(variables) ^ expected) or len(model.weights)}"
        )
    for source in plan:
        variable = variables[source.path]
        if tuple(variable.shape) != source.parameter.shape:
            raise ConfigError(
                f"{source.path}: the engine wants {tuple(variable.shape)}, the parameter table says {source.parameter.shape}"
            )
        if isinstance(variable.value, tf.distribute.DistributedValues):
            variable.assign(source.read(np.dtype(variable.dtype)))
            continue
        for start, values in source.chunks(np.dtype(variable.dtype), max_bytes=1 << 20):
            # variable.value[start:stop].assign(values), without reading the variable first: that would copy it. Writing
            # small tensors in place, too, leaves no holes in memory where an assigned one took the place of zeros.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=variable.value.handle, begin=[start], end=[start + len(values)], strides=[1], value=values
            )
