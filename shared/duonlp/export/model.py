"""A model of exported graphs, with the calls of an engine's model."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from duonlp import numpy_ops
from duonlp.checkpoints.checkpoint import Checkpoint
from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.config import TransformerConfig
from duonlp.errors import CheckpointError, DuonlpError, InputError
from duonlp.export.files import ExportedFiles
from duonlp.export.graphs import flat_cache, nested_cache
from duonlp.export.padding import run_padded
from duonlp.export.sessions import Session, check_shapes
from duonlp.generation import GenerationConfig, GenerationOutput, driver
from duonlp.generation import loop as decoding
from duonlp.generation.strategies.cache import Cache
from duonlp.generation.strategies.search import Search
from duonlp.inputs import check_inputs
from duonlp.typing import Array


class ExportedModel:
    """A model whose graphs another runtime runs; a pipeline takes it as it takes a model of an engine.

    Args:
        config: Its configuration.
        head: Its head.
        sessions: Its graphs by name, see :mod:`duonlp.export.graphs`.
        generation_config: Default generation options; None for those of the configuration.
        folder: Folder with its files.
    """

    def __init__(
        self,
        config: TransformerConfig,
        head: str,
        sessions: Mapping[str, Session],
        generation_config: GenerationConfig | None = None,
        folder: Path | None = None,
    ):
        self.config, self.head, self.sessions = config, head, dict(sessions)
        self.generation_config = generation_config or default_generation_config(config)
        self.folder = None if folder is None else str(folder)

    @classmethod
    def open(cls, files: ExportedFiles, runtimes: Mapping[str, Callable[[Path], Any]]) -> "ExportedModel":
        """Open the graphs of a folder, and its config.json.

        Args:
            files: The files.
            runtimes: See ExportedFiles.sessions.

        Raises:
            InputError: The format is of the other engine.
            CheckpointError: There is no config.json, or a file is damaged.
            MissingExtraError: The format's runtime is not installed.
        """
        checkpoint = Checkpoint(files.folder)
        config, stored = checkpoint.transformer_config(), checkpoint.generation_config
        generation_config = default_generation_config(config, stored) if stored else None
        return cls(config, checkpoint.head, files.sessions(runtimes), generation_config, files.folder)

    def __call__(self, **inputs: Array) -> dict[str, np.ndarray]:
        """Return the head's outputs; a graph of static shapes runs in as many batches as needed.

        Args:
            inputs: Arrays of ``config.inputs``, at most as long as a static shape. Those that the graph does not have, such as
                position_ids, must be the default.

        Raises:
            InputError: The graph does not take the inputs.
        """
        inputs = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
        check_inputs(self.config, self.head, inputs)
        session = self._session("serve", "use it with a task that generates text, or export it with cache=False")
        if "attention_mask" in session.inputs and "attention_mask" not in inputs:
            inputs["attention_mask"] = np.ones_like(inputs["input_ids"])
        if "token_type_ids" in session.inputs and "token_type_ids" not in inputs:
            inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        return self._guarded(lambda: run_padded(session, inputs, self.config, self.head), inputs)

    def run(self, batch: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return the head's outputs for a dict of inputs, as a pipeline calls it."""
        return self(**batch)

    def _session(self, name: str, remedy: str) -> Session:
        if name not in self.sessions:
            raise InputError(
                f"this exported {self.config.model_type} has no graph {name!r}, only {', '.join(map(repr, self.sessions))}; "
                f"{remedy}"
            )
        return self.sessions[name]

    def _run(self, session: Session, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        check_shapes(session.inputs, arrays)
        return self._guarded(lambda: session(arrays), arrays)

    def _guarded(self, run: Callable[[], dict[str, np.ndarray]], arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Return what `run` returns, and raise a runtime's own errors as CheckpointError."""
        try:
            return run()
        except DuonlpError:
            raise
        except Exception as error:  # runtimes raise errors of many classes
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in arrays.items())
            raise CheckpointError(f"the exported graph failed for {shapes}: {error}; export the model again") from error

    # -- the protocol of duonlp.generation.strategies.search.DecoderModel, in NumPy ----------------------------------------

    def start_cache(self, rows: int, slots: int, source: tuple[Array, Array] | None = None) -> Cache:
        """Return an empty cache, see DecoderModel.start_cache."""
        layers, cache = self.config.as_decoder().layers, {}
        for i, layer in enumerate(layers):
            shape, width = (rows, layer.attention.kv_heads), layer.attention.head_dim
            key, value = np.zeros((*shape, width, slots), np.float32), np.zeros((*shape, slots, width), np.float32)
            cache[f"step_{i}"] = {"key": key, "value": value}
        if source is not None:
            arrays = dict(zip(("input_ids", "attention_mask"), source, strict=True))
            encoded = self._run(self._session("encode", "export it again"), arrays)
            cache |= {"source": nested_cache(encoded, "source_", len(layers)), "source_mask": np.asarray(source[1])}
            if layers[0].attention.relative_buckets:
                cache["position"] = np.zeros((rows, slots), np.int32)
        return cache

    def decode(
        self,
        input_ids: Array,
        position_ids: Array,
        visible: tuple[Array, ...],
        cache: Cache,
        index: tuple[Array, ...],
        token_type_ids: Array | None = None,
    ) -> tuple[np.ndarray, Cache]:
        """Run tokens and write their keys and values into the cache, in place; see DecoderModel.decode.

        Returns:
            Logits [rows, n, V] in place of the hidden states, of the last token only if the tokens fill the cache, as prompts do;
            and the cache.

        Raises:
            InputError: There are token types, which the graph does not take.
        """
        if token_type_ids is not None and np.any(token_type_ids):
            raise InputError("exported decoders take no token_type_ids; omit them")
        n, fills_cache = input_ids.shape[1], input_ids.shape[1] == visible[0].shape[2]
        arrays = {
            "input_ids": input_ids, "position_ids": position_ids,
            "logit_positions": np.arange(n - 1 if fills_cache else 0, n, dtype=np.int32), **flat_cache(cache, "past_"),
            **{f"visible_{w}": array for w, array in enumerate(visible)},
            **{f"index_{w}": np.asarray(slot, np.int32) for w, slot in enumerate(index)},
        }  # fmt: skip
        if "source" in cache:
            arrays |= {"source_mask": cache["source_mask"], **flat_cache(cache["source"], "source_")}
            arrays |= {"past_position_ids": cache["position"]} if "position" in cache else {}
        out = self._run(self._session("decode", "export it with cache=True"), arrays)
        layers = self.config.as_decoder().layers
        slots = dict(zip(layers.windows, map(int, index), strict=True))
        for i, layer in enumerate(layers):
            start = slots[layer.attention.window]
            cache[f"step_{i}"]["key"][..., start : start + n] = out[f"key_{i}"]
            cache[f"step_{i}"]["value"][..., start : start + n, :] = out[f"value_{i}"]
        if "position" in cache:
            cache["position"][:, int(index[0]) : int(index[0]) + n] = position_ids
        return out["logits"], cache

    def next_logits(self, hidden: Array) -> Array:
        """Return the logits, which :meth:`decode` has computed already."""
        return hidden

    def generate(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> np.ndarray | GenerationOutput:
        """Generate text; see ``generate`` of either engine, whose arguments and results these are.

        Raises:
            InputError: See there; also for contrastive search, which compares hidden states, and an assistant_model that is not
                exported.
        """
        streamer = options.pop("streamer", None)
        extras, options = self._extras(generation_config, options)
        return driver.generate(_programs, self, input_ids, attention_mask, generation_config, streamer, extras, options)

    def stream(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Yield the new ids of :meth:`generate`; see ``stream`` of either engine."""
        extras, options = self._extras(generation_config, options)
        calls = driver.prepare(self, input_ids, attention_mask, generation_config, extras, options)
        return driver.stream(_programs, calls)

    def _extras(self, generation_config: Any, options: dict[str, Any]) -> tuple[driver.Extras, dict[str, Any]]:
        """Split the keywords of generate into those that are no options of a GenerationConfig, and the others."""
        names = {field.name for field in fields(driver.Extras)}
        extras = driver.Extras(**{name: value for name, value in options.items() if name in names})
        options = {name: value for name, value in options.items() if name not in names}
        config = driver.resolve_config(self.config, self.generation_config, generation_config, options)
        if config.strategy == "contrastive":
            raise InputError(
                "contrastive search compares hidden states, which exported graphs do not return; omit penalty_alpha"
            )
        if extras.assistant_model is not None and not isinstance(extras.assistant_model, ExportedModel):
            raise InputError("the assistant_model of an exported model must be exported, too; export it or omit it")
        return extras, options


def _programs(call: driver.Call) -> driver.Programs:
    """Return the loop of a call over NumPy arrays."""
    searching = Search(numpy_ops, call.model, call.plan.for_loop(), call.values, call.draft)
    return driver.Programs(
        start=lambda: decoding.start(searching),
        advance=lambda state, until: decoding.advance(searching, state, until),
        result=lambda state: decoding.result(Search(numpy_ops, None, call.plan, call.values), state),
    )
