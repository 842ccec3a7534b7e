"""`duonlp distill`: students and teachers, errors before any training, and a run in each framework."""

import json
import tomllib

import pytest

from duonlp.distillation.settings import Attentions, Distillation, HiddenStates
from duonlp.errors import CheckpointError, InputError
from duonlp.runs import distillation as training
from duonlp.runs.distillation import DistillSettings, distill
from duonlp.training.fit_config import FitConfig
from duonlp.training.settings_file import build, replace_settings, to_toml
from duonlp.util import frameworks
from tests.intents import LABELS, WORDS, checkpoint, write_queries
from tests.standins import Package, command, fingerprint_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return (teacher folder, query file)."""
    folder = tmp_path_factory.mktemp("intents")
    return checkpoint(folder / "teacher", labels=LABELS[::-1]), write_queries(folder / "queries.json")


@pytest.fixture
def settings(base, tmp_path):
    """Return settings for a student with two of the teacher's three layers."""
    teacher, data = base
    return DistillSettings(
        teacher=str(teacher), layers=2, data=str(data), output=str(tmp_path / "run"), batch_size=8
    )  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    return command(capsys, monkeypatch)


def stored_config(settings) -> dict:
    return json.loads((settings.folder / "best" / "config.json").read_text())


def test_a_student_of_the_teachers_layers(settings):
    package = Package()
    report = distill(package, settings, console=False)
    config = stored_config(settings)
    assert config["num_hidden_layers"] == 2 and tuple(config["id2label"].values()) == LABELS[::-1]
    teacher = report["teacher"]
    assert teacher["parameters"] > report["parameters"] and teacher["bytes"] > report["bytes"]
    assert teacher["metrics"]["accuracy"] == pytest.approx(4 / 8)  # of the stand-in teacher
    assert ("distill", settings.distillation) in package.calls
    assert build(DistillSettings, tomllib.loads((settings.folder / "settings.toml").read_text())).layers == 2
    again = distill(Package(), settings, console=False)
    assert again["metrics"] == pytest.approx(report["metrics"])


def test_a_student_that_is_a_checkpoint(settings, tmp_path):
    student = checkpoint(tmp_path / "small", num_hidden_layers=1, hidden_size=8)
    distill(Package(), replace_settings(settings, {"layers": None, "student": str(student)}), console=False)
    config = stored_config(settings)
    assert config["hidden_size"] == 8 and tuple(config["id2label"].values()) == LABELS[::-1]


def test_a_fine_tuned_student_keeps_its_label_order(settings, tmp_path):
    student = checkpoint(tmp_path / "small", labels=LABELS, num_hidden_layers=1)
    report = distill(Package(), replace_settings(settings, {"layers": None, "student": str(student)}), console=False)
    assert tuple(stored_config(settings)["id2label"].values()) == LABELS
    assert report["teacher"]["metrics"]["accuracy"] == pytest.approx(4 / 8)  # with another label order


def test_a_teacher_with_another_tokenizer_gets_its_own_inputs(settings, tmp_path):
    words = (*WORDS[:4], *reversed(WORDS[4:]))
    student = checkpoint(tmp_path / "other", words=words, num_hidden_layers=1)
    changed = replace_settings(settings, {"layers": None, "student": str(student)})
    batch = next(training.prepare(changed).data.batches.epoch(0))
    assert (batch["input_ids"] != batch["teacher_input_ids"]).any()
    losses = replace_settings(changed, {"distillation": Distillation(losses=(HiddenStates(),)).to_dict()})
    with pytest.raises(InputError, match="the tokenizers differ"):
        distill(Package(), losses, console=False)


def test_teacher_logits_are_cached(settings, tmp_path):
    package = Package()
    changed = replace_settings(settings, {"cache_teacher_logits": True, "evaluate_teacher": False})
    report = distill(package, changed, console=False)
    assert package.calls[0] == ("cached_teacher_logits", str(settings.folder / "teacher_logits"))
    assert "metrics" not in report["teacher"]


def assert_rejected(settings, change, message, kind=InputError):
    package = Package()
    with pytest.raises(kind, match=message):
        distill(package, replace_settings(settings, change), console=False)
    assert not package.calls and not settings.folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "no student given; give exactly one of student"),
        ({"layer_list": [0, 2]}, r"layers=2 and layer_list=\(0, 2\) given"),
        ({"layers": 4}, "cannot copy 4 layers of the teacher's 3"),
        ({"layers": None, "layer_list": [0, 3]}, "numbered from 0 to 2"),
        ({"distillation.alpha": 1.5}, "alpha is 1.5"),
        ({"distillation.alpha": 1.0}, "nothing is learned from the teacher"),
        ({"distillation.temprature": 2}, "did you mean 'temperature'"),
        ({"distillation.losses": [{"loss": "hidden"}]}, "did you mean 'hidden_states'"),
        ({"distillation.losses": 3}, "losses is 3; give a list of tables"),
        ({"distillation.losses": None}, "losses is None; give a list of tables"),
        ({"distillation.losses": [{"loss": "relations", "of": 3}]}, "of is 3 in a relations loss; give some of query"),
        ({"distillation.losses": [{"loss": "relations", "of": [["key"]]}]}, r"of in a relations loss is \['key'\]"),
        ({"distillation.losses": [{"loss": "attentions", "layers": [[5, 0]]}]}, "the student has no layer 5"),
    ],
)
def test_conflicting_settings(settings, change, message):
    assert_rejected(settings, change, message)


def test_a_teacher_without_a_classifier(settings, tmp_path):
    assert_rejected(
        settings,
        {"teacher": str(checkpoint(tmp_path / "base"))},
        r"is not a classifier; fine-tune it first \(duonlp finetune\)",
    )
    assert_rejected(settings, {"teacher": str(tmp_path / "nowhere")}, "teacher: ", CheckpointError)


def test_a_teacher_with_other_labels(settings, tmp_path):
    teacher = checkpoint(tmp_path / "other", labels=("greeting", "music", "oos", "weather"))
    assert_rejected(
        settings, {"teacher": str(teacher)},
        "the teacher has 4 labels, and 1 of the data's 4 are not among them, such as 'greet'; did you mean 'greeting'",
    )  # fmt: skip
    more = checkpoint(tmp_path / "more", labels=(*LABELS, "alarm"))  # a label that the data lacks stays a class
    distill(Package(), replace_settings(settings, {"teacher": str(more)}), console=False)
    assert tuple(stored_config(settings)["id2label"].values()) == (*LABELS, "alarm")


def test_another_distillation_in_the_folder_is_rejected(settings, base):
    distill(Package(), settings, console=False)
    before = fingerprint_of(settings.folder)
    with pytest.raises(InputError, match=r"different settings \(distillation\)"):
        distill(Package(), replace_settings(settings, {"distillation.temperature": 4.0}), console=False)
    assert fingerprint_of(settings.folder) == before


def test_losses_round_trip_through_toml(settings):
    losses = (HiddenStates(0.5, "cosine", ((-1, -1),)), Attentions())
    changed = replace_settings(settings, {"distillation": Distillation(0.3, 4.0, losses).to_dict()})
    assert changed.distillation.losses == losses
    text = to_toml(changed)
    assert "[[distillation.losses]]" in text and build(DistillSettings, tomllib.loads(text)) == changed


def test_the_command(run, settings, tmp_path):
    given = ["-t", settings.teacher, "-d", settings.data, "--output", settings.output, "--batch-size", 8]
    status, out, err = run(
        "distill", *given, "--layer-list", "0,2", "--alpha", 0.2, "--temperature", 3, "--json", package=Package()
    )
    assert status == 0, err
    found = json.loads(out)["settings"]
    assert found["layer_list"] == [0, 2] and found["distillation"]["alpha"] == 0.2
    assert found["distillation"]["temperature"] == 3
    again = run("distill", "--config", settings.folder / "settings.toml", package=Package())
    assert again[0] == 0 and "teacher" in again[1] and "in_scope_accuracy" in again[1]
    status, _, err = run("distill", *given, "--layer-list", "0;2")
    assert status == 2 and "--layer-list is '0;2'" in err
    status, out, _ = run("distill", *given[:4], "--output", tmp_path / "other", "--layers", 1, "--dry-run")
    assert status == 0 and "teacher: 3 layers" in out and "student: 1 layers" in out


@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_a_real_run(framework, settings):
    pytest.importorskip(frameworks.NEEDS[framework])
    package = frameworks.package(framework)
    fit = FitConfig(epochs=2, learning_rate=2e-2, best_metric="accuracy", save_every=0)
    losses = Distillation(0.5, 2.0, (HiddenStates(0.1, "cosine", ((-1, -1),)),))
    changed = replace_settings(
        settings,
        {
            "max_length": 8, "batch_size": 16, "fit": fit.to_dict(),
            "distillation": losses.to_dict(), "cache_teacher_logits": True, "quantization_aware": "int8",
        },
    )  # fmt: skip
    report = distill(package, changed, console=False)
    assert report["history"][-1]["step"] == report["steps"] == 8
    assert 0 <= report["metrics"]["accuracy"] <= 1 and 0 <= report["teacher"]["metrics"]["accuracy"] <= 1
    assert list((settings.folder / "teacher_logits").glob("*.npy"))
    student = package.AutoModelForSequenceClassification.from_pretrained(report["model"])
    assert student.config.num_layers == 2 and student.config.quantization.simulated
    assert (settings.folder / "best-int8/model.safetensors").stat().st_size < report["bytes"]
