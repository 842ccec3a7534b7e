"""Types shared across packages: arrays of any framework, and the engine packages passed around as arguments."""

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
"""An array of NumPy, TensorFlow or JAX, in code written once for all of them over ``ops``."""

Tokenizer: TypeAlias = Any
"""A tokenizer of Transformers, or an object with the same interface."""

ImageProcessor: TypeAlias = Any
"""An image processor of Transformers, or an object with the same interface."""

Ops: TypeAlias = ModuleType
"""``duonlp.numpy_ops``, ``tfnlp.ops`` or ``jaxnlp.ops``: the same functions, each for its own kind of array."""

Batch: TypeAlias = Mapping[str, Array]
"""Inputs and labels by name, each [B, ...]."""


class Engine(Protocol):
    """An engine package, ``tfnlp`` or ``jaxnlp``, as framework-neutral code uses it.

    Attributes:
        AutoModel: One auto class per head, each with ``from_pretrained``, ``from_config`` and
            ``save_pretrained``.
        pipeline: ``pipeline(task, model, **options)``; see :func:`duonlp.pipelines.load_pipeline`.
        compiled: Compile a model into a function of its inputs.
        predict: Compute the logits of many texts, in their order.
        parameter_tree: Return a model's parameters by path.
        quantize: Return a model with integer weights; ``dequantize`` is the inverse, and ``prepare_qat`` trains for it.
        prune: Return a model with weights of zero; ``shrink`` removes heads and rows that are.
        export_model: Write a model for another runtime; see :mod:`duonlp.export`.
        distill: Train a student on a teacher's outputs; see also ``init_student`` and
            ``cached_teacher_logits``.
    """

    __name__: str
    AutoModel: Any
    AutoModelForCausalLM: Any
    AutoModelForImageClassification: Any
    AutoModelForMaskedLM: Any
    AutoModelForMultipleChoice: Any
    AutoModelForNextSentencePrediction: Any
    AutoModelForPreTraining: Any
    AutoModelForQuestionAnswering: Any
    AutoModelForSeq2SeqLM: Any
    AutoModelForSequenceClassification: Any
    AutoModelForTokenClassification: Any
    pipeline: Callable[..., Any]
    compiled: Callable[..., Callable[..., Any]]
    predict: Callable[..., Any]
    distill: Callable[..., Any]
    init_student: Callable[..., Any]
    cached_teacher_logits: Callable[..., Any]
    parameter_tree: Callable[[Any], dict[str, Any]]
    prepare_qat: Callable[..., Any]
    quantize: Callable[..., Any]
    dequantize: Callable[..., Any]
    prune: Callable[..., Any]
    shrink: Callable[..., Any]
    export_model: Callable[..., Any]


class EpochBatches(Protocol):
    """Training batches by epoch, such as LabelledBatches and PairBatches; ``len()``, if defined, is batches per epoch."""

    def epoch(self, number: int, /) -> Iterable[Batch]:
        """Return the batches of an epoch, counted from 0."""
        ...


BatchStream: TypeAlias = EpochBatches | Iterable[Batch]
"""Training or validation batches; an iterable, such as a list, gives the same batches in every epoch."""


class BatchSequence(Protocol):
    """A finite sequence of batches, such as a list or the result of :func:`duonlp.data.held_out_batches`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...
