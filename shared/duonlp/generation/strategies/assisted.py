"""Speculative decoding: propose several tokens, and let one forward pass of the model decide how many of
them to accept.

Proposals come from a draft model (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192) or from an
earlier occurrence of the last tokens (prompt lookup: Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding).

The output equals that of the model alone, when sampling too: random numbers depend on step and token
(duonlp.generation.threefry), so the draw at a step does not depend on how the step was reached. The draft
model draws with the same numbers, which maximizes agreement.
Only with rotary scaling that depends on the longest text of a pass ("dynamic", "longrope"), proposals that first reach beyond
the positions of pretraining may change the pass in which they do.
"""

from dataclasses import replace

from duonlp.generation.strategies import sample
from duonlp.generation.strategies.search import Cache, Search, State
from duonlp.typing import Array


def start(search: Search) -> State:
    """Run the prompt and choose the first new token. There is one text.

    Returns:
        The state: the entries of :func:`duonlp.generation.strategies.sample.start`, with draft + 1 more
        columns of room, since proposals may overshoot, and:

        - draft_cache: the draft model's cache, if there is one.
        - passes: int32 [], number of forward passes of the model.
    """
    ops, plan = search.ops, search.plan
    wide = replace(search, plan=replace(plan, room=plan.room + plan.draft + 1))
    state = sample.start(wide)
    if search.draft is not None:
        _, _, state["draft_cache"] = replace(wide, model=search.draft).prefill()
    return state | {"passes": ops.cast(1, "int32")}


def unfinished(search: Search, state: State) -> Array:
    """Return whether the text has neither ended nor reached its maximum length."""
    return sample.unfinished(search, state)


def step(search: Search, state: State) -> State:
    """Append the proposals that the model accepts, and one more token."""
    ops, plan, v = search.ops, search.plan, search.values
    n, count = state["n"], plan.draft
    columns = state["ids"].shape[1]
    room = columns - search.columns
    if plan.ngram:
        proposals = lookup_proposals(search, state["ids"], search.columns + n)  # [1, count]
    else:
        proposals, state = draft_proposals(search, state)
    tokens = ops.concat([ops.expand_dims(state["token"], 1), proposals], 1)  # [1, count + 1]
    logits, cache = search.feed_in_order(tokens, state["cache"], n - 1, room)

    # The model's choice after each proposal; it counts if the choice at every earlier step was the proposal.
    ids = ops.update(state["ids"], proposals, (0, search.columns + n))
    position = ops.expand_dims(ops.arange(columns), 0)
    accepted, added = ops.cast(True, "bool"), ops.cast(0, "int32")
    done, stop_state, token = state["done"], state["stop_state"], state["token"]
    state, choices = dict(state), []
    for i in range(count + 1):
        text = ops.where(position < search.columns + n + i, ids, -1)
        choice, logprob, scores = sample.select_tokens(search, text, logits[:, i], n + i, v.get("keys"))
        choice = search.mark_invalid(choice, logits[:, i])
        counts = accepted & ~done[0] & (n + i < v["new_tokens"])  # the choice becomes part of the text
        ended, next_stop_state = search.detect_ends(choice, stop_state)
        done = ops.where(counts, done | ended, done)
        stop_state = ops.where(counts, next_stop_state, stop_state)
        token = ops.where(counts, choice, token)
        added = added + ops.cast(counts, "int32")
        choices.append(choice)
        # Only choices that count are recorded; ids of the others are masked below.
        for name, value in search.record(state, n + i, scores, logits[:, i]).items():
            state[name] = ops.where(counts, value, state[name])
        if plan.logprobs:
            value = ops.update(state["logprobs"], ops.expand_dims(logprob, 1), (0, n + i))
            state["logprobs"] = ops.where(counts, value, state["logprobs"])
        if i < count:
            accepted = accepted & (choice[0] == proposals[0, i])
    ids = ops.update(ids, ops.stack(choices, 1), (0, search.columns + n))
    n = n + added
    new = {
        "n": n,
        "ids": ops.where(position < search.columns + n, ids, -1),
        "token": token,
        "done": done,
        "stop_state": stop_state,
        "cache": cache,
        "passes": state["passes"] + 1,
    }
    return state | new


def lookup_proposals(search: Search, ids: Array, length: Array) -> Array:
    """Return int32 [1, draft]: the tokens after the first earlier occurrence of the text's last n-gram.

    The longest matching n-gram counts, up to max_matching_ngram_size tokens. Without a match the last token
    is repeated, a proposal that will usually be rejected.

    Args:
        search: The call.
        ids: int32 [1, columns + room].
        length: int32, number of columns in use.
    """
    ops, plan = search.ops, search.plan
    columns, count = ids.shape[1], plan.draft
    starts = ops.arange(columns)
    matched, place = ops.cast(False, "bool"), ops.cast(0, "int32")
    for size in range(plan.ngram, 0, -1):
        match = starts + size < length  # at least one token follows
        for i in range(size):
            expected = ops.take(ids[0], ops.maximum(length - size + i, 0))
            shifted = ops.concat([ids[0, i:], ops.full((i,), -1, "int32")], 0)
            match = match & (shifted == expected) & (expected >= 0)
        first = ops.argmax(ops.cast(match, "int32")) + size
        place = ops.where(matched, place, first)
        matched = matched | ops.any(match)
    at = ops.minimum(place + ops.arange(count), columns - 1)
    following = ops.take(ids[0], at)
    last = ops.take(ids[0], length - 1)
    return ops.expand_dims(ops.where(matched & (at < length), following, last), 0)


def draft_proposals(search: Search, state: State) -> tuple[Array, State]:
    """Return proposals int32 [1, draft] of the draft model, and the state with its updated cache."""
    ops, plan, v = search.ops, search.plan, search.values
    draft = replace(search, model=search.draft)
    n, columns = state["n"], state["ids"].shape[1]
    room = columns - search.columns

    def draw(logits: Array, cache: Cache, ids: Array, at: Array) -> State:
        token, _, _ = sample.select_tokens(draft, ids, logits[:, -1], at, v.get("keys"))
        return {
            "at": at + 1,
            "token": token,
            "cache": cache,
            "ids": ops.update(ids, ops.expand_dims(token, 1), (0, search.columns + at)),
        }

    def draw_next(inner: State) -> State:
        tokens = ops.expand_dims(inner["token"], 1)
        logits, cache = draft.feed_in_order(tokens, inner["cache"], inner["at"] - 1, room)
        return draw(logits, cache, inner["ids"], inner["at"])

    # Feed the last two tokens: if all proposals were accepted, the draft model has not run the last of them yet.
    before = ops.take(state["ids"][0], search.columns + n - 2)
    tokens = ops.stack([ops.reshape(before, (1,)), state["token"]], 1)
    logits, cache = draft.feed_in_order(tokens, state["draft_cache"], n - 2, room)
    inner = draw(logits, cache, state["ids"], n)
    inner = ops.while_loop(lambda inner: inner["at"] < n + plan.draft, draw_next, inner)
    at = search.columns + n + ops.arange(plan.draft)
    return ops.expand_dims(ops.take(inner["ids"][0], at), 0), state | {"draft_cache": inner["cache"]}


def result(search: Search, state: State) -> State:
    """Return new ids [1, room + draft + 1], the number of steps, what was recorded, and ``passes``."""
    return sample.result(search, state) | {"passes": state["passes"]}
