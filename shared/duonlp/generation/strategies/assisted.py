"""Speculative decoding: several tokens are proposed, one pass of the model says how many of them it would have chosen.

Proposals come from a draft model (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192) or from where the text has
already said the same (prompt lookup: Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding).

The output is the model's own, to the token, drawn ones included: the random numbers belong to step and token
(duonlp.generation.threefry), so what the model draws at a step does not depend on how it got there. The draft model draws
with the same numbers, which makes it agree as often as it can.
"""

from dataclasses import replace

from duonlp.generation.strategies import sample
from duonlp.generation.strategies.search import Search, State


def start(search: Search) -> State:
    """The first new token."""
    ops, plan = search.ops, search.plan
    # Proposals may overshoot the room.
    wide = replace(search, plan=replace(plan, room=plan.room + plan.draft + 1))
    state = sample.start(wide)
    if search.draft is not None:
        _, _, state["draft_cache"] = replace(wide, model=search.draft).prefill(wide.plan.room)
    return state | {"passes": ops.cast(1, "int32")}


def unfinished(search: Search, state: State):
    """Whether the text has not ended and may grow."""
    return sample.unfinished(search, state)


def step(search: Search, state: State) -> State:
    """As many more tokens as the proposals are right about, and one."""
    ops, plan, v = search.ops, search.plan, search.values
    n, count = state["n"], plan.draft
    columns = state["ids"].shape[1]
    room = columns - search.columns
    if plan.ngram:
        proposals = look_up(search, state["ids"], search.columns + n)  # [1, count]
    else:
        proposals, state = propose(search, state)
    tokens = ops.concat([ops.expand_dims(state["token"], 1), proposals], 1)  # [1, count + 1]
    logits, cache = search.feed_in_order(tokens, state["cache"], n - 1, room)

    # What the model chooses after each proposal, should all before it be right.
    ids = ops.update(state["ids"], proposals, (0, search.columns + n))
    position = ops.expand_dims(ops.arange(columns), 0)
    right, added = ops.cast(True, "bool"), ops.cast(0, "int32")
    done, stop_state, token = state["done"], state["stop_state"], state["token"]
    state, chosen = dict(state), []
    for i in range(count + 1):
        text = ops.where(position < search.columns + n + i, ids, -1)
        choice, logprob, scores = sample.pick(search, text, logits[:, i], n + i, v.get("keys"))
        counts = right & ~done[0] & (n + i < v["new_tokens"])  # this one is a token of the text
        ended, after = search.ends(choice, stop_state)
        done = ops.where(counts, done | ended, done)
        stop_state = ops.where(counts, after, stop_state)
        token = ops.where(counts, choice, token)
        added = added + ops.cast(counts, "int32")
        chosen.append(choice)
        # Later ones that do not count are overwritten, or cut off at the end.
        for name, value in search.record(state, n + i, scores, logits[:, i]).items():
            state[name] = ops.where(counts, value, state[name])
        if plan.logprobs:
            value = ops.update(state["logprobs"], ops.expand_dims(logprob, 1), (0, n + i))
            state["logprobs"] = ops.where(counts, value, state["logprobs"])
        if i < count:
            right = right & (choice[0] == proposals[0, i])
    ids = ops.update(ids, ops.stack(chosen, 1), (0, search.columns + n))
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


def look_up(search: Search, ids, length):
    """Proposals int32 [1, count]: what followed the first place where the text's last tokens stood before; the longest
    match counts, of max_matching_ngram_size tokens at most. Where there is none, the last token again, in vain."""
    ops, plan = search.ops, search.plan
    columns, count = ids.shape[1], plan.draft
    starts = ops.arange(columns)
    found, place = ops.cast(False, "bool"), ops.cast(0, "int32")
    for size in range(plan.ngram, 0, -1):
        match = starts + size < length  # something follows
        for i in range(size):
            wanted = ops.take(ids[0], ops.maximum(length - size + i, 0))
            shifted = ops.concat([ids[0, i:], ops.full((i,), -1, "int32")], 0)
            match = match & (shifted == wanted) & (wanted >= 0)
        first = ops.argmax(ops.cast(match, "int32")) + size
        place = ops.where(found, place, first)
        found = found | ops.any(match)
    at = ops.minimum(place + ops.arange(count), columns - 1)
    follows = ops.take(ids[0], at)
    last = ops.take(ids[0], length - 1)
    return ops.expand_dims(ops.where(found & (at < length), follows, last), 0)


def propose(search: Search, state: State):
    """Proposals int32 [1, count] of the draft model, and the state with its cache."""
    ops, plan, v = search.ops, search.plan, search.values
    draft = replace(search, model=search.draft)
    n, columns = state["n"], state["ids"].shape[1]
    room = columns - search.columns

    def draw(logits, cache, ids, at):
        token, _, _ = sample.pick(draft, ids, logits[:, -1], at, v.get("keys"))
        return {
            "at": at + 1,
            "token": token,
            "cache": cache,
            "ids": ops.update(ids, ops.expand_dims(token, 1), (0, search.columns + at)),
        }

    def more(inner):
        tokens = ops.expand_dims(inner["token"], 1)
        logits, cache = draft.feed_in_order(tokens, inner["cache"], inner["at"] - 1, room)
        return draw(logits, cache, inner["ids"], inner["at"])

    # The last two tokens: when all proposals were right, the draft model has not run the last of them yet.
    before = ops.take(state["ids"][0], search.columns + n - 2)
    tokens = ops.stack([ops.reshape(before, (1,)), state["token"]], 1)
    logits, cache = draft.feed_in_order(tokens, state["draft_cache"], n - 2, room)
    inner = draw(logits, cache, state["ids"], n)
    inner = ops.while_loop(lambda inner: inner["at"] < n + plan.draft, more, inner)
    at = search.columns + n + ops.arange(plan.draft)
    return ops.expand_dims(ops.take(inner["ids"][0], at), 0), state | {"draft_cache": inner["cache"]}


def result(search: Search, state: State) -> State:
    """New ids [1, room + more] and what was recorded; ``passes`` of the model over the text."""
    return sample.result(search, state) | {"passes": state["passes"]}
