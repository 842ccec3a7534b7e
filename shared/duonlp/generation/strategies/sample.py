"""Greedy decoding and sampling: one token after the other, each the most likely or drawn."""

from duonlp.generation import threefry
from duonlp.generation.strategies.search import Search, State, map_cache

SLACK = 16
"""Candidates beyond top_k: tokens as likely as the last of them are kept, too."""

LARGE = 1024
"""From this vocabulary on, drawing looks at the candidates of top_k alone: sorting all of it takes as long as a layer."""


def start(search: Search) -> State:
    """The first new token of every text."""
    ops, plan = search.ops, search.plan
    logits, _, cache = search.prefill(plan.room)
    logits = search.samples_of(logits)
    if plan.samples > 1:
        cache = map_cache(search.samples_of, cache)
    state = empty(search, logits, cache) | {"token": ops.full(logits.shape[:1], 0, "int32")}
    return choose(search, state, logits)


def empty(search: Search, logits, cache) -> State:
    """The state of texts, one for each row of logits [rows, V], that have no new token yet."""
    ops, plan, rows = search.ops, search.plan, logits.shape[0]
    state = {
        "n": ops.cast(0, "int32"),
        "ids": search.empty_ids(rows),
        "done": search.samples_of(search.values["filler"]),
        "stop_state": search.stop_states(rows),
        "cache": cache,
    } | search.recorders(rows, logits.shape[-1])
    if plan.logprobs:
        state["logprobs"] = ops.full((rows, plan.room), 0.0, "float32")
    return state


def unfinished(search: Search, state: State):
    """Whether a text has not ended and may grow."""
    return (state["n"] < search.values["new_tokens"]) & ~search.ops.all(state["done"])


def step(search: Search, state: State) -> State:
    """One more token."""
    ops = search.ops
    last = state["n"] - 1
    tokens = ops.expand_dims(state["token"], 1)
    logits, cache = search.feed_in_order(tokens, state["cache"], last, search.plan.room)
    return choose(search, state | {"cache": cache}, logits[:, 0])


def choose(search: Search, state: State, logits) -> State:
    """The state with the next token of every text in it; logits [rows, V]."""
    token, logprob, scores = pick(search, state["ids"], logits, state["n"], search.values.get("keys"))
    token, state = settle(search, state, token, logprob, scores, logits)
    return state | {"token": token}


def settle(search: Search, state: State, token, logprob, scores, logits):
    """Write down what was chosen.

    Args:
        token: int32 [rows]; logprob: float32 [rows], or None where none is recorded.
        scores, logits: float32 [rows, V], what it was chosen by, and the model's own.

    Returns:
        the tokens, padding for texts that had ended, and the state with them in it.
    """
    ops, plan, n, done = search.ops, search.plan, state["n"], state["done"]
    token = ops.where(done, search.values["padding"], token)
    ended, stop_state = search.ends(token, state["stop_state"])
    new = {
        "n": n + 1,
        "ids": ops.update(state["ids"], ops.expand_dims(token, 1), (0, search.columns + n)),
        "done": done | ended,
        "stop_state": stop_state,
    }
    if plan.logprobs:
        logprob = ops.where(done, 0.0, logprob)
        new["logprobs"] = ops.update(state["logprobs"], ops.expand_dims(logprob, 1), (0, n))
    return token, state | new | search.record(state, n, scores, logits)


def pick(search: Search, ids, logits, n, keys):
    """The next tokens.

    Args:
        ids: int32 [rows, columns + room].
        logits: float32 [rows, V].
        n: how many tokens are new.
        keys: uint32 [rows, 2], the random numbers of every row; None for the most likely token.

    Returns:
        tokens int32 [rows], their log probabilities [rows], and the processed logits they were chosen by.
    """
    ops, plan, v = search.ops, search.plan, search.values
    column = search.columns + n
    for process in plan.before_warpers(ops, v):
        logits = process(ids, logits, column)
    sizes = {name: dict(sizes) for name, sizes in plan.warpers}
    if "top_k" in sizes and "top_h" not in sizes and logits.shape[-1] >= LARGE and not plan.scores:
        # What comes after top_k needs to see no other tokens than those it leaves. The noise below belongs to the token,
        # so that the same one is drawn as from the whole vocabulary.
        logits, tokens = ops.top_k(logits, max(sizes["top_k"].values()) + SLACK)
    else:
        tokens = ops.broadcast_to(ops.expand_dims(ops.arange(logits.shape[-1]), 0), logits.shape)
    for process in plan.after_processors(ops, v):
        logits = process(ids, logits, column)
    perturbed = logits + threefry.gumbel(ops, keys, n, tokens) if plan.do_sample else logits
    choice = ops.expand_dims(ops.argmax(perturbed), 1)  # [rows, 1]
    logprob = ops.take_along(ops.log_softmax(logits), choice, -1)[:, 0] if plan.logprobs else None
    return ops.take_along(tokens, choice, -1)[:, 0], logprob, logits


def result(search: Search, state: State) -> State:
    """New ids [rows, room] and what was recorded."""
    ops = search.ops
    new = state["ids"][:, search.columns :]
    out = {"ids": ops.where(new < 0, search.values["padding"], new), "steps": state["n"]}
    return out | {name: state[name] for name in ("logprobs", "scores", "logits") if name in state}
