"""The decoding loop in NumPy, on a lookup-table model for which all texts can be enumerated."""

import itertools

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.generation import GenerationConfig, GenerationOutput
from duonlp.generation import loop as decoding
from duonlp.generation.driver import Call, collect
from duonlp.generation.plan import make_plan
from duonlp.generation.prompt import prepare_prompt
from duonlp.generation.strategies import search
from tests.cases import cases


class Table:
    """A language model that looks up the next logits by the last token and its position."""

    def __init__(self, seed: int, vocabulary: int, steps: int, scale: float = 2.0):
        rng = np.random.default_rng(seed)
        self.logits = (scale * rng.standard_normal((steps + 2, vocabulary, vocabulary))).astype(np.float32)

    def start_cache(self, rows, slots, source=None):
        return {"nothing": np.zeros((rows, 1), np.float32)}

    @property
    def config(self):
        """Return a configuration without attention windows."""
        return next(c for c in cases() if c.name == "gpt2-causal-lm").config

    def decode(self, input_ids, position_ids, visible, cache, index):
        positions = np.minimum(position_ids, len(self.logits) - 1)
        return np.stack([input_ids, positions], -1).astype(np.float32), cache

    def next_logits(self, hidden):
        tokens, positions = hidden.astype(np.int64)[..., 0], hidden.astype(np.int64)[..., 1]
        return self.logits[positions, tokens]

    def log_probability(self, sequence) -> float:
        """Return the log probability of a sequence after its first token."""
        total = 0.0
        for n, (last, token) in enumerate(itertools.pairwise(sequence)):
            row = self.logits[n, last].astype(np.float64)
            total += row[token] - np.log(np.exp(row).sum())
        return total


def run_in_numpy(model, ids, vocabulary: int, **options) -> GenerationOutput:
    """Run generate for a table model in NumPy."""
    cfg = next(c for c in cases() if c.name == "gpt2-causal-lm").config
    config = GenerationConfig(pad_token_id=0, return_dict_in_generate=True).with_options(**options)
    prompt = prepare_prompt(cfg, config, np.asarray(ids), np.ones(np.shape(ids), np.int32))
    plan, values = make_plan(config, prompt, vocabulary, 32)
    searching = search.Search(numpy_ops, model, plan, values)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        state = decoding.advance(searching, decoding.start(searching), values["new_tokens"])
    call = Call(None, None, config, prompt, plan, values)
    return collect(call, decoding.result(searching, state))


def every_text(vocabulary: int, steps: int, eos: int | None):
    """Yield all continuations of ``steps`` tokens, or fewer if they end in ``eos``."""
    for tokens in itertools.product(range(vocabulary), repeat=steps):
        if eos in tokens:
            stop = tokens.index(eos) + 1
            if any(tokens[stop:]):  # the same text with different tokens after its end
                continue
            tokens = tokens[:stop]
        yield tokens


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("eos", [None, 4])
def test_enough_beams_find_the_best_text(seed, penalty, eos):
    table, vocabulary, steps = Table(seed, 5, 4), 5, 4
    scores = {
        text: table.log_probability((2, *text)) / len(text) ** penalty for text in every_text(vocabulary, steps, eos)
    }
    best = max(scores, key=scores.get)
    out = run_in_numpy(
        table, [[2]], vocabulary, num_beams=vocabulary**3, max_new_tokens=steps, length_penalty=penalty,
        eos_token_id=eos, early_stopping="never" if penalty else False,
    )  # fmt: skip
    assert tuple(out["sequences"][0, 1 : 1 + len(best)]) == best
    assert not out["sequences"][0, 1 + len(best) :].any()
    assert out["sequences_scores"][0] == pytest.approx(scores[best], abs=1e-4)


@pytest.mark.parametrize(("beams", "groups"), [(4, 2), (6, 3), (3, 3)])
def test_diverse_beam_search_matches_the_paper(beams, groups):
    """Compare with one beam search per group, in turn, penalizing tokens that earlier groups chose."""
    vocabulary, steps, penalty, size = 7, 5, 0.8, beams // groups
    for seed in range(3):
        table = Table(seed, vocabulary, steps)
        texts = [[((3,), 0.0)] for _ in range(groups)]
        for n in range(steps):
            taken = np.zeros(vocabulary)
            for g in range(groups):
                grown = []
                for text, score in texts[g]:
                    row = table.logits[n, text[-1]].astype(np.float64)
                    row = row - np.log(np.exp(row).sum()) - penalty * taken
                    grown += [((*text, token), score + row[token]) for token in range(vocabulary)]
                texts[g] = sorted(grown, key=lambda pair: -pair[1])[:size]
                for text, _ in texts[g]:
                    taken[text[-1]] += 1
        expected = sorted((pair for group in texts for pair in group), key=lambda pair: -pair[1])
        out = run_in_numpy(
            table, [[3]], vocabulary, num_beams=beams, num_beam_groups=groups, diversity_penalty=penalty,
            num_return_sequences=beams, max_new_tokens=steps, length_penalty=0.0,
        )  # fmt: skip
        assert [tuple(row) for row in out["sequences"]] == [text for text, _ in expected]
        np.testing.assert_allclose(out["sequences_scores"], [score for _, score in expected], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 6},
        {"top_k": 0, "top_p": 0.7},
        {"top_k": 0, "min_p": 0.1},
        {"top_k": 0, "typical_p": 0.6},
    ],
    ids=lambda options: list(options)[-1] if options["top_k"] == 0 else "top_k",
)
def test_draws_follow_the_distribution(options):
    """Apply Pearson's chi-square test in NumPy; both engines draw the same tokens."""
    vocabulary, draws = 16, 2000
    table = Table(0, vocabulary, 2, scale=1.5)
    out = run_in_numpy(
        table, [[2]], vocabulary, do_sample=True, seed=11, num_return_sequences=draws, max_new_tokens=1,
        output_scores=True, **options,
    )  # fmt: skip
    scores = out["scores"][0, 0].astype(np.float64)
    probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    counts = np.bincount(out["sequences"][:, 1], minlength=vocabulary)
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    assert kept.sum() < vocabulary or options == {"top_k": 0}
    statistic = ((counts - draws * probabilities)[kept] ** 2 / (draws * probabilities[kept])).sum()
    freedom = kept.sum() - 1
    # Wilson and Hilferty's approximation: about four standard deviations
    cube_root = (statistic / freedom) ** (1 / 3)
    assert abs(cube_root - (1 - 2 / (9 * freedom))) < 4 * np.sqrt(2 / (9 * freedom))
