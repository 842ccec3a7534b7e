"""What a model chose among, step by step: the chosen token's probability and rank, and the likeliest others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.stop_strings import token_bytes


def top_choices(scores: np.ndarray, chosen: np.ndarray, tokenizer=None, k: int = 5) -> list[dict[str, Any]]:
    """The most likely tokens of each step, and where the chosen one stood among them.

    Args:
        scores: float [steps, vocab], logits as they were chosen from; -inf is a token that was ruled out.
        chosen: int [steps].
        tokenizer: names the tokens; without one they are None.
        k: how many choices to list, cut to the vocabulary.

    Returns:
        For each step "step", "token_id", "token", "logprob" (natural logarithm), "rank" (0 is the most likely), and
        "choices": k dicts of "token_id", "token" and "probability", the most likely first, of equal ones the lower id.

    Raises:
        InputError: k below 1, shapes that do not fit, ids beyond the vocabulary, or a step that no token is left for.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k={k!r} must be a whole number of at least 1: how many choices of each step to list")
    scores, chosen = np.asarray(scores), np.asarray(chosen)
    if scores.ndim != 2 or chosen.shape != scores.shape[:1] or (scores.size == 0 and len(scores)):
        raise InputError(
            f"scores have shape {scores.shape} and chosen {chosen.shape}; give [steps, vocab] and [steps] of one sequence"
        )
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= scores.shape[1]):
        raise InputError(
            f"chosen has {chosen.dtype} from {chosen.min()} to {chosen.max()}; give ids from 0 to {scores.shape[1] - 1}"
        )
    names = TokenNames(tokenizer)
    rows = []
    for step, (row, token) in enumerate(zip(scores, chosen.tolist(), strict=True)):
        logprobs = log_softmax(row, f"step {step}")
        best = most_likely(logprobs, k)
        rows.append(
            {
                "step": step,
                "token_id": token,
                "token": names[token],
                "logprob": float(logprobs[token]),
                "rank": int(
                    np.count_nonzero(logprobs > logprobs[token]) + np.count_nonzero(logprobs[:token] == logprobs[token])
                ),
                "choices": [
                    {"token_id": i, "token": names[i], "probability": float(np.exp(logprobs[i]))} for i in best.tolist()
                ],
            }
        )
    return rows


def choices_table(rows: Sequence[Mapping[str, Any]]):
    """What top_choices gives as a table: a row a step, a column a choice with its probability, the chosen one bold.

    It follows chapter 5 of "Natural Language Processing with Transformers" (Tunstall, von Werra and Wolf 2022). A last
    column shows chosen tokens that are not among the choices, when there are any.

    Returns:
        rich.table.Table, for `rich.print`.
    """
    from rich.table import Table
    from rich.text import Text

    width = max((len(row["choices"]) for row in rows), default=0)
    table = Table("step", *(f"choice {i + 1}" for i in range(width)), box=None, pad_edge=False, header_style="bold")
    listed = [any(choice["token_id"] == row["token_id"] for choice in row["choices"]) for row in rows]
    if not all(listed):
        table.add_column("chosen")
    for row, found in zip(rows, listed, strict=True):
        cells = [
            Text(
                f"{token_label(choice['token'], choice['token_id'])} ({choice['probability']:.2%})",
                style="bold" if choice["token_id"] == row["token_id"] else "",
            )
            for choice in row["choices"]
            if choice["probability"] > 0  # the rest was ruled out
        ]
        cells += [Text("")] * (width - len(cells))
        if not found:
            label = token_label(row["token"], row["token_id"])
            cells.append(Text(f"{label} ({np.exp(row['logprob']):.2%}, rank {row['rank']})", style="bold"))
        table.add_row(str(row["step"]), *cells)
    return table


class TokenNames:
    """The text of each token, by id: with the space it begins with; a part of a character is shown as "�"."""

    def __init__(self, tokenizer=None):
        self.tokenizer = tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", None) is not None
        self.tokens = token_bytes(tokenizer) if fast else None

    def __getitem__(self, token_id: int) -> str | None:
        if self.tokenizer is None:
            return None
        if self.tokens is None:
            return self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        return self.tokens[token_id].decode("utf-8", "replace") if token_id < len(self.tokens) else ""


def token_label(token: str | None, token_id: int) -> str:
    """A token on one line, its spaces and line breaks visible; its id where it has no text."""
    return repr(token) if token else f"#{token_id}"


def log_softmax(logits: np.ndarray, where: str) -> np.ndarray:
    """Natural logarithms of probabilities: float64 [vocab].

    Raises:
        InputError: NaN or infinity among the logits, or none above -inf.
    """
    logits = np.asarray(logits).astype(np.float64)
    highest = logits.max(initial=-np.inf)
    if not np.isfinite(highest):
        raise InputError(
            f"the largest logit of {where} is {highest}; a number is needed: every token is ruled out, or the model "
            "gives NaN or infinity"
        )
    shifted = logits - highest
    return shifted - np.log(np.exp(shifted).sum())


def most_likely(values: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest values, the largest first and of equal ones the lower index: int [min(k, n)]."""
    k = min(k, len(values))
    if k == 0:
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
    return candidates[np.argsort(-values[candidates], kind="stable")][:k]
