"""Compare logits processors with Transformers' classes."""

import numpy as np
import pytest

from duonlp import numpy_ops
from tests.generation import PROCESSORS, STEP, processor_inputs, run_processor

pytestmark = pytest.mark.parity
EOS = [3, 20]
CUTS = ("top_h", "top_p", "min_p", "typical_p")


def theirs(name: str, a: dict):
    """Return Transformers' processor; it is called with the ids before STEP."""
    import torch
    from transformers.generation import logits_process as hf

    source = torch.tensor(a["source_ids"]).long() if "source_ids" in a else None
    keep = {"min_tokens_to_keep": a["min_tokens_to_keep"]} if "min_tokens_to_keep" in a else {}
    named = [int(token) for token in a.get("tokens", ()) if token >= 0]
    factories = {
        "temperature": lambda: hf.TemperatureLogitsWarper(float(a["temperature"])),
        "repetition_penalty": lambda: hf.RepetitionPenaltyLogitsProcessor(float(a["penalty"])),
        "no_repeat_ngram": lambda: hf.NoRepeatNGramLogitsProcessor(a["size"]),
        "encoder_no_repeat_ngram": lambda: hf.EncoderNoRepeatNGramLogitsProcessor(a["size"], source),
        "encoder_repetition_penalty": lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(
            float(a["penalty"]), source.repeat_interleave(2, 0)
        ),
        "sequence_bias": lambda: hf.SequenceBiasLogitsProcessor(
            [
                [[int(i) for i in row if i >= 0] + [int(last)], float(bias)]
                for row, last, bias in zip(a["prefixes"], a["last"], a["bias"])
            ]
        ),
        "no_end_before": lambda: hf.MinLengthLogitsProcessor(int(a["column"]), EOS),
        "remove_invalid_values": lambda: hf.InfNanRemoveLogitsProcessor(),
        "exponential_decay_length_penalty": lambda: hf.ExponentialDecayLengthPenalty((int(a["start"]), 1.5), EOS, 0),
        "suppress_tokens": lambda: hf.SuppressTokensLogitsProcessor(named),
        "suppress_tokens_at": lambda: hf.SuppressTokensAtBeginLogitsProcessor(named, int(a["column"])),
        "forced_tokens": lambda: hf.ForcedEOSTokenLogitsProcessor(int(a["column"]) + 1, named),
        "top_h": lambda: hf.TopHLogitsWarper(float(a["h"])),
        "top_k": lambda: hf.TopKLogitsWarper(a["k"], **keep),
        "top_p": lambda: hf.TopPLogitsWarper(float(a["p"]), **keep),
        "min_p": lambda: hf.MinPLogitsWarper(float(a["p"]), **keep),
        "typical_p": lambda: hf.TypicalLogitsWarper(float(a["p"]), **keep),
        "epsilon_cutoff": lambda: hf.EpsilonLogitsWarper(float(a["epsilon"]), **keep),
        "eta_cutoff": lambda: hf.EtaLogitsWarper(float(a["epsilon"]), **keep),
        "renormalize": lambda: hf.LogitNormalization(),
    }
    return factories[name]()


@pytest.mark.parametrize(("name", "arguments"), PROCESSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_match_transformers(name, arguments):
    import torch

    for seed in range(10):
        ids, logits = processor_inputs(seed, padded=False)
        if name == "remove_invalid_values":
            logits[0, :3] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            ours = run_processor(numpy_ops, name, arguments, ids, logits, np.asarray)
        expected = theirs(name, arguments)(torch.tensor(ids[:, :STEP]).long(), torch.tensor(logits)).numpy()
        if name in CUTS:  # torch removes any of several equally likely tokens
            ours[[1, 3]], expected[[1, 3]] = np.sort(ours[[1, 3]]), np.sort(expected[[1, 3]])
        assert np.array_equal(np.isfinite(ours), np.isfinite(expected)), seed
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-6)
        np.testing.assert_allclose(_softmax(ours), _softmax(expected), atol=1e-6)


def _softmax(x):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
