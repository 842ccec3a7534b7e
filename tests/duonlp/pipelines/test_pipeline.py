"""Pipelines: order of results, shapes, batches, streams, progress."""

import itertools
import json
import sys
import types
import warnings

import numpy as np
import pytest

from duonlp.architectures import config_from_hf
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig
from duonlp.pipelines.loader import load_pipeline
from duonlp.pipelines.pipeline import Pipeline, Progress, as_numpy, make_pipeline
from duonlp.positions import generation_position_ids, position_ids
from duonlp.tasks import ALIASES, TASKS, get_task
from tests.reference import record_pipelines as reference

HF = {
    "model_type": "bert", "vocab_size": 190, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 8, "max_position_embeddings": 64, "id2label": {"0": "no", "1": "yes"},
}  # fmt: skip
WORDS = ["Ada", "engine", "loom", "flowers", "and", "leaves", "London", "program"]


class Recorder:
    """A forward pass that records its batches."""

    def __init__(self, task="text-classification", tokenizer="wordpiece"):
        model = reference.NumpyModel(len(reference.load_tokenizer(tokenizer)), 2)
        self.run = {"text-classification": model.classify, "token-classification": model.tag}.get(task, model)
        self.batches = []

    def __call__(self, batch):
        self.batches.append({key: value.copy() for key, value in batch.items()})
        return self.run(batch)


def make(task="text-classification", **options):
    tokenizer = reference.load_tokenizer("wordpiece")
    recorder = Recorder(task)
    config = config_from_hf(HF | {"vocab_size": len(tokenizer)})
    return make_pipeline(task, recorder, tokenizer, config, **options), recorder


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.RandomState(seed)
    return [" ".join(random.choice(WORDS, random.randint(1, 20))) for _ in range(count)]


def test_results_keep_the_order_and_do_not_depend_on_the_batch():
    one_by_one, _ = make(batch_size=1)
    batched, recorder = make(batch_size=8)
    inputs = texts(45)
    expected = [one_by_one(text)[0] for text in inputs]
    for result, single in zip(batched(inputs), expected, strict=True):
        assert result["label"] == single["label"] and abs(result["score"] - single["score"]) < 1e-6
    assert len(recorder.batches) == 6


def test_few_shapes_are_compiled():
    pipe, recorder = make(batch_size=8)
    for seed in range(6):
        pipe(texts(11 + seed, seed))
    shapes = {batch["input_ids"].shape for batch in recorder.batches}
    assert shapes == pipe.shapes
    assert {rows for rows, _ in shapes} <= {1, 2, 4, 8} and {length for _, length in shapes} <= {16, 32, 64}


def test_batches_are_sorted_by_length():
    pipe, recorder = make(batch_size=4)
    pipe(texts(40))
    longest = [int(batch["attention_mask"].sum(1).max()) for batch in recorder.batches]
    assert longest == sorted(longest, reverse=True)


def test_contents_of_a_batch():
    pipe, recorder = make(batch_size=4)
    pipe(texts(3))
    batch = recorder.batches[0]
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    assert all(value.dtype == np.int32 and value.shape == batch["input_ids"].shape for value in batch.values())
    assert (batch["position_ids"] == np.arange(batch["input_ids"].shape[1])).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == pipe.tokenizer.pad_token_id).all()
    assert (batch["attention_mask"].sum(1) > 0).all()


def test_lengths_never_exceed_the_model():
    tokenizer = reference.load_tokenizer("wordpiece")
    recorder = Recorder()
    config = config_from_hf(HF | {"vocab_size": len(tokenizer), "max_position_embeddings": 20})
    pipe = make_pipeline("text-classification", recorder, tokenizer, config, truncation=True)
    pipe(["Ada " * 40])
    assert recorder.batches[0]["input_ids"].shape == (1, 20)


def test_a_stream_is_read_as_it_is_needed():
    pipe, _ = make(batch_size=2)
    read = []

    def source():
        for text in texts(100):
            read.append(text)
            yield text

    results = pipe(source())
    assert isinstance(results, types.GeneratorType) and not read
    first = next(results)
    assert set(first) == {"label", "score"} and len(read) == 16
    assert [first, *results] == pipe(texts(100)) and len(read) == 100


def test_an_iterator_of_any_kind_and_other_containers():
    pipe, _ = make()
    inputs = texts(3)
    expected = pipe(inputs)
    assert list(pipe(iter(inputs))) == expected
    assert list(pipe(map(str, inputs))) == expected
    assert pipe(tuple(inputs)) == expected
    assert pipe(np.array(inputs)) == expected
    assert pipe([]) == [] and list(pipe(iter([]))) == []


def test_options_of_construction_and_call():
    pipe, _ = make(top_k=None, function_to_apply="none")
    assert len(pipe("Ada")[0]) == 2  # wrapped, as top_k is not among the call's keywords
    assert len(pipe("Ada", top_k=1)) == 1
    raw, scaled = pipe("Ada", top_k=1), pipe("Ada", top_k=1, function_to_apply="softmax")
    assert raw[0]["score"] != scaled[0]["score"] and pipe("Ada", top_k=1) == raw


def test_split_words_can_be_chosen_at_construction():
    pipe, _ = make("token-classification", is_split_into_words=True)
    assert pipe(["Ada", "wrote"]) == make("token-classification")[0](["Ada", "wrote"], is_split_into_words=True)


def test_a_batch_of_a_large_vocabulary_is_small():
    tokenizer = reference.load_tokenizer("wordpiece")
    config = config_from_hf(HF | {"vocab_size": 2**21})
    model = reference.NumpyModel(len(tokenizer))
    shapes = []

    def forward(batch):
        shapes.append(batch["input_ids"].shape)
        return model.fill(batch)

    make_pipeline("fill-mask", forward, tokenizer, config)(["Ada [MASK] the program."] * 9)
    assert {rows for rows, _ in shapes} <= {1, 4}


def test_half_precision_comes_back_as_float32():
    assert as_numpy(np.ones(2, np.float16)).dtype == np.float32
    assert as_numpy(np.ones(2, np.int64)).dtype == np.int64


def test_an_engine_with_another_head_is_an_error():
    tokenizer = reference.load_tokenizer("wordpiece")
    pipe = make_pipeline("text-classification", lambda batch: {"last_hidden_state": 0}, tokenizer, config_from_hf(HF))
    with pytest.raises(InputError, match="needs the model's logits, but it returned last_hidden_state"):
        pipe("Ada")


def test_unknown_options_and_inputs_are_named():
    pipe, _ = make()
    with pytest.raises(InputError, match=r"has no option 'topk'; its options are truncation, max_length, top_k"):
        pipe("Ada", topk=3)
    with pytest.raises(InputError, match="has no option 'temperature'"):
        make(temperature=1)
    with pytest.raises(InputError, match="batch_size is 0"):
        make(batch_size=0)
    with pytest.raises(InputError, match="batch_size is 'x'"):
        pipe("Ada", batch_size="x")
    with pytest.raises(InputError, match="progress is 'yes'"):
        pipe("Ada", progress="yes")
    with pytest.raises(InputError, match="got 2 positional inputs"):
        pipe("Ada", "wrote")
    with pytest.raises(InputError, match=r"input 17 is 3 \(int\); expected a text"):
        pipe(["Ada"] * 17 + [3])
    results = pipe(iter(["Ada"] * 300 + [""]), batch_size=2)
    with pytest.raises(InputError, match="input 300 is an empty text"):
        list(results)


@pytest.mark.parametrize("bad", [None, 3, b"Ada", 2.5])
def test_wrong_inputs(bad):
    with pytest.raises(InputError, match=r"text-classification (got|needs)"):
        make()[0](bad)


def test_tasks_by_name():
    assert get_task("ner") is TASKS["token-classification"] and set(ALIASES.values()) <= set(TASKS)
    for bad in ("summarisation", None, 3, ["ner"]):
        with pytest.raises(InputError, match=r"unknown task .*; expected one of feature-extraction, "):
            get_task(bad)


def test_a_slow_tokenizer_is_an_error():
    with pytest.raises(InputError, match="needs a fast tokenizer, got object"):
        get_task("ner")(object(), config_from_hf(HF))


class Terminal:
    """A standard error that claims to be a terminal."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_shows_only_on_long_work(monkeypatch):
    clock = iter([0.0, 0.1, 1.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock, 3.0))
    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress(2, None, "short") as bar:
        bar.advance(1)  # 0.1 s for one of two
        assert bar.bar is None
    with Progress(100, None, "long") as bar:
        bar.advance(1)
        assert bar.bar is not None
    with Progress(2, True, "always") as bar:
        assert bar.bar is not None
    with Progress(100, False, "never") as bar:
        bar.advance(1)
        assert bar.bar is None


def test_an_iterator_has_a_bar_too(monkeypatch):
    bars = []

    class RecordedProgress(Progress):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            bars.append(self)

    monkeypatch.setattr("duonlp.pipelines.pipeline.Progress", RecordedProgress)
    monkeypatch.setattr("sys.stderr", Terminal())
    pipe, _ = make(batch_size=2)
    inputs = texts(40)
    assert len(list(pipe(text for text in inputs))) == 40
    assert (bars[-1].total, bars[-1].bar, bars[-1].done) == (None, None, 40)  # finished before the bar would appear
    assert len(list(pipe(iter(inputs)))) == 40 and bars[-1].total == 40  # an iterator of a list knows its length
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert len(list(pipe(text for text in inputs))) == 40
    assert bars[-1].bar.tasks[0].completed == 40 and bars[-1].bar.tasks[0].total is None
    assert "40/?" in sys.stderr.text
    assert len(list(pipe((text for text in inputs), progress=False))) == 40 and bars[-1].bar is None


def test_the_batch_size_of_a_call_is_what_its_rows_are_padded_to():
    pipe, recorder = make(batch_size=2)
    pipe(texts(5), batch_size=6)
    assert recorder.batches[-1]["input_ids"].shape[0] == 6
    pipe, recorder = make(batch_size=8)
    pipe(texts(3), batch_size=3)
    assert recorder.batches[-1]["input_ids"].shape[0] == 3


class Loaded:
    """The attributes of an engine's model that load_pipeline uses."""

    def __init__(self, head, config, **attributes):
        self.head, self.config = head, config
        self.__dict__.update(attributes)


def test_a_loaded_model_remembers_its_checkpoint(tmp_path):
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [
                {"type": f"sentence_transformers.models.{name}", "path": name}
                for name in ("Transformer", "Pooling", "Normalize")
            ]
        )
    )
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    tokenizer = reference.load_tokenizer("wordpiece")
    config = config_from_hf(HF | {"vocab_size": len(tokenizer)})
    run = reference.NumpyModel(len(tokenizer))

    def load(**attributes):
        model = Loaded("base", config, **attributes)
        return load_pipeline({}, lambda _: run, "sentence-embedding", model, tokenizer=tokenizer)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load(folder=str(tmp_path))
    assert pipe.task.sentence.pooling == ("cls",) and np.allclose(np.linalg.norm(pipe("Ada")), 1)
    with pytest.warns(UserWarning, match="has no modules.json"):
        load(folder=None)


def test_model_and_tokenizer_are_of_one_version(tmp_path, monkeypatch):
    from duonlp.checkpoints import Checkpoint, save_checkpoint
    from duonlp.parameters import parameters

    tokenizer = reference.load_tokenizer("wordpiece")
    config = config_from_hf(HF | {"vocab_size": len(tokenizer)})
    spec, load, later = parameters(config, "base"), Checkpoint.tokenizer, [2, 3]

    def save(version):
        tokenizer.model_max_length = version
        values = {path: np.full(parameter.shape, version, np.float32) for path, parameter in spec.items()}
        save_checkpoint(tmp_path / "m", config, "base", values.__getitem__, np.float32, tokenizer)

    def load_while_another_saves(checkpoint):
        result = load(checkpoint)
        if later:
            save(later.pop(0))
        return result

    class Engine:
        @staticmethod
        def from_pretrained(checkpoint, **options):
            save(4)  # too late: the files are open
            sources = checkpoint.plan(checkpoint.transformer_config(), "base")
            return Loaded("base", config, values={float(v) for source in sources for v in source.read().flat})

    save(1)
    monkeypatch.setattr(Checkpoint, "tokenizer", load_while_another_saves)
    models = []
    pipe = load_pipeline({"base": Engine}, models.append, "feature-extraction", tmp_path / "m")
    assert models[0].values == {3.0} and pipe.tokenizer.model_max_length == 3 and not later


def test_a_loaded_model_generates_as_its_own_configuration_says():
    tokenizer = reference.load_tokenizer("gpt2")
    config = config_from_hf({"model_type": "gpt2", "vocab_size": len(tokenizer), "n_embd": 16, "n_head": 2})
    seen = {}

    def generate(ids, mask, **options):
        seen.update(options)
        return np.concatenate([ids, ids], axis=1)

    own = GenerationConfig(max_new_tokens=4, eos_token_id=(1, 2), pad_token_id=5)
    model = Loaded("causal-lm", config, generate=generate, generation_config=own)
    load_pipeline({}, None, "text-generation", model, tokenizer=tokenizer)("Ada")
    assert seen == {"max_new_tokens": 4, "eos_token_id": [1, 2], "pad_token_id": 5}
    load_pipeline({}, None, "text-generation", model, tokenizer=tokenizer, eos_token_id=7, max_length=9)("Ada")
    assert seen["eos_token_id"] == [7] and seen["pad_token_id"] == 5
    assert seen["max_new_tokens"] == 9 - len(tokenizer("Ada")["input_ids"])


def test_positions_of_a_plain_model():
    config = config_from_hf(HF)
    ids = np.array([[2, 7, 3, 0], [2, 7, 8, 3]])
    expected = [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert position_ids(config, ids).tolist() == expected and position_ids(config, ids).dtype == np.int32
    assert position_ids(config, ids[:, :1], past=5).tolist() == [[5], [5]]


def test_positions_that_skip_padding():
    config = config_from_hf(HF | {"model_type": "roberta", "pad_token_id": 1})
    ids = np.array([[0, 7, 2, 1], [1, 0, 7, 2]])
    assert position_ids(config, ids, np.ones_like(ids)).tolist() == [[2, 3, 4, 1], [1, 2, 3, 4]]
    assert position_ids(config, np.array([[9]]), past=3).tolist() == [[5]]


def test_positions_of_left_padded_prompts():
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert generation_position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert generation_position_ids(mask).dtype == np.int32


def test_repr():
    assert repr(make()[0]) == "Pipeline('text-classification', model_type='bert')"
    assert isinstance(make()[0], Pipeline)
