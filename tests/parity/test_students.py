"""Students with some of a teacher's layers: the same layers and values in both frameworks."""

from dataclasses import replace

import numpy as np
import pytest

import jaxnlp
import tfnlp
from duonlp.distillation.students import choose_layers, student_config
from duonlp.errors import InputError
from jaxnlp.distillation.students import init_student as in_jax
from tests.cases import SIZES, Case, cases
from tfnlp.distillation.students import init_student as in_keras

ENCODER = {"num_hidden_layers": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"n_layer": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BART = {"encoder_layers": 3, "decoder_layers": 4, "dropout": 0.0}
T5 = {"num_layers": 3, "num_decoder_layers": 4, "dropout_rate": 0.0}
MODELS = {
    # name in tests.cases: (changes to its configuration, arguments of init_student, teacher's layers by stack)
    "bert-sequence-classification": (ENCODER, {"num_layers": 2}, {"encoder": (0, 3)}),
    "distilbert-masked-lm": ({"n_layers": 4, "dropout": 0.0}, {"layers": [-1, 1]}, {"encoder": (3, 1)}),
    "gpt2-causal-lm": (
        GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        {"layers": [0, 3]},
        {"decoder": (0, 3)},
    ),
    "albert-token-classification": (ENCODER, {"num_layers": 2}, {"encoder": (0, 0)}),
    "t5-seq2seq-lm": (T5, {"num_layers": 2, "decoder_layers": 2}, {"encoder": (0, 2), "decoder": (0, 3)}),
    "bart-seq2seq-lm": (BART, {"decoder_layers": [0, 2]}, {"encoder": (0, 1, 2), "decoder": (0, 2)}),
}


def case(name):
    base, (changes, arguments, origins) = next(c for c in cases() if c.name == name), MODELS[name]
    return Case(f"student-{name}", base.hf | changes, base.head), arguments, origins


def origin(path, origins):
    """Return the teacher's path of a student's parameter, if no layers share weights."""
    parts = path.split("/")
    if parts[1:] and parts[1].startswith("layer_"):
        parts[1] = f"layer_{origins[parts[0]][int(parts[1].removeprefix('layer_'))]}"
    return "/".join(parts)


def values_of(package, model):
    return {path: np.asarray(value).copy() for path, value in package.parameter_tree(model).items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_student_has_its_teachers_layers_in_both_frameworks(tmp_path, name):
    teacher_case, arguments, origins = case(name)
    folder, inputs = teacher_case.write(tmp_path / "teacher"), teacher_case.inputs()
    logits = {}
    for package, init_student in ((jaxnlp, in_jax), (tfnlp, in_keras)):
        auto = next(cls for cls in vars(package).values() if getattr(cls, "head", None) == teacher_case.head)
        teacher = auto.from_pretrained(folder)
        teacher.generation_config = replace(teacher.generation_config, num_beams=3)
        before = values_of(package, teacher)
        student = init_student(teacher, **arguments)
        assert type(student) is type(teacher) and student.folder is None
        assert student.generation_config == teacher.generation_config
        for path, value in values_of(package, student).items():
            source = path if "albert" in name else origin(path, origins)
            number = origins["decoder"].index(3) + 1 if "gpt2" in name and "layer_3/" in source else None
            factor = number / 4 if number and "/attention/query/" in path else 1
            np.testing.assert_array_equal(value, before[source] * np.float32(factor), err_msg=path)
        student.save_pretrained(tmp_path / "student")
        again = auto.from_pretrained(tmp_path / "student")
        assert again.config == student.config
        for path, value in values_of(package, again).items():
            np.testing.assert_array_equal(value, values_of(package, student)[path])
        logits[package] = np.asarray(student(**inputs)["logits"])
        if package is tfnlp:  # the values are copies, so training the student leaves the teacher unchanged
            for variable in student.trainable_variables:
                variable.assign_add(np.ones(variable.shape))
        for path, value in values_of(package, teacher).items():
            np.testing.assert_array_equal(value, before[path])
    np.testing.assert_allclose(logits[jaxnlp], logits[tfnlp], rtol=0, atol=1e-5 * np.abs(logits[jaxnlp]).max())


def test_layers_scaled_by_their_index_keep_their_attention():
    """Scores are divided by the layer's number, so the queries of a renumbered layer are rescaled."""
    hf = {"model_type": "gpt2", **SIZES["gpt2"], **GPT2, "n_layer": 2, "scale_attn_by_inverse_layer_idx": True}
    teacher = jaxnlp.AutoModel.from_config(hf, initializer_range=0.5)
    student = in_jax(teacher, layers=[1])
    ids = np.arange(2, 10)[None]
    out = teacher(ids, output_hidden_states=True, output_attentions=True)
    block, states = student.decoder.layer_0, out["hidden_states"][1]
    bias = np.where(np.tri(8, dtype=bool), 0.0, -1e30).astype(np.float32)[None, None]
    _, probabilities, _ = block(states, bias, layer_index=0)
    np.testing.assert_allclose(probabilities, out["attentions"][1], rtol=0, atol=1e-6)


def test_evenly_spaced_layers_match_distilbert():
    assert choose_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert choose_layers(12, 1) == (0,) and choose_layers(12, 12) == choose_layers(12) == tuple(range(12))
    assert choose_layers(6, 3) == (0, 2, 5) and choose_layers(6, 2) == (0, 5)
    assert choose_layers(6, layers=[-1, 0]) == (5, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 3, "layers": [0]}, "give only one of them"),
        ({"num_layers": 7}, "cannot copy 7 layers of the teacher's 6; give a number from 1 to 6"),
        ({"num_layers": 0}, "from 1 to 6"),
        ({"layers": [6]}, "numbered from 0 to 5"),
        ({"layers": []}, "numbered from 0 to 5"),
        ({"layers": [5, -1]}, "repeats a layer"),
    ],
)
def test_invalid_layers_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        choose_layers(6, **arguments)


def test_layers_that_a_configuration_cannot_express():
    bert = next(c for c in cases() if c.name == "bert-base").config
    with pytest.raises(InputError, match="has one stack of layers"):
        student_config(bert, "base", num_layers=1, decoder_layers=1)
    t5 = next(c for c in cases() if c.name == "t5-base").config
    with pytest.raises(InputError, match="cannot copy 3 decoder_layers of the teacher's 2"):
        student_config(t5, "base", decoder_layers=3)
    albert = next(c for c in cases() if "num_hidden_groups=2" in c.name).config  # (0, 1, 0, 1, 2, 3)
    student = student_config(albert, "base", layers=[0, 1, 4, 5]).config
    assert student.layer_order == (0, 1, 2, 3)
    with pytest.raises(InputError, match="cannot express the order"):
        student_config(albert, "base", layers=[0, 2, 4])
