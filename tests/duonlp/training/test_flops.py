"""Training FLOPs per token against manual counts, rules of thumb and the table of chips."""

from dataclasses import asdict

import pytest

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.training.flops import block_flops, mfu, pair_flops, palm_flops, six_n, token_flops
from jaxnlp.training.chips import CHIPS

GPT2_SMALL = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
}


def config(**settings):
    return architectures.get(settings["model_type"]).config(settings)


def count(cfg, head):
    return sum(parameter.size for parameter in parameters(cfg, head).values())


def test_a_small_gpt2_against_a_manual_count():
    cfg = config(model_type="gpt2", vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_inner=20, n_positions=16)
    flops = token_flops(cfg, 5)
    assert asdict(flops) == {
        "embedding": 0,
        "projections": 2 * 4 * 2 * 8 * 8,
        "scores": 2 * 2 * (5 * 4) * 2,  # heads, layers, 5 keys of width 4
        "values": 2 * 2 * (5 * 4) * 2,
        "feed_forward": 2 * 2 * 2 * 8 * 20,
        "head": 2 * 8 * 11,
    }
    assert flops.forward == 1024 + 160 + 160 + 1280 + 176
    assert flops.training == 3 * 2800 and flops.forward_causal == 2800 - 160 and flops.training_causal == 3 * 2640


def test_the_transform_of_bert_and_narrow_embeddings_and_shared_layers_of_albert():
    sizes = {
        "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20,
        "max_position_embeddings": 16,
    }  # fmt: skip
    assert token_flops(config(model_type="bert", **sizes), 4).head == 2 * (8 * 8 + 8 * 11)
    albert = token_flops(config(model_type="albert", embedding_size=6, **sizes), 4)
    assert (albert.embedding, albert.head) == (2 * 6 * 8, 2 * (8 * 6 + 6 * 11))
    assert albert.feed_forward == 3 * 2 * 2 * 8 * 20


def test_a_gate_adds_a_matrix():
    cfg = config(**GPT2_SMALL)
    gated = cfg.replace(feed_forward__gated=True)
    assert token_flops(gated, 8).feed_forward == token_flops(cfg, 8).feed_forward * 3 // 2


def test_gpt2_small_against_the_rules_of_thumb():
    cfg = config(**GPT2_SMALL)
    total = count(cfg, "causal-lm")
    assert total == 124_439_808
    flops = token_flops(cfg, 1024)
    # The head multiplies by the tied word table, so only positions, norms and biases are in N and not in a product.
    assert 3 * flops.matrices == pytest.approx(six_n(total), rel=0.01)
    assert flops.training == pytest.approx(palm_flops(total, cfg, 1024), rel=0.01)
    assert flops.training / six_n(total) == pytest.approx(1.144, abs=0.002)  # attention, which 6N ignores
    assert token_flops(cfg, 64).training == pytest.approx(six_n(total), rel=0.01)
    assert 1 < flops.training / flops.training_causal < 1.08


def test_invalid_lengths():
    for length in (0, 1025):
        with pytest.raises(InputError, match=f"sequence_length is {length}; it must be from 1 to 1024"):
            token_flops(config(**GPT2_SMALL), length)


def test_mfu():
    assert mfu(1000, 1e9, 4e12) == pytest.approx(0.25)
    # PaLM, table 3 and appendix B: 540B parameters at 238.3k tokens/s on 6144 TPU v4 is 46.2% with attention,
    # 45.7% without.
    peak = 6144 * CHIPS["v4"].peak_flops_bf16
    assert mfu(238_300, 6 * 540.35e9, peak) == pytest.approx(0.457, abs=0.001)
    for peak in (0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="peak"):
            mfu(1, 1, peak)


def test_chips():
    assert set(CHIPS) == {"v3", "v4", "v5e", "v5p", "v6e"}
    for name, chip in CHIPS.items():
        assert chip.name == name and chip.source and chip.cores in (1, 2)
        assert chip.ici_links == (6 if name in ("v4", "v5p") else 4)
        assert 100e12 < chip.peak_flops_bf16 < 1e15 and 16 * 2**30 <= chip.hbm_bytes <= 96 * 2**30
        # Large matrix products must be compute-bound and decoding steps memory-bound.
        assert 100 < chip.peak_flops_bf16 / chip.hbm_bandwidth < 1000
        assert 50e9 <= chip.link_bandwidth <= 100e9


T5 = {
    "model_type": "t5", "vocab_size": 11, "d_model": 8, "d_kv": 3, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 2,
}  # fmt: skip


def test_a_small_t5_against_a_manual_count():
    """Heads are 2 x 3 wide in a model of 8; 5 source tokens, 4 target tokens."""
    pair = pair_flops(config(**T5), 5, 4)
    assert asdict(pair.source) == {
        "embedding": 0,
        "projections": 2 * 2 * 4 * 8 * 6
        + 2 * 3 * 2 * 8 * 6,  # plus cross-attention keys and values of 3 decoder layers
        "scores": 2 * 2 * 5 * 6,
        "values": 2 * 2 * 5 * 6,
        "feed_forward": 2 * 2 * 2 * 8 * 20,
        "head": 0,
    }
    assert asdict(pair.target) == {
        "embedding": 0,
        "projections": 2 * 3 * (4 + 2) * 8 * 6,
        "scores": 2 * 3 * (4 + 5) * 6,
        "values": 2 * 3 * (4 + 5) * 6,
        "feed_forward": 2 * 3 * 2 * 8 * 20,
        "head": 2 * 8 * 11,
    }
    assert pair.forward == 5 * pair.source.forward + 4 * pair.target.forward and pair.training == 3 * pair.forward
    assert pair.forward - pair.forward_causal == 4 * (2 * 3 * 4 * 6)  # half of scores and values, over 4 targets
    assert pair.training_causal == 3 * pair.forward_causal
    gated = pair_flops(config(**T5 | {"feed_forward_proj": "gated-gelu"}), 5, 4)
    assert gated.source.feed_forward == pair.source.feed_forward * 3 // 2


def test_a_pair_costs_two_flops_per_parameter_and_token():
    """In short sequences of a large model, attention is negligible."""
    cfg = config(**T5 | {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048, "vocab_size": 1000})
    sizes = {
        path: parameter.size for path, parameter in parameters(cfg, "seq2seq-lm").items() if path.endswith("kernel")
    }
    source_parameters = sum(n for path, n in sizes.items() if path.startswith("encoder") or "cross_attention/key" in path
                    or "cross_attention/value" in path)  # fmt: skip
    pair = pair_flops(cfg, 3, 2)
    assert pair.source.matrices == 2 * source_parameters
    assert pair.target.matrices == 2 * (sum(sizes.values()) - source_parameters + 512 * 1000)  # the tied head


def test_block_flops_use_the_lengths_of_the_objective():
    class Halves:
        def lengths(self, block_length):
            return block_length // 2, block_length // 4

    assert block_flops(config(**T5), Halves(), 20) == pair_flops(config(**T5), 10, 5).training / 20
    gpt2 = config(**GPT2_SMALL)
    assert block_flops(gpt2, None, 64) == token_flops(gpt2, 64).training
    with pytest.raises(InputError, match="gpt2 is not an encoder-decoder"):
        pair_flops(gpt2, 4, 4)
