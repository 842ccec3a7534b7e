"""Extractive question answering: spans of a context that answer a question.

Windows, scores, merging of equal answers and the null answer follow QuestionAnsweringPipeline of Transformers 4.57, the last
release that had it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Options, ParsedInputs, check_bool, check_int, check_text, describe
from duonlp.tasks.text import TextTask
from duonlp.util.tokenization import tokenize

MASKED = np.float32(-10000.0)
"""Logit of tokens that cannot be part of an answer, as in Transformers."""


@dataclass(frozen=True)
class QuestionAnsweringOptions(Options):
    """Options of question answering.

    Attributes:
        top_k: Number of answers.
        doc_stride: Number of tokens by which windows overlap (default: 128, or half a window if that is less).
        max_answer_len: Maximum length of an answer in tokens.
        max_seq_len: Number of tokens in a window (default: 384, or the model's limit if that is less).
        max_question_len: Number of tokens to which a question is truncated if it leaves no room for the context.
        handle_impossible_answer: Whether the empty answer is a candidate.
        align_to_words: Whether to extend answers to whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        check_int("top_k", self.top_k, minimum=1)
        check_int("doc_stride", self.doc_stride, minimum=0, optional=True)
        check_int("max_answer_len", self.max_answer_len, minimum=1)
        check_int("max_seq_len", self.max_seq_len, minimum=1, optional=True)
        check_int("max_question_len", self.max_question_len, minimum=1)
        check_bool("handle_impossible_answer", self.handle_impossible_answer)
        check_bool("align_to_words", self.align_to_words)


@dataclass(slots=True)
class Window:
    """One window of a context.

    Attributes:
        encoding: tokenizers.Encoding, which maps tokens to words and characters.
        allowed: bool [tokens], tokens included in the softmax.
        context: bool [tokens], tokens that can be part of an answer.
    """

    encoding: Any
    allowed: np.ndarray
    context: np.ndarray


class QuestionAnsweringTask(TextTask[QuestionAnsweringOptions]):
    """{"question", "context"} -> {"score", "start", "end", "answer"}, or a list of those with ``top_k``."""

    name = "question-answering"
    head = "question-answering"
    Options = QuestionAnsweringOptions
    outputs = ("start_logits", "end_logits")

    @property
    def accepted_inputs(self) -> str:
        return 'question= and context=, a {"question": ..., "context": ...}, or a list or an iterator of those'

    def parse_inputs(self, inputs: Any, keywords: dict[str, Any]) -> ParsedInputs:
        keywords = dict(keywords)
        question, context = keywords.pop("question", None), keywords.pop("context", None)
        if inputs is None and (question is not None or context is not None):
            inputs = self.pair_inputs(question, context)
        elif isinstance(inputs, str) and isinstance(context, str) and question is None:
            inputs = {"question": inputs, "context": context}  # pipeline(question, context=context)
        elif question is not None or context is not None:
            raise InputError(f"{self.name} got its input twice; pass {self.accepted_inputs}")
        elif isinstance(inputs, str):
            raise InputError(f"{self.name} got only the text {describe(inputs)}; pass {self.accepted_inputs}")
        parsed = super().parse_inputs(inputs, keywords)
        if parsed.kind == "list" and len(parsed.items) == 1:  # as in Transformers
            parsed.kind = "one"
        return parsed

    def pair_inputs(self, question: Any, context: Any) -> dict[str, str] | list[dict[str, Any]]:
        """Combine the keywords ``question`` and ``context`` to an item or a list of items.

        Raises:
            InputError: one of the two is missing, they are of unsupported types, or their numbers differ.
        """
        if question is None or context is None:
            missing = "question" if question is None else "context"
            raise InputError(f"{self.name} got no {missing}; pass {self.accepted_inputs}")
        if isinstance(question, str):
            if isinstance(context, str):
                return {"question": question, "context": context}
            raise InputError(
                f"{self.name} got one question and a context of type {type(context).__name__}; pass one text as context"
            )
        if not isinstance(question, Iterable):
            raise InputError(f"question is {describe(question)}; expected a text or a list of texts")
        questions = list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise InputError(
                f"{self.name} got {len(questions)} questions and {len(contexts)} contexts; pass one context per question, "
                "or one for all"
            )
        return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]

    def output_width(self) -> int:
        return 2

    # -- encoding --------------------------------------------------------------------------------------------------

    def lengths(self, options: QuestionAnsweringOptions) -> tuple[int, int]:
        """Return the number of tokens in a window, and by how many adjacent windows overlap.

        Raises:
            InputError: the window does not fit the model, or the overlap does not fit the window.
        """
        limit = self.limit()
        size = options.max_seq_len or min(limit or 384, 384)
        if self.config.max_length is not None and size > self.config.max_length:
            raise InputError(
                f"max_seq_len is {size}, but the model has positions for {self.config.max_length}; lower it"
            )
        stride = min(size // 2, 128) if options.doc_stride is None else options.doc_stride
        if stride > size:
            raise InputError(f"doc_stride is {stride}, but max_seq_len is {size}; lower doc_stride")
        return size, stride

    def check_options(self, options: QuestionAnsweringOptions) -> None:
        self.lengths(options)

    def encode(self, items: Sequence[Any], options: QuestionAnsweringOptions, first: int = 0) -> list[list[Example]]:
        size, stride = self.lengths(options)
        pairs = [self.question_and_context(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        contexts = [context for _, context in pairs]
        questions = self.fit_questions(pairs, size, stride, options.max_question_len, first)
        encoded = tokenize(
            self.tokenizer,
            questions,
            contexts,
            truncation="only_second",
            max_length=size,
            stride=stride,
            return_overflowing_tokens=True,
            return_attention_mask=True,
            verbose=False,
        )
        owners = encoded["overflow_to_sample_mapping"]
        rows = self.rows(encoded, items=[first + i for i in owners])
        examples: list[list[Example]] = [[] for _ in items]
        cls = self.tokenizer.cls_token_id
        for owner, row, encoding in zip(owners, rows, encoded.encodings, strict=True):
            context = np.array([s == 1 for s in encoding.sequence_ids], bool)
            # The softmax includes the CLS token, which models select if there is no answer.
            allowed = context if cls is None else context | (row["input_ids"] == cls)
            examples[owner].append(Example(row, state=Window(encoding, allowed, context)))
        for i, windows in enumerate(examples):
            if not any(example.state.context.any() for example in windows):
                raise InputError(
                    f"{self.name}: input {first + i}, context {describe(contexts[i])} has no tokens; add some words"
                )
        return examples

    def question_and_context(self, item: Any, where: str) -> tuple[str, str]:
        """Return an item as (question, context).

        Args:
            item: The item.
            where: Its name, for error messages.

        Raises:
            InputError: the item is not a dict with exactly these two texts.
        """
        if not isinstance(item, Mapping):
            raise InputError(f'{where} is {describe(item)}; expected {{"question": ..., "context": ...}}')
        if set(item) != {"question", "context"}:
            raise InputError(f'{where} has the keys {", ".join(map(repr, item))}; expected "question" and "context"')
        return (
            check_text(item["question"], f"{where}, question"),
            check_text(item["context"], f"{where}, context"),
        )

    def fit_questions(
        self, pairs: Sequence[tuple[str, str]], size: int, stride: int, longest: int, first: int
    ) -> list[str]:
        """Return the questions, truncated if they leave no room for a window to advance over the context.

        Args:
            pairs: Questions and contexts.
            size: Number of tokens in a window.
            stride: Number of tokens by which windows overlap.
            longest: Number of tokens to which such a question is truncated.
            first: Index of the first item, for error messages.

        Raises:
            InputError: a truncated question still leaves no room.
        """
        questions = [question for question, _ in pairs]
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        encoded = tokenize(
            self.tokenizer, questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for i, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            if size - special - len(ids) > stride:
                continue
            if len(tokenize(self.tokenizer, *pairs[i], verbose=False)["input_ids"]) <= size:
                continue  # question and context fit one window
            length = min(len(ids), longest)
            if size - special - length <= stride:
                raise InputError(
                    f"{self.name}: input {first + i}: a question of {length} tokens and doc_stride {stride} leave no "
                    f"room in a window of {size}; raise max_seq_len, or lower doc_stride or max_question_len"
                )
            questions[i] = questions[i][: offsets[length - 1][1]]
        return questions

    # -- decoding --------------------------------------------------------------------------------------------------

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: QuestionAnsweringOptions,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        context, null_score = item["context"], 1_000_000.0
        # Alignment to words can make candidates equal, so consider more than top_k.
        candidates = options.top_k * 2 + 10 if options.align_to_words else options.top_k
        merged: dict[str, dict[str, Any]] = {}  # lowercased text -> answer
        for example, output in zip(examples, outputs, strict=True):
            window = example.state
            start = probabilities(output["start_logits"], window.allowed)
            end = probabilities(output["end_logits"], window.allowed)
            null_score = min(null_score, float(start[0] * end[0]))
            visible = visible_tokens(window, context, options.align_to_words)
            spans = best_spans(start, end, window.context, candidates, options.max_answer_len, visible)
            for first, last, score in spans:
                a, b = characters(window.encoding, first, last, options.align_to_words)
                text = context[a:b]
                answer = merged.setdefault(text.lower(), {"score": 0.0, "start": a, "end": b, "answer": text})
                answer["score"] += score
        answers = list(merged.values())
        if options.handle_impossible_answer:
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: -answer["score"])[: options.top_k]
        return answers[0] if len(answers) == 1 else answers


def probabilities(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Compute the softmax over the allowed tokens.

    Args:
        logits: float32 [tokens].
        allowed: bool [tokens].

    Returns:
        float32 [tokens].
    """
    logits = np.where(allowed, logits, MASKED)
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def best_spans(
    start: np.ndarray, end: np.ndarray, context: np.ndarray, count: int, longest: int, visible: np.ndarray | None = None
) -> list[tuple[int, int, float]]:
    """Return the most likely spans of context tokens, best first.

    Only spans of at most ``longest`` tokens are scored: [tokens, longest] instead of [tokens, tokens].

    Args:
        start: float32 [tokens], start probabilities.
        end: float32 [tokens], end probabilities.
        context: bool [tokens], tokens that can be part of a span.
        count: Maximum number of spans.
        longest: Maximum number of tokens in a span.
        visible: bool [tokens], tokens of which a span has at least one (default: all).

    Returns:
        (first token, last token, start probability x end probability) of each span.
    """
    start, end = np.where(context, start, -1), np.where(context, end, 0)
    longest = min(longest, len(end))
    ends = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1)), longest)  # [T, W]
    inside = np.lib.stride_tricks.sliding_window_view(np.pad(context, (0, longest - 1)), longest)
    inside = inside & context[:, None]
    if visible is not None and not visible[context].all():
        padded = np.lib.stride_tricks.sliding_window_view(np.pad(visible, (0, longest - 1)), longest)  # [T, W]
        inside &= np.logical_or.accumulate(padded, axis=1)
    band = np.where(inside, start[:, None] * ends, -1).ravel()
    count = min(count, len(band))
    best = np.argpartition(-band, count - 1)[:count]
    best = best[np.argsort(-band[best], kind="stable")]
    best = best[band[best] >= 0]
    firsts, widths = np.divmod(best, longest)
    return list(zip(firsts.tolist(), (firsts + widths).tolist(), band[best].tolist(), strict=True))


def visible_tokens(window: Window, context: str, align_to_words: bool) -> np.ndarray:
    """Return bool [tokens]: the tokens whose characters, or words if answers are aligned to words, are not only spaces.

    Byte-level and SentencePiece tokenizers have tokens for spaces alone, which Transformers returns as empty answers.
    """
    visible, offsets = window.context.copy(), window.encoding.offsets  # which makes a new list of all tokens
    for token in np.flatnonzero(window.context).tolist():
        a, b = offsets[token]
        if not context[a:b].strip():
            a, b = characters(window.encoding, token, token, align_to_words)
            visible[token] = bool(context[a:b].strip())
    return visible


def characters(encoding: Any, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Return the character range of the context that the tokens ``first`` to ``last`` cover.

    Args:
        encoding: tokenizers.Encoding of the window.
        first: Index of the first token.
        last: Index of the last token.
        align_to_words: Whether to extend the range to whole words.
    """
    if align_to_words:
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        if begin is not None and end is not None:
            begin = encoding.word_to_chars(begin, sequence_index=1)
            end = encoding.word_to_chars(end, sequence_index=1)
            if begin is not None and end is not None:
                return begin[0], end[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
