"""Knowledge distillation: settings, loss terms, students, and a teacher's stored logits."""

from duonlp.distillation.pair import check_pair, init_projections, label_order, term_names
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations
from duonlp.distillation.students import Student, chosen_layers, student_config, student_plan
from duonlp.distillation.teacher_logits import TeacherLogits, cached
from duonlp.distillation.terms import distillation_terms

__all__ = [
    "Attentions",
    "Distillation",
    "HiddenStates",
    "Relations",
    "Student",
    "TeacherLogits",
    "cached",
    "check_pair",
    "chosen_layers",
    "distillation_terms",
    "init_projections",
    "label_order",
    "student_config",
    "student_plan",
    "term_names",
]
