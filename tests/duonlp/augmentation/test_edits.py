"""Test random edits and synonyms."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from duonlp.augmentation import Protection, RandomEdits, Synonyms, count_unchanged
from duonlp.augmentation import synonyms as module
from duonlp.errors import InputError, MissingExtraError
from tests.augmentation import TEXTS

TABLE = {"network": ["connection", "web"], "slow": ["sluggish"], "error": ["bug", "fault"]}


def words(text: str) -> Counter:
    return Counter(re.findall(r"\S+", text))


def test_copies_depend_on_text_seed_and_number_alone():
    edits = RandomEdits(synonyms=Synonyms(TABLE))
    copies = edits.augment(TEXTS, 6, seed=3)
    assert edits.augment(TEXTS[::-1], 6, seed=3)[::-1] == copies
    assert [of_text[:2] for of_text in copies] == edits.augment(TEXTS, 2, seed=3)
    assert edits.augment(TEXTS, 6, seed=4) != copies
    assert count_unchanged(TEXTS, copies).unchanged == 0


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_number_of_edits(alpha):
    text = "one two three four five six seven eight nine ten"
    n = int(alpha * 10)
    for copy in RandomEdits(alpha, ["insert"]).augment([text], 20)[0]:
        assert sum(words(copy).values()) == 10 + n and set(words(copy)) == set(words(text))
    for copy in RandomEdits(alpha, ["swap"]).augment([text], 20)[0]:
        assert words(copy) == words(text) and sum(a != b for a, b in zip(copy.split(), text.split())) <= 2 * n
    deleted = [10 - len(copy.split()) for copy in RandomEdits(alpha, ["delete"]).augment([text], 200)[0]]
    assert min(deleted) >= 1 and max(deleted) < 10 and abs(sum(deleted) / 2000 - alpha) < 0.05


def test_deletion_leaves_single_spaces_and_line_breaks():
    copies = RandomEdits(0.3, ["delete"]).augment(["first second\nthird, (fourth) fifth"], 30)[0]
    assert all("\n" in copy and "  " not in copy for copy in copies)


def test_consecutive_copies_have_different_kinds_of_edits():
    text = "one two three four five six seven eight nine ten"
    lengths = [len(copy.split()) - 10 for copy in RandomEdits().augment([text], 3)[0]]
    assert sorted((n > 0) - (n < 0) for n in lengths) == [-1, 0, 1]


def test_a_text_without_words_is_its_own_copy():
    texts = ["", "   ", "`code`", "42", "日本語"]
    copies = RandomEdits().augment(texts, 2)
    assert copies == [[text, text] for text in texts]
    assert count_unchanged(texts, copies).unchanged == 10


def test_a_text_of_one_word_falls_back_to_insertion():
    assert RandomEdits().augment(["hello"], 3) == [["hello hello"] * 3]
    assert RandomEdits(operations=["swap", "delete"]).augment(["hello"], 2) == [["hello", "hello"]]


def test_synonyms_replace_a_word_everywhere_in_its_case():
    copy = Synonyms({"slow": ["sluggish"]}).augment(["Slow, slow and SLOW; `slow`"])[0][0]
    assert copy == "Sluggish, sluggish and SLUGGISH; `slow`"


def test_synonyms_leave_out_protected_and_stop_words(tmp_path):
    file = tmp_path / "synonyms.json"
    file.write_text(json.dumps(TABLE | {"the": ["that"]}))
    synonyms = Synonyms(file, share=1.0, protect=Protection(words=["bug", "slow"]))
    assert synonyms.of("Error") == ("fault",)
    assert synonyms.augment(["the slow error"]) == [["the slow fault"]]
    assert synonyms.settings() != Synonyms(TABLE, share=1.0).settings()


def test_insertion_prefers_synonyms():
    edits = RandomEdits(operations=["insert"], synonyms=Synonyms({"error": ["fault"]}))
    assert all("fault" in copy for copy in edits.augment(["there was an error in the end"], 9)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomEdits(alpha=0), "alpha is 0"),
        (lambda: RandomEdits(alpha=True), "alpha is True"),
        (lambda: RandomEdits(operations=["shuffle"]), "operations is"),
        (lambda: RandomEdits(operations=["replace"]), "needs synonyms"),
        (lambda: RandomEdits(synonyms={"a": ["b"]}), "pass duonlp.augmentation.Synonyms"),
        (lambda: Synonyms({"a": "b"}), "the synonyms of 'a'"),
        (lambda: Synonyms({}), "give a dict"),
        (lambda: Synonyms("missing.json"), "there is no file 'missing.json'"),
        (lambda: RandomEdits().augment("text"), "give a list of texts"),
        (lambda: RandomEdits().augment([None]), "text 0 is None"),
        (lambda: RandomEdits().augment(["\ud800"]), "valid Unicode"),
        (lambda: RandomEdits().augment(["a"], 0), "per_text is 0"),
        (lambda: RandomEdits().augment(["a"], seed=-1), "seed is -1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_wordnet_is_never_downloaded():
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except LookupError:
        with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
            Synonyms()
    except ImportError:
        with pytest.raises(MissingExtraError, match="few-labels"):
            Synonyms()
    else:
        assert "mistake" in Synonyms().of("error")


def test_words_of_wordnet(monkeypatch):
    class Reader:
        def synsets(self, word):
            names = {"hang": [["hang", "hang_up"], ["Hang", "bent", "90_degrees"]], "bug": [["bug"]]}
            return [SimpleNamespace(lemma_names=lambda of=of: of) for of in names.get(word, [])]

        def get_version(self):
            return "3.0"

    monkeypatch.setattr(module, "wordnet", Reader)
    module._of_wordnet.cache_clear()
    synonyms = Synonyms(protect=Protection(words=["bent"]))
    assert synonyms.of("Hang") == ("hang up",) and synonyms.of("bug") == ()
    assert synonyms.augment(["Hang a bug"]) == [["Hang up a bug"]]
    assert synonyms.settings()["source"] == "WordNet 3.0"
    module._of_wordnet.cache_clear()
