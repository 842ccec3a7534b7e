"""Classification with a pattern and words for labels, by a masked language model: zero-shot, PET and ADAPET.

classifier = PromptZeroShot("google-bert/bert-base-uncased").classify(jaxnlp, ["bug", "feature"])
classifier.scores(["It crashes at startup."])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.errors import InputError
from duonlp.fewshot.classifier import FewShotData
from duonlp.fewshot.model_classifier import completed
from duonlp.fewshot.prompt_classifier import (
    CALIBRATION_TEXTS,
    CALIBRATIONS,
    COMBINATIONS,
    CONTENT_FREE,
    PromptClassifier,
    checked_engine,
    load_language_model,
    with_prior,
)
from duonlp.prompts.batches import PromptBatches
from duonlp.prompts.patterns import DEFAULT_PATTERN, Verbalizer, as_patterns, encode_masked
from duonlp.runs.folder import training_module
from duonlp.tasks.base import check_choice, check_int
from duonlp.training.fit_config import FitConfig
from duonlp.training.objectives.prompt import DecoupledLoss, PromptAndTextLoss, PromptLoss, Words
from duonlp.typing import Engine


@dataclass(frozen=True)
class _PromptMethod:
    """Settings of all methods with prompts.

    Attributes:
        model: Masked language model: a folder in Hugging Face layout, or a Hub id.
        pattern: Template with ``{text}`` and ``{mask}``, or several, whose scores are averaged.
        verbalizer: Word, or list of words, of each label; None for the labels' names. A word may have several tokens, each with
            a mask of its own; all words of a run are read from one forward pass with as many masks as the longest needs.
        combine: Whether the log probabilities of a word's tokens are averaged ("mean"), so that long words are not at a
            disadvantage, or added up ("sum"), as in PET.
        max_length: Maximum number of tokens of a prompt; longer texts are truncated, never the pattern.
        batch_size: Texts per batch.
    """

    model: str
    pattern: str | Sequence[str] = DEFAULT_PATTERN
    verbalizer: Mapping[str, str | Sequence[str]] | None = None
    combine: Literal["mean", "sum"] = "mean"
    max_length: int = 128
    batch_size: int = 8

    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[PromptClassifier]] = PromptClassifier
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        as_patterns(self.pattern)
        check_choice("combine", self.combine, COMBINATIONS)
        check_int("max_length", self.max_length, minimum=1)
        check_int("batch_size", self.batch_size, minimum=1)

    def _untrained(self, package: Engine, label_names: Sequence[str], multi_label: bool) -> PromptClassifier:
        """Return the classifier of the model as it is, without a prior."""
        patterns, verbalizer = as_patterns(self.pattern), Verbalizer.of(label_names, self.verbalizer)
        tokenizer = open_checkpoint(self.model).tokenizer()
        encode_masked(tokenizer, patterns[0], (), 1, self.max_length)
        words = verbalizer.tokens(tokenizer, patterns)  # before the model is loaded
        model, tokenizer = load_language_model(package, self.model, "AutoModelForMaskedLM")
        max_length = min(self.max_length, model.config.max_length)
        prior = np.zeros((len(patterns), len(words)), np.float32)
        return PromptClassifier(
            package, model, tokenizer, patterns, verbalizer, multi_label, self.combine, prior, max_length, self.batch_size,
            self.name,
        )  # fmt: skip


@dataclass(frozen=True)
class PromptZeroShot(_PromptMethod):
    """Choose the label whose words a masked language model finds likely in a pattern, without any training.

    Each text in the pattern is one forward pass. With one label per text, the scores are the softmax of the words' log
    probabilities less those without a text. With several labels per text, the score of each label is the sigmoid of the log
    odds of its words against the tokens that no label has, again less those without a text: above 0.5, the text makes the words
    more likely.

    Attributes:
        calibrate: What the prior is computed from: "content-free" texts (:data:`CONTENT_FREE`), the "unlabelled" texts of the
            data (the first 256), or "none" for no prior; without it, scores of several labels per text are far below 0.5.
    """

    calibrate: Literal["content-free", "unlabelled", "none"] = "content-free"

    name: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("calibrate", self.calibrate, CALIBRATIONS)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> PromptClassifier:
        """Return the classifier of the data's labels; nothing is trained, and labeled texts are not read.

        Args:
            package: tfnlp or jaxnlp.
            data: Its label names, and unlabeled texts with calibrate="unlabelled".
            seed: Unused: nothing is random.
            console: Unused.

        Raises:
            InputError: The settings do not suit the labels, the model or the data.
        """
        return self.classify(
            checked_engine(package),
            data.train.label_names,
            multi_label=data.train.multi_label,
            unlabelled=data.unlabelled,
        )

    def classify(
        self, package: Engine, label_names: Sequence[str], *, multi_label: bool = False, unlabelled: Sequence[str] = ()
    ) -> PromptClassifier:
        """Return the classifier of some labels.

        Args:
            package: tfnlp or jaxnlp.
            label_names: Names of the labels.
            multi_label: Whether a text may have several labels, or none.
            unlabelled: Texts for calibrate="unlabelled".

        Raises:
            InputError: The settings do not suit the labels, the model or the texts.
        """
        if self.calibrate == "unlabelled" and not unlabelled:
            raise InputError(
                "calibrate is 'unlabelled', but there are no unlabeled texts; pass some, or use calibrate='content-free'"
            )
        classifier = self._untrained(package, label_names, multi_label)
        if self.calibrate == "none":
            return classifier
        return with_prior(
            classifier, CONTENT_FREE if self.calibrate == "content-free" else list(unlabelled)[:CALIBRATION_TEXTS]
        )


@dataclass(frozen=True)
class _TrainedPrompt(_PromptMethod):
    """Settings of training with prompts.

    Attributes:
        steps: Optimizer steps, whatever the number of texts.
        learning_rate: Peak learning rate.
    """

    steps: int = 100
    learning_rate: float = 5e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("steps", self.steps, minimum=1)
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be positive")

    def _train(
        self,
        classifier: PromptClassifier,
        objective: PromptLoss,
        data: FewShotData,
        seed: int,
        console: Any,
        **texts: Any,
    ) -> PromptClassifier:
        """Return the classifier with its model trained on batches of the labeled texts; `texts` are options of PromptBatches."""
        train = data.train
        batches = PromptBatches(
            classifier.tokenizer, classifier.patterns, classifier.verbalizer, [str(item) for item in train.texts], train.labels,
            self.batch_size, max_length=classifier.max_length, seed=seed, **texts,
        )  # fmt: skip
        config = FitConfig(
            steps=self.steps, learning_rate=self.learning_rate, seed=seed, evaluate_every=0, save_every=0
        )
        fit = training_module(classifier.package).fit
        result = fit(classifier.model, batches, config, objective=objective, log={"console": console})
        model = completed(result).model
        return replace(classifier, model=model)


@dataclass(frozen=True)
class PromptTuning(_TrainedPrompt):
    """Train a masked language model on labeled texts in patterns: pattern-exploiting training (PET).

    Schick & Schütze 2021, https://arxiv.org/abs/2001.07676. With one label per text, the loss is the cross-entropy over the
    labels' words; with several, see :class:`duonlp.training.objectives.PromptLoss`, whose prior is that of content-free texts.
    Several patterns train one model, a text's pattern changing from epoch to epoch, and their scores are averaged; PET trains one
    model per pattern.

    Attributes:
        alpha: Share of the auxiliary loss, masked language modeling of the unlabeled texts (the labeled ones if there are
            none); 0 for none. The paper has 1e-4.
        mask_share: Share of a text's tokens that the auxiliary loss masks.
    """

    alpha: float = 0.0
    mask_share: float = 0.15

    name: ClassVar[str] = "pet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise InputError(f"alpha is {self.alpha}; it must be at least 0 and below 1, such as 1e-4")
        check_share(self.mask_share)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> PromptClassifier:
        """Train on the labeled texts; the same seed gives the same classifier.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from.
            seed: Seed of the order of the texts, the masked tokens and dropout.
            console: Whether to show progress, or the rich Console to show it on. True is standard error.

        Raises:
            InputError: There are no labeled texts, or the settings do not suit the labels or the model.
        """
        package = checked_engine(package)
        check_labelled(data)
        classifier = self._untrained(package, data.train.label_names, data.train.multi_label)
        prior: tuple[float, ...] = ()
        if classifier.multi_label:
            of_patterns = with_prior(classifier, CONTENT_FREE).prior
            prior = tuple(of_patterns.mean(0).tolist())
            classifier = replace(classifier, prior=np.tile(of_patterns.mean(0), (len(of_patterns), 1)))
        words = classifier.verbalizer.tokens(classifier.tokenizer, classifier.patterns)
        settings = (words, classifier.multi_label, self.combine, prior)
        if not self.alpha:
            return self._train(classifier, PromptLoss(*settings), data, seed, console)
        objective = PromptAndTextLoss(*settings, alpha=self.alpha)
        others = list(data.unlabelled) or [str(item) for item in data.train.texts]
        return self._train(
            classifier, objective, data, seed, console, text_mode="mask", other_texts=others, mask_share=self.mask_share
        )


@dataclass(frozen=True)
class Adapet(_TrainedPrompt):
    """Train a masked language model on labeled texts in patterns with denser losses and no unlabeled texts: ADAPET.

    Tam et al. 2021, https://arxiv.org/abs/2103.11955: the decoupled label loss plus the label-conditioned one, see
    :class:`duonlp.training.objectives.DecoupledLoss`. A step has two forward passes, and takes twice as long as one of PET.

    Attributes:
        mask_share: Share of a text's tokens that the label-conditioned loss masks. The authors' code has 0.105.
    """

    mask_share: float = 0.15

    name: ClassVar[str] = "adapet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.mask_share)

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> PromptClassifier:
        """Train on the labeled texts; the same seed gives the same classifier.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from.
            seed: Seed of the order of the texts, the labels inserted, the masked tokens and dropout.
            console: Whether to show progress, or the rich Console to show it on. True is standard error.

        Raises:
            InputError: There are no labeled texts, or the settings do not suit the labels or the model.
        """
        package = checked_engine(package)
        check_labelled(data)
        classifier = self._untrained(package, data.train.label_names, data.train.multi_label)
        words: Words = classifier.verbalizer.tokens(classifier.tokenizer, classifier.patterns)
        objective = DecoupledLoss(words, classifier.multi_label, self.combine)
        return self._train(classifier, objective, data, seed, console, text_mode="label", mask_share=self.mask_share)


def check_share(mask_share: float) -> None:
    """Raise InputError unless a share of masked tokens is above 0 and below 1."""
    if not 0 < mask_share < 1:
        raise InputError(f"mask_share is {mask_share}; it must be between 0 and 1, such as 0.15")


def check_labelled(data: FewShotData) -> None:
    """Raise InputError if there are no labeled texts."""
    if not len(data.train):
        raise InputError(
            "there are no labeled texts to learn from; pass some, or use the method 'prompt', which needs none"
        )
