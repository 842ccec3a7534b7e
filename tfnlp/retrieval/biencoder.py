"""Train a bi-encoder with in-batch negatives: one encoder of questions and passages, or one for each (DPR)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.inputs import model_inputs
from duonlp.training.fit_config import FitConfig
from duonlp.training.in_batch_negatives import (
    CANDIDATES,
    LOSS,
    InBatchNegatives,
    check_biencoder,
    check_retrieval_batch,
    in_batch_terms,
    passage_inputs,
    pool,
    save_biencoder,
)
from duonlp.training.result import FitResult
from duonlp.typing import BatchStream, Tokenizer
from tfnlp import losses, ops
from tfnlp.kernels.choice import trains_with_xla
from tfnlp.pretrained import parameter_tree
from tfnlp.steps.terms import Terms
from tfnlp.trainer_mixin import TrainerMixin
from tfnlp.training.fit import train


class BiEncoder(TrainerMixin, keras.Model):
    """A question encoder and a passage encoder, which may be one model: ``compile(optimizer)``, then ``fit`` and ``evaluate``.

    Batches are those of RetrievalBatches (duonlp.data.questions). The loss of a batch is the cross-entropy of each question's
    positive passage among all passages of the global batch, those of other replicas and workers included.

    Args:
        question_model: Base model that encodes questions, created under the strategy to train with.
        passage_model: Base model that encodes passages; None for the same.
        settings: Pooling, and the loss of the training; None for those of ``InBatchNegatives.for_model``.

    Attributes:
        head: Head of the question model.
        config: Configuration of the question model.

    Raises:
        InputError: A model has a head, or the two do not fit.
    """

    def __init__(self, question_model: Any, passage_model: Any = None, settings: InBatchNegatives | None = None):
        settings = InBatchNegatives.for_model(question_model) if settings is None else settings
        check_biencoder(question_model, passage_model, settings)
        with question_model.distribute_strategy.scope():
            super().__init__(dtype=question_model.dtype_policy, autocast=False, name=f"{question_model.name}_biencoder")
            self.question_model, self.passage_model = question_model, passage_model
        self.settings = settings
        self.built = True

    @property
    def head(self) -> str:
        """Head of the question model."""
        return self.question_model.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the question model."""
        return self.question_model.config

    def parameter_tree(self) -> dict[str, keras.Variable]:
        """Return the parameters of the question model by path, and those of the passage model below "passage_model"."""
        tree = parameter_tree(self.question_model)
        passages = {} if self.passage_model is None else parameter_tree(self.passage_model)
        return tree | {f"passage_model/{path}": variable for path, variable in passages.items()}

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> dict[str, Any]:
        """Return the question model's outputs; of a batch, it reads the inputs it takes."""
        return self.question_model(model_inputs(self.config, inputs), training=training)

    def compile(
        self, optimizer: keras.optimizers.Optimizer | str = "adamw", *, accumulation: int = 1, jit_compile: bool | str = "auto",
        **options: Any,
    ) -> None:  # fmt: skip
        """Prepare for training.

        Args:
            optimizer: As for keras.Model.compile, or from tfnlp.training.make_optimizer.
            accumulation: 1; the negatives of a question are the passages of its whole batch.
            jit_compile: Whether to compile the step with XLA, which a single replica alone can. "auto" does then,
                unless TensorFlow's own kernels are faster (tfnlp.kernels.choice.trains_with_xla).
            options: Options of keras.Model.compile, and ``seed``.

        Raises:
            InputError: `accumulation` is not 1, `jit_compile` is True with several replicas, or there is another loss.
        """
        if options.get("loss") is not None:
            raise InputError(
                "a BiEncoder has its own loss; leave out loss=, or train a model on its own with fit(loss=...)"
            )
        config = FitConfig(accumulation=accumulation, label_smoothing=options.get("label_smoothing", 0.0))
        check_biencoder(self.question_model, self.passage_model, self.settings, config)
        several = self._replicas() > 1
        if jit_compile is True and several:
            raise InputError(
                f"jit_compile is True with {self._replicas()} replicas, which exchange passages within a step; leave it at 'auto'"
            )
        if jit_compile == "auto":
            jit_compile = not several and trains_with_xla(self.question_model.compute_dtype)
        super().compile(optimizer, jit_compile=jit_compile, **options)

    def check_batch(self, batch: Any, y: Any = None) -> None:
        """Raise InputError unless a batch of NumPy arrays is one of RetrievalBatches for the models."""
        check_retrieval_batch(self.config, (self.passage_model or self.question_model).config, batch)

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return model_inputs(self.config, batch)

    def _standard_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def _count_terms(self, batch: Any, exact: bool = True) -> dict[str, tf.Tensor]:
        return {LOSS: tf.reduce_sum(tf.cast(_row_mask(batch), tf.float32))}

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        passage_model, candidates = self.passage_model or self.question_model, batch[CANDIDATES]
        inputs = passage_inputs(passage_model.config, batch)
        flat = {name: tf.reshape(x, [-1, ops.size(x, 2)]) for name, x in inputs.items()}  # [B x P, S]
        outputs = self(batch, training=training)
        questions = pool(ops, self.settings, outputs, batch.get("attention_mask"))
        passages = pool(ops, self.settings, passage_model(flat, training=training), flat.get("attention_mask"))
        own_rows, first = _row_mask(batch), 0
        rows = own_rows
        if self._replicas() > 1:
            replica = tf.distribute.get_replica_context()
            counts = replica.all_gather(tf.expand_dims(ops.size(own_rows, 0), 0), axis=0)
            first = tf.reduce_sum(counts[: replica.replica_id_in_sync_group])
            passages, candidates, rows = (replica.all_gather(x, axis=0) for x in (passages, candidates, own_rows))
        scores = self.settings.scale * tf.matmul(questions, passages, transpose_b=True)  # [B, G x P]
        terms = in_batch_terms(ops, losses, scores, batch, candidates, rows, first, own_rows)
        return terms, outputs

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write both models in Hugging Face layout; see :func:`duonlp.training.in_batch_negatives.save_biencoder`."""
        save_biencoder(self, folder, tokenizer)

    def get_config(self) -> dict[str, Any]:
        """Raise InputError, since a BiEncoder cannot be recreated without its models."""
        raise InputError(
            "a BiEncoder cannot be saved as a whole; use save_pretrained, or, to resume training, save_weights"
        )


def _row_mask(batch: Mapping[str, Any]) -> tf.Tensor:
    """Return int32 [B], 0 for rows that fill up the batch."""
    if ROW_MASK in batch:
        return tf.cast(batch[ROW_MASK], tf.int32)
    return tf.ones_like(batch[CANDIDATES][:, 0])


def fit_biencoder(
    question_model: Any,
    batches: BatchStream,
    config: FitConfig | None = None,
    folder: str | Path | None = None,
    *,
    passage_model: Any = None,
    settings: InBatchNegatives | None = None,
    validation: BatchStream | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    tokenizer: Tokenizer | None = None,
    jit_compile: bool | str = "auto",
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train encoders of questions and passages with in-batch negatives: ``tfnlp.training.fit`` with a :class:`BiEncoder`.

    Each question's positive passage is to score higher than all other passages of the global batch (Karpukhin et al. 2020).

    Args:
        question_model: Base model that encodes questions; it is trained in place.
        batches: RetrievalBatches of duonlp.data.questions, or others with the same arrays.
        config: Settings of the run; the defaults of FitConfig if None. ``accumulation`` must be 1.
        folder: As for fit, like the arguments that are not listed here. Two models are saved as ``question_encoder`` and
            ``context_encoder`` in ``best/``, one as ``best/`` itself, with the files of sentence-transformers.
        passage_model: Base model that encodes passages, trained in place; None to train one model for both.
        settings: Pooling and loss; None for DPR's, or for those of the sentence-transformers checkpoint.
        evaluate: ``(BiEncoder) -> {name: number}``, further metrics of the evaluations.
        tokenizer: Tokenizer to save with the best models.

    Returns:
        A FitResult, whose model is a :class:`BiEncoder`.

    Raises:
        InputError: A model has a head, the two do not fit, or ``accumulation`` is not 1; otherwise as for fit.
    """
    config, model = config or FitConfig(), BiEncoder(question_model, passage_model, settings)
    check_biencoder(question_model, passage_model, model.settings, config)
    return train(
        model, batches, config, folder, description=model.settings.describe(passage_model), validation=validation,
        evaluate=evaluate, on_evaluation=on_evaluation, tokenizer=tokenizer, data=data, jit_compile=jit_compile,
        log={"description": "training a bi-encoder", **(log or {})},
    )  # fmt: skip
