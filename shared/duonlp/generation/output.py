"""The result of ``generate`` when more than ids is requested."""

from typing import Any

import numpy as np


class GenerationOutput(dict):
    """A dict whose entries are also attributes.

    Attributes:
        sequences: int32 [texts, T + n], prompts and continuations.
        logprobs: float32 [texts, n], log probability of each new token under the distribution it was chosen
            from; 0 after the end.
        scores: float32 [n, rows, V], processed logits of each step (log probabilities in beam search), with
            output_scores.
        logits: float32 [n, rows, V], raw logits of each step, with output_logits.
        sequences_scores: float32 [texts], for beam search: sum of log probabilities / length ** length_penalty.
        beam_indices: int32 [texts, n], for beam search: the row of ``scores`` that each token comes from;
            -1 after the end.
        passes: int32 [texts], for speculative decoding: number of forward passes of the model.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {', '.join(self)}") from None


def join(parts: list[GenerationOutput], padding: int) -> GenerationOutput:
    """Join the outputs of prompts that were run one by one into the output of one batch."""
    longest = max(part["sequences"].shape[1] for part in parts)
    # name -> (axis of texts, axis of columns, padding value)
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
