"""Common part of the decoding strategies: run prompts in one pass, then new tokens over a preallocated cache.

Written once for every engine (``ops``, see duonlp.numpy_ops) and every model that implements
:class:`DecoderModel`.

Beams, candidates and drafts of one prompt are tokens of one row that do not see each other; ``visible``
encodes which tokens descend from which. So a prompt is cached once for all its beams, beams are never
copied when they are reordered, and every matrix product covers all of them.

Shapes:
    prompts: rows of prompts, including those that pad the batch to its bucket.
    rows: prompts, then as many negative prompts with guidance; or the prompts once per document (plan.documents).
    texts: prompts * samples.
    columns: columns of the padded prompts, where new tokens begin.
    room: columns for new tokens.
    slots: positions in the cache after the prompt.
    V, D: size of the vocabulary, width of the hidden states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.generation.plan import Plan
from duonlp.generation.strategies.cache import Cache, Slots, extend_cache
from duonlp.typing import Array, Ops

State = dict[str, Any]
"""Loop state of a strategy, whose ``start`` documents the keys, or the outputs of its ``result``."""


INVALID = -2
"""Id in place of a token whose logits were NaN or infinite. It is among the results, so that the loop carries no flag."""


class DecoderModel(Protocol):
    """What decoding needs of a model.

    Attributes:
        config: Its configuration, whose layers say which slots they keep.
    """

    config: TransformerConfig

    def start_cache(self, rows: int, slots: int, source: tuple[Array, Array] | None = None) -> Cache:
        """Create a cache for the keys and values of ``slots`` tokens.

        Its entries "step_0", "step_1", ... are those of the decoder's layers: {"key": [rows, K, H, slots], "value":
        [rows, K, slots, H]}. An entry "position", [rows, slots], grows with them, and others stay as they are.

        Args:
            rows: Number of rows.
            slots: Number of tokens per row.
            source: For an encoder-decoder, (input_ids, attention_mask), int [rows, S] each, which is
                encoded here, once.
        """
        ...

    def decode(
        self,
        input_ids: Array,
        position_ids: Array,
        visible: tuple[Array, ...],
        cache: Cache,
        index: tuple[Array, ...],
        token_type_ids: Array | None = None,
    ) -> tuple[Array, Cache]:
        """Run tokens and write their keys and values to slots index, index + 1, ...

        Args:
            input_ids: int32 [rows, n].
            position_ids: int32 [rows, n].
            visible: For each of ``config.layers.windows`` (an encoder-decoder's: its decoder's): bool [rows, n, slots],
                the slots of these layers that each token attends to.
            cache: The cache.
            index: For each of them: int32, slot of the first token.
            token_type_ids: int32 [rows, n] if the caller of generate passed any.

        Returns:
            Hidden states [rows, n, D] and the updated cache.
        """
        ...

    def next_logits(self, hidden: Array) -> Array:
        """Return logits [rows, n, V] of the token after each of the hidden states [rows, n, D]."""
        ...


@dataclass(frozen=True)
class Search:
    """One call of generate, while it is traced."""

    ops: Ops
    model: Any  # a DecoderModel; only `result` works without one
    plan: Plan
    values: dict[str, Any]  # see duonlp.generation.plan.make_plan
    draft: Any = None  # draft DecoderModel of speculative decoding

    @property
    def columns(self) -> int:
        """Number of columns of the padded prompts, where new tokens begin."""
        return self.values["input_ids"].shape[1]

    @property
    def prompts(self) -> int:
        """Number of prompts, including rows that pad the batch to its bucket."""
        return self.values["filler"].shape[0]

    @property
    def slots(self) -> tuple[Slots, ...]:
        """Slots of the model's layers, for each of their attention windows."""
        plan, stride = self.plan, {"beam": self.plan.beams, "contrastive": self.plan.candidates}
        arguments = self.columns, plan.room, stride.get(plan.strategy, 1), plan.strategy == "assisted"
        return tuple(Slots(window, *arguments) for window in self.model.config.as_decoder().layers.windows)

    def process(self, ids: Array, logits: Array, step: Array) -> Array:
        """Apply all logits processors; ids [rows, columns + room], logits [rows, V]."""
        return self.plan.process(self.ops, self.values, ids, logits, step)

    def prefill(self) -> tuple[Array, Array, Cache]:
        """Run the prompts.

        Returns:
            Logits [prompts, V] of the first new token, hidden states [rows, columns, D], and the cache.
        """
        ops, v = self.ops, self.values
        rows, columns = v["input_ids"].shape
        position = ops.arange(columns)
        distance = ops.expand_dims(position, 1) - ops.expand_dims(position, 0)  # [columns, columns]
        distance = ops.expand_dims(distance, 0)
        # Padding before the prompt attends to itself: attention over no key at all is undefined.
        visible = (distance >= 0) & ops.expand_dims(v["attention_mask"] != 0, 1) | (distance == 0)
        views = tuple(visible if s.window is None else visible & (distance < s.window) for s in self.slots)
        source = (v["source_ids"], v["source_mask"]) if self.plan.sourced else None
        cache = self.model.start_cache(rows, columns, source)
        types = {name: v[name] for name in ("token_type_ids",) if name in v}
        hidden, cache = self.model.decode(v["input_ids"], v["position_ids"], views, cache, (0,) * len(views), **types)
        logits = self.compute_logits(hidden[:, -1:])
        return logits[:, 0], hidden, extend_cache(ops, self.model.config.as_decoder().layers, cache, self.slots)

    def feed(
        self, tokens: Array, visible: Array, cache: Cache, index: Array, offsets: Array
    ) -> tuple[Array, Array, Cache]:
        """Run tokens that were chosen or proposed.

        Args:
            tokens: int32 [texts, n].
            visible: bool [texts, n, slots], the slots after the prompt that each token attends to.
            cache: The cache.
            index: int32, slot after the prompt of the first token.
            offsets: int32 [n or 1], number of new tokens before each token in its text.

        Returns:
            Logits [texts, n, V], hidden states [rows, n, D], and the cache.
        """
        ops, v = self.ops, self.values
        mask, position = v["attention_mask"], v["next_position"]
        copies = 2 if self.plan.guided else self.plan.documents
        if copies > 1:
            tokens, visible = ops.concat([tokens] * copies, 0), ops.concat([visible] * copies, 0)
        rows, n = tokens.shape
        if mask.shape[0] != rows:  # several samples per prompt
            mask, position = (ops.repeat(x, rows // x.shape[0], 0) for x in (mask, position))
        prompt = ops.broadcast_to(ops.expand_dims(mask != 0, 1), (rows, n, mask.shape[1]))
        positions = ops.broadcast_to(ops.expand_dims(position, 1) + ops.expand_dims(offsets, 0), (rows, n))
        positions = ops.minimum(positions, v["last_position"])  # rejected proposals may exceed the model's positions
        visible = ops.concat([prompt, visible], 2)  # [rows, n, columns + slots]
        views = tuple(s.visible(ops, visible, offsets) for s in self.slots)
        indices = tuple(s.index(index, offsets[0]) for s in self.slots)
        types = {}
        if "token_type_ids" in v:  # that of the prompt's last token
            last = ops.repeat(v["token_type_ids"][:, -1:], rows // v["token_type_ids"].shape[0], 0)
            types = {"token_type_ids": ops.broadcast_to(last, (rows, n))}
        hidden, cache = self.model.decode(tokens, positions, views, cache, indices, **types)
        return self.compute_logits(hidden), hidden, cache

    def feed_in_order(self, tokens: Array, cache: Cache, first: Array, slots: int) -> tuple[Array, Cache]:
        """Run consecutive tokens, int32 [texts, n].

        Args:
            tokens: int32 [texts, n].
            cache: The cache.
            first: int32, number of new tokens before the first one, which is also its slot.
            slots: Number of slots after the prompt.

        Returns:
            Logits [texts, n, V] and the cache.
        """
        ops, (rows, n) = self.ops, tokens.shape
        offsets = first + ops.arange(n)
        visible = ops.expand_dims(ops.arange(slots), 0) <= ops.expand_dims(offsets, 1)  # [n, slots]
        visible = ops.broadcast_to(ops.expand_dims(visible, 0), (rows, n, slots))
        logits, _, cache = self.feed(tokens, visible, cache, first, offsets)
        return logits, cache

    def compute_logits(self, hidden: Array) -> Array:
        """Return float32 logits [texts, n, V] of hidden states [rows, n, D].

        Guidance combines the logits of prompts and negative prompts (Sanchez et al. 2023,
        https://arxiv.org/abs/2306.17806).
        """
        ops = self.ops
        logits = ops.cast(self.model.next_logits(hidden), "float32")
        if self.plan.documents:
            return self._marginalize(logits)
        if not self.plan.guided:
            return logits
        texts = logits.shape[0] // 2
        logits = ops.log_softmax(logits)
        positive, negative = logits[:texts], logits[texts:]
        return self.values["guidance_scale"] * (positive - negative) + negative

    def _marginalize(self, logits: Array) -> Array:
        """Return log probabilities [texts, n, V] of logits [documents * texts, n, V], weighted by the documents' probabilities.

        This is RAG-Token (Lewis et al. 2020, https://arxiv.org/abs/2005.11401, section 2.1).
        """
        ops, documents, prior = self.ops, self.plan.documents, self.values["document_logprobs"]
        rows, n, vocabulary = logits.shape
        texts = rows // documents
        prior = ops.expand_dims(ops.repeat(prior, texts // prior.shape[1], 1), (2, 3))  # [documents, texts, 1, 1]
        return logsumexp(ops, ops.reshape(ops.log_softmax(logits), (documents, texts, n, vocabulary)) + prior, 0)

    def mark_invalid(self, tokens: Array, logits: Array) -> Array:
        """Return tokens int32 [...], INVALID where a raw logit [..., V] is NaN or infinity; -inf is a token that cannot occur."""
        if self.plan.removes_invalid:
            return tokens
        return self.ops.where(self.ops.all_below_infinity(logits), tokens, INVALID)

    def repeat_samples(self, x: Array) -> Array:
        """Repeat every row once per sample of its prompt; positive and negative prompts stay separate halves."""
        return x if self.plan.samples == 1 else self.ops.repeat(x, self.plan.samples, 0)

    def initial_ids(self, rows: int) -> Array:
        """Return int32 [rows, columns + room]: each prompt ``rows / prompts`` times, then -1 for tokens to come."""
        ops = self.ops
        prompts = ops.repeat(self.values["known_ids"], rows // self.prompts, 0)
        return ops.concat([prompts, ops.full((rows, self.plan.room), -1, "int32")], 1)

    def detect_ends(self, tokens: Array, stop_state: Array) -> tuple[Array, Array]:
        """Return whether tokens, int32 [...], end their texts, bool [...], and the stop string state after them."""
        ops, v = self.ops, self.values
        ended = ops.any(ops.expand_dims(tokens, -1) == v["eos_ids"], axis=-1)
        if not self.plan.stops:
            return ended, stop_state
        table = v["stop_transitions"]
        states, vocabulary = table.shape
        flat = ops.reshape(table, (states * vocabulary,))
        stop_state = ops.take(flat, stop_state * vocabulary + ops.maximum(tokens, 0))
        return ended | (stop_state == states - 1), stop_state

    def initial_stop_states(self, rows: int) -> Array:
        """Return int32 [rows]: the state of the stop string automaton after the prompts."""
        if not self.plan.stops:
            return self.ops.full((rows,), 0, "int32")
        return self.ops.repeat(self.values["stop_state"], rows // self.prompts, 0)

    def empty_records(self, rows: int, vocabulary: int) -> State:
        """Return zeros, float32 [room, rows, V], for each of "scores" and "logits" that is to be recorded."""
        shape, ops = (self.plan.room, rows, vocabulary), self.ops
        names = ["scores"] * self.plan.scores + ["logits"] * self.plan.logits
        return {name: ops.full(shape, 0.0, "float32") for name in names}

    def record(self, state: State, n: Array, scores: Array, logits: Array) -> State:
        """Return the records with step n's processed and raw logits [rows, V] written to them."""
        values = {"scores": scores, "logits": logits}
        return {
            name: self.ops.update(state[name], self.ops.expand_dims(values[name], 0), (n, 0, 0))
            for name in ("scores", "logits")
            if name in state
        }


def logsumexp(ops: Ops, x: Array, axis: int) -> Array:
    """Return log(sum(exp(x))) over an axis; x may be -inf."""
    peak = ops.maximum(ops.stop_gradient(ops.max(x, axis=axis, keepdims=True)), float(np.finfo(np.float32).min))
    total = ops.sum(ops.exp(x - peak), axis=axis, keepdims=True)
    return ops.sum(ops.log(total) + peak, axis=axis)


def map_cache(function: Callable[[Array], Array], cache: Any) -> Any:
    """Apply a function to every array of a cache."""
    if isinstance(cache, dict):
        return {name: map_cache(function, part) for name, part in cache.items()}
    return function(cache)
