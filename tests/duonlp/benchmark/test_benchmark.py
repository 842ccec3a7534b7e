"""The benchmark of classifiers: pipelines with known answers and a clock that tells what it is told to."""

import importlib.util
import json
import mmap
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duonlp.benchmark import memory as benchmark_memory
from duonlp.benchmark.comparison import CompareSettings, compare_records, compare_runs, latency_intervals, mcnemar
from duonlp.benchmark.memory import Memory, peak_memory, reset_peak, resident_memory
from duonlp.benchmark.performance import PerformanceBenchmark, benchmark_together, best_answer, digest, model_files
from duonlp.benchmark.record import BenchmarkRecord, Latency, pack_flags, read_records, unpack_flags, write_records
from duonlp.benchmark.report import plot_records, to_markdown
from duonlp.benchmark.timing import PASSES, rotated
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("greet", "pay", "oos")
WORDS = ["hello", "hi there", "pay the bill", "send money now", "what is love", "sing"]
LABELS = [0, 0, 1, 1, 2, 2]


def texts(words=WORDS, labels=LABELS, names=NAMES):
    return LabelledTexts(list(words), np.array(labels, np.int32), names)


class Clock:
    """Seconds that pass as a pipeline answers, and at no other time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Fake:
    """A pipeline with known answers; a text takes as many milliseconds as it has letters, times `slowness`."""

    def __init__(self, answers, clock=None, slowness=1.0, score=0.9):
        self.answers, self.clock, self.slowness, self.score = answers, clock or Clock(), slowness, score
        self.calls = []

    def __call__(self, given):
        self.calls.append(given)
        if isinstance(given, list):
            return [self.answer(text) for text in given]
        return [self.answer(given)]  # as Transformers' pipelines do for one text

    def answer(self, text):
        self.clock.now += self.slowness * len(text) / 1000
        label, score = self.answers[text], self.score
        return {"label": label[0], "score": label[1]} if isinstance(label, tuple) else {"label": label, "score": score}


RIGHT = dict(zip(WORDS, (NAMES[i] for i in LABELS)))


def benchmark(answers=None, name="m", slowness=1.0, clock=None, data=None, **options):
    pipeline = Fake(RIGHT | (answers or {}), clock, slowness)
    return PerformanceBenchmark(pipeline, texts() if data is None else data, name, clock=pipeline.clock, **options)


def test_scores():
    found = benchmark({"hello": "pay", "sing": "greet"}, out_of_scope="oos").run()
    assert found.scores["accuracy"] == pytest.approx(4 / 6)
    assert found.scores["in_scope_accuracy"] == pytest.approx(3 / 4) and found.scores["out_of_scope_recall"] == 0.5
    assert found.correct_examples().tolist() == [False, True, True, True, True, False]
    assert found.are_out_of_scope().tolist() == [False] * 4 + [True] * 2
    assert "loss" not in found.scores and found.examples == 6
    assert set(benchmark().run().scores) == {"accuracy", "macro_f1"}


def test_a_threshold_calls_what_is_not_sure_out_of_scope():
    answers = {"hello": ("greet", 0.3), "sing": ("greet", 0.3), "what is love": ("oos", 0.2)}
    assert benchmark(answers, out_of_scope="oos").run().scores["accuracy"] == pytest.approx(5 / 6)
    found = benchmark(answers, out_of_scope="oos", threshold=0.5).run()
    assert found.scores["out_of_scope_recall"] == 1 and found.scores["in_scope_accuracy"] == 0.75
    assert found.threshold == 0.5


def test_latencies_are_those_of_each_query_alone():
    made = benchmark(repeats=3)
    found = made.time_pipeline()
    lengths = np.array([len(word) for word in WORDS], float)
    assert found.samples == pytest.approx(np.tile(lengths, 3)) and found.queries == 6 and found.repeats == 3
    assert found.mean == pytest.approx(lengths.mean()) and found.std == pytest.approx(lengths.std())
    assert (found.p50, found.p95, found.p99) == pytest.approx(tuple(np.percentile(np.tile(lengths, 3), [50, 95, 99])))
    assert found.by_query() == pytest.approx(lengths)
    assert benchmark(samples=False).time_pipeline().samples is None


def test_every_text_that_is_timed_was_answered_before():
    made = benchmark(warm_up=4, batch_size=None)
    made.time_pipeline()
    assert made.pipeline.calls == [*WORDS, *WORDS[:4], *WORDS]


def test_queries_are_spread_over_the_texts():
    assert benchmark(queries=3).queries == ["hello", "pay the bill", "sing"]
    assert benchmark(queries=1).queries == ["hello"] and len(benchmark(queries=None).queries) == 6


def test_throughput():
    letters = sum(map(len, WORDS))
    made = benchmark(batch_size=4)
    assert made.time_batches() == pytest.approx(6 / (letters / 1000))
    assert made.pipeline.calls[-1] == WORDS[4:] and len(made.pipeline.calls[-2]) == 4
    assert benchmark(batch_size=None).run().throughput is None


def test_a_pipeline_that_takes_one_text_at_a_time():
    found = PerformanceBenchmark(lambda text: {"label": RIGHT[text], "score": 1.0}, texts(), "f", batch_size=None).run()
    assert found.scores["accuracy"] == 1 and found.size is None and found.parameters is None


def test_models_take_turns():
    order = []
    clock = Clock()
    many = texts([f"{word} {i}" for i in range(4) for word in WORDS], LABELS * 4)
    answers = {text: NAMES[i] for text, i in zip(many.texts, many.labels)}

    class Told(Fake):
        def __call__(self, given):
            if isinstance(given, str):
                order.append(self.name)
            return super().__call__(given)

    made = []
    for name, slowness in (("a", 1.0), ("b", 2.0)):
        pipeline = Told(answers, clock, slowness)
        pipeline.name = name
        made.append(PerformanceBenchmark(pipeline, many, name, warm_up=0, clock=clock))
    a, b = benchmark_together(made)
    timed = "".join(order[2 * 24 :])
    assert timed == "a" * 11 + "b" * 11 + "b" * 11 + "a" * 11 + "a" * 5 + "b" * 5  # one of each turn is not timed
    assert a.run == b.run and a.memory is None
    assert np.array(b.latency.samples) == pytest.approx(2 * np.array(a.latency.samples))
    assert a.throughput == pytest.approx(2 * b.throughput)
    assert rotated([1, 2, 3], 4) == [2, 3, 1] and PASSES % 2 == 1


def test_the_collector_is_on_again():
    import gc

    class Broken(Exception):
        pass

    seen = []

    def pipeline(given):
        seen.append(gc.isenabled())
        if len(seen) > 20:
            raise Broken
        return [{"label": "greet", "score": 1.0}] * (1 if isinstance(given, str) else len(given))

    with pytest.raises(Broken):
        PerformanceBenchmark(pipeline, texts(), "m", warm_up=0, queries=None, repeats=9).run()
    assert seen[0] and not seen[-1] and gc.isenabled()


def test_sizes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "metrics.jsonl").write_text("much")
    (tmp_path / "old.h5").write_bytes(b"x" * 7)
    made = benchmark(folder=tmp_path)
    assert made.compute_size() == {"size": 100, "parameters": None} and made.run().model == str(tmp_path)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}'
    )
    for name in ("x", "y", "stray"):
        (sharded / f"{name}.safetensors").write_bytes(b"12345")
    assert [path.name for path in model_files(sharded)] == ["x.safetensors", "y.safetensors"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "m.onnx").write_bytes(b"123")
    (other / "m.onnx_data").write_bytes(b"1234")
    assert (
        sum(path.stat().st_size for path in model_files(other))
        == 7
        == sum(path.stat().st_size for path in model_files(other / "m.onnx"))
    )
    assert benchmark(size=12).compute_size()["size"] == 12
    (other / "m.onnx").unlink(), (other / "m.onnx_data").unlink()
    with pytest.raises(InputError, match="no weight file"):
        model_files(other)


@dataclass
class Config:
    labels: tuple


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: PerformanceBenchmark("x", texts(), "m"), ["a str", "takes a text"]),
        (lambda: benchmark(name=" "), ["name is ' '"]),
        (lambda: benchmark(data=texts([], [])), ["no texts"]),
        (
            lambda: benchmark(data=LabelledTexts(["a"], np.ones((1, 3), np.float32), NAMES)),
            ["float32 [1, 3]", "one integer label"],
        ),
        (lambda: benchmark(out_of_scope="os"), ["'os'", "did you mean 'oos'"]),
        (lambda: benchmark(threshold=0.5), ["no out-of-scope label"]),
        (lambda: benchmark(threshold=50, out_of_scope="oos"), ["threshold is 50"]),
        (lambda: benchmark(queries=0), ["queries is 0"]),
        (lambda: benchmark(batch_size=0), ["batch_size is 0"]),
        (lambda: benchmark({"hello": "LABEL_3"}).run(), ["'LABEL_3'", "'greet', 'pay', 'oos'"]),
        (lambda: benchmark_together([]), ["no benchmarks to run"]),
        (lambda: benchmark_together([benchmark(), benchmark()]), ["two models are named 'm'"]),
        (lambda: benchmark_together([benchmark(), benchmark(name="b", queries=2)]), ["'b' and 'm' have different"]),
        (lambda: PerformanceBenchmark(lambda text: "greet", texts(), "m", batch_size=None).run(), ["returned 'greet'"]),
        (lambda: PerformanceBenchmark(lambda text: [], texts(), "m", batch_size=None).run(), ["returned []"]),
        (lambda: PerformanceBenchmark(lambda t: [{"label": "pay", "score": 1}], texts(), "m").run(), ["1 results for 6"]),
    ],
)  # fmt: skip
def test_mistakes(make, parts):
    with pytest.raises(InputError) as error:
        make()
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_pipeline_s_own_labels():
    pipeline = Fake(RIGHT)
    pipeline.config = Config(("greet", "LABEL_1"))
    with pytest.raises(InputError, match="has no label 'pay', 'oos'"):
        PerformanceBenchmark(pipeline, texts(), "m")
    pipeline.config = Config(("greet", "pay", "more"))
    with pytest.raises(InputError, match="threshold"):
        PerformanceBenchmark(pipeline, texts(), "m", out_of_scope="oos")
    pipeline.answers = RIGHT | {"hello": "more", "sing": ("pay", 0.1), "what is love": ("pay", 0.8)}
    found = PerformanceBenchmark(pipeline, texts(), "m", out_of_scope="oos", threshold=0.5).run()
    # "more" is a label of the model that no text has: that answer is wrong, and no mistake
    assert found.scores["in_scope_accuracy"] == 0.75 and found.scores["out_of_scope_recall"] == 0.5


def test_best_answer():
    assert best_answer([{"label": "a", "score": 0.1}, {"label": "b", "score": 0.6}], "m") == ("b", 0.6)
    assert best_answer({"label": "a", "score": np.float32(0.5)}, "m") == ("a", 0.5)


def test_pairs_of_texts():
    pairs = LabelledTexts([("a", "b"), ("c", "d")], np.array([0, 1], np.int32), NAMES)
    seen = []

    def pipeline(given):
        seen.append(given)
        return [{"label": "greet" if each["text"] == "a" else "pay", "score": 1.0} for each in given]

    made = PerformanceBenchmark(pipeline, pairs, "m")
    assert made.compute_accuracy()[0]["accuracy"] == 1
    assert seen == [[{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": "d"}]]


def test_records_go_through_json(tmp_path):
    file = tmp_path / "run.json"
    record = benchmark({"sing": "pay"}, out_of_scope="oos", folder=None, size=5, framework="jax").run()
    record = replace(record, settings={"models": ["x"]}, memory=Memory(10, 4, True))
    assert BenchmarkRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.machine["versions"]["numpy"] == np.__version__ and record.machine["cores"] >= 1
    write_records(file, [record])
    other = replace(record, name="other")
    assert write_records(file, [other]) == [record, other] == read_records(file)
    newer = replace(record, size=6)
    assert write_records(file, [newer]) == [newer, other] == read_records(file)
    with pytest.raises(InputError, match=f"two records are named {record.name!r}"):
        write_records(file, [record, newer])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_run_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file, record = tmp_path / "run.json", benchmark().run()
    write_records(file, [record])
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_records(file, [replace(record, name="other")])
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "not JSON"), ("[]", "not a benchmark run file"), ('{"format": "x"}', "not a benchmark run file"),
        ('{"format": "duonlp benchmark 1", "records": []}', "no record"),
        ('{"format": "duonlp benchmark 1", "records": [{"name": "m"}]}', "lacks run"),
        ('{"format": "duonlp benchmark 1", "records": [{"nam": "m"}]}', "did you mean 'name'"),
        ('{"format": "duonlp benchmark 1", "records": [5]}', "run.json.*invalid benchmark record 5"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, content, part):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=part):
        read_records(tmp_path / "run.json")
    with pytest.raises(InputError):
        write_records(tmp_path / "run.json", [benchmark().run()])
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"scores": {"accuracy": "x"}}, "invalid record of 'm': scores.accuracy is 'x', expected a number"),
        ({"machine": {"versions": None}}, "machine.versions is None"),
        ({"machine": {"cores": 2, "load": "high"}}, "machine.load is 'high'"),
    ],
)
def test_values_of_the_wrong_kind(change, part):
    record = replace(benchmark().run(), name="m").to_dict()
    with pytest.raises(InputError, match=part):
        BenchmarkRecord.from_dict(record | change)


@given(st.lists(st.booleans(), max_size=40))
def test_bits(flags):
    assert unpack_flags(pack_flags(np.array(flags, bool)), len(flags)).tolist() == flags


def test_bits_that_do_not_fit():
    for text, count in (("zz", 8), ("ff", 9), ("ffff", 8)):
        with pytest.raises(InputError, match="measure the record again"):
            unpack_flags(text, count)


def test_mcnemar():
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0 and mcnemar(0, 1) == 1.0
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(2 * 11 / 1024)  # (1 + 10) ways of 2^10, either way
    assert 0 < mcnemar(0, 3000) < 1e-300 or mcnemar(0, 3000) == 0


def many(slowness=1.0, wrong=0, name="m", seed=0, run=None):
    """A record over 200 queries whose latencies have noise of 2%, of which the first `wrong` are answered wrong."""
    rng = np.random.default_rng(7)
    lengths = rng.uniform(5, 20, 200)
    noise = np.random.default_rng(seed).normal(1, 0.02, 200)
    latency = Latency.from_seconds(slowness * lengths * noise / 1000)
    outside = np.arange(200) >= 160
    correct = np.arange(200) >= wrong
    scores = {
        "accuracy": correct.mean().item(),
        "in_scope_accuracy": correct[~outside].mean().item(),
        "out_of_scope_recall": correct[outside].mean().item(),
    }
    return BenchmarkRecord(
        name, run or f"run {seed}", "2024-01-01", "data", 200, scores, pack_flags(correct), latency, throughput=100 / slowness,
        size=1000, memory=Memory(2000, 500), out_of_scope="oos", out_of_scope_examples=pack_flags(outside),
    )  # fmt: skip


def verdicts(before, after):
    return {each.metric: each.verdict for each in compare_records(before, after)}


def test_the_same_model_twice_is_within_noise():
    found = verdicts(many(seed=1), many(seed=2))
    assert found.pop("accuracy") == found.pop("in_scope_accuracy") == found.pop("out_of_scope_recall") == "the same"
    assert {found[f"{kind} latency"] for kind in ("p50", "mean", "p95", "p99")} == {"within noise"}
    assert found["size"] == found["throughput"] == found["peak memory"] == "the same"


def test_what_differs_is_told():
    found = {each.metric: each for each in compare_records(many(seed=1), many(1.3, 30, seed=2))}
    assert found["p50 latency"].verdict == found["throughput"].verdict == found["accuracy"].verdict == "worse"
    p50 = found["p50 latency"]
    assert p50.low < p50.ratio < p50.high and p50.ratio == pytest.approx(1.3, abs=0.05)
    assert found["accuracy"].p_value < 1e-6 and found["out_of_scope_recall"].verdict == "the same"
    assert found["accuracy"].before == 1 and found["accuracy"].after == 0.85
    faster = verdicts(many(1.3, 30, seed=1), many(seed=2))
    assert faster["p50 latency"] == faster["throughput"] == faster["accuracy"] == "better"
    assert verdicts(many(), many(wrong=2, seed=1))["accuracy"] == "within noise"


def test_between_two_runs_a_small_difference_is_drift():
    assert verdicts(many(seed=1), many(1.03, seed=1, run="b"))["mean latency"] == "within noise"
    assert verdicts(many(seed=1), many(1.03, seed=1))["mean latency"] == "worse"  # measured in turns
    assert verdicts(many(seed=1), many(1.3, seed=2, run="b"))["mean latency"] == "worse"


def test_intervals_cover_the_true_ratio():
    covered = 0
    for seed in range(40):
        low, high = latency_intervals(
            many(seed=2 * seed), many(1.2, seed=2 * seed + 1), CompareSettings(resamples=300)
        )["mean"]
        covered += low <= 1.2 <= high
    assert covered >= 34, covered


def test_few_queries_are_not_tested():
    before, after = benchmark().run(), benchmark(slowness=2.0, clock=Clock()).run()
    found = {each.metric: each for each in compare_records(before, after)}["p50 latency"]
    assert found.ratio == pytest.approx(2) and found.low is None and found.verdict == "not tested"


def test_other_data_is_not_tested():
    before, after = many(), replace(many(2.0, 30, seed=1), data="other")
    found = {each.metric: each for each in compare_records(before, after)}
    assert found["accuracy"].verdict == "not tested" and found["accuracy"].p_value is None
    assert found["p50 latency"].verdict == "not tested" and found["p50 latency"].low is None
    assert any("different texts" in note for note in compare_runs([before], [after]).notes)


def test_runs_by_name():
    a, b = many(name="a"), many(2.0, name="b", seed=1)
    assert {each.name for each in compare_runs([a, b]).differences} == {"a -> b"}  # one run: the others with its first
    assert {each.name for each in compare_runs([a], [b]).differences} == {"a -> b"}
    found = compare_runs([a, b], [b, many(name="c")])
    assert {each.name for each in found.differences} == {"b"} and "a, c: in one run only" in found.notes
    assert compare_runs([a], [b]).slowest() == pytest.approx(2, abs=0.1)
    json.dumps(found.to_dict())
    for runs, part in (([[a]], "one record"), ([[a, b], [many(name="c"), many(name="d")]], "no name in common")):
        with pytest.raises(InputError, match=part):
            compare_runs(*runs)
    with pytest.raises(InputError, match="did you mean 'drift'"):
        compare_runs([a], [b], drif=0.1)


def test_markdown():
    lines = to_markdown([many(name="a|b"), many(name="b", wrong=20)]).splitlines()
    assert lines[2].startswith("| a\\|b | 100.00 | 100.00 | 100.00 |") and lines[3].startswith("| b | 90.00 |")
    assert len({line.replace("\\|", "").count("|") for line in lines[:4]}) == 1
    shown = to_markdown(compare_runs([many(name="a")], [many(1.5, name="b", seed=1)]))
    assert "| a -> b | accuracy % |" in shown and "worse |" in shown and "measured in two runs" in shown


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_the_picture(tmp_path):
    records = [many(name="$teacher_"), replace(many(0.5, 30, "student"), size=None), replace(many(0.7), size=400)]
    plot_records(records, tmp_path / "a.svg", reference="$teacher_", title="Models")
    shown = (tmp_path / "a.svg").read_text()
    assert all(word in shown for word in ("$teacher_", "student", "latency of one text", "accuracy, %", "Models"))
    plot_records(records[:1], tmp_path / "a.png", score="out_of_scope_recall")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for options, part in (({"score": "bleu"}, "'bleu'"), ({"reference": "x"}, "'x' is not among")):
        with pytest.raises(InputError, match=part):
            plot_records(records, tmp_path / "b.png", **options)
    with pytest.raises(InputError, match="no record"):
        plot_records([], tmp_path / "b.png")
    with pytest.raises(InputError, match="gif"):
        plot_records(records, tmp_path / "b.gif")


@pytest.mark.skipif(resident_memory() is None, reason="the system does not tell")
def test_memory():
    assert peak_memory() >= resident_memory() > 10_000_000
    if reset_peak():
        low = peak_memory()
        found = []
        # not from malloc, which may give out again what it has
        with benchmark_memory.watch_memory(found, before=low), mmap.mmap(-1, 60_000_000) as pages:
            pages.write(bytes(60_000_000))
        assert found[0].growth > 50_000_000 and found[0].during == "answering" and not found[0].alone
        assert benchmark().run().memory.peak > 0


def test_memory_of_a_process_of_its_own(monkeypatch):
    class Package:
        def pipeline(self, task, model, **options):
            self.asked = task, model, options
            return lambda given, **_: [self.calls.append(given)]

    package = Package()
    package.calls = []
    order = {"model": "m", "texts": ["a", "b"], "batch_size": 2, "options": {"truncation": True}}
    found = benchmark_memory.measure(package, order, resident=lambda: 7)
    assert package.calls == ["a", "b", ["a", "b"]] * 2 and package.asked[2] == {"truncation": True}
    assert found is None or (found["before"] == 7 and found["alone"] and found["peak"] > 7)
    with pytest.raises(InputError, match="--no-memory"):
        benchmark_memory.memory_alone("torch", "m", ["a"])
    orphan = "import time; from duonlp.benchmark.memory import exit_with_parent; exit_with_parent(-1); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", orphan], cwd=ROOT, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"")


def test_data_has_a_name():
    labels = np.array([0, 1])
    names = {
        digest(["a", "b"], labels, NAMES),
        digest(["a", "c"], labels, NAMES),
        digest(["a", "b"], labels[::-1], NAMES),
    }
    assert len(names | {digest(["a", "b"], labels, NAMES[::-1])}) == 4
