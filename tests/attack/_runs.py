"""The tiny runs that the attack of kills.py interrupts: ``python -m tests.attack._runs ENGINE`` serves them on its pipes.

Importing a framework takes much longer than such a run, so this program imports it once and forks a child for each run, before it
has computed anything.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack._works import run_duonlp

KINDS = {"tfnlp": ("fit", "distill", "Pretrainer"), "jaxnlp": ("fit", "distill", "pretrain")}
"""Engine -> its kinds of run."""

REFUSED = 75
"""Exit status of a process that another one keeps from using its folder."""

GPT2 = {
    "model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.1,
    "embd_pdrop": 0.1, "attn_pdrop": 0.1, "initializer_range": 0.2,
}  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.2, "num_labels": 3,
}  # fmt: skip
SAVES = {"epochs": 3, "learning_rate": 1e-2, "log_every": 1, "save_every": 1, "evaluate_every": 2}


def sentences() -> list[dict[str, np.ndarray]]:
    """Return batches whose labels depend on the first id."""
    ids = np.random.default_rng(0).integers(5, 32, (3, 8, 6)).astype(np.int32)
    return [{"input_ids": rows, "attention_mask": np.ones_like(rows), "labels": rows[:, 0] % 3} for rows in ids]


class Counting:
    """Blocks in which each token is the previous one plus 1."""

    rows = ((np.arange(64)[:, None] + np.arange(16)) % 32).astype(np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"input_ids": self.rows[indices]}


def distillation() -> Any:
    """Return the settings of a distillation that also compares hidden states, with a projection."""
    from duonlp.distillation.settings import Distillation, HiddenStates

    return Distillation(alpha=0.5, losses=(HiddenStates(0.2),))


def run_tfnlp(kind: str, folder: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Train; return the parameters, and whether the run was asked to stop before its end."""
    import tfnlp
    from duonlp.data.blocks.batches import Batches
    from duonlp.data.objectives.language_modelling import CausalLM
    from tfnlp.training import (
        BackupAndRestore,
        FitConfig,
        Pretrainer,
        PretrainingLog,
        Schedule,
        StopAtSigterm,
        block_dataset,
        fit,
        make_optimizer,
    )

    if kind == "Pretrainer":
        trainer = Pretrainer(tfnlp.AutoModelForCausalLM.from_config(GPT2, seed=1), accumulation=2, seed=3)
        trainer.compile(make_optimizer("adamw", Schedule(12, 1e-2), trainer.model), jit_compile=False)
        sigterm = StopAtSigterm()
        callbacks = [
            BackupAndRestore(folder / "backups", save_freq=2), PretrainingLog(folder, log_every=1, console=False), sigterm,
        ]  # fmt: skip
        data = block_dataset(Batches(Counting(), CausalLM(), 8))
        trainer.fit(data, epochs=3, steps_per_epoch=4, verbose=0, callbacks=callbacks)
        model, stopped = trainer.model, int(trainer.step.numpy()) < 12
    else:
        classifier = tfnlp.AutoModelForSequenceClassification.from_config
        options = {"validation": sentences()[:1], "jit_compile": False, "log": {"console": False}}
        config, student = FitConfig(**SAVES), classifier(BERT, seed=1)
        if kind == "fit":
            result = fit(student, sentences(), config, folder, **options)
        else:
            from tfnlp.distillation import distill

            teacher = classifier(BERT | {"num_hidden_layers": 2}, seed=2)
            result = distill(student, teacher, sentences(), config, distillation(), folder, **options)
        model, stopped = result.model, result.preempted
    return {path: variable.numpy() for path, variable in tfnlp.parameter_tree(model).items()}, stopped


def run_jaxnlp(kind: str, folder: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Train; return the parameters, and whether the run was asked to stop before its end."""
    import jax

    from duonlp.data.blocks.batches import Batches, held_out_batches
    from duonlp.data.objectives.language_modelling import CausalLM
    from jaxnlp.distillation import distill
    from jaxnlp.training import FitConfig, LazyModel, PretrainingConfig, fit, pretrain
    from jaxnlp.training.model import parameter_reader
    from tests.jaxnlp.training.runs import CountingBlocks

    options: dict[str, Any] = {"log": {"console": False}}
    if kind == "pretrain":
        config = PretrainingConfig(
            steps=12, batch_size=8, learning_rate=1e-2, log_every=1, save_every=2, evaluate_every=5
        )
        blocks = CountingBlocks()
        held_out = held_out_batches(blocks, CausalLM(), 8)
        batches = Batches(blocks, CausalLM(), 8)
        result = pretrain(LazyModel.from_config(GPT2, seed=1), batches, config, folder, held_out=held_out, **options)
        leaves = jax.tree_util.tree_leaves_with_path(result.params)
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, result.preempted

    def classifier(seed: int, **changes: Any) -> LazyModel:
        return LazyModel.from_config(BERT | changes, head="sequence-classification", seed=seed)

    options |= {"validation": sentences()[:1]}
    if kind == "fit":
        result = fit(classifier(1), sentences(), FitConfig(**SAVES), folder, **options)
    else:
        teacher = classifier(2, num_hidden_layers=2)
        result = distill(classifier(1), teacher, sentences(), FitConfig(**SAVES), distillation(), folder, **options)
    read = parameter_reader(result.model)
    from duonlp.parameters import parameters

    paths = parameters(result.model.config, "sequence-classification")
    return {path: np.asarray(read(path)) for path in paths}, result.preempted


class FileEvents:
    """Counts this process's file events in a folder, and interrupts the process at one of them.

    Args:
        folder: The folder.
        at: Number of the event, from 1; 0 for none.
        signal_number: Signal to send.
        delay: Seconds after the event at which the signal arrives; after a delay it is always one that kills at once.
    """

    def __init__(self, folder: Path, at: int = 0, signal_number: int = signal.SIGKILL, delay: float = 0.0):
        self.folder, self.at, self.signal, self.delay, self.count = str(folder), at, signal_number, delay, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set("wax+").intersection(arguments[1])):
            return
        if not any(
            isinstance(path, (str, os.PathLike)) and str(path).startswith(self.folder) for path in arguments[:2]
        ):
            return
        self.count += 1
        if self.count == self.at:
            if self.delay:
                signal.setitimer(signal.ITIMER_REAL, self.delay)  # SIGALRM, whose default is to kill the process
            else:
                os.kill(os.getpid(), self.signal)


def child(engine: str, request: dict[str, Any]) -> int:
    """Run in this process, interrupted as requested; write the digest of the parameters; return the exit status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    events = FileEvents(request["folder"], *request["interrupt"])
    sys.addaudithook(events)
    from duonlp.errors import InputError

    run: Callable[..., Any] = {"tfnlp": run_tfnlp, "jaxnlp": run_jaxnlp, "duonlp": run_duonlp}[engine]
    try:
        parameters, stopped = run(request["kind"], Path(request["folder"]))
    except KeyboardInterrupt:
        return 130
    except InputError as error:
        if "is being written by another process or thread" not in str(error):
            raise
        return REFUSED
    if stopped:
        return 143
    digest = hashlib.sha256()
    for path in sorted(parameters):
        digest.update(path.encode() + parameters[path].tobytes())
    Path(request["result"]).write_text(json.dumps({"digest": digest.hexdigest(), "events": events.count}))
    return 0


def serve(engine: str) -> None:
    """Answer each line of JSON on standard input, a request, with the status that its child ended with."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if engine == "tfnlp":
        import tensorflow  # noqa: F401

        import tfnlp.distillation
        import tfnlp.training  # noqa: F401
    elif engine == "jaxnlp":
        import jax
        import orbax.checkpoint  # noqa: F401

        import jaxnlp.training  # noqa: F401

        jax.config.update("jax_compilation_cache_dir", os.environ["ATTACK_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(engine, json.loads(line))) + "\n")
        answers.flush()


def answer(engine: str, request: dict[str, Any]) -> list[int]:
    """Run once for each of the request's "delays" at the same time, each in a child or all in one's "threads".

    Returns:
        The statuses that the children ended with, negative for a signal; or those of the threads.
    """
    delays = request["delays"]
    groups = [delays] if request["threads"] else [[delay] for delay in delays]
    pids = []
    for number, group in enumerate(groups):
        pid = os.fork()
        if pid == 0:
            log = os.open(f"{request['log']}{number or ''}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(log, 1), os.dup2(log, 2)
            with ThreadPoolExecutor(len(group)) if len(group) > 1 else nullcontext() as pool:
                apply = map if pool is None else pool.map
                statuses = list(apply(lambda delay: _status(engine, request, delay), group))
            sys.stderr.flush()
            os._exit(sum(status << (4 * place) for place, status in enumerate(map(CODES.index, statuses))))
        pids.append(pid)
    exits = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if request["threads"]:
        return [CODES[exits[0] >> (4 * place) & 15] if exits[0] >= 0 else exits[0] for place in range(len(delays))]
    return [CODES[code] if code >= 0 else code for code in exits]


CODES = [0, 1, REFUSED, 130, 143]
"""Statuses of a run, in 4 bits of the exit status of a child."""


def _status(engine: str, request: dict[str, Any], delay: float) -> int:
    time.sleep(delay)
    try:
        return child(engine, request)
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    serve(sys.argv[1])
