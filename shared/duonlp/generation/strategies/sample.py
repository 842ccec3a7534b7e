"""Greedy decoding and sampling: one token at a time, the most likely one or a random draw."""

from duonlp.generation import threefry
from duonlp.generation.strategies.search import Cache, Search, State, map_cache
from duonlp.typing import Array

TIES = 16
"""Candidates beyond top_k, since tokens tied with the last of the k are kept, too."""

LARGE_VOCABULARY = 1024
"""Vocabulary size from which only top_k's candidates are processed: sorting all tokens costs as much as a layer."""


def start(search: Search) -> State:
    """Run the prompts and choose the first new token of every text.

    Returns:
        The state, with these entries:

        - n: int32 [], number of new tokens.
        - ids: int32 [texts, columns + room], -1 on padding and on tokens to come, INVALID where the logits were no numbers.
        - token: int32 [texts], the last token, not yet fed to the model.
        - done: bool [texts], whether the text has ended.
        - stop_state: int32 [texts], state of the stop string automaton.
        - cache: the model's cache, room slots after the prompt.
        - logprobs: float32 [texts, room], if recorded.
        - scores, logits: float32 [room, texts, V], processed and raw logits, if recorded.
    """
    ops, plan = search.ops, search.plan
    logits, _, cache = search.prefill()
    logits = search.repeat_samples(logits)
    if plan.samples > 1:
        cache = map_cache(search.repeat_samples, cache)
    state = initial_state(search, logits, cache) | {"token": ops.full(logits.shape[:1], 0, "int32")}
    return choose_tokens(search, state, logits)


def initial_state(search: Search, logits: Array, cache: Cache) -> State:
    """Return the state of :func:`start`, without ``token``, of texts that have no new token yet; logits: [texts, V]."""
    ops, plan, rows = search.ops, search.plan, logits.shape[0]
    state = {
        "n": ops.cast(0, "int32"),
        "ids": search.initial_ids(rows),
        "done": search.repeat_samples(search.values["filler"]),
        "stop_state": search.initial_stop_states(rows),
        "cache": cache,
    } | search.empty_records(rows, logits.shape[-1])
    if plan.logprobs:
        state["logprobs"] = ops.full((rows, plan.room), 0.0, "float32")
    return state


def unfinished(search: Search, state: State) -> Array:
    """Return whether any text has neither ended nor reached its maximum length."""
    return (state["n"] < search.values["new_tokens"]) & ~search.ops.all(state["done"])


def step(search: Search, state: State) -> State:
    """Feed the last tokens and choose the next ones."""
    ops = search.ops
    last = state["n"] - 1
    tokens = ops.expand_dims(state["token"], 1)
    logits, cache = search.feed_in_order(tokens, state["cache"], last, search.plan.room)
    return choose_tokens(search, state | {"cache": cache}, logits[:, 0])


def choose_tokens(search: Search, state: State, logits: Array) -> State:
    """Choose the next token of every text and return the updated state; logits: [texts, V]."""
    token, logprob, scores = select_tokens(search, state["ids"], logits, state["n"], search.values.get("keys"))
    token, state = append_tokens(search, state, token, logprob, scores, logits)
    return state | {"token": token}


def append_tokens(
    search: Search, state: State, token: Array, logprob: Array | None, scores: Array, logits: Array
) -> tuple[Array, State]:
    """Append the chosen tokens to their texts.

    Args:
        search: The call.
        state: State of :func:`start`.
        token: int32 [texts].
        logprob: float32 [texts], or None if not recorded.
        scores: float32 [texts, V], the processed logits.
        logits: float32 [texts, V], the raw logits.

    Returns:
        The appended tokens, padding for texts that had ended, and the updated state.
    """
    ops, plan, n, done = search.ops, search.plan, state["n"], state["done"]
    token = ops.where(done, search.values["padding"], search.mark_invalid(token, logits))
    ended, stop_state = search.detect_ends(token, state["stop_state"])
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


def select_tokens(
    search: Search, ids: Array, logits: Array, n: Array, keys: Array | None
) -> tuple[Array, Array | None, Array]:
    """Process the logits and select the next tokens.

    Args:
        search: The call.
        ids: int32 [rows, columns + room].
        logits: float32 [rows, V].
        n: int32, number of new tokens so far.
        keys: uint32 [rows, 2], random keys of the rows; None without sampling.

    Returns:
        Tokens int32 [rows], their log probabilities [rows] or None if not recorded, and the processed logits.
    """
    ops, plan, v = search.ops, search.plan, search.values
    column = search.columns + n
    for process in plan.text_processors(ops, v):
        logits = process(ids, logits, column)
    sizes = {name: dict(arguments) for name, arguments in plan.warpers}
    if "top_k" in sizes and "top_h" not in sizes and logits.shape[-1] >= LARGE_VOCABULARY and not plan.scores:
        # Processors after top_k need only the tokens it keeps. The noise below depends on the token id, so the draw is the
        # same as from the whole vocabulary.
        logits, tokens = ops.top_k(logits, max(sizes["top_k"].values()) + TIES)
    else:
        tokens = ops.broadcast_to(ops.expand_dims(ops.arange(logits.shape[-1]), 0), logits.shape)
    for process in plan.distribution_processors(ops, v):
        logits = process(ids, logits, column)
    perturbed = logits + threefry.gumbel(ops, keys, n, tokens) if plan.do_sample else logits
    choice = ops.expand_dims(ops.argmax(perturbed), 1)  # [rows, 1]
    logprob = ops.take_along(ops.log_softmax(logits), choice, -1)[:, 0] if plan.logprobs else None
    return ops.take_along(tokens, choice, -1)[:, 0], logprob, logits


def result(search: Search, state: State) -> State:
    """Return new ids [texts, room], the number of steps, and what was recorded."""
    ops = search.ops
    new = state["ids"][:, search.columns :]
    out = {"ids": ops.where(new == -1, search.values["padding"], new), "steps": state["n"]}
    return out | {name: state[name] for name in ("logprobs", "scores", "logits") if name in state}
