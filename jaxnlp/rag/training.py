"""The optimizer step of RAG models: the question encoder and the generator are trained, the documents' vectors are not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from duonlp.rag import Marginal, RagConfig
from duonlp.rag.forward import question_vectors
from duonlp.rag.inputs import check_batch
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import check_layer_decay
from duonlp.typing import Array, Batch
from jaxnlp import ops
from jaxnlp.pretrained import Params
from jaxnlp.training.mesh import BATCH, PyTree, make_mesh
from jaxnlp.training.model import Trainable, make_trainable
from jaxnlp.training.objectives import NamedTerms, Objective
from jaxnlp.training.step import PROGRAM_SETTINGS, Plan, Step, check_can_learn


@dataclass(frozen=True)
class TrainableRag:
    """A RAG model prepared for training, without its parameters; see jaxnlp.training.model.Trainable.

    Attributes:
        config: Configuration of the model.
        head: Name of its head.
        marginal: How it marginalizes over documents.
        question_encoder: The prepared question encoder.
        generator: The prepared generator.
        mesh: Mesh of the parameters; None for no sharding constraints.
    """

    config: RagConfig
    head: str
    marginal: Marginal
    question_encoder: Trainable
    generator: Trainable
    mesh: Mesh | None

    labels = ("labels",)

    @property
    def parts(self) -> dict[str, Trainable]:
        """The prepared parts by name."""
        return {"question_encoder": self.question_encoder, "generator": self.generator}

    @property
    def abstract(self) -> dict[str, Any]:
        """Parameters as nested dicts of jax.ShapeDtypeStruct."""
        return {name: part.abstract for name, part in self.parts.items()}

    def outputs(self, params: Params, batch: Batch, key: jax.Array | None = None) -> dict[str, Any]:
        """Return the outputs of the model for a batch; see Rag."""
        keys = (None, None) if key is None else jax.random.split(key)

        def encode(input_ids: Array, attention_mask: Array | None) -> Array:
            inputs = {"input_ids": input_ids}
            inputs |= {} if attention_mask is None else {"attention_mask": attention_mask}
            outputs = self.question_encoder.outputs(params["question_encoder"], inputs, keys[0])
            return question_vectors(self.config, outputs)

        def generate(input_ids: Array, attention_mask: Array, decoder_ids: Array, decoder_mask: Array) -> Array:
            inputs = {
                "input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_ids,
                "decoder_attention_mask": decoder_mask,
            }  # fmt: skip
            inputs = {name: value for name, value in inputs.items() if value is not None}
            return self.generator.outputs(params["generator"], inputs, keys[1])["logits"]

        return self.marginal.forward(ops, batch, encode, generate, {})

    def parameters(self, read: Callable[[str], np.ndarray], shardings: PyTree = None) -> Params:
        """Return the parameters, made on the host one after the other and sharded; see Trainable.parameters."""
        return {
            name: part.parameters(partial(_read_part, read, name), None if shardings is None else shardings[name])
            for name, part in self.parts.items()
        }

    def unstack(self, params: Params) -> Params:
        """Return the parameters as the model itself has them."""
        return {name: part.unstack(params[name]) for name, part in self.parts.items()}


def _read_part(read: Callable[[str], np.ndarray], name: str, path: str) -> np.ndarray:
    return read(f"{name}/{path}")


@dataclass(frozen=True)
class RagLoss(Objective):
    """The negative log-likelihood of answers, marginalized over documents, as a mean over the rows."""

    def terms(
        self, model: Any, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return a single term, over the rows."""
        terms = model.marginal.loss_terms(ops, model.outputs(params, batch, key), batch)
        return {name: (*term, 1.0) for name, term in terms.items()}

    def check(self, model: Any, batch: Batch) -> None:
        """Raise InputError unless the batch is the model's inputs and labels."""
        check_batch(model.config, batch)


class RagStep(Step):
    """The step of ``fit`` for a RAG model, which trains the question encoder and the generator.

    Args:
        model: RagSequence or RagToken; it is not changed.
        config: Settings of the run.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: The parameters are not float32, or a setting is unsupported.
    """

    def __init__(self, model: Any, config: FitConfig, mesh: Mesh | None = None):
        check_layer_decay(model.config, config.layer_decay)
        for part in (model.question_encoder, model.generator):
            check_can_learn(part, needs_labels=False)
        mesh = make_mesh(config.mesh) if mesh is None else mesh
        axes = BATCH if config.parallelism == "pmap" else None
        settings = {name: getattr(config, name) for name in PROGRAM_SETTINGS if hasattr(config, name)}
        options = {"scan": config.scan, "remat": config.remat, "mesh": None if axes else mesh}
        rag_config = model.config
        if config.label_smoothing:
            rag_config = rag_config.with_options(label_smoothing=config.label_smoothing)
        trainable: Any = TrainableRag(
            rag_config,
            model.head,
            model.marginal_class(rag_config),
            make_trainable(model.question_encoder, **options),
            make_trainable(model.generator, **options),
            options["mesh"],
        )
        super().__init__(Plan(trainable, RagLoss(), FitConfig(**settings), axes), model, mesh, config.seed)
