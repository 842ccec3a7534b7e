"""Inputs and options that each task rejects, and the error messages."""

import re
import warnings

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.pipelines.pipeline import Pipeline, make_pipeline
from duonlp.tasks import TASKS, get_task
from duonlp.tasks.question_answering import best_spans
from tests.duonlp.tasks import test_image_classification as images
from tests.duonlp.tasks import test_text2text as text2text
from tests.duonlp.tasks.test_reference import make
from tests.reference import record_pipelines as reference

TEXTS = [name for name in TASKS if get_task(name).needs == "tokenizer"]
GOOD = dict.fromkeys(TASKS, "Ada Lovelace wrote") | {
    "image-classification": np.zeros((6, 5, 3), np.uint8),
    "fill-mask": "Ada [MASK]",
    "question-answering": {"question": "Who?", "context": "Ada"},
}
LONG = "Ada Lovelace wrote the first program. " * 40


def pipe_for(task: str, **options):
    if task == "sentence-embedding":
        tokenizer = reference.load_tokenizer("wordpiece")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_from_hf(
                {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_attention_heads": 2}
            )
            return make_pipeline(task, reference.NumpyModel(len(tokenizer)), tokenizer, config, **options)
    if task == "image-classification":
        return images.make(**options)
    if task in text2text.SEQ2SEQ:
        return text2text.make(task, **options)[0]
    if task == "zero-shot-classification":
        return make(task, labels=reference.NLI_LABELS[0], **{"candidate_labels": "code, cities"} | options)
    return make(task, "gpt2" if task == "text-generation" else "wordpiece", **options)


@pytest.mark.parametrize("task", TASKS)
def test_a_good_input_passes(task):
    assert len(pipe_for(task)(GOOD[task], **({"max_new_tokens": 3} if task == "text-generation" else {})))


@pytest.mark.parametrize("empty", ["", "  \n"])
@pytest.mark.parametrize("task", TEXTS)
def test_empty_texts(task, empty):
    bad = {"question": "Who?", "context": empty} if task == "question-answering" else empty
    if task == "text-generation" and empty:
        return  # whitespace is a valid prompt
    with pytest.raises(InputError, match=f"input 1.*is an empty text, {re.escape(repr(empty))}; .*add some words"):
        pipe_for(task)([GOOD[task], bad])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bad", [3, None, ["Ada"], b"Ada"])
def test_wrong_types(task, bad):
    with pytest.raises(InputError, match=f"{task}: input 1"):
        pipe_for(task)([GOOD[task], bad])
    if bad != ["Ada"]:
        with pytest.raises(InputError, match=task):
            pipe_for(task)(bad)


@pytest.mark.parametrize("task", TASKS)
def test_unknown_keywords(task):
    with pytest.raises(InputError, match=f"{task} has no option 'beam_width'; its options are "):
        pipe_for(task)(GOOD[task], beam_width=3)


@pytest.mark.parametrize(
    ("task", "remedy"),
    [
        ("feature-extraction", "truncation=True"),
        ("text-classification", "truncation=True"),
        ("fill-mask", "truncation=True"),
        ("text-generation", "handle_long_generation"),
    ],
)
def test_texts_longer_than_the_positions(task, remedy):
    pipe = pipe_for(task)
    with pytest.raises(InputError, match=rf"input 1 has \d+ tokens.*positions for {pipe.config.max_length}.*{remedy}"):
        pipe([GOOD[task], "[MASK] " + LONG])


def test_token_classification_of_texts_longer_than_the_positions():
    tokenizer = reference.load_tokenizer("wordpiece", model_max_length=10**30)
    pipe = make("token-classification")
    pipe = make_pipeline("token-classification", pipe.forward, tokenizer, pipe.config)
    with pytest.raises(InputError, match="positions for 128; shorten it, or pass stride="):
        pipe(LONG)
    ends = [e["end"] for e in pipe(LONG, stride=10, aggregation_strategy="simple", ignore_labels=[])]
    assert max(ends) == len(LONG.rstrip())
    with pytest.warns(UserWarning, match=r"inputs \[0\] are longer than 64 tokens and were truncated; pass stride="):
        make("token-classification")(LONG)


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "fill-mask"])
def test_truncation(task):
    pipe = pipe_for(task)
    assert pipe("[MASK] " + LONG, truncation=True)
    if task == "feature-extraction":
        assert len(pipe(LONG, truncation=True)[0]) == reference.MAX_POSITIONS
        assert len(pipe(LONG, tokenize_kwargs={"truncation": True, "max_length": 7})[0]) == 7
        with pytest.raises(InputError, match="truncation is passed twice"):
            pipe(LONG, truncation=True, tokenize_kwargs={"truncation": True})
        with pytest.raises(InputError, match="has no tokenizer option 'padding'"):
            pipe(LONG, tokenize_kwargs={"padding": True})
        with pytest.raises(InputError, match="tokenize_kwargs is True"):
            pipe(LONG, tokenize_kwargs=True)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("text-classification", {"top_k": 0}, "top_k is 0 (int); expected an integer of at least 1 or None"),
        ("text-classification", {"top_k": "all"}, "top_k is 'all'"),
        ("text-classification", {"function_to_apply": "relu"}, "expected one of 'sigmoid', 'softmax', 'none', None"),
        ("text-classification", {"truncation": "middle"}, "truncation is 'middle'"),
        ("text-classification", {"max_length": 2.5}, "max_length is 2.5"),
        (
            "zero-shot-classification",
            {"candidate_labels": []},
            "candidate_labels is [], which has no labels; pass at least one",
        ),
        ("zero-shot-classification", {"candidate_labels": " , "}, "candidate_labels is ' , ', which has no labels"),
        ("zero-shot-classification", {"candidate_labels": ["a", ""]}, "candidate_labels has '' (str)"),
        ("zero-shot-classification", {"candidate_labels": ["a", 3]}, "candidate_labels has 3 (int)"),
        ("zero-shot-classification", {"candidate_labels": 3}, "candidate_labels is 3 (int); pass a list of labels"),
        ("zero-shot-classification", {"candidate_labels": None}, "got no candidate_labels; pass a list of labels"),
        ("zero-shot-classification", {"hypothesis_template": "It is so."}, 'it must have one "{}"'),
        ("zero-shot-classification", {"hypothesis_template": "{} {}"}, "hypothesis_template is '{} {}'"),
        ("zero-shot-classification", {"hypothesis_template": "{label}"}, "hypothesis_template is '{label}'"),
        ("zero-shot-classification", {"hypothesis_template": "{{}}"}, "hypothesis_template is '{{}}'"),
        ("zero-shot-classification", {"hypothesis_template": None}, "hypothesis_template is None"),
        ("zero-shot-classification", {"multi_label": 1}, "multi_label is 1"),
        ("zero-shot-classification", {"max_length": 5}, "max_length is 5, but a hypothesis leaves no room for input 0"),
        (
            "zero-shot-classification",
            {"entailment_label": 3},
            "the model has labels 0 to 2: contradiction, neutral, entail",
        ),
        (
            "zero-shot-classification",
            {"entailment_label": "yes"},
            "is 'yes', but the model's labels are contradiction, ",
        ),
        ("zero-shot-classification", {"entailment_label": True}, "entailment_label is True"),
        (
            "token-classification",
            {"aggregation_strategy": "best"},
            "one of 'none', 'simple', 'first', 'average', 'max'",
        ),
        ("token-classification", {"stride": 4}, "aggregation_strategy is 'none'"),
        ("token-classification", {"stride": 90, "aggregation_strategy": "max"}, "stride is 90; expected less than"),
        ("token-classification", {"ignore_labels": "O"}, "ignore_labels is 'O'"),
        ("token-classification", {"is_split_into_words": 1}, "is_split_into_words is 1"),
        ("fill-mask", {"top_k": None}, "top_k is None"),
        ("fill-mask", {"targets": []}, "targets is"),
        ("fill-mask", {"targets": [3]}, "targets is"),
        ("question-answering", {"top_k": 0}, "top_k is 0"),
        ("question-answering", {"max_answer_len": 0}, "max_answer_len is 0"),
        ("question-answering", {"max_seq_len": 1000}, "max_seq_len is 1000, but the model has positions for 128"),
        ("question-answering", {"doc_stride": 65}, "doc_stride is 65, but max_seq_len is 64"),
        ("question-answering", {"align_to_words": "no"}, "align_to_words is 'no'"),
        ("text-generation", {"max_new_tokens": 0}, "max_new_tokens=0 must be a positive integer"),
        ("text-generation", {"max_new_tokens": 1000}, "1000 more are requested, but the model has positions for 64"),
        ("text-generation", {"max_length": 2}, "max_length, which includes the prompt, is 2"),
        ("text-generation", {"num_return_sequences": 2}, "would return identical texts"),
        ("text-generation", {"generation_config": 3}, "generation_config is a int"),
        ("text-generation", {"logits_processor": len}, "expected a list of functions"),
        ("text-generation", {"assistant_model": "small"}, "assistant_model is 'small'"),
        ("text-generation", {"output_scores": True}, "call model.generate(ids, return_dict_in_generate=True"),
        ("text-generation", {"assistant_early_exit": 1}, "assistant_early_exit=1 is unsupported"),
        ("text-generation", {"eos_token_id": "x"}, "eos_token_id='x' must be token ids"),
        ("text-generation", {"handle_long_generation": "cut"}, "one of None, 'hole'"),
        (
            "sentence-embedding",
            {"prompt_name": "query"},
            "prompt_name is 'query', but the checkpoint's prompts are none",
        ),
        ("sentence-embedding", {"normalize": "l2"}, "normalize is 'l2'"),
        ("sentence-embedding", {"prompt": 3}, "prompt is 3"),
        ("feature-extraction", {"return_tensors": "pt"}, "return_tensors is 'pt'"),
    ],
)
def test_invalid_values(task, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        pipe_for(task)(GOOD[task], **options)


def test_fill_mask_without_a_mask():
    with pytest.raises(InputError, match=re.escape("input 0, 'Ada wrote' (str), has no mask token; write [MASK]")):
        make("fill-mask")("Ada wrote")
    tokenizer = reference.load_tokenizer("gpt2")
    with pytest.raises(InputError, match="needs a tokenizer with a mask token"):
        get_task("fill-mask")(tokenizer, make("fill-mask").config)


def test_fill_mask_targets():
    pipe = make("fill-mask")
    with pytest.warns(UserWarning, match="target 'programmed' is not in the vocabulary; using its first token"):
        pipe("Ada [MASK]", targets=["programmed", "in"])
    with (
        pytest.warns(UserWarning, match="target ' ' has no tokens"),
        pytest.raises(InputError, match="none of the targets ' ' has a token"),
    ):
        pipe("Ada [MASK]", targets=" ")


def test_pairs_of_texts():
    pipe = make("text-classification")
    with pytest.raises(InputError, match="pass a pair of texts as"):
        pipe([["one", "two"]])
    with pytest.raises(InputError, match="has the keys 'text_pair'"):
        pipe({"text_pair": "a"})
    with pytest.raises(InputError, match="has the keys 'text', 'label'"):
        pipe({"text": "a", "label": 1})
    with pytest.raises(InputError, match="text_pair is an empty text"):
        pipe({"text": "a", "text_pair": ""})


def test_split_words():
    pipe = make("token-classification", is_split_into_words=True)
    for bad, message in (("Ada wrote", "expects a list of words"), (["a", 3], "a word is 3"), ([[]], "an empty list")):
        with pytest.raises(InputError, match=message):
            pipe(bad)


def test_formats_of_questions():
    pipe = make("question-answering")
    question, context = "Who wrote?", reference.TEXTS[0]
    expected = pipe({"question": question, "context": context})
    assert pipe(question=question, context=context) == expected == pipe(question, context)
    assert pipe(question, context=context) == expected == pipe([{"question": question, "context": context}])
    assert pipe(question=[question], context=context) == expected
    both = pipe(question=[question, "Where?"], context=context)
    assert both[0] == expected and len(both) == 2
    assert pipe(question=[question, "Where?"], context=[context, context]) == both
    assert list(pipe({"question": q, "context": context} for q in (question, "Where?"))) == both


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        (None, {"question": "Who?"}, "got no context"),
        (None, {"context": "Ada"}, "got no question"),
        ("Who?", {}, "got only the text 'Who?' (str)"),
        ({"question": "Who?", "context": "Ada"}, {"context": "Ada"}, "got its input twice"),
        (None, {"question": ["a", "b"], "context": ["c"]}, "got 2 questions and 1 contexts"),
        (None, {"question": "a", "context": ["c"]}, "got one question and a context of type list"),
        (None, {"question": 3, "context": "c"}, "question is 3"),
        ({"question": "Who?"}, {}, "has the keys 'question'; expected"),
        ({"question": "Who?", "text": "Ada", "id": 1}, {}, "has the keys 'question', 'text', 'id'; expected"),
        ({"question": "Who?", "context": None}, {}, "context is None"),
        ({"question": "", "context": "Ada"}, {}, "question is an empty text"),
    ],
)
def test_invalid_questions(inputs, keywords, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make("question-answering")(inputs, **keywords)


def test_a_question_that_leaves_no_room_is_truncated():
    pipe = make("question-answering")
    question = "Who wrote the first program? " * 10
    first = pipe.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    truncated = question[: first[4][1]]
    answer = pipe(question=question, context=reference.LONG_TEXT, max_question_len=5)
    assert answer == pipe(question=truncated, context=reference.LONG_TEXT) and len(truncated) > 3
    # If question and context fit one window, nothing is truncated.
    short = question[:28]
    assert pipe(question=short, context="Ada", max_question_len=1) == pipe(question=short, context="Ada")
    with pytest.raises(InputError, match="a question of 50 tokens and doc_stride 32 leave no room in a window of 64"):
        pipe(question=question, context=reference.LONG_TEXT, max_question_len=50)


def test_best_spans_against_all_spans():
    random = np.random.RandomState(0)
    for longest in (1, 3, 50):
        start, end = random.dirichlet(np.ones(30), 2).astype(np.float32)
        context = np.arange(30) > 7
        spans = [
            (i, j, float(start[i] * end[j])) for i in range(8, 30) for j in range(i, min(30, i + longest))
        ]  # fmt: skip
        spans.sort(key=lambda span: -span[2])
        assert [s[:2] for s in best_spans(start, end, context, 12, longest)] == [s[:2] for s in spans[:12]]
        assert len(best_spans(start, end, context, 10_000, longest)) == len(spans)


def test_generation_lengths():
    pipe = make("text-generation", "gpt2")
    prompts = ["Ada", LONG[:100], "The engine"]
    lengths = [len(ids) for ids in pipe.tokenizer(prompts)["input_ids"]]
    one_by_one = [pipe(p, return_tensors=True) for p in prompts]
    assert pipe(prompts, return_tensors=True) == one_by_one
    for length, result in zip(lengths, one_by_one, strict=True):
        assert len(result[0]["generated_token_ids"]) <= reference.MAX_POSITIONS and length <= 64
    assert len(pipe("Ada", max_length=9, return_tensors=True)[0]["generated_token_ids"]) <= 9
    hole = pipe(LONG, max_new_tokens=10, handle_long_generation="hole", return_tensors=True)
    assert hole[0]["generated_token_ids"][:54] == pipe.tokenizer(LONG)["input_ids"][-54:]


def test_generation_ends_at_any_of_several_ids():
    pipe = make("text-generation", "gpt2", max_new_tokens=12)
    ids = pipe("Ada", return_tensors=True)[0]["generated_token_ids"]
    prompt = len(pipe.tokenizer("Ada")["input_ids"])
    ended = pipe(["Ada", "The engine"], return_tensors=True, eos_token_id=[ids[prompt + 3], 1])[0][0]
    assert ended["generated_token_ids"] == ids[: ids.index(ids[prompt + 3], prompt) + 1]


def test_generation_follows_the_models_configuration():
    pipe = make("text-generation", "gpt2")
    stored = {"max_new_tokens": 4, "eos_token_id": [1, 2], "pad_token_id": 5}
    own = GenerationConfig.for_model(pipe.config, stored)
    seen = {}

    def generate(ids, mask, **options):
        seen.update(options)
        return pipe.forward(ids, mask, **options)

    task = get_task("text-generation")
    ours = Pipeline(task(pipe.tokenizer, pipe.config, None, own), generate)
    ours("Ada")
    assert seen == stored
    prompt = len(pipe.tokenizer("Ada")["input_ids"])
    ours("Ada", max_length=prompt + 2, eos_token_id=3, pad_token_id=6)
    assert seen == {"max_new_tokens": 2, "eos_token_id": [3], "pad_token_id": 6}

    for stored, new in (({"max_length": prompt + 7}, 7), ({}, 64 - prompt)):
        own = GenerationConfig.for_model(pipe.config, stored)
        Pipeline(task(pipe.tokenizer, pipe.config, None, own), generate)("Ada")
        assert seen["max_new_tokens"] == new and seen["eos_token_id"] == [pipe.config.eos_token_id]


class Generated:
    """A ``generate`` that records its calls and returns the ids 10, 11, ... and padding for each prompt."""

    def __init__(self):
        self.calls = []

    def __call__(self, ids, mask, generation_config=None, **options):
        self.calls.append((ids.shape[0], generation_config, options))
        count = 1 if generation_config is None else generation_config.num_return_sequences
        new = np.tile(np.arange(10, 14), (len(ids) * count, 1))
        new[1::count, 2:] = options["pad_token_id"] if count > 1 else new[1::count, 2:]
        return np.concatenate([np.repeat(ids, count, 0), new], axis=1)


def made(generate, own=None, **options):
    pipe = make("text-generation", "gpt2")
    return Pipeline(get_task("text-generation")(pipe.tokenizer, pipe.config, None, own), generate, **options)


def test_options_of_generation_reach_the_engine_together():
    seen = Generated()
    pipe = made(seen, top_p=0.9, do_sample=True, max_new_tokens=4)
    pipe("Ada", num_return_sequences=3, seed=2, use_cache=True)
    _, config, options = seen.calls[-1]
    assert (config.top_p, config.num_return_sequences, config.seed, config.do_sample) == (0.9, 3, 2, True)
    assert options["max_new_tokens"] == 4 and "tokenizer" not in options
    pipe("Ada", generation_config={"repetition_penalty": 1.5})  # replaces all options of the constructor
    _, config, options = seen.calls[-1]
    assert (config.repetition_penalty, config.do_sample, config.top_p) == (1.5, False, 1.0)
    process, draft = (lambda ids, logits, step: logits), made(seen).task
    pipe("Ada", max_length=9, stop_strings="x", logits_processor=[process], assistant_model=draft)
    _, config, options = seen.calls[-1]
    assert options["max_new_tokens"] == 9 - len(pipe.tokenizer("Ada")["input_ids"]) and config.stop_strings == ("x",)
    assert options["tokenizer"] is pipe.tokenizer and options["logits_processor"] == [process]
    assert options["assistant_model"] is draft


def test_several_texts_of_a_prompt_are_one_result():
    pipe = made(Generated(), num_return_sequences=2, do_sample=True, max_new_tokens=4, seed=0, pad_token_id=5)
    one, two = pipe(["Ada", "The engine"], return_tensors=True, eos_token_id=[12, 5])
    prompt = pipe.tokenizer("Ada")["input_ids"]
    assert [row["generated_token_ids"] for row in one] == [[*prompt, 10, 11, 12], [*prompt, 10, 11, 5]]
    assert len(two) == 2 and len(pipe("Ada")) == 2


def test_a_seed_does_not_depend_on_the_batch():
    seen = Generated()
    pipe = made(seen, do_sample=True, max_new_tokens=4)
    pipe(["Ada", "The engine", "Ada"], seed=1)
    assert [rows for rows, *_ in seen.calls] == [2, 1]  # equal prompts in one batch would draw different texts
    pipe(["Ada", "The engine", "Ada"])
    assert [rows for rows, *_ in seen.calls[2:]] == [3]


def test_lengths_count_from_each_prompts_own_beginning():
    seen = Generated()
    pipe = made(seen, GenerationConfig(min_length=12, max_new_tokens=30))
    prompts = ["Ada", "The engine weaves"]
    pipe(prompts)
    lengths = [len(ids) for ids in pipe.tokenizer(prompts)["input_ids"]]
    assert sorted(options["min_new_tokens"] for *_, options in seen.calls) == sorted(12 - n for n in lengths)


def test_a_stop_string_ends_a_text_and_stays_in_it():
    pipe = made(Generated(), max_new_tokens=4)
    new = pipe("Ada", return_full_text=False)[0]["generated_text"]
    stop = pipe.tokenizer.decode([11])
    assert (
        pipe.tokenizer.decode([10, 11]) == pipe("Ada", return_full_text=False, stop_sequence=stop)[0]["generated_text"]
    )
    assert new.startswith(pipe.tokenizer.decode([10, 11]))


def test_a_stream_gives_the_new_text_of_a_call():
    def steps(ids, mask, **options):
        return (np.array([[token]]) for token in range(10, 14))

    pipe = made(Generated(), max_new_tokens=4, stream=steps)
    assert "".join(pipe.stream("Ada")) == pipe("Ada", return_full_text=False)[0]["generated_text"]
    assert "".join(pipe.stream("Ada", eos_token_id=11)) == pipe.tokenizer.decode([10, 11])
    for prompt, options, message in (
        (["Ada"], {}, "stream got \\['Ada'\\] \\(list\\); pass one prompt"),
        ("Ada", {"num_return_sequences": 2, "do_sample": True}, "num_return_sequences is 2, but a stream has one text"),
        ("Ada", {"return_tensors": True}, "return_tensors=True is not supported in a stream"),
        ("Ada", {"beam_width": 2}, "has no option 'beam_width'"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.stream(prompt, **options)
    with pytest.raises(InputError, match="text-generation does not support streaming here"):
        made(Generated()).stream("Ada")


def test_a_model_that_reads_the_last_token_is_not_fed_padding():
    tokenizer = reference.load_tokenizer("gpt2")
    hf = {
        "model_type": "gpt2",
        "vocab_size": len(tokenizer),
        "n_positions": 64,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 1,
    }
    masks = []

    def forward(batch):
        masks.append(batch["attention_mask"])
        return {"logits": np.zeros((len(batch["input_ids"]), 2), np.float32)}

    pipe = make_pipeline("text-classification", forward, tokenizer, config_from_hf(hf))
    assert len(pipe(["Ada", "The engine weaves", "The"])) == 3
    assert all(mask.all() for mask in masks)
