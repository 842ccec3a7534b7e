"""Test the API that both engines share, on both."""

from importlib import import_module

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from duonlp.errors import ConfigError, InputError, NonFiniteOutputError
from duonlp.generation import GenerationConfig
from duonlp.parity import compare
from tests.cases import Case, cases
from tests.engines import difference
from tests.reference import record_pipelines as reference

BERT, GPT2, SCORE = (
    next(c for c in cases() if c.name == name)
    for name in ("bert-sequence-classification", "gpt2-causal-lm", "gpt2-sequence-classification")
)


@pytest.fixture(params=["jax", "tf"], scope="module")
def nlp(request):
    return import_module(f"{request.param}nlp")


@pytest.fixture(scope="module")
def bert(nlp):
    return nlp.AutoModelForSequenceClassification.from_config(BERT.hf, seed=1)


@pytest.fixture(scope="module")
def gpt2(nlp):
    return nlp.AutoModelForCausalLM.from_config(GPT2.hf | {"eos_token_id": None}, seed=3, initializer_range=0.5)


def test_same_seed_gives_same_weights_in_both_engines():
    trees = [
        import_module(f"{framework}nlp").AutoModelForSequenceClassification.from_config(BERT.hf, seed=5)
        for framework in ("jax", "tf")
    ]
    jax_tree, tf_tree = (import_module(type(m).__module__.split(".")[0]).parameter_tree(m) for m in trees)
    assert set(jax_tree) == set(tf_tree)
    assert all(np.array_equal(np.asarray(jax_tree[path]), np.asarray(tf_tree[path])) for path in jax_tree)


def test_from_config_accepts_every_kind_of_config(nlp):
    from transformers import BertConfig

    theirs = BertConfig(**{k: v for k, v in BERT.hf.items() if k != "model_type"})
    model = nlp.AutoModelForSequenceClassification.from_config(theirs)
    assert model.config.hidden_size == BERT.hf["hidden_size"] and model.config.num_labels == 3
    again = nlp.AutoModelForSequenceClassification.from_config(model.config, num_labels=5)
    assert again.config.num_labels == 5
    with pytest.raises(InputError, match="unknown keyword 'nonsense'"):
        nlp.AutoModel.from_config(model.config, nonsense=1)
    with pytest.raises(InputError, match="config is a str"):
        nlp.AutoModel.from_config("bert")


@pytest.mark.parametrize(
    ("keyword", "message"), [("from_pt", "safetensors"), ("torch_dtype", "dtype="), ("token", "HF_TOKEN")]
)
def test_removed_keywords_name_their_replacement(nlp, keyword, message):
    with pytest.raises(InputError, match=message):
        nlp.AutoModel.from_pretrained("anything", **{keyword: True})


def test_unsupported_head_raises(nlp, tmp_path):
    with pytest.raises(ConfigError, match="is_decoder=True"):
        nlp.AutoModelForCausalLM.from_pretrained(BERT.write(tmp_path / "m"))
    with pytest.raises(ConfigError, match="has no 'next-sentence-prediction' head"):
        nlp.AutoModelForNextSentencePrediction.from_config(GPT2.hf)


def test_compiled_models_check_their_inputs(nlp, bert):
    run = nlp.compiled(bert)
    inputs = {k: v for k, v in BERT.inputs().items() if k != "labels"}
    out = run(**inputs, output_hidden_states=True)
    assert difference(out["logits"], np.asarray(bert(**inputs)["logits"])) < 1e-6
    assert len(out["hidden_states"]) == 3
    with pytest.raises(InputError, match="input_ids contains 61, but this model's token ids"):
        run(input_ids=np.full((1, 3), 61))
    with pytest.raises(InputError, match="longer than the 20 positions"):
        run(input_ids=np.ones((1, 21), np.int32))
    with pytest.raises(InputError, match="unknown input 'mask'"):
        run(input_ids=np.ones((1, 3), np.int32), mask=1)


def test_classifier_without_padding_id_uses_the_mask(nlp):
    model = nlp.AutoModelForSequenceClassification.from_config(SCORE.hf | {"pad_token_id": None})
    ids, mask = np.array([[5, 6, 7, 8]]), np.array([[1, 1, 0, 0]])
    alone = np.asarray(model(input_ids=ids[:, :2])["logits"])
    assert difference(np.asarray(model(input_ids=ids, attention_mask=mask)["logits"]), alone) < 1e-6


def test_generate_accepts_tokenizer_output_and_every_kind_of_config(gpt2):
    ids = np.array([[5, 6, 7]])
    expected = gpt2.generate(ids, max_new_tokens=4)
    assert np.array_equal(gpt2.generate(input_ids=ids, attention_mask=ids * 0 + 1, max_new_tokens=4), expected)
    assert np.array_equal(gpt2.generate(ids, generation_config={"max_new_tokens": 4, "eos_token_id": None}), expected)
    config = GenerationConfig(max_new_tokens=4, eos_token_id=[58, 59])
    assert np.array_equal(gpt2.generate(ids, generation_config=config)[:, :4], expected[:, :4])
    with pytest.raises(InputError, match="generation_config is a int"):
        gpt2.generate(ids, generation_config=3)


def test_unsupported_stored_generation_option_warns(nlp, tmp_path):
    folder = GPT2.write(tmp_path / "m")
    (folder / "generation_config.json").write_text(
        '{"assistant_early_exit": 4, "repetition_penalty": 1.0, "eos_token_id": 3}'
    )
    with pytest.warns(UserWarning, match="assistant_early_exit=4 is unsupported"):
        model = nlp.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == 3


@pytest.mark.parametrize("name", [c.name for c in cases() if c.head == "causal-lm" and "[" not in c.name])
def test_greedy_ids_match_uncached_passes(nlp, name):
    """Positions are passed because RoBERTa's `generate` counts them from 0, as Transformers does."""
    case = next(c for c in cases() if c.name == name)
    model = nlp.AutoModelForCausalLM.from_config(
        Case(name, case.hf | {"eos_token_id": None}, "causal-lm").hf, initializer_range=0.5, seed=2
    )
    ids = np.array([[7, 8, 9]])
    out = model.generate(ids, max_new_tokens=3)
    for _ in range(3):
        positions = np.arange(ids.shape[1], dtype=np.int32)[None]
        logits = np.asarray(model(input_ids=ids, position_ids=positions)["logits"])
        ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], axis=1)
    assert np.array_equal(out, ids)


def test_compare_supports_encoder_decoders(tmp_path):
    case = next(case for case in cases() if case.name == "bart-seq2seq-lm")
    report = compare(case.write(tmp_path / "m"), frameworks=("tf", "jax"), max_new_tokens=4)
    assert report.ok and report.same_ids
    assert {row.output for row in report.rows} == {"logits", "encoder_last_hidden_state"}
    assert len(report.generated["jax"]) == 4 and len(report.generated_together["tf"]) == 2


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "seed": 1, "top_k": 3}, {"num_beams": 2}, {"penalty_alpha": 0.5}], ids=str
)
def test_logits_that_are_not_finite_are_an_error(nlp, options, tmp_path):
    """One NaN in the table of embeddings makes one logit NaN, whatever a framework's maximum of a NaN is."""
    model = nlp.AutoModelForCausalLM.from_config(GPT2.hf | {"eos_token_id": None}, seed=3)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("wte.weight"))
    tensors[name][57] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    broken = nlp.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = np.array([[7, 8, 9]])
    with pytest.raises(NonFiniteOutputError, match="prompt 0: the model's logits are not finite"):
        broken.generate(ids, max_new_tokens=3, **options)
    assert np.isfinite(np.asarray(broken(ids)["logits"])).sum() == 3 * 60  # only that one
    assert broken.generate(ids, max_new_tokens=3, remove_invalid_values=True, **options).shape == (1, 6)
    assert model.generate(ids, max_new_tokens=3, **options).shape == (1, 6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_generation_ends_when_time_is_up(nlp, gpt2, options):
    ids = np.array([[7, 8, 9]])
    expected = gpt2.generate(ids, max_new_tokens=12, **options)
    assert np.array_equal(gpt2.generate(ids, max_new_tokens=12, max_time=600.0, **options), expected)
    short = gpt2.generate(ids, max_new_tokens=12, max_time=0.0, **options)
    assert 4 <= short.shape[1] <= 5
    assert len(list(nlp.generation.stream(gpt2, ids, max_new_tokens=12, max_time=0.0))) == 1


def test_a_pipeline_names_the_input_whose_output_is_not_finite(nlp, tmp_path):
    tokenizer = reference.load_tokenizer("wordpiece")
    hf = BERT.hf | {"vocab_size": len(tokenizer)}
    nlp.AutoModelForSequenceClassification.from_config(hf).save_pretrained(tmp_path, tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][tokenizer("London")["input_ids"][1]] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    pipe = nlp.pipeline("text-classification", tmp_path)
    assert pipe(["Ada", "the loom"])
    with pytest.raises(
        NonFiniteOutputError, match=r"input 1: the model's logits are not finite .*check its weights.*float16"
    ):
        pipe(["Ada", "in London", "the loom"])
