"""The search: its space, resuming after a kill, pruning, the Pareto front, and the written files."""

import csv
import datetime
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from duonlp.errors import InputError, MissingExtraError, NonFiniteLossError
from duonlp.tuning import search as tuning
from duonlp.tuning import search_space
from duonlp.tuning import study as tuning_study
from duonlp.tuning.search import Interrupted, tune
from duonlp.tuning.search_space import Choices, Objective, Range, front, read_objectives, read_space

if not importlib.util.find_spec("optuna"):
    pytest.skip("the extra search", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[3]
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
SPACE = {"alpha": {"low": 0.0, "high": 1.0}, "fit": {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}}


def hill(parameters):
    """1 at alpha 0.3 and a learning rate of 1e-4."""
    return 1 - (parameters["alpha"] - 0.3) ** 2 - 0.1 * (math.log10(parameters["fit.learning_rate"]) + 4) ** 2


def quick(parameters, report):
    return {"accuracy": hill(parameters), "latency": 1 + parameters["alpha"]}


def search(folder, objective=quick, space=SPACE, **options):
    return tune(objective, space, folder, console=False, **{"trials": 6, **options})


def of_trials(result, *names):
    return [tuple(getattr(trial, name) for name in names) for trial in result.trials]


@pytest.fixture
def pictures():
    """Asked for by tests that want them drawn."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(tuning, "_plot", lambda *_: {})


def test_a_space_is_read_from_toml():
    import tomllib

    table = tomllib.loads(
        """
        alpha = { low = 0.0, high = 1.0, step = 0.1 }
        temperature = { low = 1, high = 20 }
        fit.learning_rate = { low = 1e-5, high = 1e-3, log = true }
        "fit.epochs" = { low = 2, high = 8, step = 2 }
        num_layers = { choices = [2, 3] }
        layers = { choices = [[0, 5], [0, 2, 5]] }
        """
    )
    space = read_space(table, real=("temperature",))
    assert list(space) == ["alpha", "temperature", "fit.learning_rate", "fit.epochs", "num_layers", "layers"]
    assert [space[name].size for name in space] == [11, math.inf, math.inf, 4, 2, 2]
    assert not space["temperature"].whole and read_space(table)["temperature"].whole
    (epochs,) = read_space({"epochs": {"low": 1.0, "high": 9.0, "step": 2}}, whole=("epochs",)).values()
    assert epochs.whole and json.dumps(epochs.to_dict()) == '{"low": 1, "high": 9, "step": 2}'
    assert read_space({name: each.to_dict() for name, each in space.items()}) == space
    stored = [each.distribution() for each in space.values()]
    assert [type(each).__name__ for each in stored[2:]] == [
        "FloatDistribution", "IntDistribution", "CategoricalDistribution", "CategoricalDistribution",
    ]  # fmt: skip
    assert space["layers"].value("[0, 2, 5]") == [0, 2, 5] and space["layers"].examples() == [[0, 5], [0, 2, 5]]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "search space is empty"),
        ({"alpha": 0.5}, "alpha is 0.5, which is neither a range nor choices"),
        ({"alpha": {}}, "alpha is {}, which is neither a range nor choices"),
        ({"alpha": {"low": 0.9, "high": 0.1}}, "alpha: low is 0.9 and high 0.1; low must be below high"),
        ({"alpha": {"low": 1, "high": 1}}, "low must be below high"),
        ({"alpha": {"low": 0.0}}, "a range needs low and high"),
        ({"alpha": {"low": "0", "high": 1}}, "alpha: low is '0'; it must be a finite number"),
        ({"alpha": {"low": 0.0, "high": math.inf}}, "high is inf"),
        ({"alpha": {"low": True, "high": 2}}, "low is True"),
        (
            {"alpha": {"low": 0.0, "high": 1.0, "logarithmic": True}},
            "alpha has the unknown key 'logarithmic' next to low, high; allowed",
        ),
        ({"alpha": {"low": 0.0, "high": 1.0, "log": True}}, "low end of a logarithmic range must be positive"),
        ({"alpha": {"low": 0.1, "high": 1.0, "log": 1}}, "log is 1; it must be true or false"),
        ({"alpha": {"low": 1, "high": 9, "log": True, "step": 2}}, "remove one of them"),
        ({"alpha": {"low": 0.0, "high": 1.0, "step": 0.3}}, "steps of 0.3 from 0.0 do not reach 1.0"),
        (
            {"alpha": {"low": 0.0, "high": 1.0, "step": -0.1}},
            "steps of -0.1 from 0.0 do not reach 1.0; give a positive step",
        ),
        ({"layers": {"choices": [2]}}, "layers: choices are \\[2\\]; give at least two"),
        ({"layers": {"choices": [2, 2]}}, "at least two different ones"),
        ({"layers": {"choices": 3}}, "choices is 3; it must be a list"),
        (
            {"day": {"choices": [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]}},
            "day: .*; give strings, numbers",
        ),
        ({"epochs": {"low": 1.0, "high": 3.5}}, "epochs: high is 3.5, but the setting is an integer"),
        ({"epochs": {"low": 1, "high": 3, "step": 0.5}}, "epochs: step is 0.5, but the setting is an integer"),
        ({"layers": {"choices": [2, 3], "low": 2}}, "layers has the unknown key 'low' next to choices"),
        ({"fit": {"epochs": 3, "seed": 1}}, "fit has epochs, seed, which is neither a range nor choices"),
    ],
)
def test_a_space_that_makes_no_sense(table, said):
    with pytest.raises(InputError, match=said):
        read_space(table, whole=("epochs",))


def test_objectives_and_their_directions():
    found = read_objectives(["accuracy", "latency", "loss", "minimize:alarms", "maximize:error_free"])
    assert [(each.name, each.direction) for each in found] == [
        ("accuracy", "maximize"), ("latency", "minimize"), ("loss", "minimize"), ("alarms", "minimize"),
        ("error_free", "maximize"),
    ]  # fmt: skip
    for wrong in ([], ["accuracy", "accuracy"], ["least:loss"], [""], ["minimize:"]):
        with pytest.raises(InputError, match="objective"):
            read_objectives(wrong)


def test_the_front_is_what_nothing_beats():
    up, down = Objective("accuracy", True), Objective("latency", False)
    points = [(0.9, 5), (0.8, 3), (0.8, 4), (0.95, 9), (0.7, 3), (0.9, 5)]
    assert front(points, (up, down)) == [0, 1, 3, 5]
    assert front([(1,), (3,), (2,), (3,)], (up,)) == [1, 3] and front([], (up,)) == []


def test_it_finds_the_hill_and_writes_everything(tmp_path):
    seen = []
    result = search(tmp_path / "run", trials=25, prune=False, on_trial=lambda trial, best: seen.append((trial, best)))
    assert len(result.trials) == 25 and {trial.state for trial in result.trials} == {"complete"}
    (best,) = result.best
    assert best.results["accuracy"] == max(trial.results["accuracy"] for trial in result.trials) > 0.97
    assert best.results["accuracy"] == pytest.approx(hill(best.parameters))
    assert [trial.number for trial, _ in seen] == list(range(25)) and seen[-1][1] == result.best
    assert sum(result.importance["accuracy"].values()) == pytest.approx(1) and not result.notes
    report = json.loads((tmp_path / "run" / "trials.json").read_text())
    assert report["best"] == [best.number] and report["search"]["alpha"] == {"low": 0.0, "high": 1.0}
    assert report["trials"][3]["results"] == result.trials[3].results
    rows = list(csv.DictReader((tmp_path / "run" / "trials.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [trial.results["accuracy"] for trial in result.trials]
    assert sorted(path.name for path in (tmp_path / "run" / "trials").iterdir())[-1] == "0024"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_search_is_quiet(tmp_path, capfd, recwarn):
    import optuna

    level = optuna.logging.get_verbosity()
    search(tmp_path, objectives=("accuracy", "latency"))
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert optuna.logging.get_verbosity() == level


def test_progress_is_on_standard_error(tmp_path, capfd):
    tune(quick, SPACE, tmp_path, trials=3)
    out, err = capfd.readouterr()
    assert out == "" and err.count("accuracy 0.") == 3 and "<< best so far" in err
    tune(quick, SPACE, tmp_path, trials=4)
    assert "resuming after 3 trials, best accuracy 0." in capfd.readouterr().err


def test_going_on_is_as_if_it_had_never_stopped(tmp_path):
    whole = search(tmp_path / "whole", trials=12)
    for trials in (3, 12):
        parts = search(tmp_path / "parts", trials=trials)
        assert len(parts.trials) == trials
    assert of_trials(parts, "number", "parameters") == of_trials(whole, "number", "parameters")
    assert len({trial.parameters["alpha"] for trial in whole.trials}) == 12
    other = search(tmp_path / "other", trials=3, seed=1)
    assert of_trials(other, "parameters") != of_trials(whole, "parameters")[:3]
    more = search(tmp_path / "parts", objective=None, trials=12)  # nothing is left to run
    assert more.best[0].parameters == whole.best[0].parameters


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from duonlp.tuning.search import tune
from tests.duonlp.tuning.test_tuning import SPACE, quick

def slow(parameters, report):
    report(1, 0.5)
    if report.number == 3:
        (report.folder / "half.bin").write_bytes(b"half")
        Path(sys.argv[1], "running").touch()
        time.sleep(60)
    return quick(parameters, report)

tune(slow, SPACE, sys.argv[1], trials=6, console=False, prune=False)
"""


def test_a_search_that_is_killed_goes_on(tmp_path):
    whole = search(tmp_path / "whole", prune=False)
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(ROOT)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "running").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (folder / "running").exists()
        with pytest.raises(InputError, match="another process"):
            search(folder)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    calls = []

    def count(parameters, report):
        calls.append(report.number)
        assert not list(report.folder.iterdir())
        return quick(parameters, report)

    result = search(folder, objective=count, prune=False)
    assert calls == [4, 5, 6]  # 0 to 2 are not repeated; 3 is, as 4
    assert of_trials(result, "parameters") == of_trials(whole, "parameters")
    report = json.loads((folder / "trials.json").read_text())
    assert [trial["state"] for trial in report["trials"]] == ["complete"] * 3 + ["interrupted"] + ["complete"] * 3
    assert report["trials"][3]["reason"] == "the process was killed"


def test_a_trial_that_kills_its_process_every_time_is_given_up(tmp_path):
    class Killed(BaseException):
        """Ends tune without a word, as a kill does."""

    def deadly(parameters, report):
        raise Killed

    for _ in range(tuning_study.MOST_ATTEMPTS):
        with pytest.raises(Killed):
            search(tmp_path, objective=deadly)
    result = search(tmp_path)
    assert [trial.state for trial in result.trials] == ["failed"] + ["complete"] * 5
    assert "killed 3 times while it ran" in result.trials[0].reason


def test_ctrl_c_ends_it_and_it_goes_on(tmp_path):
    whole = search(tmp_path / "whole")

    def interrupted(error):
        def objective(parameters, report):
            if report.number == 2:
                raise error
            return quick(parameters, report)

        return objective

    for folder, error in (("a", KeyboardInterrupt()), ("b", Interrupted())):
        result = search(tmp_path / folder, objective=interrupted(error))
        assert result.interrupted and len(result.trials) == 2 and result.best
        again = search(tmp_path / folder)
        assert not again.interrupted and of_trials(again, "parameters") == of_trials(whole, "parameters")


def test_trials_worse_than_the_median_are_pruned(tmp_path):
    epochs = {}

    def objective(parameters, report):
        for epoch in range(1, 5):
            epochs[report.number] = epoch
            report(epoch, hill(parameters) * epoch / 4)
        return quick(parameters, report)

    result = search(tmp_path / "pruned", objective=objective, trials=14)
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned and not any(trial.number < tuning.STARTUP_PRUNING for trial in pruned)
    assert all(epochs[trial.number] < 4 and "is worse than the median" in trial.reason for trial in pruned)
    assert all(list(trial.evaluations) == list(range(1, epochs[trial.number] + 1)) for trial in result.trials)
    complete = [trial.results["accuracy"] for trial in result.trials if trial.state == "complete"]
    assert result.best[0].results["accuracy"] == max(complete)
    free = search(tmp_path / "free", objective=objective, trials=14, prune=False)
    assert {trial.state for trial in free.trials} == {"complete"}


def test_several_objectives_give_a_front_and_prune_nothing(tmp_path):
    import optuna

    def objective(parameters, report):
        for epoch in (1, 2):
            report(epoch, hill(parameters) * epoch / 2)
        return quick(parameters, report)

    result = search(tmp_path, objective=objective, objectives=("accuracy", "latency"), trials=16)
    assert {trial.state for trial in result.trials} == {"complete"} and len(result.trials[0].evaluations) == 2
    study = optuna.load_study(study_name=tuning_study.STUDY_NAME, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert {trial.number for trial in result.best} == {trial.number for trial in study.best_trials}
    accuracies = [trial.results["accuracy"] for trial in result.best]
    assert len(result.best) > 1 and accuracies == sorted(accuracies, reverse=True)
    assert set(result.importance) == {"accuracy", "latency"}


def test_a_trial_whose_loss_is_no_number_fails_alone(tmp_path):
    def objective(parameters, report):
        if report.number == 1:
            raise NonFiniteLossError("step 7 has a loss of nan")
        if report.number == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"accuracy": math.nan if report.number == 3 else hill(parameters)}

    result = search(tmp_path, objective=objective)
    assert [trial.state for trial in result.trials] == [
        "complete",
        "failed",
        "failed",
        "failed",
        "complete",
        "complete",
    ]
    assert result.trials[1].reason == "NonFiniteLossError: step 7 has a loss of nan"
    assert "accuracy is nan" in result.trials[3].reason and result.to_dict()["failed"] == 3
    assert search(tmp_path, objective=None).best == result.best
    none = search(tmp_path / "none", objective=lambda parameters, report: {"accuracy": math.inf}, trials=2)
    assert none.best == [] and len(none.trials) == 2 and "importances need" in none.notes[0]


def test_an_error_that_every_trial_would_have_ends_it(tmp_path):
    mended = False

    def objective(parameters, report):
        if report.number >= 2 and not mended:
            raise InputError("the data is gone")
        return quick(parameters, report)

    with pytest.raises(InputError, match=r"the data is gone \(trial 2: alpha=0\."):
        search(tmp_path, objective=objective)
    mended = True
    assert len(search(tmp_path, objective=objective).trials) == 6
    for folder, wrong, said in (
        ("a", {"f1": 0.5, "note": "x"}, "the results lack the objective accuracy; available are f1"),
        ("b", {}, "available are none"),
    ):
        with pytest.raises(InputError, match=said):
            search(tmp_path / folder, objective=lambda parameters, report, wrong=wrong: wrong)
    with pytest.raises(ZeroDivisionError):
        search(tmp_path / "bug", objective=lambda parameters, report: 1 / 0)
    assert len(search(tmp_path / "bug").trials) == 6


def search_until_an_error(folder, **options):
    def objective(parameters, report):
        assert not list(report.folder.iterdir())
        (report.folder / "half.bin").touch()
        return quick(parameters, report)

    with pytest.raises(InputError) as error:
        search(folder, objective, **options)
    return str(error.value)


def test_another_search_is_not_gone_on_with(tmp_path):
    wrong = search_until_an_error(tmp_path, objectives="acuracy", settings={"teacher": "a", "fit": {"epochs": 9}})
    assert "the results lack the objective acuracy" in wrong  # of which no trial has finished: the next takes its place
    search(tmp_path, trials=1, settings={"teacher": "a", "fit": {"epochs": 4}})
    same = {"trials": 1, "settings": {"teacher": "a", "fit": {"epochs": 4}}}
    whole = {**SPACE, "alpha": {"low": 0, "high": 1}}
    wider = {**SPACE, "alpha": {"low": 0.0, "high": 2.0}}
    for options, said in (
        ({"space": whole}, "search.alpha.low was 0.0, now 0; search.alpha.high was 1.0, now 1"),
        ({"settings": {"teacher": "a", "fit": {"epochs": True}}}, "settings.fit.epochs was 4, now true"),
        ({"space": wider}, "search.alpha.high was 1.0, now 2.0"),
        ({"space": {"alpha": SPACE["alpha"]}}, "search.fit.learning_rate was .*, now nothing"),
        ({"objectives": "latency"}, "objectives was"),
        ({"objectives": ("accuracy", "latency")}, "objectives was"),
        ({"seed": 3}, "seed was 0, now 3"),
        (
            {"settings": {"teacher": "b", "fit": {"epochs": 5}}},
            'teacher was "a", now "b"; settings.fit.epochs was 4, now 5',
        ),
    ):
        with pytest.raises(InputError, match=said):
            search(tmp_path, **{**same, **options})
    result = search(tmp_path, **{**same, "trials": 2})
    assert [trial.number for trial in result.trials] == [0, 1] and not list((tmp_path / "trials" / "0000").iterdir())


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough to be read as the header of one" * 20)
    with pytest.raises(InputError, match="cannot resume the study"):
        search(tmp_path)


def test_a_damaged_study_is_not_left_locked(tmp_path):
    search(tmp_path, trials=1)
    file = tmp_path / "study.db"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 + 100])
    with pytest.raises(InputError, match="cannot resume the study") as error:
        search(tmp_path, trials=1)
    file.write_bytes(b"")
    assert len(search(tmp_path, trials=1).trials) == 1 and error.value  # which keeps the failed connection's frames


def trials_of(storage, study):
    """Return everything of each trial but its id, with NaN as text."""
    trials = [vars(trial) | {"_trial_id": 0} for trial in storage.get_all_trials(study, deepcopy=True)]
    return [{name: repr(value) for name, value in trial.items()} for trial in trials]


@pytest.mark.parametrize("schema", [12, 99], ids=["tables", "optuna"])
def test_the_file_has_what_memory_has(tmp_path, monkeypatch, schema):
    from duonlp.tuning import storage as tuning_storage

    monkeypatch.setattr(tuning_storage, "SCHEMA", schema)
    space = read_space(
        {**SPACE, "layers": {"choices": [[0], [0, 1], None]}, "epochs": {"low": 1, "high": 9, "step": 2}}
    )

    def objective(parameters, report):
        report(1, math.nan if report.number == 1 else math.inf if report.number == 2 else 0.5)
        if report.number == 3:
            raise NonFiniteLossError("diverged")
        if report.number == 5:
            raise KeyboardInterrupt
        return quick(parameters, report) | {"note": "ü", "list": [1, None]}

    assert search(tmp_path, objective, space).interrupted
    search(tmp_path, space=space, trials=9)
    objectives = read_objectives("accuracy")
    with tuning_study.quiet_optuna(), tuning_study.open_study(tmp_path, space, objectives, 0, {}) as (study, memory):
        dimension = {name: each.distribution() for name, each in space.items()}
        trial = study.ask(dimension)
        assert len(memory.file.get_all_trials(1)) == trial.number  # not yet written
        memory.write_started(trial._trial_id)
        trial.set_user_attr("results", {"a": 1})
        trial.set_user_attr("results", {"a": [2, "x"]})
        trial.report(-math.inf, 1)
        assert trials_of(memory, study._study_id) == trials_of(memory.file, 1)
        study.tell(trial, -1e300)
        assert trials_of(memory, study._study_id) == trials_of(memory.file, 1)
        assert memory.file.get_all_trials(1)[-1].value == -1e300
        assert tuning_study.close_running(study, memory, "stopped") == 0


def test_a_quick_trial_costs_little(tmp_path):
    search(tmp_path / "warm", trials=10)
    start = time.process_time()
    search(tmp_path / "run", trials=60)
    assert (
        time.process_time() - start < 60 * 0.02
    )  # 2 ms on an idle machine; 75 ms when each trial read the study again


def test_a_folder_may_have_any_name(tmp_path):
    assert len(search(tmp_path / "a b?c#d%20é", trials=2).trials) == 2
    assert (tmp_path / "a b?c#d%20é" / "study.db").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"trials": 0}, "trials is 0"), ({"seconds": -1}, "seconds is -1"), ({"seed": -1}, "seed is -1")],
)
def test_numbers_that_make_no_sense(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        search(tmp_path, **options)


def test_time_is_looked_at_between_trials(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    result = search(tmp_path, trials=50, seconds=45)
    assert 0 < len(result.trials) < 6 and not result.interrupted


def test_the_same_settings_are_not_run_twice(tmp_path):
    calls = []

    def objective(parameters, report):
        calls.append(parameters["layers"])
        if parameters["layers"] == [0, 1]:
            raise NonFiniteLossError("diverged")
        return {"accuracy": len(parameters["layers"])}

    result = search(tmp_path, objective=objective, space={"layers": {"choices": [[0], [0, 1], [0, 1, 2]]}}, trials=12)
    assert len(calls) == len({str(each) for each in calls}) == 3 and len(result.trials) == 12
    copies = [trial for trial in result.trials if trial.same_as is not None]
    assert len(copies) == 9 and len(result.best) == 1 and result.best[0].same_as is None
    for copy in copies:
        first = next(trial for trial in result.trials if trial.number == copy.same_as)
        assert (copy.state, copy.results) == (first.state, first.results)


@pytest.mark.usefixtures("pictures")
@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="the extra bench")
def test_pictures(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)

    def objective(parameters, report):
        report(1, hill(parameters) / 2)
        if report.number == 2:
            raise NonFiniteLossError("diverged")
        return quick(parameters, report)

    space = {**SPACE, "layers": {"choices": [[0, 1], [0, 2]]}}
    one = search(tmp_path / "one", objective=objective, space=space, prune=False, trials=10)
    two = search(tmp_path / "two", objective=objective, objectives=["accuracy", "latency"], trials=10)
    pictures = {"history.png", "importance.png", "slices.png"}
    assert {name for name in one.files if name.endswith(".png")} == pictures
    assert {name for name in two.files if name.endswith(".png")} == pictures | {"pareto.png"}
    for file in (*one.files.values(), *two.files.values()):
        assert file.stat().st_size > (5000 if file.suffix == ".png" else 100)
    assert one.files["history.png"].read_bytes().startswith(b"\x89PNG") and dict(matplotlib.rcParams) == before
    few = search(tmp_path / "few", trials=1)
    assert "importance.png" not in few.files and "importances need 8 completed trials" in few.notes[0]
    from duonlp.tuning.plots import plot_history, plot_importance, plot_pareto

    with pytest.raises(InputError, match="at least two objectives"):
        plot_pareto(one.trials, one.best, one.objectives, tmp_path / "x.png")
    with pytest.raises(InputError, match="none of 0 trials"):
        plot_history([], one.objectives, tmp_path / "x.png")
    with pytest.raises(InputError, match="no importances"):
        plot_importance({}, tmp_path / "x.png")
    with pytest.raises(InputError, match="give a file that ends in"):
        plot_history(one.trials, one.objectives, tmp_path / "x.bmp")


@pytest.mark.usefixtures("pictures")
def test_missing_extras(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    assert any('pip install "duonlp[search]"' in note for note in search(tmp_path, trials=1).notes)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else find(name, *a))
    with pytest.raises(MissingExtraError, match=r'pip install "duonlp\[search\]"'):
        search(tmp_path)


def test_spaces_take_what_they_give():
    space = {"a": Range("a", 1, 5), "b": Choices("b", ("x", None))}
    assert read_space(space) == space and search_space.Choices.label(None) is None
