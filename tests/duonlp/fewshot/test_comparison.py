"""Comparisons of few-shot methods: the split, the slices, results, resuming after a kill, and bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest

from duonlp.checkpoints.safetensors_file import list_tensors
from duonlp.data import LabelledTexts
from duonlp.errors import InputError
from duonlp.fewshot import load_classifier, with_descriptions
from duonlp.fewshot.comparison import ComparisonSettings, compare, plan, report
from duonlp.fewshot.comparison.cells import score
from duonlp.fewshot.comparison.data import slices_per_label
from duonlp.metrics.multi_label import multi_label_scores
from duonlp.metrics.thresholds import choose_thresholds

pytest.importorskip("sklearn")

WORDS = {"bug": "crash", "docs": "typo", "new": "please"}


def rows(count: int = 60, single: bool = False) -> list[dict]:
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        names = list(rng.permutation(list(WORDS))[: 1 if single else int(rng.integers(0, 3))])
        text = " ".join([*(WORDS[name] for name in names), *rng.choice(["a", "the", "so", "it"], 3), str(number)])
        made.append({"id": f"issue-{number}", "title": text, "body": None, "labels": names[0] if single else names})
    return made


@pytest.fixture
def options(tmp_path):
    file = tmp_path / "issues.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return {
        "data": str(file), "output": str(tmp_path / "out"), "text_template": "{title} {body}", "methods": ("naive-bayes",),
        "sizes": (4, 8, "all"), "seeds": 2,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Draw no curves, which takes a second per comparison, except in the test of all that is written."""
    if "same_split" not in request.node.name:
        monkeypatch.setattr(report, "learning_curve_plot", lambda *_, **__: None)


def run(given, **changes):
    return compare(ComparisonSettings(**given | changes), console=False)


def test_every_cell_has_scores_a_classifier_and_the_same_split(options, tmp_path):
    report = run(options)
    assert [(r["slice"], r["seed"]) for r in report["cells"]] == [(s, i) for s in (4, 8, "all") for i in (0, 1)]
    assert not report["failed"] and not report["interrupted"]
    split = json.loads((tmp_path / "out/split.json").read_text())
    parts = [set(split["ids"][name]) for name in ("train", "validation", "test")]
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & parts[2]
    assert report["data"]["texts"]["train"] == len(parts[0]) == report["cells"][-1]["size"]
    labelled = [row for row in rows() if row["labels"]]
    assert sum(map(len, parts)) == len(labelled)  # rows without a label are unlabeled, not negatives
    unlabelled = report["data"]["texts"]["unlabelled"]
    assert unlabelled == len(rows()) - len(parts[1]) - len(parts[2])  # those of the training texts among them
    texts = {row["id"]: row["title"] for row in rows()}
    classifier = load_classifier(tmp_path / "out/cells/naive-bayes/all/seed-1/classifier")
    scores = classifier.scores([texts[name] for name in split["ids"]["test"]])
    true = np.array([[name in next(r for r in rows() if r["id"] == i)["labels"] for name in classifier.label_names]
                     for i in split["ids"]["test"]])  # fmt: skip
    assert report["cells"][-1]["macro_f1"] == multi_label_scores(scores, true)["macro_f1"]
    summary = report["summary"]["at_threshold"][0]
    first = [r["at_threshold"]["macro_f1"] for r in report["cells"] if r["size"] == summary["size"]]
    assert summary["macro_f1"]["mean"] == pytest.approx(np.mean(first)) and summary["macro_f1"]["seeds"] == 2
    table = (tmp_path / "out/results.csv").read_text().splitlines()
    assert len(table) == 7 and table[0].startswith("method,size,slice,seed,fit_seconds")
    for name in ("curves", "curves-at-threshold", "curves-at-macro-threshold", "curves-at-label-thresholds"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 1000
    kept = list_tensors(tmp_path / "out/cells/naive-bayes/all/seed-1/probabilities.safetensors")
    np.testing.assert_array_equal(kept["test"].read(), scores)


def test_finished_cells_are_kept_and_methods_sizes_and_seeds_can_be_added(options, tmp_path):
    run(options, sizes=(4,), seeds=1)
    file = tmp_path / "out/cells/naive-bayes/4/seed-0/results.json"
    before = file.stat().st_mtime_ns
    more = run(options, sizes=(8,), methods=("tf-idf", "naive-bayes"), seeds=2, keep_models="none")
    assert file.stat().st_mtime_ns == before
    assert sorted({(r["method"], r["slice"]) for r in more["cells"]}) == [
        ("naive-bayes", 4), ("naive-bayes", 8), ("tf-idf", 8)
    ]  # fmt: skip
    assert not (tmp_path / "out/cells/tf-idf/8/seed-0/classifier").exists()
    left = plan(ComparisonSettings(**options))
    assert left["to_run"] == ["naive-bayes, all, seed 0", "naive-bayes, 4, seed 1", "naive-bayes, all, seed 1"]
    with pytest.raises(
        InputError, match=r"has been run with smoothing 1\.0, now it is 0\.5; use the same settings, anoth"
    ):
        run(options, options={"naive-bayes": {"smoothing": 0.5}})
    with pytest.raises(InputError, match="has other train texts; all methods must be compared on the same split"):
        run(options, split_seed=1)
    with pytest.raises(InputError, match=r"has other labels .bug, docs, new, not "):
        run(options, labels=2)
    with open(options["data"], "a") as file:
        file.write(json.dumps({"id": "new", "title": "another crash", "body": None, "labels": []}) + "\n")
    with pytest.raises(InputError, match="has other unlabelled texts; all methods must be compared on the same split"):
        run(options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.safetensors").touch()
    with pytest.raises(InputError, match=r"holds something else .model.safetensors.; give another folder"):
        run(options, output=str(tmp_path / "other"))


KILLED = """
import os, signal, sys
from duonlp.fewshot.comparison import ComparisonSettings, cells, compare
written, write = [], cells.write_text
def killed(file, text):
    written.append(file)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, text)
cells.write_text = killed
compare(ComparisonSettings(**eval(sys.argv[1])), console=False)
"""


def test_a_killed_comparison_resumes_with_the_cell_that_was_running(options, tmp_path):
    options |= {"seeds": 1}
    whole = run(options)
    options |= {"output": str(tmp_path / "killed")}
    done = subprocess.run([sys.executable, "-c", KILLED, repr(options)], check=False)
    assert done.returncode == -9
    cells = tmp_path / "killed/cells"
    assert len(list(cells.rglob("results.json"))) == 2 and not (tmp_path / "killed/results.json").exists()
    resumed = run(options)
    for ours, expected in zip(resumed["cells"], whole["cells"], strict=True):
        assert {k: v for k, v in ours.items() if "seconds" not in k} == {
            k: v for k, v in expected.items() if "seconds" not in k
        }
    assert not list((tmp_path / "killed").rglob(".*saving*"))


def test_an_interrupted_comparison_says_so(options, monkeypatch):
    from duonlp.fewshot.baselines import NaiveBayes

    fit = NaiveBayes.fit

    def interrupted(self, package, data, **rest):
        if len(data.train) == 8:
            raise KeyboardInterrupt
        return fit(self, package, data, **rest)

    monkeypatch.setattr(NaiveBayes, "fit", interrupted)
    report = run(options)
    assert report["interrupted"] and len(report["cells"]) == 1
    monkeypatch.setattr(NaiveBayes, "fit", fit)
    assert len(run(options)["cells"]) == 6


def test_a_cell_that_cannot_run_is_reported_and_the_others_run(options):
    report = run(options, methods=("setfit", "naive-bayes"), framework="jax", seeds=1, sizes=(4,))
    assert [r["method"] for r in report["cells"]] == ["naive-bayes"]
    assert report["failed"][0]["method"] == "setfit" and "pass load_engine=" in report["failed"][0]["error"]


def test_one_label_per_text_and_slices_per_label(options, tmp_path):
    (tmp_path / "intents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(single=True)))
    report = run(options, data=str(tmp_path / "intents.jsonl"), per_label=(2, 5), seeds=1)
    assert [(r["slice"], r["size"]) for r in report["cells"]] == [(2, 6), (5, 15)]
    assert report["cells"][0]["at_threshold"] is None
    assert report["cells"][0]["micro_f1"] == report["cells"][0]["accuracy"]
    texts = LabelledTexts(
        [str(i) for i in range(9)], np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1, 1, 1, 2, 2]], ("a", "b", "c")
    )
    small, large = slices_per_label(texts, (1, 2), seed=3)
    assert small.counts() == {"a": 1, "b": 1, "c": 1} and large.counts() == {"a": 2, "b": 2, "c": 2}
    assert set(small.ids) < set(large.ids)
    with pytest.raises(InputError, match="3 texts of each label are wanted, but 'c' has 2"):
        slices_per_label(texts, (3,), seed=0)


def test_scores_at_the_thresholds_of_the_validation_texts():
    rng = np.random.default_rng(0)
    texts = LabelledTexts([str(i) for i in range(30)], (rng.random((30, 3)) < 0.3).astype(np.float32), ("a", "b", "c"))
    scores, held_out = rng.random((2, 30, 3))
    found = score(scores, texts, held_out, texts)
    threshold = choose_thresholds(held_out, texts.labels)
    assert found["thresholds"]["at_threshold"] == threshold
    assert found["at_threshold"]["micro_f1"] == multi_label_scores(scores, texts.labels, threshold)["micro_f1"]
    each = choose_thresholds(held_out, texts.labels, per_label=True)
    assert found["at_label_thresholds"]["macro_f1"] == multi_label_scores(scores, texts.labels, each)["macro_f1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("naive-byes",)}, "naive-byes.*did you mean 'naive-bayes'"),
        ({"methods": ()}, "methods is empty; name some of naive-bayes"),
        ({"sizes": (8, 8)}, "'8' is given more than once"),
        ({"sizes": (0,)}, "size 0 is not a positive number of texts or 'all'"),
        ({"sizes": (4, 100)}, "a slice of 100 texts is larger than the data, 23 texts"),
        ({"validation": 0.6, "test": 0.5}, "validation and test take 110% of the"),
        ({"test": 1.5}, "test is 1.5; it must be a share between 0 and 1, or a number of texts"),
        ({"validation": 1000}, "validation is 1000, but there are"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"options": {"naive-bayes": {"smooth": 1}}}, "naive-bayes.smooth.*did you mean 'naive-bayes.smoothing'"),
        ({"options": {"setfit": 3}, "methods": ("setfit",)}, "setfit is 3; it must be a table of settings"),
        ({"data": "no-such-file.jsonl"}, "no-such-file.jsonl"),
        ({"unlabelled": "no-such-texts.jsonl"}, "no-such-texts.jsonl"),
        ({"keep_models": "some"}, "keep_models"),
    ],
)  # fmt: skip
def test_bad_input(options, tmp_path, changes, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        run(options, **changes)
    assert not (tmp_path / "out/split.json").exists()


def test_descriptions_are_further_training_texts(options, tmp_path):
    described = {"bug": "a crash in the program", "docs": "a typo in the manual"}
    (tmp_path / "labels.toml").write_text("".join(f'{name} = "{text}"\n' for name, text in described.items()))
    plain = run(options, sizes=(4,), seeds=1)["cells"][0]
    with pytest.raises(InputError, match="other description texts"):
        run(options, sizes=(4,), seeds=1, descriptions=described)
    given = options | {"output": str(tmp_path / "described"), "sizes": (4,), "seeds": 1}
    record = run(given, descriptions=str(tmp_path / "labels.toml"))["cells"][0]
    assert (
        record["size"] == plain["size"] == 4 and record["macro_average_precision"] != plain["macro_average_precision"]
    )
    with pytest.raises(InputError, match="other description texts"):
        run(given, descriptions=described, description_copies=3)
    with pytest.raises(InputError, match="descriptions has 'bugs', which is no label; did you mean 'bug'"):
        run(options, output=str(tmp_path / "wrong"), descriptions={"bugs": "a crash"})

    texts = LabelledTexts(["a"], np.array([1], np.int32), ("bug", "docs"))
    more = with_descriptions(texts, described, copies=2)
    assert more.texts == ["a", *[described["bug"]] * 2, *[described["docs"]] * 2]
    assert more.labels.tolist() == [1, 0, 0, 1, 1] and len(set(more.ids)) == 5
