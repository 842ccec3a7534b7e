"""The decoding loop: the prompt in one pass, then token after token over a preallocated cache.

Written once for every engine (``ops``, see duonlp.numpy_ops) and every model. A model takes part by four methods:

    start_cache(rows, slots, source=None) -> cache
        room for the keys and values of ``slots`` tokens. source: of an encoder-decoder, (input_ids, attention_mask), int
        [rows, S] each, which it reads here, once.
    extend_cache(cache, slots) -> cache
        the same, with so many more free slots behind.
    decode(input_ids [rows, n], position_ids [rows, n], visible bool [rows, n, slots], cache, index) -> hidden, cache
        run n tokens, each of which sees the slots that ``visible`` says; their keys and values go to slots index,
        index + 1, ... Returns their hidden states [rows, n, D].
    next_logits(hidden [rows, n, D]) -> logits [rows, n, V]

A cache is a nest of dicts of arrays whose first axis is the row; nothing else is assumed about it.

Beams, candidates and drafts of one prompt are tokens of one row that do not see each other: ``visible`` says who descends
from whom. So the prompt is kept once for all beams, beams are never copied when they change places, and every matrix
product has all of them at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from duonlp.generation.plan import Plan

State = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """One call of generate, while it is traced."""

    ops: ModuleType
    model: Any
    plan: Plan
    values: dict[str, Any]
    draft: Any = None  # the draft model of speculative decoding

    @property
    def columns(self) -> int:
        """Of the padded prompt: where new tokens begin."""
        return self.values["input_ids"].shape[1]

    @property
    def prompts(self) -> int:
        """Rows of prompts, those that fill the bucket included."""
        return self.values["filler"].shape[0]

    def process(self, ids, logits, step):
        """All processors; ids [rows, columns], logits [rows, V]."""
        return self.plan.process(self.ops, self.values, ids, logits, step)

    def prefill(self, slots: int):
        """Run the prompts.

        Args:
            slots: how many tokens are to be fed after them.

        Returns:
            logits [prompts, V] of the first new token, hidden states [rows, columns, D], the cache.
        """
        ops, v = self.ops, self.values
        rows, columns = v["input_ids"].shape
        position = ops.arange(columns)
        causal = ops.expand_dims(position, 0) <= ops.expand_dims(position, 1)  # [columns, columns]
        visible = ops.expand_dims(causal, 0) & ops.expand_dims(v["attention_mask"] != 0, 1)
        # Padding before the prompt sees itself, for a row of scores that hides every key means nothing.
        visible = visible | ops.expand_dims(ops.expand_dims(position, 0) == ops.expand_dims(position, 1), 0)
        source = (v["source_ids"], v["source_mask"]) if self.plan.sourced else None
        cache = self.model.start_cache(rows, columns, source)
        hidden, cache = self.model.decode(v["input_ids"], v["position_ids"], visible, cache, 0)
        logits = self.logits_of(hidden[:, -1:])
        return logits[:, 0], hidden, self.model.extend_cache(cache, slots)

    def feed(self, tokens, visible, cache, index, first):
        """Run tokens that were decided, or may be.

        Args:
            tokens: int32 [texts, n].
            visible: bool [texts, n, slots]: which slots after the prompt each of them sees.
            index: the slot after the prompt that the first of them goes to.
            first: int32 [n or 1]: how many new tokens stand before each.

        Returns:
            logits [texts, n, V], hidden states, the cache.
        """
        ops, v = self.ops, self.values
        mask, position = v["attention_mask"], v["next_position"]
        if self.plan.guided:
            tokens, visible = ops.concat([tokens, tokens], 0), ops.concat([visible, visible], 0)
        rows, n = tokens.shape
        if mask.shape[0] != rows:  # several samples of each prompt
            mask, position = (ops.repeat(x, rows // x.shape[0], 0) for x in (mask, position))
        prompt = ops.broadcast_to(ops.expand_dims(mask != 0, 1), (rows, n, mask.shape[1]))
        positions = ops.broadcast_to(ops.expand_dims(position, 1) + ops.expand_dims(first, 0), (rows, n))
        positions = ops.minimum(positions, v["last_position"])  # proposals in vain may be beyond the model's positions
        visible = ops.concat([prompt, visible], 2)
        hidden, cache = self.model.decode(tokens, positions, visible, cache, self.columns + index)
        return self.logits_of(hidden), hidden, cache

    def feed_in_order(self, tokens, cache, first, slots: int):
        """Run tokens int32 [texts, n] that follow one another.

        Args:
            first: int32, how many new tokens stand before the first of them, which is also its slot.
            slots: after the prompt, in the cache.

        Returns:
            logits [texts, n, V], the cache.
        """
        ops, (rows, n) = self.ops, tokens.shape
        fed = first + ops.arange(n)
        visible = ops.expand_dims(ops.arange(slots), 0) <= ops.expand_dims(fed, 1)  # [n, slots]
        visible = ops.broadcast_to(ops.expand_dims(visible, 0), (rows, n, slots))
        logits, _, cache = self.feed(tokens, visible, cache, first, fed)
        return logits, cache

    def logits_of(self, hidden):
        """float32 [texts, n, V]; with guidance, of both halves together (Sanchez et al. 2023,
        https://arxiv.org/abs/2306.17806)."""
        ops = self.ops
        logits = ops.cast(self.model.next_logits(hidden), "float32")
        if not self.plan.guided:
            return logits
        texts = logits.shape[0] // 2
        logits = ops.log_softmax(logits)
        wanted, unwanted = logits[:texts], logits[texts:]
        return self.values["guidance_scale"] * (wanted - unwanted) + unwanted

    def samples_of(self, x):
        """x with every row once for each sample of its prompt; the two halves of guidance stay halves."""
        return x if self.plan.samples == 1 else self.ops.repeat(x, self.plan.samples, 0)

    def empty_ids(self, rows: int):
        """int32 [rows, columns + room]: prompts, each ``rows / prompts`` times, and -1 for what is to come."""
        ops = self.ops
        prompts = ops.repeat(self.values["known_ids"], rows // self.prompts, 0)
        return ops.concat([prompts, ops.full((rows, self.plan.room), -1, "int32")], 1)

    def ends(self, tokens, stop_state):
        """Whether tokens end their texts: [...] -> bool [...], and the state of stop strings after them."""
        ops, v = self.ops, self.values
        done = ops.any(ops.expand_dims(tokens, -1) == v["eos_ids"], axis=-1)
        if not self.plan.stops:
            return done, stop_state
        table = v["stop_transitions"]
        states, vocabulary = table.shape
        flat = ops.reshape(table, (states * vocabulary,))
        stop_state = ops.take(flat, stop_state * vocabulary + ops.maximum(tokens, 0))
        return done | (stop_state == states - 1), stop_state

    def stop_states(self, rows: int):
        """int32 [rows]: where the automaton of the stop strings stands after the prompts."""
        if not self.plan.stops:
            return self.ops.full((rows,), 0, "int32")
        return self.ops.repeat(self.values["stop_state"], rows // self.prompts, 0)

    def recorders(self, rows: int, vocabulary: int) -> State:
        """Room for what was asked to be recorded of every step."""
        shape, ops = (self.plan.room, rows, vocabulary), self.ops
        names = ["scores"] * self.plan.scores + ["logits"] * self.plan.logits
        return {name: ops.full(shape, 0.0, "float32") for name in names}

    def record(self, state: State, n, scores, logits) -> State:
        """The state with this step's processed and raw logits [rows, V] in it."""
        values = {"scores": scores, "logits": logits}
        return {
            name: self.ops.update(state[name], self.ops.expand_dims(values[name], 0), (n, 0, 0))
            for name in ("scores", "logits")
            if name in state
        }


def map_cache(function: Callable, cache):
    """A function of every array of a cache."""
    if isinstance(cache, dict):
        return {name: map_cache(function, part) for name, part in cache.items()}
    return function(cache)
