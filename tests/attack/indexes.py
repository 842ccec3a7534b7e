"""Kill the save of a document store before each of its file operations, and open stores whose files were damaged.

A process of its own does both: it is forked for every save that is killed, and FAISS might end it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from duonlp.errors import DuonlpError, InputError
from tests.attack.crash_points import in_child, kill_before
from tests.attack.harness import HELD, Budget, Outcome, attack

KINDS = ("MemoryStore", "FaissStore")
MUTATIONS = ("flip", "cut", "append", "zero", "remove", "shuffle", "other store's", "empty", "forge")


def build(kind: str, count: int):
    """Return a store of some documents, most of them with embeddings."""
    import duonlp.retrieval
    from duonlp.retrieval import Document

    rng = np.random.default_rng(count)
    store = getattr(duonlp.retrieval, kind)(encoder=f"encoder {count}")
    vectors = [rng.random(4).astype(np.float32) if i % 4 else None for i in range(count)]
    store.write_documents([Document(f"text w{i % 5}", {"n": i}, f"{count}/{i}", v) for i, v in enumerate(vectors)])
    answer(store)
    return store


def answer(store) -> str:
    """Return all documents of a store and the results of some searches, as text."""
    some = {"field": "n", "operator": ">", "value": 3}
    found = store.search_keywords(["w1 w3"]) + store.search_embeddings(np.eye(4), filters=some)
    vectors = [None if d.embedding is None else d.embedding.tolist() for d in store.filter_documents()]
    results = [[(d.id, d.content, d.meta, d.score) for d in result] for result in [*found, store.filter_documents()]]
    return json.dumps([results, vectors, store.encoder])


class Cases:
    """Two versions of each kind of store, and what is done to their files."""

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "store"
        self.stores = {kind: (build(kind, 20), build(kind, 30)) for kind in KINDS}
        self.answers = {kind: tuple(answer(store) for store in pair) for kind, pair in self.stores.items()}

    def open(self, kind: str) -> str:
        """Open the store in the folder and return its answer."""
        import duonlp.retrieval

        return answer(getattr(duonlp.retrieval, kind).open(self.folder))

    def kill(self, kind: str, inside: bool, operation: int) -> tuple[str, str]:
        """Kill a save at an operation; the old store or the new one must open, and the next save must clean up."""
        (old, new), (old_answer, new_answer) = self.stores[kind], self.answers[kind]
        old.save(self.folder)

        def save() -> int:
            if inside:
                os.chdir(self.folder)
            count = kill_before(operation, self.root)
            new.save(self.folder)
            return count()

        status, text = in_child(save)
        if status > 0:
            return "traceback", text
        try:
            found = self.open(kind)
        except DuonlpError as error:
            return "lost", str(error)
        if found not in ((new_answer,) if status == 0 else (old_answer, new_answer)):
            return "wrong", found[:300]
        new.save(self.folder)
        if self.open(kind) != new_answer:
            return "wrong", "after the next save"
        names = {"store.json", "documents.jsonl", "arrays.safetensors", "vocabulary.json", "vectors.faiss"}
        extra = {path.name for path in self.folder.iterdir()} - names | {path.name for path in self.root.iterdir()} - {
            "store"
        }
        return ("left behind", str(extra)) if extra else (HELD, text)

    def race(self, kind: str, inside: bool) -> tuple[str, str]:
        """Open the store while another process saves both versions in turn."""
        (old, new), answers = self.stores[kind], self.answers[kind]
        old.save(self.folder)
        child = os.fork()
        if child == 0:
            try:
                if inside:
                    os.chdir(self.folder)
                for number in range(10):
                    (old if number % 2 else new).save(self.folder)
                os._exit(0)
            finally:
                os._exit(1)
        verdict, detail = HELD, ""
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            try:
                if (found := self.open(kind)) not in answers:
                    verdict, detail = "wrong", found[:300]
            except Exception as error:
                verdict, detail = (
                    "lost" if isinstance(error, DuonlpError) else "traceback",
                    f"{type(error).__name__}: {error}",
                )
        return (verdict, detail) if ended[1] == 0 else ("crash", f"the process that saves ended with status {ended[1]}")

    def damage(self, kind: str, mutation: str, seed: int) -> tuple[str, str]:
        """Damage a file; the store must open as it was or be refused. With "forge", its hashes fit, so that it may differ."""
        (old, new), (old_answer, _) = self.stores[kind], self.answers[kind]
        rng = np.random.default_rng(seed)
        old.save(self.folder)
        if mutation == "other store's":
            new.save(self.root / "other")
        files = sorted(path for path in self.folder.iterdir() if mutation != "forge" or path.suffix not in (".faiss",))
        file = files[rng.integers(len(files))]
        data = bytearray(file.read_bytes())
        at = int(rng.integers(len(data)))
        if mutation in ("flip", "forge"):
            data[at] ^= 1 << int(rng.integers(8))
        elif mutation == "cut":
            data = data[:at]
        elif mutation == "append":
            data += rng.bytes(int(rng.integers(1, 50)))
        elif mutation == "zero":
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        elif mutation == "shuffle":
            data = data[at:] + data[:at]
        elif mutation == "other store's":
            data = bytearray((self.root / "other" / file.name).read_bytes())
        elif mutation == "empty":
            data = bytearray()
        if mutation == "remove":
            file.unlink()
        else:
            file.write_bytes(data)
        if mutation == "forge" and file.name != "store.json":
            self.forge(file)
        try:
            found = self.open(kind)
        except DuonlpError as error:
            named = str(self.folder) in str(error) or (mutation == "forge" and isinstance(error, InputError))
            return (HELD, "") if named else ("traceback", f"{file.name}: the message names no file: {error}")
        except Exception as error:
            return "traceback", f"{file.name}: {type(error).__name__}: {error}"
        return (HELD, "") if found == old_answer or mutation == "forge" else ("wrong", f"{file.name}: {found[:300]}")

    def forge(self, file: Path) -> None:
        """Make the manifest fit a file."""
        from duonlp.retrieval.indexes.files import _hash_contents

        manifest = json.loads((self.folder / "store.json").read_text())
        entry = manifest["contents"]["files"][file.name]
        entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest["sha256"] = _hash_contents(manifest["contents"])
        (self.folder / "store.json").write_text(json.dumps(manifest))


def serve(root: Path) -> None:
    """Answer lines on standard input, each the name and arguments of a method of :class:`Cases`."""
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written, and waiting for disks takes long
    root.mkdir()
    cases = Cases(root)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        shutil.rmtree(root)
        root.mkdir()
        try:
            result = getattr(cases, name)(*arguments)
        except Exception as error:
            result = "traceback", f"{type(error).__name__}: {error}"
        print(json.dumps(result), flush=True)


class Server:
    """The process that runs the cases; started again if it died."""

    def __init__(self, folder: Path):
        self.folder, self.started, self.process = folder, 0, None

    def run(self, name: str, *arguments: object) -> tuple[str, str]:
        """Return the verdict and detail of a case."""
        if self.process is None:
            code = "import pathlib, sys; from tests.attack.indexes import serve; serve(pathlib.Path(sys.argv[1]))"
            command = [sys.executable, "-c", code, str(self.folder / str(self.started))]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.started += 1
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            return tuple(json.loads(line))
        status, self.process = self.process.wait(), None
        return "crash", f"the process that opens stores ended with status {status}"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


@attack("indexes")
def indexes(budget: Budget) -> Iterator[Outcome]:
    """Kill saves at all operations, in random order, and damage files in all ways, in turn."""
    server = Server(budget.folder)
    try:
        points = []
        for kind in KINDS:
            for inside in (False, True):
                verdict, detail = server.run("kill", kind, inside, 10**9)  # not killed
                if verdict != HELD:
                    yield Outcome(f"save of a {kind}", verdict, detail)
                    continue
                points += [(kind, inside, operation) for operation in range(int(detail))]
        order = budget.rng.permutation(len(points))
        for number in budget:
            if number % 10 == 9:
                kind, inside = KINDS[number // 10 % 2], bool(number // 20 % 2)
                verdict, detail = server.run("race", kind, inside)
                case = f"{kind}{' in the current folder' * inside}, opened while it is saved"
            elif number % 2 and points:
                kind, inside, operation = points[order[number // 2 % len(points)]]
                verdict, detail = server.run("kill", kind, inside, operation)
                case = f"{kind}{' in the current folder' * inside}, killed before operation {operation}"
            else:
                kind, mutation = KINDS[number // 2 % 2], MUTATIONS[number // 4 % len(MUTATIONS)]
                seed = int(budget.rng.integers(2**31))
                verdict, detail = server.run("damage", kind, mutation, seed)
                case = f"{kind}, {mutation} with seed {seed}"
            yield Outcome(case, verdict, detail if verdict != HELD else "")
    finally:
        server.close()
