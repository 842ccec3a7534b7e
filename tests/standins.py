"""A package without a framework: what runs and the command line call of tfnlp or jaxnlp, with models that only count."""

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
from duonlp.parameters import initial_value, parameters
from duonlp.training.best import Best
from duonlp.training.log.metrics_log import MetricsLog
from duonlp.training.result import FitResult

HEAD = "sequence-classification"


class Model:
    """Knows how many epochs it was trained: so many of eight texts it gets right."""

    head = HEAD

    def __init__(self, config, epochs: int = 0):
        self.config, self.epochs = config, epochs

    def num_parameters(self) -> int:
        return sum(each.size for each in parameters(self.config, HEAD).values())

    def save_pretrained(self, folder, tokenizer=None) -> None:
        spec = parameters(self.config, HEAD)
        save_checkpoint(
            Path(folder), self.config, HEAD, lambda path: initial_value(path, spec[path]), np.dtype("float32"), tokenizer
        )  # fmt: skip
        (Path(folder) / "epochs.txt").write_text(str(self.epochs))


class Classifiers:
    """AutoModelForSequenceClassification."""

    @staticmethod
    def from_pretrained(name, *, dtype=None, seed=0, ignore_mismatched_sizes=False, **overrides):
        checkpoint = open_checkpoint(name)
        if checkpoint.head != HEAD:
            warnings.warn(f"the {HEAD} head starts from random values", stacklevel=2)
        epochs = Path(name) / "epochs.txt"
        return Model(checkpoint.transformer_config(**overrides), int(epochs.read_text()) if epochs.exists() else 0)


class Package:
    """A stand-in for jaxnlp, whose ``calls`` tell what was asked of it."""

    __name__ = "jaxnlp"
    AutoModelForSequenceClassification = Classifiers

    def __init__(self, best_epoch: int | None = None, stop_after: int | None = None):
        self.best_epoch, self.stop_after, self.calls = best_epoch, stop_after, []
        self.training = SimpleNamespace(fit=self._fit)

    def predict(self, model, batches, *, as_teacher=False):
        """Right for texts whose number's last three bits are below the epochs; like a coin elsewhere."""
        labels, classes = batches.labels, len(batches.label_names)
        known = np.arange(len(labels)) % 8 < model.epochs + (4 if as_teacher else 0)
        logits = np.zeros((len(labels), classes), np.float32)
        logits[np.arange(len(labels)), np.where(known, labels, (labels + 1) % classes)] = np.where(known, 4, 1)
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
        done = json.loads(state.read_text()) if state.exists() else None
        first = done["epoch"] if done else 0
        if done:
            best.restore(done["best"])
        size = len(batches)
        with MetricsLog(
            folder, total_steps=config.epochs * size, unit="examples", console=False,
            resumed_from=first * size if done else None,
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
        found = None if best.value is None else {"value": best.value, "step": best.step}
        return FitResult(
            model, last * size, last * size * 8, 2.0, 0.5, history, found, None, False, last < config.epochs
        )


def fingerprint_of(folder: Path) -> dict[str, str]:
    """The files of a folder and hashes of them: whether anything was written."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


def command(capsys, monkeypatch):
    """run(*arguments) -> (status, standard output, standard error), with a stand-in for the package."""

    def call(*arguments, package=None):
        if package is not None:
            monkeypatch.setattr(cli_training, "load_package", lambda name, trains=False: (package, "jax"))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call
