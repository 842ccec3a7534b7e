"""Text as it is generated: ids go in one or several at a time, and the text that is certain comes out."""

import codecs
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.stop_strings import byte_level_bytes, decoder_types, fallback_byte


class TextStream:
    """Decodes ids while they arrive. The pieces joined are what decoding all ids at once gives.

    What a later token could still change is held back: a character whose bytes are not all there, or a run of byte
    tokens, which sentencepiece decodes as a whole. The work of a token does not grow with the text: it is decoded after
    its neighbour and one more token, so that neither is taken for the beginning of a text, and only what is new counts.

    Args:
        tokenizer: a tokenizer of transformers.
        skip_special_tokens: leave special tokens out, as in the tokenizer's ``decode``.
    """

    def __init__(self, tokenizer, skip_special_tokens: bool = True):
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        types = set() if self.backend is None else decoder_types(tokenizer)
        self.byte_level = types == {"ByteLevel"}
        self.byte_fallback = "ByteFallback" in types
        # what divides characters among tokens in some other way, shown by a replacement character
        self.divides = self.backend is None or ("ByteLevel" in types and not self.byte_level)
        self.special = frozenset()
        if skip_special_tokens and self.backend is None:
            self.special = frozenset(tokenizer.all_special_ids)
        elif skip_special_tokens:
            added = self.backend.get_added_tokens_decoder()
            self.special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._anchor = [] if self.byte_level else self._find_anchor()
        self._begin()

    def _begin(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_beginning = True  # nothing but tokens without text so far
        self._context: list[int] = []  # decoded before the pending ids: all ids, at the beginning
        self._given = ""  # the text of the context
        self._pending: list[int] = []  # not given out yet

    def put(self, ids: Any) -> str:
        """The text that became certain with these ids, perhaps "".

        Args:
            ids: one id, or several: int [n].

        Raises:
            InputError: anything else.
        """
        ids = [token_id for token_id in _as_ids(ids) if self._shows(token_id)]
        if self.byte_level:
            return self._bytes.decode(b"".join(byte_level_bytes(self.backend.id_to_token(i)) for i in ids))
        self._pending += ids
        certain = len(self._pending)
        while self.byte_fallback and certain and fallback_byte(self.backend.id_to_token(self._pending[certain - 1])):
            certain -= 1
            # Everything before these ids that is still pending is a run of byte tokens: it was looked at when it came.
            if len(self._pending) - certain >= len(ids):
                return ""
        return self._give(certain)

    def end(self) -> str:
        """The rest, as ``decode`` gives it. What is put next begins another text."""
        rest = self._bytes.decode(b"", final=True) if self.byte_level else self._give(len(self._pending), last=True)
        self._begin()
        return rest

    def _shows(self, token_id: int) -> bool:
        known = self.backend is None or (token_id >= 0 and self.backend.id_to_token(token_id) is not None)
        return known and token_id not in self.special

    def _decode(self, ids: list[int]) -> str:
        # special tokens have been left out already
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _give(self, count: int, last: bool = False) -> str:
        """The text of the first ``count`` pending ids."""
        ids = self._pending[:count]
        if not ids:
            return ""
        text = self._decode(self._context + ids)
        if self.divides and not last and text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new = text[len(self._given) :]
        self._pending = self._pending[count:]
        if self._at_beginning:
            # A decoder may leave out the first space of a text, whichever token has it.
            self._context = self._context + ids
            anchored = self._decode(self._anchor + self._context)
            self._at_beginning = not self._anchor or anchored == self._decode(self._anchor)
        if not self._at_beginning:
            self._context = self._anchor + ids[-1:]
        self._given = self._decode(self._context)
        return new

    def _find_anchor(self) -> list[int]:
        """Any token that is plain text by itself; none when the vocabulary has no such token."""
        for token, token_id in self.tokenizer.get_vocab().items():
            # a byte token would join the bytes after it
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
        raise InputError(
            f"ids of shape {array.shape} and type {array.dtype} do not stream; give one id or a list of ids"
        )
    return array.tolist()
