"""Attacks with threads and processes: many threads on the same pipelines, forked and spawned children.

Every result is compared with the one that the same call gave alone. A thread of the user's calls the pipelines' own tokenizers
with other truncation and padding meanwhile. The long form: ``python -m tests.attack "threads on a pipeline" --minutes 20``
gives each engine ten minutes.
"""

import json
import multiprocessing
import os
import string
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.harness import HELD, Budget, Outcome, attack

PACKAGES = ("jaxnlp", "tfnlp")
THREADS, CALLS = 8, 6
"""Threads of a case, and calls of each."""

POSITIONS = 32
WORDS = ("Ada", "wrote", "the", "first", "program", "in", "London", "and", "analytical", "engine", "weaves", "patterns")
BODY = {
    "vocab_size": 190, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": POSITIONS, "pad_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 8, "n_positions": POSITIONS,
    "eos_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
MBART = {
    "model_type": "mbart", "d_model": 8, "max_position_embeddings": POSITIONS, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "init_std": 0.5,
}  # fmt: skip
LABELS = {"id2label": {str(i): label for i, label in enumerate(("O", "B-PER", "I-PER", "B-LOC"))}}
NLI = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}}
GREEDY = {"max_new_tokens": 5, "num_beams": 1}

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "text-classification": (
        {"max_length": 4}, {"max_length": 9}, {"truncation": True}, {"top_k": None, "max_length": 6}, {},
    ),
    "token-classification": (
        {}, {"aggregation_strategy": "first", "stride": 2}, {"aggregation_strategy": "max", "stride": 5},
    ),
    "fill-mask": ({"targets": ["in", "a"]}, {"top_k": 2}, {"targets": ["the"]}, {"max_length": 12}),
    "question-answering": (
        {}, {"max_seq_len": 20, "doc_stride": 3}, {"max_seq_len": 16, "doc_stride": 2, "top_k": 3},
    ),
    "zero-shot-classification": (
        {"candidate_labels": "in, the"}, {"candidate_labels": ["wrote"], "max_length": 24},
        {"candidate_labels": "in, the", "multi_label": True, "max_length": 20},
    ),
    "sentence-embedding": ({}, {"max_length": 5}, {"max_length": 11, "normalize": True}, {"truncation": False}),
    "feature-extraction": ({}, {"tokenize_kwargs": {"max_length": 3}}, {"return_tensors": True, "max_length": 7}),
    "text-generation": (
        {"max_new_tokens": 5}, {"max_new_tokens": 3, "num_beams": 2}, {"max_new_tokens": 5, "do_sample": True, "seed": 3},
        {"max_new_tokens": 5, "stop_strings": ["the"]}, {"max_new_tokens": 4, "return_full_text": False},
    ),
    "translation": (
        GREEDY | {"src_lang": "en_XX", "tgt_lang": "de_DE"}, GREEDY | {"src_lang": "ro_RO", "tgt_lang": "en_XX"},
        GREEDY | {"src_lang": "fr_XX", "tgt_lang": "ro_RO", "truncation": True, "max_source_length": 6},
    ),
}  # fmt: skip
"""Calls of each task that set different things on the tokenizer, the model's compiled programs and the task's caches."""


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Write a small random checkpoint for each task and return the folders."""
    from transformers import MBartTokenizer

    from duonlp.tasks import get_task
    from tests.cases import Case
    from tests.reference import record_pipelines as reference

    words = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -2.0) for word in dict.fromkeys(WORDS)]
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + words
    pieces += [("\N{LOWER ONE EIGHTH BLOCK}", -4.0), *((letter, -5.0) for letter in string.ascii_letters)]
    translator = MBartTokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE")
    paths = {}
    for task in OPTIONS:
        body, tokenizer = {
            "text-generation": lambda: (GPT2, reference.load_tokenizer("gpt2")),
            "translation": lambda: (MBART, translator),
        }.get(task, lambda: ({"model_type": "bert", **BODY}, reference.load_tokenizer("wordpiece")))()
        labels = (
            NLI
            if task == "zero-shot-classification"
            else LABELS
            if task in ("text-classification", "token-classification")
            else {}
        )
        case = Case(task, body | labels | {"vocab_size": len(tokenizer)}, get_task(task).head)
        paths[task] = case.write(folder / task)
        tokenizer.model_max_length = POSITIONS
        tokenizer.save_pretrained(paths[task])
    return paths


def load_pipelines(package: str, paths: dict[str, Path]) -> dict[str, Any]:
    """Return a pipeline for each task; those of one kind of model share their tokenizer, as in a server."""
    import importlib

    from transformers import AutoTokenizer

    engine = importlib.import_module(package)
    shared = AutoTokenizer.from_pretrained(paths["text-classification"])
    others = {task: AutoTokenizer.from_pretrained(paths[task]) for task in ("text-generation", "translation")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            task: engine.pipeline(task, path, tokenizer=others.get(task, shared), batch_size=4)
            for task, path in paths.items()
        }


Job = tuple[str, Any, dict[str, Any]]
"""Task, input, options."""


def make_jobs(rng: np.random.Generator) -> list[Job]:
    """Return the calls from which threads draw: each set of options with one text and with a list of texts."""

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)).tolist())

    def item(task: str) -> Any:
        if task == "question-answering":
            return {"question": text(2, 4), "context": text(12, 30)}
        if task == "fill-mask":
            return f"{text(2, 4)} [MASK] {text(2, 4)}"
        return text(2, 4) if task in ("text-generation", "translation") else text(3, 8)

    jobs: list[Job] = []
    for task, calls in OPTIONS.items():
        for options in calls:
            several = {"text-generation": 1, "translation": 2}.get(task, 4)
            jobs += [(task, item(task), options), (task, [item(task) for _ in range(several)], options)]
    return jobs


def difference(ours: Any, theirs: Any) -> str:
    """Describe the first difference of two results; "" if there is none, up to rounding."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        return next((text for key in ours if (text := difference(ours[key], theirs[key]))), "")
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next((text for a, b in zip(ours, theirs, strict=True) if (text := difference(a, b))), "")
    if isinstance(ours, (float, np.ndarray)) and type(ours) is type(theirs):
        same = np.shape(ours) == np.shape(theirs) and np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        return (
            ""
            if same
            else f"{np.shape(ours)} {np.ravel(ours)[:3]} instead of {np.shape(theirs)} {np.ravel(theirs)[:3]}"
        )
    return "" if ours == theirs else f"{str(ours)[:80]} instead of {str(theirs)[:80]}"


def run_threads(works: list[Callable[[], None]], seconds: float = 300.0) -> bool:
    """Run functions in a thread each, all starting at once; return whether all ended in time."""
    barrier = threading.Barrier(len(works))

    def start(work: Callable[[], None]) -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=start, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    return not any(thread.is_alive() for thread in threads)


def call(pipes: dict[str, Any], job: Job) -> Any:
    """Return the result of a call, or the exception it raised."""
    task, inputs, options = job
    try:
        return pipes[task](inputs, **options)
    except Exception as error:
        return error


def case_of_threads(
    pipes: dict[str, Any], jobs: list[Job], rng: np.random.Generator
) -> tuple[bool, list[tuple[Job, Any]]]:
    """Call pipelines from THREADS threads while another one uses their tokenizers; return what each call gave."""
    results: list[tuple[Job, Any]] = []
    done = threading.Event()

    def caller(drawn: list[int]) -> Callable[[], None]:
        return lambda: results.extend([(jobs[i], call(pipes, jobs[i])) for i in drawn])

    def tokenizes() -> None:
        tokenizers = {id(pipe.tokenizer): pipe.tokenizer for pipe in pipes.values()}
        lengths = rng.integers(2, 9, 1000).tolist()
        while not done.is_set():
            for tokenizer in tokenizers.values():
                padding = "max_length" if tokenizer.pad_token else False
                length = lengths[len(results) % 1000]
                tokenizer(" ".join(WORDS), truncation=True, padding=padding, max_length=length)

    user = threading.Thread(target=tokenizes, daemon=True)
    user.start()
    finished = run_threads([caller(rng.integers(0, len(jobs), CALLS).tolist()) for _ in range(THREADS)])
    done.set()
    user.join(60)
    return finished, results


@attack("threads on a pipeline")
def threads_on_a_pipeline(budget: Budget) -> Iterator[Outcome]:
    """Call all tasks of an engine from eight threads, first with cold pipelines, which compile in all threads at once."""
    paths = write_checkpoints(budget.folder)
    jobs = make_jobs(np.random.default_rng(5))  # few shapes, whatever the seed: every one of them compiles
    jobs = jobs if budget.cases > 100 else jobs[::9]
    pipes: dict[str, dict[str, Any]] = {}
    expected: dict[str, dict[int, Any]] = {package: {} for package in PACKAGES}
    numbers = {id(job): number for number, job in enumerate(jobs)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)  # threads take turns 250 times as often
    try:
        for n in budget:
            package = PACKAGES[n % 2]
            if package not in pipes:
                pipes[package] = load_pipelines(package, paths)
            finished, results = case_of_threads(pipes[package], jobs, budget.rng)
            case = f"case {n} of {package}: {THREADS} threads with {CALLS} calls each"
            if not finished:
                yield Outcome(case, "hang", "threads did not end in five minutes")
                return
            fault = HELD, ""
            for job, result in results:
                number = numbers[id(job)]
                if number not in expected[package]:
                    expected[package][number] = call(pipes[package], job)
                alone = expected[package][number]
                if isinstance(result, Exception) or isinstance(alone, Exception):
                    fault = "traceback", f"{job[0]} {job[2]}: {result!r}"
                elif text := difference(result, alone):
                    fault = "wrong", f"{job[0]} {job[2]}: {text}"
            yield Outcome(case, *fault)
    finally:
        sys.setswitchinterval(interval)


def model_works(package: str, path: Path, model: Any) -> dict[str, Callable[[int], Any]]:
    """Return what a thread may do with a model and a number, which decides the arguments; results are plain values."""
    import importlib

    engine = importlib.import_module(package)
    forward = engine.compiled(model)
    config = {"num_labels": 3} | json.loads((path / "config.json").read_text())

    def ids(n: int) -> np.ndarray:
        return np.random.default_rng(n % 4).integers(3, 50, (1 + n % 2, 4 + n % 4 // 2 * 4)).astype(np.int32)

    def outputs(out: Any) -> list[Any]:
        return [np.asarray(value, np.float32) for value in out.values() if not isinstance(value, (tuple, dict))]

    return {
        "model": lambda n: outputs(model(ids(n))),
        "compiled": lambda n: outputs(forward(input_ids=ids(n))),
        "new compiled": lambda n: outputs(engine.compiled(model)(input_ids=ids(n))),
        "greedy": lambda n: model.generate(ids(n), max_new_tokens=3 + n % 3),
        "beams": lambda n: model.generate(ids(n), max_new_tokens=3, num_beams=2, length_penalty=0.5 * (n % 3)),
        "sample": lambda n: model.generate(ids(n), max_new_tokens=3, do_sample=True, seed=n, top_k=5 + n % 2),
        "time": lambda n: model.generate(ids(n), max_new_tokens=3, max_time=60.0 + n),
        "stream": lambda n: list(engine.generation.stream(model, ids(0), max_new_tokens=4)),
        "logprob": lambda n: engine.generation.sequence_logprob(model, ids(n)),
        "load": lambda n: outputs(engine.AutoModelForCausalLM.from_pretrained(path)(ids(n))),
        "random model": lambda n: outputs(
            engine.AutoModelForSequenceClassification.from_config(config, seed=n % 3)(ids(n))
        ),
    }


@attack("threads on a model")
def threads_on_a_model(budget: Budget) -> Iterator[Outcome]:
    """Run, decode with, load and build models in eight threads, first with nothing compiled."""
    import importlib

    path = write_checkpoints(budget.folder)["text-generation"]
    works: dict[str, dict[str, Callable[[int], Any]]] = {}
    expected: dict[tuple[str, str, int], Any] = {}
    numbers = 6 if budget.cases > 100 else 1  # each compiles for itself

    def attempt(work: Callable[[int], Any], number: int) -> Any:
        try:
            return work(number)
        except Exception as error:
            return error

    for n in budget:
        package = PACKAGES[n % 2]
        if package not in works:
            model = importlib.import_module(package).AutoModelForCausalLM.from_pretrained(path)
            works[package] = model_works(package, path, model)
        drawn = [
            (str(budget.rng.choice(list(works[package]))), int(budget.rng.integers(numbers))) for _ in range(THREADS)
        ]
        results: list[tuple[str, int, Any]] = []

        def caller(name: str, number: int, work: Callable[[int], Any], results: list[Any]) -> Callable[[], None]:
            return lambda: results.append((name, number, attempt(work, number)))

        callers = [caller(name, number, works[package][name], results) for name, number in drawn]
        finished = run_threads(callers)
        case = f"case {n} of {package}: {THREADS} threads on a model"
        if not finished:
            yield Outcome(case, "hang", "threads did not end in five minutes")
            return
        fault = HELD, ""
        for name, number, result in results:
            key = package, name, number
            if key not in expected:
                expected[key] = attempt(works[package][name], number)
            if isinstance(result, Exception) or isinstance(expected[key], Exception):
                fault = "traceback", f"{name} {number}: {result!r}"
            elif text := difference(result, expected[key]):
                fault = "wrong", f"{name} {number}: {text}"
        yield Outcome(case, *fault)


ACTIONS = ("pipeline", "new pipeline", "model", "compiled", "generate", "stream", "logprob", "load", "random model")
"""What a child does with what its parent has loaded."""


def act(action: str, package: str, paths: dict[str, str], pipes: dict[str, Any], model: Any) -> str:
    """Do something with models and return what came of it: "worked", or the error."""
    import importlib

    from duonlp.errors import DuonlpError

    engine = importlib.import_module(package)
    ids = np.array([[3, 4, 5]])
    works: dict[str, Callable[[], Any]] = {
        "pipeline": lambda: pipes["text-classification"]("the engine", max_length=4),
        "new pipeline": lambda: engine.pipeline("text-classification", paths["text-classification"])("the engine"),
        "model": lambda: model(ids),
        "compiled": lambda: engine.compiled(model)(input_ids=ids),
        "generate": lambda: model.generate(ids, max_new_tokens=2),
        "stream": lambda: list(pipes["text-generation"].stream("the", max_new_tokens=2)),
        "logprob": lambda: engine.generation.sequence_logprob(model, ids),
        "load": lambda: engine.AutoModelForCausalLM.from_pretrained(paths["text-generation"]),
        "random model": lambda: type(model).from_config(model.config),
    }
    try:
        works[action]()
    except DuonlpError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"traceback {error!r}"
    return "worked"


def serve(package: str, folder: str) -> None:
    """Load pipelines, then for each action on a line of standard input fork a child, and print what came of it.

    Args:
        package: Engine to load.
        folder: Folder of the checkpoints of :func:`write_checkpoints`.
    """
    paths = {task: str(Path(folder) / task) for task in ("text-classification", "text-generation")}
    import importlib

    engine = importlib.import_module(package)
    pipes = {task: engine.pipeline(task, path) for task, path in paths.items()}
    model = engine.AutoModelForCausalLM.from_pretrained(paths["text-generation"])
    for action in ACTIONS:  # everything is compiled
        assert (result := act(action, package, paths, pipes, model)) == "worked", (action, result)
    print("ready", flush=True)
    for line in sys.stdin:
        action = line.strip()
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python and JAX about forks
            child = os.fork()
        if not child:
            os.write(writing, json.dumps(act(action, package, paths, pipes, model)).encode())
            os._exit(0)
        os.close(writing)
        print(_answer(child, reading), flush=True)


def _answer(child: int, reading: int, seconds: float = 30.0) -> str:
    """Return what a child writes to a pipe, as JSON; kill it if it does not within some seconds."""
    import select
    import signal

    ready = select.select([reading], [], [], seconds)[0]
    answer = os.read(reading, 1 << 16).decode() if ready else ""
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return answer or json.dumps("died" if ready else "hang")


def spawned(package: str, paths: dict[str, str], results: Any) -> None:
    """Run a pipeline in a spawned process and put the result into a queue."""
    import importlib

    pipe = importlib.import_module(package).pipeline("text-classification", paths["text-classification"])
    results.put(pipe("the engine"))


def spawn_case(package: str, paths: dict[str, str]) -> tuple[str, str]:
    """Return the verdict and detail of a spawned process that uses the pipeline that its parent uses, too."""
    import importlib

    here = importlib.import_module(package).pipeline("text-classification", paths["text-classification"])("the engine")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=spawned, args=(package, paths, queue))
    process.start()
    try:
        text = difference(queue.get(timeout=120), here)
    except Exception as error:
        return "hang", f"no result of the spawned process: {error!r}"
    finally:
        process.kill()
        process.join()
    return ("wrong", text) if text else (HELD, "")


@attack("forked and spawned processes")
def forked_and_spawned_processes(budget: Budget) -> Iterator[Outcome]:
    """Use models in children of a process that has used them: forked ones must refuse, and spawned ones must work."""
    paths = {task: str(path) for task, path in write_checkpoints(budget.folder).items()}
    servers: dict[str, subprocess.Popen[str]] = {}
    try:
        for n in budget:
            package = PACKAGES[n % 2]
            if n in (2, 3) or n % 100 > 97:
                yield Outcome(f"{package} in a spawned process", *spawn_case(package, paths))
                continue
            if package not in servers:
                code = f"from tests.attack import threads; threads.serve({package!r}, {str(budget.folder)!r})"
                servers[package] = subprocess.Popen(
                    [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                while servers[package].stdout.readline().strip() not in ("ready", ""):
                    pass
            action = ACTIONS[n // 2 % len(ACTIONS)]
            server = servers[package]
            print(action, file=server.stdin, flush=True)
            result = json.loads(server.stdout.readline() or '"the server died"')
            refused = result.startswith("InputError: this process was forked") and "spawn" in result
            verdict = HELD if refused else {"hang": "hang", "died": "crash", "worked": "wrong"}.get(result, "traceback")
            yield Outcome(f"{action} of {package} in a forked process", verdict, result)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
