"""The log of a run: the records, the console, resuming, and trackers."""

import importlib.util
import io
import json
import math
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from duonlp.errors import InputError, MissingExtraError
from duonlp.training.log.console import Curve, format_duration, format_short, format_step_time, sparkline
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.log.metrics_log import MetricsLog, NullLog, perplexity


def log_steps(log, steps, loss=lambda step: 8 / step, tokens=100, seconds=0.5):
    return [
        log.step({"step": s, "loss": loss(s), "learning_rate": 1e-3, "tokens": s * tokens, "seconds": s * seconds})
        for s in steps
    ]


def quiet(folder, **options):
    return MetricsLog(folder, **({"total_steps": 10, "console": False} | options))


def screen(terminal=False, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def test_a_record_has_throughput_mfu_perplexity_and_eta_over_the_window(tmp_path):
    with quiet(tmp_path, flops_per_token=1e6, peak_flops=1e9, window=4) as log:
        first, *_, last = log_steps(log, range(1, 6))
        assert "tokens_per_second" not in first and first["eta_seconds"] is None  # needs two records
        assert last["tokens_per_second"] == pytest.approx(200) and last["step_seconds"] == pytest.approx(0.5)
        assert last["mfu"] == pytest.approx(0.2) and last["eta_seconds"] == pytest.approx(2.5)
        assert last["perplexity"] == pytest.approx(math.exp(8 / 5))
        assert last["smoothed_loss"] == pytest.approx(np.mean([8 / s for s in range(2, 6)]))
        # A slow step stops mattering once it has left the window.
        slow = log.step({"step": 6, "loss": 1.0, "tokens": 600, "seconds": 102.5})
        assert slow["step_seconds"] == pytest.approx((102.5 - 1.0) / 4)
        for step in range(7, 11):
            last = log.step({"step": step, "loss": 1.0, "tokens": step * 100, "seconds": 102.5 + (step - 6) * 0.5})
        assert last["step_seconds"] == pytest.approx(0.5) and last["eta_seconds"] == 0
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == list(range(1, 11)) and {r["kind"] for r in records} == {"step"}
    assert records[-1] == {key: value for key, value in last.items() if key != "eta_seconds"}


def test_skipped_steps_and_a_time_limited_run(tmp_path):
    with quiet(tmp_path, total_steps=1000) as log:
        log.step({"step": 10, "loss": 2.0, "tokens": 1000, "seconds": 5.0, "progress": 0.1})
        record = log.step({"step": 20, "loss": 2.0, "tokens": 2000, "seconds": 10.0, "progress": 0.2})
        assert record["step_seconds"] == pytest.approx(0.5) and record["eta_seconds"] == pytest.approx(40)


def test_without_a_published_peak_there_is_no_mfu(tmp_path):
    with quiet(tmp_path, flops_per_token=1e6) as log:
        assert "mfu" not in log_steps(log, range(1, 4))[-1]
    with pytest.raises(InputError, match="the peak is 0 FLOP/s"):
        quiet(tmp_path / "other", flops_per_token=1e6, peak_flops=0)


def test_array_scalars_and_non_finite_values_are_valid_json(tmp_path):
    with quiet(tmp_path) as log:
        log.step(
            {"step": np.int64(1), "loss": np.float32(0.5), "tokens": np.array(8), "grad_norm": np.inf, "note": "é"}
        )
        record = log.step({"step": 2, "loss": math.nan, "tokens": 16, "grad_norm": -math.inf})
        assert math.isnan(record["perplexity"]) and math.isnan(record["smoothed_loss"])
        assert perplexity(1e4) == math.inf
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines)
    assert (first["loss"], first["tokens"], first["grad_norm"], first["note"]) == (0.5, 8, "inf", "é")
    assert (second["loss"], second["grad_norm"]) == ("nan", "-inf") and isinstance(first["step"], int)
    read = read_metrics(tmp_path / "metrics.jsonl")[1]
    assert math.isnan(read["loss"]) and read["grad_norm"] == -math.inf


def test_evaluations(tmp_path):
    with quiet(tmp_path) as log:
        log_steps(log, [1])
        assert log.evaluation({"step": 1, "loss": 2.0}) == {
            "kind": "evaluation", "step": 1, "loss": 2.0, "tokens": 100, "perplexity": pytest.approx(math.exp(2)),
        }  # fmt: skip
        log.evaluation({"step": 1, "name": "human_eval", "pass_at_1": 0.25})
    kinds = [(r["kind"], r.get("name")) for r in read_metrics(tmp_path)]
    assert kinds == [("step", None), ("evaluation", None), ("evaluation", "human_eval")]


def test_a_record_never_replaces_what_the_log_adds(tmp_path):
    with quiet(tmp_path) as log:
        for record, name in (({"perplexity": 1.0}, "perplexity"), ({"mfu": 1.0}, "mfu"), ({"kind": "step"}, "kind")):
            with pytest.raises(InputError, match=f"the record has {name}, which the log adds"):
                log.step({"step": 1, "loss": 2.0, "tokens": 10} | record)
        with pytest.raises(InputError, match="the record has perplexity"):
            log.evaluation({"step": 1, "loss": 2.0, "perplexity": 3.0})
        with pytest.raises(InputError, match="named 'train'"):
            log.evaluation({"step": 1, "name": "train"})
        assert log.evaluation({"step": 1, "perplexity": 3.0})["perplexity"] == 3.0
    with quiet(tmp_path / "examples", unit="examples") as log:
        assert log.evaluation({"step": 1, "loss": 2.0, "perplexity": 3.0})["perplexity"] == 3.0


def test_each_record_is_written_at_once(tmp_path):
    log = quiet(tmp_path)
    log_steps(log, [1, 2])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]  # as after kill -9: nothing was closed
    log.close()
    log.close()
    with pytest.raises(InputError, match="closed"):
        log_steps(log, [3])


@pytest.mark.parametrize("truncated", ["", '{"kind": "step", "st', '{"kind": "step", "step": 9, "loss": 1.0}'])
def test_resuming_removes_later_records_and_a_truncated_line(tmp_path, truncated):
    with quiet(tmp_path) as log:
        log_steps(log, range(1, 7))
        log.evaluation({"step": 4, "loss": 1.0})
        log.evaluation({"step": 6, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(truncated)
    with quiet(tmp_path, resumed_from=4) as log:
        records = read_metrics(tmp_path)
        assert [(r["kind"], r["step"]) for r in records] == [("step", s) for s in range(1, 5)] + [("evaluation", 4)]
        record, _ = log_steps(log, [5, 6])
        assert "tokens_per_second" not in record  # time between two processes is not training time
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_complete_last_line_without_a_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
    with quiet(tmp_path, resumed_from=2) as log:
        log_steps(log, [3])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_resuming_before_the_first_checkpoint_empties_the_file(tmp_path):
    with quiet(tmp_path) as log:
        log_steps(log, [1, 2])
    with quiet(tmp_path, resumed_from=0):
        assert read_metrics(tmp_path) == []


def test_invalid_use_raises(tmp_path):
    with quiet(tmp_path) as log:
        with pytest.raises(InputError, match="lacks loss"):
            log.step({"step": 1, "tokens": 3})
        with pytest.raises(InputError, match="lacks step"):
            log.evaluation({"loss": 1.0})
        log_steps(log, [2])
        with pytest.raises(InputError, match="step 2 was logged after step 2"):
            log_steps(log, [2])
    with pytest.raises(InputError, match="an earlier run"):
        quiet(tmp_path)
    with pytest.raises(InputError, match="total_steps is 0"):
        quiet(tmp_path, total_steps=0)
    with pytest.raises(InputError, match="does not exist"):
        read_metrics(tmp_path / "nothing")
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnot a record\n{"step": 2}\n')
    for use in (lambda: read_metrics(file), lambda: quiet(tmp_path, resumed_from=1)):
        with pytest.raises(InputError, match="line 2 of"):
            use()
    assert file.read_text().count("\n") == 3 and len(list(tmp_path.iterdir())) == 1


def test_a_log_file_gets_occasional_lines_and_always_the_last(tmp_path):
    console = screen()
    with quiet(tmp_path, console=console, console_seconds=3600, flops_per_token=1e6, peak_flops=1e9) as log:
        log_steps(log, range(1, 8))
        log.evaluation({"step": 7, "loss": 2.0, "accuracy": 0.5})
        log.message("[saved] step 7")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "step 1/10 (10%)  loss 8.000  perplexity 2,981  learning rate 1.00e-03"
    assert lines[1] == "step 7: held-out loss 2.0000, perplexity 7.39, accuracy 0.5"
    assert lines[2] == "[saved] step 7"
    assert lines[3].startswith("step 7/10 (70%)  loss 2.963  perplexity 3.14")
    assert lines[3].endswith("200 tokens/s  500 ms/step  MFU 20.0%  ETA 0:00:02")
    assert len(lines) == 4


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_gets_a_bar_that_fits(tmp_path, width):
    console = screen(terminal=True, width=width)
    with quiet(tmp_path, console=console, flops_per_token=1e6, peak_flops=1e9) as log:
        log_steps(log, range(1, 11))
        log.evaluation({"step": 10, "loss": 2.0})
    text = console.file.getvalue()
    assert "loss 2.343" in text and "held-out loss 2.0000" in text
    assert all(word in text for word in (("ETA", "tok/s", "ppl", "MFU", "█") if width == 200 else ()))
    note = log._display.bar_note(log_record(), 100.0)
    assert len(note) <= max(log._display.room, len("loss 2.343"))


def log_record():
    return {
        "step": 10, "smoothed_loss": 2.343, "perplexity": 10.0, "tokens_per_second": 200.0, "mfu": 0.2,
        "step_seconds": 0.5,
    }  # fmt: skip


def test_formatting():
    assert [format_duration(s) for s in (0, 61.4, 3723, 90061, None, math.inf)] == [
        "0:00:00", "0:01:01", "1:02:03", "1 day 1:01:01", "-:--:--", "-:--:--",
    ]  # fmt: skip
    assert [format_short(x) for x in (3.214, 24.81, 12345.6, 1.2e9, math.inf)] == [
        "3.21",
        "24.8",
        "12,346",
        "1.2e+09",
        "inf",
    ]
    assert [format_step_time(s) for s in (2.5, 0.12, 0.0042)] == ["2.50 s", "120 ms", "4.2 ms"]
    assert sparkline([1, 2, 3, math.nan], 3) == "▁▅█" and sparkline([math.nan]) == "" and sparkline([5]) == "▁"


def test_a_curve_is_bounded():
    curve = Curve(capacity=8)
    for i in range(1000):
        curve.add(float(i))
    curve.add(math.nan)
    assert len(curve.values) <= 8 and curve.values == sorted(curve.values)
    assert curve.values[0] == pytest.approx(63.5) and curve.values[-1] > 800


def test_the_other_processes_log_nothing(tmp_path):
    with NullLog(tmp_path / "run", total_steps=3, tensorboard=True) as log:
        assert log.step({"step": 1}) == {"step": 1} and log.evaluation({"step": 1}) == {"step": 1}
        log.message("")
        log.close(failed=True)
    assert not list(tmp_path.iterdir())
    public = {name for name in vars(MetricsLog) if not name.startswith("_")}
    assert public == {name for name in vars(NullLog) if not name.startswith("_")}


def scalars(folder):
    """Return (tag, step, value) for every scalar of the event files in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    values = []
    for file in sorted(folder.iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (size,) = struct.unpack_from(
                "<Q", data, position
            )  # followed by its checksum, the event and the event's checksum
            event = Event.FromString(data[position + 12 : position + 12 + size])
            values += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            position += 16 + size
    return values


needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="the extra pretrain")


@needs_tensorboard
def test_tensorboard(tmp_path):
    with_torch = "torch" in sys.modules
    with quiet(tmp_path, tensorboard=True) as log:
        log_steps(log, [1, 2])
        log.evaluation({"step": 2, "loss": 3.0})
        log.evaluation({"step": 2, "name": "human_eval", "pass_at_1": 0.25})
    assert ("torch" in sys.modules) == with_torch  # tensorboardX imports it if it can
    logged = scalars(tmp_path / "tensorboard")
    assert (
        ("train/loss", 1, 8.0) in logged and ("train/loss", 2, 4.0) in logged and ("evaluation/loss", 2, 3.0) in logged
    )
    assert ("human_eval/pass_at_1", 2, 0.25) in logged and ("train/tokens", 2, 200.0) in logged
    with quiet(tmp_path, tensorboard=True, resumed_from=1) as log:
        log_steps(log, [2])
    assert scalars(tmp_path / "tensorboard").count(("train/loss", 2, 4.0)) == 2  # TensorBoard hides the older one


def test_tensorboard_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match=r'pip install "duonlp\[pretrain\]"'):
        quiet(tmp_path, tensorboard=True)


class FakeRun:
    def __init__(self, **options):
        self.options, self.id = options, options.get("id", "r1")
        self.logged, self.metrics, self.ended = [], [], None

    def log(self, values):
        self.logged.append(values)

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def finish(self, exit_code):
        self.ended = exit_code


def test_weights_and_biases_only_on_request(tmp_path, monkeypatch):
    runs = []
    stand_in = SimpleNamespace(init=lambda **options: runs.append(FakeRun(**options)) or runs[-1])
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    with quiet(tmp_path / "without") as log:
        log_steps(log, [1])
    assert not runs

    folder = tmp_path / "with"
    with pytest.raises(RuntimeError), quiet(folder, wandb={"project": "code"}) as log:
        log_steps(log, [1])
        log.evaluation({"step": 1, "loss": 3.0})
        raise RuntimeError
    (run,) = runs
    assert run.options == {"dir": str(folder), "project": "code"} and ("*", "step") in run.metrics
    assert run.logged[0]["train/loss"] == 8.0 and run.logged[0]["step"] == 1 and run.ended == 1
    assert run.logged[1] == {
        "step": 1, "evaluation/loss": 3.0, "evaluation/tokens": 100,
        "evaluation/perplexity": pytest.approx(math.exp(3)),
    }  # fmt: skip
    with quiet(folder, wandb={}, resumed_from=0):
        pass
    assert runs[1].options["id"] == "r1" and runs[1].options["resume"] == "allow" and runs[1].ended == 0
    with pytest.raises(InputError, match=r"options of wandb\.init"):
        quiet(tmp_path / "third", wandb=True)


def test_weights_and_biases_without_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        quiet(tmp_path, wandb={})
