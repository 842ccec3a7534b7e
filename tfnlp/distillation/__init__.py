"""Knowledge distillation: students, losses, and the ``Distiller`` that trains a student with ``fit``."""

from tfnlp.distillation.distiller import Distiller, distill
from tfnlp.distillation.students import init_student

__all__ = ["Distiller", "distill", "init_student"]
