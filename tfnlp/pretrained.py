"""Loading, random initialization, saving and exporting, shared by all model classes of heads.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import keras
import numpy as np
import tensorflow as tf

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Source
from duonlp.checkpoints.pretrained import PretrainedBase, default_generation_config
from duonlp.checkpoints.save import save_checkpoint, saved_values
from duonlp.config import TransformerConfig
from duonlp.dtypes import check_dtype
from duonlp.errors import ConfigError, InputError
from duonlp.export import serve_inputs
from duonlp.generation import GenerationConfig
from duonlp.heads import HEADS
from duonlp.parameters import parameters
from duonlp.util.reading import parse_json
from tfnlp.kernels.choice import FLOAT, products
from tfnlp.steps.saving import check_export_path

# The final class is a keras.Model, which the type checker needs to know of its mixins.
_Model = keras.Model if TYPE_CHECKING else object


class Pretrained(PretrainedBase, _Model):
    """Mixin of the model classes that loads, saves and exports them.

    Attributes:
        head: Name of the model's head.
        config: The model's configuration.
        generation_config: Default generation options.
    """

    config: TransformerConfig
    generation_config: GenerationConfig

    @classmethod
    def from_config(
        cls, config: Any, *, seed: int = 0, dtype: str | None = None, param_dtype: str = "float32",
        **config_overrides: Any,
    ) -> Self:  # fmt: skip
        """Create a model with random weights, see PretrainedBase.from_config; or from what get_config returned."""
        if isinstance(config, dict) and "hf_config" in config:
            return _from_keras_config(cls, dict(config))
        return super().from_config(config, seed=seed, dtype=dtype, param_dtype=param_dtype, **config_overrides)

    @classmethod
    def _dtypes(cls, dtype: str | None, param_dtype: str) -> tuple[str, str]:
        if dtype is None:  # Keras' global policy, which is the usual way to set mixed precision
            policy = keras.config.dtype_policy()
            dtype, param_dtype = (
                policy.compute_dtype,
                policy.variable_dtype if param_dtype == "float32" else param_dtype,
            )
        return super()._dtypes(dtype, param_dtype)

    @classmethod
    def _from_plan(cls, cfg: TransformerConfig, plan: list[Source], dtype: str, param_dtype: str) -> Self:
        create: Any = cls  # takes the arguments of model.Model
        model = create(cfg, dtype=dtype, param_dtype=param_dtype, seed=None)
        fill(model, plan)
        return model

    def get_config(self) -> dict[str, Any]:
        """Return what Keras writes to a ``.keras`` file: config.json and the dtype policies of quantized layers."""
        quantized = {
            (layer.path or "").removeprefix(f"{self.path}/"): keras.dtype_policies.serialize(layer.dtype_policy)
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

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, max_shard_size: int | str = "5GB", dequantize: bool = False
    ) -> None:
        """Write the model in Hugging Face layout, with LoRA weights merged; see duonlp.checkpoints.save_checkpoint.

        Args:
            folder: Folder to write to.
            tokenizer: Tokenizer or image processor to save.
            max_shard_size: See save_checkpoint.
            dequantize: Whether to write the weights of quantized layers in floating point, for software that does not read
                quantized ones.

        Raises:
            InputError: Keras has quantized single layers.
        """
        if any(layer.quantization_mode is not None for layer in self._flatten_layers()):
            raise InputError(
                "layers that Keras has quantized have no Hugging Face layout; use model.save('model.keras'), or quantize the "
                "model with tfnlp.quantize"
            )
        cfg, read = saved_values(self.config, self.head, lambda path: merged_values(self, path), dequantize)
        save_checkpoint(
            folder, cfg, self.head, read, np.dtype(self.variable_dtype), tokenizer, max_shard_size,
            self.generation_config.to_dict() if HEADS[self.head].generates else None, self.image_config,
        )  # fmt: skip

    def _serve(self, inputs: dict[str, tf.Tensor]) -> dict[str, Any]:
        with products(FLOAT):  # which any runtime has
            return self(inputs, training=False)

    def input_signature(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs of an exported model: those of ``config.inputs`` that are exported, for all batch sizes."""
        specs = serve_inputs(self.config, self.head)
        return {spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in specs}

    def export(
        self, filepath: str | Path, format: str = "tf_saved_model", verbose: bool | None = None,
        input_signature: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Export the model as keras.Model.export does, with a signature for all shapes.

        The signature makes a call before the export unnecessary.

        The artifact takes a dict of the inputs of :meth:`input_signature` and returns a dict of the head's
        outputs.
        """
        check_export_path(filepath)
        signature = [self.input_signature()] if input_signature is None else input_signature
        if format != "tf_saved_model":
            return super().export(filepath, format, verbose, input_signature=signature, **kwargs)
        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serve", self._serve, signature)
        return archive.write_out(filepath, verbose=bool(verbose))


class ComputeStoragePolicy(keras.DTypePolicy):
    """A dtype policy with any compute and variable dtype, named e.g. "float32_stored_as_bfloat16".

    Keras has names for the usual pairs only.
    """

    def _parse_name(self, name: str) -> tuple[str, ...]:
        return tuple(name.split("_stored_as_"))


def dtype_policy(dtype: str, param_dtype: str) -> keras.DTypePolicy:
    """Return the Keras policy that computes in ``dtype`` and stores parameters in ``param_dtype``.

    Raises:
        InputError: A dtype is not supported.
    """
    dtype, param_dtype = check_dtype(dtype), check_dtype(param_dtype, "param_dtype")
    if dtype == param_dtype:
        return keras.DTypePolicy(dtype)
    if param_dtype == "float32":
        return keras.DTypePolicy(f"mixed_{dtype}")
    return ComputeStoragePolicy(f"{dtype}_stored_as_{param_dtype}")


def _from_keras_config(cls: Any, config: dict[str, Any]) -> Any:
    cfg = architectures.config_from_hf(parse_json(config.pop("hf_config")))
    generation, quantized = parse_json(config.pop("generation_config")), config.pop("quantized")
    # Integers have no initial values; the file has theirs.
    seed = {"seed": None} if cfg.quantization is not None and not cfg.quantization.simulated else {}
    model = cls(cfg, **config, **seed)
    model.generation_config = default_generation_config(cfg, generation)
    for layer in model._flatten_layers():
        policy = quantized.get((layer.path or "").removeprefix(f"{model.path}/"))
        if policy is not None:
            layer.dtype_policy = keras.dtype_policies.deserialize(policy)  # quantizes the layer
    return model


LEAVES = {"kernel": "_kernel", "embedding": "_embeddings", "scale": "gamma"}
"""Attribute of the Keras layer by the last component of a parameter path, where they differ."""


def find_layer(model: Any, path: str) -> tuple[Any, str]:
    """Return the layer that owns a parameter, and the last component of the parameter's path."""
    *parts, leaf = path.split("/")
    layer = model
    for part in parts:
        # Keras layers have another attribute named `output`.
        layer = layer.output_layer if part == "output" else getattr(layer, part)
    return layer, leaf


def parameter_tree(model: Any) -> dict[str, keras.Variable]:
    """Return all parameters by path, e.g. ``encoder/layer_0/attention/query/kernel``; jaxnlp has the same paths."""
    if hasattr(model, "parameter_tree"):  # of several models that are trained together
        return model.parameter_tree()
    return {path: _variable(*find_layer(model, path)) for path in parameters(model.config, model.head)}


def _variable(layer: Any, leaf: str) -> keras.Variable:
    if leaf == "bias" and isinstance(layer, keras.layers.LayerNormalization):
        return layer.beta
    return getattr(layer, LEAVES.get(leaf, leaf))


def merged_values(model: Any, path: str) -> np.ndarray:
    """Return the values of a parameter with its LoRA update merged in."""
    layer, leaf = find_layer(model, path)
    if getattr(layer, "lora_enabled", False) and leaf in ("kernel", "embedding"):
        return np.asarray(layer.kernel if leaf == "kernel" else layer.embeddings)
    return _variable(layer, leaf).numpy()


def fill(model: keras.Model, plan: list[Source], partial: bool = False) -> None:
    """Assign all parameters, or if ``partial`` some, in chunks of one megabyte where the layout of the checkpoint allows it.

    Raises:
        ConfigError: Parameters or shapes of the model differ from the parameter table.
    """
    variables, expected = parameter_tree(model), {source.path for source in plan}
    if set(variables) != expected and not partial:
        raise ConfigError(f"model and parameter table differ in {sorted(set(variables) ^ expected)}")
    if len(variables) != len(model.weights):
        raise ConfigError(f"the model has {len(model.weights)} weights, and the parameter table {len(variables)}")
    for source in plan:
        variable = variables[source.path]
        if tuple(variable.shape) != source.parameter.shape:
            raise ConfigError(
                f"{source.path} has shape {tuple(variable.shape)} in the model and {source.parameter.shape} in the "
                "parameter table"
            )
        if isinstance(variable.value, tf.distribute.DistributedValues) or not source.parameter.shape:
            variable.assign(source.read(np.dtype(variable.dtype)))
            continue
        for start, values in source.chunks(np.dtype(variable.dtype), max_bytes=1 << 20):
            # variable.value[start:stop].assign(values) would first read, and so copy, the variable. Small
            # tensors are written in place, too: replacing their buffers of zeros would fragment the memory.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=variable.value.handle, begin=[start], end=[start + len(values)], strides=[1], value=values
            )


P = TypeVar("P", bound=Pretrained)


def rebuilt(model: P, cfg: TransformerConfig, values: Mapping[str, np.ndarray]) -> P:
    """Return a model of another configuration, with new values of some parameters and the model's own of the others."""
    specs = parameters(cfg, model.head)
    plan = [Source(p, spec, values=values[p] if p in values else merged_values(model, p)) for p, spec in specs.items()]
    create: Any = type(model)  # with the engine's mixin
    new = create._from_plan(cfg, plan, model.compute_dtype, model.variable_dtype)
    new.generation_config, new.folder, new.image_config = model.generation_config, model.folder, model.image_config
    return new
