"""Zero-shot classification in both engines beside Transformers' pipeline, for every kind of classifier and tokenizer."""

import importlib
import warnings
from importlib.util import find_spec

import numpy as np
import pytest

from tests.cases import SEQ2SEQ, SIZES, Case
from tests.parity.test_pipelines import BERT, assert_close
from tests.reference import record_pipelines as reference

PACKAGES = ("tfnlp", "jaxnlp")
BODIES = {
    "bert": (BERT, "wordpiece", 0),
    "distilbert": (SIZES["distilbert"] | {"max_position_embeddings": 64}, "wordpiece", 1),
    "roberta": (BERT | {"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, "bpe", 2),
    "bart": (
        SEQ2SEQ | {
            "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
        },
        "bpe", 3,
    ),
    "gpt2": (SIZES["gpt2"] | {"n_positions": 64, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}, "gpt2", 4),
}  # fmt: skip
"""Family -> its configuration, tokenizer, and the row of NLI_LABELS with its labels."""

CALLS = [
    *reference.ZERO_SHOT_OPTIONS,
    {"candidate_labels": ["cities", "code"], "hypothesis_template": "On {}", "multi_label": True},
]

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
)


def write(family: str, folder, **tokenizer_options):
    """Write a small random classifier of premise and hypothesis."""
    body, name, row = BODIES[family]
    names, tokenizer = reference.NLI_LABELS[row], reference.load_tokenizer(name, **tokenizer_options)
    labels = {
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
    }
    hf = {"model_type": family, "vocab_size": len(tokenizer)} | labels
    path = Case(family, body | hf | {"num_labels": len(names)}, "sequence-classification").write(folder)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parity
@pytest.mark.parametrize("family", BODIES)
def test_every_call_agrees_with_transformers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    path = write(family, tmp_path / family, **({"padding_side": "left"} if family == "bert" else {}))
    ours = [importlib.import_module(p).pipeline("zero-shot-classification", path, batch_size=2) for p in PACKAGES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline("zero-shot-classification", model=str(path), device="cpu")
        texts = [reference.TEXTS[0], reference.LONG_TEXT]  # of few lengths, because every shape compiles
        for options in CALLS if family == "bert" else CALLS[1:3]:
            expected = theirs(texts, **options)
            for pipe in ours:
                assert_close(pipe(texts, **options), expected, 1e-5)
                assert_close(pipe(texts[0], **options), expected[0], 1e-5)
                assert_close(list(pipe(iter(texts), **options)), expected, 1e-5)


def test_engines_agree_on_a_model_that_pools_the_last_token(tmp_path):
    path = write("gpt2", tmp_path / "gpt2")
    results = []
    for package in PACKAGES:
        pipe = importlib.import_module(package).pipeline(
            "zero-shot-classification", path, candidate_labels="code, cities"
        )
        results.append(pipe(reference.TEXTS[:2]))
        assert np.isclose(sum(results[-1][0]["scores"]), 1, atol=1e-6)
    assert_close(results[0], results[1], 1e-5)
