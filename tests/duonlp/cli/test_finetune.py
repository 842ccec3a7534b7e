"""`duonlp finetune`: settings, output, resuming and errors without a framework, then a run in each framework."""

import csv
import json
import tomllib
import warnings

import numpy as np
import pytest

from duonlp.cli import training as cli_training
from duonlp.errors import InputError
from duonlp.runs import finetuning as training
from duonlp.runs.finetuning import FinetuneSettings, finetune
from duonlp.runs.labelled import FIT
from duonlp.training.fit_config import FitConfig
from duonlp.training.log.metrics_file import read_metrics
from duonlp.training.settings_file import build, replace_settings, to_toml
from duonlp.util import frameworks
from duonlp.util.files import locked_folder
from tests.intents import BERT, LABELS, checkpoint, queries, write_queries
from tests.standins import Package, command, fingerprint_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return (folder of a checkpoint without a head, query file)."""
    folder = tmp_path_factory.mktemp("intents")
    return checkpoint(folder / "bert"), write_queries(folder / "queries.json")


@pytest.fixture
def settings(base, tmp_path):
    """Return settings of a run of four epochs with eight batches each."""
    model, data = base
    return FinetuneSettings(model=str(model), data=str(data), output=str(tmp_path / "run"), batch_size=8)


@pytest.fixture
def run(capsys, monkeypatch):
    return command(capsys, monkeypatch)


def test_a_run_writes_its_settings_and_results(settings):
    seen = []
    report = finetune(Package(), settings, on_evaluation=lambda *each: seen.append(each), console=False)
    folder = settings.folder
    assert {"best", "settings.toml", "results.json", "metrics.jsonl", "run.json"} <= {f.name for f in folder.iterdir()}
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(report))
    stored = build(FinetuneSettings, tomllib.loads((folder / "settings.toml").read_text()))
    assert stored == replace_settings(settings, {"framework": "jax"})
    config = json.loads((folder / "best" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(LABELS) and (folder / "best" / "tokenizer.json").exists()
    assert [step for step, _ in seen] == [8, 16, 24, 32] == [each["step"] for each in report["history"]]
    assert report["metrics"]["accuracy"] == pytest.approx(12 / 24) == report["best"]["value"]
    assert {"in_scope_accuracy", "out_of_scope_recall", "macro_f1", "loss"} <= set(report["metrics"])
    assert report["at_threshold"]["out_of_scope_recall"] >= report["metrics"]["out_of_scope_recall"]
    assert report["data"] == {**report["data"], "train": 64, "validation": 24, "labels": 4}
    assert report["examples_per_second"] == report["examples"] / report["seconds"]
    assert report["bytes"] > 4 * report["parameters"] and report["machine"]["versions"]["numpy"]


class Unconfident(Package):
    """A stand-in that finds every label of a text more likely than all others, but never likely."""

    def predict(self, model, batches, *, as_teacher=False):
        return np.where(batches.labels > 0.5, -0.5, -2.0).astype(np.float32)


def test_several_labels_are_also_scored_at_the_best_thresholds(base, run, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"text": f"{a} {b}", "labels": [a, b]} for a, b in (("bug", "docs"), ("bug", "new"), ("docs", "new"))]
    for split in ("train", "validation"):
        (tmp_path / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    options = ["-m", base[0], "-d", tmp_path / "data", "--output", tmp_path / "run", "--epochs", "1"]
    status, out, err = run("finetune", *options, "-f", "jax", package=Unconfident())
    report = json.loads((tmp_path / "run/results.json").read_text())
    assert status == 0, err
    assert report["metrics"]["micro_f1"] == 0 and report["metrics"]["macro_average_precision"] == 1
    shared, own = report["at_threshold"], report["at_label_thresholds"]
    assert shared["micro_f1"] == own["macro_f1"] == own["accuracy"] == 1
    assert set(own["thresholds"]) == {"bug", "docs", "new"}
    assert 1 / (1 + np.exp(2.0)) < shared["threshold"] < 1 / (1 + np.exp(0.5))
    assert f"at threshold {shared['threshold']:.3f}" in out and "threshold per label" in out
    assert "macro_average_precision" in out


def test_the_reported_scores_are_those_of_the_best_model(settings):
    report = finetune(Package(best_epoch=2), settings, console=False)
    assert report["best"] == {"value": 6 / 24, "step": 16}
    assert report["metrics"]["accuracy"] == pytest.approx(6 / 24)
    assert "step" not in report["metrics"]


def test_the_same_settings_resume(settings):
    first = finetune(Package(stop_after=2), settings, console=False)
    assert first["preempted"] and first["steps"] == 16
    seen = []
    second = finetune(Package(), settings, on_evaluation=lambda *each: seen.append(each[0]), console=False)
    assert seen == [24, 32] and [each["step"] for each in second["history"]] == [8, 16, 24, 32]
    third = finetune(Package(), settings, console=False)  # no training is left
    assert third["metrics"] == pytest.approx(second["metrics"]) and third["best"] == second["best"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, r"different settings \(batch_size\)"),
        ({"fit.learning_rate": 1e-3}, r"different settings \(fit.learning_rate\)"),
        ({"limit": 8}, r"different settings \(limit\)"),
        (
            {"fit.best_metric": "loss"},
            r"different settings \(fit.best_metric\)",
        ),  # the best so far is a value of the other
    ],
)
def test_another_run_in_the_folder_is_rejected_before_any_work(settings, change, message):
    finetune(Package(), settings, console=False)
    before = fingerprint_of(settings.folder)
    package = Package()
    with pytest.raises(InputError, match=message):
        finetune(package, replace_settings(settings, change), console=False)
    assert not package.calls and fingerprint_of(settings.folder) == before
    finetune(
        Package(), replace_settings(settings, {"fit.log_every": 1, "fit.patience": 3}), console=False
    )  # these may change


def test_a_folder_with_other_content_is_rejected(settings, base):
    with pytest.raises(InputError, match=r"already holds a run or a model \(config.json, model.safetensors\)"):
        finetune(Package(), replace_settings(settings, {"output": str(base[0])}), console=False)


def test_no_validation(settings):
    report = finetune(Package(), replace_settings(settings, {"validation_split": ""}), console=False)
    assert report["metrics"] == {} and report["best"] is None and report["data"]["validation"] == 0
    assert (settings.folder / "best" / "model.safetensors").exists()


def write_table(file, count):
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *queries(count)])
    return file


@pytest.mark.parametrize("name", ["all.csv", "train.csv", "folder"])
def test_a_single_table_is_the_training_data(settings, tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    write_table(tmp_path / name / "all.csv" if name == "folder" else tmp_path / name, 40)
    alone = replace_settings(settings, {"data": str(tmp_path / name)})
    with pytest.warns(UserWarning, match="is a single table.*nothing is validated.*give a folder"):
        report = finetune(Package(), alone, console=False)
    assert report["data"] | {"train": 40, "validation": 0, "labels": 4} == report["data"] and report["metrics"] == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning if no validation was asked for
        training.prepare(replace_settings(alone, {"validation_split": ""}))
    with pytest.raises(InputError, match="is a single table and has no split 'dev'; give a folder"):
        training.prepare(replace_settings(alone, {"validation_split": "dev"}))


def test_a_folder_of_tables_is_trained_on_and_validated(settings, tmp_path):
    (tmp_path / "tables").mkdir()
    for name, count in (("train", 40), ("validation", 12)):
        write_table(tmp_path / "tables" / f"{name}.csv", count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, _ = training.prepare(replace_settings(settings, {"data": str(tmp_path / "tables")}))
    assert data.describe() | {"train": 40, "validation": 12} == data.describe()


def test_unlabelled_rows_are_left_out_and_counted(run, settings, tmp_path):
    rows = [
        {"title": "hello", "body": None, "labels": ["greeting", "x"]}, {"title": "block", "body": "card", "labels": ["lost"]},
        {"title": "what", "body": "now", "labels": []}, {"title": "hm", "body": "", "labels": ["x"]},
    ]  # fmt: skip
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "map.json").write_text('{"lost": "freeze", "x": null}')
    given = ["finetune", "-m", settings.model, "-d", tmp_path, "--output", settings.folder, "--dry-run"]
    given += ["--text-template", r"{title}\n{body}", "--label-map", tmp_path / "map.json"]
    status, out, err = run(*given)
    assert status == 0 and "2 training texts, 2 validation texts, 2 labels; 4 unlabeled rows are left out" in out, err
    assert "2 of the validation texts are also training texts, so scores are too high" in out.replace("\n", " ")
    status, out, err = run(*given, "--unlabeled", "negative")
    assert (
        status == 0 and "4 training texts, 4 validation texts, 2 labels; no label applies to 4 of the texts" in out
    ), err
    status, out, err = run(*given, "--unlabeled", "error")
    assert status == 2 and "train.jsonl:3: no label: it has no label; fix that record or remove it" in err
    table = {"lost": "freeze", "x": None}
    changed = replace_settings(
        settings, {"data": str(tmp_path), "text_template": "{title}\n{body}", "label_map": table}
    )
    assert build(FinetuneSettings, tomllib.loads(to_toml(changed))) == changed and changed.label_map["x"] == ""
    data, _ = training.prepare(changed)
    assert data.batches.texts == ["hello", "block\ncard"] and data.describe()["unlabelled"] == 4
    assert data.label_names == ("freeze", "greeting") and data.validation.labels.tolist() == [[0, 1], [1, 0]]
    few = training.prepare(replace_settings(changed, {"label_map": None, "most_frequent": 1}))[0]
    assert few.label_names == ("x",) and few.batches.texts == ["hello", "hm"] and few.describe()["unlabelled"] == 4


def test_a_run_that_another_process_is_writing_is_rejected(settings):
    settings.folder.mkdir()
    package = Package()
    with locked_folder(settings.folder), pytest.raises(InputError, match="is being written by another process"):
        finetune(package, settings, console=False)
    assert not list(settings.folder.iterdir())


def test_a_new_head_does_not_warn(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finetune(Package(), settings, console=False)


def test_a_head_for_the_same_labels_keeps_its_order(settings, tmp_path):
    order = LABELS[::-1]
    model = checkpoint(tmp_path / "tuned", labels=order)
    finetune(Package(), replace_settings(settings, {"model": str(model)}), console=False)
    config = json.loads((settings.folder / "best" / "config.json").read_text())
    assert tuple(config["id2label"].values()) == order


def test_a_head_for_as_many_other_labels_is_rejected(settings, tmp_path):
    model = checkpoint(tmp_path / "tuned", labels=("a", "b", "c", "d"))
    with pytest.raises(InputError, match="for as many labels as the data has, but for different ones"):
        finetune(Package(), replace_settings(settings, {"model": str(model)}), console=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_of_scope": "oss"}, "'oss', which is not one of the 4 labels; did you mean 'oos'"),
        ({"max_length": 17}, "max_length is 17; the model reads at most 16 tokens"),
        ({"quantization_aware": "int9"}, "quantization_aware 'int9'.*int8-static"),
        ({"dtype": "float16"}, "dtype 'float16' is not supported; choose one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"framework": "jaxx"}, "'jaxx' is not one of tf, jax; did you mean 'jax'"),
        ({"data": ""}, "data is empty"),
        ({"train_split": "tarin"}, "tarin"),
    ],
)
def test_invalid_settings_are_rejected_before_the_training(settings, change, message):
    package = Package()
    with pytest.raises(InputError, match=message):
        finetune(package, replace_settings(settings, change), console=False)
    assert not package.calls and not settings.folder.exists()


def test_settings_round_trip_through_toml(settings):
    changed = replace_settings(settings, {"fit.clip_norm": None, "fit.patience": 2, "text_column": 'a "b"', "limit": 7})
    text = to_toml(changed, "a heading")
    assert text.startswith("# a heading\n") and 'clip_norm = "none"' in text
    assert build(FinetuneSettings, tomllib.loads(text)) == changed
    partly = build(FinetuneSettings, {"model": "m", "data": "d", "output": "o", "fit": {"epochs": 1}})
    assert partly.fit == FitConfig.of(FIT.to_dict() | {"epochs": 1})  # the table's other values are the run's defaults


def test_flags_override_options_override_the_file(run, settings, tmp_path):
    file = tmp_path / "run.toml"
    text = f'model = "{settings.model}"\ndata = "{settings.data}"\nbatch_size = 8\n[fit]\nepochs = 3\nlearning_rate = 1e-3\n'
    file.write_text(text + "weight_decay = 0.5\n")
    status, out, err = run(
        "finetune", "--config", file, "--output", tmp_path / "run", "-o", "fit.learning_rate=2e-3", "-o", "fit.epochs=2",
        "--epochs", 1, "--seed", 5, "--json", package=Package(),
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)["settings"]
    assert (found["fit"]["epochs"], found["fit"]["learning_rate"], found["fit"]["weight_decay"]) == (1, 2e-3, 0.5)
    assert found["batch_size"] == 8 and found["seed"] == found["fit"]["seed"] == 5
    again = run("finetune", "--config", tmp_path / "run" / "settings.toml", "--json", package=Package())
    assert json.loads(again[1])["settings"] == found  # the written file repeats the run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["lacks data, output, model"]),
        (["-o", "fit.lerning_rate=1"], ["'fit.lerning_rate' is not a setting", "did you mean 'fit.learning_rate'"]),
        (["-o", "batchsize=1"], ["did you mean 'batch_size'"]),
        (["-o", "fit.epochs=four"], ["fit.epochs is 'four'", "an integer"]),
        (["-o", "fit.epochs"], ["KEY=VALUE", "fit.beta1=0.95"]),
        (["-o", "fit.optimizer=adam"], ["fit: optimizer is 'adam'", "adamw"]),
        (["-c", "/nowhere/run.toml"], ["cannot read '/nowhere/run.toml'", "TOML"]),
        (["--plot", "curve.gif"], ["'.gif'", ".png"]),
    ],
)
def test_usage_errors_are_one_line(run, settings, arguments, parts):
    given = ["-m", settings.model, "-d", settings.data, "--output", settings.output] if arguments else []
    status, out, err = run("finetune", *given, *arguments)
    assert status == 2 and not out and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_a_broken_toml_file(run, tmp_path):
    (tmp_path / "run.toml").write_text("model = \n")
    status, _, err = run("finetune", "-c", tmp_path / "run.toml")
    assert status == 2 and "is not valid TOML" in err and "line 1" in err


def test_a_stopped_run_has_its_own_status(run, settings, monkeypatch):
    given = ["finetune", "-m", settings.model, "-d", settings.data, "--output", settings.folder, "--batch-size", 8]
    status, out, _ = run(*given, package=Package(stop_after=1))
    assert status == cli_training.STOPPED and "run the same command to resume" in out

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finetune", interrupted)
    status, out, err = run(*given, package=Package())
    assert status == cli_training.STOPPED and not out and "run the same command to resume" in err


def test_an_error_in_a_row_has_advice_for_the_command_line(run, settings, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nhello,\n")
    status, _, err = run("finetune", "-m", settings.model, "-d", tmp_path / "train.csv", "--output", settings.folder)
    assert status == 2 and "fix that record or remove it" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit.best_metric": "nosuch"}, "best_metric is 'nosuch' but the evaluation computes only loss, accuracy"),
        ({"validation_split": "", "fit.patience": 2}, "patience is 2 but nothing is evaluated"),
        ({"output": "DATA/run"}, "queries.json' is a file; give a folder"),
        ({"model": "OTHER"}, "fine-tuned for as many labels as the data has, but for different ones"),
    ],
)
def test_a_plan_rejects_what_the_run_would(settings, tmp_path, change, message):
    other = checkpoint(tmp_path / "other", labels=("a", "b", "c", "d"))
    change = {name: value.replace("OTHER", str(other)) if name == "model" else value for name, value in change.items()}
    change = {
        name: value.replace("DATA", settings.data) if name == "output" else value for name, value in change.items()
    }
    with pytest.raises(InputError, match=message):
        training.plan(replace_settings(settings, change), "jax")


def test_dry_run_prints_the_plan(run, settings):
    given = ["-m", settings.model, "-d", settings.data, "--output", settings.output, "--batch-size", 8]
    status, out, _ = run("finetune", *given, "--dry-run")
    assert status == 0 and not settings.folder.exists()
    assert "64 training texts, 24 validation texts, 4 labels" in out and "32 steps of 8 texts, 8 per epoch" in out
    plan = training.plan(settings, "jax")
    assert plan["steps"] == 32 and plan["out_of_scope"] == "oos" and plan["parameters"] > 0


def test_table_and_plot(run, settings, tmp_path):
    given = ["-m", settings.model, "-d", settings.data, "--output", settings.output, "--batch-size", 8]
    status, out, err = run("finetune", *given, "--plot", tmp_path / "curve.svg", package=Package())
    assert status == 0, err
    assert "in_scope_accuracy" in out and "at threshold" in out and "best after step 32" in out
    figure = (tmp_path / "curve.svg").read_text()
    assert "validation scores" in figure and "training" in figure


@pytest.fixture(scope="module", params=["jax", "tf"])
def real(request, base, tmp_path_factory):
    """Return (package, settings, report) of a real run: a BERT of three layers trained from scratch."""
    pytest.importorskip(frameworks.NEEDS[request.param])
    package = frameworks.package(request.param)
    folder = tmp_path_factory.mktemp("real")
    data = write_queries(folder / "queries.json", train=128)
    settings = FinetuneSettings(
        model=str(base[0]), data=str(data), output=str(folder / "run"), batch_size=16, max_length=8,
        fit=FitConfig(epochs=6, learning_rate=6e-3, schedule="cosine", best_metric="accuracy", save_every=0),
    )  # fmt: skip
    return package, settings, finetune(package, settings, console=False)


def test_a_real_run_learns_and_its_model_loads(real):
    package, settings, report = real
    assert report["metrics"]["accuracy"] > 0.8 and report["metrics"]["out_of_scope_recall"] > 0.6
    assert report["framework"] == {"jaxnlp": "jax", "tfnlp": "tf"}[package.__name__]
    steps = [record for record in read_metrics(settings.folder) if record["kind"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    pipe = package.pipeline("text-classification", settings.folder / "best")
    assert pipe("please play some song")[0]["label"] == "music"
    model = package.AutoModelForSequenceClassification.from_pretrained(settings.folder / "best")
    data, _ = training.prepare(settings)
    logits = package.predict(model, data.validation)
    assert np.mean(logits.argmax(1) == data.validation.labels) == pytest.approx(report["metrics"]["accuracy"])
    assert model.config.num_layers == BERT["num_hidden_layers"] and model.config.labels == LABELS


def test_the_best_model_is_also_saved_quantized(real, tmp_path, capsys):
    package, settings, report = real
    changes = {"model": str(settings.folder / "best"), "output": str(tmp_path / "aware"), "fit.epochs": 1}
    again = finetune(
        package, replace_settings(settings, changes | {"quantization_aware": "int8-static"}), console=False
    )
    folder = tmp_path / "aware/best-int8-static"
    assert again["quantized"]["model"] == str(folder) and again["quantized"]["bytes"] < again["bytes"]
    assert again["quantized"]["metrics"]["accuracy"] > 0.8 and report["quantized"] is None
    prepared, quantized = (
        package.AutoModelForSequenceClassification.from_pretrained(path) for path in (again["model"], folder)
    )
    assert prepared.config.quantization.simulated and not quantized.config.quantization.simulated
    cli_training.print_results(again)
    assert "int8-static" in capsys.readouterr().out
