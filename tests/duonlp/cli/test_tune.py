"""`duonlp tune`: a search over distillations and fine-tunings, with a stand-in for the engine."""

import importlib.util
import json
import tomllib

import pytest
import typer

from duonlp.cli import tune as cli_tune
from duonlp.errors import CheckpointError, InputError
from duonlp.runs.distillation import DistillSettings
from duonlp.runs.finetuning import FinetuneSettings
from duonlp.training.settings_file import build
from duonlp.tuning import runs as tuning_runs
from duonlp.tuning import search as tuning
from duonlp.tuning.runs import RunSearch, TuneSettings, full_path, setting_paths, tune_runs
from duonlp.util import frameworks
from tests.intents import LABELS, checkpoint, queries, write_queries
from tests.standins import Package

if not importlib.util.find_spec("optuna"):
    pytest.skip("the extra search", allow_module_level=True)

SEARCH = {"alpha": {"low": 0.0, "high": 1.0}, "layers": {"choices": [1, 2]}}


class Tuned(Package):
    """An engine whose students improve in every epoch if alpha < 0.5 and get worse after the first epoch otherwise."""

    def distill(self, student, teacher, batches, config, distillation, folder, **options):
        self.best_epoch = None if distillation.alpha < 0.5 else 1
        return super().distill(student, teacher, batches, config, distillation, folder, **options)

    def pipeline(self, task, model, **options):
        self.calls.append(("pipeline", task, options))
        assert (tuning_runs.Path(model) / "model.safetensors").is_file()
        return lambda text: {"label": LABELS[0], "score": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intents")
    return checkpoint(folder / "teacher", labels=LABELS), write_queries(folder / "queries.json")


@pytest.fixture
def table(base):
    teacher, data = base
    return {"teacher": str(teacher), "data": str(data), "batch_size": 8, "fit": {"epochs": 3}}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(tuning, "_plot", lambda *_: {})


@pytest.fixture
def run(capsys, monkeypatch):
    """Return run(*arguments, package=None) -> (status, standard output, standard error); errors are raised."""

    def call(*arguments, package=None):
        monkeypatch.setattr(cli_tune, "load_package", lambda name, trains=False: (package or Tuned(), "jax"))
        monkeypatch.setattr(frameworks, "require", lambda name: None)
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(cli_tune.tune)
        status = app(args=[str(argument) for argument in arguments], standalone_mode=False)
        return status or 0, *capsys.readouterr()

    return call


def toml(file, table, text):
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    file.write_text("\n".join(lines) + "\n[fit]\nepochs = 3\n" + text)
    return file


def test_a_search_over_distillations(table, tmp_path):
    folder, package = tmp_path / "search", Tuned()
    seen = []
    options = TuneSettings(trials=8)
    result = tune_runs(package, table, SEARCH, folder, options, console=False)
    assert [trial.parameters.keys() for trial in result.trials] == [{"distillation.alpha", "layers"}] * 8
    (best,) = result.best
    assert best.parameters["distillation.alpha"] < 0.5 and best.results["accuracy"] == pytest.approx(9 / 24)
    assert {"macro_f1", "parameters", "bytes", "seconds"} <= set(best.results)
    assert {tuple(trial.evaluations) for trial in result.trials if trial.state == "complete"} == {(1, 2, 3)}
    assert any(trial.state == "pruned" for trial in result.trials)
    fits = [each[1] for each in package.calls if each[0] == "fit"]
    assert {each.epochs for each in fits} == {3} and {each.best_metric for each in fits} == {"accuracy"}
    assert {each[1] for each in package.calls if each[0] == "cached_teacher_logits"} == {str(folder / "cache")}
    # only the best model is kept; all trials keep their records
    for trial in result.trials:
        trial_folder = folder / "trials" / f"{trial.number:04d}"
        assert (trial_folder / "best" / "model.safetensors").exists() == (trial.number == best.number)
        assert (trial_folder / "settings.toml").exists() and (trial_folder / "metrics.jsonl").exists()
        seen.append(build(DistillSettings, tomllib.loads((trial_folder / "settings.toml").read_text())))
    assert [each.layers for each in seen] == [trial.parameters["layers"] for trial in result.trials]
    text = (folder / "best.toml").read_text()
    again = build(DistillSettings, tomllib.loads(text))
    assert (
        again.distillation.alpha == best.parameters["distillation.alpha"] and again.layers == best.parameters["layers"]
    )
    assert again.evaluate_teacher and not again.cache_teacher_logits and f"duonlp distill --config {folder}" in text

    package.calls.clear()
    same = tune_runs(package, table, SEARCH, folder, options, console=False)
    assert same.best == result.best and not package.calls
    with pytest.raises(InputError, match=r"settings\.batch_size was 8, now 16"):
        tune_runs(package, {**table, "batch_size": 16}, SEARCH, folder, options, console=False)


def test_accuracy_and_latency(table, tmp_path):
    def latency(settings, model):
        assert (model / "model.safetensors").is_file()
        return {"latency": float(settings.layers)}

    options = TuneSettings(trials=6, objective=("accuracy", "latency"))
    search = {**SEARCH, "alpha": {"choices": [0.1, 0.9]}}
    result = tune_runs(Tuned(), table, search, tmp_path, options, latency=latency, console=False)
    assert {trial.state for trial in result.trials} == {"complete"}
    (best,) = result.best
    assert best.parameters == {"distillation.alpha": 0.1, "layers": 1}
    kept = [each.parent.parent.name for each in tmp_path.glob("trials/*/best/model.safetensors")]
    assert kept == [f"{best.number:04d}"]


def test_a_latency_never_replaces_a_metric(table, tmp_path):
    options = TuneSettings(trials=1, objective=("accuracy", "latency"))

    def latency(settings, model):
        return {"latency": 1.0, "accuracy": 1.0}

    with pytest.raises(InputError, match="the run and the latency both have 'accuracy'"):
        tune_runs(Tuned(), table, SEARCH, tmp_path, options, latency=latency, console=False)


@pytest.mark.parametrize("max_length", [None, 5])
def test_a_measured_latency(table, tmp_path, max_length):
    table["max_length"] = max_length
    package, options = Tuned(), TuneSettings(trials=1, objective=("latency",), queries=3, repeats=2)
    result = tune_runs(package, table, SEARCH, tmp_path, options, console=False)
    assert 0 < result.best[0].results["latency"] <= result.best[0].results["latency_p95"]
    asked = [each for each in package.calls if each[0] == "pipeline"]
    cut = {"truncation": True, "max_length": max_length}  # texts may be longer than the model reads
    assert asked == [("pipeline", "text-classification", {"dtype": "float32", "progress": False, **cut})]


def test_a_search_over_fine_tunings(base, tmp_path):
    teacher, data = base
    table = {"model": str(teacher), "data": str(data), "batch_size": 8}
    search = {"epochs": {"low": 1.0, "high": 3.0}, "fit": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}}
    options = TuneSettings(trials=4, keep_all=True, objective=("maximize:in_scope_accuracy",), prune=False)
    result = tune_runs(Package(), table, search, tmp_path, options, console=False)
    found = build(FinetuneSettings, tomllib.loads((tmp_path / "best.toml").read_text()))
    assert found.fit.epochs == result.best[0].parameters["fit.epochs"] and found.fit.best_metric == "in_scope_accuracy"
    assert len(list(tmp_path.glob("trials/*/best"))) == 4


def test_a_stopped_trial_is_repeated(table, tmp_path):
    options = TuneSettings(trials=2)
    stopped = tune_runs(Tuned(stop_after=1), table, SEARCH, tmp_path, options, console=False)
    assert stopped.interrupted and not stopped.trials
    result = tune_runs(Tuned(), table, SEARCH, tmp_path, options, console=False)
    assert len(result.trials) == 2 and not (tmp_path / "trials" / "0000" / "best").exists()


@pytest.mark.parametrize(
    ("change", "search", "message"),
    [
        ({}, {"alfa": SEARCH["alpha"]}, "unknown setting 'alfa'; did you mean 'alpha'"),
        ({}, {"num_layers": SEARCH["layers"]}, "did you mean 'layers'"),
        ({}, {**SEARCH, "output": {"choices": ["a", "b"]}}, "would make trials incomparable"),
        ({}, {**SEARCH, "distillation": {"alpha": SEARCH["alpha"]}}, "search has 'distillation.alpha' twice"),
        ({}, {**SEARCH, "alpha": {"low": 0.0, "high": 1.5}}, "search.distillation.alpha has 1.5: .*alpha is 1.5"),
        (
            {},
            {**SEARCH, "temperature": {"low": 0, "high": 9}},
            "search.distillation.temperature has 0.0|temperature is 0",
        ),
        ({}, {"alpha": SEARCH["alpha"]}, "no student given"),
        ({"validation_split": ""}, SEARCH, "the run has no validation"),
        ({"fit": {"evaluate_every": 0}}, SEARCH, "the run has no validation"),
        ({"fit": 3}, SEARCH, "fit is 3; it must be a table"),
        (
            {},
            {**SEARCH, "epochs": {"low": 1.0, "high": 3.5}},
            "fit.epochs: high is 3.5, but the setting is an integer",
        ),
        ({"batchsize": 8}, SEARCH, "'batchsize' is not a setting of duonlp distill"),
    ],
)
def test_invalid_searches(table, tmp_path, change, search, message):
    with pytest.raises(InputError, match=message):
        RunSearch({**table, **change}, search, TuneSettings(), tmp_path)


def test_every_model_of_a_search_is_checked_first(table, tmp_path):
    package = Tuned()
    with pytest.raises(InputError, match=r"search.layers has 4: cannot copy 4 layers of the teacher's 3"):
        tune_runs(package, table, {"layers": {"choices": [2, 4]}}, tmp_path / "a", console=False)
    search = {"student": {"choices": [table["teacher"], str(tmp_path / "nowhere")]}}
    with pytest.raises(CheckpointError, match=r"search\.student has"):
        tune_runs(package, table, search, tmp_path / "b", console=False)
    with pytest.raises(InputError, match="speed"):
        tune_runs(package, table, SEARCH, tmp_path / "c", TuneSettings(objective=("speed",)), console=False)
    assert not [each for each in package.calls if each[0] == "distill" and each[1].alpha is None]


def test_a_single_table_has_no_validation_scores_to_search_by(table, tmp_path):
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in queries(16)))
    with pytest.warns(UserWarning), pytest.raises(InputError, match="trials cannot be compared; give a folder"):
        tune_runs(Tuned(), {**table, "data": str(tmp_path / "all.csv")}, SEARCH, tmp_path / "search", console=False)


def test_settings_of_a_search():
    for options, message in (
        ({"run": "distil"}, "did you mean 'distill'"),
        ({"trials": 0}, "trials is 0"),
        ({"minutes": -1.0}, "minutes is -1.0"),
        ({"objective": ()}, "give at least one"),
    ):
        with pytest.raises(InputError, match=message):
            TuneSettings(**options)
    known, real, whole = setting_paths(DistillSettings)
    assert {"layers", "fit.epochs", "fit.steps"} <= set(whole) and not {"fit.save_every", "tensorboard"} & set(whole)
    assert {"layers", "fit.epochs", "distillation.alpha"} <= set(known) and "distillation.temperature" in real
    assert full_path("learning_rate", known) == "fit.learning_rate" and full_path("seed", known) == "seed"


def test_the_command(run, table, tmp_path):
    text = "[search]\nalpha = { low = 0.0, high = 1.0 }\nlayers = { choices = [1, 2] }\n[tune]\ntrials = 9\n"
    file, folder = toml(tmp_path / "tune.toml", table, text), tmp_path / "search"
    status, out, err = run("--config", file, "--output", folder, "--trials", 3, "--framework", "jax", "--json")
    assert status == 0 and err.count("accuracy 0.") >= 3
    report = json.loads(out)
    assert report["finished"] == 3 and report["framework"] == "jax" and "best.toml" in report["files"]
    status, out, err = run("--config", file, "--output", folder, "--trials", 4)
    assert status == 0 and "4 trials: " in out and "best.toml" in out and "resuming after 3 trials" in err
    status, out, err = run("--config", file, "--output", folder, "--trials", 5, package=Tuned(stop_after=1))
    assert status == cli_tune.STOPPED and "run the same command to resume" in err


def test_usage_errors(run, table, tmp_path):
    def assert_rejected(message, text, *arguments):
        with pytest.raises(InputError, match=message):
            run("--config", toml(tmp_path / "tune.toml", table, text), *arguments)

    good = "[search]\nalpha = { low = 0.0, high = 1.0 }\nlayers = { choices = [1, 2] }\n"
    output = ("--output", tmp_path / "search")
    assert_rejected("give --output", good)
    assert_rejected("the search space is empty", "", *output)
    assert_rejected(
        "trails' is not a setting of duonlp tune.*did you mean 'tune.trials'", good + "[tune]\ntrails = 3\n", *output
    )
    assert_rejected("^tune: trials is 0", good, *output, "--trials", 0)
    assert_rejected("framework 'jaxx' is not one of", good, *output, "--framework", "jaxx")
    assert_rejected("framework 5 is not one of", "", *output, "--option", "framework=5")
    assert not (tmp_path / "search").exists()
