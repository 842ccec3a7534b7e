"""Knowledge distillation: settings, loss terms, students and stored teacher logits."""

from duonlp.distillation.pair import check_pair, init_projections, label_order, term_names
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations
from duonlp.distillation.students import Student, choose_layers, student_config, student_plan
from duonlp.distillation.teacher_logits import TeacherLogits, load_or_compute_logits
from duonlp.distillation.terms import distillation_terms

__all__ = [
    "Attentions",
    "Distillation",
    "HiddenStates",
    "Relations",
    "Student",
    "TeacherLogits",
    "check_pair",
    "choose_layers",
    "distillation_terms",
    "init_projections",
    "label_order",
    "load_or_compute_logits",
    "student_config",
    "student_plan",
    "term_names",
]
