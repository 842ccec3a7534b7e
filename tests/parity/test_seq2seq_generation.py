"""Test generation of encoder-decoders in both engines: search, batches, seeds, streams, compilations and invalid inputs."""

import json
from importlib import import_module

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.generation.strategies.cache import Slots, extend_cache
from tests.cases import SIZES
from tests.generation import encoder_decoder, sources

FREE = {"eos_token_id": None, "pad_token_id": 0}
LENGTHS = (12, 9, 10)  # in one bucket


@pytest.fixture(params=["jax", "tf"], scope="module")
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def t5(framework):
    return encoder_decoder(framework)


@pytest.fixture(scope="module")
def both():
    return [encoder_decoder(framework) for framework in ("jax", "tf")]


def test_texts_depend_on_the_whole_source(t5):
    ids, mask = sources(0, (12, 12))
    ids[1] = ids[0]
    ids[1, -1] = (ids[0, -1] + 7) % 50 + 1
    texts = t5.generate(ids, mask, max_new_tokens=8, **FREE)
    assert texts.shape == (2, 9) and (texts[:, 0] == 0).all()
    assert not np.array_equal(*texts)
    mask[1, -1] = mask[0, -1] = 0  # masked tokens have no effect
    np.testing.assert_array_equal(*t5.generate(ids, mask, max_new_tokens=8, **FREE))


def test_greedy_ids_match_uncached_passes(framework, t5):
    run = import_module(f"{framework}nlp").compiled(t5)
    ids, mask = sources(1, LENGTHS)
    texts = np.zeros((3, 1), np.int32)
    for _ in range(6):
        padded = np.pad(texts, ((0, 0), (0, 7 - texts.shape[1])))
        logits = np.asarray(run(input_ids=ids, attention_mask=mask, decoder_input_ids=padded)["logits"])
        texts = np.concatenate([texts, logits[:, texts.shape[1] - 1].argmax(-1)[:, None]], 1)
    np.testing.assert_array_equal(t5.generate(ids, mask, max_new_tokens=6, **FREE), texts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2, "top_k": 0},
        {"penalty_alpha": 0.6, "top_k": 3},
        {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2, "num_beams": 2},
    ],
    ids=lambda options: ",".join(options) or "greedy",
)
def test_batched_sources_generate_as_alone(t5, options):
    ids, mask = sources(2, LENGTHS)
    together = t5.generate(ids, mask, max_new_tokens=7, **options)
    returned = options.get("num_return_sequences", 1)
    for i, length in enumerate(LENGTHS):
        alone = t5.generate(ids[i : i + 1, :length], max_new_tokens=7, **options)
        of_batch = together[i * returned : (i + 1) * returned]
        np.testing.assert_array_equal(of_batch[:, : alone.shape[1]], alone)
        assert not of_batch[:, alone.shape[1] :].any()


def test_exhaustive_beam_search_finds_the_best_texts(framework):
    """25 beams over a vocabulary of 5 cover every text of three tokens."""
    small = encoder_decoder(framework, vocab_size=5, eos_token_id=None)
    ids = np.array([[2, 4, 3, 1]], np.int32)
    texts = np.array([[0, a, b, c] for a in range(5) for b in range(5) for c in range(5)], np.int32)
    run = import_module(f"{framework}nlp").compiled(small)
    logits = np.asarray(run(input_ids=np.repeat(ids, 125, 0), decoder_input_ids=texts)["logits"], np.float64)[:, :-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    totals = np.take_along_axis(logprobs, texts[:, 1:, None].astype(np.int64), -1).sum((1, 2))
    out = small.generate(
        ids, num_beams=25, num_return_sequences=5, max_new_tokens=3, length_penalty=0.0, return_dict_in_generate=True
    )
    best = np.argsort(-totals)[:5]
    np.testing.assert_array_equal(out["sequences"], texts[best])
    np.testing.assert_allclose(out["sequences_scores"], totals[best], atol=1e-4)


@pytest.mark.representative
def test_same_seed_draws_the_same_in_both_engines(both):
    ids, mask = sources(3, LENGTHS)
    options = {
        "do_sample": True,
        "top_k": 20,
        "temperature": 1.2,
        "num_return_sequences": 2,
        "max_new_tokens": 8,
        **FREE,
    }
    draws = [model.generate(ids, mask, seed=seed, **options) for seed in (0, 1) for model in both]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[2], draws[3])
    assert not np.array_equal(draws[0], draws[2])


def test_streams_yield_the_ids_of_generate(framework, t5):
    stream = import_module(f"{framework}nlp.generation").stream
    ids, mask = sources(4, LENGTHS)
    whole = t5.generate(ids, mask, max_new_tokens=8, **FREE)
    pieces = list(stream(t5, ids, mask, max_new_tokens=8, **FREE))
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole[:, 1:])


def test_decoder_input_ids_are_continued(t5):
    ids, mask = sources(5, LENGTHS)
    whole = t5.generate(ids, mask, max_new_tokens=8, **FREE)
    rest = t5.generate(ids, mask, decoder_input_ids=whole[:, :4], max_new_tokens=5, **FREE)
    np.testing.assert_array_equal(rest, whole)
    # The start token is prepended if it is missing.
    rest = t5.generate(ids, mask, decoder_input_ids=whole[:, 1:4], max_new_tokens=5, **FREE)
    np.testing.assert_array_equal(rest, whole)


def test_decoder_input_ids_of_several_lengths_are_padded_on_the_left(framework):
    """BART's positions start at the first token that is not padding."""
    bart = encoder_decoder(framework, hf=SIZES["bart"] | {"model_type": "bart", "init_std": 0.5})
    ids, mask = sources(5, LENGTHS)
    begun = np.array([[2, 11, 12], [2, 13, 14], [2, 15, 16]])
    options = {"max_new_tokens": 5, "min_new_tokens": 5}
    whole = bart.generate(ids, mask, decoder_input_ids=begun, **options)
    padded = np.pad(begun, ((0, 0), (2, 0)), constant_values=1)
    rest = bart.generate(
        ids, mask, decoder_input_ids=padded, decoder_attention_mask=np.arange(5) >= [[2]] * 3, **options
    )
    np.testing.assert_array_equal(rest[:, 2:], whole)
    assert not np.array_equal(whole[0, 3:], whole[1, 3:])


def test_speculative_decoding_is_greedy_decoding(framework, t5):
    draft = encoder_decoder(framework, seed=8, num_decoder_layers=1)
    ids, mask = sources(6, LENGTHS)
    options = {"max_new_tokens": 7}
    expected = t5.generate(ids, mask, **options)
    np.testing.assert_array_equal(t5.generate(ids, mask, assistant_model=draft, **options), expected)
    np.testing.assert_array_equal(t5.generate(ids, mask, prompt_lookup_num_tokens=3, **options), expected)


def test_other_sources_do_not_recompile(framework, t5):
    t5.generate(*sources(7, (11, 9, 5)), num_beams=2, max_new_tokens=5)
    if framework == "jax":
        from jaxnlp.generation.search import _advance, _start

        before = _start._cache_size(), _advance._cache_size()
        t5.generate(*sources(8, (10, 16, 9)), num_beams=2, max_new_tokens=8, length_penalty=2.0)
        assert (_start._cache_size(), _advance._cache_size()) == before
    else:
        programs = len(t5.__dict__["_programs"][1])
        t5.generate(*sources(8, (10, 16, 9)), num_beams=2, max_new_tokens=8, length_penalty=2.0)
        assert len(t5.__dict__["_programs"][1]) == programs


def test_cache_stores_the_source_once_for_all_beams(framework, t5):
    cache, ops = (
        t5.start_cache(2, 1, tuple(np.ones((2, 16), np.int32) for _ in range(2))),
        import_module(f"{framework}nlp.ops"),
    )
    cache = extend_cache(ops, t5.config.decoder.layers, cache, [Slots(None, 1, 8, stride=3)])
    heads, width = t5.config.decoder.cross_attention.num_heads, t5.config.decoder.cross_attention.head_dim
    assert {name: tuple(x.shape) for name, x in cache["source"]["step_1"].items()} == {
        "key": (2, heads, width, 16),
        "value": (2, heads, 16, width),
    }
    assert tuple(cache["step_0"]["value"].shape) == (2, heads, 25, width)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": []}, "the source is empty"),
        ({"input_ids": [5, 6]}, r"shape \(2,\); sources are \[batch, length\]"),
        ({"input_ids": [[5, 61]]}, "input_ids contains 61, but this model's token ids are 0 to 60"),
        ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, "source 0 is all padding"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "must have the same shape"),
        ({"input_ids": [[5, 6]], "decoder_input_ids": [[5], [6]]}, r"shape \(2, 1\), but there are 1 sources"),
        ({"input_ids": [[5, 6]], "decoder_input_ids": [[0, 61]]}, "contains 61"),
        ({"input_ids": [[5, 6]], "decoder_attention_mask": [[1]]}, "decoder_attention_mask needs decoder_input_ids"),
        ({"input_ids": [[5, 6]], "guidance_scale": 1.5}, "models without an encoder"),
        ({"input_ids": [[5, 6]], "encoder_no_repeat_ngram_size": -1}, "encoder_no_repeat_ngram_size=-1"),
        ({"input_ids": [[5, 6]], "encoder_repetition_penalty": 0}, "must be above 0"),
        ({"input_ids": [[5, 6]], "forced_bos_token_id": 61}, "forced_bos_token_id contains 61"),
    ],
)
def test_invalid_generation_arguments_raise(t5, arguments, message):
    with pytest.raises(InputError, match=message):
        t5.generate(
            **{name: np.array(v) if isinstance(v, list) else v for name, v in arguments.items()}, max_new_tokens=2
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[5, 6]]}, "has no inputs; pass decoder_input_ids, or labels"),
        ({"input_ids": [[5, 6]], "decoder_input_ids": [[0], [0]]}, "one row per source"),
        ({"input_ids": [[5, 6]], "decoder_input_ids": [[61]]}, "decoder_input_ids contains 61"),
        ({"input_ids": [[5, 6]], "labels": [[61]]}, "labels contains 61"),
        ({"input_ids": [[5, 6]], "labels": [[1, 2]], "decoder_input_ids": [[0]]}, "differ in length"),
        ({"input_ids": [[5, 6]], "labels": [[1, 2]], "decoder_mask": [[1, 1]]}, "unknown input 'decoder_mask'"),
    ],
)
def test_invalid_inputs_raise(t5, inputs, message):
    with pytest.raises(InputError, match=message):
        t5(**{name: np.array(value, np.int32) for name, value in inputs.items()})


def test_encoder_options_require_an_encoder(framework):
    from tests.generation import language_model, prompts

    gpt2 = language_model(framework, n_layer=1)
    for options in ({"encoder_no_repeat_ngram_size": 2}, {"encoder_repetition_penalty": 1.2}):
        with pytest.raises(InputError, match="a gpt2 has none"):
            gpt2.generate(*prompts(0, (5,)), **options)
    with pytest.raises(InputError, match="pass the prompt as input_ids"):
        gpt2.generate(*prompts(0, (5,)), decoder_input_ids=[[1]])


def test_generation_options_are_read_from_config_json(framework, tmp_path):
    model = encoder_decoder(framework, num_beams=2, max_length=9, decoder_start_token_id=7)
    assert model.generation_config.num_beams == 2 and model.generation_config.max_length == 9
    assert model.generate(*sources(9, (6,)), eos_token_id=None).shape == (1, 9)
    model.save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m")
    assert loaded.generation_config == model.generation_config
    assert (loaded.generate(*sources(9, (6,)))[:, 0] == 7).all()


def test_invalid_generation_options_do_not_prevent_loading(framework, tmp_path):
    encoder_decoder(framework).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"num_beams": 0}))
    nlp = import_module(f"{framework}nlp")
    with pytest.warns(UserWarning, match="all generation settings of config.json are ignored: num_beams=0") as caught:
        model = nlp.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    assert len(caught) == 1 and model.generation_config.num_beams == 1
    assert model.generation_config.decoder_start_token_id == 0
