"""Gap sentences: how many are removed, that ROUGE selects them, and that the target holds them all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duonlp.data.objectives.gap_sentence_generation import STRATEGIES, gap_sentences, rouge1_f1, select_sentences
from duonlp.data.objectives.language_modelling import objective
from duonlp.errors import InputError
from tests.duonlp.data.objective_blocks import EOS, FIRST, MASK_1, PAD, STOP, blocks, tokenizer
from tests.duonlp.data.test_denoising import check_batch, real, split

TOKENIZER = tokenizer()

STORY = (
    "The river flooded the old town on Monday. Nobody was hurt. The mayor of the town said the river had flooded the old "
    "bridge. Shops stayed shut. Volunteers carried sand to the river. The flood in the old town will cost millions. "
    "Rain is expected. Schools open again on Friday. The bridge over the river stays closed. A fund was set up."
)


def rouge1(candidate: str, reference: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"]).score(reference, candidate)["rouge1"].fmeasure


def test_f1_is_that_of_rouge_score():
    pytest.importorskip("rouge_score")
    draws = np.random.default_rng(0)
    candidates, references = draws.poisson(0.7, (2, 50, 12))
    texts = [
        [" ".join(f"w{i}" for i, n in enumerate(row) for _ in range(n)) for row in rows]
        for rows in (candidates, references)
    ]
    expected = [rouge1(a, b) for a, b in zip(*texts)]
    np.testing.assert_allclose(rouge1_f1(candidates, references), expected, atol=1e-12)


def by_hand(parts: list[str], wanted: int, strategy: str) -> set[str]:
    """Select sentences by the paper's equations, with rouge-score."""
    rest = lambda out: " ".join(part for part in parts if part not in out)  # noqa: E731
    if strategy == "ind-orig":
        return set(sorted(parts, key=lambda part: -rouge1(part, rest([part])))[:wanted])
    chosen: list[str] = []
    for _ in range(wanted):
        left = [part for part in parts if part not in chosen]
        chosen.append(max(left, key=lambda part: rouge1(" ".join([*chosen, part]), rest([*chosen, part]))))
    return set(chosen)


@pytest.mark.parametrize("strategy", ["ind-orig", "seq-orig"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.45])
def test_selected_sentences_match_rouge_score(strategy, ratio):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sentencex")
    parts = [part if part.endswith(".") else part + "." for part in STORY.split(". ")]
    source, target = gap_sentences(STORY, ratio, strategy)
    chosen = by_hand(parts, int(10 * ratio), strategy)
    assert target == " ".join(part for part in parts if part in chosen)
    assert source == " ".join("<mask_1>" if part in chosen else part for part in parts)


def test_strategies_ratios_and_seeds():
    pytest.importorskip("sentencex")
    assert gap_sentences(STORY, 0.2, "lead", mask_token="[X]")[0].startswith("[X] [X] The mayor of the town")
    random = {gap_sentences(STORY, 0.3, "random", seed) for seed in range(20)}
    assert len(random) > 10 and all(source.count("<mask_1>") == 3 for source, _ in random)
    assert gap_sentences(STORY, 0.3, "random", 4) == gap_sentences(STORY, 0.3, "random", 4)
    counts = {gap_sentences(STORY, (0.15, 0.45), seed=seed)[0].count("<mask_1>") for seed in range(40)}
    assert counts == {1, 2, 3, 4}
    assert len({gap_sentences(STORY, 0.3, seed=seed, noise=0.2) for seed in range(20)}) > 1
    assert gap_sentences("One sentence.") == ("<mask_1>", "One sentence.")
    assert gap_sentences("?! ...")[1], "no words, and no division by zero"
    for text in ("", "  \n"):
        with pytest.raises(InputError, match="no sentence"):
            gap_sentences(text)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 100), st.floats(0.05, 0.6), st.sampled_from(STRATEGIES), st.integers(0, 2**64 - 1), st.floats(0, 0.4)
)
def test_source_and_target_rebuild_the_text(length, ratio, strategy, seed, stops):
    ids = blocks(3, length, seed % 1000, specials=0.04, stops=stops)
    made = objective("gap-sentences", TOKENIZER, ratio=ratio, strategy=strategy, target_share=1.0)
    batch = made(ids, None, np.arange(3), seed)
    check_batch(batch, PAD)
    for text, source, target in zip(ids.tolist(), *real(batch)):
        if len(target) == made.lengths(length)[1]:
            continue  # may be truncated
        expected, rest = [], target[:-1]
        for document in split(text, EOS):
            parts = split([t for t in document if t != EOS], STOP)
            for part in parts:
                masked = len(expected) < len(source) and source[len(expected)] == MASK_1
                expected += [MASK_1] if masked else part
                if masked:
                    assert rest[: len(part)] == part
                    rest = rest[len(part) :]
            expected += [EOS] * document.count(EOS)
        assert (expected, rest) == (source[:-1], [])


def document(*lengths, first=FIRST + 2):
    """Return sentences with these numbers of words, all different, each followed by a full stop."""
    ids = []
    for length in lengths:
        ids += [*range(first, first + length), STOP]
        first += length
    return ids


def gaps(ids, **options):
    made = objective("gap-sentences", TOKENIZER, target_share=1.0, **options)
    return real(made(np.asarray([ids], dtype=np.int32), None, np.arange(1), 0))


def test_each_document_of_a_block_loses_its_share():
    block = [*document(2, 2, 2, 2), EOS, *document(3, 3, first=FIRST + 20), EOS, *document(4)]
    (source,), (target,) = gaps(block, ratio=0.5, strategy="lead")
    assert source.count(MASK_1) == 3 and target.count(STOP) == 3 and source.count(EOS) == 3
    assert source[-6:-1] == block[-5:], "a document of one sentence stays as it is"
    # If every document has one sentence, the block counts as one document.
    (source,), _ = gaps([*document(4), EOS, *document(3), EOS], strategy="lead")
    assert source == [MASK_1, EOS, *document(3), EOS, EOS]
    assert gaps([EOS, EOS, EOS])[1] == [[EOS]]


def test_the_most_central_sentence_is_removed():
    telling = [FIRST + 2, FIRST + 4, FIRST + 6, STOP]
    block = [*document(2, 2, 2, first=FIRST + 2), *telling, *document(3, first=FIRST + 30)]
    for strategy in ("ind-orig", "seq-orig"):
        assert gaps(block, ratio=0.2, strategy=strategy)[1] == [[*telling, EOS]]
    assert select_sentences(np.zeros(0, int), np.zeros(0, int), 3, (0.5, 0.5), "ind-orig", 0.0, None).tolist() == [0]


def test_long_targets_are_truncated_before_eos():
    made = objective("gap-sentences", TOKENIZER, target_share=0.1, strategy="lead")
    _, (target,) = real(made(np.asarray([document(30, 9)], dtype=np.int32), None, np.arange(1), 0))
    assert target == [*range(FIRST + 2, FIRST + 5), EOS] and made.lengths(41) == (42, 4)


def test_errors_name_what_is_wrong():
    for options, message in (
        ({"ratio": 0}, "ratio is 0"), ({"ratio": (0.5, 0.2)}, "ratio is .0.5, 0.2."), ({"ratio": [0.5]}, "ratio is .0.5."),
        ({"strategy": "best"}, "ind-orig, seq"),
        ({"noise": 1.5}, "noise is 1.5"), ({"target_share": 0}, "target_share is 0"), ({"sentence_ends": ["!"]}, "'!'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            objective("gap-sentences", TOKENIZER, **options)
    bare = tokenizer(without=("mask_token",), special=("<pad>", "</s>", "<unk>", "<s>"))
    with pytest.raises(InputError, match="<mask_1> or a mask token"):
        objective("gap-sentences", bare)
