"""Train a bi-encoder with in-batch negatives: each question's passages against those of all other questions of a batch.

Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906 (DPR); for one encoder of both, MultipleNegativesRankingLoss of
sentence-transformers (Henderson et al. 2017, https://arxiv.org/abs/1705.00652). Both engines compute the loss with these
functions over ``ops``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.data.questions.retrieval_batches import CANDIDATES, EMPTY, PASSAGE, POSITIVES
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, outputs_of
from duonlp.inputs import check_inputs, main_input, model_inputs
from duonlp.labels import WEIGHTS
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Array, Batch, Ops
from duonlp.util.json_text import to_json

EXCLUDED = -1e9
"""Score of a passage that is no negative of a question."""

LOSS = "loss"
"""Name of the only term."""

POOLINGS = ("mean", "cls", "pooler")


@dataclass(frozen=True)
class InBatchNegatives:
    """Settings of the loss: the cross-entropy of scale x inner product over all passages of a batch.

    Attributes:
        pooling: Vector of a text: "mean" of its tokens' last hidden states, that of the first token ("cls"), or the model's own
            pooled output ("pooler", for models that were trained with it, as DPR).
        normalize: Whether vectors are scaled to unit length, so that their inner product is the cosine.
        scale: Factor of the inner products: 1 for DPR, and 20 for cosines in sentence-transformers.

    Raises:
        InputError: The pooling is unknown, normalize is not a bool, or the scale is not a positive number.
    """

    pooling: str = "mean"
    normalize: bool = True
    scale: float = 20.0

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling is {self.pooling!r}; it must be one of {', '.join(POOLINGS)}")
        if not isinstance(self.scale, Real) or not 0 < self.scale < float("inf"):
            raise InputError(f"scale is {self.scale!r}; it must be a positive number")
        if not isinstance(self.normalize, bool):
            raise InputError(f"normalize is {self.normalize!r}; it must be True or False")

    @classmethod
    def for_model(cls, model: Any) -> "InBatchNegatives":
        """Return the settings that suit a model: DPR's, or those of the sentence-transformers checkpoint it is from.

        Raises:
            InputError: It is no model, or the checkpoint pools in another way or has layers after the pooling.
        """
        from duonlp.tasks.sentence_config import l2_normalize, read_sentence_config

        _check_model(model)
        folder = getattr(model, "folder", None)
        sentence = read_sentence_config(None if folder is None else Path(folder))
        if model.config.pooler_embeds and not sentence.from_files:
            return cls("pooler", normalize=False, scale=1.0)
        if len(sentence.pooling) > 1 or sentence.pooling[0] not in POOLINGS:
            raise InputError(
                f"{folder} pools by {' and '.join(sentence.pooling)}, which cannot be trained; use a checkpoint with mean or cls"
            )
        if any(step is not l2_normalize for step in sentence.steps):
            raise InputError(
                f"{folder} has a Dense layer after the pooling, which cannot be trained; use another checkpoint"
            )
        if sentence.similarity == "cosine":
            return cls(sentence.pooling[0])
        return cls(sentence.pooling[0], normalize=bool(sentence.steps), scale=1.0)

    def check(self, config: TransformerConfig) -> None:
        """Raise InputError if a model has no pooled output that texts are embedded by, and the pooling is that."""
        if self.pooling == "pooler" and not config.pooler_embeds:
            raise InputError(
                f"pooling is 'pooler', but a {config.model_type} is not embedded by its pooled output; use 'mean' or 'cls'"
            )

    def describe(self, passage_model: Any) -> dict[str, Any]:
        """Return entries of run.json: the settings, and the configuration of the passage model, None for a shared one."""
        from duonlp import architectures

        passages = None if passage_model is None else architectures.hf_config(passage_model.config, passage_model.head)
        return {"in_batch_negatives": asdict(self), "passage_model": passages}


def pool(ops: Ops, settings: InBatchNegatives, outputs: Mapping[str, Any], mask: Array) -> Array:
    """Return the vectors of texts, float32 [n, D].

    Args:
        ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
        settings: The settings.
        outputs: Outputs of a base model: ``last_hidden_state`` [n, T, H], and ``pooler_output`` [n, D] where that is the vector.
        mask: Attention mask [n, T], or None if all tokens are real.
    """
    if settings.pooling == "pooler":
        vectors = ops.cast(outputs["pooler_output"], "float32")
    else:
        hidden = ops.cast(outputs["last_hidden_state"], "float32")
        if settings.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            weights = ops.cast(hidden[..., 0] == hidden[..., 0] if mask is None else mask != 0, "float32")  # [n, T]
            total = ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1e-9)
            vectors = ops.sum(hidden * ops.expand_dims(weights, -1), axis=1) / total
    if not settings.normalize:
        return vectors
    squared = ops.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors / ops.sqrt(ops.maximum(squared, 1e-24))


def in_batch_terms(
    ops: Ops,
    losses: ModuleType,
    scores: Array,
    batch: Batch,
    candidates: Array,
    rows: Array,
    first: Array = 0,
    own_rows: Array = None,
) -> dict[str, tuple[Array, Array]]:
    """Return the term of the loss of some rows of a global batch, to be divided once by the count of all rows.

    Args:
        ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
        losses: ``tfnlp.losses`` or ``jaxnlp.losses``.
        scores: Scaled inner products of the questions with all passages of the global batch, float32 [B, G x P].
        batch: The rows' arrays [B, ...].
        candidates: Numbers of all passages, int32 [G, P].
        rows: [G], 0 for rows of the global batch that fill it up.
        first: Index of the first of these rows in the global batch, int32 [].
        own_rows: [B], the part of `rows` that belongs to these rows; None if these are all.

    Returns:
        {"loss": (sum, count)}.
    """
    count, passages = ops.size(scores, 0), ops.size(candidates, 1)
    own = ops.cast((ops.arange(count) + first) * passages, "int32")  # [B], index of each question's positive passage
    everything = ops.reshape(candidates, (-1,))  # [G x P]
    is_real = (everything != EMPTY) & ops.repeat(ops.cast(rows, "bool"), passages, axis=0)
    known = ops.expand_dims(batch[POSITIVES], -1)  # [B, K, 1]
    is_positive = ops.any(known == ops.expand_dims(everything, (0, 1)), axis=1)  # [B, G x P]
    is_own = ops.expand_dims(ops.arange(ops.size(scores, 1)), 0) == ops.expand_dims(own, 1)
    allowed = (ops.expand_dims(is_real, 0) & ~is_positive) | is_own
    labels = ops.where(ops.cast(rows if own_rows is None else own_rows, "bool"), own, IGNORED)
    return {LOSS: losses.cross_entropy_sum(ops.where(allowed, scores, EXCLUDED), labels, batch.get(WEIGHTS))}


def passage_inputs(config: TransformerConfig, batch: Batch) -> dict[str, Array]:
    """Return the passage encoder's inputs of a batch, [B, P, ...] each, under their plain names.

    Raises:
        InputError: The batch has no passages.
    """
    names = {name.removeprefix(PASSAGE): value for name, value in batch.items() if name.startswith(PASSAGE)}
    if main_input(config) not in names:
        raise InputError(
            f"the batch has {', '.join(batch)}; in-batch negatives need {PASSAGE}{main_input(config)}: pass RetrievalBatches"
        )
    return {spec.name: names[spec.name] for spec in config.inputs if spec.name in names}


def check_retrieval_batch(question: TransformerConfig, passage: TransformerConfig, batch: Batch) -> None:
    """Raise InputError unless a batch of NumPy arrays is one of RetrievalBatches for the two models."""
    if missing := [name for name in (CANDIDATES, POSITIVES) if name not in batch]:
        raise InputError(f"the batch has no {' and '.join(missing)}; pass RetrievalBatches of duonlp.data.questions")
    check_inputs(question, "base", model_inputs(question, batch))
    inputs = {name: np.asarray(value) for name, value in passage_inputs(passage, batch).items()}
    shape = inputs[main_input(passage)].shape
    if len(shape) != 3 or shape[:2] != np.shape(batch[CANDIDATES]):
        raise InputError(
            f"{PASSAGE}{main_input(passage)} has shape {shape} and {CANDIDATES} {np.shape(batch[CANDIDATES])}; they must be "
            "[B, P, length] and [B, P]"
        )
    check_inputs(passage, "base", {name: value.reshape(-1, *value.shape[2:]) for name, value in inputs.items()})


def check_biencoder(
    question_model: Any, passage_model: Any, settings: InBatchNegatives, config: FitConfig | None = None
) -> None:
    """Raise InputError unless two models, or one for both, can be trained with in-batch negatives.

    Args:
        question_model: The question encoder.
        passage_model: The passage encoder, or None for the same.
        settings: Settings of the loss.
        config: Settings of the run, if there is one.
    """
    models = [question_model] if passage_model is None else [question_model, passage_model]
    for model in models:
        _check_model(model)
        if outputs_of(model.head, model.config) or HEADS[model.head].layers:
            raise InputError(f"a {model.head} model is no encoder; load it with AutoModel, without a head")
        settings.check(model.config)
    sizes = {vector_size(model.config, settings) for model in models}
    if len(sizes) > 1:
        raise InputError(
            f"the vectors of the two models have {' and '.join(map(str, sorted(sizes)))} values; use models of one size"
        )
    if config is None:
        return
    if config.accumulation != 1:
        raise InputError(
            f"accumulation is {config.accumulation}, but a question's negatives are the passages of its whole batch; set it "
            "to 1, and use a smaller batch_size or more devices"
        )
    for name, default in (("layer_decay", 1), ("label_smoothing", 0)):
        if getattr(config, name) != default and (len(models) > 1 or name == "label_smoothing"):
            raise InputError(
                f"{name} is {getattr(config, name)}, which a bi-encoder does not support; leave it at {default}"
            )


def _check_model(model: Any) -> None:
    """Raise InputError for what is no model, such as a folder."""
    if not hasattr(model, "config"):
        raise InputError(f"{model!r} is not a model; load an encoder with AutoModel.from_pretrained")


def vector_size(config: TransformerConfig, settings: InBatchNegatives) -> int:
    """Return the length of a model's vectors."""
    return config.pooled_size if settings.pooling == "pooler" else config.hidden_size


def save_biencoder(model: Any, folder: str | Path, tokenizer: Any = None) -> None:
    """Write a BiEncoder of either engine: two models as ``question_encoder`` and ``context_encoder``, one as the folder itself.

    Args:
        model: The bi-encoder.
        folder: Folder to write to.
        tokenizer: Tokenizer to save with each model.
    """
    folder, towers = Path(folder), {"": model.question_model}
    if model.passage_model is not None:
        towers = {"question_encoder": model.question_model, "context_encoder": model.passage_model}
    for name, tower in towers.items():
        tower.save_pretrained(folder / name, tokenizer)
        save_sentence_files(getattr(tower, "folder", None), folder / name, model.settings)


def save_sentence_files(source: str | Path | None, folder: str | Path, settings: InBatchNegatives) -> None:
    """Write the files beside a checkpoint that make it one of sentence-transformers; nothing for DPR's own pooling.

    Args:
        source: Folder of the checkpoint that the training started from, whose files are copied if it has modules.json; or None.
        folder: Folder of the trained checkpoint.
        settings: Settings of the training, from which they are made otherwise.
    """
    source, folder = None if source is None else Path(source), Path(folder)
    if settings.pooling == "pooler" or (source is not None and source.resolve() == folder.resolve()):
        return
    if source is not None and (source / "modules.json").is_file():
        names = ["modules.json", "config_sentence_transformers.json"]
        names += [path.name for path in source.glob("sentence_*_config.json")]
        names += [str(path.relative_to(source)) for path in source.glob("*_*/config.json")]
        files = {name: (source / name).read_text(encoding="utf-8") for name in names if (source / name).is_file()}
    else:
        kinds = ["Transformer", "Pooling"] + ["Normalize"] * settings.normalize
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        flags = {
            "pooling_mode_cls_token": settings.pooling == "cls",
            "pooling_mode_mean_tokens": settings.pooling == "mean",
        }
        similarity = "cosine" if settings.normalize else "dot"
        files = {
            "modules.json": to_json(modules, indent=2),
            "1_Pooling/config.json": to_json(flags, indent=2),
            "config_sentence_transformers.json": to_json({"similarity_fn_name": similarity}, indent=2),
        }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)  # it can be a hard link to the one it replaces
        (folder / name).write_text(text, encoding="utf-8")
