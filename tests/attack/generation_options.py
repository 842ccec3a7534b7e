"""Write generation_config.json files with odd values: each option holds, has no effect, or is named in the one warning."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

from duonlp.architectures import config_from_hf
from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.errors import InputError
from duonlp.generation.config import DEFAULTS, GenerationConfig
from duonlp.generation.options.stored import unused_options
from tests.attack.harness import HELD, Budget, Outcome, attack

SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 64},
    "bart": {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "vocab_size": 40, "max_position_embeddings": 64,
    },
}  # fmt: skip
ODD = (
    None, True, False, 0, 1, 2, 3, 7, 39, 40, -1, 1e9, 0.0, 0.5, 1.0, 1.5, 4.0, float("inf"), 2**40, "", "x", "never", [], [3],
    [3, 5], [[3]], [[3, 5]], [[3, 99]], [[[3], 1.5]], [4, 1.1], {}, {"a": 1},
)  # fmt: skip
"""Values that any option may have."""

OTHERS = ("some_future_option", "use_cache", "constraints", "cache_implementation", "token_healing", "lang_to_id")


@attack("stored generation options")
def stored_generation_options(budget: Budget) -> Iterator[Outcome]:
    """Read files with a few options of random values, and write them back."""
    configs = [config_from_hf({"model_type": name, **sizes}) for name, sizes in SIZES.items()]
    names, rng = sorted([*DEFAULTS, *OTHERS]), budget.rng
    for n in budget:
        chosen = rng.choice(len(names), size=int(rng.integers(1, 9)), replace=False)
        stored = {names[i]: ODD[int(rng.integers(len(ODD)))] for i in chosen}
        cfg = configs[n % 2]
        case = f"{cfg.model_type}: {stored}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                config = default_generation_config(cfg, stored)
                messages = [str(warning.message) for warning in caught]
                written = config.to_dict()
                again = default_generation_config(cfg, json.loads(json.dumps(written)))
            except Exception as error:  # nothing may be raised, whatever the file holds
                yield Outcome(case, "traceback", repr(error))
                continue
        fault = _fault(stored, config, written, again, messages)
        yield Outcome(case, "wrong" if fault else HELD, fault)


def _fault(
    stored: dict[str, Any],
    config: GenerationConfig,
    written: dict[str, Any],
    again: GenerationConfig,
    messages: list[str],
) -> str:
    """Return what is wrong with what was read from a file, or ""."""
    if again != config:
        return f"written back as {written}"
    if len(messages) > 1:
        return f"warnings {messages}"
    unused = unused_options(config) | ({"penalty_alpha"} if config.top_k < 2 else set())
    for name in stored.keys() & DEFAULTS.keys():
        value, held = stored[name], getattr(config, name)
        if (
            value is None
            or value == DEFAULTS[name]
            or held != DEFAULTS[name]
            or name in unused
            or name in (messages or [""])[0]
        ):
            continue
        try:
            alone = getattr(GenerationConfig(**{name: value}), name)
        except InputError:
            return f"{name}={value!r} was left out without a word"
        if alone != DEFAULTS[name]:
            return f"{name}={value!r} has no effect and nothing said so"
    return (
        "" if written.items() >= {k: v for k, v in stored.items() if k not in DEFAULTS}.items() else f"lost: {written}"
    )
