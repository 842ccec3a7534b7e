"""Stop strings as a table that a compiled loop can look up: a byte automaton lifted to tokens.

A stop string may begin and end in the middle of tokens, so ids alone do not show it. The automaton of Aho and Corasick
(1975) reads the UTF-8 bytes of the text and remembers how much of each string it has just seen. Its states are few and
every token's bytes are known, so where each token leads from each state is computed once; a loop then needs one
lookup a token. What stops a text is what stops it in Transformers' ``StopStringCriteria``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from duonlp.errors import InputError

STATES = 16
"""The number of states is a multiple of this, so that another stop string does not compile again."""

LARGEST_TABLE = 2**27
"""Entries of the largest table that is made: 512 MiB."""

CACHED = 8
"""Tables kept for each tokenizer."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_cache: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``, turned round)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; an added token with other characters is its own text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def fallback_byte(token: str) -> bytes | None:
    """The byte that a sentencepiece token such as ``<0xE2>`` stands for; None for any other token."""
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else None


def decoder_types(tokenizer) -> set[str]:
    """The names of a fast tokenizer's decoders, such as {"Sequence", "ByteFallback"}; empty when it has none."""
    return set(_types(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]))


def _types(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield decoder.get("type", "")
        for part in decoder.values():
            yield from _types(part)
    elif isinstance(decoder, list):
        for part in decoder:
            yield from _types(part)


def token_bytes(tokenizer) -> list[bytes]:
    """What each id adds to a text, in UTF-8: a part of a character where tokens divide it.

    Byte-level, sentencepiece with or without byte fallback, and WordPiece vocabularies are all read as the tokenizer's
    own ``decode`` reads them in the middle of a text, where a word begins with its space. Special and added tokens are
    their text. An id that the tokenizer does not have, below others that it has, gives b"".

    Raises:
        InputError: it is not one of transformers' fast tokenizers.
    """
    return [text or b"" for text in _vocabulary(tokenizer)]


def _vocabulary(tokenizer) -> tuple[bytes | None, ...]:
    """As token_bytes, and None for an id that the tokenizer does not have."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the text of each token is read from a fast tokenizer, and {type(tokenizer).__name__} has no "
            "backend_tokenizer; load it with transformers.AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    vocabulary = tokenizer.get_vocab()
    kept = _cache.setdefault(tokenizer, {})
    if kept.get("size") != len(vocabulary):  # tokens were added since
        kept.clear()
        kept |= {"size": len(vocabulary), "tables": {}, "tokens": _read(tokenizer, vocabulary)}
    return kept["tokens"]


def _read(tokenizer, vocabulary: dict[str, int]) -> tuple[bytes | None, ...]:
    decoder, types = tokenizer.backend_tokenizer.decoder, decoder_types(tokenizer)
    decode = " ".join if decoder is None else decoder.decode
    # A decoder treats the first and the last token of a text as special, so it is shown each one between two others.
    head, tail = decode(["a"]), decode(["a", "a"])[len(decode(["a"])) :]
    tokens: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        text = fallback_byte(token) if "ByteFallback" in types else None
        if text is None and "ByteLevel" in types:
            text = byte_level_bytes(token)
        if text is None:
            between = decode(["a", token, "a"])
            whole = between.startswith(head) and between.endswith(tail) and len(between) >= len(head) + len(tail)
            text = (between[len(head) : len(between) - len(tail)] if whole else token).encode()
        tokens[token_id] = text
    return tuple(tokens)


@dataclass(frozen=True, eq=False)
class StopStrings:
    """A table that says, for each state and token, the next state. Make it with ``StopStrings.build``.

    A loop starts from ``start`` and looks up ``state = transitions[state, token]``; once that is ``accept``, the token
    completed a stop string, and the state remains ``accept``. State 0 means that no stop string has begun.
    """

    strings: tuple[str, ...]
    transitions: np.ndarray = field(repr=False)  # int32 [states, vocab_size]
    tokens: tuple[bytes | None, ...] = field(repr=False)  # the bytes of each id, None where there is no such id
    goto: np.ndarray = field(repr=False)  # int32 [nodes, 256], without stopping: for prompts

    @property
    def accept(self) -> int:
        """The last state: a stop string was completed."""
        return self.transitions.shape[0] - 1

    @classmethod
    def build(cls, tokenizer, strings: str | Sequence[str], vocab_size: int) -> "StopStrings":
        """The table of a tokenizer and its stop strings; the last few are remembered.

        Args:
            tokenizer: a fast tokenizer of transformers.
            strings: one string or several.
            vocab_size: of the model's logits; ids that the tokenizer does not have lead to state 0.

        Raises:
            InputError: no string, an empty one or none that is a str, too many or too long ones, or a slow tokenizer.
        """
        strings = check_strings(strings)
        tokens = _vocabulary(tokenizer)
        tables = _cache[tokenizer]["tables"]
        found = tables.pop((strings, vocab_size), None)
        if found is None:
            patterns = [string.encode() for string in strings]
            size = sum(map(len, patterns)) * vocab_size
            if size > LARGEST_TABLE:
                raise InputError(
                    f"stop strings of {sum(map(len, patterns))} bytes over {vocab_size} tokens make a table of "
                    f"{size * 4 / 2**20:.0f} MiB, {LARGEST_TABLE * 4 // 2**20} MiB at most; give fewer or shorter ones"
                )
            goto, completes = automaton(patterns)
            found = cls(strings, lift(goto, completes, tokens, vocab_size), tokens, goto)
        tables[strings, vocab_size] = found  # the last used one is the last
        while len(tables) > CACHED:
            del tables[next(iter(tables))]
        return found

    def start(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """The state after each prompt: int32 [batch].

        A string that was completed inside the prompt stops nothing, and may be the beginning of one that will.

        Args:
            ids: int [batch, length].
            attention_mask: [batch, length], 0 on padding, which adds no text; None for prompts of one length.

        Raises:
            InputError: shapes that do not fit.
        """
        ids = np.asarray(ids)
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
        if ids.ndim != 2 or mask.shape != ids.shape:
            raise InputError(
                f"prompts have shape {ids.shape} and their attention_mask {mask.shape}; both are [batch, length]"
            )
        longest = max(len(string.encode()) for string in self.strings)
        states = np.zeros(len(ids), np.int32)
        for row in range(len(ids)):
            text = b""  # a state remembers no more than the last `longest` bytes
            for token in ids[row, mask[row]][::-1].tolist():
                piece = self.tokens[token] if 0 <= token < len(self.tokens) else None
                if piece is None or len(text) >= longest:
                    break
                text = piece + text
            for byte in text:
                states[row] = self.goto[states[row], byte]
        return states


def check_strings(strings: Any) -> tuple[str, ...]:
    """Stop strings as a tuple, each once.

    Raises:
        InputError: they are not a string or a sequence of strings that are not empty.
    """
    given = (strings,) if isinstance(strings, str) else strings
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)) or not given:
        raise InputError(f"stop_strings={strings!r} must be a string or a list of strings, at least one")
    for string in given:
        if not isinstance(string, str) or not string:
            raise InputError(f"stop_strings={strings!r} has {string!r} in it; each must be a string that is not empty")
        try:
            string.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"stop string {string!r} has half of a surrogate pair, which no text has; give whole characters"
            ) from error
    return tuple(dict.fromkeys(given))


def automaton(patterns: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Aho and Corasick's automaton over bytes.

    Returns:
        goto: int32 [nodes, 256], the node after a byte; node 0 is the beginning.
        completes: bool [nodes], whether the text read so far ends in one of the patterns.
    """
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(False)
            node = children[node][byte]
        ends[node] = True
    goto, completes = np.zeros((len(children), 256), np.int32), np.array(ends)
    fallback = [0] * len(children)  # the node of the longest ending of a node's text that is a node, too
    queue = [0]
    for node in queue:  # by depth: what a node falls back to comes before it
        if node:
            goto[node] = goto[fallback[node]]
            completes[node] |= completes[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(goto[node, byte])
            goto[node, byte] = child
            queue.append(child)
    return goto, completes


def lift(goto: np.ndarray, completes: np.ndarray, tokens: Sequence[bytes | None], vocab_size: int) -> np.ndarray:
    """The automaton's steps by token instead of by byte: int32 [states, vocab_size], as in StopStrings."""
    nodes = len(goto)
    states = -(-(nodes + 1) // STATES) * STATES
    accept = states - 1
    step = np.vstack([np.where(completes[goto], nodes, goto), np.full((1, 256), nodes)]).astype(np.int32)
    known = [i for i, text in enumerate(tokens[:vocab_size]) if text is not None]
    known.sort(key=lambda i: len(tokens[i]), reverse=True)  # so that those with a byte at a position come first
    lengths = np.array([len(tokens[i]) for i in known], np.int64)
    begins = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(tokens[i] for i in known), np.uint8)
    reached = np.repeat(np.arange(nodes, dtype=np.int32)[:, None], len(known), axis=1)  # [nodes, known]
    for position in range(lengths.max(initial=0)):
        active = int(np.count_nonzero(lengths > position))
        reached[:, :active] = step[reached[:, :active], data[begins[:active] + position]]
    reached[reached == nodes] = accept
    table = np.zeros((states, vocab_size), np.int32)
    table[:nodes, known] = reached
    table[accept] = accept
    return table
