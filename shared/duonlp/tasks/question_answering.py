"""Extractive question answering: the spans of a context that answer a question.

Windows, scores, the merging of equal answers and the null answer follow QuestionAnsweringPipeline of Transformers 4.57,
the last release that had it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import (
    Arranged,
    Example,
    Options,
    Task,
    check_bool,
    check_int,
    check_text,
    describe,
)

MASKED = np.float32(-10000.0)


@dataclass(frozen=True)
class QuestionAnsweringOptions(Options):
    """top_k: how many answers. max_answer_len: longest answer, in tokens.

    max_seq_len: tokens of a window (384, or what the model holds). doc_stride: tokens that windows share (128, or half
    a window). max_question_len: what a question is cut to when it leaves no room for its context.
    handle_impossible_answer: the empty answer is a candidate. align_to_words: answers begin and end with words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self):
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

    allowed: bool [tokens], what the softmax sees. context: bool [tokens], what may be part of an answer.
    """

    encoding: Any  # tokenizers.Encoding: tokens to words to characters
    allowed: np.ndarray
    context: np.ndarray


class QuestionAnsweringTask(Task):
    """{"question", "context"} -> {"score", "start", "end", "answer"}, or a list of them with `top_k`."""

    name = "question-answering"
    head = "question-answering"
    Options = QuestionAnsweringOptions
    outputs = ("start_logits", "end_logits")

    @property
    def wants(self):
        return 'question= and context=, a {"question": ..., "context": ...}, or a list or an iterator of those'

    def arrange(self, inputs, keywords):
        keywords = dict(keywords)
        question, context = keywords.pop("question", None), keywords.pop("context", None)
        if inputs is None and (question is not None or context is not None):
            inputs = self.pairs(question, context)
        elif isinstance(inputs, str) and isinstance(context, str) and question is None:
            inputs = {"question": inputs, "context": context}  # pipeline(question, context=context)
        elif question is not None or context is not None:
            raise InputError(f"{self.name} got its input twice; give {self.wants}")
        elif isinstance(inputs, str):
            raise InputError(f"{self.name} got the text {describe(inputs)} alone; give {self.wants}")
        arranged = super().arrange(inputs, keywords)
        if arranged.shape == "list" and len(arranged.items) == 1:  # as in Transformers: a list of one is that one
            arranged = Arranged("one", arranged.items, options=keywords)
        return arranged

    def pairs(self, question: Any, context: Any) -> Any:
        """The items that the keywords `question` and `context` mean."""
        if question is None or context is None:
            missing = "question" if question is None else "context"
            raise InputError(f"{self.name} got no {missing}; give {self.wants}")
        if isinstance(question, str):
            if isinstance(context, str):
                return {"question": question, "context": context}
            raise InputError(
                f"{self.name} got one question and a context of type {type(context).__name__}; give a text"
            )
        if not isinstance(question, Iterable):
            raise InputError(f"question is {describe(question)}; it must be a text or a list of texts")
        questions = list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise InputError(
                f"{self.name} got {len(questions)} questions and {len(contexts)} contexts; give as many of each, "
                "or one context for all"
            )
        return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]

    def output_width(self):
        return 2

    # -- text to arrays --------------------------------------------------------------------------------------------

    def lengths(self, options: QuestionAnsweringOptions) -> tuple[int, int]:
        """Tokens of a window, and tokens that neighbouring windows share."""
        limit = self.limit()
        size = options.max_seq_len or min(limit or 384, 384)
        if self.config.max_length is not None and size > self.config.max_length:
            raise InputError(
                f"max_seq_len is {size} and the model has positions for {self.config.max_length}; lower it"
            )
        stride = min(size // 2, 128) if options.doc_stride is None else options.doc_stride
        if stride > size:
            raise InputError(f"doc_stride is {stride}, more than max_seq_len, {size}; lower it")
        return size, stride

    def check_options(self, options):
        self.lengths(options)

    def encode(self, items, options, first=0):
        size, stride = self.lengths(options)
        pairs = [self.pair(item, f"{self.name}: input {first + i}") for i, item in enumerate(items)]
        contexts = [context for _, context in pairs]
        questions = self.fit_questions(pairs, size, stride, options.max_question_len, first)
        encoded = self.tokenizer(
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
            # The CLS token stays in the softmax: models point at it when there is no answer.
            allowed = context if cls is None else context | (row["input_ids"] == cls)
            examples[owner].append(Example(row, state=Window(encoding, allowed, context)))
        for i, windows in enumerate(examples):
            if not any(example.state.context.any() for example in windows):
                raise InputError(
                    f"{self.name}: input {first + i}, the context {describe(contexts[i])} has no token that could "
                    "answer; give it some words"
                )
        return examples

    def pair(self, item: Any, where: str) -> tuple[str, str]:
        """An item as (question, context); raises InputError when it is not both of them."""
        if not isinstance(item, Mapping):
            raise InputError(f'{where} is {describe(item)}; it must be {{"question": ..., "context": ...}}')
        if set(item) != {"question", "context"}:
            raise InputError(f'{where} has the keys {", ".join(map(repr, item))}; it needs "question" and "context"')
        return tuple(check_text(item[key], f"{where}, {key}") for key in ("question", "context"))

    def fit_questions(self, pairs, size: int, stride: int, longest: int, first: int) -> list[str]:
        """The questions, those cut to `longest` tokens that would leave no room to slide over their context."""
        questions = [question for question, _ in pairs]
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        encoded = self.tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for i, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
            if size - special - len(ids) > stride:
                continue
            if len(self.tokenizer(*pairs[i], verbose=False)["input_ids"]) <= size:
                continue  # one window holds all of it
            kept = min(len(ids), longest)
            if size - special - kept <= stride:
                raise InputError(
                    f"{self.name}: input {first + i}: a question of {kept} tokens and doc_stride {stride} leave no "
                    f"room in a window of {size}; raise max_seq_len, or lower doc_stride or max_question_len"
                )
            questions[i] = questions[i][: offsets[kept - 1][1]]
        return questions

    # -- arrays to answers -----------------------------------------------------------------------------------------

    def decode(self, item, examples, outputs, options):
        context, null_score = item["context"], 1_000_000.0
        # Aligning to words makes candidates equal, so more are taken than asked for.
        candidates = options.top_k * 2 + 10 if options.align_to_words else options.top_k
        answers: dict[str, dict] = {}
        for example, output in zip(examples, outputs, strict=True):
            window = example.state
            start = probabilities(output["start_logits"], window.allowed)
            end = probabilities(output["end_logits"], window.allowed)
            null_score = min(null_score, float(start[0] * end[0]))
            spans = best_spans(start, end, window.context, candidates, options.max_answer_len)
            for first, last, score in spans:
                a, b = characters(window.encoding, first, last, options.align_to_words)
                text = context[a:b]
                known = answers.setdefault(text.lower(), {"score": 0.0, "start": a, "end": b, "answer": text})
                known["score"] += score
        found = list(answers.values())
        if options.handle_impossible_answer:
            found.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[: options.top_k]
        return found[0] if len(found) == 1 else found


def probabilities(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax over the allowed tokens. logits: float32 [tokens]."""
    logits = np.where(allowed, logits, MASKED)
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def best_spans(
    start: np.ndarray, end: np.ndarray, context: np.ndarray, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """The likeliest spans of context tokens, best first: (first token, last token, start x end probability).

    Only the band of spans of at most `longest` tokens is looked at, [tokens, longest] instead of [tokens, tokens].
    """
    start, end = np.where(context, start, -1), np.where(context, end, 0)
    longest = min(longest, len(end))
    ends = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1)), longest)  # [T, W]
    inside = np.lib.stride_tricks.sliding_window_view(np.pad(context, (0, longest - 1)), longest)
    band = np.where(inside & context[:, None], start[:, None] * ends, -1).ravel()
    count = min(count, len(band))
    best = np.argpartition(-band, count - 1)[:count]
    best = best[np.argsort(-band[best], kind="stable")]
    best = best[band[best] >= 0]
    firsts, widths = np.divmod(best, longest)
    return list(zip(firsts.tolist(), (firsts + widths).tolist(), band[best].tolist(), strict=True))


def characters(encoding, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """The characters of the context that the tokens `first` to `last` cover, widened to words if asked for."""
    if align_to_words:
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        if begin is not None and end is not None:
            begin = encoding.word_to_chars(begin, sequence_index=1)
            end = encoding.word_to_chars(end, sequence_index=1)
            if begin is not None and end is not None:
                return begin[0], end[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
