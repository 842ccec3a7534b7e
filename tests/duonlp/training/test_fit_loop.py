"""What both fits share: which batch is the next, how many rows count, and whether a folder holds this run."""

import numpy as np
import pytest

from duonlp.errors import CheckpointError, InputError
from duonlp.training.fit_config import FitConfig
from duonlp.training.fit_loop import count_examples, endless_batches, total_steps
from duonlp.training.run_file import RUN_FILE, check_run, read_run, write_run


class Epochs:
    """Three batches an epoch, which remember what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def epoch(self, number, first=0):
        for i in range(first, 3):
            self.read.append((number, i))
            yield {"x": 10 * number + i}


class Plain:
    """The same, which begin at the beginning."""

    def epoch(self, number):
        return iter([{"x": 10 * number + i} for i in range(3)])


def taken(batches, count, *start):
    rows = endless_batches(batches, *start)
    return [(epoch, index, batch["x"], last) for (epoch, index, batch, last), _ in zip(rows, range(count))]


@pytest.mark.parametrize(
    "batches", [Epochs(), Plain(), [{"x": 10}, {"x": 11}, {"x": 12}]], ids=["first", "plain", "list"]
)
def test_a_stream_goes_on_in_the_middle_of_an_epoch(batches):
    next_one = 10 if isinstance(batches, list) else 20
    assert taken(batches, 4, 1, 1) == [
        (1, 1, 11, False),
        (1, 2, 12, True),
        (2, 0, next_one, False),
        (2, 1, next_one + 1, False),
    ]
    assert taken(batches, 1, 1, 3)[0][:2] == (2, 0)  # an epoch that was done


def test_nothing_is_read_to_be_thrown_away():
    batches = Epochs()
    taken(batches, 1, 2, 2)
    assert batches.read[0] == (2, 2)
    with pytest.raises(InputError, match="no batches in epoch 0"):
        next(endless_batches([]))


def test_rows_that_only_fill_a_batch_up_are_no_examples():
    ids, some = np.ones((4, 3)), np.array([0, 2, -100, -100])
    assert count_examples({"input_ids": ids}) == 4
    assert count_examples({"input_ids": ids, "labels": some}) == 2
    assert count_examples({"input_ids": ids, "labels": np.stack([some, some])[:, [2, 2]].T.repeat(2, 0)}) == 0
    assert count_examples({"input_ids": ids, "labels": np.zeros((4, 2), np.float32), "sample_weight": [1, 1, 0, 0.5]}) == 3


def test_steps_are_those_of_all_epochs():
    assert total_steps([{}] * 5, FitConfig(epochs=2), None, None) == 10
    assert total_steps(iter([]), FitConfig(steps=7), None, None) == 7
    with pytest.raises(InputError, match="set steps in the FitConfig"):
        total_steps(iter([]), FitConfig(), None, None)


def test_a_folder_holds_one_run(tmp_path):
    config, about = FitConfig(), {"data": {"batches": 3}}
    assert not check_run(tmp_path / "run", config, about)
    write_run(tmp_path / "run", config, about)
    assert check_run(tmp_path / "run", FitConfig(log_every=3), about)
    assert read_run(tmp_path / "run")["data"] == {"batches": 3}
    with pytest.raises(InputError, match="another data: batches is 3 there and 4 here"):
        check_run(tmp_path / "run", config, {"data": {"batches": 4}})
    with pytest.raises(InputError, match=r"epochs=3 \(now 5\)"):
        check_run(tmp_path / "run", FitConfig(epochs=5), about)
    (tmp_path / "run" / RUN_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_run(tmp_path / "run", config, about)
    with pytest.raises(InputError, match="is a file"):
        check_run(tmp_path / "run" / RUN_FILE, config, about)
