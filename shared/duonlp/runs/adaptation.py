"""Continue masked-language-model pretraining on the texts of a domain, before a classifier is fine-tuned for it.

Follows Gururangan et al. 2020, "Don't Stop Pretraining" (https://arxiv.org/abs/2004.10964): on the texts of the task itself,
labeled or not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.data.cleaning.cleaner import CleaningConfig, clean
from duonlp.data.cleaning.filters import PRESETS
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.objectives.masked_texts import MaskedTexts
from duonlp.data.reading.documents import Document
from duonlp.errors import InputError
from duonlp.parameters import count_parameters
from duonlp.runs import folder as run_folder
from duonlp.runs.models import load_for_training, prepare_for_quantization
from duonlp.runs.settings import RunSettings
from duonlp.training.fit_config import FitConfig
from duonlp.training.result import FitResult
from duonlp.typing import Engine
from duonlp.util.suggestions import choice

NO_CLEANING = "none"


@dataclass(frozen=True, kw_only=True)
class AdaptationSettings(RunSettings):
    """Settings of an adaptation, in addition to RunSettings.

    Attributes:
        model: Checkpoint to start from: a folder in Hugging Face layout, or a Hub id. Without a masked-language-model head, it
            gets a new one, whose output matrix is that of the embeddings.
        text_column: Column of the text; None for the first with a usual name.
        text_template: What to make the text of instead, with columns in braces, such as "{title}: {body}".
        held_out: Share of the texts that the loss is evaluated on; 0 to train on all and keep the last model.
        probability: Share of the tokens to predict.
        whole_words: Whether whole words are masked rather than single tokens.
        cleaning: "none", or the filters of duonlp.data.FilterConfig to apply: "prose" or "code".
        max_length: Maximum number of tokens of a text: that of the later classifier.
    """

    model: str
    task: str = "masked-lm"
    text_column: str | None = None
    text_template: str | None = None
    held_out: float = 0.05
    probability: float = 0.15
    whole_words: bool = False
    cleaning: str = NO_CLEANING
    max_length: int | None = 128
    batch_size: int = 32
    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=3, learning_rate=1e-4, warmup_share=0.1))

    program: ClassVar[str] = "duonlp adapt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise InputError("model is empty; give --model with a folder in Hugging Face layout, or a Hub id")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; it must be a share from 0 to below 1, such as 0.05")
        choice("cleaning", self.cleaning, [NO_CLEANING, *PRESETS])


@dataclass(frozen=True)
class AdaptationData:
    """Batches of an adaptation, as ``train_and_report`` takes them.

    Attributes:
        batches: Training batches.
        held_out: Batches to evaluate the loss on, or None.
        fingerprint: Hash of all texts.
        dropped: Number of texts dropped by cleaning, by reason.
    """

    batches: MaskedTexts
    held_out: MaskedTexts | None
    fingerprint: str
    dropped: Mapping[str, int]

    head: ClassVar[str] = "masked-lm"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    row_noun: ClassVar[str] = "texts"

    def describe(self) -> dict[str, Any]:
        """Return what identifies the data in run.json."""
        held_out = 0 if self.held_out is None else len(self.held_out.texts)
        return {
            "train": len(self.batches.texts), "held_out": held_out, "fingerprint": self.fingerprint,
            "objective": repr(self.batches.objective), "max_length": self.batches.max_length,
        }  # fmt: skip

    def plan(self) -> dict[str, Any]:
        """Return what a plan says about the data."""
        data, dropped = self.describe(), sum(self.dropped.values())
        note = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        summary = f"{data['train']} training texts, {data['held_out']} held-out texts"
        summary += f"; {dropped} dropped ({note})" if dropped else ""
        return {"summary": summary, "dropped": dict(self.dropped)}

    def overrides(self) -> dict[str, Any]:
        """Return no keys of config.json: the head has no labels."""
        return {}

    def scorer(self, package: Engine | None) -> None:
        """Return None: the loss of the held-out texts is that of ``fit``."""

    def at_threshold(self, scorer: Any) -> None:
        """Return None: there is nothing to choose."""

    def at_label_thresholds(self, scorer: Any) -> None:
        """Return None, likewise."""

    def save_with(self, folder: Any, at_threshold: Any) -> None:
        """Write nothing beside the model."""


def adapt(
    package: Engine, settings: AdaptationSettings, *, texts: Sequence[str] | None = None, console: Any = True
) -> dict[str, Any]:
    """Train a checkpoint's masked language model on texts, one row per text, and keep the best model in ``best/``.

    Called again with the same settings and texts, it resumes an interrupted run.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings of the run.
        texts: The texts; by default those of ``settings.data``.
        console: Whether to show progress, or the rich Console to show it on. True is standard error.

    Returns:
        The report that is also written to results.json, as of :func:`duonlp.runs.finetune`; "metrics" has the "loss" of the
        held-out texts, in nats per masked token.

    Raises:
        InputError: Settings, texts and output folder are invalid or incompatible.
        CheckpointError: The checkpoint cannot be read.
        NonFiniteLossError: The loss became non-finite.
    """
    run_folder.check_output(settings, run_folder.framework_name(package))
    data, tokenizer = prepare(settings, texts)
    model, is_new_head = load_for_training(package, data.auto_class, settings.model, settings.dtype, settings.seed)
    model = prepare_for_quantization(package, model, settings, data.batches)
    fit = run_folder.training_module(package).fit
    head = "a new head" if is_new_head else "the checkpoint's head"
    run_folder.make_printer(console)(f"{data.plan()['summary']}; {head}")

    def train(evaluate: Any, **options: Any) -> FitResult:
        return fit(
            model, data.batches, settings.fit, settings.folder, validation=data.held_out, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard, "description": "adapting"}, **options,
        )  # fmt: skip

    return run_folder.train_and_report(package, settings, data, tokenizer, train)


def prepare(settings: AdaptationSettings, texts: Sequence[str] | None = None) -> tuple[AdaptationData, Any]:
    """Read, clean and batch the texts and return them with the tokenizer; nothing is trained and no framework is needed.

    Raises:
        InputError: The texts cannot be read, too few are left, or the model cannot read so long ones.
        CheckpointError: The checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(settings.model)
    longest = checkpoint.transformer_config().max_length
    if settings.max_length is not None and settings.max_length > longest:
        raise InputError(f"max_length is {settings.max_length}; the model reads at most {longest} tokens")
    texts = read_texts(settings) if texts is None else list(texts)
    texts, dropped = _cleaned(texts, settings.cleaning)
    held_out = [text for text in texts if _draw(text, settings.seed) < settings.held_out]
    train = [text for text in texts if _draw(text, settings.seed) >= settings.held_out] if held_out else texts
    if not train:
        raise InputError(
            f"no text is left to train on ({len(held_out)} held out); give more texts, or a lower held_out"
        )
    tokenizer = checkpoint.tokenizer()
    options: dict[str, Any] = {
        "max_length": settings.max_length or longest, "seed": settings.seed, "probability": settings.probability,
        "whole_words": settings.whole_words, "cache": settings.cache,
    }  # fmt: skip
    batches = MaskedTexts(train, tokenizer, settings.batch_size, **options)
    evaluated = MaskedTexts(held_out, tokenizer, settings.batch_size, shuffle=False, **options) if held_out else None
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return AdaptationData(batches, evaluated, digest, dropped), tokenizer


def plan(settings: AdaptationSettings, framework: str) -> dict[str, Any]:
    """Return what a run would do, without training: texts, batches, steps, parameters.

    Args:
        settings: Settings of the run.
        framework: "tf" or "jax".

    Raises:
        InputError: As for :func:`adapt`.
        CheckpointError: As for :func:`adapt`.
    """
    run_folder.check_output(settings, framework)
    data, _ = prepare(settings)
    config = open_checkpoint(settings.model).transformer_config(data.head)
    return run_folder.plan_report(settings, data, count_parameters(config, data.head), framework)


def read_texts(settings: AdaptationSettings) -> list[str]:
    """Return the texts of ``settings.data``, labeled or not, each once.

    Raises:
        InputError: They cannot be read, or there are none.
    """
    from duonlp.data.labelled import read_unlabelled_texts

    texts = read_unlabelled_texts(
        settings.data, text_column=settings.text_column, text_template=settings.text_template, limit=settings.limit,
        encoding=settings.encoding, quoting=settings.quoting,
    )  # fmt: skip
    return [text if isinstance(text, str) else "\n\n".join(text) for text in texts]


def _cleaned(texts: Sequence[str], preset: str) -> tuple[list[str], dict[str, int]]:
    """Return the texts that the filters of a preset keep, each once, and the number of dropped ones by reason."""
    if preset == NO_CLEANING:
        return list(dict.fromkeys(texts)), {}
    report = CleaningReport()
    config = CleaningConfig(filters=PRESETS[preset](), near_duplicates=None, masking=None)
    documents = (Document(text, str(number)) for number, text in enumerate(texts))
    kept = [document.text for document in clean(documents, config, report)]
    return kept, {reason: dropped.documents for reason, dropped in report.dropped.items()}


def _draw(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the text and the seed alone, so that copies share a side."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
