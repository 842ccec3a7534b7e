"""Fuzz the files of classifiers that were learned from few labels.

A classifier joins by registering a function that writes one::

    fuzzed_classifier("naive Bayes", lambda folder: NaiveBayes().fit(None, DATA).save(folder))

Its classifier.json and, if it has one, its classifier.safetensors are mutated; then it either loads and scores texts, or raises
one of the library's errors. ``package`` returns the engine of a classifier that runs a model.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.formats import fuzz, fuzzed
from tests.attack.harness import Budget, Outcome, attack

GROUP = "mutated classifiers"

TEXTS = ["the download hangs", "docs of the download", "add a dataset", "typo in the docs of streaming"]
NAMES = ("bug", "docs", "new [red]:smile:[/]")
ONE, SEVERAL = np.array([0, 1, 2, 1], np.int32), np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)


@attack(GROUP)
def mutated_classifiers(budget: Budget) -> Iterator[Outcome]:
    """Mutate the files of classifiers that were learned from few labels."""
    if find_spec("sklearn"):
        yield from fuzz(budget, GROUP)


def fuzzed_classifier(
    name: str, save: Callable[[Path], object], package: Callable[[], Any] = lambda: None, *, arrays: bool = True
) -> None:
    """Register the files of a classifier.

    Args:
        name: Name in reports.
        save: Train a classifier and save it to a folder.
        package: Return tfnlp or jaxnlp, for a classifier that runs a model.
        arrays: Whether it has a classifier.safetensors.
    """
    from duonlp.fewshot import load_classifier
    from duonlp.fewshot.classifier import ARRAYS, CLASSIFIER

    def read(file: Path) -> None:
        classifier = load_classifier(file.parent, package())
        scores = classifier.scores(TEXTS)
        assert scores.shape == (len(TEXTS), len(classifier.label_names)) and scores.dtype == np.float32
        assert (scores >= 0).all() and (scores <= 1).all(), scores
        if not classifier.multi_label:
            np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-4)

    def writer(file: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            save(folder / "classifier")
            return folder / "classifier" / file

        return write

    for file, kind in ((CLASSIFIER, "json"), (ARRAYS, "bytes")):
        if arrays or file == CLASSIFIER:
            fuzzed(f"{file} of {name}", kind, write=writer(file), group=GROUP)(read)


def _baseline(method: str, labels: np.ndarray) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        from duonlp.data import LabelledTexts
        from duonlp.fewshot import FewShotData, method_class

        data = FewShotData(LabelledTexts(TEXTS, labels, NAMES))
        method_class(method)().fit(None, data).save(folder)

    return save


for method in ("naive-bayes", "tf-idf"):
    fuzzed_classifier(method, _baseline(method, ONE))
    fuzzed_classifier(f"{method} with several labels", _baseline(method, SEVERAL))


def _setfit(folder: Path) -> None:
    from duonlp.data import LabelledTexts
    from duonlp.fewshot import FewShotData
    from duonlp.fewshot.setfit import SetFit
    from tests import intents

    body = intents.checkpoint(folder.parent / "encoder", num_hidden_layers=1)
    method = SetFit(model=str(body), max_steps=0, max_length=8)
    method.fit(_jaxnlp(), FewShotData(LabelledTexts(TEXTS, ONE, NAMES))).save(folder)


def _jaxnlp() -> Any:
    import jaxnlp

    return jaxnlp


fuzzed_classifier("setfit", _setfit, _jaxnlp)
