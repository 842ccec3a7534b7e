"""Beam search, beam sampling and diverse beam search, as Transformers 5 has them.

Its ``GenerationMixin._beam_search`` is followed to the letter, for libraries disagree on when to stop and which ends count.
A prompt's beams are tokens of one row (see duonlp.generation.strategies.search): when beams change places only the small table of
``ancestors`` does.

Diverse beam search (Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424) is one beam search a group, the groups one
after the other at each step; a token costs ``diversity_penalty`` for every beam of an earlier group that took it.
"""

from duonlp.generation import threefry
from duonlp.generation.strategies.search import Search, State

HOPELESS = -1.0e9
"""Added to scores that must not win; finite, so that among them order stays."""


def start(search: Search) -> State:
    """The first new token of every beam."""
    ops, plan = search.ops, search.plan
    logits, _, cache = search.prefill(plan.room * plan.beams)
    prompts, beams = search.prompts, plan.beams // plan.groups
    shape = (prompts, beams)
    ids = search.empty_ids(prompts * beams)
    ids = ops.reshape(ids, (*shape, ids.shape[1]))
    # Only the first beam counts at first, or all would choose the same tokens.
    first = ops.expand_dims(ops.arange(beams) == 0, 0)
    group = {
        "ids": ids,
        "scores": ops.broadcast_to(ops.where(first, ops.full((1, beams), 0.0, "float32"), HOPELESS), shape),
        "parents": ops.full((*shape, plan.room), -1, "int32"),
        "stop_state": ops.reshape(search.stop_states(prompts * beams), shape),
        "token": ops.full(shape, 0, "int32"),
        "improvable": ops.full((prompts, 1), True, "bool"),
        "goes_on": ops.cast(True, "bool"),
        "ended": ops.full(shape, False, "bool"),
        "ended_ids": ids,
        "ended_scores": ops.full(shape, HOPELESS, "float32"),
        "ended_parents": ops.full((*shape, plan.room), -1, "int32"),
    }
    if plan.logprobs:
        group |= {name: ops.full((*shape, plan.room), 0.0, "float32") for name in ("logprobs", "ended_logprobs")}
    state = {
        "n": ops.cast(0, "int32"),
        "cache": cache,
        "ancestors": ops.full((prompts, plan.beams, plan.room), -1, "int32"),
        "groups": {f"group_{g}": dict(group) for g in range(plan.groups)},
    } | search.recorders(prompts * plan.beams, logits.shape[-1])
    logits = ops.broadcast_to(ops.expand_dims(logits, 1), (prompts, plan.beams, logits.shape[-1]))
    return choose(search, state, logits)


def unfinished(search: Search, state: State):
    """Whether a group may still find something better."""
    ops = search.ops
    return ops.any(ops.stack([group["goes_on"] for group in state["groups"].values()], 0))


def step(search: Search, state: State) -> State:
    """One more token for every beam."""
    ops, plan = search.ops, search.plan
    prompts, beams, room = search.prompts, plan.beams, plan.room
    last = state["n"] - 1
    # The slot of beam j at step i is i * beams + j; a beam sees its own slot and those of its ancestors.
    own = ops.broadcast_to(ops.reshape(ops.arange(beams), (1, beams, 1)), (prompts, beams, 1))
    ancestors = ops.update(state["ancestors"], own, (0, 0, last))
    visible = ops.expand_dims(ancestors, 3) == ops.reshape(ops.arange(beams), (1, 1, 1, beams))
    visible = ops.reshape(visible, (prompts, beams, room * beams))
    tokens = ops.concat([group["token"] for group in state["groups"].values()], 1)
    logits, _, cache = search.feed(tokens, visible, state["cache"], last * beams, ops.reshape(last, (1,)))
    return choose(search, state | {"cache": cache, "ancestors": ancestors}, logits)


def choose(search: Search, state: State, logits) -> State:
    """The state with the next token of every beam in it; logits [prompts, beams, V]."""
    ops, plan, n = search.ops, search.plan, state["n"]
    prompts, beams, vocabulary = logits.shape
    size = beams // plan.groups
    groups, parents, processed, taken = {}, [], [], ops.full((prompts, vocabulary), 0.0, "float32")
    for g, (name, group) in enumerate(state["groups"].items()):
        scores = ops.log_softmax(logits[:, g * size : (g + 1) * size])
        if plan.groups > 1:
            scores = scores - search.values["diversity_penalty"] * ops.expand_dims(taken, 1)
        ids = ops.reshape(group["ids"], (prompts * size, group["ids"].shape[-1]))
        scores = search.process(ids, ops.reshape(scores, (prompts * size, vocabulary)), search.columns + n)
        scores = ops.reshape(scores, (prompts, size, vocabulary))
        groups[name], parent = extend(search, group, scores, n, g * size)
        parents.append(parent + g * size)
        processed.append(scores)
        for j in range(size if plan.groups > 1 else 0):
            hit = ops.expand_dims(ops.arange(vocabulary), 0) == groups[name]["token"][:, j : j + 1]
            taken = taken + ops.cast(hit, "float32")
    ancestors = ops.take_along(state["ancestors"], ops.concat(parents, 1), 1)
    new = {"n": n + 1, "groups": groups, "ancestors": ancestors}
    flat = (prompts * beams, vocabulary)
    scores = ops.reshape(ops.concat(processed, 1), flat)
    return state | new | search.record(state, n, scores, ops.reshape(logits, flat))


def extend(search: Search, group: State, scores, n, first_beam: int):
    """One step of one group.

    Args:
        scores: float32 [prompts, beams, V], the processed log probabilities of the next token.
        n: how many tokens are new so far.
        first_beam: of the group, among all beams.

    Returns:
        the group's next state; and int32 [prompts, beams], which beam each of its beams now goes on from.
    """
    ops, plan, v = search.ops, search.plan, search.values
    prompts, beams, vocabulary = scores.shape
    total = scores + ops.expand_dims(group["scores"], 2)
    candidate, parent, token = best(search, total, n, first_beam)  # [prompts, candidates]
    count = plan.candidates

    inherited = ("ids", "parents", "stop_state", *(("logprobs",) if plan.logprobs else ()))
    branch = {name: ops.take_along(group[name], parent, 1) for name in inherited}
    offset = ops.expand_dims(ops.arange(prompts) * plan.beams + first_beam, 1)
    branch["ids"] = ops.update(branch["ids"], ops.expand_dims(token, 2), (0, 0, search.columns + n))
    branch["parents"] = ops.update(branch["parents"], ops.expand_dims(parent + offset, 2), (0, 0, n))
    if plan.logprobs:
        flat = ops.reshape(scores, (prompts, beams * vocabulary))
        logprob = ops.take_along(flat, parent * vocabulary + token, 1)
        branch["logprobs"] = ops.update(branch["logprobs"], ops.expand_dims(logprob, 2), (0, 0, n))
    ends, branch["stop_state"] = search.ends(token, branch["stop_state"])
    ends = ends | (n + 1 >= v["new_tokens"])
    branch["token"] = token

    # The best that have not ended go on.
    running = candidate + ops.where(ends, HOPELESS, ops.full(ends.shape, 0.0, "float32"))
    running, chosen = ops.top_k(running, beams)
    new = {name: ops.take_along(value, chosen, 1) for name, value in branch.items()}
    new["scores"] = running
    parent = ops.take_along(parent, chosen, 1)

    # Of those that have ended, the first ``beams`` candidates may take a place among the results.
    full = ops.all(group["ended"], axis=1, keepdims=True) & v["stop_when_full"]
    closed = full | ~group["improvable"]
    just_ended = ends & ops.expand_dims(ops.arange(count) < beams, 0)
    final = candidate / ops.take(v["length_divisors"], n + 1)
    zero = ops.full(final.shape, 0.0, "float32")
    final = final + ops.where(closed, HOPELESS, zero) + ops.where(just_ended, zero, HOPELESS)
    ended_scores, chosen = ops.top_k(ops.concat([group["ended_scores"], final], 1), beams)
    new["ended_scores"] = ended_scores
    new["ended"] = ops.take_along(ops.concat([group["ended"], just_ended], 1), chosen, 1)
    for name in ("ids", "parents", *(("logprobs",) if plan.logprobs else ())):
        merged = ops.concat([group[f"ended_{name}"], branch[name]], 1)
        new[f"ended_{name}"] = ops.take_along(merged, chosen, 1)

    # Can a running beam still beat the worst result?
    length = ops.where(v["hope_for_longest"], v["new_tokens"], n + 1)
    hope = running[:, :1] / ops.take(v["length_divisors"], length)
    worst = ops.where(new["ended"], ops.min(ended_scores, axis=1, keepdims=True), HOPELESS)
    new["improvable"] = group["improvable"] & ops.any(hope > worst, axis=1, keepdims=True)
    filler = ops.expand_dims(v["filler"], 1)
    improvable = ops.any(new["improvable"] & ~filler)
    all_full = ops.all(new["ended"] | filler) & v["stop_when_full"]
    new["goes_on"] = group["goes_on"] & improvable & ~all_full & ~ops.all(ends | filler)
    # A group that has stopped waits for the others as it is.
    going = group["goes_on"]
    new = {name: ops.where(going, value, group[name]) for name, value in new.items()}
    return new, parent


def best(search: Search, total, n, first_beam: int):
    """The candidates of a step: the best continuations of all beams together, or so many drawn without replacement.

    Args:
        total: float32 [prompts, beams, V]: the log probabilities of the texts with each next token.

    Returns:
        their log probabilities, beams and tokens, each [prompts, candidates].
    """
    ops, plan = search.ops, search.plan
    prompts, beams, vocabulary = total.shape
    count, each = plan.candidates, min(plan.candidates, vocabulary)
    if plan.do_sample:
        numbers = ops.arange(beams * vocabulary) + first_beam * vocabulary
        noise = threefry.gumbel(ops, search.values["keys"], n, ops.expand_dims(numbers, 0))
        order = total + ops.reshape(noise, total.shape)
    else:
        order = total
    # First in every beam, then among beams: sorting short rows is quicker, and the order of equals stays.
    order, token = ops.top_k(order, each)  # [prompts, beams, each]
    _, chosen = ops.top_k(ops.reshape(order, (prompts, beams * each)), count)
    token = ops.take_along(ops.reshape(token, (prompts, beams * each)), chosen, 1)
    parent = chosen // each
    flat = ops.reshape(total, (prompts, beams * vocabulary))
    return ops.take_along(flat, parent * vocabulary + token, 1), parent, token


def result(search: Search, state: State) -> State:
    """New ids [prompts * returned, room], best first, their scores, and what was recorded."""
    ops, plan = search.ops, search.plan
    groups = list(state["groups"].values())
    scores, chosen = ops.top_k(ops.concat([group["ended_scores"] for group in groups], 1), plan.returned)

    def pick(name):
        found = ops.take_along(ops.concat([group[f"ended_{name}"] for group in groups], 1), chosen, 1)
        return ops.reshape(found, (search.prompts * plan.returned, found.shape[-1]))

    new, parents = pick("ids")[:, search.columns :], pick("parents")
    lengths = ops.sum(ops.cast(parents >= 0, "int32"), axis=1)
    real = ops.repeat(~search.values["filler"], plan.returned, 0)
    out = {
        "ids": ops.where(new < 0, search.values["padding"], new),
        "steps": ops.max(ops.where(real, lengths, 0), axis=0),
        "sequences_scores": ops.reshape(scores, (search.prompts * plan.returned,)),
        "beam_indices": parents,
    }
    if plan.logprobs:
        out["logprobs"] = pick("logprobs")
    return out | {name: state[name] for name in ("scores", "logits") if name in state}
