"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation",
https://arxiv.org/abs/2202.06417): among the top_k most likely tokens, the one that is likely and unlike what was said.

    token = argmax over candidates v of (1 - alpha) p(v) - alpha max_j cosine(h_v, h_j)

with h the last hidden states: of the candidate as it would be, and of every token of the text. The candidates are run
together, as tokens of one row that do not see each other.
"""

from duonlp.generation.strategies import sample
from duonlp.generation.strategies.search import Search, State


def start(search: Search) -> State:
    """The prompts run, nothing chosen yet."""
    ops, plan = search.ops, search.plan
    logits, hidden, cache = search.prefill(plan.room * plan.candidates)
    prompts = search.prompts
    hidden = _unit(ops, hidden[:prompts])
    return sample.empty(search, logits, cache) | {
        "next_logits": logits,
        "path": ops.full((prompts, plan.room), -1, "int32"),  # which candidate was chosen at each step
        "hidden": ops.concat([hidden, ops.full((prompts, plan.room, hidden.shape[-1]), 0.0, "float32")], 1),
    }


def unfinished(search: Search, state: State):
    """Whether a text has not ended and may grow."""
    return sample.unfinished(search, state)


def step(search: Search, state: State) -> State:
    """One more token."""
    ops, plan, v = search.ops, search.plan, search.values
    n, k, room, prompts = state["n"], plan.candidates, plan.room, search.prompts
    scores = search.process(state["ids"], state["next_logits"], search.columns + n)
    log_probabilities = ops.log_softmax(scores)
    candidate, tokens = ops.top_k(log_probabilities, k)  # [prompts, k]

    # The slot of candidate j at step i is i * k + j.
    steps, own = ops.reshape(ops.arange(room), (1, 1, room, 1)), ops.arange(k)
    chosen = ops.reshape(state["path"], (prompts, 1, room, 1)) == ops.reshape(own, (1, 1, 1, k))
    itself = (steps == n) & (ops.reshape(own, (1, k, 1, 1)) == ops.reshape(own, (1, 1, 1, k)))
    visible = ops.reshape(ops.broadcast_to(chosen | itself, (prompts, k, room, k)), (prompts, k, room * k))
    logits, hidden, cache = search.feed(tokens, visible, state["cache"], n * k, ops.reshape(n, (1,)))

    hidden = _unit(ops, hidden[:prompts])  # [prompts, k, D]
    similar = ops.matmul(hidden, ops.transpose(state["hidden"], (0, 2, 1)))  # [prompts, k, columns + room]
    real = ops.expand_dims(state["ids"] >= 0, 1)
    degeneration = ops.max(ops.where(real, similar, -1.0), axis=2)
    alpha = v["penalty_alpha"]
    choice = ops.expand_dims(ops.argmax((1 - alpha) * ops.exp(candidate) - alpha * degeneration), 1)  # [prompts, 1]

    token, logprob = (ops.take_along(x, choice, 1)[:, 0] for x in (tokens, candidate))
    _, settled = sample.settle(search, state, token, logprob, scores, state["next_logits"])
    return settled | {
        "cache": cache,
        "next_logits": ops.take_along(logits, choice, 1)[:, 0],
        "path": ops.update(state["path"], choice, (0, n)),
        "hidden": ops.update(state["hidden"], ops.take_along(hidden, choice, 1), (0, search.columns + n, 0)),
    }


def result(search: Search, state: State) -> State:
    """New ids [prompts, room] and what was recorded."""
    return sample.result(search, state)


def _unit(ops, hidden):
    """Vectors of length one."""
    hidden = ops.cast(hidden, "float32")
    return hidden / ops.sqrt(ops.sum(hidden * hidden, -1, keepdims=True))
