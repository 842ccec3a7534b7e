"""Train a bi-encoder with in-batch negatives: one encoder of questions and passages, or one for each (DPR)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from duonlp.config import TransformerConfig
from duonlp.heads import ROW_MASK
from duonlp.training.fit_config import FitConfig
from duonlp.training.in_batch_negatives import (
    CANDIDATES,
    InBatchNegatives,
    check_biencoder,
    check_retrieval_batch,
    in_batch_terms,
    passage_inputs,
    pool,
    save_biencoder,
)
from duonlp.training.result import FitResult
from duonlp.typing import Batch, BatchStream, Tokenizer
from jaxnlp import losses, ops
from jaxnlp.pretrained import Params
from jaxnlp.training.fit import train
from jaxnlp.training.loop import filled
from jaxnlp.training.mesh import BATCH, make_mesh, shard_rows
from jaxnlp.training.model import Trainable, make_trainable, parameter_reader
from jaxnlp.training.objectives import NamedTerms, Objective
from jaxnlp.training.step import Step, check_can_learn, make_plan

PASSAGE_MODEL = "passage_model"
"""Key of the passage model's parameters among the trained ones; all others are the question model's."""


class BiEncoder:
    """A question encoder and a passage encoder, which may be one model.

    Args:
        question_model: Base model that encodes questions.
        passage_model: Base model that encodes passages; None for the same.
        settings: Pooling, and the loss of the training; None for those of ``InBatchNegatives.for_model``.

    Attributes:
        head: Head of the question model.
        config: Configuration of the question model.

    Raises:
        InputError: A model has a head, or the two do not fit.
    """

    def __init__(self, question_model: Any, passage_model: Any = None, settings: InBatchNegatives | None = None):
        self.question_model, self.passage_model = question_model, passage_model
        self.settings = InBatchNegatives.for_model(question_model) if settings is None else settings
        check_biencoder(question_model, passage_model, self.settings)

    @property
    def head(self) -> str:
        """Head of the question model."""
        return self.question_model.head

    @property
    def config(self) -> TransformerConfig:
        """Configuration of the question model."""
        return self.question_model.config

    def with_parameters(self, step: "BiEncoderStep", params: Params) -> "BiEncoder":
        """Return a bi-encoder with trained parameters, from :meth:`BiEncoderStep.model_parameters`."""
        passages = step.objective.passage_model
        params = dict(params)
        passage_params = params.pop(PASSAGE_MODEL, None)
        question = filled(step.trainable, self.question_model, params)
        passage = None if passages is None else filled(passages, self.passage_model, passage_params)
        return BiEncoder(question, passage, self.settings)

    def save_pretrained(self, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Write both models in Hugging Face layout; see :func:`duonlp.training.in_batch_negatives.save_biencoder`."""
        save_biencoder(self, folder, tokenizer)


@dataclass(frozen=True)
class InBatchLoss(Objective):
    """The cross-entropy of each question's positive passage among all passages of the global batch.

    Attributes:
        settings: Settings of the loss.
        passage_model: The prepared passage model, whose parameters are trained beside the question model's; None for the same.
        axes: Axes of the mesh over which each device has rows of its own (pmap); None if arrays are global.
    """

    settings: InBatchNegatives
    passage_model: Trainable | None = None
    axes: tuple[str, ...] | None = None

    def terms(
        self, model: Trainable, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return the only term; ``params`` may have the passage model's under "passage_model"."""
        key, passage_key = (None, None) if key is None else jax.random.split(key)
        passage_model = self.passage_model or model
        passage_params = params if self.passage_model is None else params[PASSAGE_MODEL]
        inputs = passage_inputs(passage_model.config, batch)
        count = len(batch[CANDIDATES])
        flat = {name: shard_rows(x.reshape(-1, *x.shape[2:]), model.mesh) for name, x in inputs.items()}  # [B x P, S]
        questions = pool(ops, self.settings, model.outputs(params, batch, key), batch.get("attention_mask"))
        outputs = passage_model.outputs(passage_params, flat, passage_key)
        passages = pool(ops, self.settings, outputs, flat.get("attention_mask"))  # [B x P, D]
        own_rows = batch.get(ROW_MASK, jnp.ones(count, jnp.int32))
        candidates, rows, first = batch[CANDIDATES], own_rows, 0
        if self.axes is not None:
            passages, candidates, rows = (
                jax.lax.all_gather(x, self.axes, tiled=True) for x in (passages, candidates, own_rows)
            )
            first = jax.lax.axis_index(self.axes) * count
        scores = self.settings.scale * questions @ passages.T  # [B, G x P]
        terms = in_batch_terms(ops, losses, scores, batch, candidates, rows, first, own_rows)
        return {name: (*term, 1.0) for name, term in terms.items()}

    def describe(self) -> dict[str, Any]:
        """Return the settings and the passage model."""
        return self.settings.describe(self.passage_model)

    def check(self, model: Trainable, batch: Batch) -> None:
        """Raise InputError unless the batch is one of RetrievalBatches for the models."""
        check_retrieval_batch(model.config, (self.passage_model or model).config, batch)


class BiEncoderStep(Step):
    """The step of :func:`fit_biencoder` over a mesh.

    Args:
        model: The bi-encoder; it is not changed.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: A model has a head or no float32 parameters, the two do not fit, or a setting does not suit the loss.
    """

    def __init__(self, model: BiEncoder, config: FitConfig, mesh: Mesh | None = None):
        question, passage = model.question_model, model.passage_model
        check_biencoder(question, passage, model.settings, config)
        mesh, prepared, extra = make_mesh(config.mesh) if mesh is None else mesh, None, {}
        check_can_learn(question, needs_labels=False)
        if passage is not None:
            check_can_learn(passage, needs_labels=False)
            inner = mesh if config.parallelism == "jit" else None
            prepared = make_trainable(passage, scan=config.scan, remat=config.remat, mesh=inner)
            extra = {PASSAGE_MODEL: prepared.parameters(parameter_reader(passage))}
        axes = BATCH if config.parallelism == "pmap" else None
        self.objective = InBatchLoss(model.settings, prepared, axes)
        super().__init__(make_plan(question, self.objective, config, mesh), question, mesh, config.seed, extra=extra)

    def _unstack(self, params: Params) -> Params:
        passages = self.objective.passage_model
        extra = {} if passages is None else {PASSAGE_MODEL: passages.unstack(params[PASSAGE_MODEL])}
        return super()._unstack(params) | extra


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
    mesh: Mesh | None = None,
    data: Mapping[str, Any] | None = None,
    log: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train encoders of questions and passages with in-batch negatives, over all devices of all hosts.

    Each question's positive passage is to score higher than all other passages of the global batch (Karpukhin et al. 2020),
    those of other devices and hosts included. It does all that ``jaxnlp.training.fit`` does.

    Args:
        question_model: Base model, or LazyModel, that encodes questions; it is not changed.
        batches: RetrievalBatches of duonlp.data.questions, or others with the same arrays.
        config: Settings of the run; the defaults of FitConfig if None. ``accumulation`` must be 1.
        folder: As for fit, like the arguments that are not listed here. Two models are saved as ``question_encoder`` and
            ``context_encoder`` in ``best/``, one as ``best/`` itself, with the files of sentence-transformers.
        passage_model: Base model, or LazyModel, that encodes passages; None to train one model for both.
        settings: Pooling and loss; None for DPR's, or for those of the sentence-transformers checkpoint.
        evaluate: ``(BiEncoder) -> {name: number}``, further metrics of the evaluations.
        tokenizer: Tokenizer to save with the best models.

    Returns:
        A FitResult, whose model is a :class:`BiEncoder`.

    Raises:
        InputError: A model has a head, the two do not fit, or ``accumulation`` is not 1; otherwise as for fit.
    """
    config, model = config or FitConfig(), BiEncoder(question_model, passage_model, settings)
    step = BiEncoderStep(model, config, mesh)
    return train(
        step, model, batches, config, folder, validation=validation, evaluate=evaluate, on_evaluation=on_evaluation,
        tokenizer=tokenizer, data=data, log={"description": "training a bi-encoder", **(log or {})},
    )  # fmt: skip
