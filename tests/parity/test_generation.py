"""Test generation in both engines against definitions: search, sampling, batches, seeds and the number of compilations."""

import itertools
import warnings
from importlib import import_module

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.generation import GenerationOutput
from tests.generation import EOS, LLAMA, language_model, prompts

FREE = {"eos_token_id": None, "pad_token_id": 0}
SEEDS = (0, 1, 2)


@pytest.fixture(params=["jax", "tf"], scope="module")
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def gpt2(framework):
    return language_model(framework, n_layer=1)


@pytest.fixture(params=[{"n_layer": 1}, {"hf": LLAMA, "num_hidden_layers": 1}], ids=["gpt2", "llama"], scope="module")
def both(request):
    return [language_model(framework, **request.param) for framework in ("jax", "tf")]


def test_exhaustive_beam_search_finds_the_best_texts(framework):
    model = language_model(framework, n_layer=1, vocab_size=5, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    texts = np.array([[2, *text] for text in itertools.product(range(5), repeat=3)], np.int32)
    logits = np.asarray(model(input_ids=texts)["logits"], np.float64)[:, :-1]
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    totals = np.take_along_axis(log_probabilities, texts[:, 1:, None].astype(np.int64), -1).sum((1, 2))
    out = model.generate(
        [[2]], num_beams=25, num_return_sequences=5, max_new_tokens=3, length_penalty=0.0, return_dict_in_generate=True
    )
    best = np.argsort(-totals)[:5]
    np.testing.assert_array_equal(out["sequences"], texts[best])
    np.testing.assert_allclose(out["sequences_scores"], totals[best], atol=1e-4)


def test_draws_follow_the_processed_distribution(gpt2):
    """Pearson's chi-squared test on 4,000 draws of one token; tokens that top-p removes are never drawn."""
    options = {"top_k": 0, "top_p": 0.9, "temperature": 1.5, "num_return_sequences": 4000, "max_new_tokens": 1}
    out = gpt2.generate(prompts(2, (5,))[0], do_sample=True, seed=7, output_scores=True, **options, **FREE)
    scores = out.scores[0, 0].astype(np.float64)
    expected = np.exp(scores - scores.max())
    expected *= len(out.sequences) / expected.sum()
    counts = np.bincount(out.sequences[:, -1], minlength=len(scores))
    allowed = expected > 0
    assert 3 < allowed.sum() < len(scores) and counts[~allowed].sum() == 0
    chi_square, freedom = ((counts - expected)[allowed] ** 2 / expected[allowed]).sum(), allowed.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.representative
def test_diverse_beam_search_is_the_same_in_both_engines(both):
    options = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 4}
    ids, mask = prompts(0, (5, 3))
    outs = [
        m.generate(ids, mask, **options, **FREE, max_new_tokens=6, return_dict_in_generate=True).copy() for m in both
    ]
    np.testing.assert_array_equal(outs[0]["sequences"], outs[1]["sequences"])
    np.testing.assert_allclose(outs[0]["sequences_scores"], outs[1]["sequences_scores"], atol=1e-4)


def test_contrastive_search_matches_the_paper(framework, gpt2):
    k, alpha, steps, length = 4, 0.6, 6, 12
    run = import_module(f"{framework}nlp").compiled(gpt2)  # always padded to one shape; later tokens have no effect
    ids = prompts(1, (5,))[0]
    text = ids[0].tolist()

    def forward(texts):
        padded = np.array([ids + [1] * (length - len(ids)) for ids in texts], np.int32)
        out = run(input_ids=padded, output_hidden_states=True)
        return [np.asarray(x, np.float64) for x in (out["logits"], out["hidden_states"][-1])]

    for _ in range(steps):
        logits = forward([text] * k)[0][0, len(text) - 1]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        candidates = np.argsort(-probabilities)[:k].tolist()
        hidden = forward([[*text, token] for token in candidates])[1][:, : len(text) + 1]
        hidden /= np.linalg.norm(hidden, axis=-1, keepdims=True)
        similar = [(states[:-1] @ states[-1]).max() for states in hidden]
        scores = (1 - alpha) * probabilities[candidates] - alpha * np.array(similar)
        text.append(candidates[scores.argmax()])
    generated = gpt2.generate(ids, penalty_alpha=alpha, top_k=k, max_new_tokens=steps, **FREE)
    np.testing.assert_array_equal(generated, [text])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2, "top_k": 0},
        {"penalty_alpha": 0.6, "top_k": 3},
        {"guidance_scale": 2.0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    ],
    ids=lambda options: ",".join(options) or "greedy",
)
def test_batched_prompts_generate_as_alone(gpt2, options):
    lengths = (7, 5, 6)  # in one bucket of lengths
    ids, mask = prompts(2, lengths)
    together = gpt2.generate(ids, mask, max_new_tokens=7, **options)[:, 7:]
    returned = options.get("num_return_sequences", 1)
    for i, length in enumerate(lengths):
        alone = gpt2.generate(ids[i : i + 1, -length:], max_new_tokens=7, **options)[:, length:]
        of_batch = together[i * returned : (i + 1) * returned]
        np.testing.assert_array_equal(of_batch[:, : alone.shape[1]], alone)
        assert not of_batch[:, alone.shape[1] :].any()


@pytest.mark.representative
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"temperature": 0.7, "top_k": 10, "top_p": 0.9, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2, "top_k": 0},
    ],
    ids=["plain", "cut", "beams"],
)
def test_same_seed_draws_the_same_in_both_engines(both, options):
    ids, mask = prompts(3, (6, 4))
    draws = []
    for seed in SEEDS:
        outs = [
            model.generate(ids, mask, do_sample=True, seed=seed, max_new_tokens=8, **FREE, **options) for model in both
        ]
        np.testing.assert_array_equal(*outs)
        draws.append(outs[0].tobytes())
    assert len(set(draws)) == len(SEEDS)


def test_sampling_from_top_k_first_draws_the_same_as_from_all_scores(framework):
    """Recording scores disables the shortcut of reducing a large vocabulary to the top k first."""
    model = language_model(framework, n_layer=1, vocab_size=1500)
    options = {"do_sample": True, "top_k": 20, "top_p": 0.95, "max_new_tokens": 6, **FREE}
    ids, mask = prompts(4, (6, 6, 4))
    for seed in SEEDS:
        reduced = model.generate(ids, mask, seed=seed, **options)
        complete = model.generate(ids, mask, seed=seed, output_scores=True, **options)["sequences"]
        np.testing.assert_array_equal(reduced, complete)


def test_equal_prompts_in_a_batch_sample_different_texts(gpt2):
    ids = np.repeat(prompts(5, (5,))[0], 3, 0)
    out = gpt2.generate(ids, do_sample=True, seed=1, top_k=0, max_new_tokens=8, **FREE)
    assert len({row.tobytes() for row in out}) == 3
    returned = gpt2.generate(ids[:1], do_sample=True, seed=1, top_k=0, max_new_tokens=8, num_return_sequences=3, **FREE)
    np.testing.assert_array_equal(out, returned)


def test_changing_numbers_does_not_recompile(framework, gpt2):
    traced = []

    def watch(ids, logits, step):
        traced.append(1)
        return logits

    def generate(lengths, **options):
        ids, mask = prompts(len(lengths), lengths)
        common = {"do_sample": True, "min_new_tokens": 1, "logits_processor": [watch]}
        gpt2.generate(ids, mask, **common | {"max_new_tokens": 6, "temperature": 0.8, "seed": 1} | options)
        return len(traced)

    first = generate((7, 5, 6), repetition_penalty=1.2)
    assert first
    for lengths, options in [
        ((5, 5, 4), {}), ((8, 8, 8, 8), {}), ((7, 6, 5), {"seed": 2}), ((7, 6, 5), {"temperature": 1.7}),
        ((7, 6, 5), {"repetition_penalty": 0.9, "min_new_tokens": 3}), ((7, 6, 5), {"max_new_tokens": 8}),
        ((7, 6, 5), {"eos_token_id": [EOS, 5, 8]}),
    ]:  # fmt: skip
        assert generate(lengths, **{"repetition_penalty": 1.3} | options) == first, options
    assert generate((7, 6, 5), repetition_penalty=1.0) > first


def test_changing_beam_options_does_not_recompile(framework, gpt2):
    traced = []

    def watch(ids, logits, step):
        traced.append(1)
        return logits

    ids, mask = prompts(1, (6, 5))
    counts = []
    for early, penalty, returned in itertools.product((True, False, "never"), (0.0, 1.5), (1, 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gpt2.generate(
                ids, mask, num_beams=2, early_stopping=early, length_penalty=penalty, max_new_tokens=5,
                num_return_sequences=returned, logits_processor=[watch],
            )  # fmt: skip
        counts.append(len(traced))
    assert counts[0] and len(set(counts)) == 1


def test_jax_models_of_one_configuration_share_programs(tmp_path):
    """Programs do not depend on folders or generation options, and take the weights as arguments."""
    from jaxnlp.generation.search import _start

    before, folders = _start._cache_size(), [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        model = language_model("jax", seed=seed, n_layer=1)
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
        assert loaded.generate([[5, 6, 7]], max_new_tokens=4 - seed, no_repeat_ngram_size=3).shape[1] <= 7
    assert _start._cache_size() == before + 1


def test_custom_logits_processors(framework, gpt2):
    """A processor over ``ops`` that allows only even ids works in both engines."""
    ops = import_module(f"{framework}nlp.ops")

    def even(ids, logits, step):
        return ops.where(ops.expand_dims(ops.arange(logits.shape[-1]) % 2 == 0, 0), logits, float("-inf"))

    ids = prompts(6, (5,))[0]
    assert not (gpt2.generate(ids, max_new_tokens=8, logits_processor=[even], **FREE)[:, 5:] % 2).any()


def test_streams_yield_the_ids_of_generate(framework, gpt2):
    stream = import_module(f"{framework}nlp.generation").stream
    ids, mask = prompts(7, (6, 4))
    for options in ({}, {"do_sample": True, "seed": 3, "num_return_sequences": 2}):
        whole = gpt2.generate(ids, mask, max_new_tokens=7, **options)
        pieces = list(stream(gpt2, ids, mask, max_new_tokens=7, **options))
        assert len(pieces) > 1 and all(piece.dtype == np.int32 for piece in pieces)
        np.testing.assert_array_equal(np.concatenate(pieces, 1), whole[:, 6:])


def test_streamer_receives_the_prompt_and_every_token(gpt2):
    class Streamer:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, ids):
            self.pieces.append(np.array(ids))

        def end(self):
            self.ended = True

    streamer, ids = Streamer(), prompts(8, (6,))[0]
    out = gpt2.generate(ids, max_new_tokens=6, streamer=streamer)
    assert streamer.ended
    np.testing.assert_array_equal(streamer.pieces[0], ids)
    np.testing.assert_array_equal(np.concatenate(streamer.pieces[1:]), out[0, 6:])
    np.testing.assert_array_equal(out, gpt2.generate(ids, max_new_tokens=6))


def test_generation_output_scores_logits_and_logprobs(gpt2):
    ids, mask = prompts(9, (6, 4, 5))
    free = gpt2.generate(ids, mask, max_new_tokens=8, **FREE)
    ends = {"eos_token_id": [int(free[0, 8])], "pad_token_id": 59}
    out = gpt2.generate(ids, mask, max_new_tokens=8, output_scores=True, output_logits=True, **ends)
    assert isinstance(out, GenerationOutput) and out.sequences is out["sequences"]
    np.testing.assert_array_equal(out.sequences[:, :6], ids)
    new = out.sequences[:, 6:]
    stop = list(new[0]).index(ends["eos_token_id"][0]) + 1
    assert (new[0, stop:] == 59).all() and not out.logprobs[0, stop:].any()
    scores = out.scores.astype(np.float64)
    log_probabilities = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    for row in range(3):
        for n in range(new.shape[1]):
            if out.logprobs[row, n]:
                assert out.logprobs[row, n] == pytest.approx(log_probabilities[n, row, new[row, n]], abs=1e-5)
    np.testing.assert_allclose(out.scores, out.logits, atol=1e-6)
    with pytest.raises(AttributeError, match="the output has no 'attentions'"):
        _ = out.attentions


def test_beam_scores_are_the_sums_of_their_tokens(gpt2):
    ids, mask = prompts(10, (6, 4))
    out = gpt2.generate(
        ids, mask, num_beams=3, num_return_sequences=3, max_new_tokens=6, length_penalty=0.7, output_scores=True
    )
    lengths = (out.beam_indices >= 0).sum(1)
    np.testing.assert_allclose(out.logprobs.sum(1) / lengths**0.7, out.sequences_scores, atol=1e-5)
    assert (np.diff(out.sequences_scores.reshape(2, 3)) <= 0).all()
    for row, n in itertools.product(range(6), range(out.beam_indices.shape[1])):
        if n < lengths[row]:
            token = out.sequences[row, 6 + n]
            assert out.scores[n, out.beam_indices[row, n], token] == pytest.approx(out.logprobs[row, n], abs=1e-6)


def test_speculative_decoding_draws_the_same_as_sampling(framework, gpt2):
    draft = language_model(framework, seed=8, n_layer=1, n_head=2)
    ids = prompts(11, (7,))[0]
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 8}
    for seed in SEEDS:
        plain = gpt2.generate(ids, seed=seed, **options)
        np.testing.assert_array_equal(gpt2.generate(ids, seed=seed, prompt_lookup_num_tokens=3, **options), plain)
        np.testing.assert_array_equal(gpt2.generate(ids, seed=seed, assistant_model=draft, **options), plain)
    out = gpt2.generate(
        ids, assistant_model=gpt2, max_new_tokens=8, num_assistant_tokens=5, return_dict_in_generate=True, **FREE
    )
    # The prompt gives one token; the second pass accepts all five proposals and adds one; the third gives the rest.
    assert out["passes"] == [3]


def test_stop_strings_end_generation(gpt2):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:61]
    core = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = prompts(12, (6,))[0]
    free = gpt2.generate(ids, max_new_tokens=8, **FREE)[0, 6:]
    stop = tokenizer.decode(free[2:4])
    out = gpt2.generate(ids, max_new_tokens=8, stop_strings=stop, tokenizer=tokenizer, **FREE)[0, 6:]
    text = "".join(tokenizer.convert_ids_to_tokens(out.tolist()))
    assert len(out) <= 4 and stop in tokenizer.decode(out), text
    np.testing.assert_array_equal(out, free[: len(out)])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.full((1, 41), 5), {}, "40 positions"),
        (np.zeros((1, 0), np.int32), {}, "prompt is empty"),
        (np.array([5, 6]), {}, r"shape \(2,\)"),
        ([[5, 6, 7]], {"max_length": 3}, "max_length is 3"),
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[5]], {"max_new_tokens": 50}, "exceed the 40 positions"),
        ([[5]], {"temperature": -1, "do_sample": True}, "temperature=-1 must be above 0"),
        ([[5]], {"temperature": 0, "do_sample": True}, "do_sample=False"),
        ([[5]], {"top_p": 0, "do_sample": True}, "top_p=0 must be above 0"),
        ([[5]], {"top_p": 1.5, "do_sample": True}, "top_p=1.5"),
        ([[5]], {"num_beams": 2, "num_return_sequences": 3}, "more than num_beams=2"),
        ([[5]], {"num_return_sequences": 3}, "do_sample=True"),
        ([[61]], {}, "contains 61, but this model's token ids"),
        ([[-1]], {}, "contains -1"),
        ([[5]], {"temprature": 1.0}, "unknown generation option 'temprature'"),
        ([[5]], {"num_beams": 4, "num_beam_groups": 3}, "not divisible by num_beam_groups=3"),
        ([[5]], {"num_beams": 4, "diversity_penalty": 1.0}, "num_beam_groups=2 or more"),
        ([[5]], {"forced_eos_token_id": 3, "suppress_tokens": [3]}, "also in suppress_tokens"),
        ([[5]], {"stop_strings": "x"}, "tokenizer"),
        ([[5]], {"constraints": [1]}, "constraints"),
        ([[5]], {"bad_words_ids": [[61]]}, "bad_words_ids contains 61"),
        ([[5]], {"bad_words_ids": [5]}, "non-empty lists"),
        ([[5]], {"penalty_alpha": 0.5, "do_sample": True}, "contrastive search"),
        ([[5]], {"penalty_alpha": 0.5, "top_k": 1}, "top_k=2 or more"),
        ([[5]], {"logits_processor": [3]}, "logits_processor contains 3"),
        ([[5]], {"negative_prompt_ids": [[5]]}, "guidance_scale"),
        ([[5]], {"early_stopping": "sometimes", "num_beams": 2}, "early_stopping='sometimes'"),
        ([[5]], {"prompt_lookup_num_tokens": 3, "num_beams": 2}, "speculative decoding"),
    ],
    ids=str,
)
def test_invalid_inputs_and_options_raise(gpt2, ids, options, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=message):
            gpt2.generate(ids, **options)


def test_streaming_beams_raises(framework, gpt2):
    with pytest.raises(InputError, match="cannot be streamed, since beams change until the end"):
        next(import_module(f"{framework}nlp.generation").stream(gpt2, [[5]], num_beams=2))


def test_top_k_may_exceed_the_vocabulary(framework):
    model = language_model(framework, n_layer=1, vocab_size=5, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    assert model.generate([[1, 2]], do_sample=True, seed=1, max_new_tokens=3).shape == (1, 5)
