"""Distill a fine-tuned classifier into a smaller one, in either framework, as a reproducible run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

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
from duonlp.runs.models import load_for_training, prepare_for_quantization
from duonlp.training.result import FitResult
from duonlp.typing import Engine

HEAD = "sequence-classification"


@dataclass(frozen=True, kw_only=True)
class DistillSettings(LabelledRunSettings):
    """Settings of a distillation run, in addition to LabelledRunSettings.

    Exactly one of student, layers and layer_list chooses the student.

    Attributes:
        teacher: Fine-tuned checkpoint: a folder in Hugging Face layout, or a Hub id.
        student: Checkpoint of the student. If its tokenizer differs from the teacher's, each reads its own inputs.
        layers: Number of evenly spaced teacher layers to copy, with the teacher's embeddings and head.
        layer_list: Teacher layers to copy, counted from 0.
        distillation: Loss of the distillation: alpha, temperature, additional losses.
        cache_teacher_logits: Whether to compute the teacher's logits once, before training, and keep them on disk, in `cache`
            or the run's folder. (The teacher runs without dropout either way.)
        evaluate_teacher: Whether to report the teacher's scores too.
    """

    teacher: str
    student: str | None = None
    layers: int | None = None
    layer_list: tuple[int, ...] | None = None
    distillation: Distillation = field(default_factory=Distillation)
    cache_teacher_logits: bool = False
    evaluate_teacher: bool = True

    program: ClassVar[str] = "duonlp distill"
    may_change: ClassVar[tuple[str, ...]] = (
        *LabelledRunSettings.may_change, "cache_teacher_logits", "evaluate_teacher",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.teacher:
            raise InputError("teacher is empty; give --teacher with a fine-tuned checkpoint, such as best/ of a run")
        choices = {"student": self.student, "layers": self.layers, "layer_list": self.layer_list}
        choices = {name: value for name, value in choices.items() if value is not None}
        if len(choices) != 1:
            described = " and ".join(f"{name}={value}" for name, value in choices.items()) or "no student"
            raise InputError(
                f"{described} given; give exactly one of student (a checkpoint), layers (how many of the teacher's) and "
                "layer_list (which of them)"
            )
        super().__post_init__()


@dataclass(frozen=True)
class _Prepared:
    """Everything that is known before a framework is loaded."""

    data: LabelledData
    student_config: TransformerConfig
    tokenizer: Any
    teacher_tokenizer: Any


def distill(
    package: Engine,
    settings: DistillSettings,
    *,
    on_evaluation: Callable[[int, Mapping[str, float]], None] | None = None,
    console: Any = True,
) -> dict[str, Any]:
    """Train a student on labels and its teacher's outputs, keep the best student and report its scores.

    Called again with the same settings, it resumes an interrupted run and only re-evaluates a finished one.

    Args:
        package: tfnlp or jaxnlp.
        settings: Settings of the run.
        on_evaluation: As for :func:`duonlp.runs.finetune`.
        console: As for :func:`duonlp.runs.finetune`.

    Returns:
        The report that is also written to results.json: that of a fine-tuning run, and "teacher" with its "metrics" on the
        same validation texts, "parameters" and "bytes".

    Raises:
        InputError: Settings, data, output folder and the two models are invalid or incompatible; raised before anything is
            computed.
        CheckpointError: A checkpoint cannot be read.
        NonFiniteLossError: The loss became non-finite; the best model and the last checkpoint predate it.
    """
    run_folder.check_output(settings, run_folder.framework_name(package))
    prepared = prepare(settings)
    data = prepared.data
    teacher = package.AutoModelForSequenceClassification.from_pretrained(settings.teacher, dtype=settings.dtype)
    if settings.student is None:
        student = package.init_student(teacher, num_layers=settings.layers, layers=settings.layer_list)
    else:
        student, _ = load_for_training(
            package, data.auto_class, settings.student, settings.dtype, settings.seed, **data.overrides()
        )
    student = prepare_for_quantization(package, student, settings, data.batches)
    log = run_folder.make_printer(console)
    log(
        f"{len(data.batches.texts)} training texts, {len(data.label_names)} labels; student with "
        f"{student.config.num_layers} layers, teacher with {teacher.config.num_layers}"
    )
    teacher_report: dict[str, Any] = {"checkpoint": settings.teacher, "parameters": teacher.num_parameters()}
    teacher_report["bytes"] = run_folder.weight_bytes(open_checkpoint(settings.teacher).folder)
    scorer = data.scorer(package, as_teacher=True) if settings.evaluate_teacher else None
    if scorer is not None:
        teacher_report["metrics"] = scorer(teacher)
        teacher_report["at_threshold"] = data.at_threshold(scorer)
    batches = data.batches
    if settings.cache_teacher_logits:
        logits_folder = settings.cache or settings.folder / "teacher_logits"
        batches = package.cached_teacher_logits(teacher, batches, logits_folder)

    def train(evaluate: Any, **options: Any) -> FitResult:
        return package.distill(
            student, teacher, batches, settings.fit, settings.distillation, settings.folder, evaluate=evaluate,
            teacher_tokenizer=prepared.teacher_tokenizer, data=data.describe(),
            log={"console": console, "tensorboard": settings.tensorboard}, **options,
        )  # fmt: skip

    return run_folder.train_and_report(
        package, settings, data, prepared.tokenizer, train, on_evaluation=on_evaluation,
        extra={"teacher": teacher_report},
    )  # fmt: skip


def prepare(settings: DistillSettings) -> _Prepared:
    """Read and tokenize the data and check the two models; nothing is trained and no framework is needed.

    Raises:
        InputError: The data has labels the teacher lacks, the teacher is not a classifier, or student and teacher are
            incompatible.
        CheckpointError: A checkpoint cannot be read.
    """
    labelled_run.check_classifier(settings.teacher, "teacher")
    checkpoint = open_checkpoint(settings.teacher)
    teacher_config, teacher_tokenizer = checkpoint.transformer_config(), cast(Any, checkpoint.tokenizer())
    label_names = teacher_config.labels
    tokenizer = teacher_tokenizer
    if settings.student is None:
        config = student_config(teacher_config, HEAD, num_layers=settings.layers, layers=settings.layer_list).config
    else:
        student = open_checkpoint(settings.student)
        tokenizer = cast(Any, student.tokenizer())
        labelled_run.check_labels(settings.student, label_names)
        label_names = labelled_run.matching_label_names(settings.student, label_names) or label_names
        config = student.transformer_config(
            num_labels=len(label_names),
            id2label={str(number): name for number, name in enumerate(label_names)},
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type=teacher_config.problem_type,
        )
    tokenizers_differ = tokenizer.get_vocab() != teacher_tokenizer.get_vocab()
    check_pair(
        config, teacher_config, tokenizer, teacher_tokenizer, distillation=settings.distillation, heads=(HEAD, HEAD),
        own_inputs=tokenizers_differ,
    )  # fmt: skip
    texts = labelled_run.read_texts(settings, label_names, "the teacher")
    data_is_multi_label = texts.train.labels.ndim == 2
    if (head_kind(HEAD, teacher_config, texts.train.labels) == "bernoulli") != data_is_multi_label:
        data_kind, teacher_kind = ("several labels", "one") if data_is_multi_label else ("one label", "several")
        raise InputError(
            f"the data has {data_kind} per text and the teacher predicts {teacher_kind}; give data of the teacher's kind"
        )
    data = labelled_run.make_batches(
        settings, texts, tokenizer, config, teacher_config,
        teacher_tokenizer=teacher_tokenizer if tokenizers_differ else None,
    )  # fmt: skip
    return _Prepared(data, config, tokenizer, teacher_tokenizer)


def plan(settings: DistillSettings, framework: str) -> dict[str, Any]:
    """Return what a run would do, without training: data, labels, batches, steps, layers and parameters of both models.

    Args:
        settings: Settings of the run.
        framework: "tf" or "jax".

    Raises:
        InputError: As for :func:`distill`.
        CheckpointError: As for :func:`distill`.
    """
    run_folder.check_output(settings, framework)
    prepared = prepare(settings)
    teacher = open_checkpoint(settings.teacher).transformer_config()
    return run_folder.plan_report(
        settings, prepared.data, count_parameters(prepared.student_config, HEAD), framework
    ) | {
        "student_layers": prepared.student_config.num_layers,
        "teacher_layers": teacher.num_layers,
        "teacher_parameters": count_parameters(teacher, HEAD),
    }
