"""Summarization baselines: the first sentences, and a language model prompted with "TL;DR:"."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from duonlp.errors import InputError
from duonlp.util.sentences import is_dialogue, sentences_by_line
from duonlp.util.tokenization import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from duonlp.pipelines.pipeline import Pipeline
    from duonlp.tasks.text import TextTask

TLDR = "\nTL;DR:"
"""Prompt that makes GPT-2 continue with a summary (Radford et al. 2019, section 3.6)."""

DEFAULT_NEW_TOKENS = 100


def lead(text: str, sentences: int = 3, *, language: str = "en") -> str:
    """Return the first sentences of a text, "lead-3", which is hard to beat on news.

    See Nallapati et al. 2017 (arXiv:1611.04230) and See et al. 2017 (arXiv:1704.04368).

    Args:
        text: An article, or a dialogue, in which the end of a turn ends a sentence.
        sentences: Number of sentences; a shorter text is returned whole.
        language: ISO 639 code of the text's language, for the sentence splitter.

    Returns:
        The sentences separated by spaces; in a dialogue, by line breaks at the end of a turn.

    Raises:
        InputError: The text is empty, or `sentences` is not positive.
        MissingExtraError: sentencex is not installed.
    """
    if isinstance(sentences, bool) or not isinstance(sentences, int) or sentences < 1:
        raise InputError(f"sentences is {sentences!r}; it must be a positive integer")
    summary = _first_sentences(text, sentences, language)
    if not summary:
        raise InputError(f"the text is empty, {text!r}; give a text with at least one sentence")
    return summary


def tldr(
    pipe: "Pipeline",
    texts: Sequence[str],
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    *,
    sentences: int = 3,
    prompt: str = TLDR,
    language: str = "en",
    **options: Any,
) -> list[str]:
    """Summarize texts with a decoder-only language model by appending "TL;DR:".

    Follows the evaluation of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section
    3.6): 100 tokens sampled with top_k=2, of which the first 3 sentences are kept. The seed defaults to 0, so that the same
    text gives the same summary. A text that does not fit the model's positions together with the prompt and the new tokens
    is truncated at a token boundary.

    Args:
        pipe: A text-generation pipeline of either engine.
        texts: Documents to summarize.
        max_new_tokens: Number of tokens to generate for each text.
        sentences: Number of sentences to keep.
        prompt: Text appended to each document.
        language: ISO 639 code of the texts' language, for the sentence splitter.
        **options: Options of the pipeline's call, which override `do_sample=True, top_k=2, seed=0`. `do_sample=False` is
            greedy decoding; together with `num_beams=4` it is beam search.

    Returns:
        One summary per text, in order; "" if the model stopped immediately.

    Raises:
        InputError: A text is empty, the pipeline is for another task, an option is unknown, or the new tokens leave no room
            for a text.
        MissingExtraError: sentencex is not installed.
    """
    if getattr(getattr(pipe, "task", None), "name", None) != "text-generation":
        raise InputError(f"pipe is {pipe!r}; give a text-generation pipeline")
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"texts is a {type(texts).__name__}; give a list of texts, such as [text]")
    for name in ("return_full_text", "return_tensors", "num_return_sequences", "handle_long_generation"):
        if name in options:
            raise InputError(f"tldr does not support {name}, because it returns one new text per document; drop it")
    new = _check_positive("max_new_tokens", max_new_tokens)
    _check_positive("sentences", sentences)
    if options.get("do_sample", True):
        defaults: dict[str, Any] = {"do_sample": True, "top_k": 2, "seed": 0}
        options = defaults | options
    limit = _context_length(pipe, options.get("assistant_model"))
    task: Any = pipe.task  # a TextGenerationTask
    prefix = task.prefix(pipe.options) if options.get("prefix") is None else str(options["prefix"])
    prompts = [
        _build_prompt(pipe.tokenizer, text, number, prefix, prompt, limit, new) for number, text in enumerate(texts)
    ]
    results = pipe(prompts, max_new_tokens=new, return_full_text=False, **options) if prompts else []
    return [_first_sentences(result[0]["generated_text"], sentences, language) for result in results]


def _check_positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"{name} is {value!r}; it must be a positive integer")
    return number


def _first_sentences(text: str, sentences: int, language: str) -> str:
    remaining, lines = sentences, []
    for line in sentences_by_line(text, language):
        if remaining > 0:
            lines.append(" ".join(line[:remaining]))
            remaining -= len(line)
    return ("\n" if is_dialogue(text) else " ").join(lines)


def _context_length(pipe: "Pipeline", assistant: Any = None) -> int:
    """Return the number of positions for prompt and new tokens, of the model and the assistant model if any."""
    configs = [pipe.config] + ([assistant.config] if hasattr(assistant, "config") else [])
    return min(cast("TextTask[Any]", pipe.task).limit() or 10**9, *(config.max_length for config in configs))


def _build_prompt(
    tokenizer: "PreTrainedTokenizerBase", text: str, number: int, prefix: str, prompt: str, limit: int, new: int
) -> str:
    """Return a text followed by the prompt, with the text truncated so that `new` more tokens fit.

    Args:
        tokenizer: Tokenizer of the model.
        text: The document.
        number: Index of the document, for messages.
        prefix: Text that the pipeline puts before the prompt.
        prompt: Text to append.
        limit: Number of positions of the model.
        new: Number of tokens to generate.
    """
    if not isinstance(text, str) or not text.strip():
        problem = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
        raise InputError(f"text {number} is {problem}: {text!r}; give a non-empty document")

    def length(document: str) -> int:
        return len(tokenize(tokenizer, prefix + document + prompt, verbose=False)["input_ids"])

    text = text.rstrip()
    excess = length(text) + new - limit
    if excess <= 0:
        return text + prompt
    encoded = tokenize(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    kept = len(ends)
    while excess > 0:
        kept -= excess  # tokens may merge differently at the cut, so the length is measured again
        if kept < 1:
            raise InputError(
                f"text {number} does not fit: of the model's {limit} positions, {new} new tokens and the prompt leave none for "
                "it; lower max_new_tokens"
            )
        excess = length(text[: ends[kept - 1]]) + new - limit
    return text[: ends[kept - 1]] + prompt
