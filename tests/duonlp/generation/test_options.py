"""Every option of generate has an effect, here on a model that is a table, in NumPy; and the two kinds of ends: time and NaN."""

import time

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.errors import InputError, NonFiniteOutputError
from duonlp.generation import GenerationConfig, driver
from duonlp.generation import loop as decoding
from duonlp.generation.config import DEFAULTS
from duonlp.generation.plan import make_plan
from duonlp.generation.prompt import prepare_prompt
from duonlp.generation.source import Source, decoder_prompt
from duonlp.generation.strategies import search
from tests.cases import cases
from tests.duonlp.generation.test_search import Table

CONFIGS = {case.name: case.config for case in cases()}
GPT2, BART = CONFIGS["gpt2-causal-lm"], CONFIGS["bart-seq2seq-lm"]
VOCABULARY, PROMPT = 12, [[3, 4, 5, 3, 4]]
SAMPLE, BEAMS = {"do_sample": True, "seed": 3}, {"num_beams": 4}
LOOKUP = {"prompt_lookup_num_tokens": 3}

# Option -> (options of both calls, the value with which the result differs).
PROBES = {
    "max_new_tokens": ({}, 3), "max_length": ({"max_new_tokens": None}, 7), "min_new_tokens": ({"eos_token_id": 8}, 7),
    "min_length": ({"eos_token_id": 8}, 12), "do_sample": ({"seed": 3}, True), "seed": (SAMPLE, 4),
    "num_return_sequences": (BEAMS, 2), "num_beams": ({}, 4), "early_stopping": (BEAMS | {"eos_token_id": 5}, True),
    "length_penalty": (BEAMS | {"eos_token_id": 7}, -3.0), "num_beam_groups": (BEAMS | {"num_return_sequences": 4}, 2),
    "diversity_penalty": (BEAMS | {"num_beam_groups": 2, "num_return_sequences": 4}, 9.0), "penalty_alpha": ({}, 0.9),
    "prompt_lookup_num_tokens": ({}, 3), "guidance_scale": ({}, 5.0),
    "sequence_bias": ({}, [[[7], 50.0]]), "repetition_penalty": ({}, 9.0), "no_repeat_ngram_size": ({}, 1),
    "bad_words_ids": ({}, [[i] for i in range(6)]), "forced_bos_token_id": ({}, 7), "forced_eos_token_id": ({}, 7),
    "exponential_decay_length_penalty": ({"eos_token_id": 7}, [0, 9.0]), "suppress_tokens": ({}, [1, 2, 3, 4, 6, 8]),
    "begin_suppress_tokens": ({}, list(range(7))), "temperature": (SAMPLE, 0.1), "top_h": (SAMPLE, 0.1),
    "top_k": (SAMPLE, 1), "top_p": (SAMPLE, 0.1), "min_p": (SAMPLE, 0.9), "typical_p": (SAMPLE, 0.1),
    "epsilon_cutoff": (SAMPLE, 0.5), "eta_cutoff": (SAMPLE, 0.9),
    "renormalize_logits": (SAMPLE | {"top_k": 2, "output_scores": True}, True), "eos_token_id": ({}, list(range(12))),
    "pad_token_id": ({"eos_token_id": 8, "prompts": 2}, 9), "output_scores": ({}, True), "output_logits": ({}, True),
}  # fmt: skip

ELSEWHERE = {
    "stop_strings": "tests/duonlp/generation/test_stop_strings.py", "max_time": "below", "remove_invalid_values": "below",
    "num_assistant_tokens": "tests/parity/test_generation.py", "return_dict_in_generate": "tests/parity/test_api.py",
    "decoder_start_token_id": "below", "bos_token_id": "below", "encoder_repetition_penalty": "below",
    "encoder_no_repeat_ngram_size": "below", "max_matching_ngram_size": "below",
}  # fmt: skip
"""Options whose effect a table in NumPy cannot show."""


def call_of(table: Table, prompts: int = 1, prompt: list[int] = PROMPT[0], **options):
    """Return a call of generate, and a function that compiles it for the driver: in NumPy."""
    options = {"max_new_tokens": 8, "pad_token_id": 0, **options}
    config = GenerationConfig().with_options(**options)
    ids = np.array([prompt if i == 0 else [5, 4, 3, 2, 1] for i in range(prompts)])
    if config.forced_bos_token_id is not None:
        ids = ids[:, :1]
    prepared = prepare_prompt(GPT2, config, ids, np.ones(ids.shape, np.int32))
    plan, values = make_plan(config, prepared, VOCABULARY, 32)

    def load(call):
        searching = search.Search(numpy_ops, table, plan, call.values)
        return driver.Programs(
            lambda: decoding.start(searching),
            lambda state, until: decoding.advance(searching, state, until),
            lambda state: decoding.result(searching, state),
        )

    return load, driver.Call(None, None, config, prepared, plan, values)


def outcome(**options):
    load, call = call_of(Table(1, VOCABULARY, 20), **options)
    with np.errstate(all="ignore"):
        return {name: value.tolist() for name, value in driver._run(load, call, time.monotonic(), 0).items()}


@pytest.mark.filterwarnings("ignore:.* has no effect without")
@pytest.mark.parametrize("name", PROBES)
def test_every_option_has_an_effect(name):
    options, value = PROBES[name]
    assert outcome(**options) != outcome(**options | {name: value})


def test_every_option_is_probed():
    assert set(PROBES) | set(ELSEWHERE) == set(DEFAULTS)


def test_longer_matches_of_prompt_lookup_come_first():
    table = Table(1, VOCABULARY, 20)
    table.logits[:, [4, 9, 3], [9, 3, 4]] = 50  # the text goes on with 9, 3, 4, ...
    passes = {}
    for size in (1, 2):  # after 9, or after 4, 9
        load, call = call_of(
            table, prompt=[9, 3, 4, 5, 4, 9, 7, 3, 4], **LOOKUP, max_matching_ngram_size=size, output_scores=True
        )
        passes[size] = driver._run(load, call, 0.0, 0)["passes"].tolist()
    assert passes[1] < passes[2]


def test_options_of_encoder_decoders():
    ids, mask = decoder_prompt(BART, GenerationConfig(decoder_start_token_id=9), 1)
    assert ids.tolist() == [[9]]
    without = (
        BART.replace(decoder=BART.decoder.replace(start_token_id=None)) if hasattr(BART.decoder, "replace") else None
    )
    if without is not None:
        assert decoder_prompt(without, GenerationConfig(bos_token_id=8), 1)[0].tolist() == [[8]]
    source = Source(np.array([[3, 4, 5]]), np.ones((1, 3), np.int32))
    for option, value in (("encoder_repetition_penalty", 2.0), ("encoder_no_repeat_ngram_size", 2)):
        config = GenerationConfig(**{option: value})
        plan, _ = make_plan(config, prepare_prompt(GPT2, config, ids, mask), 61, 20, source=source)
        assert len(plan.processors) == 1


class SlowTable(Table):
    """A table that takes time to look something up."""

    def next_logits(self, hidden):
        time.sleep(0.03)
        return super().next_logits(hidden)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, SAMPLE, BEAMS, {"penalty_alpha": 0.5}, LOOKUP], ids=str)
def test_texts_end_when_time_is_up(options):
    begin = time.monotonic()
    load, call = call_of(SlowTable(1, VOCABULARY, 40), **options | {"max_new_tokens": 26, "max_time": 0.2})
    out = driver._run(load, call, begin, 0)
    new = out["sequences"].shape[1] - 5
    assert 1 < new < 20 and time.monotonic() - begin < 1
    load, call = call_of(Table(1, VOCABULARY, 40), **options | {"max_new_tokens": 26})
    untimed = driver._run(load, call, begin, 0)["sequences"]
    assert untimed.shape[1] == 31
    if options != BEAMS:  # whose best text depends on where it ends
        assert np.array_equal(out["sequences"], untimed[:, : 5 + new])
    unlimited = outcome(**options, max_time=60.0)
    assert unlimited == outcome(**options)


def test_a_stream_ends_when_time_is_up():
    load, call = call_of(SlowTable(1, VOCABULARY, 40), max_new_tokens=26, max_time=0.2)
    assert 1 < len(list(driver.stream(load, [call]))) < 20
    load, call = call_of(SlowTable(1, VOCABULARY, 40), max_new_tokens=26, max_time=0)
    assert len(list(driver.stream(load, [call]))) == 1  # the first token comes in any case
    assert driver._run(load, call, 0.0, 0)["sequences"].shape == (1, 6)
    with pytest.raises(InputError, match="max_time=-1 must be 0 or more"):
        GenerationConfig(max_time=-1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, SAMPLE, BEAMS, {"penalty_alpha": 0.5}, LOOKUP], ids=str)
def test_logits_that_are_not_finite_are_an_error(options, value):
    table = Table(1, VOCABULARY, 20)
    load, call = call_of(table, **options)
    table.logits[..., 2] = -np.inf  # a token that cannot occur
    with np.errstate(all="ignore"):
        driver._run(load, call, 0.0, 0)
        table.logits[4:, :, 3] = value
        with pytest.raises(
            NonFiniteOutputError, match=r"prompt 7: the model's logits are not finite .*check its weights"
        ):
            driver._run(load, call, 0.0, 7)
        load, call = call_of(table, **options, remove_invalid_values=True)
        driver._run(load, call, 0.0, 0)


def test_the_prompt_with_invalid_logits_is_named():
    table = Table(1, VOCABULARY, 20)
    load, call = call_of(table, prompts=2, **SAMPLE, num_return_sequences=2)
    table.logits[:, 1] = np.nan  # after token 1, with which the second prompt ends
    table.logits[:, :, 1] = -np.inf
    with np.errstate(all="ignore"), pytest.raises(NonFiniteOutputError, match="prompt 1"):
        driver._run(load, call, 0.0, 0)
        list(driver.stream(load, [call]))


@pytest.mark.parametrize(
    "options", [{}, BEAMS, SAMPLE | {"num_return_sequences": 2}, {"penalty_alpha": 0.5}, LOOKUP], ids=str
)
def test_new_tokens_have_the_type_of_the_last_one(options):
    class Typed(Table):
        """A table that adds the token types to the last tokens that it looks up."""

        def decode(self, input_ids, position_ids, visible, cache, index, token_type_ids):
            assert token_type_ids.shape == input_ids.shape
            seen.append(token_type_ids)
            return super().decode((input_ids + token_type_ids) % VOCABULARY, position_ids, visible, cache, index)

    seen: list[np.ndarray] = []
    config = GenerationConfig(pad_token_id=0, max_new_tokens=4).with_options(**options)
    ids = np.array([[3, 4, 5], [5, 4, 3]])[: 1 if options == LOOKUP else 2]
    types = np.array([[0, 0, 1], [1, 0, 2]])[: len(ids)]
    prepared = prepare_prompt(GPT2, config, ids, np.ones_like(ids), token_type_ids=types)
    plan, values = make_plan(config, prepared, VOCABULARY, 32)
    searching = search.Search(numpy_ops, Typed(1, VOCABULARY, 20), plan, values)
    with np.errstate(all="ignore"):
        decoding.advance(searching, decoding.start(searching), values["new_tokens"])
    np.testing.assert_array_equal(seen[0][: len(ids), -3:], types)
    assert len(seen) > 1
    for later in seen[1:]:
        rows = later.reshape(len(prepared.filler), -1)[: len(ids)]
        np.testing.assert_array_equal(rows, np.broadcast_to(types[:, -1:], rows.shape))
