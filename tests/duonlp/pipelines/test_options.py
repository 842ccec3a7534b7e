"""Every option of every task has an effect, or is refused where it cannot have one."""

import json
from dataclasses import fields

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError, NonFiniteOutputError
from duonlp.generation.config import GenerationConfig
from duonlp.generation.driver import Extras, _check_effects
from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import make_pipeline
from duonlp.tasks import TASKS, get_task
from tests.duonlp.tasks.test_text2text import make as make_text2text
from tests.reference import record_images
from tests.reference import record_pipelines as reference

HF = {
    "model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8,
    "max_position_embeddings": 64, "id2label": {str(i): label for i, label in enumerate(reference.LABELS)},
}  # fmt: skip
TEXT, LONG = reference.TEXTS[0], reference.LONG_TEXT
QUESTION = {"question": "Who wrote the first program in London?", "context": LONG}
IMAGE = record_images.images()[0]
WORDS = [["Ada", "Lovelace", "wrote"]]
FORWARD = {
    "text-classification": "classify",
    "zero-shot-classification": "classify",
    "token-classification": "tag",
    "fill-mask": "fill",
    "text-generation": "generate",
}
ENTITIES = {"aggregation_strategy": "simple", "ignore_labels": []}

# Task -> option -> (input, options of both calls, value with which the result differs).
PROBES = {
    "text-classification": {
        "truncation": (LONG, {"max_length": None}, True), "max_length": (TEXT, {}, 4), "top_k": (TEXT, {}, None),
        "function_to_apply": (TEXT, {}, "none"),
    },
    "zero-shot-classification": {
        "candidate_labels": (TEXT, {}, "cities"), "hypothesis_template": (TEXT, {}, "About {}"), "multi_label": (TEXT, {}, True),
        "max_length": (LONG, {}, 20), "entailment_label": (TEXT, {}, 1),
    },
    "token-classification": {
        "aggregation_strategy": (TEXT, {"ignore_labels": []}, "simple"), "ignore_labels": (TEXT, {}, []),
        "stride": (LONG, ENTITIES, 4), "is_split_into_words": (WORDS[0], {"ignore_labels": []}, True),
        "delimiter": (WORDS, {"is_split_into_words": True, "ignore_labels": []}, "--"),
    },
    "fill-mask": {
        "truncation": (LONG + "[MASK]", {}, True), "max_length": ("[MASK] " + TEXT, {}, 4), "top_k": ("a [MASK]", {}, 2),
        "targets": ("a [MASK]", {}, ["in"]),
    },
    "question-answering": {
        "top_k": (QUESTION, {}, 3), "doc_stride": (QUESTION, {"max_seq_len": 30}, 2), "max_answer_len": (QUESTION, {}, 1),
        "max_seq_len": (QUESTION, {}, 30), "max_question_len": (QUESTION, {"max_seq_len": 12, "doc_stride": 1}, 3),
        "handle_impossible_answer": (QUESTION, {"top_k": 9999}, True), "align_to_words": (QUESTION, {"top_k": 50}, False),
    },
    "feature-extraction": {
        "truncation": (LONG, {}, True), "max_length": (TEXT, {}, 4), "return_tensors": (TEXT, {}, True),
    },
    "sentence-embedding": {
        "truncation": (LONG, {}, False), "max_length": (TEXT, {}, 4), "normalize": (TEXT, {}, True),
        "prompt": (TEXT, {}, "query: "), "prompt_name": (TEXT, {}, "query"),
    },
    "image-classification": {"top_k": (IMAGE, {}, 1), "function_to_apply": (IMAGE, {}, "none")},
}  # fmt: skip


def make_pipe(task: str, tmp_path):
    if task == "image-classification":
        from transformers import AutoImageProcessor

        folder = record_images.write_model(tmp_path, "cropped")
        config = config_from_hf(json.loads((folder / "config.json").read_text()))
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((1, config.num_labels)).astype(np.float32)
        return make_pipeline(
            task, lambda batch: {"logits": np.repeat(logits, len(batch["pixel_values"]), 0)}, processor, config
        )
    tokenizer = reference.load_tokenizer("wordpiece")
    model = reference.NumpyModel(len(tokenizer))
    folder = None
    if task == "sentence-embedding":
        folder = tmp_path
        modules = [
            {"type": f"sentence_transformers.models.{name}", "path": name} for name in ("Transformer", "Pooling")
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "Pooling").mkdir()
        (folder / "Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
        (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    options = {}
    if task == "zero-shot-classification":
        options = {"candidate_labels": ["program", "loom"], "entailment_label": 0}
    forward = getattr(model, FORWARD.get(task, "__call__"))
    return make_pipeline(
        task, forward, tokenizer, config_from_hf(HF | {"vocab_size": len(tokenizer)}), folder, **options
    )


def outcome(pipe, inputs, options):
    """Return the result of a call as text with its types, or the error."""
    with np.errstate(all="ignore"):
        try:
            result = pipe(inputs, **options)
        except InputError as error:
            return str(error)
    return f"{type(result)} {np.asarray(result).tolist() if isinstance(result, np.ndarray) else result}"


@pytest.mark.filterwarnings("ignore:token-classification")
@pytest.mark.parametrize("task", PROBES)
def test_every_option_of_a_task_has_an_effect(task, tmp_path):
    assert set(PROBES[task]) == {f.name for f in fields(get_task(task).Options)}
    pipe = make_pipe(task, tmp_path)
    for name, (inputs, options, value) in PROBES[task].items():
        assert outcome(pipe, inputs, options) != outcome(pipe, inputs, options | {name: value}), name


def test_every_task_is_probed():
    assert {task for task in TASKS if not get_task(task).generates} == set(PROBES)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("text-classification", {"max_length": 4, "truncation": False}, "max_length=4 has no effect with truncation=False"),
        ("feature-extraction", {"tokenize_kwargs": {"max_length": 4, "truncation": "do_not_truncate"}}, "max_length=4 has no"),
        ("sentence-embedding", {"prompt": "a", "prompt_name": "query"}, "pass one of them"),
        ("token-classification", {"delimiter": "-"}, "delimiter='-' joins words"),
    ],
)  # fmt: skip
def test_options_that_cannot_have_an_effect_are_refused(task, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_pipe(task, tmp_path)(TEXT, **options)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("text2text-generation", {"return_tensors": True, "skip_special_tokens": False}, "skip_special_tokens=False has no"),
        ("text2text-generation", {"return_tensors": True, "clean_up_tokenization_spaces": True}, "clean_up_tokenization_"),
        ("text2text-generation", {"return_text": False}, "contradictory"),
        ("summarization", {"return_chunks": True}, "return_chunks=True has no effect with long_documents='error'"),
        ("summarization", {"language": "de", "truncation": True}, "language='de' has no effect with long_documents='truncate'"),
    ],
)  # fmt: skip
def test_options_of_text_that_cannot_have_an_effect_are_refused(task, options, message):
    pipe, _ = make_text2text(task)
    with pytest.raises(InputError, match=message):
        pipe("w1 w2", **options)


def test_a_length_truncates():
    tokenizer = reference.load_tokenizer("wordpiece")
    model = reference.NumpyModel(len(tokenizer))
    pipe = make_pipeline("feature-extraction", model, tokenizer, config_from_hf(HF | {"vocab_size": len(tokenizer)}))
    assert np.shape(pipe(TEXT, tokenize_kwargs={"max_length": 3})) == (
        1,
        3,
        np.shape(pipe(TEXT))[2],
    )  # as in Transformers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_assistant_tokens": 3}, "num_assistant_tokens=3 has no effect without assistant_model"),
        ({"max_matching_ngram_size": 3}, "has no effect without prompt_lookup_num_tokens"),
        ({"decoder_start_token_id": 3}, "has no effect without an encoder-decoder"),
    ],
)
def test_options_of_generate_that_cannot_have_an_effect_are_refused(options, message):
    model = type("Model", (), {"config": config_from_hf(HF | {"model_type": "gpt2"})})
    with pytest.raises(InputError, match=message):
        _check_effects(model, GenerationConfig().with_options(**options), Extras(), options)
    with pytest.raises(InputError, match="needs negative_prompt_ids"):
        _check_effects(model, GenerationConfig(), Extras(negative_prompt_attention_mask=[[1]]), {})


@pytest.mark.parametrize("name", ["dtype", "param_dtype", "revision", "local_files_only"])
def test_options_of_loading_are_refused_for_a_loaded_model(name):
    value = {"dtype": "bfloat16", "param_dtype": "float16", "revision": "main", "local_files_only": True}[name]
    model = type("Model", (), {"config": config_from_hf(HF), "head": "sequence-classification"})
    with pytest.raises(InputError, match=f"{name} is for loading a checkpoint"):
        load_pipeline({}, lambda model: None, "text-classification", model, **{name: value})


@pytest.mark.parametrize("task", [task for task in PROBES if task != "image-classification"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error(task, value, tmp_path):
    pipe = make_pipe(task, tmp_path)
    forward = pipe.forward
    short, long = {
        "question-answering": ({"question": "a", "context": "a"}, {"question": "a", "context": TEXT}),
        "fill-mask": ("[MASK]", "Ada [MASK] in London"),
    }.get(task, ("a", TEXT))
    few = max(example.length for example in pipe.task.encode([short], pipe.options)[0])

    def broken(batch):
        is_short = batch["attention_mask"].sum(1) <= few
        return {
            name: np.where(is_short.reshape(-1, *[1] * (array.ndim - 1)), np.float32(value), array)
            for name, array in forward(batch).items()
        }

    pipe.forward = broken
    assert pipe([long, long]) is not None
    with pytest.raises(
        NonFiniteOutputError, match=rf"{task}: input 1: the model's \w+ are not finite.*check its weights"
    ):
        pipe([long, short, long])


def test_options_of_the_constructor_may_have_their_effect_in_a_call(tmp_path):
    tokenizer = reference.load_tokenizer("wordpiece")
    config = config_from_hf(HF | {"vocab_size": len(tokenizer)})
    pipe = make_pipeline("feature-extraction", reference.NumpyModel(len(tokenizer)), tokenizer, config, max_length=3)
    assert np.shape(pipe(TEXT))[1] == 3 < np.shape(pipe(TEXT, truncation=False))[1]
    pipe = make_pipeline(
        "token-classification", reference.NumpyModel(len(tokenizer)).tag, tokenizer, config, delimiter="-"
    )
    assert pipe(WORDS, is_split_into_words=True, ignore_labels=[]) and pipe(TEXT, ignore_labels=[])
    pipe, _ = make_text2text("summarization", language="de", return_chunks=True, skip_special_tokens=False)
    assert "chunks" in pipe("w1 w2", long_documents="chunk")[0] and pipe("w1 w2", return_tensors=True)


def test_ids_have_no_part_of_a_text():
    tokenizer = reference.load_tokenizer("gpt2")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    config = config_from_hf({"model_type": "gpt2", **sizes})
    pipe = make_pipeline("text-generation", reference.NumpyModel(len(tokenizer)).generate, tokenizer, config)
    with pytest.raises(InputError, match="return_full_text=False applies to texts"):
        pipe("Ada", return_full_text=False, return_tensors=True)


def test_a_prefix_of_prompts():
    """Lengths do not count it, as in Transformers' pipeline; config.json may have one."""
    tokenizer = reference.load_tokenizer("gpt2")
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    config = config_from_hf({"model_type": "gpt2", **sizes, "prefix": "The engine "})
    seen = []

    def generate(ids, mask, **options):
        seen.append((tokenizer.decode(np.asarray(ids)[0]), options["max_new_tokens"], options.get("min_new_tokens")))
        return np.concatenate([np.asarray(ids), np.full((len(ids), 1), 40)], 1)

    pipe = make_pipeline("text-generation", generate, tokenizer, config)
    prompt = len(tokenizer("The engine Ada")["input_ids"])
    prefix = len(tokenizer("The engine ")["input_ids"])
    assert pipe("Ada", max_new_tokens=3)[0]["generated_text"].startswith("Ada")
    pipe("Ada", max_length=prompt + 5, min_length=prompt + 1)
    pipe("Ada", prefix="", max_length=prompt)
    alone = len(tokenizer("Ada")["input_ids"])
    assert seen == [
        ("The engine Ada", 3, None), ("The engine Ada", 5 + prefix, 1 + prefix), ("Ada", prompt - alone, None),
    ]  # fmt: skip
