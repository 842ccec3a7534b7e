"""SetFit: contrastive training of a sentence encoder on pairs of the few texts, then a classifier on its embeddings.

Tunstall et al. 2022, https://arxiv.org/abs/2209.11055, and its library setfit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np

from duonlp.checkpoints import open_checkpoint
from duonlp.data.labelled.batches import LabelledBatches
from duonlp.data.labelled.texts import LabelledTexts, Text
from duonlp.errors import CheckpointError, InputError
from duonlp.fewshot.classifier import ClassifierFiles, FewShotData, check_settings
from duonlp.fewshot.descriptions import with_descriptions
from duonlp.fewshot.linear import LinearClassifier, fit_linear, import_sklearn, regression, single_texts
from duonlp.fewshot.model_classifier import completed, few_widths, training_options
from duonlp.fewshot.setfit_pairs import ContrastiveBatches, check_strategy
from duonlp.runs.folder import training_module
from duonlp.runs.models import load_for_training
from duonlp.schema import integer
from duonlp.training.fit_config import FitConfig
from duonlp.training.in_batch_negatives import InBatchNegatives, save_sentence_files
from duonlp.training.objectives.contrastive import EmbeddingLabels, PairSimilarity
from duonlp.typing import Engine

BODY = "body"
"""Subfolder of a classifier for its sentence encoder."""

CERTAIN = 1e4
"""Largest logit that training starts from."""

SETTINGS = {"max_length": integer(1, 1 << 20)}


class SentenceEncoder:
    """A sentence encoder in training: a model with its tokenizer, and the pooling that its checkpoint asks for.

    Args:
        package: tfnlp or jaxnlp.
        name: Folder in Hugging Face layout, or a Hub id.
        max_length: Maximum number of tokens of a text; the checkpoint may have a lower limit.
        batch_size: Texts that are embedded at a time.
        seed: Seed of weights that the checkpoint lacks and that no embedding depends on.

    Attributes:
        max_length: Number of tokens that texts are truncated to.
        pooling: Pooling of the embeddings, and whether they are scaled to unit length.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        InputError: It pools in a way that cannot be trained.
    """

    def __init__(self, package: Engine, name: str, max_length: int, batch_size: int = 32, seed: int = 0):
        checkpoint = open_checkpoint(name)
        self.tokenizer = checkpoint.tokenizer()
        self.package, self.batch_size = package, batch_size
        self.model, _ = load_for_training(package, "AutoModel", name, "float32", seed)
        self._make_pipeline()
        limit = self._pipe.task.limit()
        self.max_length = max_length if limit is None else min(max_length, limit)
        sentence = self._pipe.task.sentence
        self.pooling = replace(InBatchNegatives.for_model(self.model), normalize=bool(sentence.steps))
        if self._prompt and not sentence.include_prompt:
            raise InputError(
                f"{name} leaves its prompt out of the pooling, which cannot be trained; use another checkpoint"
            )

    def _make_pipeline(self) -> None:
        self._pipe = self.package.pipeline(
            "sentence-embedding", self.model, tokenizer=self.tokenizer, batch_size=self.batch_size, progress=False
        )

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self._pipe.task.size

    def settings(self) -> dict[str, Any]:
        """Return what a classifier.json has about the encoder."""
        return {"max_length": self.max_length}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a classifier.safetensors has about the encoder: nothing, since it has a folder of its own."""
        return {}

    @property
    def _prompt(self) -> str:
        return self._pipe.task.prompt(self._pipe.options)

    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Return training texts as the encoder reads them: with its prompt, and lowercased if it asks for that.

        Raises:
            InputError: A text is empty.
        """
        if (empty := next((number for number, text in enumerate(texts) if not text.strip()), None)) is not None:
            raise InputError(f"training text {empty} is empty; drop it")
        fold = str.lower if self._pipe.task.sentence.lower_case else str
        return [fold(self._prompt + text) for text in texts]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, float32 [n, D]."""
        return self._pipe(list(texts), max_length=self.max_length)

    def train(self, batches: Any, config: FitConfig, objective: Any, console: Any) -> dict[str, np.ndarray]:
        """Train the model; return the objective's own parameters.

        Args:
            batches: Batches of the objective.
            config: Settings of the run.
            objective: The objective.
            console: Whether to show progress, or the Console to show it on.
        """
        fit = training_module(self.package).fit
        options = {"log": {"console": console}, **training_options(self.package)}
        trained = completed(fit(self.model, batches, config, objective=objective, **options)).model
        own = {}
        if hasattr(trained, "objective"):
            own, trained = {name: np.asarray(value) for name, value in trained.parameters.items()}, trained.model
        self.model = trained
        self._make_pipeline()
        return own

    def save(self, folder: Path) -> None:
        """Write the model in the layout of Hugging Face and sentence-transformers, to ``body/``."""
        folder = folder / BODY
        self.model.save_pretrained(folder, self.tokenizer)
        save_sentence_files(getattr(self.model, "folder", None), folder, self.pooling)


class SetFitClassifier(LinearClassifier):
    """A linear classifier on the embeddings of a sentence encoder that has been trained, and is saved, with it."""

    @property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder."""
        return cast(SentenceEncoder, self.features)

    @classmethod
    def load(cls, files: ClassifierFiles, package: Engine | None) -> Self:
        """Return the classifier of a folder.

        Raises:
            CheckpointError: The folder is damaged.
            InputError: `package` is None.
        """
        if package is None:
            raise InputError(f"{files.folder} runs a sentence encoder; pass package=tfnlp or jaxnlp")
        settings, folder = check_settings(files, SETTINGS), files.folder / BODY
        if not folder.is_dir():
            raise CheckpointError(f"{files.folder} has no {BODY}, the folder of its sentence encoder; train again")
        return cls.with_features(files, SentenceEncoder(package, str(folder), settings["max_length"]))


@dataclass(frozen=True)
class SetFit:
    """SetFit: training of a sentence encoder on pairs of texts with and without a common label, then a classifier.

    The differences from setfit 1.2: the number of training steps has a limit by default; pairs are drawn in another random order,
    a new one in each epoch; the logistic regression is balanced by default; and the differentiable head starts from the
    logistic one, not from random weights.

    Texts that occur once with their label have a positive pair only with themselves; those without any label, only negative ones.

    Attributes:
        model: Sentence encoder: a folder in the layout of Hugging Face or sentence-transformers, or a Hub id.
        strategy: Pairs to train on: "oversampling", "undersampling" or "unique", see PairSampler.
        iterations: Instead of the strategy, the number of positive and of negative pairs per text.
        epochs: Passes over the pairs.
        max_steps: Most steps to train for, whatever `epochs` is; None for no limit; 0 trains only the head.
        batch_size: Pairs per step.
        max_length: Maximum number of tokens of a text; longer ones are truncated.
        learning_rate: Peak learning rate of the encoder.
        warmup_share: Share of the steps in which the learning rate rises from 0.
        loss: "cosine" or "contrastive", see PairSimilarity.
        differentiable_head: Whether the logistic regression of scikit-learn (for multi-label texts one per label, which setfit
            calls "one-vs-rest" and "multi-output") is then trained further, together with the encoder.
        inverse_penalty: Inverse strength of the L2 penalty of the logistic regression, scikit-learn's C.
        balanced: Whether the logistic regression weighs the labels as if all were equally frequent. Otherwise, with few texts
            per label of several, hardly any probability reaches 0.5.
        head_epochs: Passes over the texts to train a differentiable head for.
        temperature: Divisor of the logits of a differentiable head.
        template: Template of synthetic texts from the labels' names, such as "This sentence is {}", which are added to the
            training texts, so that these may be few or none; None adds nothing.
        template_examples: Synthetic texts per label.

    Raises:
        InputError: A setting is invalid.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    strategy: str = "oversampling"
    iterations: int | None = None
    epochs: int = 1
    max_steps: int | None = 60
    batch_size: int = 16
    max_length: int = 128
    learning_rate: float = 2e-5
    warmup_share: float = 0.1
    loss: str = "cosine"
    differentiable_head: bool = False
    inverse_penalty: float = 1.0
    balanced: bool = True
    head_epochs: int = 5
    temperature: float = 1.0
    template: str | None = None
    template_examples: int = 2

    name: ClassVar[str] = "setfit"
    needs_engine: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = False
    classifier: ClassVar[type[SetFitClassifier]] = SetFitClassifier

    def __post_init__(self) -> None:
        check_strategy(self.strategy, self.iterations)
        PairSimilarity(loss=self.loss)
        counts = {
            "max_steps": 0,
            "epochs": 1,
            "batch_size": 1,
            "max_length": 1,
            "head_epochs": 1,
            "template_examples": 1,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            if (value is not None or name != "max_steps") and (
                not isinstance(value, int) or isinstance(value, bool) or value < least
            ):
                raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}")
        for name in ("learning_rate", "temperature", "inverse_penalty"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise InputError(f"{name} is {value!r}; it must be a positive number")
        if self.template is not None and "{}" not in self.template:
            raise InputError(f"template is {self.template!r}; it must contain {{}}, where the label's name goes")

    def fit(
        self, package: Engine | None, data: FewShotData, *, seed: int = 0, console: Any = False
    ) -> SetFitClassifier:
        """Train a sentence encoder and a classifier on its embeddings; the same seed gives the same one.

        Args:
            package: tfnlp or jaxnlp.
            data: What to learn from; only the training texts are used. Labels without a text get a probability of 0.
            seed: Seed of the pairs' order and of dropout.
            console: Whether to show progress, or the rich Console to show it on.

        Raises:
            InputError: There are no two texts with different labels, `package` is None, or the model is no sentence encoder.
            CheckpointError: The model cannot be read.
            MissingExtraError: scikit-learn is not installed.
        """
        if package is None:
            raise InputError("setfit trains a sentence encoder; pass package=tfnlp or jaxnlp")
        texts = self._with_templates(data.train)
        import_sklearn("linear_model")  # raises before the encoder is loaded
        encoder = SentenceEncoder(package, self.model, self.max_length, seed=seed)
        read = replace(texts, texts=encoder.texts(single_texts(texts)))
        batches = self._batches(read, encoder, seed)
        if self.max_steps != 0:
            steps = self.epochs * len(batches)
            steps = steps if self.max_steps is None else min(steps, self.max_steps)
            objective = PairSimilarity(encoder.pooling.pooling, self.loss)
            encoder.train(batches, self._config(seed, steps=steps), objective, console)
        linear = fit_linear(self.name, encoder, texts, regression(self.inverse_penalty, self.balanced))
        layer = linear.coefficients, linear.intercepts
        if self.differentiable_head:
            layer = self._train_head(encoder, *layer, read, seed, console)
        return SetFitClassifier(self.name, encoder, *layer, texts.label_names, texts.multi_label)

    def _with_templates(self, texts: LabelledTexts) -> LabelledTexts:
        """Return the texts and, with a template, the synthetic ones."""
        if self.template is None:
            if not len(texts):
                raise InputError(
                    "there are no training texts; add some, or set a template to start from the labels' names"
                )
            return texts
        named = {name: self.template.format(name) for name in texts.label_names}
        return with_descriptions(texts, named, self.template_examples)

    def _batches(self, texts: LabelledTexts, encoder: SentenceEncoder, seed: int) -> ContrastiveBatches:
        return ContrastiveBatches(
            texts, encoder.tokenizer, self.batch_size, strategy=self.strategy, iterations=self.iterations,
            max_length=encoder.max_length, widths=few_widths(encoder.max_length), seed=seed,
        )  # fmt: skip

    def _config(self, seed: int, **options: Any) -> FitConfig:
        return FitConfig(
            seed=seed, learning_rate=self.learning_rate, warmup_share=self.warmup_share, evaluate_every=0, save_every=0,
            **options,
        )  # fmt: skip

    def _train_head(
        self,
        encoder: SentenceEncoder,
        kernel: np.ndarray,
        bias: np.ndarray,
        texts: LabelledTexts,
        seed: int,
        console: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a linear layer after training it together with the encoder; probabilities of 0 and 1 remain."""
        divisor = float(self.temperature)
        start = np.clip(bias, -CERTAIN, CERTAIN)
        objective = EmbeddingLabels(
            encoder.pooling.pooling, encoder.pooling.normalize, texts.multi_label, divisor,
            (kernel * divisor).astype(np.float32), (start * divisor).astype(np.float32),
        )  # fmt: skip
        # The last batch is filled up, so slices of all sizes share the compiled programs.
        batches = LabelledBatches(
            texts, encoder.tokenizer, self.batch_size, max_length=encoder.max_length, seed=seed,
            widths=few_widths(encoder.max_length),
        )  # fmt: skip
        own = encoder.train(batches, self._config(seed, epochs=self.head_epochs), objective, console)
        trained = own["bias"].astype(np.float64) / divisor
        return own["kernel"].astype(np.float64) / divisor, np.where(np.isfinite(bias), trained, bias)
