"""Beam search, beam sampling and diverse beam search, as in Transformers 5.

Follows ``GenerationMixin._beam_search`` exactly, since libraries disagree on when to stop and which ends
count. A prompt's beams are tokens of one row (see duonlp.generation.strategies.search), so reordering beams
changes only the small ``ancestors`` table.

Diverse beam search (Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424) is one beam search per
group; at each step the groups are extended in turn, and a token costs ``diversity_penalty`` for every beam
of an earlier group that chose it.
"""

from duonlp.generation import threefry
from duonlp.generation.strategies.search import INVALID, Search, State
from duonlp.typing import Array

EXCLUDED = -1.0e9
"""Added to scores that must not win. It is finite, so that excluded scores keep their order."""


def start(search: Search) -> State:
    """Run the prompts and choose the first new token of every beam.

    Returns:
        The state, with these entries:

        - n: int32 [], number of new tokens.
        - cache: the model's cache, room * beams slots after the prompt.
        - ancestors: int32 [prompts, beams, room], the beam whose slot at each step a beam descends from; -1
          for steps to come.
        - groups: the state of each beam group, as "group_0", "group_1", ...
        - scores, logits: float32 [room, prompts * beams, V], processed log probabilities and raw logits, if
          recorded.

        The entries of a group, with its number of beams B:

        - ids: int32 [prompts, B, columns + room], -1 on padding and on tokens to come.
        - scores: float32 [prompts, B], sum of log probabilities of each running beam.
        - parents: int32 [prompts, B, room], row of the recorded scores that each token comes from; -1 for
          steps to come.
        - stop_state: int32 [prompts, B], state of the stop string automaton.
        - token: int32 [prompts, B], the last token, not yet fed to the model.
        - improvable: bool [prompts, 1], whether a running beam may still beat the worst finished text.
        - running: bool [], whether the group continues.
        - ended: bool [prompts, B], whether each place among the results holds a finished text.
        - ended_ids, ended_parents: like ids and parents, of the finished texts, best first.
        - ended_scores: float32 [prompts, B], sum of log probabilities / length ** length_penalty of the
          finished texts.
        - logprobs, ended_logprobs: float32 [prompts, B, room], log probability of each token, if recorded.
    """
    ops, plan = search.ops, search.plan
    logits, _, cache = search.prefill()
    prompts, beams = search.prompts, plan.beams // plan.groups
    shape = (prompts, beams)
    ids = search.initial_ids(prompts * beams)
    ids = ops.reshape(ids, (*shape, ids.shape[1]))
    # Only the first beam competes at first; otherwise all beams would choose the same tokens.
    first = ops.expand_dims(ops.arange(beams) == 0, 0)
    group = {
        "ids": ids,
        "scores": ops.broadcast_to(ops.where(first, ops.full((1, beams), 0.0, "float32"), EXCLUDED), shape),
        "parents": ops.full((*shape, plan.room), -1, "int32"),
        "stop_state": ops.reshape(search.initial_stop_states(prompts * beams), shape),
        "token": ops.full(shape, 0, "int32"),
        "improvable": ops.full((prompts, 1), True, "bool"),
        "running": ops.cast(True, "bool"),
        "ended": ops.full(shape, False, "bool"),
        "ended_ids": ids,
        "ended_scores": ops.full(shape, EXCLUDED, "float32"),
        "ended_parents": ops.full((*shape, plan.room), -1, "int32"),
    }
    if plan.logprobs:
        group |= {name: ops.full((*shape, plan.room), 0.0, "float32") for name in ("logprobs", "ended_logprobs")}
    state = {
        "n": ops.cast(0, "int32"),
        "cache": cache,
        "ancestors": ops.full((prompts, plan.beams, plan.room), -1, "int32"),
        "groups": {f"group_{g}": dict(group) for g in range(plan.groups)},
    } | search.empty_records(prompts * plan.beams, logits.shape[-1])
    logits = ops.broadcast_to(ops.expand_dims(logits, 1), (prompts, plan.beams, logits.shape[-1]))
    return extend_beams(search, state, logits)


def unfinished(search: Search, state: State) -> Array:
    """Return whether any group may still find a better text."""
    ops = search.ops
    return ops.any(ops.stack([group["running"] for group in state["groups"].values()], 0))


def step(search: Search, state: State) -> State:
    """Feed the last token of every beam and choose the next ones."""
    ops, plan = search.ops, search.plan
    prompts, beams, room = search.prompts, plan.beams, plan.room
    last = state["n"] - 1
    # Beam j of step i has slot i * beams + j. It attends to its own slot and to those of its ancestors.
    indices = ops.broadcast_to(ops.reshape(ops.arange(beams), (1, beams, 1)), (prompts, beams, 1))
    ancestors = ops.update(state["ancestors"], indices, (0, 0, last))
    visible = ops.expand_dims(ancestors, 3) == ops.reshape(ops.arange(beams), (1, 1, 1, beams))
    visible = ops.reshape(visible, (prompts, beams, room * beams))
    tokens = ops.concat([group["token"] for group in state["groups"].values()], 1)  # [prompts, beams]
    logits, _, cache = search.feed(tokens, visible, state["cache"], last * beams, ops.reshape(last, (1,)))
    return extend_beams(search, state | {"cache": cache, "ancestors": ancestors}, logits)


def extend_beams(search: Search, state: State, logits: Array) -> State:
    """Choose the next token of every beam and return the updated state; logits: [prompts, beams, V]."""
    ops, plan, n = search.ops, search.plan, state["n"]
    prompts, beams, vocabulary = logits.shape
    size = beams // plan.groups
    groups, parents, processed = {}, [], []
    chosen_by_earlier = ops.full((prompts, vocabulary), 0.0, "float32")  # number of beams of earlier groups
    for g, (name, group) in enumerate(state["groups"].items()):
        scores = ops.log_softmax(logits[:, g * size : (g + 1) * size])
        if plan.groups > 1:
            scores = scores - search.values["diversity_penalty"] * ops.expand_dims(chosen_by_earlier, 1)
        ids = ops.reshape(group["ids"], (prompts * size, group["ids"].shape[-1]))
        scores = search.process(ids, ops.reshape(scores, (prompts * size, vocabulary)), search.columns + n)
        scores = ops.reshape(scores, (prompts, size, vocabulary))
        groups[name], parent = extend_group(search, group, scores, n, g * size)
        groups[name] |= _mark_invalid(search, groups[name], group["running"], logits)
        parents.append(parent + g * size)
        processed.append(scores)
        for j in range(size if plan.groups > 1 else 0):
            is_token = ops.expand_dims(ops.arange(vocabulary), 0) == groups[name]["token"][:, j : j + 1]
            chosen_by_earlier = chosen_by_earlier + ops.cast(is_token, "float32")
    ancestors = ops.take_along(state["ancestors"], ops.concat(parents, 1), 1)
    new = {"n": n + 1, "groups": groups, "ancestors": ancestors}
    flat = (prompts * beams, vocabulary)
    scores = ops.reshape(ops.concat(processed, 1), flat)
    return state | new | search.record(state, n, scores, ops.reshape(logits, flat))


def _mark_invalid(search: Search, group: State, was_running: Array, logits: Array) -> State:
    """Return a group's ids and ended_ids, all INVALID for prompts with a raw logit [prompts, beams, V] that is no number."""
    ops = search.ops
    if search.plan.removes_invalid:
        return {}
    invalid = ~ops.all(ops.all_below_infinity(logits), axis=1) & was_running
    invalid = ops.reshape(invalid, (search.prompts, 1, 1))
    return {name: ops.where(invalid, INVALID, group[name]) for name in ("ids", "ended_ids")}


def extend_group(search: Search, group: State, scores: Array, n: Array, first_beam: int) -> tuple[State, Array]:
    """Choose the next token of every beam of one group.

    Args:
        search: The call.
        group: State of the group, see :func:`start`.
        scores: float32 [prompts, beams, V], the processed log probabilities of the next token.
        n: int32, number of new tokens so far.
        first_beam: Index of the group's first beam among all beams.

    Returns:
        The group's next state, and int32 [prompts, beams], the beam that each new beam continues.
    """
    ops, plan, v = search.ops, search.plan, search.values
    prompts, beams, vocabulary = scores.shape
    totals = scores + ops.expand_dims(group["scores"], 2)
    total, parent, token = top_candidates(search, totals, n, first_beam)  # [prompts, candidates]

    inherited = ("ids", "parents", "stop_state", *(("logprobs",) if plan.logprobs else ()))
    candidates = {name: ops.take_along(group[name], parent, 1) for name in inherited}
    offset = ops.expand_dims(ops.arange(prompts) * plan.beams + first_beam, 1)
    candidates["ids"] = ops.update(candidates["ids"], ops.expand_dims(token, 2), (0, 0, search.columns + n))
    candidates["parents"] = ops.update(candidates["parents"], ops.expand_dims(parent + offset, 2), (0, 0, n))
    if plan.logprobs:
        flat = ops.reshape(scores, (prompts, beams * vocabulary))
        logprob = ops.take_along(flat, parent * vocabulary + token, 1)
        candidates["logprobs"] = ops.update(candidates["logprobs"], ops.expand_dims(logprob, 2), (0, 0, n))
    ends, candidates["stop_state"] = search.detect_ends(token, candidates["stop_state"])
    ends = ends | (n + 1 >= v["new_tokens"])
    candidates["token"] = token

    # The best candidates that have not ended become the running beams.
    running = total + ops.where(ends, EXCLUDED, ops.full(ends.shape, 0.0, "float32"))
    running, chosen = ops.top_k(running, beams)
    new = {name: ops.take_along(value, chosen, 1) for name, value in candidates.items()}
    new["scores"] = running
    parent = ops.take_along(parent, chosen, 1)

    new |= _collect_ended(search, group, candidates, total, ends, n)
    new |= _stopping_state(search, group, new, ends, n)
    # A group that has stopped stays as it is while the others continue.
    new = {name: ops.where(group["running"], value, group[name]) for name, value in new.items()}
    return new, parent


def _collect_ended(search: Search, group: State, candidates: State, total: Array, ends: Array, n: Array) -> State:
    """Return the group's ``ended*`` entries with the candidates that have just ended.

    Args:
        search: The call.
        group: The group's state before this step.
        candidates: Entries of the candidates: ids, parents and logprobs, each [prompts, candidates, ...].
        total: float32 [prompts, candidates], sums of log probabilities.
        ends: bool [prompts, candidates], whether each candidate has ended.
        n: int32, number of new tokens before this step.
    """
    ops, plan, v = search.ops, search.plan, search.values
    beams = group["ended"].shape[1]
    full = ops.all(group["ended"], axis=1, keepdims=True) & v["stop_when_full"]
    closed = full | ~group["improvable"]
    # Only the first ``beams`` candidates may become results.
    just_ended = ends & ops.expand_dims(ops.arange(plan.candidates) < beams, 0)
    final = total / ops.take(v["length_divisors"], n + 1)
    zero = ops.full(final.shape, 0.0, "float32")
    final = final + ops.where(closed, EXCLUDED, zero) + ops.where(just_ended, zero, EXCLUDED)
    scores, chosen = ops.top_k(ops.concat([group["ended_scores"], final], 1), beams)
    ended = {
        "ended_scores": scores,
        "ended": ops.take_along(ops.concat([group["ended"], just_ended], 1), chosen, 1),
    }
    for name in ("ids", "parents", *(("logprobs",) if plan.logprobs else ())):
        merged = ops.concat([group[f"ended_{name}"], candidates[name]], 1)
        ended[f"ended_{name}"] = ops.take_along(merged, chosen, 1)
    return ended


def _stopping_state(search: Search, group: State, new: State, ends: Array, n: Array) -> State:
    """Return the group's ``improvable`` and ``running`` entries.

    Args:
        search: The call.
        group: The group's state before this step.
        new: The group's new scores and ``ended*`` entries.
        ends: bool [prompts, candidates], whether each candidate has ended.
        n: int32, number of new tokens before this step.
    """
    ops, v = search.ops, search.values
    length = ops.where(v["hope_for_longest"], v["new_tokens"], n + 1)
    best_possible = new["scores"][:, :1] / ops.take(v["length_divisors"], length)  # [prompts, 1]
    worst = ops.where(new["ended"], ops.min(new["ended_scores"], axis=1, keepdims=True), EXCLUDED)
    improvable = group["improvable"] & ops.any(best_possible > worst, axis=1, keepdims=True)
    filler = ops.expand_dims(v["filler"], 1)
    any_improvable = ops.any(improvable & ~filler)
    all_full = ops.all(new["ended"] | filler) & v["stop_when_full"]
    running = group["running"] & any_improvable & ~all_full & ~ops.all(ends | filler)
    return {"improvable": improvable, "running": running}


def top_candidates(search: Search, totals: Array, n: Array, first_beam: int) -> tuple[Array, Array, Array]:
    """Return the candidates of a step: the best continuations across beams, or draws without replacement
    when sampling.

    Args:
        search: The call.
        totals: float32 [prompts, beams, V], log probabilities of the texts with each next token.
        n: int32, number of new tokens so far.
        first_beam: Index of the group's first beam among all beams.

    Returns:
        Log probabilities, beams and tokens of the candidates, each [prompts, candidates].
    """
    ops, plan = search.ops, search.plan
    prompts, beams, vocabulary = totals.shape
    per_beam = min(plan.candidates, vocabulary)
    if plan.do_sample:
        numbers = ops.arange(beams * vocabulary) + first_beam * vocabulary
        noise = threefry.gumbel(ops, search.values["keys"], n, ops.expand_dims(numbers, 0))
        order = totals + ops.reshape(noise, totals.shape)
    else:
        order = totals
    # Top-k within each beam, then across beams: sorting short rows is faster, and ties keep their order.
    order, token = ops.top_k(order, per_beam)  # [prompts, beams, per_beam]
    _, chosen = ops.top_k(ops.reshape(order, (prompts, beams * per_beam)), plan.candidates)  # [prompts, candidates]
    token = ops.take_along(ops.reshape(token, (prompts, beams * per_beam)), chosen, 1)
    parent = chosen // per_beam
    flat = ops.reshape(totals, (prompts, beams * vocabulary))
    return ops.take_along(flat, parent * vocabulary + token, 1), parent, token


def result(search: Search, state: State) -> State:
    """Return new ids [prompts * returned, room], best first, their scores, and what was recorded."""
    ops, plan = search.ops, search.plan
    groups = list(state["groups"].values())
    scores, chosen = ops.top_k(ops.concat([group["ended_scores"] for group in groups], 1), plan.returned)

    def best(name: str) -> Array:
        values = ops.take_along(ops.concat([group[f"ended_{name}"] for group in groups], 1), chosen, 1)
        return ops.reshape(values, (search.prompts * plan.returned, values.shape[-1]))

    new, parents = best("ids")[:, search.columns :], best("parents")
    lengths = ops.sum(ops.cast(parents >= 0, "int32"), axis=1)
    real = ops.repeat(~search.values["filler"], plan.returned, 0)
    out = {
        "ids": ops.where(new == -1, search.values["padding"], new),
        "steps": ops.max(ops.where(real, lengths, 0), axis=0),
        "sequences_scores": ops.reshape(scores, (search.prompts * plan.returned,)),
        "beam_indices": parents,
    }
    if plan.logprobs:
        out["logprobs"] = best("logprobs")
    return out | {name: state[name] for name in ("scores", "logits") if name in state}
