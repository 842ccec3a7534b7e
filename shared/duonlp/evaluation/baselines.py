"""Summaries that a trained summarizer has to beat: the first sentences, and a language model that is told "TL;DR:"."""

import operator
from collections.abc import Sequence

from duonlp.errors import InputError
from duonlp.util.sentences import is_dialogue, sentences_by_line

TLDR = "\nTL;DR:"
"""What makes GPT-2 go on with a summary (Radford et al. 2019, section 3.6)."""

DEFAULT_NEW_TOKENS = 100


def lead(text: str, sentences: int = 3, *, language: str = "en") -> str:
    """The first sentences of a text: "lead-3", hard to beat on news (Nallapati et al. 2017, arXiv:1611.04230; See et al. 2017).

    Args:
        text: an article, or a dialogue, in which the end of a turn ends a sentence.
        sentences: how many; a shorter text is given back whole.
        language: its ISO 639 code, for where sentences end.

    Returns:
        The sentences with a space between them; in a dialogue, with a line end where the turn ends.

    Raises:
        InputError: an empty text, or less than one sentence.
        MissingExtraError: sentencex is not installed.
    """
    if isinstance(sentences, bool) or not isinstance(sentences, int) or sentences < 1:
        raise InputError(f"sentences is {sentences!r}; it must be a whole number from 1 on")
    found = _first(text, sentences, language)
    if not found:
        raise InputError(f"the text is empty, {text!r}; there is no first sentence of it")
    return found


def tldr(
    pipe,
    texts: Sequence[str],
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    *,
    sentences: int = 3,
    prompt: str = TLDR,
    language: str = "en",
    **options,
) -> list[str]:
    """Summaries by a decoder-only model that was trained for nothing but the next token: the text, then "TL;DR:".

    As GPT-2 was measured (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 3.6): 100
    tokens drawn from the 2 most likely at each step, and of what comes the first 3 sentences. The seed is 0 unless given, so
    that the same text gives the same summary. A text that leaves no room for the prompt and the new tokens in the model's
    positions loses its end, a whole number of tokens.

    Args:
        pipe: a text-generation pipeline of either framework.
        texts: the documents.
        max_new_tokens: tokens generated for each.
        sentences: how many of them are kept.
        prompt: what follows a text.
        language: its ISO 639 code, for where sentences end.
        **options: of the pipeline's call, in place of `do_sample=True, top_k=2, seed=0` or besides; `do_sample=False` is
            greedy, `num_beams=4` (with it) a beam search.

    Returns:
        A summary for each text, in order; "" where the model ended at once.

    Raises:
        InputError: an empty text (named by its number), a pipeline of another task, an option it does not have, or new
            tokens that leave no room for a text.
        MissingExtraError: sentencex is not installed.
    """
    if getattr(getattr(pipe, "task", None), "name", None) != "text-generation":
        raise InputError(f"pipe is {pipe!r}; give a pipeline of text-generation")
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"texts is a {type(texts).__name__}; give a list of texts, such as [text]")
    for name in ("return_full_text", "return_tensors", "num_return_sequences", "handle_long_generation"):
        if name in options:
            raise InputError(f"{name} does not go with tldr, which keeps one new text for each document; leave it out")
    new = _positive("max_new_tokens", max_new_tokens)
    _positive("sentences", sentences)
    if options.get("do_sample", True):
        options = {"do_sample": True, "top_k": 2, "seed": 0} | options
    limit = _room(pipe, options.get("assistant_model"))
    prefix = options.get("prefix") or pipe.options.prefix or ""
    prompts = [_prompt(pipe.tokenizer, text, number, prefix, prompt, limit, new) for number, text in enumerate(texts)]
    results = pipe(prompts, max_new_tokens=new, return_full_text=False, **options) if prompts else []
    return [_first(result[0]["generated_text"], sentences, language) for result in results]


def _positive(name: str, value) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number from 1 on")
    return number


def _first(text: str, sentences: int, language: str) -> str:
    left, lines = sentences, []
    for line in sentences_by_line(text, language):
        if left > 0:
            lines.append(" ".join(line[:left]))
            left -= len(line)
    return ("\n" if is_dialogue(text) else " ").join(lines)


def _room(pipe, assistant=None) -> int:
    """Positions for a prompt and what it is continued with."""
    models = [pipe.config] + ([assistant.config] if hasattr(assistant, "config") else [])
    return min(pipe.task.limit() or 10**9, *(config.max_length for config in models))


def _prompt(tokenizer, text: str, number: int, prefix: str, prompt: str, limit: int, new: int) -> str:
    """A text and the prompt behind it, the text cut at a token so that both and the new tokens fit."""
    if not isinstance(text, str) or not text.strip():
        what = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise InputError(f"text {number} is {what}: {text!r}; give a document with some words")

    def length(document: str) -> int:
        return len(tokenizer(prefix + document + prompt, verbose=False)["input_ids"])

    text = text.rstrip()
    over = length(text) + new - limit
    if over <= 0:
        return text + prompt
    ends = [
        end
        for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
    ]
    kept = len(ends)
    while over > 0:
        kept -= over  # tokens may join differently where the text was cut, so that it is measured again
        if kept < 1:
            raise InputError(
                f"text {number} does not fit: the model has {limit} positions, and {new} new tokens with the prompt leave "
                "no room for it; ask for fewer"
            )
        over = length(text[: ends[kept - 1]]) + new - limit
    return text[: ends[kept - 1]] + prompt
