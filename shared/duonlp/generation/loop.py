"""The decoding loop: a strategy is started, advanced and asked for its result.

Each strategy is a module with ``start``, ``step``, ``unfinished`` and ``result``; :class:`~duonlp.generation.strategies.Search`
is what they share.
"""

from types import ModuleType

from duonlp.generation.plan import Plan
from duonlp.generation.strategies import assisted, beam, contrastive, sample
from duonlp.generation.strategies.search import Search, State


def strategy(plan: Plan) -> ModuleType:
    """The module that has ``start(search)``, ``step(search, state)``, ``unfinished(search, state)`` and
    ``result(search, state)`` of a plan's strategy."""
    modules = {"greedy": sample, "sample": sample, "beam": beam, "contrastive": contrastive, "assisted": assisted}
    return modules[plan.strategy]


def start(search: Search) -> State:
    """The prompts, and the first new token."""
    return strategy(search.plan).start(search)


def advance(search: Search, state: State, until) -> State:
    """Go on until every text has ended, or ``until`` tokens are new (speculative decoding may overshoot)."""
    how = strategy(search.plan)
    return search.ops.while_loop(
        lambda state: how.unfinished(search, state) & (state["n"] < until),
        lambda state: how.step(search, state),
        state,
    )


def result(search: Search, state: State) -> State:
    """What is returned of the last state: ``ids`` [texts, room], ``steps``, and what was recorded."""
    return strategy(search.plan).result(search, state)
