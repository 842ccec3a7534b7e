"""Settings and data of fine-tuning a reader, its reader.json, and cross-validation, all without a framework."""

import json
import warnings

import pytest

from duonlp.data.questions import Questions, read_questions, write_squad
from duonlp.errors import CheckpointError, InputError
from duonlp.runs import cross_validation, finetuning
from duonlp.runs.cross_validation import cross_validate, spread
from duonlp.runs.question_answering import FIT, QuestionAnsweringSettings, fingerprint, read_splits
from duonlp.tasks.reader_config import ReaderConfig, read_reader_config, write_reader_config
from duonlp.training.settings_file import build, replace_settings, write_toml
from tests.readers import questions, reader_checkpoint
from tests.standins import Package


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return (folder of a checkpoint without a head, file of training questions, file of validation questions)."""
    folder = tmp_path_factory.mktemp("questions")
    for name, count, seed in (("train", 24, 0), ("validation", 8, 1)):
        write_squad(Questions(questions(count, seed)), folder / f"{name}.json")
    return reader_checkpoint(folder / "bert"), folder / "train.json", folder / "validation.json"


@pytest.fixture
def settings(base, tmp_path):
    model, train, validation = base
    return QuestionAnsweringSettings(
        model=str(model), data=str(train), validation_data=str(validation), output=str(tmp_path / "run"), batch_size=8
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "text-classification"}, "task is 'text-classification', but these are the settings of question-answ"),
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"fold": 1}, "fold is 1, but there are no folds"),
        ({"folds": 3, "fold": 4, "validation_data": None}, "fold is 4; it must be from 1 to folds, which is 3"),
        ({"folds": 3}, "folds is 3, which validates on parts .* give one of the two"),
        ({"doc_stride": -1}, "doc_stride is -1"),
        ({"max_answer_length": 0}, "max_answer_length 0"),
        ({"model": ""}, "model is empty"),
        ({"label_column": "x"}, "'label_column' is not a setting"),
    ],
)
def test_invalid_settings_are_rejected(settings, change, message):
    with pytest.raises(InputError, match=message):
        replace_settings(settings, change)


def test_problems_of_the_data_are_known_before_training(settings, base, tmp_path):
    settings = replace_settings(settings, {"max_length": 16, "doc_stride": 2})
    assert finetuning.plan(settings, "jax")["unreachable"] == []
    long, context = questions(8, 1), " ".join(["attic today"] * 10)
    long[2] |= {"context": context, "answers": {"text": [context], "answer_start": [0]}}
    write_squad(Questions(long), tmp_path / "answer.json")
    plan = finetuning.plan(replace_settings(settings, {"data": str(tmp_path / "answer.json")}), "jax")
    assert plan["unreachable"] == ["1-2"] and "too short for the answers to 1 of them" in plan["summary"]
    long[5] |= {"question": " ".join(["where is it"] * 6)}
    write_squad(Questions(long), tmp_path / "question.json")
    with pytest.raises(InputError, match="question '1-5': a question of 18 tokens and doc_stride 2 leave no room"):
        finetuning.plan(replace_settings(settings, {"validation_data": str(tmp_path / "question.json")}), "jax")
    with pytest.raises(InputError, match="doc_stride is 16, but a window has 16 tokens"):
        finetuning.plan(replace_settings(settings, {"doc_stride": 16}), "jax")


def test_settings_of_a_classifier_do_not_take_another_task(settings):
    with pytest.raises(InputError, match="task is 'question-answering', but these are the settings of text-class"):
        finetuning.FinetuneSettings(model="m", data="d", output="o", task="question-answering")


def test_a_table_keeps_the_defaults_it_leaves_out():
    given = {"model": "m", "data": "d", "output": "o", "fit": {"epochs": 1}}
    assert build(QuestionAnsweringSettings, given).fit.learning_rate == FIT.learning_rate


def test_a_file_for_each_side(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, validation = read_splits(settings)
    assert len(train) == 24 and len(validation) == 8
    with pytest.warns(
        UserWarning, match="single table: all of it is trained on, nothing is validated .*validation_data"
    ):
        assert read_splits(replace_settings(settings, {"validation_data": None}))[1] is None


def test_a_folder_with_a_file_for_each_split(settings, base):
    folder = replace_settings(settings, {"data": str(base[1].parent / "splits"), "validation_data": None})
    (base[1].parent / "splits").mkdir()
    for file in base[1:]:
        (base[1].parent / "splits" / file.name).write_bytes(file.read_bytes())
    train, validation = read_splits(folder)
    assert [row["id"] for row in train] == [row["id"] for row in read_questions(base[1])] and len(validation) == 8
    assert read_splits(replace_settings(folder, {"validation_split": ""}))[1] is None


def test_folds_share_no_title(settings):
    whole = replace_settings(settings, {"validation_data": None, "folds": 3})
    held_out = []
    for fold in (1, 2, 3):
        train, validation = read_splits(replace_settings(whole, {"fold": fold}))
        assert not {row["title"] for row in train} & {row["title"] for row in validation}
        held_out += [row["id"] for row in validation]
    assert sorted(held_out) == sorted(row["id"] for row in read_questions(settings.data))
    with pytest.raises(InputError, match="only"):
        read_splits(replace_settings(whole, {"folds": 20, "fold": 1}))


def test_the_fingerprint_is_of_the_contents(base):
    train, validation = read_questions(base[1]), read_questions(base[2])
    assert fingerprint(train, validation) != fingerprint(validation, train) != fingerprint(train, None)
    assert fingerprint(train, None) == fingerprint(Questions(list(train), "another name"), None)


def test_reader_config_round_trips(tmp_path):
    assert read_reader_config(tmp_path) is None
    for threshold in (None, -1.25):
        config = ReaderConfig(384, 128, 30, threshold)
        write_reader_config(tmp_path, config)
        assert read_reader_config(tmp_path) == config
    (tmp_path / "reader.json").write_text(json.dumps({"max_seq_len": "x", "doc_stride": 1, "max_answer_len": 3}))
    with pytest.raises(CheckpointError, match="max_seq_len"):
        read_reader_config(tmp_path)


@pytest.fixture
def folds(settings, monkeypatch):
    """Return (settings of three folds, the folds trained so far); fold n gets an F1 of 10 n."""
    trained = []

    def finetune(package, settings, *, console):
        trained.append(settings.fold)
        scores = {"f1": 10.0 * settings.fold}
        report = {
            "metrics": scores, "at_threshold": {"threshold": 0.5, **scores}, "preempted": len(trained) == stop_at[0],
            "data": {}, "model": "m", "best": None, "steps": 3, "seconds": 1.5,
        }  # fmt: skip
        settings.folder.mkdir(parents=True, exist_ok=True)
        write_toml(settings.folder / "settings.toml", replace_settings(settings, {"framework": "jax"}))
        (settings.folder / "results.json").write_text(json.dumps(report))
        return report

    stop_at = [0]
    monkeypatch.setattr(finetuning, "finetune", finetune)
    return replace_settings(settings, {"validation_data": None, "folds": 3}), trained, stop_at


def test_cross_validation_reports_mean_and_spread(folds):
    settings, trained, _ = folds
    report = cross_validate(Package(), settings, console=False)
    assert trained == [1, 2, 3] and len(report["folds"]) == 3 and report["seconds"] == 4.5
    assert report["metrics"]["f1"] == {"mean": 20, "std": 10, "min": 10, "max": 30, "values": [10, 20, 30]}
    assert report["at_threshold"]["threshold"]["mean"] == 0.5
    assert json.loads((settings.folder / "results.json").read_text())["metrics"] == report["metrics"]
    assert cross_validation.is_cross_validation(settings)
    assert not cross_validation.is_cross_validation(replace_settings(settings, {"fold": 1}))


def test_cross_validation_resumes_with_the_fold_that_was_stopped(folds):
    settings, trained, stop_at = folds
    stop_at[0] = 2
    assert cross_validate(Package(), settings, console=False)["preempted"] and trained == [1, 2]
    assert not cross_validate(Package(), settings, console=False)["preempted"] and trained == [1, 2, 2, 3]
    with pytest.raises(InputError, match=r"different settings \(seed\)"):
        cross_validate(Package(), replace_settings(settings, {"seed": 1}), console=False)


def test_spread_leaves_out_what_a_run_lacks():
    assert set(spread([{"a": 1.0, "b": 2.0}, {"a": 3.0}])) == {"a"}
