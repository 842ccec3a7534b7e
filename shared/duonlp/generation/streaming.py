"""Incremental decoding: ids go in one or several at a time, and text comes out as soon as it is final."""

import codecs
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.stop_strings import byte_level_bytes, decoder_types, fallback_byte


class TextStream:
    """Incremental decoder of a stream of ids. The joined pieces equal the text of all ids decoded at once.

    Text that a later token could still change is held back: an incomplete character, or a run of byte
    tokens, which sentencepiece decodes as a whole. The cost per token does not grow with the text: a token
    is decoded after its predecessor and an anchor token, so that it is not treated as the beginning of a
    text, and only the new part is returned.

    Args:
        tokenizer: A tokenizer of transformers.
        skip_special_tokens: Omit special tokens, as in the tokenizer's ``decode``.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True):
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # None for a slow tokenizer
        types = set() if self.backend is None else decoder_types(tokenizer)
        self.byte_level = types == {"ByteLevel"}
        self.byte_fallback = "ByteFallback" in types
        # Tokens may split characters in another way, which shows as a replacement character.
        self.splits_characters = self.backend is None or ("ByteLevel" in types and not self.byte_level)
        self.special: frozenset[int] = frozenset()
        if skip_special_tokens and self.backend is None:
            self.special = frozenset(tokenizer.all_special_ids)
        elif skip_special_tokens:
            assert self.backend is not None
            added = self.backend.get_added_tokens_decoder()
            self.special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._anchor = [] if self.byte_level else self._find_anchor()
        self._reset()

    def _reset(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_beginning = True  # only tokens without text so far
        self._context: list[int] = []  # ids decoded before the pending ones: all ids while at the beginning
        self._context_text = ""
        self._pending: list[int] = []  # ids whose text has not been returned

    def put(self, ids: Any) -> str:
        """Add ids and return the text that became final, possibly "".

        Args:
            ids: One id, or several: int [n].

        Raises:
            InputError: The value is neither an id nor a list of ids.
        """
        new = [token_id for token_id in _as_ids(ids) if self._has_text(token_id)]
        if self.byte_level:
            return self._bytes.decode(b"".join(byte_level_bytes(self.backend.id_to_token(i)) for i in new))
        self._pending += new
        final = len(self._pending)
        while self.byte_fallback and final and fallback_byte(self.backend.id_to_token(self._pending[final - 1])):
            final -= 1
            # Earlier pending ids are a run of byte tokens, which was checked when they arrived.
            if len(self._pending) - final >= len(new):
                return ""
        return self._decode_pending(final)

    def end(self) -> str:
        """Return the remaining text and reset the stream for another text."""
        if self.byte_level:
            rest = self._bytes.decode(b"", final=True)
        else:
            rest = self._decode_pending(len(self._pending), last=True)
        self._reset()
        return rest

    def _has_text(self, token_id: int) -> bool:
        exists = self.backend is None or (token_id >= 0 and self.backend.id_to_token(token_id) is not None)
        return exists and token_id not in self.special

    def _decode(self, ids: list[int]) -> str:
        # special tokens were removed in put
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _decode_pending(self, count: int, last: bool = False) -> str:
        """Return the text of the first ``count`` pending ids; ``last``: no ids will follow."""
        ids = self._pending[:count]
        if not ids:
            return ""
        text = self._decode(self._context + ids)
        if self.splits_characters and not last and text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new = text[len(self._context_text) :]
        self._pending = self._pending[count:]
        if self._at_beginning:
            # A decoder may drop the first space of a text, whichever token it belongs to.
            self._context = self._context + ids
            anchored = self._decode(self._anchor + self._context)
            self._at_beginning = not self._anchor or anchored == self._decode(self._anchor)
        if not self._at_beginning:
            self._context = self._anchor + ids[-1:]
        self._context_text = self._decode(self._context)
        return new

    def _find_anchor(self) -> list[int]:
        """Return one token that is plain text on its own; none if the vocabulary has no such token."""
        for token, token_id in self.tokenizer.get_vocab().items():
            # a byte token would merge with the bytes after it
            if not fallback_byte(token) and token_id not in self.special:
                text = self._decode([token_id])
                if text.isascii() and text.isalnum():
                    return [token_id]
        return []


def _as_ids(ids: Any) -> list[int]:
    array = np.atleast_1d(np.asarray(ids))
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"ids has shape {array.shape} and dtype {array.dtype}; pass one id or a list of ids")
    return array.tolist()
