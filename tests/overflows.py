"""Factors on the weights of tests/cases.py with which values exceed 65504, the largest number of float16."""

from tests.cases import Case, cases


def case(name: str) -> Case:
    """Return a case by its name."""
    return next(c for c in cases() if c.name == name)


def large_blocks(path: str) -> float:
    """Make the feed-forward blocks of all layers add up to 220,000 to the states of the T5 case."""
    return 200.0 if "/feed_forward/" in path and path.endswith("kernel") else 1.0


def large_last_encoder_layer(path: str) -> float:
    """Make the states behind the encoder's last layer exceed 65504, which the encoder's final norm then reads."""
    return 20_000.0 if path.startswith("encoder/layer_1/feed_forward/down/") else 1.0


def large_attention(path: str) -> float:
    """Make the outputs of the first layers' attention exceed 65504."""
    return 3e4 if "layer_0/attention/output/" in path else 1.0


PLACES = {
    "feed-forward": large_blocks, "last encoder layer": large_last_encoder_layer, "attention": large_attention,
}  # fmt: skip
