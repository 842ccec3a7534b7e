"""Settings of distillation, compatibility of two models, and the NumPy reference losses against worked examples."""

import json
import math
import tomllib

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.distillation import reference_losses as reference
from duonlp.distillation.pair import (
    Attentions,
    Distillation,
    HiddenStates,
    Relations,
    check_pair,
    head_kind,
    init_projections,
    term_names,
    uniform_map,
)
from duonlp.errors import InputError

BERT = {
    "model_type": "bert", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 20, "id2label": {0: "yes", 1: "no", 2: "oos"},
}  # fmt: skip
BART = {
    "model_type": "bart", "vocab_size": 61, "d_model": 24, "max_position_embeddings": 20, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
}  # fmt: skip
CLASSIFIER = ("sequence-classification",) * 2
CLASSES = "single_label_classification"


def bert(**changes):
    return config_from_hf(BERT | changes)


class Tokenizer:
    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_settings_from_toml_round_trip_through_json():
    settings = tomllib.loads("""
        alpha = 0.3
        temperature = 4
        positions = "attended"
        [[losses]]
        loss = "hidden_states"
        kind = "cosine"
        layers = [[-1, -1], [0, 0]]
        [[losses]]
        loss = "relations"
        weight = 2.0
        heads = 8
        of = ["key"]
        [[losses]]
        loss = "attentions"
    """)
    made = Distillation.of(settings)
    assert made == Distillation(
        0.3,
        4,
        (HiddenStates(1.0, "cosine", ((-1, -1), (0, 0))), Relations(2.0, 8, of=("key",)), Attentions()),
        "attended",
    )
    assert Distillation.of(json.loads(json.dumps(made.to_dict()))) == made and hash(made)
    assert Distillation.of(Distillation().to_dict()) == Distillation()
    assert made.needs_hidden_states and made.needs_attentions and not Distillation().needs_hidden_states


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": "half"}, "alpha is 'half'"),
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temprature": 2}, "'temprature' is not a setting of distillation; .* did you mean 'temperature'"),
        ({"positions": "label"}, "positions is 'label'.*did you mean 'labelled'"),
        ({"losses": "attentions"}, "give a list of tables"),
        ({"losses": [{"kind": "kl"}]}, "has no `loss` key; set it to one of hidden_states, attentions, relations"),
        ({"losses": [{"loss": "attention"}]}, "loss is 'attention'.*did you mean 'attentions'"),
        ({"losses": [{"loss": "attentions", "knid": "kl"}]}, "'knid' is not a setting of the attentions loss.*'kind'"),
        ({"losses": [{"loss": "attentions", "kind": "cosine"}]}, "it must be one of kl, mse"),
        ({"losses": [{"loss": "hidden_states", "kind": "kl"}]}, "it must be one of mse, cosine"),
        ({"losses": [{"loss": "hidden_states", "weight": -1}]}, "weight of the hidden_states loss is -1"),
        ({"losses": [{"loss": "hidden_states", "layers": [[1, 2, 3]]}]}, "give pairs of integers"),
        ({"losses": [{"loss": "hidden_states", "layers": []}]}, "give pairs of integers"),
        ({"losses": [{"loss": "hidden_states", "layers": [[0, 1.5]]}]}, "give pairs of integers"),
        ({"losses": [{"loss": "relations", "heads": 0}]}, "heads of a relations loss is 0"),
        ({"losses": [{"loss": "relations", "of": ["query", "query"]}]}, "each once"),
        ({"losses": [{"loss": "relations", "of": ["values"]}]}, "did you mean 'value'"),
        ({"losses": [{"loss": "relations", "layers": None}]}, "needs layers"),
        ({"losses": [3]}, "3 is not a loss"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Distillation.of(settings)


def test_distilberts_three_parts_are_five_to_two_to_one():
    made = Distillation.distilbert()
    (cosine,) = made.losses
    np.testing.assert_allclose([(1 - made.alpha) * 7, made.alpha * 7, cosine.weight * 7], [5, 2, 1])
    assert (made.temperature, cosine.kind, cosine.layers) == (2.0, "cosine", ((-1, -1),))


def test_layers_are_mapped_evenly_or_explicitly():
    assert uniform_map(3, 6) == ((0, 0), (1, 2), (2, 4), (3, 6))
    assert uniform_map(2, 3) == ((0, 0), (1, 2), (2, 3))
    assert HiddenStates().pairs(2, 6) == ((0, 0), (1, 3), (2, 6))
    assert Attentions().pairs(2, 6) == ((0, 2), (1, 5)) and Attentions().pairs(2, 1) == ((0, 0), (1, 0))
    assert HiddenStates(layers=((-1, -1), (0, 1))).pairs(2, 6) == ((2, 6), (0, 1))
    assert Relations().pairs(2, 6) == ((1, 5),)
    with pytest.raises(
        InputError, match=r"\[3, 0\], but the student has no hidden state 3; give an index from -3 to 2"
    ):
        HiddenStates(layers=((3, 0),)).pairs(2, 6)
    with pytest.raises(InputError, match="the teacher has no layer -7; give an index from -6 to 5"):
        Relations(layers=((0, -7),)).pairs(2, 6)


def test_kinds_of_logits_and_names_of_terms():
    plain, several, number = bert(), bert(problem_type="multi_label_classification"), bert(id2label={0: "score"})
    whole, shares = np.zeros(3, np.int32), np.zeros((3, 3), np.float32)
    head = "sequence-classification"
    assert head_kind(head, plain, whole) == head_kind(head, plain) == "softmax"
    assert head_kind(head, plain, shares) == head_kind(head, several, whole) == "bernoulli"
    assert head_kind(head, number, shares) == "regression"
    assert head_kind("base", plain) is None and head_kind("masked-lm", number) == "softmax"
    assert head_kind("question-answering", plain) == "span"
    losses = HiddenStates(), HiddenStates(kind="cosine"), HiddenStates(2.0), Relations()
    inside = "hidden_mse", "hidden_cosine", "hidden_mse_2", "relation_kl"
    assert term_names(Distillation(losses=losses), head, plain, "softmax") == ("logits_kl", *inside)
    assert term_names(Distillation(alpha=1.0, losses=losses), head, plain, "softmax") == inside
    assert term_names(Distillation(), head, plain, "bernoulli") == ("logits_bernoulli_kl",)
    assert term_names(Distillation(), "question-answering", plain, "span") == ("start_logits_kl", "end_logits_kl")


def test_projections_for_compared_states_if_widths_differ():
    narrow = bert(hidden_size=12, num_hidden_layers=2)
    losses = HiddenStates(), HiddenStates(kind="cosine", layers=((-1, -1),)), Relations()
    made = init_projections(Distillation(losses=losses), narrow, bert(), seed=3)
    assert {name: projection["kernel"].shape for name, projection in made.items()} == dict.fromkeys(
        ("state_0", "state_1", "state_2"), (12, 24)
    )
    assert all(0.2 < projection["kernel"].std() < 0.4 for projection in made.values())  # 1 / sqrt(12)
    assert init_projections(Distillation(losses=losses), bert(), bert()) == {}
    assert init_projections(Distillation(losses=losses[2:]), narrow, bert()) == {}


def test_labels_are_reordered_and_different_ones_rejected():
    student, teacher = bert(), bert(id2label={0: "oos", 1: "yes", 2: "no"})
    options = {"distillation": Distillation(), "heads": CLASSIFIER}
    assert check_pair(student, student, **options) is None
    order = check_pair(student, teacher, **options)
    assert [teacher.labels[i] for i in order] == list(student.labels)
    with pytest.raises(
        InputError, match=r"the student has 3 \(oos only there\) and the teacher 3 \(maybe only there\)"
    ):
        check_pair(student, bert(id2label={0: "yes", 1: "no", 2: "maybe"}), **options)
    with pytest.raises(InputError, match=r"the student has 3 \(oos only there\) and the teacher 2;"):
        check_pair(student, bert(id2label={0: "yes", 1: "no"}), **options)
    # without logits, labels do not matter
    check_pair(
        student, bert(id2label={0: "a"}), distillation=Distillation(1.0, losses=(HiddenStates(),)), heads=CLASSIFIER
    )


@pytest.mark.parametrize(
    ("changes", "distillation", "heads", "message"),
    [
        ({"num_attention_heads": 2}, Distillation(losses=(Attentions(),)), CLASSIFIER, "has 2 attention heads and the .* 4"),
        ({}, Distillation(losses=(Attentions(layers=((0, 4),)),)), CLASSIFIER, "the teacher has no layer 4"),
        ({"num_hidden_layers": 2}, Distillation(losses=(HiddenStates(layers=((3, 3),)),)), CLASSIFIER, "student has no hidden"),
        ({}, Distillation(losses=(Relations(heads=5),)), CLASSIFIER, "5 relation heads do not divide the student's width of 24"),
        ({}, Distillation(), ("sequence-classification", "masked-lm"), "classification and the teacher's is masked-lm"),
        ({}, Distillation(1.0), CLASSIFIER, "nothing is learned from the teacher: alpha is 1"),
        ({}, Distillation(), ("base", "base"), "a base model has no logits"),
        ({"vocab_size": 70}, Distillation(), CLASSIFIER, "vocabulary has 70 tokens and the teacher's has 61; add the"),
        ({"vocab_size": 70}, Distillation(), ("masked-lm",) * 2, "logits are over 70 tokens and the teacher's over 61"),
        ({}, Distillation(losses=(HiddenStates(),)), ("multiple-choice",) * 2, "not supported for multiple choice"),
        ({"problem_type": "multi_label_classification"}, Distillation(), CLASSIFIER, "set the student's to the teacher's"),
    ],
)  # fmt: skip
def test_incompatible_pairs(changes, distillation, heads, message):
    teacher = bert(problem_type=CLASSES)
    with pytest.raises(InputError, match=message):
        check_pair(bert(**{"problem_type": CLASSES} | changes), teacher, distillation=distillation, heads=heads)


def test_encoder_decoders_have_no_relations_and_need_an_encoder_decoder():
    bart, heads = config_from_hf(BART), ("seq2seq-lm",) * 2
    check_pair(bart, bart, distillation=Distillation(losses=(HiddenStates(), Attentions())), heads=heads)
    with pytest.raises(InputError, match="does not support encoder-decoders such as bart"):
        check_pair(bart, bart, distillation=Distillation(losses=(Relations(),)), heads=heads)
    with pytest.raises(InputError, match="one of the models is an encoder-decoder"):
        check_pair(bert(), bart, distillation=Distillation(1.0, losses=(HiddenStates(),)), heads=heads)


def test_different_tokenizers_need_separate_inputs_and_outputs_per_text():
    configs, own, others = (bert(), bert()), Tokenizer("a", "b", "c"), Tokenizer("a", "c", "b")
    options = {"distillation": Distillation(), "heads": CLASSIFIER}
    assert check_pair(*configs, own, Tokenizer("a", "b", "c"), **options) is None
    with pytest.raises(
        InputError,
        match="2 of the student's 3 tokens have another id in the teacher's vocabulary, such as 'b': 1 and 2",
    ):
        check_pair(*configs, own, others, **options)
    with pytest.raises(InputError, match="the teacher's vocabulary has 1 more tokens"):
        check_pair(*configs, own, Tokenizer("a", "b", "c", "d"), **options)
    assert check_pair(*configs, own, others, own_inputs=True, **options) is None
    inside = {"distillation": Distillation(losses=(HiddenStates(),)), "heads": CLASSIFIER}
    with pytest.raises(InputError, match="only outputs per text can then be compared"):
        check_pair(*configs, own, others, own_inputs=True, **inside)
    with pytest.raises(InputError, match="use another head than token-classification"):
        check_pair(
            *configs, own, others, own_inputs=True, distillation=Distillation(), heads=("token-classification",) * 2
        )
    with pytest.raises(InputError, match="without both tokenizers its tokens may not match"):
        check_pair(*configs, own_inputs=True, **inside)
    assert check_pair(*configs, own, own, own_inputs=True, **inside) is None


# Worked examples of the reference losses.


def test_the_kl_is_between_softmaxes():
    """Two classes with logit differences of 2 and 0 at T = 2: p = sigmoid(1) against 1/2."""
    p = 1 / (1 + math.exp(-1))
    total, count = reference.kl_divergence_sum([[5.0, 5.0]], [[3.0, 1.0]], 2.0)
    assert count == 1 and total == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    # the same formula on raw logits is not even positive
    assert 3.0 * math.log(3 / 5) + 1.0 * math.log(1 / 5) < 0
    # a Bernoulli is a softmax of two classes, one with logit 0
    assert reference.bernoulli_kl_divergence_sum([[0.0]], [[2.0]], 2.0)[0] == pytest.approx(total)
    assert reference.bernoulli_kl_divergence_sum(np.zeros((2, 3)), np.zeros((2, 3)), mask=[1, 0]) == (0.0, 3.0)


def test_temperature_squared_preserves_the_gradient_scale():
    """For T much larger than the logits, T^2 KL is the squared distance of centered logits / 2C (Hinton et al. 2015)."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 7))
    centered = [x - x.mean(axis=-1, keepdims=True) for x in (student, teacher)]
    total, _ = reference.kl_divergence_sum(student, teacher, 1e4)
    assert total * 1e8 == pytest.approx(np.sum((centered[0] - centered[1]) ** 2) / 14, rel=1e-3)


def test_masks_and_weights_of_the_reference():
    student, teacher = np.array([[[3.0, 4.0], [1.0, 0.0]]]), np.array([[[4.0, 3.0], [0.0, 2.0]]])
    assert reference.hidden_cosine_sum(student, teacher) == (pytest.approx(1 - 24 / 25 + 1), 2.0)
    assert reference.hidden_cosine_sum(student, teacher, [[1, 0]]) == (pytest.approx(1 - 24 / 25), 1.0)
    assert reference.hidden_mse_sum(student, teacher, [[0, 1]], [3.0]) == (pytest.approx(3 * 2.5), 1.0)
    assert reference.squared_error_sum([[1.0], [2.0]], [[3.0], [2.5]], [1, 1], [0.5, 2.0]) == (2 + 0.5, 2.0)
    probabilities = np.array([[[[0.5, 0.5, 0.0]] * 3]]), np.array([[[[1.0, 0.0, 0.0]] * 3]])
    assert reference.attention_mse_sum(*probabilities, [[1, 1, 0]]) == (pytest.approx(2 * 0.25), 2.0)
    assert reference.attention_kl_sum(*probabilities, [[1, 0, 0]]) == (pytest.approx(math.log(2)), 1.0)
    # one head of width 1 and two tokens: relations are softmaxes of products
    p = 1 / (1 + math.exp(-2))  # token 2 of the teacher: products 2 and 4
    q = 0.5
    first = 1 / (1 + math.exp(-1))  # token 1: products 1 and 2
    expected = sum(x * math.log(x / q) + (1 - x) * math.log((1 - x) / q) for x in (p, first))
    result = reference.relation_kl_sum(np.zeros((1, 3, 1)), np.array([[[1.0], [2.0], [9.0]]]), 1, [[1, 1, 0]])
    assert result == (pytest.approx(expected), 2.0)
