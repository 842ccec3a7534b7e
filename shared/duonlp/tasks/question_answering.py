"""Extractive question answering: spans of a context that answer a question.

Windows, scores, merging of equal answers and the null answer follow QuestionAnsweringPipeline of Transformers 4.57, the last
release that had it. Scores of overlapping windows add up there, to more than 1; here they are capped, after sorting. With a
tokenizer that pads on the left, its answers can lie in the question, whose tokens it fails to mask; here they never do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import Example, Options, ParsedInputs, check_bool, check_int, check_text, describe
from duonlp.tasks.text import TextTask
from duonlp.tokenizers.windows import Window, make_windows

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


class QuestionAnsweringTask(TextTask[QuestionAnsweringOptions]):
    """{"question", "context"} -> {"score", "start", "end", "answer", "logit", "null_gap"}, or a list of those with ``top_k``.

    - "score": Probability of the answer in its context, as in Transformers, but at most 1.
    - "start", "end": Its characters in the context.
    - "logit": Start logit + end logit in the window that rates it highest; comparable across contexts, unlike the score.
    - "null_gap": Logit of "no answer" (the lowest of all windows) minus that of the best nonempty answer, the same for all
      answers of a context. The model prefers no answer if it is above 0, or a threshold tuned on validation data
      (SQuAD 2.0, Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822).

    The empty answer "" is one of them with ``handle_impossible_answer``. Other keys of an input are ignored.
    """

    name = "question-answering"
    head = "question-answering"
    Options = QuestionAnsweringOptions
    outputs = ("start_logits", "end_logits")

    @property
    def accepted_inputs(self) -> str:
        return 'question= and context=, a {"question": ..., "context": ...}, or a list or an iterator of those'

    def positional(self, inputs: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if len(args) != 1 or {"question", "context"} & set(keywords):
            return super().positional(inputs, args, keywords)
        return None, keywords | {"question": inputs, "context": args[0]}

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

        def where(number: int) -> str:
            return f"{self.name}: input {first + number}"

        pairs = [self.question_and_context(item, where(number)) for number, item in enumerate(items)]
        windows = make_windows(
            self.tokenizer,
            [question for question, _ in pairs],
            [context for _, context in pairs],
            size=size,
            stride=stride,
            max_question_len=options.max_question_len,
            where=where,
        )
        names = self.input_names
        return [[Example(_inputs(window, names), state=window) for window in row] for row in windows]

    def question_and_context(self, item: Any, where: str) -> tuple[str, str]:
        """Return an item as (question, context).

        Args:
            item: The item.
            where: Its name, for error messages.

        Raises:
            InputError: the item is not a dict with these two texts.
        """
        if not isinstance(item, Mapping):
            raise InputError(f'{where} is {describe(item)}; expected {{"question": ..., "context": ...}}')
        if not {"question", "context"} <= set(item):
            raise InputError(f'{where} has the keys {", ".join(map(repr, item))}; expected "question" and "context"')
        return (
            check_text(item["question"], f"{where}, question"),
            check_text(item["context"], f"{where}, context"),
        )

    # -- decoding --------------------------------------------------------------------------------------------------

    def decode(
        self,
        item: Any,
        examples: Sequence[Example],
        outputs: Sequence[dict[str, Any]],
        options: QuestionAnsweringOptions,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        context, cls = item["context"], self.tokenizer.cls_token_id
        scores = [
            WindowScores.of(example.state, output["start_logits"], output["end_logits"], cls)
            for example, output in zip(examples, outputs, strict=True)
        ]
        # Alignment to words can make candidates equal, so Transformers considers more than top_k of each window.
        candidates = options.top_k * 2 + 10 if options.align_to_words else options.top_k
        while True:
            answers, exhausted = self.merged_answers(context, scores, candidates, options)
            if exhausted or len(answers) >= options.top_k:
                break
            candidates *= 4
        null_logit = min(score.null_logit for score in scores)
        null_gap = null_logit - max((answer["logit"] for answer in answers), default=-np.inf)
        if options.handle_impossible_answer:
            null_score = min(score.null for score in scores)
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": "", "logit": null_logit})
        answers = sorted(answers, key=lambda answer: -answer["score"])[: options.top_k]
        answers = [answer | {"score": min(answer["score"], 1.0), "null_gap": null_gap} for answer in answers]
        return answers[0] if len(answers) == 1 else answers

    def merged_answers(
        self, context: str, scores: Sequence["WindowScores"], candidates: int, options: QuestionAnsweringOptions
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return the different answers among the best spans of each window, and whether no window has further spans.

        Equal answers, up to case, are merged: their scores add up, and the first keeps its place.

        Args:
            context: The context.
            scores: Scores of its windows.
            candidates: Number of spans of each window.
            options: Options of the call.
        """
        merged: dict[str, dict[str, Any]] = {}  # lowercased text -> answer
        exhausted = True
        for window in scores:
            spans = best_spans(window.start, window.end, window.context, candidates, options.max_answer_len)
            exhausted &= len(spans) < candidates
            for first, last, score in spans:
                a, b = window.characters(first, last, options.align_to_words)
                text = context[a:b]
                if not text or text.isspace():  # byte-level and SentencePiece tokenizers have tokens for spaces alone
                    continue
                logit = float(window.start_logits[first] + window.end_logits[last])
                new = {"score": 0.0, "start": a, "end": b, "answer": text, "logit": logit}
                answer = merged.setdefault(text.lower(), new)
                answer["score"] += score
                answer["logit"] = max(answer["logit"], logit)
        return list(merged.values()), exhausted


def _inputs(window: Window, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the model's inputs of a window, int32 [tokens] each."""
    arrays = {
        "input_ids": window.input_ids,
        "token_type_ids": window.token_type_ids,
        "attention_mask": np.ones(len(window.input_ids), np.int32),
    }
    return {name: arrays[name] for name in names}


@dataclass(slots=True)
class WindowScores:
    """What a model says about the context tokens of a window, and about the absence of an answer.

    Attributes:
        window: The window.
        start_logits: float32 [tokens].
        end_logits: float32 [tokens].
        context: bool [tokens], tokens that can be part of an answer.
        start: float32 [tokens], start probabilities.
        end: float32 [tokens], end probabilities.
        null: Probability that the window has no answer; 0 for a tokenizer without a CLS token.
        null_logit: Start logit + end logit of "no answer".
    """

    window: Window
    start_logits: np.ndarray
    end_logits: np.ndarray
    context: np.ndarray
    start: np.ndarray
    end: np.ndarray
    null: float
    null_logit: float

    @classmethod
    def of(cls, window: Window, start: np.ndarray, end: np.ndarray, cls_token_id: int | None) -> "WindowScores":
        """Compute the scores from the logits of a row, float32 [tokens]."""
        context, null = np.zeros(len(start), bool), window.null
        context[window.first : window.first + len(window.context.ids)] = True
        # The softmax includes the CLS token, which models select if there is no answer.
        allowed = context if cls_token_id is None else context | (window.input_ids == cls_token_id)
        start_p, end_p = probabilities(start, allowed), probabilities(end, allowed)
        null_score = 0.0 if context[null] else float(start_p[null] * end_p[null])
        return cls(window, start, end, context, start_p, end_p, null_score, float(start[null] + end[null]))

    def characters(self, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
        """Return the character range of the context that the tokens ``first`` to ``last`` cover.

        Args:
            first: Index of the first token in the row.
            last: Index of the last token.
            align_to_words: Whether to extend the range to whole words, as far as the window has their tokens.
        """
        text, words = self.window.context, self.window.context.words
        first, last = first - self.window.first, last - self.window.first
        if align_to_words and words[first] >= 0 and words[last] >= 0:
            while first and words[first - 1] == words[first]:
                first -= 1
            while last + 1 < len(words) and words[last + 1] == words[last]:
                last += 1
        return int(text.starts[first]), int(text.ends[last])


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
    start: np.ndarray, end: np.ndarray, context: np.ndarray, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """Return the most likely spans of context tokens, best first.

    Only spans of at most ``longest`` tokens are scored: [tokens, longest] instead of [tokens, tokens].

    Args:
        start: float32 [tokens], start probabilities.
        end: float32 [tokens], end probabilities.
        context: bool [tokens], tokens that can be part of a span.
        count: Maximum number of spans.
        longest: Maximum number of tokens in a span.

    Returns:
        (first token, last token, start probability x end probability) of each span.
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
