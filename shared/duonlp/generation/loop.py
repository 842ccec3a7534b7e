"""The decoding loop: start a strategy, advance it, and read its result.

Each strategy is a module with ``start``, ``step``, ``unfinished`` and ``result``, which share a
:class:`~duonlp.generation.strategies.Search`.
"""

from types import ModuleType

from duonlp.generation.plan import Plan
from duonlp.generation.strategies import assisted, beam, contrastive, sample
from duonlp.generation.strategies.search import Search, State
from duonlp.typing import Array

STRATEGIES: dict[str, ModuleType] = {
    "greedy": sample, "sample": sample, "beam": beam, "contrastive": contrastive, "assisted": assisted,
}  # fmt: skip
"""Modules that define ``start(search)``, ``step(search, state)``, ``unfinished(search, state)`` and ``result(search, state)``."""


def strategy_module(plan: Plan) -> ModuleType:
    """Return the module that implements a plan's strategy."""
    return STRATEGIES[plan.strategy]


def start(search: Search) -> State:
    """Run the prompts and return the state of the strategy, usually with the first new token."""
    return strategy_module(search.plan).start(search)


def advance(search: Search, state: State, until: Array) -> State:
    """Decode until every text has ended or has ``until`` new tokens (speculative decoding may overshoot)."""
    strategy = strategy_module(search.plan)
    return search.ops.while_loop(
        lambda state: strategy.unfinished(search, state) & (state["n"] < until),
        lambda state: strategy.step(search, state),
        state,
    )


def result(search: Search, state: State) -> State:
    """Return the result of a state: ``ids`` [texts, room], ``steps``, and what was recorded."""
    return strategy_module(search.plan).result(search, state)
