"""The most likely tokens of each generation step, with the probability and rank of the token that was chosen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.generation.stop_strings import token_bytes
from duonlp.typing import Array

if TYPE_CHECKING:
    from rich.table import Table


def top_choices(scores: Array, chosen: Array, tokenizer: Any = None, k: int = 5) -> list[dict[str, Any]]:
    """Return the most likely tokens of each step, and the rank of the chosen token.

    Args:
        scores: float [steps, vocab], the processed logits; -inf marks a token that was ruled out.
        chosen: int [steps], the ids of the chosen tokens.
        tokenizer: Tokenizer that provides the tokens' texts; without one they are None.
        k: Number of choices to list, at most the vocabulary size.

    Returns:
        One dict per step with "step", "token_id", "token", "logprob" (natural logarithm), "rank" (0 is the
        most likely), and "choices": k dicts of "token_id", "token" and "probability", most likely first,
        ties by lower id.

    Raises:
        InputError: k is below 1, shapes do not match, ids are outside the vocabulary, or a step has no
            token left.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k={k!r} must be a positive integer, the number of choices to list per step")
    scores, chosen = np.asarray(scores), np.asarray(chosen)
    if scores.ndim != 2 or chosen.shape != scores.shape[:1] or (scores.size == 0 and len(scores)):
        raise InputError(
            f"scores has shape {scores.shape} and chosen {chosen.shape}; pass [steps, vocab] and [steps] of one sequence"
        )
    if chosen.size and (chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= scores.shape[1]):
        raise InputError(
            f"chosen has {chosen.dtype} from {chosen.min()} to {chosen.max()}; pass ids from 0 to {scores.shape[1] - 1}"
        )
    names = TokenNames(tokenizer)
    rows = []
    for step, (row, token) in enumerate(zip(scores, chosen.tolist(), strict=True)):
        logprobs = log_softmax(row, f"step {step}")
        better = np.count_nonzero(logprobs > logprobs[token])
        tied_before = np.count_nonzero(logprobs[:token] == logprobs[token])
        choices = [
            {"token_id": i, "token": names[i], "probability": float(np.exp(logprobs[i]))}
            for i in top_indices(logprobs, k).tolist()
        ]
        rows.append(
            {
                "step": step,
                "token_id": token,
                "token": names[token],
                "logprob": float(logprobs[token]),
                "rank": int(better + tied_before),
                "choices": choices,
            }
        )
    return rows


def choices_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """Format the result of top_choices as a table with one row per step and one column per choice, the
    chosen one in bold.

    Follows chapter 5 of "Natural Language Processing with Transformers" (Tunstall, von Werra and Wolf
    2022). If a chosen token is not among the choices, a last column shows it.

    Returns:
        A table for `rich.print`.
    """
    from rich.table import Table
    from rich.text import Text

    width = max((len(row["choices"]) for row in rows), default=0)
    table = Table("step", *(f"choice {i + 1}" for i in range(width)), box=None, pad_edge=False, header_style="bold")
    listed = [any(choice["token_id"] == row["token_id"] for choice in row["choices"]) for row in rows]
    if not all(listed):
        table.add_column("chosen")
    for row, is_listed in zip(rows, listed, strict=True):
        cells = [
            Text(
                f"{token_label(choice['token'], choice['token_id'])} ({choice['probability']:.2%})",
                style="bold" if choice["token_id"] == row["token_id"] else "",
            )
            for choice in row["choices"]
            if choice["probability"] > 0  # others were ruled out
        ]
        cells += [Text("")] * (width - len(cells))
        if not is_listed:
            label = token_label(row["token"], row["token_id"])
            cells.append(Text(f"{label} ({np.exp(row['logprob']):.2%}, rank {row['rank']})", style="bold"))
        table.add_row(str(row["step"]), *cells)
    return table


class TokenNames:
    """Texts of tokens by id, with their leading space; an incomplete character is shown as "�"."""

    def __init__(self, tokenizer: Any = None):
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
    """Return a token's text on one line with visible spaces and line breaks, or its id if it has no text."""
    return repr(token) if token else f"#{token_id}"


def log_softmax(logits: Array, name: str) -> np.ndarray:
    """Return log probabilities, float64 [vocab].

    Args:
        logits: float [vocab].
        name: What the logits belong to, for the error message.

    Raises:
        InputError: The logits contain NaN or infinity, or all of them are -inf.
    """
    logits = np.asarray(logits).astype(np.float64)
    highest = logits.max(initial=-np.inf)
    if not np.isfinite(highest):
        raise InputError(
            f"the largest logit of {name} is {highest}, but it must be finite: every token was ruled out, or the model "
            "produced NaN or infinity"
        )
    shifted = logits - highest
    return shifted - np.log(np.exp(shifted).sum())


def top_indices(values: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k largest values in descending order, ties by lower index: int [min(k, n)]."""
    k = min(k, len(values))
    if k == 0:
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
    return candidates[np.argsort(-values[candidates], kind="stable")][:k]
