"""Distilling a fine-tuned classifier into a smaller one, in either framework, as one run that can be repeated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.config import TransformerConfig
from duonlp.distillation.pair import check_pair, head_kind
from duonlp.distillation.settings import Distillation
from duonlp.distillation.students import student_config
from duonlp.errors import InputError
from duonlp.parameters import count_parameters
from duonlp.runs import folder as run_folder
from duonlp.runs import labelled as labelled_run
from duonlp.runs.labelled import LabelledData, LabelledRunSettings

HEAD = "sequence-classification"


@dataclass(frozen=True, kw_only=True)
class DistillSettings(LabelledRunSettings):
    """What a distillation is made of, besides LabelledRunSettings. One of student, layers and layer_list says who learns.

    teacher: a fine-tuned checkpoint: a folder in Hugging Face layout, or a Hub id.
    student: the checkpoint that learns. One with another tokenizer than the teacher's reads texts its own way.
    layers: instead, so many of the teacher's layers, evenly spaced, with its embeddings and head.
    layer_list: instead, these of its layers, from 0 on.
    distillation: what is learnt: alpha, temperature, further losses.
    cache_teacher_logits: whether the teacher's logits are computed once, before the training, and kept on disk: in `cache`, or
        in the run's folder. (They are without dropout either way.)
    evaluate_teacher: whether the report has the teacher's scores, too.
    """

    teacher: str
    student: str | None = None
    layers: int | None = None
    layer_list: tuple[int, ...] | None = None
    distillation: Distillation = field(default_factory=Distillation)
    cache_teacher_logits: bool = False
    evaluate_teacher: bool = True

    what: ClassVar[str] = "duonlp distill"
    command: ClassVar[str] = "distill"
    may_change: ClassVar[tuple[str, ...]] = (
        *LabelledRunSettings.may_change, "cache_teacher_logits", "evaluate_teacher",
    )  # fmt: skip

    def __post_init__(self):
        if not self.teacher:
            raise InputError(
                "teacher is empty; give --teacher with a fine-tuned checkpoint, such as the best/ of a run"
            )
        given = {"student": self.student, "layers": self.layers, "layer_list": self.layer_list}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(f'{name}={value}' for name, value in given.items()) or 'no student'} given; give one of student "
                "(a checkpoint), layers (how many of the teacher's) and layer_list (which of them)"
            )
        super().__post_init__()


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before a framework is asked for anything."""

    data: LabelledData
    student_config: TransformerConfig
    tokenizer: Any
    teacher_tokenizer: Any


def distill(
    package,
    settings: DistillSettings,
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    console: Any = True,
) -> dict[str, Any]:
    """Trains a student on labels and on what its teacher says, keeps the best student, and reports what it is worth.

    The same settings again go on where the run was stopped; a finished run is evaluated again, and not trained.

    Args:
        package, settings, on_evaluation, console: as of duonlp.runs.finetune.

    Returns:
        The report that results.json has: that of a fine-tuning, and "teacher": its "metrics" on the same validation texts,
        "parameters" and "bytes".

    Raises:
        InputError: settings, data, an output folder, or two models that do not go together; before anything is computed.
        CheckpointError: a checkpoint cannot be read.
        NonFiniteLossError: the loss is not a number; the best model and the last checkpoint are from before.
    """
    run_folder.check_output(settings, run_folder.framework_of(package))
    ready = prepare(settings)
    data = ready.data
    teacher = package.AutoModelForSequenceClassification.from_pretrained(settings.teacher, dtype=settings.dtype)
    if settings.student is None:
        student = package.init_student(teacher, num_layers=settings.layers, layers=settings.layer_list)
    else:
        student, _ = labelled_run.load_classifier(
            package, settings.student, ready.student_config.labels, data.multi_label, settings.dtype, settings.seed
        )
    say = run_folder.speaker(console)
    say(
        f"{len(data.batches.labels)} texts, {len(data.label_names)} labels; a student of {student.config.num_layers} layers, "
        f"a teacher of {teacher.config.num_layers}"
    )
    about = {"checkpoint": settings.teacher, "parameters": teacher.num_parameters()}
    about["bytes"] = run_folder.weight_bytes(open_checkpoint(settings.teacher).folder)
    scorer = data.scorer(package, as_teacher=True) if settings.evaluate_teacher else None
    if scorer is not None:
        about["metrics"] = scorer(teacher)
        about["at_threshold"] = run_folder.threshold_of(scorer)
    batches = data.batches
    if settings.cache_teacher_logits:
        where = settings.cache or settings.folder / "teacher_logits"
        batches = package.cached_teacher_logits(teacher, batches, where)

    def train(evaluate, **options):
        return package.distill(
            student, teacher, batches, settings.fit, settings.distillation, settings.folder, evaluate=evaluate,
            teacher_tokenizer=ready.teacher_tokenizer, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard}, **options,
        )  # fmt: skip

    more = {"teacher": about}
    return run_folder.carried_out(
        package, settings, data, ready.tokenizer, train, on_evaluation=on_evaluation, more=more
    )


def prepare(settings: DistillSettings) -> _Prepared:
    """Data read and tokenised, the two models found to go together; nothing is trained, and no framework is needed.

    Raises:
        InputError: the data has labels that the teacher does not tell apart, the teacher is no classifier, or student and
            teacher do not go together.
    """
    labelled_run.check_classifier(settings.teacher, "teacher")
    checkpoint = open_checkpoint(settings.teacher)
    teacher_config, teacher_tokenizer = checkpoint.transformer_config(), checkpoint.tokenizer()
    names = teacher_config.labels
    tokenizer = teacher_tokenizer
    if settings.student is None:
        config = student_config(teacher_config, HEAD, num_layers=settings.layers, layers=settings.layer_list).config
    else:
        own = open_checkpoint(settings.student)
        tokenizer = own.tokenizer()
        labelled_run.check_labels(settings.student, names)
        names = labelled_run.own_labels(settings.student, names) or names
        ids = {str(number): name for number, name in enumerate(names)}
        config = own.transformer_config(
            num_labels=len(names), id2label=ids, label2id={name: number for number, name in enumerate(names)},
            problem_type=teacher_config.problem_type,
        )  # fmt: skip
    other_words = tokenizer.get_vocab() != teacher_tokenizer.get_vocab()
    check_pair(
        config, teacher_config, tokenizer, teacher_tokenizer, distillation=settings.distillation, heads=(HEAD, HEAD),
        own_inputs=other_words,
    )  # fmt: skip
    texts = labelled_run.read_texts(settings, names, "the teacher")
    if (head_kind(HEAD, teacher_config, texts[0].labels) == "bernoulli") != (texts[0].labels.ndim == 2):
        has, wants = ("several labels", "one") if texts[0].labels.ndim == 2 else ("one label", "several")
        raise InputError(
            f"a text of the data has {has}, and the teacher gives it {wants}; give the data of the teacher's kind"
        )
    data = labelled_run.batched(
        settings, texts, tokenizer, config, teacher_config, teacher_tokenizer=teacher_tokenizer if other_words else None
    )
    return _Prepared(data, config, tokenizer, teacher_tokenizer)


def plan(settings: DistillSettings, framework: str) -> dict[str, Any]:
    """What a run would do, without doing it: data, labels, batches, steps, parameters of the student and of the teacher.

    Raises:
        InputError, CheckpointError: as of :func:`distill`.
    """
    run_folder.check_output(settings, framework)
    ready = prepare(settings)
    teacher = open_checkpoint(settings.teacher).transformer_config()
    return run_folder.planned(settings, ready.data, count_parameters(ready.student_config, HEAD)) | {
        "student_layers": ready.student_config.num_layers,
        "teacher_layers": teacher.num_layers,
        "teacher_parameters": count_parameters(teacher, HEAD),
    }
