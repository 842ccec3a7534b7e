"""Knowledge distillation: students, losses, and the step that trains a student."""

from typing import TYPE_CHECKING, Any

from jaxnlp.distillation.students import init_student

if TYPE_CHECKING:
    from jaxnlp.distillation.distiller import DistillPlan, DistillStep, distill, distill_plan, distill_step

__all__ = ["DistillPlan", "DistillStep", "distill", "distill_plan", "distill_step", "init_student"]


def __getattr__(name: str) -> Any:
    """Import the distiller on first use: training needs Orbax, which running a model does not."""
    if name in __all__:
        from jaxnlp.distillation import distiller

        return getattr(distiller, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
