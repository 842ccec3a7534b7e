"""Slots of the cache while new tokens are decoded: of every token, or only of those in a layer's attention window.

Strategies number slots as if every token were kept: the columns of the prompt, then ``stride`` slots per step, one for each
beam or candidate. ``Slots`` translates that for the layers of one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.config import LayerPattern
from duonlp.errors import InputError
from duonlp.typing import Array, Ops

Cache = dict[str, Any]
"""A nested dict of arrays whose first axis is the row; see DecoderModel.start_cache."""


@dataclass(frozen=True)
class Slots:
    """The slots of the layers that have one attention window.

    Without a window, or if it spans everything, every token keeps its slot. Otherwise tokens share a ring of as many columns
    as the window has, and a token replaces the one that the window has just left. With one slot per step, the ring begins
    with the prompt. With several, it holds only new tokens, and the end of the prompt lies before it: one slot per column is
    enough there.

    Attributes:
        window: Number of columns that a token attends to, its own included; None for all.
        columns: Number of columns of the prompts.
        steps: Number of columns for new tokens.
        stride: Slots per step.
        rolls_back: Whether tokens may be taken back, as in speculative decoding; every token then keeps its slot.
    """

    window: int | None
    columns: int
    steps: int
    stride: int = 1
    rolls_back: bool = False

    @property
    def first(self) -> int:
        """First column of the ring."""
        return 0 if self.stride == 1 else self.columns

    @property
    def ring(self) -> int:
        """Number of columns of the ring; 0 if every token keeps its slot."""
        if self.window is None or self.rolls_back or self.window >= self.columns + self.steps:
            return 0
        return min(self.window, self.columns + self.steps - self.first)

    @property
    def kept(self) -> int:
        """Number of columns of the prompt before the ring."""
        return 0 if self.window is None or not self.first else min(self.columns, self.window - 1)

    def extend(self, ops: Ops, x: Array, axis: int) -> Array:
        """Return the keys or values of the prompts, with one slot per column along an axis, arranged in these slots."""
        parts, free = [x], self.steps * self.stride
        if self.ring:
            count = self.kept or min(self.ring, self.columns)
            x = _slice(x, axis, self.columns - count, self.columns)
            turn = 0 if self.kept or count < self.ring else self.columns % self.ring
            parts = [_slice(x, axis, count - turn, count), _slice(x, axis, 0, count - turn)] if turn else [x]
            free = self.kept + self.ring * self.stride - count
        if free:
            shape = (*x.shape[:axis], free, *x.shape[axis + 1 :])
            parts.append(ops.full(shape, 0, x.dtype))
        return ops.concat(parts, axis)

    def index(self, index: Array, offset: Array) -> Array:
        """Return the slot of the first of some tokens.

        Args:
            index: int32, its slot after the prompt if every token kept its slot.
            offset: int32, number of new tokens before it.
        """
        if not self.ring:
            return self.columns + index
        return self.kept + (self.columns + offset - self.first) % self.ring * self.stride

    def visible(self, ops: Ops, visible: Array, offsets: Array) -> Array:
        """Return which slots some tokens attend to, bool [rows, n, slots].

        Args:
            ops: Array operations.
            visible: bool [rows, n, columns + slots after the prompt], as if every token kept its slot and without a window.
            offsets: int32 [n or 1], number of new tokens before each token in its text.
        """
        if self.window is None:
            return visible
        queries, slots = self.columns + offsets, visible.shape[2]
        keys = np.arange(slots, dtype=np.int32)  # column of each slot
        keys[self.columns :] = self.columns + np.arange(slots - self.columns) // self.stride
        near = ops.expand_dims(queries, 1) - keys[None] < self.window  # [n or 1, slots]
        if not self.ring:
            return visible & near
        newest = queries[0]  # the tokens of a step share a column
        columns = newest - (newest - self.first - ops.arange(self.ring)) % self.ring  # below `first` in empty slots
        slots = self.columns + ops.expand_dims((columns - self.columns) * self.stride, 1) + ops.arange(self.stride)
        slots = ops.reshape(slots, (self.ring * self.stride,))
        ring = ops.take(ops.transpose(visible, (2, 0, 1)), ops.maximum(slots, 0))  # [slots, rows, n]
        ring = ops.transpose(ring, (1, 2, 0)) & ops.repeat(columns >= self.first, self.stride, 0)
        before = slice(self.columns - self.kept, self.columns)
        return ops.concat([(visible & near)[:, :, before], ring], 2) if self.kept else ring


def extend_cache(ops: Ops, layers: LayerPattern, cache: Cache, slots: Sequence[Slots]) -> Cache:
    """Return the cache of the prompts with room for new tokens, without the columns that no window reaches any more.

    Args:
        ops: Array operations.
        layers: Layers of the decoder.
        cache: See DecoderModel.start_cache.
        slots: Slots of the layers of each of ``layers.windows``.
    """
    of_window, extended = {s.window: s for s in slots}, {}
    for name, part in cache.items():
        if name.startswith("step_"):
            own = of_window[layers[int(name.removeprefix("step_"))].attention.window]
            part = {"key": own.extend(ops, part["key"], 3), "value": own.extend(ops, part["value"], 2)}
        elif name == "position":
            part = slots[0].extend(ops, part, 1)
        extended[name] = part
    return extended


def check_cache(layers: LayerPattern, cache: Cache, input_ids: Array, index: Any) -> None:
    """Check the cache that a model is called with, in which position i has slot i.

    Args:
        layers: Layers of the model.
        cache: See DecoderModel.start_cache.
        input_ids: int [B, T], the new tokens.
        index: Number of positions in the cache. Whether the new ones fit is only checked of a Python or NumPy integer.

    Raises:
        InputError: The new tokens do not fit, or a layer has fewer slots than others, so that its window does not fit.
    """
    slots = [cache[f"step_{step}"]["value"].shape[2] for step in range(len(layers))]
    tokens = np.shape(input_ids)[-1]
    if any(isinstance(n, str) or n is None for n in (*slots, tokens)):
        return  # sizes that are only known when a graph runs
    longest = max(slots)
    for step, (layer, n) in enumerate(zip(layers, slots, strict=True)):
        if n < longest:
            window = layer.attention.window
            reach = (
                f"its attention window reaches over {window} tokens and" if window else "it attends to all tokens and"
            )
            raise InputError(
                f"the cache of layer {step} has {n} slots, but {reach} other layers have {longest}; create it with "
                f"init_cache(config, batch_size, {longest})"
            )
    used = int(index) if isinstance(index, (int, np.integer)) else 0
    if used + tokens > longest:
        raise InputError(
            f"the cache has {longest} slots, too few for {tokens} new tokens after {used}; create it with "
            f"init_cache(config, batch_size, {used + tokens}) or more"
        )


def _slice(x: Array, axis: int, start: int, stop: int) -> Array:
    """Return a slice of an axis."""
    return x[(slice(None),) * axis + (slice(start, stop),)]
