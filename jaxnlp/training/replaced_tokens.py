"""ELECTRA's pretraining: the objective of a generator and a discriminator, and their step.

Clark et al. 2020, https://arxiv.org/abs/2003.10555.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from duonlp import architectures, numpy_ops
from duonlp.training.config import PretrainingConfig
from duonlp.training.replaced_tokens import (
    GENERATOR,
    ReplacedTokens,
    check_generator,
    mask_unlabeled_rows,
    replaced_token_terms,
    shared_embeddings,
)
from duonlp.typing import Batch
from jaxnlp import losses, ops
from jaxnlp.pretrained import Params
from jaxnlp.training.mesh import make_mesh
from jaxnlp.training.model import Trainable, make_trainable, parameter_reader
from jaxnlp.training.objectives import NamedTerms, Objective
from jaxnlp.training.step import Step, make_plan


@dataclass(frozen=True)
class ReplacedTokensLoss(Objective):
    """The generator's cross-entropy of masked tokens, and the discriminator's of which tokens were replaced.

    Attributes:
        settings: Settings of the objective.
        generator: The prepared generator, whose parameters are trained beside the discriminator's.
        shared: Names of the discriminator's embedding layers that the generator uses instead of its own.
    """

    settings: ReplacedTokens
    generator: Trainable
    shared: tuple[str, ...] = ()

    def terms(
        self, model: Trainable, params: Params, frozen: Params, batch: Batch, key: jax.Array | None = None
    ) -> NamedTerms:
        """Return the losses of both models; ``params`` has the generator's under "generator", beside the discriminator's."""
        key, generator_key = (None, None) if key is None else jax.random.split(key)
        generator_params = self.generator_params(params)

        def generate(ids: jax.Array) -> jax.Array:
            return self.generator.outputs(generator_params, {**batch, "input_ids": ids}, generator_key)["logits"]

        def discriminate(ids: jax.Array) -> jax.Array:
            return model.outputs(params, {**batch, "input_ids": ids}, key)["logits"]

        return replaced_token_terms(ops, losses, self.settings, generate, discriminate, batch)

    def generator_params(self, params: Params) -> Params:
        """Return the generator's parameters, with the shared embeddings of the discriminator."""
        own = params[GENERATOR]
        return {**own, "embeddings": own["embeddings"] | {name: params["embeddings"][name] for name in self.shared}}

    def metrics(self, terms: Mapping[str, tuple[Any, Any, float]]) -> dict[str, Any]:
        """Return both losses, without their weights."""
        return {name: mean for name, (mean, _, _) in terms.items()}

    def describe(self) -> dict[str, Any]:
        """Return the generator and the settings of the objective."""
        generator = architectures.hf_config(self.generator.config, self.generator.head)
        return {"generator": generator, "replaced_tokens": asdict(self.settings)}


class ReplacedTokensStep(Step):
    """The step of ELECTRA's pretraining, for ``pretrain(discriminator, batches, config, step=ReplacedTokensStep(...))``.

    Args:
        discriminator: Model with the head "replaced-token-detection", or a LazyModel; it is not changed.
        generator: Model with the head "masked-lm", or a LazyModel, usually narrower; it is not changed.
        config: Settings of the run. The batches are those of masked language modeling.
        settings: Settings of the objective; the paper's if None.
        mesh: Mesh to run on; by default ``config.mesh`` over all devices of all hosts.

    Raises:
        InputError: The heads or vocabularies are not those of a discriminator and its generator, or their embeddings cannot be
            shared.
    """

    def __init__(
        self, discriminator: Any, generator: Any, config: PretrainingConfig, settings: ReplacedTokens | None = None,
        mesh: Mesh | None = None,
    ):  # fmt: skip
        settings = settings or ReplacedTokens()
        check_generator(discriminator, generator)
        shared = shared_embeddings(settings, discriminator.config, generator.config)
        mesh = make_mesh(config.mesh) if mesh is None else mesh
        dtypes = {"dtype": config.dtype, "param_dtype": "float32"}
        prepared = make_trainable(
            generator,
            scan=config.scan,
            remat=config.remat,
            mesh=mesh if config.parallelism == "jit" else None,
            **dtypes,
        )
        self.objective = ReplacedTokensLoss(settings, prepared, shared)
        plan = make_plan(discriminator, self.objective, config, mesh, **dtypes)
        extra = {GENERATOR: prepared.parameters(parameter_reader(generator))}
        super().__init__(plan, discriminator, mesh, config.seed, extra=extra, own_rows=True)

    def evaluate(self, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the "loss" without dropout over batches of NumPy arrays, and its parts; see :meth:`Step.evaluate`."""
        return super().evaluate(params, (mask_unlabeled_rows(numpy_ops, batch) for batch in batches))

    def generator(self, params: Params) -> Any:
        """Return the generator as a model, with the trained parameters ``state["params"]``."""
        prepared = self.objective.generator
        return prepared.model(prepared.unstack(self.objective.generator_params(params)))
