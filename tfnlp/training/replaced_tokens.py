"""ELECTRA's pretraining with compile, fit and evaluate: a generator and a discriminator in one step.

Clark et al. 2020, https://arxiv.org/abs/2003.10555.
"""

from typing import Any

import tensorflow as tf

from duonlp.training.replaced_tokens import (
    DISCRIMINATOR,
    GENERATOR,
    ReplacedTokens,
    check_generator,
    mask_unlabeled_rows,
    replaced_token_terms,
    shared_embeddings,
)
from tfnlp import losses, ops
from tfnlp.steps.terms import MeanOfTerms, Terms
from tfnlp.training.pretrainer import Pretrainer, model_inputs


class ReplacedTokensPretrainer(Pretrainer):
    """Trains a generator that fills in masked tokens and a discriminator that finds those it got wrong.

    Use it like a :class:`Pretrainer`, on a :func:`block_dataset` of masked language modeling. ``fit`` logs ``loss`` and its
    parts ``generator_loss`` and ``discriminator_loss``, which are not multiplied by their weights.

    Args:
        discriminator: Model with the head "replaced-token-detection", created under the tf.distribute strategy to train
            with; it is trained in place.
        generator: Model with the head "masked-lm", usually narrower, created likewise; it is trained in place. If the
            embeddings are shared, it takes the discriminator's.
        settings: Settings of the objective; the paper's if None.
        accumulation: As of Pretrainer.
        seed: Seed for dropout.

    Attributes:
        model: The discriminator.
        generator: The generator.

    Raises:
        InputError: The heads or vocabularies are not those of a discriminator and its generator, or their embeddings cannot be
            shared.
    """

    def __init__(
        self, discriminator: Any, generator: Any, settings: ReplacedTokens | None = None, *, accumulation: int = 1,
        seed: int = 0,
    ):  # fmt: skip
        self.settings = settings or ReplacedTokens()
        check_generator(discriminator, generator)
        own, shared = generator.embeddings, shared_embeddings(self.settings, discriminator.config, generator.config)
        own._tracker.unlock()  # as Keras' LoRA does, since the layer is built
        for name in shared:
            own._tracker.untrack(getattr(own, name))  # else Keras would go on training the layer
            setattr(own, name, getattr(discriminator.embeddings, name))
        own._tracker.lock()
        super().__init__(discriminator, accumulation=accumulation, seed=seed)
        with self.distribute_strategy.scope():
            self.generator = generator
            self.parts = {name: MeanOfTerms(name=f"{name}_loss") for name in (GENERATOR, DISCRIMINATOR)}

    @property
    def _loss_head(self) -> str:
        return self.generator.head  # the labels are the tokens that the generator predicts

    def _has_own_loss(self) -> bool:
        return False

    def _terms(self, batch: dict[str, Any], training: bool) -> tuple[Terms, dict[str, Any]]:
        def logits_of(model: Any, ids: tf.Tensor) -> tf.Tensor:
            return model(model_inputs(model.config, {**batch, "input_ids": ids}), training=training)["logits"]

        terms = replaced_token_terms(
            ops, losses, self.settings, lambda ids: logits_of(self.generator, ids),
            lambda ids: logits_of(self.model, ids), batch,
        )  # fmt: skip
        sums = {name: (factor * total, count) for name, (total, count, factor) in terms.items()}
        return sums | self._added_terms(self.losses, batch), {}

    def test_step(self, data: Any) -> dict[str, Any]:
        return super().test_step(mask_unlabeled_rows(ops, data))

    def _update_logs(self, terms: Terms) -> dict[str, Any]:
        weights = {GENERATOR: 1.0, DISCRIMINATOR: self.settings.discriminator_weight}
        for name, metric in self.parts.items():
            total, count = terms[f"{name}_loss"]
            metric.update_state({name: (total / weights[name], count)})
        logs = super()._update_logs(terms)
        return {name: value for name, value in logs.items() if name != "perplexity"}
