"""Settings of fine-tuning, tracking of the best evaluation, and a log that counts examples."""

import io
import json
import math

import pytest
from rich.console import Console

from duonlp.errors import InputError
from duonlp.training.best import Best, greater_is_better
from duonlp.training.fit_config import FitConfig, fit_event_due
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.log.metrics_log import MetricsLog


def test_settings_round_trip_through_json_and_reject_unknown_keys():
    config = FitConfig(epochs=2, clip_norm=None, evaluate_every=100, best_metric="rougeL")
    assert FitConfig.of(json.loads(json.dumps(config.to_dict()))) == config
    config.check_resumable(FitConfig(epochs=2, clip_norm=None, best_metric="rougeL", log_every=3).to_dict())
    with pytest.raises(InputError, match=r"clip_norm=1.0 \(now None\)"):
        config.check_resumable(FitConfig(epochs=2, best_metric="rougeL").to_dict())
    with pytest.raises(InputError, match=r"best_metric='loss' \(now 'rougeL'\)"):
        config.check_resumable(FitConfig(epochs=2, clip_norm=None).to_dict())
    with pytest.raises(InputError, match="'lerning_rate' is not a setting of fit"):
        FitConfig.of({"lerning_rate": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"optimizer": "adam"}, "must be one of adamw, adafactor, lion"),
        ({"save_every": True}, "save_every is True"),
        ({"seed": -1}, "seed is -1"),
        ({"schedule": "inverse_sqrt", "warmup_share": 0.0}, "give a warmup_share above 0"),
    ],
)
def test_invalid_settings(changes, message):
    with pytest.raises(InputError, match=message):
        FitConfig(**changes)


def test_intervals_in_steps_and_epochs():
    steps = [(1, False, False), (2, True, False), (3, False, False), (4, True, True)]
    times = {every: [step for step, *rest in steps if fit_event_due(every, step, *rest)] for every in ("epoch", 3, 0)}
    assert times == {"epoch": [2, 4], 3: [3, 4], 0: []}


def test_the_best_value_and_early_stopping():
    best = Best("rougeL", patience=2, min_delta=0.1)
    assert [best.update(step, {"rougeL": value}) for step, value in enumerate((0.2, 0.25, 0.4), 1)] == [
        True,
        False,
        True,
    ]
    assert not best.update(4, {"rougeL": math.nan}) and not best.out_of_patience
    restored = Best("rougeL", patience=2, min_delta=0.1)
    restored.restore(json.loads(json.dumps(best.to_dict())))
    assert (
        not restored.update(5, {"rougeL": 0.45})
        and restored.out_of_patience
        and (restored.value, restored.step) == (0.4, 3)
    )
    assert (
        Best("val_loss").update(1, {"val_loss": 3.0})
        and not greater_is_better("perplexity")
        and greater_is_better("f1")
    )
    for arguments, message in (({"min_delta": -0.1}, "min_delta is -0.1"), ({"patience": 0}, "patience is 0")):
        with pytest.raises(InputError, match=message):
            Best("loss", **arguments)
    with pytest.raises(InputError, match="the evaluation has no metric 'rouge2'; choose one of rougeL"):
        Best("rouge2").update(1, {"rougeL": 0.1})


def test_a_log_of_examples(tmp_path):
    console = Console(file=io.StringIO(), width=160)
    with MetricsLog(tmp_path, total_steps=2, console=console, console_seconds=0, unit="examples") as log:
        for step in (1, 2):
            log.step({"step": step, "loss": 0.5, "examples": 8 * step, "seconds": 2.0 * step})
        log.evaluation({"name": "validation", "step": 2, "loss": 0.25, "rougeL": 0.5})
    lines = console.file.getvalue().splitlines()
    assert lines[1] == "step 2/2 (100%)  loss 0.500  4.0 examples/s  2.00 s/step  ETA 0:00:00"
    assert lines[2] == "step 2: validation loss 0.2500, rougeL 0.5"
    records = read_metrics(tmp_path)
    assert records[1]["examples_per_second"] == 4 and records[2]["examples"] == 16
    assert not any("perplexity" in record for record in records)
    with (
        pytest.raises(InputError, match="the record of a step lacks examples"),
        MetricsLog(tmp_path / "other", total_steps=2, console=False, unit="examples") as log,
    ):
        log.step({"step": 1, "loss": 0.5, "tokens": 8})
