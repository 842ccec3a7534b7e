"""Loss terms of distillation on stand-in models in NumPy: what is compared, over which tokens and rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from duonlp import numpy_ops
from duonlp.architectures import config_from_hf
from duonlp.distillation import reference_losses as reference
from duonlp.distillation.pair import Attentions, Distillation, HiddenStates, init_projections
from duonlp.distillation.terms import distillation_terms
from duonlp.errors import InputError
from duonlp.heads import IGNORED, NO_POSITION

ROWS, LENGTH, WORDS, LABELS, WIDTH = 3, 5, 11, 4, 8
BERT = {
    "model_type": "bert", "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 20,
}  # fmt: skip
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])  # the last row is padding
TOKENS = np.array([[2, -100, 3, -100, -100], [-100, 1, 1, 0, 2], [-100] * 5])
TEXTS = np.array([1, 3, -100])
REAL = MASK * (TEXTS != -100)[:, None]
WEIGHTS = np.array([0.5, 2.0, 1.0])
LOSSES = SimpleNamespace(
    **{name: getattr(reference, name) for name in dir(reference) if name.endswith("_sum")},
    reorder_labels=lambda logits, order: logits[..., order],
    project=lambda states, kernel: states @ kernel,
)


def model(head, **changes):
    return SimpleNamespace(head=head, config=config_from_hf(BERT | changes))


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


def terms(head, distillation, shape, inputs, names=("logits",), student=None, teacher=None, more=({}, {}), **options):
    """Return the terms, and the logits of the student and of the teacher."""
    pair = [{name: normal(*shape, seed=[which, i]) for i, name in enumerate(names)} for which in (0, 1)]
    student, teacher = (model(head) if each is None else each for each in (student, teacher))
    found = distillation_terms(
        numpy_ops, LOSSES, distillation, student, teacher, pair[0] | more[0], pair[1] | more[1], inputs, **options
    )
    return found, *(tuple(each.values()) for each in pair)


def test_a_classifiers_kl_is_over_labelled_rows_with_factor_t_squared():
    distillation = Distillation(alpha=0.3, temperature=3.0)
    inputs = {"attention_mask": MASK, "labels": TEXTS}
    found, (mine,), (others,) = terms(
        "sequence-classification", distillation, (ROWS, LABELS), inputs, sample_weight=WEIGHTS
    )
    expected = reference.kl_divergence_sum(mine, others, 3.0, [1, 1, 0], WEIGHTS)
    assert found == {"logits_kl": (*expected, pytest.approx(0.7 * 9))} and expected[1] == 2


def test_the_teachers_labels_are_reordered():
    order = np.array([2, 0, 3, 1])
    found, (mine,), (others,) = terms("sequence-classification", Distillation(), (ROWS, LABELS), {}, label_order=order)
    assert found["logits_kl"][:2] == reference.kl_divergence_sum(mine, others[:, order], 2.0)


def test_multi_label_and_regression_terms():
    several = model("sequence-classification", problem_type="multi_label_classification")
    inputs = {"labels": np.zeros((ROWS, LABELS), np.float32)}
    found, (mine,), (others,) = terms(several.head, Distillation(), (ROWS, LABELS), inputs, student=several)
    expected = reference.bernoulli_kl_divergence_sum(mine, others, 2.0)
    assert found == {"logits_bernoulli_kl": (*expected, 2.0)} and expected[1] == ROWS * LABELS
    inputs["labels"][-1] = -100  # a padding row
    found, _, _ = terms(several.head, Distillation(), (ROWS, LABELS), inputs, student=several)
    assert found["logits_bernoulli_kl"][1] == (ROWS - 1) * LABELS
    number = model("sequence-classification", id2label={0: "score"})
    inputs = {"labels": np.array([-100.0, 1.0, 2.0], np.float32)}  # -100 is a valid target
    found, (mine,), (others,) = terms(number.head, Distillation(), (ROWS, 1), inputs, student=number)
    assert found == {"logits_mse": (*reference.squared_error_sum(mine, others), 0.5)}


@pytest.mark.parametrize(
    ("head", "positions", "expected"),
    [
        ("masked-lm", None, REAL),
        ("masked-lm", "labelled", TOKENS != -100),
        ("token-classification", None, TOKENS != -100),
        ("token-classification", "attended", REAL),
    ],
)
def test_which_tokens_count(head, positions, expected):
    inputs = {"attention_mask": MASK, "labels": TOKENS}
    distillation = Distillation(positions=positions)
    found, (mine,), (others,) = terms(head, distillation, (ROWS, LENGTH, WORDS), inputs)
    assert found["logits_kl"][:2] == reference.kl_divergence_sum(mine, others, 2.0, expected)
    assert found["logits_kl"][1] == expected.sum()


def test_without_labels_all_attended_tokens_count():
    found, *_ = terms("token-classification", Distillation(), (ROWS, LENGTH, WORDS), {"attention_mask": MASK})
    assert found["logits_kl"][1] == MASK.sum()
    found, *_ = terms("token-classification", Distillation(), (ROWS, LENGTH, WORDS), {})
    assert found["logits_kl"][1] == MASK.size
    with pytest.raises(InputError, match="positions is 'labelled' but the batch has no labels"):
        terms("masked-lm", Distillation(positions="labelled"), (ROWS, LENGTH, WORDS), {})


@pytest.mark.parametrize("positions", [None, "attended"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_a_causal_model_is_masked_by_the_next_token(positions, with_mask):
    inputs = {"attention_mask": MASK, "labels": TOKENS} if with_mask else {"labels": TOKENS}
    each = normal(ROWS, LENGTH, seed=7)
    found, (mine,), (others,) = terms(
        "causal-lm", Distillation(positions=positions), (ROWS, LENGTH, WORDS), inputs, sample_weight=each
    )
    rows = np.broadcast_to((TEXTS != -100)[:, None], MASK.shape)
    counted = (TOKENS != -100) if positions is None else REAL if with_mask else rows
    expected = reference.kl_divergence_sum(mine[:, :-1], others[:, :-1], 2.0, counted[:, 1:], each[:, 1:])
    assert found["logits_kl"][:2] == expected


def test_an_encoder_decoder_is_masked_by_its_targets():
    found, (mine,), (others,) = terms(
        "seq2seq-lm", Distillation(), (ROWS, LENGTH, WORDS), {"attention_mask": MASK[:, :2], "labels": TOKENS}
    )
    assert found["logits_kl"][:2] == reference.kl_divergence_sum(mine, others, 2.0, TOKENS != -100)


@pytest.mark.parametrize("ignored", [IGNORED, NO_POSITION])
def test_spans_average_start_and_end_without_padding(ignored):
    positions = np.where(TEXTS == IGNORED, ignored, TEXTS)
    names, inputs = ("start_logits", "end_logits"), {"attention_mask": MASK, "start_positions": positions}
    inputs["end_positions"] = inputs["start_positions"]
    found, mine, others = terms("question-answering", Distillation(), (ROWS, LENGTH), inputs, names)
    assert list(found) == ["start_logits_kl", "end_logits_kl"]
    for name, a, b in zip(found, mine, others):
        each = [reference.kl_divergence_sum(a[i, MASK[i] == 1], b[i, MASK[i] == 1], 2.0)[0] for i in (0, 1)]
        assert found[name] == (pytest.approx(sum(each)), 2.0, 0.5 * 4 / 2)


def test_inner_losses_count_attended_tokens_of_labelled_rows_and_average_over_layers():
    states = [
        tuple(normal(ROWS, LENGTH, WIDTH, seed=[which, i]) for i in range(n + 1)) for which, n in ((2, 2), (3, 4))
    ]
    maps = [
        tuple(reference.softmax(normal(ROWS, 2, LENGTH, LENGTH, seed=[which, i])) for i in range(n))
        for which, n in ((4, 2), (5, 4))
    ]
    more = [{"hidden_states": s, "attentions": a} for s, a in zip(states, maps)]
    losses = HiddenStates(2.0), HiddenStates(kind="cosine", layers=((-1, -1),)), Attentions(0.5), Attentions(kind="mse")
    distillation = Distillation(alpha=1.0, losses=losses)
    inputs, teacher = {"attention_mask": MASK, "labels": TEXTS}, model("sequence-classification", num_hidden_layers=4)
    found, *_ = terms(
        "sequence-classification",
        distillation,
        (ROWS, LABELS),
        inputs,
        teacher=teacher,
        more=more,
        sample_weight=WEIGHTS,
    )
    options = REAL, WEIGHTS
    both = [reference.hidden_mse_sum(states[0][i], states[1][2 * i], *options)[0] for i in range(3)]
    assert found == {
        "hidden_mse": (pytest.approx(sum(both) / 3), REAL.sum(), 2.0),
        "hidden_cosine": (*reference.hidden_cosine_sum(states[0][2], states[1][4], *options), 1.0),
        "attention_kl": (
            pytest.approx(np.mean([reference.attention_kl_sum(maps[0][i], maps[1][2 * i + 1], *options)[0] for i in (0, 1)])),
            REAL.sum(), 0.5,
        ),
        "attention_mse": (
            pytest.approx(np.mean([reference.attention_mse_sum(maps[0][i], maps[1][2 * i + 1], *options)[0] for i in (0, 1)])),
            REAL.sum(), 1.0,
        ),
    }  # fmt: skip
    found, *_ = terms(
        "sequence-classification", distillation, (ROWS, LABELS), {"labels": TEXTS}, teacher=teacher, more=more
    )
    assert {count for _, count, _ in found.values()} == {2 * LENGTH}


def test_narrow_states_are_projected_and_missing_outputs_named():
    student, teacher = model("base", hidden_size=4), model("base")
    distillation = Distillation(losses=(HiddenStates(layers=((1, 2),)),))
    states = (
        tuple(normal(ROWS, LENGTH, 4, seed=i) for i in range(3)),
        tuple(normal(ROWS, LENGTH, WIDTH, seed=i) for i in range(3)),
    )
    projections = init_projections(distillation, student.config, teacher.config)
    arguments = {"student": student, "teacher": teacher, "inputs": {}, "names": ()}
    more = [{"hidden_states": each} for each in states]
    found, *_ = terms("base", distillation, (), **arguments, more=more, projections=projections)
    expected = reference.hidden_mse_sum(states[0][1] @ projections["state_1"]["kernel"], states[1][2])
    assert found == {"hidden_mse": (*expected, 1.0)}
    with pytest.raises(InputError, match="the projection 'state_1' is missing"):
        terms("base", distillation, (), **arguments, more=more)
    with pytest.raises(InputError, match="call the model with output_hidden_states=True"):
        terms("base", distillation, (), **arguments)
    with pytest.raises(InputError, match="the teacher has no output logits, only start_logits"):
        distillation_terms(
            numpy_ops, LOSSES, Distillation(), model("masked-lm"), teacher, {"logits": 0}, {"start_logits": 0}, {}
        )
