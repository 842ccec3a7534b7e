"""Compare the pipelines of encoder-decoders in both engines with each other and with Transformers' model."""

import importlib
from functools import cache
from importlib.util import find_spec

import pytest

from duonlp.errors import InputError
from tests.cases import Case
from tests.reference import record_pipelines as reference

PACKAGES = ("tfnlp", "jaxnlp")
TEXTS = reference.TEXTS[:4]
SUMMARY = {
    "prefix": "sum up: ", "num_beams": 3, "max_length": 9, "min_length": 4, "length_penalty": 2.0,
    "no_repeat_ngram_size": 3, "early_stopping": True,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "pad_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
    "task_specific_params": {
        "summarization": SUMMARY, "translation_en_to_fr": {"prefix": "to French: ", "num_beams": 2, "max_length": 8},
    },
}  # fmt: skip
GREEDY = {"max_new_tokens": 8, "num_beams": 1, "min_new_tokens": 6}
CALLS = {"text2text-generation": GREEDY, "summarization": {}, "translation_en_to_fr": {"num_return_sequences": 2}}

pytestmark = [
    pytest.mark.filterwarnings("ignore:max_length is|input . has|min_length"),
    pytest.mark.skipif(
        not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a small random T5 with its tokenizer."""
    tokenizer = reference.load_tokenizer("unigram")
    case = Case("summarizer", T5 | {"vocab_size": len(tokenizer)}, "seq2seq-lm")
    path = case.write(tmp_path_factory.mktemp("seq2seq") / "t5")
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipes(folder):
    """Return a function that creates the pipelines of a task, one per engine, once."""

    @cache
    def make(task: str) -> list:
        return [importlib.import_module(package).pipeline(task, folder, batch_size=4) for package in PACKAGES]

    return make


@pytest.mark.parametrize("task", CALLS)
def test_engines_agree(pipes, task):
    ours, theirs = pipes(task)
    results = ours(TEXTS, **CALLS[task])
    assert results == theirs(TEXTS, **CALLS[task]) and len(results) == len(TEXTS)


@pytest.mark.parity
@pytest.mark.parametrize("task", ["summarization", "translation_en_to_fr"])
def test_texts_agree_with_transformers(pipes, folder, task):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = reference.load_tokenizer("unigram")
    settings = dict(T5["task_specific_params"][task])
    prefix = settings.pop("prefix")
    for text, ours in zip(TEXTS, pipes(task)[1](TEXTS, return_tensors=True), strict=True):
        with torch.no_grad():
            ids = model.generate(**tokenizer(prefix + text, return_tensors="pt"), **settings)[0].tolist()
        assert next(iter(ours.values())) == ids


def test_long_documents_agree_between_engines(pipes):
    text = " ".join(TEXTS * 3)
    options = {"long_documents": "chunk", "max_source_length": 60, "return_chunks": True, "num_beams": 1}
    (first,), (second,) = (pipe(text, **options) for pipe in pipes("summarization"))
    parts = [len(chunks) for chunks in first["chunks"]]
    assert first == second and parts[0] > 2 and parts == sorted(parts, reverse=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_streamed_pieces_join_to_the_text(pipes, package):
    pipe = pipes("text2text-generation")[PACKAGES.index(package)]
    pieces = list(pipe.stream(TEXTS[1], **GREEDY))
    assert "".join(pieces) == pipe(TEXTS, **GREEDY)[1]["generated_text"] and len(pieces) > 1
    with pytest.raises(InputError, match="num_beams=4 cannot be streamed, since beams change until the end"):
        pipe.stream(TEXTS[1])


def test_sampling_agrees_between_engines_and_does_not_depend_on_the_batch(pipes):
    options = {"max_new_tokens": 6, "num_beams": 1, "do_sample": True, "seed": 3, "top_k": 0}
    ours, theirs = pipes("text2text-generation")
    results = ours(TEXTS, **options)
    assert results == theirs(TEXTS, **options) == [*ours(TEXTS[::-1], **options)][::-1]
    assert results != ours(TEXTS, **options | {"seed": 4})


def test_unsupported_tasks_raise(folder, tmp_path):
    jaxnlp = importlib.import_module("jaxnlp")
    with pytest.raises(InputError, match=r"text-generation needs \w+, which t5 does not support; .*: .*summarization"):
        jaxnlp.pipeline("text-generation", folder)
    body = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 16}
    gpt2 = Case("gpt2", body, "causal-lm").write(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"summarization needs \w+, which gpt2 does not support; .*text-generation"):
        jaxnlp.pipeline("summarization", gpt2)
