"""Shared parts of ``fit``: order of the batches, number of examples, and identity of the run in a folder."""

import numpy as np
import pytest

from duonlp.errors import CheckpointError, InputError
from duonlp.names import merge_named
from duonlp.training.best import Best
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import check_evaluation, count_examples, endless_batches, evaluation_results, total_steps
from duonlp.training.run_file import RUN_FILE, check_run, read_run, write_run


class Epochs:
    """Three batches per epoch, which record what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def epoch(self, number, first=0):
        for i in range(first, 3):
            self.read.append((number, i))
            yield {"x": 10 * number + i}


class Plain:
    """Three batches per epoch that can only be read from the first."""

    def epoch(self, number):
        return iter([{"x": 10 * number + i} for i in range(3)])


def take(batches, count, *start):
    rows = endless_batches(batches, *start)
    return [(epoch, index, batch["x"], last) for (epoch, index, batch, last), _ in zip(rows, range(count))]


@pytest.mark.parametrize(
    "batches", [Epochs(), Plain(), [{"x": 10}, {"x": 11}, {"x": 12}]], ids=["first", "plain", "list"]
)
def test_batches_resume_within_an_epoch(batches):
    next_one = 10 if isinstance(batches, list) else 20
    assert take(batches, 4, 1, 1) == [
        (1, 1, 11, False),
        (1, 2, 12, True),
        (2, 0, next_one, False),
        (2, 1, next_one + 1, False),
    ]
    assert take(batches, 1, 1, 3)[0][:2] == (2, 0)  # past the end of an epoch


def test_skipped_batches_are_not_read():
    batches = Epochs()
    take(batches, 1, 2, 2)
    assert batches.read[0] == (2, 2)
    with pytest.raises(InputError, match="no batches in epoch 0"):
        next(endless_batches([]))


def test_padding_rows_are_not_counted():
    ids, labels = np.ones((4, 3)), np.array([0, 2, -100, -100])
    assert count_examples({"input_ids": ids}) == 4
    assert count_examples({"input_ids": ids, "labels": labels}) == 2
    assert count_examples({"input_ids": ids, "labels": np.stack([labels, labels])[:, [2, 2]].T.repeat(2, 0)}) == 0
    assert (
        count_examples({"input_ids": ids, "labels": np.zeros((4, 2), np.float32), "sample_weight": [1, 1, 0, 0.5]}) == 3
    )


def test_total_steps():
    assert total_steps([{}] * 5, FitConfig(epochs=2), None, None) == 10
    assert total_steps(iter([]), FitConfig(steps=7), None, None) == 7
    with pytest.raises(InputError, match="set steps in the FitConfig"):
        total_steps(iter([]), FitConfig(), None, None)


def test_results_of_an_evaluation_never_replace_each_other():
    scores = {"loss": 9, "accuracy": np.float32(0.5), "step": 3, "student_loss": 1, "train_loss": 2, "examples": 4}
    own = {"loss": 0.1, "student_loss": 0.2}
    merged = evaluation_results(own, scores)
    assert merged == own | {
        "evaluate_loss": 9, "accuracy": 0.5, "evaluate_step": 3, "evaluate_student_loss": 1, "evaluate_train_loss": 2,
        "evaluate_examples": 4,
    }  # fmt: skip
    assert evaluation_results({}, {"loss": 9.0}) == {"loss": 9.0} and type(merged["accuracy"]) is float
    best = Best("step")
    assert best.update(1, merged) and best.value == 3  # a metric that a run has always been able to name
    loss = Best("loss")
    assert loss.update(1, merged) and loss.value == 0.1
    for wrong, message in (
        ({"loss": 1, "evaluate_loss": 2}, "'loss', which the run uses itself, and also 'evaluate_loss'"),
        ({"a": "x"}, "a='x'; it must return numbers"), ([1], r"evaluate returned \[1\]"), (None, "evaluate returned None"),
        ({"a": None}, "a=None"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            evaluation_results(own, wrong)
    assert merge_named({"a": 1}, {"b": 2}, "x and y") == {"a": 1, "b": 2}
    with pytest.raises(InputError, match="x and y both have 'a'; rename"):
        merge_named({"a": 1}, {"a": 1}, "x and y")


class Scorer:
    """An evaluation with a loss of its own, which can be checked before training."""

    def dry_run(self, model):
        return {"loss": 0.0, "accuracy": 0.0}


def test_the_best_metric_may_be_the_loss_of_an_evaluation():
    assert total_steps([{}], FitConfig(epochs=2), None, Scorer()) == 2
    for name, has_loss in (("loss", True), ("loss", False), ("evaluate_loss", True), ("accuracy", False)):
        check_evaluation(Scorer(), None, Best(name), has_loss)
    with pytest.raises(InputError, match="computes only loss, accuracy"):
        check_evaluation(Scorer(), None, Best("evaluate_loss"), False)
    with pytest.raises(InputError, match="there are no validation batches"):
        total_steps([{}], FitConfig(), None, lambda model: {"loss": 0.0})


def test_a_folder_holds_a_single_run(tmp_path):
    config, about = FitConfig(), {"data": {"batches": 3}}
    assert not check_run(tmp_path / "run", config, about)
    write_run(tmp_path / "run", config, about)
    assert check_run(tmp_path / "run", FitConfig(log_every=3), about)
    assert read_run(tmp_path / "run")["data"] == {"batches": 3}
    with pytest.raises(InputError, match=r"different data \(batches: stored 3, now 4\)"):
        check_run(tmp_path / "run", config, {"data": {"batches": 4}})
    with pytest.raises(InputError, match=r"epochs=3 \(now 5\)"):
        check_run(tmp_path / "run", FitConfig(epochs=5), about)
    (tmp_path / "run" / RUN_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        check_run(tmp_path / "run", config, about)
    with pytest.raises(InputError, match="is a file"):
        check_run(tmp_path / "run" / RUN_FILE, config, about)
