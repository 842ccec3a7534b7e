"""Tasks of encoder-decoders: results of Transformers 4.57, documents read in parts, and invalid inputs."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from duonlp.architectures import config_from_hf
from duonlp.config import DecoderConfig, LayerConfig, LayerPattern
from duonlp.errors import CheckpointError, InputError
from duonlp.generation import GenerationConfig
from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline, make_pipeline
from duonlp.tasks import get_task, make_task
from duonlp.tasks.long_documents import pack, split_document, split_sentence
from tests.reference import record_pipelines as reference
from tests.reference import record_text2text as recorded

SEQ2SEQ = ("text2text-generation", "summarization", "translation")
WORDS = [f"w{i}" for i in range(30)] + ["sum", "up:", "now:", "Yes.", "No.", "__en__", "__fr__", "__de__", ">>fr<<"]
SENTENCE = "w1 w2 w3 w4 w5 w6 Yes."


def model_config(vocab_size: int, positions: int = 256, decoder_positions: int = 300, **extra):
    """Return the configuration of an encoder-decoder, complete enough for tasks."""
    config = config_from_hf({
        "model_type": "bert", "vocab_size": vocab_size, "hidden_size": 16, "num_attention_heads": 2,
        "max_position_embeddings": positions, "type_vocab_size": 0,
    })  # fmt: skip
    c = config
    embedding = replace(c.embedding, max_positions=decoder_positions, type_vocab_size=0)
    layer = LayerConfig(c.attention, c.feed_forward, cross_attention=c.attention)
    decoder = DecoderConfig(LayerPattern.uniform(layer, 1), embedding, start_token_id=recorded.START)
    return config.replace(
        decoder=decoder, pad_token_id=recorded.PAD, eos_token_id=recorded.END, bos_token_id=None, extra=extra
    )


class Writer:
    """A ``generate`` that returns the first words of each source and records its calls."""

    def __init__(self, texts=recorded.write_texts):
        self.calls, self.texts = [], texts

    def __call__(self, input_ids, attention_mask, *, max_new_tokens, generation_config, **options):
        config = generation_config
        self.calls.append(options | {"ids": input_ids, "new": max_new_tokens, "config": config})
        return self.texts(
            input_ids, attention_mask, max_new_tokens, config.num_return_sequences, config.forced_bos_token_id
        )


def word_tokenizer(**changes):
    """Return a tokenizer with one token per word and an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(["<unk>", "<pad>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "model_max_length": 24}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(names | changes))


def make(task="summarization", tokenizer=None, extra=None, own=None, texts=recorded.write_texts, sizes=None, **options):
    """Return a pipeline around a Writer, and the Writer."""
    tokenizer, writer = tokenizer or word_tokenizer(), Writer(texts)
    config = model_config(len(tokenizer), **(sizes or {}), **(extra or {}))
    made = make_task(task, tokenizer, config, generation_config=own)
    return Pipeline(made, writer, **options), writer


def first(count: int):
    """Return a function that generates the first ``count`` words of each source, without the prefix."""

    def texts(ids, mask, new, texts=1, forced=None):
        rows = [[i for i in row[keep != 0].tolist() if i > recorded.END][:count] for row, keep in zip(ids, mask)]
        rows = [[recorded.START, *row, recorded.END] for row in rows]
        length = max(map(len, rows))
        return np.array([row + [recorded.PAD] * (length - len(row)) for row in rows], np.int32)

    return texts


# -- Transformers 4.57 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", recorded.MODELS)
@pytest.mark.parametrize("task", recorded.TASKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_results_are_those_of_transformers(task, model):
    pipe, writer = make(task, reference.load_tokenizer("unigram"), recorded.MODELS[model])
    cases = [c for c in reference.load_reference("text2text_generation") if (c["task"], c["model"]) == (task, model)]
    assert len(cases) == len(recorded.CALLS)
    for case in cases:
        inputs, options = recorded.CALLS[case["call"]]
        # In 4.57, the default of 256 new tokens overrides max_length in task_specific_params; see the task's docstring.
        lengths = {} if {"max_new_tokens", "max_length"} & set(options) else {"max_new_tokens": 256}
        assert pipe(inputs, **options, **lengths) == case["result"]
        config = writer.calls[-1]["config"]
        assert [getattr(config, name) for name in recorded.SETTINGS] == case["settings"]


def test_one_text_several_and_an_iterator():
    pipe, _ = make("text2text-generation")
    one, two = [{"generated_text": "w1 w2"}], [{"generated_text": "w3"}]
    assert (
        pipe("w1 w2") == one and pipe(["w1 w2", "w3"]) == one + two and list(pipe(iter(["w1 w2", "w3"]))) == [one, two]
    )
    assert pipe(["w1 w2"], num_return_sequences=2) == [[{"generated_text": "w1 w2"}, {"generated_text": "w2"}]]
    assert pipe([]) == [] and pipe("w1", return_tensors=True) == [{"generated_token_ids": [1, 4, 2]}]


def test_sources_are_padded_on_the_right_to_buckets_without_positions():
    pipe, writer = make("text2text-generation")
    pipe(["w1 w2 w3", "w4", "w5 w6"])
    ids = writer.calls[0]["ids"]
    assert ids.shape == (4, 16) and ids[:3, :4].tolist() == [[4, 5, 6, 2], [8, 9, 2, 1], [7, 2, 1, 1]]
    assert (ids[3] == ids[0]).all() and pipe.shapes == {(4, 16)}


# -- precedence of options ---------------------------------------------------------------------------------------------


def test_precedence_of_options_task_specific_params_model_settings_and_defaults():
    config = lambda *made, **options: (lambda pipe, writer: (pipe("w1 w2"), writer.calls[-1])[1])(*made)  # noqa: E731
    call = config(*make())
    assert (call["new"], call["config"].num_beams) == (256, 4)
    assert config(*make(own=GenerationConfig(num_beams=6, max_new_tokens=7)))["config"].num_beams == 6
    assert config(*make(own=GenerationConfig(max_new_tokens=7)))["new"] == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        specific = {"task_specific_params": {"summarization": recorded.SUMMARY}}
        pipe, writer = make(extra=specific, own=GenerationConfig(num_beams=6, max_new_tokens=7, repetition_penalty=1.5))
        pipe("w1 w2")
        call = writer.calls[-1]
        assert (call["new"], call["config"].num_beams, call["config"].repetition_penalty) == (8, 3, 1.5)
        assert call["ids"][0, :4].tolist() == [33, 34, 4, 5]
        pipe("w1 w2", max_length=5, num_beams=1, prefix="")
        call = writer.calls[-1]
        assert (call["new"], call["config"].num_beams, call["ids"][0, 0]) == (4, 1, 4)
        pipe("w1 w2", generation_config={"num_beams": 2, "max_new_tokens": 3})
        assert (writer.calls[-1]["new"], writer.calls[-1]["config"].length_penalty) == (3, 1.0)
        assert make("text2text-generation", extra=specific)[0].options.resolved.min_length == 0


def test_strategies_without_beams_are_not_given_any():
    pipe, writer = make("text2text-generation")
    pipe("w1", penalty_alpha=0.6, top_k=4)
    assert writer.calls[-1]["config"].strategy == "contrastive"
    pipe("w1", prompt_lookup_num_tokens=3)
    assert writer.calls[-1]["config"].num_beams == 1


def test_default_lengths_are_limited_by_the_decoders_positions():
    pipe, writer = make("text2text-generation", sizes={"decoder_positions": 20})
    pipe("w1")
    assert writer.calls[-1]["new"] == 19
    for options in ({"max_length": 21}, {"max_new_tokens": 20}, {"generation_config": {"max_length": 21}}):
        with pytest.raises(InputError, match=r"requests 20 new tokens, but the decoder has 20 positions.*at most 19"):
            pipe("w1", **options)
    assert pipe("w1", max_length=20) and writer.calls[-1]["new"] == 19
    with pytest.raises(InputError, match="max_length is 1, which includes the decoder's start token"):
        pipe("w1", max_length=1)


def test_implausible_lengths_cause_warnings():
    with pytest.warns(
        UserWarning, match="max_length is 12, but input 1 has only 3 tokens, .*consider max_length=2"
    ) as seen:
        make()[0]([SENTENCE + " w7" * 10, "w1 w2"], max_length=12)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="min_length=9 exceeds max_length=5, which takes precedence"):
        make()[0](SENTENCE, max_length=5, min_length=9)
    with pytest.warns(
        UserWarning, match="input 0 has 8 tokens and max_length is 7, so its translation may be truncated"
    ):
        make("translation")[0](SENTENCE, max_length=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()[0](["w1 w2"])
        make()[0]([SENTENCE], max_length=5, truncation=True)


def test_equal_sources_draw_apart_with_a_seed():
    pipe, writer = make("text2text-generation")
    pipe(["w1 w2", "w3", "w1 w2"], do_sample=True, seed=3, num_beams=1)
    assert [len(call["ids"]) for call in writer.calls] == [2, 1]


# -- long documents ----------------------------------------------------------------------------------------------------


def test_a_long_document_is_rejected_truncated_or_read_in_parts():
    text = " ".join([SENTENCE] * 5)  # 35 tokens and an end, of 24
    pipe, writer = make(sizes={"positions": 24}, texts=first(3))
    with pytest.raises(InputError, match=r'input 1 has 36 tokens.*positions for 24; .*"truncate" or "chunk"'):
        pipe(["w1", text])
    pipe(text, truncation=True)
    assert writer.calls[-1]["ids"].shape == (1, 24)
    assert pipe(text, long_documents="truncate") == [{"summary_text": "w1 w2 w3"}]
    writer.calls.clear()
    (result,) = pipe(text, long_documents="chunk", return_chunks=True)
    two = " ".join([SENTENCE] * 3), " ".join([SENTENCE] * 2)
    assert result["summary_text"] == "w1 w2 w3"
    assert result["chunks"] == [[{"text": part, "summary_text": "w1 w2 w3"} for part in two]]
    assert [call["ids"].shape for call in writer.calls] == [(2, 24), (1, 16)]
    assert writer.calls[-1]["ids"][0, :7].tolist() == [4, 5, 6, 4, 5, 6, 2]
    assert pipe("w1 w2", long_documents="chunk", return_chunks=True) == [{"summary_text": "w1 w2", "chunks": []}]


def test_parts_of_all_documents_share_batches_in_rounds_until_they_fit():
    long = " ".join([SENTENCE] * 40)  # 280 tokens: 14 parts, then 14 * 6 tokens, 4 parts, 24, 2 parts, 12
    pipe, writer = make(texts=first(6), batch_size=8, long_documents="chunk", return_chunks=True)
    results = pipe([long, "w9 w8", long, " ".join([SENTENCE] * 4)])
    assert [len(result["chunks"]) for result in results] == [3, 0, 3, 1]
    assert [[len(chunks) for chunks in result["chunks"]] for result in results[::2]] == [[14, 4, 2]] * 2
    assert [result["summary_text"] for result in results] == ["w1 w2 w3 w4 w5 w6", "w9 w8"] + ["w1 w2 w3 w4 w5 w6"] * 2
    rows = sum(len({tuple(row) for row in call["ids"].tolist()}) for call in writer.calls)
    assert len(writer.calls) <= 8 and rows > 4
    for start, text in enumerate([long, "w9 w8"]):
        assert pipe(text) == [results[start]]  # alone as among others
    for call in writer.calls:
        assert ((call["ids"] != recorded.PAD).sum(1) <= 24).all()


def test_progress_moves_within_a_document():
    class Bar:
        done, seen = 0, []

        def advance(self, items, partial=0.0):
            self.done += items
            self.seen.append(self.done + partial)

    pipe, _ = make(texts=first(6), long_documents="chunk")
    pipe._run_items([" ".join([SENTENCE] * 40), "w1"], pipe.options, 2, 0, Bar())
    assert Bar.seen == sorted(Bar.seen) and Bar.seen[-1] == 2 and Bar.seen[0] == pytest.approx(0.9 * 2 / 14)


def test_the_prefix_counts_and_stands_before_every_part():
    pipe, writer = make(texts=first(5), prefix="sum up: ", long_documents="chunk", max_source_length=12)
    pipe(" ".join([SENTENCE] * 4))
    ids = np.concatenate([call["ids"] for call in writer.calls])
    assert (ids[:, :2] == [33, 34]).all() and ((ids != recorded.PAD).sum(1) <= 12).all()


def test_rounds_end_if_they_do_not_shorten_the_text():
    text = " ".join([SENTENCE] * 5)
    pipe, _ = make(texts=first(99), long_documents="chunk", return_chunks=True)
    with pytest.warns(
        UserWarning, match=r"input 1 had 35 tokens and the joined results of its 2 parts have 35; .*max_length"
    ):
        _, result = pipe(["w1", text])
    assert result["summary_text"] == text and [len(chunks) for chunks in result["chunks"]] == [2]
    with pytest.warns(UserWarning):
        (ids,) = pipe(text, return_tensors=True)
    assert len(ids["summary_token_ids"]) == 1 + 35 + 2


def test_a_translation_in_parts_is_the_translations_joined():
    pipe, writer = make("translation", texts=first(99), long_documents="chunk")
    text = " ".join([SENTENCE] * 9)
    assert pipe(text) == [{"translation_text": text}] and len(writer.calls) == 1


def test_parts_of_a_tokenizer_with_subwords():
    tokenizer = reference.load_tokenizer("bpe")
    text = " ".join(reference.TEXTS[:5]) * 3 + " " + "x" * 300 + " wow. 東京 is big." * 5

    def count(texts):
        return [len(ids) for ids in tokenizer(texts)["input_ids"]]

    for limit in (12, 40, 100):
        parts = split_document(text, limit, count)
        assert max(count(parts)) <= limit and len(parts) > 2
        assert "".join(" ".join(parts).split()) == "".join(text.split())
    with pytest.raises(
        InputError, match="the text cannot be split into parts of 3 tokens, 2 of which are prefix and special tokens"
    ):
        split_document("東京", 3, count)


def test_packs_are_even_and_few():
    assert pack([1] * 10, 9) == [(0, 5), (5, 10)]
    assert pack([5, 5, 5], 5) == [(0, 1), (1, 2), (2, 3)] and pack([3], 4) == [(0, 1)]
    random = np.random.RandomState(0)
    for _ in range(50):
        sizes, limit = random.randint(1, 20, random.randint(1, 40)).tolist(), int(random.randint(20, 60))
        packs = pack(sizes, limit)
        assert [i for start, end in packs for i in range(start, end)] == list(range(len(sizes)))
        assert max(sum(sizes[start:end]) for start, end in packs) <= limit
        assert len(packs) <= 2 * sum(sizes) / limit + 1


def test_a_sentence_is_split_between_words_if_possible():
    assert split_sentence("aa bb cc dd", 5, len) == ["aa bb", "cc dd"] and split_sentence("abcdefgh", 3, len) == [
        "abc",
        "def",
        "gh",
    ]
    assert split_sentence("abc", 9, len) == ["abc"] and split_sentence("ab" * 500, 100, len) == ["ab" * 50] * 10
    assert split_sentence("x", 1, lambda text: 3) == ["x"]


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_is_what_a_call_gives():
    tokenizer, writer = word_tokenizer(), Writer()

    def stream(ids, mask, **options):
        for column in writer(ids, mask, **options)[:, 1:].T:
            yield column[None]

    made = make_task("summarization", tokenizer, model_config(len(tokenizer)))
    pipe = Pipeline(made, writer, stream=stream, num_beams=1, long_documents="chunk")
    assert "".join(pipe.stream(SENTENCE)) == pipe(SENTENCE)[0]["summary_text"]
    with pytest.raises(InputError, match="reads this text in 2 parts, but a stream has only one"):
        pipe.stream(" ".join([SENTENCE] * 5))
    with pytest.raises(InputError, match="does not support streaming here"):
        make()[0].stream("w1")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SEQ2SEQ)
def test_invalid_documents(task):
    pipe, _ = make(task)
    for bad in ("", "  \n"):
        with pytest.raises(InputError, match=f"{task}: input 1 is an empty text"):
            pipe(["w1", bad])
    with pytest.raises(InputError, match=r"input 0 is \['w1'\] \(list\); expected a text"):
        pipe([["w1"]])
    with pytest.raises(InputError, match=f"{task} got {{'text': 'w1'}}"):
        pipe({"text": "w1"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_documents": "split"}, "long_documents is 'split'.* one of 'error', 'truncate', 'chunk'"),
        ({"truncation": "middle"}, "truncation is 'middle'"),
        (
            {"truncation": True, "long_documents": "chunk"},
            "truncation=True and long_documents='chunk' are contradictory",
        ),
        ({"max_source_length": 0}, "max_source_length is 0"),
        ({"max_source_length": 300}, "max_source_length is 300, but the model has positions for 256"),
        (
            {"prefix": "w1 " * 23},
            "prefix 'w1 w1 .*...' and special tokens take 24 of a source's 24 tokens and leave no room",
        ),
        ({"return_chunks": 1}, "return_chunks is 1"),
        ({"language": 3}, "language is 3"),
        ({"beam_width": 3}, "summarization has no option 'beam_width'"),
        ({"src_lang": "en"}, "summarization has no option 'src_lang'"),
        ({"output_scores": True}, "summarization returns texts; for scores"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_chunking_that_is_not_supported():
    with pytest.raises(InputError, match="only supported by summarization and translation"):
        make("text2text-generation", long_documents="chunk")
    endless = word_tokenizer(model_max_length=10**30)
    config = model_config(len(endless), positions=2**30)
    pipe = make_pipeline("summarization", Writer(), endless, config, long_documents="chunk")
    with pytest.raises(InputError, match="limits the source length; pass max_source_length"):
        pipe("w1")
    assert pipe("w1 " * 60, max_source_length=30)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (
            {"task_specific_params": {"summarization": {"num_beams": 0}}},
            CheckpointError,
            "for summarization: num_beams=0",
        ),
        ({"task_specific_params": {"summarization": [1]}}, CheckpointError, "expected an object of objects"),
        ({"task_specific_params": [1]}, CheckpointError, "expected an object of objects"),
        ({"prefix": 3}, CheckpointError, "the prefix in config.json is 3"),
    ],
)
def test_invalid_config_files(extra, error, message):
    with pytest.raises(error, match=message):
        make(extra=extra)


def test_unknown_task_specific_params_are_named():
    with pytest.warns(UserWarning, match="for summarization have unknown options, which are ignored: beam_depth"):
        make(extra={"task_specific_params": {"summarization": {"beam_depth": 3, "num_beams": 2}}})


def test_unsupported_models_and_tokenizers():
    class Model:
        def __init__(self, head, config):
            self.head, self.config, self.generation_config = head, config, None

    heads = {"seq2seq-lm": type("ModelForSeq2SeqLM", (), {}), "causal-lm": type("ModelForCausalLM", (), {})}
    gpt2 = config_from_hf({"model_type": "gpt2"})
    with pytest.raises(
        InputError,
        match=r"summarization needs AutoModelForSeq2SeqLM, which gpt2 does not support; .*text-generation",
    ):
        load_pipeline(heads, None, "summarization", Model("causal-lm", gpt2), tokenizer=word_tokenizer())
    with pytest.raises(InputError, match=r"translation needs an encoder-decoder.*, but gpt2 is not one"):
        get_task("translation")(word_tokenizer(), gpt2)
    with pytest.raises(InputError, match="needs a tokenizer of Transformers, got object"):
        get_task("translation")(object(), gpt2)
    assert get_task("translation_en_to_fr") is get_task("translation")
    with pytest.raises(InputError, match="unknown task 'translation_en'"):
        get_task("translation_en")


def line_break_tokenizer():
    """Return a tokenizer with PEGASUS' token for a line break."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<n>"])
    return tokenizer


def test_line_breaks_of_pegasus():
    line_break = line_break_tokenizer().convert_tokens_to_ids("<n>")

    def texts(ids, mask, new, texts=1, forced=None):
        return np.array([[recorded.START, 3, line_break, 4, recorded.END]] * len(ids))

    for task, name in (("summarization", "summary_text"), ("text2text-generation", "generated_text")):
        pipe, _ = make(task, line_break_tokenizer(), texts=texts)
        (result,) = pipe("w1 w2 w3")
        assert [line.strip() for line in result[name].split("\n")] == ["w0", "w1"]
        (ids,) = pipe("w1 w2 w3", return_tensors=True)
        assert line_break in ids[name.replace("_text", "_token_ids")]
    pipe, _ = make("summarization", line_break_tokenizer(), texts=texts)
    pipe._stream_ids = lambda ids, mask, **options: iter([np.array([[i]]) for i in (3, line_break, 4, recorded.END)])
    assert [line.strip() for line in "".join(pipe.stream("w1 w2 w3")).split("\n")] == ["w0", "w1"]
    pipe, _ = make("summarization")  # without that token, "<n>" is text like any other
    assert pipe.task.rewrite_text("<n>") == "<n>"


def test_targets_have_line_breaks_of_pegasus():
    from duonlp.data.pairs.collator import token_ids

    tokenizer = line_break_tokenizer()
    ((*ids, _),) = token_ids(tokenizer, ["w0 \n w1"], targets=True)
    assert ids == tokenizer.convert_tokens_to_ids(["w0", "<n>", "w1"])
    assert token_ids(word_tokenizer(), ["w0 \n w1"], targets=True)[0] == [3, 4, 2]


def test_stop_sequences():
    with pytest.raises(InputError, match="two names of one option"):
        make(stop_sequence="a", stop_strings="b")


def test_evaluations_of_training_see_line_breaks_of_pegasus():
    from duonlp.training.generated import GenerationScorer

    tokenizer = line_break_tokenizer()
    evaluation = GenerationScorer([], tokenizer, lambda predictions, references: {})
    (text,) = evaluation._decode(np.array([tokenizer.convert_tokens_to_ids(["w0", "<n>", "w1", "</s>"])]))
    assert [line.strip() for line in text.split("\n")] == ["w0", "w1"]
