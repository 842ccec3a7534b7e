"""Call tokenizers from any number of threads, whatever else their owner does with them.

Transformers' fast tokenizers keep truncation and padding in their Rust object, set them there and then encode, so that two
threads change each other's settings; translation tokenizers keep the source language likewise. Here each call borrows a
private tokenizer, which shares the model and everything else that is only read. So no lock is held while a text is encoded,
the caller's tokenizer never changes, and what other code sets on it has no effect.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from duonlp.typing import Tokenizer

COMPONENTS = ("model", "normalizer", "pre_tokenizer", "post_processor")
"""Parts of a ``tokenizers.Tokenizer`` that private ones share with it, by reference."""

LINE_BREAK = "<n>"
"""PEGASUS' token for a line break, which its SentencePiece model would read as a space (Zhang et al. 2020, whose code puts it in
place of line breaks before encoding and line breaks in place of it after decoding)."""

_idle: WeakKeyDictionary[Any, list[tuple[int, Any]]] = WeakKeyDictionary()
"""By tokenizer: its private Rust objects that no call uses, each with the vocabulary size for which it was made."""

_lock = threading.RLock()


def tokenize(tokenizer: Tokenizer, *args: Any, **keywords: Any) -> Any:
    """Call a tokenizer of Transformers, safely from any thread.

    Args:
        tokenizer: The tokenizer.
        args: Positional arguments of its ``__call__``.
        keywords: Keyword arguments of its ``__call__``.

    Returns:
        What the call returns.
    """
    with private_tokenizer(tokenizer) as own:
        return own(*args, **keywords)


def encodings(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[Any], Any]:
    """Encode whole texts without special tokens, safely from any thread.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        texts: The texts.

    Returns:
        The ``tokenizers.Encoding`` of each text, and that of the pair ("a", "a") with special tokens, which shows where they are.
    """
    with private_tokenizer(tokenizer) as own:
        backend = own.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(getattr(own, "split_special_tokens", False))
        return backend.encode_batch(list(texts), add_special_tokens=False), backend.encode("a", "a")


def pair_rows(
    tokenizer: Tokenizer, texts: Sequence[str], seconds: Sequence[str], max_length: int | None
) -> list[list[dict[str, list[int]]]]:
    """Pair every text with every one of a few second texts, tokenizing each text once, safely from any thread.

    Row [i][j] is ``tokenizer(texts[i], seconds[j], truncation="only_first", max_length=max_length)``, or without truncation where
    the special tokens and the second text leave no room for a token of the first, as in Transformers' zero-shot pipeline.

    Args:
        tokenizer: A tokenizer of Transformers, fast or not.
        texts: First text of each pair.
        seconds: Second texts.
        max_length: Number of tokens that pairs are truncated to; None for no limit.

    Returns:
        For each text and each second text: "input_ids", "attention_mask" and "token_type_ids".
    """
    with private_tokenizer(tokenizer) as own:
        backend: Any = getattr(own, "backend_tokenizer", None)
        if backend is None:
            firsts, others = (
                [own(text, add_special_tokens=False)["input_ids"] for text in part] for part in (texts, seconds)
            )
            keywords = {"return_token_type_ids": True, "return_attention_mask": True, "verbose": False}
            keywords |= {"truncation": max_length is not None and "only_first", "max_length": max_length}
            return [[dict(own.prepare_for_model(a, b, **keywords)) for b in others] for a in firsts]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(getattr(own, "split_special_tokens", False))
        firsts, others = (backend.encode_batch(list(part), add_special_tokens=False) for part in (texts, seconds))
        special = backend.num_special_tokens_to_add(True)

        def join(first: Any, second: Any) -> dict[str, list[int]]:
            room = None if max_length is None else max_length - special - len(second.ids)
            if room is not None and 0 < room < len(first.ids):
                backend.enable_truncation(max_length, strategy="only_first", direction=own.truncation_side)
                joined = backend.post_process(first, second)
                backend.no_truncation()
            else:
                joined = backend.post_process(first, second)
            return {
                "input_ids": joined.ids, "attention_mask": joined.attention_mask, "token_type_ids": joined.type_ids,
            }  # fmt: skip

        return [[join(first, second) for second in others] for first in firsts]


def has_line_break_token(tokenizer: Tokenizer) -> bool:
    """Return whether the vocabulary has LINE_BREAK as one token, so that it stands for a line break."""
    token_id = tokenizer.convert_tokens_to_ids(LINE_BREAK)
    return token_id is not None and token_id != getattr(tokenizer, "unk_token_id", None)


def restore_line_breaks(text: str) -> str:
    """Return a text with line breaks in place of LINE_BREAK."""
    return text.replace(LINE_BREAK, "\n")


@contextmanager
def private_tokenizer(tokenizer: Tokenizer) -> Generator[Tokenizer]:
    """Lend a tokenizer that no other thread uses, equal to the given one as it is now.

    Settings of the lent tokenizer, such as ``src_lang``, may be changed; it must not be used after the ``with`` block.

    Args:
        tokenizer: A tokenizer of Transformers. Another object with the same interface is lent itself, to one thread at a time.
    """
    if not hasattr(tokenizer, "init_kwargs"):
        with _lock:
            yield tokenizer
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow tokenizer, whose settings are all Python attributes
        yield _with_attributes(tokenizer)
        return
    idle = _idle.get(tokenizer)
    if idle is None:
        with _lock:
            idle = _idle.setdefault(tokenizer, [])
    size = backend.get_vocab_size(True)
    try:
        made_for, own = idle.pop()  # atomic
    except IndexError:
        made_for, own = -1, None
    if own is None or made_for != size:  # none is idle, or tokens were added since
        own = _private_backend(backend)
    for name in COMPONENTS:
        setattr(own, name, getattr(backend, name))
    yield _with_attributes(tokenizer, _tokenizer=own)
    idle.append((size, own))


def private_backend(tokenizer: Tokenizer) -> Any:
    """Return a ``tokenizers.Tokenizer`` equal to that of a fast tokenizer, without truncation and padding."""
    return _private_backend(tokenizer.backend_tokenizer)


def _private_backend(backend: Any) -> Any:
    """Return a Rust tokenizer with the same components and added tokens; the model is shared, not copied."""
    own = type(backend)(backend.model)
    for name in (*COMPONENTS, "decoder"):
        setattr(own, name, getattr(backend, name))
    added = backend.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        (own.add_special_tokens if token.special else own.add_tokens)([token])
    ids = {number: token.content for number, token in own.get_added_tokens_decoder().items()}
    if ids != {number: token.content for number, token in added.items()}:  # ids that adding does not reproduce
        own = type(backend).from_str(backend.to_str())
        own.no_truncation()
        own.no_padding()
    return own


def _with_attributes(tokenizer: Tokenizer, **attributes: Any) -> Tokenizer:
    """Return a shallow copy with other attributes; ``copy.copy`` would run the class's own hooks, which are slow."""
    copy = object.__new__(type(tokenizer))
    copy.__dict__.update(tokenizer.__dict__, **attributes)
    return copy
