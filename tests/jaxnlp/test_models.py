"""Test models of jaxnlp beyond their outputs, which tests/parity covers: weights, inputs, generation, errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnlp
from duonlp.errors import CheckpointError, ConfigError, InputError
from duonlp.parameters import parameters
from jaxnlp.heads import HEADS
from tests.cases import cases
from tests.engines import difference

BERT, GPT2 = (next(c for c in cases() if c.name == name) for name in ("bert-sequence-classification", "gpt2-causal-lm"))


@pytest.fixture(scope="module")
def bert():
    return jaxnlp.AutoModelForSequenceClassification.from_config(BERT.hf, seed=1)


@pytest.fixture(scope="module")
def gpt2():
    return jaxnlp.AutoModelForCausalLM.from_config(GPT2.hf | {"eos_token_id": None}, seed=3, initializer_range=0.5)


@pytest.mark.parametrize("head", list(HEADS))
def test_parameter_tree_matches_the_parameter_table(head):
    case = next(c for c in cases() if c.head == head)
    model = HEADS[head].from_config(case.hf)
    tree, spec = jaxnlp.parameter_tree(model), parameters(case.config, head)
    assert {path: leaf.shape for path, leaf in tree.items()} == {path: p.shape for path, p in spec.items()}
    assert model.num_parameters() == sum(leaf.size for leaf in tree.values())


def test_functional_trains_under_jit_and_grad(bert):
    apply, params = jaxnlp.functional(bert)
    inputs = BERT.inputs()
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        def loss(p):
            return apply(p, **inputs, rngs=nnx.Rngs(dropout=key))["loss"]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for i in range(12):
        params, state, value = step(params, state, jax.random.key(i))
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2


def test_dropout_draws_from_the_rngs_passed_in(bert):
    inputs = {k: v for k, v in BERT.inputs().items() if k != "labels"}
    plain = bert(**inputs)["logits"]
    first, again, other = (bert(**inputs, rngs=nnx.Rngs(dropout=s))["logits"] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_keeps_float32_parameters(dtype, tmp_path):
    folder = BERT.write(tmp_path / "m")
    inputs = {k: v for k, v in BERT.inputs().items() if k != "labels"}
    full = jaxnlp.AutoModelForSequenceClassification.from_pretrained(folder)
    half = jaxnlp.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    logits = half(**inputs)["logits"]
    assert logits.dtype == jnp.dtype(dtype)
    assert {leaf.dtype for leaf in jaxnlp.parameter_tree(half).values()} == {jnp.dtype("float32")}
    assert 0 < difference(np.asarray(logits, np.float32), np.asarray(full(**inputs)["logits"])) < 0.05
    stored = jaxnlp.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, param_dtype=dtype)
    assert {leaf.dtype for leaf in jaxnlp.parameter_tree(stored).values()} == {jnp.dtype(dtype)}


def test_compiled_matches_the_model(bert):
    run = jaxnlp.compiled(bert)
    inputs = {k: v for k, v in BERT.inputs().items() if k != "labels"}
    assert difference(run(**inputs)["logits"], bert(**inputs)["logits"]) < 1e-6


def test_a_second_prompt_of_another_length_does_not_compile_again(gpt2):
    from jaxnlp.generation.search import _advance, _start

    _start.clear_cache(), _advance.clear_cache()
    gpt2.generate(np.full((1, 5), 7), max_new_tokens=5)
    gpt2.generate(np.full((1, 7), 7), max_new_tokens=6)
    gpt2.generate(np.full((1, 8), 9), max_new_tokens=8)
    assert _start._cache_size() == _advance._cache_size() == 1


def test_batching_does_not_change_generation(gpt2):
    prompts = [[5, 6, 7, 8, 9], [20, 21], [30, 31, 32]]
    alone = [gpt2.generate(np.array([p]), max_new_tokens=6)[0, len(p) :] for p in prompts]
    ids = np.array([[0] * (5 - len(p)) + p for p in prompts])
    mask = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in prompts])
    together = gpt2.generate(ids, mask, max_new_tokens=6)[:, 5:]
    assert len({tuple(row) for row in alone}) > 1
    assert np.array_equal(together, alone)


def test_generation_stops_at_the_end_token_and_pads(gpt2):
    prompts = np.array([[5, 6, 7], [20, 21, 22]])
    free = gpt2.generate(prompts, max_new_tokens=8)
    eos = int(free[0, 4])
    ended = gpt2.generate(prompts, max_new_tokens=8, eos_token_id=eos, pad_token_id=60)
    stop = list(free[0, 3:]).index(eos)
    assert list(ended[0, 3 : 4 + stop]) == list(free[0, 3 : 4 + stop])
    assert set(ended[0, 4 + stop :]) <= {60}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 50}, "exceed the 20 positions"),
        ({"max_length": 2}, "max_length is 2"),
        ({"temprature": 1.0}, "unknown generation option 'temprature'"),
        ({"num_beams": 4, "num_beam_groups": 3}, "not divisible by num_beam_groups=3"),
    ],
)
def test_invalid_generation_options(gpt2, options, message):
    with pytest.raises(InputError, match=message):
        gpt2.generate(np.array([[5, 6, 7]]), **options)


@pytest.mark.parametrize(
    ("prompt", "mask", "message"),
    [
        ([[61]], None, "input_ids contains 61, but this model's token ids are 0 to 60"),
        ([[]], None, "prompt is empty"),
        ([5, 6], None, r"shape \(2,\)"),
        ([[5, 6]], [[0, 0]], "all padding"),
        ([[5, 6]], [[1, 0]], "pad prompts on the left"),
        ([[5, 6]], [[1]], "must have the same shape"),
    ],
)
def test_invalid_prompts(gpt2, prompt, mask, message):
    with pytest.raises(InputError, match=message):
        gpt2.generate(np.array(prompt, np.int32), mask, max_new_tokens=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": np.full((1, 3), 99)}, "contains 99"),
        ({"input_ids": np.full((1, 3), -1)}, "contains -1"),
        ({"input_ids": np.ones((1, 21), int)}, "21 tokens is longer than the 20 positions"),
        ({"input_ids": np.ones(3, int)}, r"shape \(3,\)"),
        ({"input_ids": np.ones((1, 3))}, "must be integers"),
        (
            {"input_ids": np.ones((1, 3), int), "token_type_ids": np.full((1, 3), 2)},
            "this model's token types are 0 to 1",
        ),
        (
            {"input_ids": np.ones((1, 3), int), "position_ids": np.full((1, 3), 20)},
            "this model's positions are 0 to 19",
        ),
        ({"input_ids": np.ones((1, 3), int), "inptu_mask": 1}, "unknown input 'inptu_mask'"),
    ],
)
def test_invalid_inputs(bert, inputs, message):
    with pytest.raises(InputError, match=message):
        bert(**inputs)


def test_too_long_inputs_raise_under_jit(bert):
    apply, params = jaxnlp.functional(bert)
    with pytest.raises(InputError, match="longer than the 20 positions"):
        jax.jit(apply)(params, input_ids=np.ones((1, 21), int))


def test_loading_with_invalid_heads_and_options(tmp_path):
    folder = BERT.write(tmp_path / "m")
    with pytest.raises(ConfigError, match="is_decoder=True"):
        jaxnlp.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ConfigError, match="has no 'replaced-token-detection' head"):
        HEADS["replaced-token-detection"].from_pretrained(folder)
    with pytest.raises(InputError, match="dtype 'int8' is not supported"):
        jaxnlp.AutoModel.from_pretrained(folder, dtype="int8")
    with pytest.raises(InputError, match="unknown keyword 'num_label'"):
        jaxnlp.AutoModel.from_pretrained(folder, num_label=3)
    with pytest.raises(CheckpointError, match="no folder"):
        jaxnlp.AutoModel.from_pretrained(tmp_path / "nowhere")


def test_pretraining_uses_the_head_of_the_family():
    classes = {t: jaxnlp.AutoModelForPreTraining.class_for(t).head for t in ("bert", "electra", "roberta", "gpt2")}
    assert classes == {
        "bert": "pretraining",
        "electra": "replaced-token-detection",
        "roberta": "masked-lm",
        "gpt2": "causal-lm",
    }


def test_saving_keeps_labels_generation_options_and_values(tmp_path):
    model = jaxnlp.AutoModelForCausalLM.from_config(GPT2.hf | {"id2label": {"0": "a", "1": "b"}})
    model.save_pretrained(tmp_path / "m")
    back = jaxnlp.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert back.config == model.config and back.config.labels == ("a", "b")
    assert back.generation_config == model.generation_config
    a, b = jaxnlp.parameter_tree(model), jaxnlp.parameter_tree(back)
    assert all(np.array_equal(a[path], b[path]) for path in a)


def test_models_need_no_graph_mode():
    code = (
        "import numpy as np, jax, jaxnlp\n"
        "from tests.cases import cases\n"
        "case = next(c for c in cases() if c.name == 'gpt2-causal-lm')\n"
        "model = jaxnlp.AutoModelForCausalLM.from_config(case.hf)\n"
        "apply, params = jaxnlp.functional(model)\n"
        "grads = jax.grad(lambda p: apply(p, **case.inputs())['loss'])(params)\n"
        "assert np.isfinite(jax.tree.leaves(grads)[0]).all()\n"
        "model.generate(np.array([[5, 6]]), max_new_tokens=2)\n"
        "jaxnlp.compiled(model)(input_ids=np.array([[5, 6]]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=_environment(NNX_GRAPH_MODE="false"), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def _environment(**extra):
    import os

    return os.environ | extra
