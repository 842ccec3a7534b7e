"""Endpoints of classifiers."""

import tensorflow as tf

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.base import score_function
from duonlp.tasks.text_classification import TextClassificationTask
from tfnlp.heads import Model
from tfnlp.serving.endpoint import Endpoint


class TextClassification(Endpoint[TextClassificationTask]):
    """Labels with scores.

    Args:
        model: See Endpoint.
        pipe: See Endpoint.
        pairs: Whether inputs are pairs of texts.

    Raises:
        InputError: The model classifies by the last token, and so cannot read padded batches.
    """

    task = "text-classification"
    options = ("pairs",)

    def __init__(self, model: Model, pipe: Pipeline, pairs: bool = False) -> None:
        super().__init__(model, pipe)
        if model.config.classification.token == "last":
            raise InputError(
                "the model classifies by the last token even if it is padding, so it cannot read batches of texts"
            )
        self.inputs = ("text", "text_pair") if pairs else ("text",)

    def serve(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return ``label`` string and ``score`` float32, [B] or with ``top_k`` [B, k]."""
        options, config = self._options, self.model.config
        logits = tf.cast(self.forward(self.encode(*texts))["logits"], tf.float32)
        scores = {"sigmoid": tf.sigmoid, "softmax": tf.nn.softmax, "none": tf.identity}[
            score_function(config, options.function_to_apply)
        ](logits)
        only_best = isinstance(options.top_k, str)  # unset
        count = 1 if only_best else min(options.top_k or config.num_labels, config.num_labels)
        best, index = tf.math.top_k(scores, count)
        labels = tf.gather(tf.constant(list(config.labels)), index)
        return {"label": labels[:, 0], "score": best[:, 0]} if only_best else {"label": labels, "score": best}
