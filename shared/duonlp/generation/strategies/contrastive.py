"""Contrastive search: among the top_k most likely tokens, choose one that is likely and unlike the text so far.

    token = argmax over candidates v of (1 - alpha) p(v) - alpha max_j cosine(h_v, h_j)

where h are the last hidden states of the candidate and of every token of the text. The candidates run
together, as tokens of one row that do not see each other.

Su et al. 2022, "A contrastive framework for neural text generation", https://arxiv.org/abs/2202.06417.
"""

from duonlp.generation.strategies import sample
from duonlp.generation.strategies.search import Search, State
from duonlp.typing import Array, Ops


def start(search: Search) -> State:
    """Run the prompts; no token is chosen yet.

    Returns:
        The state: the entries of :func:`duonlp.generation.strategies.sample.start` except ``token``, with
        room * candidates cache slots after the prompt, and:

        - next_logits: float32 [prompts, V], raw logits of the next token.
        - path: int32 [prompts, room], index of the candidate chosen at each step; -1 for steps to come.
        - hidden: float32 [prompts, columns + room, D], unit-length hidden states of the text; 0 for tokens
          to come.
    """
    ops, plan = search.ops, search.plan
    logits, hidden, cache = search.prefill()
    prompts = search.prompts
    hidden = _normalize(ops, hidden[:prompts])
    return sample.initial_state(search, logits, cache) | {
        "next_logits": logits,
        "path": ops.full((prompts, plan.room), -1, "int32"),
        "hidden": ops.concat([hidden, ops.full((prompts, plan.room, hidden.shape[-1]), 0.0, "float32")], 1),
    }


def unfinished(search: Search, state: State) -> Array:
    """Return whether any text has neither ended nor reached its maximum length."""
    return sample.unfinished(search, state)


def step(search: Search, state: State) -> State:
    """Run the candidates for the next token and choose one."""
    ops, plan, v = search.ops, search.plan, search.values
    n, k, room, prompts = state["n"], plan.candidates, plan.room, search.prompts
    scores = search.process(state["ids"], state["next_logits"], search.columns + n)
    log_probabilities = ops.log_softmax(scores)
    candidate, tokens = ops.top_k(log_probabilities, k)  # [prompts, k]

    # Candidate j of step i has slot i * k + j. It attends to the chosen candidates of earlier steps and to itself.
    steps, indices = ops.reshape(ops.arange(room), (1, 1, room, 1)), ops.arange(k)
    chosen = ops.reshape(state["path"], (prompts, 1, room, 1)) == ops.reshape(indices, (1, 1, 1, k))
    itself = (steps == n) & (ops.reshape(indices, (1, k, 1, 1)) == ops.reshape(indices, (1, 1, 1, k)))
    visible = ops.reshape(ops.broadcast_to(chosen | itself, (prompts, k, room, k)), (prompts, k, room * k))
    logits, hidden, cache = search.feed(tokens, visible, state["cache"], n * k, ops.reshape(n, (1,)))

    hidden = _normalize(ops, hidden[:prompts])  # [prompts, k, D]
    similarity = ops.matmul(hidden, ops.transpose(state["hidden"], (0, 2, 1)))  # [prompts, k, columns + room]
    real = ops.expand_dims(state["ids"] >= 0, 1)
    degeneration = ops.max(ops.where(real, similarity, -1.0), axis=2)  # [prompts, k]
    alpha = v["penalty_alpha"]
    choice = ops.expand_dims(ops.argmax((1 - alpha) * ops.exp(candidate) - alpha * degeneration), 1)  # [prompts, 1]

    token, logprob = (ops.take_along(x, choice, 1)[:, 0] for x in (tokens, candidate))
    _, appended = sample.append_tokens(search, state, token, logprob, scores, state["next_logits"])
    return appended | {
        "cache": cache,
        "next_logits": ops.take_along(logits, choice, 1)[:, 0],
        "path": ops.update(state["path"], choice, (0, n)),
        "hidden": ops.update(state["hidden"], ops.take_along(hidden, choice, 1), (0, search.columns + n, 0)),
    }


def result(search: Search, state: State) -> State:
    """Return new ids [prompts, room], the number of steps, and what was recorded."""
    return sample.result(search, state)


def _normalize(ops: Ops, hidden: Array) -> Array:
    """Scale vectors to unit length, in float32."""
    hidden = ops.cast(hidden, "float32")
    return hidden / ops.sqrt(ops.sum(hidden * hidden, -1, keepdims=True))
