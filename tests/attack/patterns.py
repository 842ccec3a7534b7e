"""Regular expressions in the quantization_config of a foreign checkpoint: an answer or a ConfigError, in bounded time."""

import time
from collections.abc import Iterator

from duonlp.architectures import _quantization, config_from_hf
from duonlp.errors import ConfigError
from tests import cases
from tests.attack.harness import HELD, Budget, Outcome, attack

PARTS = (
    ".*",
    "(.|[a-z._])",
    "(.+)+",
    "(\\w?|.)",
    "self_attn",
    "\\.",
    "(?=.*)",
    "(a|a)*",
    "[^x]{1,20}",
    "(",
    ")",
    "$",
    "|",
    "(.)\\1?",
)
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
TOO_LONG = 3 * _quantization.SECONDS


@attack("patterns of quantized layers")
def patterns(budget: Budget) -> Iterator[Outcome]:
    """Read configurations with patterns of random parts, some of which repeat."""
    rng = budget.rng
    for _ in budget:
        parts = [
            PARTS[int(i)] * int(rng.integers(1, 25)) for i in rng.integers(len(PARTS), size=int(rng.integers(1, 5)))
        ]
        group = {"targets": ["re:" + "".join(parts), "Linear"], "weights": WEIGHTS}
        hf = {"model_type": "llama", **cases.SIZES.get("llama", cases.ENCODER)}
        start, verdict, detail = time.monotonic(), HELD, ""
        try:
            config_from_hf(
                hf | {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": group}}}
            )
        except ConfigError:
            pass
        except Exception as error:
            verdict, detail = "traceback", repr(error)
        if time.monotonic() - start > TOO_LONG:
            verdict, detail = "hang", f"{time.monotonic() - start:.1f} s"
        yield Outcome(group["targets"][0][:200], verdict, detail)
