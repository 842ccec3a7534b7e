"""Shared parts of ``fit``: order of the batches, number of examples, and identity of the run in a folder."""

import numpy as np
import pytest

from duonlp.errors import CheckpointError, InputError
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import count_examples, endless_batches, total_steps
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
