"""A stand-in for tfnlp or jaxnlp without a framework, for tests of runs and the command line."""

import hashlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.save import save_checkpoint
from duonlp.cli import training as cli_training
from duonlp.cli.app import main
from duonlp.distillation.students import student_config
from duonlp.errors import NewHeadWarning
from duonlp.parameters import initial_value, parameters
from duonlp.training.best import Best
from duonlp.training.log.metrics_log import MetricsLog
from duonlp.training.result import FitResult

HEAD = "sequence-classification"


class Model:
    """A model that stores how many epochs it was trained for, and gets this many of eight texts right."""

    head = HEAD

    def __init__(self, config, epochs: int = 0):
        self.config, self.epochs = config, epochs

    def num_parameters(self) -> int:
        return sum(parameter.size for parameter in parameters(self.config, HEAD).values())

    def save_pretrained(self, folder, tokenizer=None) -> None:
        spec = parameters(self.config, HEAD)
        save_checkpoint(
            Path(folder), self.config, HEAD, lambda path: initial_value(path, spec[path]), np.dtype("float32"), tokenizer
        )  # fmt: skip
        (Path(folder) / "epochs.txt").write_text(str(self.epochs))


class Classifiers:
    """Stand-in for AutoModelForSequenceClassification."""

    @staticmethod
    def from_pretrained(name, *, dtype=None, seed=0, ignore_mismatched_sizes=False, **overrides):
        checkpoint = open_checkpoint(name)
        if checkpoint.head != HEAD:
            warnings.warn(f"the {HEAD} head starts from random values", NewHeadWarning, stacklevel=2)
        epochs = Path(name) / "epochs.txt"
        return Model(checkpoint.transformer_config(**overrides), int(epochs.read_text()) if epochs.exists() else 0)


class Package:
    """A stand-in for jaxnlp that records the calls of its functions in ``calls``."""

    __name__ = "jaxnlp"
    AutoModelForSequenceClassification = Classifiers

    def __init__(self, best_epoch: int | None = None, stop_after: int | None = None):
        self.best_epoch, self.stop_after, self.calls = best_epoch, stop_after, []
        self.training = SimpleNamespace(fit=self._fit)

    def predict(self, model, batches, *, as_teacher=False):
        """Predict the right label for texts whose index modulo 8 is below the epochs, and a wrong one for others."""
        labels, classes = batches.labels, len(batches.label_names)
        is_right = np.arange(len(labels)) % 8 < model.epochs + (4 if as_teacher else 0)
        logits = np.zeros((len(labels), classes), np.float32)
        logits[np.arange(len(labels)), np.where(is_right, labels, (labels + 1) % classes)] = np.where(is_right, 4, 1)
        return logits[:, [batches.label_names.index(name) for name in model.config.labels]]

    def init_student(self, teacher, *, num_layers=None, layers=None, decoder_layers=None):
        return Model(student_config(teacher.config, HEAD, num_layers=num_layers, layers=layers).config)

    def cached_teacher_logits(self, teacher, batches, folder):
        self.calls.append(("cached_teacher_logits", str(folder)))
        return batches

    def distill(self, student, teacher, batches, config, distillation, folder, *, teacher_tokenizer=None, **options):
        self.calls.append(("distill", distillation))
        return self._fit(student, batches, config, folder, **options)

    def _fit(
        self, model, batches, config, folder, *, evaluate=None, on_evaluation=None, validation=None, tokenizer=None,
        data=None, log=None,
    ):  # fmt: skip
        self.calls.append(("fit", config))
        best, history = Best(config.best_metric, config.greater_is_better), []
        state = Path(folder) / "run.json"
        saved = json.loads(state.read_text()) if state.exists() else None
        first = saved["epoch"] if saved else 0
        if saved:
            best.restore(saved["best"])
        size = len(batches)
        with MetricsLog(
            folder, total_steps=config.epochs * size, unit="examples", console=False,
            resumed_from=first * size if saved else None,
        ) as writer:  # fmt: skip
            if evaluate is not None:
                evaluate.dry_run(model)
            for epoch in range(first, config.epochs):
                step = (epoch + 1) * size
                better = epoch + 1 if self.best_epoch is None else self.best_epoch - abs(epoch + 1 - self.best_epoch)
                model = Model(model.config, better)
                writer.step({"step": step, "loss": 1 / (epoch + 1), "examples": step * 8})
                if evaluate is not None:
                    history.append({"step": step, **evaluate(model)})
                    writer.evaluation({"name": "validation", **history[-1]})
                    if best.update(step, history[-1]):
                        model.save_pretrained(Path(folder) / "best", tokenizer)
                    if on_evaluation is not None:
                        on_evaluation(step, history[-1])
                state.write_text(json.dumps({"epoch": epoch + 1, "best": best.to_dict()}))
                if epoch + 1 == self.stop_after:
                    break
        last = epoch + 1 if config.epochs > first else config.epochs
        best_result = None if best.value is None else {"value": best.value, "step": best.step}
        return FitResult(
            model, last * size, last * size * 8, 2.0, 0.5, history, best_result, None, False, last < config.epochs
        )


def fingerprint_of(folder: Path) -> dict[str, str]:
    """Return the hash of each file in a folder, to check whether anything was written."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


def command(capsys, monkeypatch):
    """Return run(*arguments, package=None) -> (exit status, stdout, stderr) of the command line."""

    def call(*arguments, package=None):
        if package is not None:
            monkeypatch.setattr(cli_training, "load_package", lambda name, trains=False: (package, "jax"))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call
