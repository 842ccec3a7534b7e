"""What ``generate`` returns when more than ids is wanted."""

import numpy as np


class GenerationOutput(dict):
    """A dict whose entries are attributes, too.

    sequences: int32 [texts, T + n], prompts and continuations.
    logprobs: float32 [texts, n], of every new token under the distribution it was chosen from; 0 after the end.
    scores: float32 [n, rows, V], the processed logits of every step (log probabilities in beam search), where asked for.
    logits: float32 [n, rows, V], as the model gave them, where asked for.
    sequences_scores: float32 [texts], of beam search: the sum of the log probabilities over length ** length_penalty.
    beam_indices: int32 [texts, n], of beam search: the row of scores that every token comes from; -1 after the end.
    passes: of speculative decoding, how many passes of the model it took, for each text.
    """

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are {', '.join(self)}") from None


def collect(call, out) -> GenerationOutput:
    """NumPy results of one compiled loop, without the rows and columns that only filled buckets.

    Args:
        call: duonlp.generation.driver.Call.
        out: what duonlp.generation.loop.result returned, as NumPy.
    """
    plan, original = call.plan, call.prompt.original
    steps, texts = int(out["steps"]), len(original) * plan.returned
    prompts = np.repeat(original, plan.returned, axis=0)
    sequences = np.concatenate([prompts, out["ids"][:texts, :steps]], axis=1).astype(np.int32)
    rows = len(original) * (plan.beams if plan.strategy == "beam" else plan.samples)
    cut = {
        "logprobs": lambda x: x[:texts, :steps],
        "scores": lambda x: x[:steps, :rows],
        "logits": lambda x: x[:steps, :rows],
        "sequences_scores": lambda x: x[:texts],
        "beam_indices": lambda x: x[:texts, :steps],
        "passes": lambda x: np.reshape(x, (1,)),
    }
    found = {name: take(np.asarray(out[name])) for name, take in cut.items() if name in out}
    return GenerationOutput(sequences=sequences, **found)


def join(parts: list[GenerationOutput], padding: int) -> GenerationOutput:
    """The outputs of prompts that were run one after the other, as of one batch."""
    longest = max(part["sequences"].shape[1] for part in parts)
    axes = {"sequences": (0, 1, padding), "logprobs": (0, 1, 0), "scores": (1, 0, 0), "logits": (1, 0, 0)}
    joined = {}
    for name in parts[0]:
        rows, columns, value = axes.get(name, (0, None, 0))  # passes have no columns
        widened = []
        for part in parts:
            missing = longest - part["sequences"].shape[1]
            pads = [(0, missing if axis == columns else 0) for axis in range(part[name].ndim)]
            widened.append(np.pad(part[name], pads, constant_values=value))
        joined[name] = np.concatenate(widened, axis=rows)
    return GenerationOutput(**joined)
