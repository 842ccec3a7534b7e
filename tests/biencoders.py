"""A small task for bi-encoders, for the tests of both engines: each question and its passage share a word of their own."""

from duonlp.data.questions import RetrievalBatches, RetrievalExample
from duonlp.training.fit_config import FitConfig
from tests.reference import record_pipelines as reference

WORDS = ("program", "loom", "flowers", "leaves", "patterns", "engine")
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.2,
    "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
QUIET = {"console": False}
CONFIG = FitConfig(epochs=4, learning_rate=1e-2, log_every=1, evaluate_every=0, save_every=0)


def tokenizer():
    return reference.load_tokenizer("wordpiece")


def hf(model_type="dpr", **options):
    """Return config.json of a small model."""
    return {"model_type": model_type, "vocab_size": len(tokenizer()), **SIZES, **options}


def batches(size=4, shuffle=True, words=WORDS):
    """Return batches, the last one of which has two rows that fill it up."""
    examples = [RetrievalExample(f"Which {word}?", f"the {word} wrote", [f"Who wrote {word}"]) for word in words]
    return RetrievalBatches(examples, tokenizer(), size, num_negatives=1, shuffle=shuffle)


NOISE = (
    "attention/key/bias",
    "1/encoder/layer_0/feed_forward_norm/bias",
    "passage_model/encoder/layer_0/feed_forward_norm/bias",
)
"""Endings of the paths of parameters whose gradient is rounding noise: what adds the same to all of a question's scores."""
