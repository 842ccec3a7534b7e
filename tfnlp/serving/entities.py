"""Endpoint of token classification."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.token_classification import TokenClassificationTask, split_tag, tokenizer_limit
from tfnlp.heads import Model
from tfnlp.serving.endpoint import Endpoint
from tfnlp.text.characters import changes, dense, indices, places, row_ids
from tfnlp.text.detokenizer import Detokenizer
from tfnlp.text.tokenizer import Rows

STRATEGIES = ("none", "simple")


class TokenClassification(Endpoint[TokenClassificationTask]):
    """Labelled tokens, or the entities that they form.

    Args:
        model: See Endpoint.
        pipe: See Endpoint.

    Raises:
        InputError: The options are not supported in a graph.
    """

    task = "token-classification"

    def __init__(self, model: Model, pipe: Pipeline) -> None:
        super().__init__(model, pipe)
        options = self._options
        if options.aggregation_strategy not in STRATEGIES or options.stride is not None or options.is_split_into_words:
            raise InputError(
                f"aggregation_strategy={options.aggregation_strategy!r}, stride={options.stride} and is_split_into_words="
                f"{options.is_split_into_words} cannot be exported together; use aggregation_strategy 'none' or 'simple' alone"
            )
        self._detokenizer = Detokenizer(pipe.tokenizer, skip_special_tokens=False)
        vocabulary = pipe.tokenizer.get_vocab()
        self._names = np.full(max(vocabulary.values()) + 1, b"", object)
        for token, number in vocabulary.items():
            self._names[number] = token.encode()
        unknown = pipe.tokenizer.unk_token_id
        self._unknown = -1 if unknown is None else unknown
        labels = list(model.config.labels)
        split = [split_tag(label) for label in labels]
        tags = sorted({tag for _, tag in split})
        self._begins = np.array([begins for begins, _ in split], bool)
        self._tags = np.array([tags.index(tag) for _, tag in split], np.int32)
        groups = [label.split("-", 1)[-1] for label in labels]
        self._labels = np.array(labels if options.aggregation_strategy == "none" else groups, object)
        self._ignored = np.array([label in options.ignore_labels for label in self._labels], bool)

    def encode(self, *texts: tf.Tensor) -> Rows:
        """Return the rows of texts, truncated to the tokenizer's limit, as by the pipeline."""
        return self.tokenizer.rows(*texts, max_length=tokenizer_limit(self._task.tokenizer))

    def serve(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the entities of each text, [B, N] each, in order, and their number, int32 [B]."""
        text = tf.strings.unicode_transcode(texts[0], "UTF-8", "UTF-8")
        rows = self.encode(text)
        logits = tf.cast(self.forward(rows)["logits"], tf.float32)
        owners = row_ids(rows.lengths)
        index = column = places(rows.lengths, owners)
        if self._task.padding_side == "left":
            column += tf.shape(logits)[1] - tf.gather(rows.lengths, owners)
        scores = tf.nn.softmax(tf.gather_nd(logits, tf.stack([owners, column], 1)))  # [n, labels]
        is_text = indices(rows.sequences >= 0)
        scores, index, *columns = (
            tf.gather(x, is_text) for x in (scores, index, owners, rows.ids, rows.begins, rows.ends)
        )
        tokens = Labelled(tf.argmax(scores, 1, output_type=tf.int32), tf.reduce_max(scores, 1), *columns)
        raw = tf.strings.substr(
            tf.gather(text, tokens.owners), tokens.begins, tokens.ends - tokens.begins, unit="UTF8_CHAR"
        )
        if self._options.aggregation_strategy == "simple":
            names, result = self._groups(tokens, raw)
        else:
            words = tf.where(tokens.ids == self._unknown, raw, tf.gather(tf.constant(self._names), tokens.ids))
            names = tokens.labels, tokens.owners
            result = {"score": tokens.scores, "index": index, "word": words, "start": tokens.begins, "end": tokens.ends}
        labels, owners = names
        kept = indices(~tf.gather(tf.constant(self._ignored), labels))
        name = "entity" if self._options.aggregation_strategy == "none" else "entity_group"
        result = {name: tf.gather(tf.constant(self._labels), labels)} | result
        owners = tf.gather(owners, kept)
        count = tf.math.unsorted_segment_sum(tf.ones_like(owners), owners, tf.size(text))
        padded = {
            key: dense(tf.gather(value, kept), count, "" if value.dtype == tf.string else 0) for key, value in result.items()
        }  # fmt: skip
        return padded | {"count": count}

    def _groups(self, tokens: "Labelled", raw: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
        """Return label and text of each entity, and its other properties."""
        tags = tf.gather(tf.constant(self._tags), tokens.labels)
        starts = changes(tokens.owners) | changes(tags) | tf.gather(tf.constant(self._begins), tokens.labels)
        group = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        spelled = tf.where(
            tokens.ids == self._unknown,
            self._detokenizer.spelled_text(raw, starts),
            self._detokenizer.spelled(tokens.ids, starts),
        )
        first = indices(starts)
        return (tf.gather(tokens.labels, first), tf.gather(tokens.owners, first)), {
            "score": tf.math.segment_mean(tokens.scores, group),
            "word": self._detokenizer.join(spelled, group, tf.size(first)),
            "start": tf.gather(tokens.begins, first),
            "end": tf.math.segment_max(tokens.ends, group),
        }


class Labelled(NamedTuple):
    """Tokens with labels, all [n].

    Attributes:
        labels: int32, number of each one's label.
        scores: float32, its score.
        owners: int32, number of the text.
        ids: int32.
        begins: int32, see Tokens.
        ends: int32.
    """

    labels: tf.Tensor
    scores: tf.Tensor
    owners: tf.Tensor
    ids: tf.Tensor
    begins: tf.Tensor
    ends: tf.Tensor
