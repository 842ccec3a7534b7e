"""One optimizer step of fine-tuning, for a model of any head: a pure function over plain pytrees, jitted over a mesh."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.inputs import DECODER_INPUTS, IGNORED, LABELS, NO_POSITION, TOKEN_INPUTS, check_inputs
from duonlp.training.fit_config import FitConfig
from duonlp.training.layer_decay import rate_factor
from jaxnlp import losses
from jaxnlp.heads import ModelForPreTraining
from jaxnlp.pretrained import merge, split
from jaxnlp.training.mesh import batch_sharding, replicated, shardings
from jaxnlp.training.model import rows_apart
from jaxnlp.training.optimizers import make_optimizer
from jaxnlp.training.step import summed_gradients

Terms = tuple[tuple[jax.Array, jax.Array], ...]
"""(sum, count) of each term of a loss: the loss is the sum of sum / count. Counts depend on the labels alone."""

NamedTerms = dict[str, tuple[jax.Array, jax.Array, float]]
"""(sum, count, factor) of each part of a loss: the loss is the sum of factor * sum / count."""

IN_PROGRAM = (
    "accumulation", "optimizer", "weight_decay", "beta1", "beta2", "clip_norm", "label_smoothing", "layer_decay",
)  # fmt: skip
"""Settings that a compiled step depends on."""


def loss_terms(head: str, config, outputs: Mapping, batch: Mapping, label_smoothing: float = 0.0) -> Terms:
    """A head's own loss, not yet divided: sums over its labels and their numbers, which add up over pieces of a batch.

    Args:
        head, config: of the model.
        outputs: of the model, for the inputs in `batch`.
        batch: the head's labels, the attention_mask for replaced-token-detection, and perhaps ``sample_weight`` float [B],
            which multiplies the sums and changes no count.
        label_smoothing: of every cross-entropy over classes.

    Raises:
        InputError: the head has no cross-entropy over classes to smooth.
    """
    weight = batch.get("sample_weight")
    entropy = partial(losses.cross_entropy_sum, sample_weight=weight, label_smoothing=label_smoothing)
    labels, logits = batch.get("labels"), outputs.get("logits")
    if head == "question-answering":
        return tuple(
            (total / 2, count)
            for total, count in (
                entropy(outputs[f"{end}_logits"], _within(batch[f"{end}_positions"], outputs[f"{end}_logits"].shape[1]))
                for end in ("start", "end")
            )
        )
    if head == "pretraining":
        sentences, label = ModelForPreTraining.names[config.sentence_head]
        return entropy(outputs["prediction_logits"], labels), entropy(outputs[sentences], batch[label])
    if head == "causal-lm":
        return (entropy(logits[:, :-1], labels[:, 1:]),)
    classes = jnp.issubdtype(labels.dtype, jnp.integer) and logits.shape[-1] > 1
    if config.problem_type is not None:
        classes = config.problem_type == "single_label_classification"
    if head == "replaced-token-detection" or (head == "sequence-classification" and not classes):
        if label_smoothing:
            raise InputError(
                f"label_smoothing is {label_smoothing}, and a {head} model's loss has no classes to smooth over"
            )
        if head == "replaced-token-detection":
            mask = batch.get("attention_mask")
            count = jnp.sum(jnp.ones_like(labels) if mask is None else mask, dtype=jnp.float32)
            return ((losses.binary_cross_entropy(logits, labels, mask, weight) * count, count),)
        mean = losses.classification_loss(logits, labels, config.problem_type, weight)
        several = logits.shape[-1] > 1 and config.problem_type != "regression"
        count = jnp.sum(labels != IGNORED, dtype=jnp.float32) if several else jnp.float32(labels.size)
        return ((mean * count, count),)
    return (entropy(logits, labels),)


def _within(positions, length: int):
    return jnp.where(positions >= length, IGNORED, jnp.maximum(positions, 0))


@dataclass(frozen=True)
class Plan:
    """All that a step's program depends on but arrays: steps of equal plans share their programs, whatever model they are of."""

    graphdef: nnx.GraphDef
    model_config: TransformerConfig
    head: str
    config: FitConfig
    mesh: Mesh | None
    loss: Callable | None
    options: tuple[tuple[str, Any], ...]

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What turns gradients into updates, but for the learning rate."""
        # Nothing but a limit is asked for, so that none is an infinite one.
        clip_norm = math.inf if self.config.clip_norm is None else self.config.clip_norm
        factors = None
        if self.config.layer_decay != 1:
            factors = partial(rate_factor, config=self.model_config, decay=self.config.layer_decay)
        return make_optimizer(replace(self.config, clip_norm=clip_norm), rate_factors=factors)

    @property
    def labels(self) -> tuple[str, ...]:
        """What of a batch the model learns from."""
        return LABELS.get(self.head, ("labels",))

    def fresh(self, params):
        """The state before the first step."""
        return {"params": params, "moments": self.optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    def inputs(self, batch: Mapping) -> dict:
        """What the model is called with: all but the weights of the rows, unless the loss has something of its own."""
        if self.loss is None:
            return {name: value for name, value in batch.items() if name != "sample_weight"}
        taken = *TOKEN_INPUTS, *DECODER_INPUTS, *self.labels
        return {name: value for name, value in batch.items() if name in taken}

    def terms(self, params, frozen, batch, key=None) -> NamedTerms:
        """The parts of the loss of a batch. frozen: arrays that are not trained; key: of dropout, None for none."""
        rngs = None if key is None else nnx.Rngs(dropout=key)
        outputs = merge(self.graphdef, params)(**self.inputs(batch), **dict(self.options), rngs=rngs)
        if self.loss is not None:
            terms = self.loss(outputs, batch)
        else:
            terms = loss_terms(self.head, self.model_config, outputs, batch, self.config.label_smoothing)
        return {str(number): (total, count, 1.0) for number, (total, count) in enumerate(terms)}

    def parts(self, means: Mapping, factors: Mapping) -> dict:
        """What is logged beside the loss, of the mean and the factor of each of its terms."""
        return {}

    def step(self, state, frozen, batch, rate, seed):
        """State, frozen arrays, batch [B, ...], learning rate, seed of dropout -> state, what is known of the step."""
        params, pieces, key = state["params"], self.config.accumulation, None
        if self.model_config.without_dropout() != self.model_config:
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
        # Counts need no forward pass, and XLA runs none for them. One piece has them at hand.
        whole = None if pieces == 1 else self.terms(params, frozen, batch)

        def loss(params, piece, key):
            terms = self.terms(params, frozen, piece, key)
            counts = {name: count for name, (_, count, _) in (terms if whole is None else whole).items()}
            means = {name: total / jnp.maximum(counts[name], 1) for name, (total, _, _) in terms.items()}
            factors = {name: factor for name, (_, _, factor) in terms.items()}
            return sum(factors[name] * mean for name, mean in means.items()), self.parts(means, factors)

        together = partial(rows_apart, mesh=self.mesh)
        value, parts, gradients = summed_gradients(loss, params, batch, key, pieces, together)
        if self.mesh is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, shardings(params, self.mesh))
        updates, moments = self.optimizer.update(gradients, state["moments"], params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        known = {"loss": value, "gradient_norm": optax.tree.norm(gradients), **parts}
        return {"params": params, "moments": moments, "step": state["step"] + 1}, known


@lru_cache(maxsize=16)
def _programs(plan: Plan, where):
    """The compiled functions of a plan: first state, step, evaluation. where: the state's shardings."""
    where = jax.tree.unflatten(*where)
    known = replicated(plan.mesh)
    return (
        jax.jit(plan.fresh, out_shardings=where, donate_argnums=0),
        jax.jit(plan.step, out_shardings=(where, known), donate_argnums=0),
        jax.jit(plan.terms, out_shardings=replicated(plan.mesh)),
    )


class FitStep:
    """The step that a configuration asks for: ``step(state, step.put(batch), rate) -> state, known``.

    The state is ``{"params", "moments", "step"}``, nested dicts of arrays; it is donated. The gradient is that of the loss of
    the whole batch, however it is cut into pieces and spread over devices: sums are divided once, by the counts of all of it.

    Args:
        model: of any head that learns something; its parameters are float32, and are not changed.
        loss: ``(outputs, batch) -> Terms`` in place of the head's own loss; what of a batch is no input of the model is for
            it alone. The same function object shares a compiled program.
        model_options: more arguments of the model's call, such as output_hidden_states=True.

    Raises:
        InputError: the parameters are not float32, or the head learns nothing.
    """

    def __init__(
        self,
        model,
        config: FitConfig,
        mesh: Mesh,
        *,
        loss: Callable | None = None,
        model_options: Mapping | None = None,
    ):
        self._check(model, loss is not None)
        self.mesh, self.seed = mesh, config.seed
        graphdef, params = split(model)
        options = tuple(sorted((model_options or {}).items()))
        self._compile(Plan(graphdef, model.config, model.head, self.kept(config), mesh, loss, options), params)

    @staticmethod
    def _check(model, has_loss: bool) -> None:
        if model.param_dtype != jnp.float32:
            raise InputError(
                f"the parameters are {model.param_dtype}, in which small updates are lost; load the model with "
                f"param_dtype='float32', and dtype={str(model.param_dtype)!r} to compute in that"
            )
        if not has_loss and not LABELS.get(model.head, ("labels",)):
            raise InputError(f"a {model.head} model has no labels to learn from; take another head, or pass loss=")

    @staticmethod
    def kept(config: FitConfig) -> FitConfig:
        """What a program depends on; the rest is as by default, so that runs of other rates and lengths share it."""
        return FitConfig(**{name: getattr(config, name) for name in IN_PROGRAM})

    def _compile(self, plan: Plan, params, frozen: Mapping = MappingProxyType({})) -> None:
        """params: the first ones. frozen: arrays that the loss reads, too, and that are not trained."""
        self._plan, self._initial = plan, params
        self._frozen = jax.device_put(dict(frozen), shardings(dict(frozen), self.mesh))
        self.abstract = jax.eval_shape(plan.fresh, params)
        self.shardings = shardings(self.abstract, self.mesh)
        leaves, structure = jax.tree.flatten(self.shardings)
        self._start, self._step, self._terms = _programs(plan, (structure, tuple(leaves)))
        self._rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * plan.config.accumulation

    def init_state(self) -> dict:
        """The state before the first step, in arrays of its own."""
        params = jax.tree.map(lambda x: jnp.array(x, copy=True), self._initial)
        return self._start(jax.device_put(params, self.shardings["params"]))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch, NumPy [B, ...] each, over the devices, with rows of no labels where B does not divide among them.

        Raises:
            InputError: the model does not take it; or B does not divide, and its labels are numbers or there are none.
        """
        batch = {name: np.asarray(value) for name, value in batch.items()}
        check_inputs(self._plan.model_config, self._plan.head, self._plan.inputs(batch))
        missing = -len(next(iter(batch.values()))) % self._rows
        if missing:
            if not {"sample_weight", *self._plan.labels} & set(batch):
                raise self._indivisible(batch, "no labels say which rows only fill it up")
            batch = {name: self._filled(name, value, missing) for name, value in batch.items()}
        return jax.device_put(batch, batch_sharding(self.mesh))

    def _filled(self, name: str, value: np.ndarray, missing: int) -> np.ndarray:
        more, head = np.repeat(value[-1:], missing, axis=0), self._plan.head
        if name == "sample_weight":
            more = np.zeros_like(more)
        if name in self._plan.labels:
            if self._plan.loss is not None or (value.dtype.kind not in "iu" and value.ndim == 1):
                raise self._indivisible({name: value}, f"rows of these {name} cannot be left out")
            more = np.full_like(more, NO_POSITION if head == "question-answering" else IGNORED)
        if name == "attention_mask" and head == "replaced-token-detection":
            more = np.zeros_like(more)
        return np.concatenate([value, more])

    def _indivisible(self, batch: Mapping[str, np.ndarray], why: str) -> InputError:
        return InputError(
            f"a batch of {len(next(iter(batch.values())))} rows does not divide among {self._rows} (devices times "
            f"accumulation), and {why}; make batches of a multiple of {self._rows}"
        )

    def __call__(self, state, batch, rate: float):
        """One step; the state that is handed in is given up. batch: from :meth:`put`."""
        return self._step(state, self._frozen, batch, np.float32(rate), np.uint32(self.seed))

    def model_parameters(self, params):
        """Those of the trained parameters that are the model's own."""
        return params

    def evaluate(self, params, batches) -> dict[str, float]:
        """The "loss" without dropout over batches of NumPy arrays, each label weighing the same, and its parts.

        Raises:
            InputError: there is no label in them.
        """
        sums, factors = None, {}
        for batch in batches:
            terms = jax.device_get(self._terms(params, self._frozen, self.put(batch)))
            factors = {name: float(factor) for name, (_, _, factor) in terms.items()}
            found = np.array([terms[name][:2] for name in factors], np.float64)  # [terms, 2]
            sums = found if sums is None else sums + found
        if sums is None or not sums[:, 1].all():
            raise InputError("the validation batches have no label to evaluate on; give some that have")
        means = dict(zip(factors, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
        loss = sum(factors[name] * mean for name, mean in means.items())
        return {"loss": loss} | self._plan.parts(means, factors)
