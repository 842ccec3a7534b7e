"""Endpoint of extractive question answering."""

from typing import NamedTuple

import tensorflow as tf

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.question_answering import MASKED, QuestionAnsweringTask
from tfnlp.heads import Model
from tfnlp.serving.endpoint import Endpoint
from tfnlp.text.characters import changes, dense, indices, places, row_ids
from tfnlp.text.tokenizer import Rows, join

CANDIDATES = 12
"""Number of spans of each window, as in the pipeline for the best answer."""


class Windows(NamedTuple):
    """Windows of contexts.

    Attributes:
        rows: Their rows.
        owners: int32 [W], number of the pair of each.
        context: Number of the context in the pairs.
    """

    rows: Rows
    owners: tf.Tensor
    context: int


class QuestionAnswering(Endpoint[QuestionAnsweringTask]):
    """The best answer to each question in its context.

    Args:
        model: See Endpoint.
        pipe: See Endpoint.

    Raises:
        InputError: The options are not supported in a graph.
    """

    task = "question-answering"
    inputs = ("question", "context")

    def __init__(self, model: Model, pipe: Pipeline) -> None:
        super().__init__(model, pipe)
        if self._options.top_k != 1 or not self._options.align_to_words:
            raise InputError(
                "only the best answer, aligned to words, can be exported; leave top_k and align_to_words out"
            )
        if pipe.tokenizer.truncation_side == "left":
            raise InputError("windows from the end of a context cannot be exported; set truncation_side to 'right'")
        tokenizer = pipe.tokenizer
        markers = (tokenizer.cls_token_id, getattr(tokenizer, "bos_token_id", None))
        self._markers = [marker for marker in markers if marker is not None]
        self._cls = tokenizer.cls_token_id

    def windows(self, question: tf.Tensor, context: tf.Tensor) -> Windows:
        """Return the windows of contexts, string [B] each; see duonlp.tokenizers.windows.make_windows."""
        size, stride = self._task.lengths(self._options)
        asked, text = (self.tokenizer.trimmed(self.tokenizer.tokens(texts)) for texts in (question, context))
        template = self.tokenizer.template(pair=True)
        room = size - template.special - asked.lengths
        cut = tf.where((room < text.lengths) & (room <= stride), self._options.max_question_len, size)
        asked = asked.slice(tf.zeros_like(room), tf.minimum(asked.lengths, cut))
        room = size - template.special - asked.lengths
        fits = text.lengths <= room
        checks = [
            tf.debugging.Assert(tf.reduce_all(text.lengths > 0), ["a context has no tokens; add some words"]),
            tf.debugging.Assert(
                tf.reduce_all(fits | (room > stride)), ["a question leaves no room in a window; raise max_seq_len"]
            ),
        ]
        with tf.control_dependencies(checks):
            step = tf.where(fits, 1, room - stride)
            count = tf.where(fits, 1, 1 - tf.math.floordiv(room - text.lengths, step))
        owners = row_ids(count)
        starts = places(count, owners) * tf.gather(step, owners)
        lengths = tf.minimum(tf.gather(room, owners), tf.gather(text.lengths, owners) - starts)
        parts = [
            asked.slice(tf.zeros_like(owners), tf.gather(asked.lengths, owners), owners),
            text.slice(starts, lengths, owners),
        ]
        left = self._task.padding_side == "left"
        return Windows(join(template, parts[::-1] if left else parts), owners, 0 if left else 1)

    def serve(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return ``answer`` string, ``score`` and ``logit`` float32, ``start`` and ``end`` int32, and ``null_gap``, all [B]."""
        question, context = (tf.strings.unicode_transcode(text, "UTF-8", "UTF-8") for text in texts)
        rows, owners, number = self.windows(question, context)
        outputs = self.forward(rows)
        left = self._task.padding_side == "left"

        def grid(values: tf.Tensor, fill: int) -> tf.Tensor:
            return dense(values, rows.lengths, fill, left=left)

        tokens = row_ids(rows.lengths)
        word = tf.cumsum(tf.cast(changes(tokens) | changes(rows.words) | changes(rows.sequences), tf.int32)) - 1
        begins = grid(tf.gather(tf.math.segment_min(rows.begins, word), word), 0)
        ends = grid(tf.gather(tf.math.segment_max(rows.ends, word), word), 0)
        is_context, ids = grid(tf.cast(rows.sequences == number, tf.int32), 0) > 0, grid(rows.ids, -1)
        start, end = (tf.cast(outputs[name], tf.float32) for name in ("start_logits", "end_logits"))
        allowed = is_context if self._cls is None else is_context | (ids == self._cls)
        starts, stops = (tf.nn.softmax(tf.where(allowed, x, tf.where(ids >= 0, MASKED, -3e38))) for x in (start, end))
        score, first, last = best_spans(starts, stops, is_context, self._options.max_answer_len)  # [W, C] each
        null = self._null(ids)
        null_score = tf.where(
            tf.gather(is_context, null, batch_dims=1), 0.0, tf.gather(starts * stops, null, batch_dims=1)
        )
        null_logit = tf.math.unsorted_segment_min(tf.gather(start + end, null, batch_dims=1), owners, tf.size(context))
        logit = tf.gather(start, first, batch_dims=1) + tf.gather(end, last, batch_dims=1)
        spans = tf.gather(begins, first, batch_dims=1), tf.gather(ends, last, batch_dims=1)
        found = self._merged(context, owners, score, logit, *spans)
        found["null_gap"] = null_logit - found["logit_max"]
        if self._options.handle_impossible_answer:
            lowest = tf.math.unsorted_segment_min(null_score, owners, tf.size(context))
            none = lowest > found["score"]
            empty = {"answer": "", "start": 0, "end": 0, "score": lowest, "logit": null_logit}
            found |= {name: tf.where(none, value, found[name]) for name, value in empty.items()}
        return {name: found[name] for name in ("answer", "start", "end", "logit", "null_gap")} | {
            "score": tf.minimum(found["score"], 1.0)
        }

    def _null(self, ids: tf.Tensor) -> tf.Tensor:
        """Return where the token is that stands for no answer, int32 [W], given ids [W, T] with -1 for padding."""
        null = tf.argmax(ids >= 0, 1, output_type=tf.int32)  # the first token
        for marker in reversed(self._markers):
            is_marker = ids == marker
            null = tf.where(tf.reduce_any(is_marker, 1), tf.argmax(is_marker, 1, output_type=tf.int32), null)
        return null

    def _merged(
        self,
        context: tf.Tensor,
        owners: tf.Tensor,
        score: tf.Tensor,
        logit: tf.Tensor,
        begins: tf.Tensor,
        ends: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Return the best answer of each context [B], given the spans of each window [W, C]; those of equal text add up."""
        rows = tf.repeat(owners, tf.shape(score)[1])
        score, logit, begins, ends = (tf.reshape(x, [-1]) for x in (score, logit, begins, ends))
        text = tf.strings.substr(tf.gather(context, rows), begins, tf.maximum(ends - begins, 0), unit="UTF8_CHAR")
        keep = indices((score >= 0) & ~tf.strings.regex_full_match(text, r"[\s\p{Z}\x{1C}-\x{1F}\x{85}]*"))
        rows, score, logit, begins, ends, text = (tf.gather(x, keep) for x in (rows, score, logit, begins, ends, text))
        key = tf.strings.join([tf.strings.as_string(rows), tf.strings.lower(text, encoding="utf-8")], " ")
        different, group = tf.unique(key)
        count = tf.size(different)
        index = tf.range(tf.size(group))
        first = tf.math.unsorted_segment_min(index, group, count)  # of equal answers
        total = tf.math.unsorted_segment_sum(tf.cast(score, tf.float64), group, count)
        highest = tf.math.unsorted_segment_max(logit, group, count)
        owner, size = tf.gather(rows, first), tf.size(context)
        best = tf.math.unsorted_segment_max(total, owner, size)
        winner = tf.where(total == tf.gather(best, owner), tf.range(count), count)
        chosen = tf.math.unsorted_segment_min(winner, owner, size)
        found = chosen < count

        def pick(values: tf.Tensor, default: str | float) -> tf.Tensor:
            filler = tf.constant([default], values.dtype)
            return tf.gather(tf.concat([values, filler], 0), tf.where(found, chosen, count))

        return {
            "answer": pick(tf.gather(text, first), ""),
            "score": tf.cast(pick(total, 0.0), tf.float32),
            "start": pick(tf.gather(begins, first), 0),
            "end": pick(tf.gather(ends, first), 0),
            "logit": pick(highest, 0.0),
            "logit_max": tf.math.unsorted_segment_max(highest, owner, size),
        }


def best_spans(
    starts: tf.Tensor, ends: tf.Tensor, is_context: tf.Tensor, longest: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return score, first token and last token of the most likely spans of each row, best first, [W, C] each.

    Args:
        starts: float32 [W, T], start probabilities.
        ends: float32 [W, T], end probabilities.
        is_context: bool [W, T], tokens that can be part of a span.
        longest: Maximum number of tokens in a span.
    """
    columns = tf.shape(starts)[1]
    index = tf.expand_dims(tf.range(columns), 1) + tf.range(longest)  # [T, L], the last token of each span
    inside, index = index < columns, tf.minimum(index, columns - 1)
    valid = tf.gather(is_context, index, axis=1) & inside & tf.expand_dims(is_context, 2)  # [W, T, L]
    scores = tf.where(valid, tf.expand_dims(starts, 2) * tf.gather(ends, index, axis=1), -1.0)
    scores = tf.reshape(scores, [tf.shape(scores)[0], columns * longest])
    best, place = tf.math.top_k(scores, tf.minimum(CANDIDATES, tf.shape(scores)[1]))
    first = place // longest
    return best, first, first + place % longest
