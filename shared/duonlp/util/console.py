"""Rich consoles that print users' texts as they are: Rich would replace ``[red]`` and ``:smile:`` in them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(**options: Any) -> "Console":
    """Return a rich Console that interprets neither markup nor emoji codes; use ``rich.text.Text`` for styles."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)
