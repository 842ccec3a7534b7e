"""The rules of the house, checked over the source: who may import whom, twins that match, docstrings, file lengths."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shared/duonlp", "tfnlp", "jaxnlp", "tpu_scripts", "benchmarks")
OURS = {"duonlp", "tfnlp", "jaxnlp", "tpu_scripts", "benchmarks"}
TENSORFLOW = {"tensorflow", "keras", "tensorflow_text"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
TORCH = {"torch"}

FORBIDDEN = {
    "shared/duonlp": TENSORFLOW | JAX | TORCH | (OURS - {"duonlp"}),
    "tfnlp": JAX | TORCH | (OURS - {"duonlp", "tfnlp"}),
    "jaxnlp": TENSORFLOW | TORCH | (OURS - {"duonlp", "jaxnlp"}),
    "tpu_scripts": TENSORFLOW | TORCH | (OURS - {"duonlp", "jaxnlp", "tpu_scripts"}),
}
# These may see both frameworks, inside functions alone: the command line, and the comparison it prints.
MAY_IMPORT_LAZILY = (
    "shared/duonlp/cli/app.py",
    "shared/duonlp/cli/demo.py",
    "shared/duonlp/util/frameworks.py",
    "shared/duonlp/parity.py",
)

ONE_SIDED = {
    "jaxnlp/training/chips.py": "published figures of TPU chips",
    "jaxnlp/training/compile_check/__init__.py": "steps compiled ahead of time for a TPU pod",
    "jaxnlp/training/checkpoints.py": "Orbax; Keras has BackupAndRestore",
    "jaxnlp/training/compile_check/report.py": "of a step compiled for a TPU pod",
    "jaxnlp/training/distributed.py": "Keras leaves it to tf.distribute",
    "jaxnlp/training/export.py": "from an Orbax checkpoint; a Keras model is trained in place",
    "jaxnlp/training/fit_step.py": "the step of fit; in Keras it is Model.train_step",
    "jaxnlp/training/compile_check/hlo.py": "the compiler's own language",
    "jaxnlp/training/compile_check/hlo_cost.py": "the compiler's own language",
    "jaxnlp/training/mesh.py": "Keras leaves it to tf.distribute",
    "jaxnlp/training/model.py": "scan, rematerialisation and sharding; Keras trains the model as it is",
    "jaxnlp/training/step.py": "the step; in Keras it is Pretrainer.train_step",
    "jaxnlp/training/compile_check/topology.py": "of TPU pods",
    "jaxnlp/training/trainer.py": "the loop; in Keras it is fit",
    "tfnlp/training/backups.py": "of Keras' variables; jaxnlp has Orbax",
    "tfnlp/training/callbacks.py": "of Keras' fit",
    "tfnlp/training/evaluation.py": "callbacks of Keras' fit; in jaxnlp fit calls a function",
    "tfnlp/training/fit_callback.py": "the callback that fit is; jaxnlp's loop stands in fit itself",
    "tfnlp/training/pretrainer.py": "what compile and fit train",
    "tfnlp/generation/export.py": "a SavedModel is TensorFlow's own",
    "tfnlp/trainer_mixin.py": "what Keras' compile and fit need to know; jaxnlp has no trainer object to teach",
}
TWINS = (
    "embeddings.py",
    "encoder_decoder.py",
    "layers.py",
    "transformer.py",
    "heads.py",
    "auto.py",
    "pipelines.py",
    "pretrained.py",
    "losses.py",
    "inference.py",
    "prediction.py",
    "distillation/students.py",
    "distillation/losses.py",
    "generation/decoder.py",
    "generation/processors.py",
    "generation/scoring.py",
    "generation/search.py",
)
OPS = ("shared/duonlp/numpy_ops.py", "jaxnlp/ops.py", "tfnlp/ops.py")
"""The same functions for three kinds of arrays, each written or just named."""
# Arguments that only one framework's calling convention has.
CONVENTIONS = {
    "tfnlp": {
        "training": "Keras hands it to every layer, where NNX is handed rngs",
        "name": "Keras' own",
        "inputs": "the dict that fit feeds",
        "dtype": "a Keras dtype policy, which covers param_dtype in layers",
        "param_dtype": "the other half of the policy, in models",
        "seed": "of dropout, where NNX is handed rngs",
    },
    "jaxnlp": {
        "rngs": "NNX modules are handed their random numbers, at construction and for dropout",
        "dtype": "as dtype in Keras",
        "param_dtype": "part of a dtype policy in Keras",
    },
}
TWIN_EXCEPTIONS = {
    "layers.py:Linear": "jaxnlp computes with transposed kernels; Keras' Dense is kept, for Keras' own tools to find",
    "layers.py:matmul_transposed": "as Linear",
    "layers.py:dense": "makes Keras' Dense, where jaxnlp has Linear",
    "layers.py:flatten_tokens": "TensorFlow fuses the operations of matrices alone",
    "layers.py:LayerNorm.__call__": "as layer_norm",
    "layers.py:layer_norm": "with the gradient of the paper; Keras has its own layer",
    "layers.py:attend": "with a gradient of its own, faster than XLA's; TensorFlow's serves",
    "layers.py:attention_scores": "as attend",
    "losses.py:SmoothedCrossEntropy": "a loss for compile; jaxnlp's fit has label_smoothing among its settings",
    "layers.py:dropout": "a function in NNX, where Keras has a layer",
    "layers.py:Dropout": "Keras' layer with fewer random bits; NNX has a function",
    "inference.py:get_compiled": "jit shares programs between models by itself",
    "pretrained.py:merged_values": "with what LoRA adds, Keras' own",
    "inference.py:transposed": "of the kernels of jaxnlp's Linear",
    "pretrained.py:ComputeStoragePolicy": "a Keras dtype policy",
    "pretrained.py:dtype_policy": "a Keras dtype policy",
    "pretrained.py:fill": "Keras' variables are there first and filled; NNX's are made from the values",
    "pretrained.py:split": "NNX's functional side",
    "pretrained.py:merge": "NNX's functional side",
    "pretrained.py:update": "NNX's functional side",
    "pretrained.py:functional": "NNX's functional side",
    "pretrained.py:Pretrained.input_signature": "of Keras' export",
    "pretrained.py:Pretrained.export": "Keras' own, with a signature",
    "generation/search.py:get_program": "a tf.function closes over its model; jit's programs are handed the weights",
    "heads.py:Model.__init__": "Keras' own options of a model, such as its name",
    "heads.py:Model.train": "NNX's own, refused; Keras' calls take training",
    "heads.py:ModelForPreTraining.targets": "for fit",
}

# Names that a framework calls, documented there.
PROTOCOL = {
    "call", "build", "get_config", "from_config", "compute_output_shape", "compute_mask", "train_step", "update_step",
    "set_model", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end",
}  # fmt: skip
MOST_LINES = 450
MOST_BODY_LINES = 70
MOST_MODULES = 15
REGISTRIES = ("shared/duonlp/architectures", "shared/duonlp/tasks", "shared/duonlp/cli", "benchmarks")
"""Folders that grow by one file per family, task, command or measurement."""
HEAVY = ("tensorflow", "keras", "jax", "flax", "optax", "torch", "transformers", "matplotlib", "datasets")


def sources(*packages: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports(file: str) -> list[tuple[str, int, bool]]:
    """(top-level module, line, inside a function) of every import, `import_module("...")` too."""
    found = []

    def visit(node, lazily):
        if isinstance(node, ast.Import):
            found.extend((alias.name.split(".")[0], node.lineno, lazily) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            found.append((node.module.split(".")[0], node.lineno, lazily))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found.append((str(node.args[0].value).split(".")[0], node.lineno, lazily))
        inside = lazily or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree(file), False)
    return found


@pytest.mark.parametrize("file", sources(*FORBIDDEN))
def test_arrows_run_one_way(file):
    forbidden = next(names for package, names in FORBIDDEN.items() if file.startswith(package + "/"))
    wrong = [
        f"line {line} imports {module}"
        for module, line, lazily in imports(file)
        if module in forbidden and not (lazily and file in MAY_IMPORT_LAZILY)
    ]
    assert not wrong, f"{file}: {'; '.join(wrong)}; see the arrows in the design"


def files_of(package: str) -> set[str]:
    return {file.split("/", 1)[1] for file in sources(package)}


def test_tfnlp_and_jaxnlp_have_the_same_files():
    for here, there in (("tfnlp", "jaxnlp"), ("jaxnlp", "tfnlp")):
        alone = {f"{here}/{name}" for name in files_of(here) - files_of(there)}
        assert alone <= set(ONE_SIDED), (
            f"no twin in {there} for {sorted(alone - set(ONE_SIDED))}: add it, or the reason here"
        )
    stale = [file for file in ONE_SIDED if not (ROOT / file).exists()]
    assert not stale, f"ONE_SIDED names files that are gone: {stale}"


SPECIAL = {"__init__": "__init__", "__call__": "__call__", "call": "__call__"}  # what is compared where both have it


def public(package: str, file: str) -> dict[str, list[str] | None]:
    """Classes, functions and methods of a module -> their arguments in order (None: a class), conventions left out."""
    found = {}

    def visit(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[owner + node.name] = None
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name in SPECIAL):
                name = SPECIAL.get(node.name, node.name) if owner else node.name
                if node.name != "call" or owner + name not in found:
                    found[owner + name] = arguments(package, node.args)

    visit(tree(f"{package}/{file}").body, "")
    return found


def arguments(package: str, given: ast.arguments) -> list[str]:
    """Names in order, * and ** among them, without those of the framework's convention."""
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [a.arg for a in given.kwonlyargs] + ([f"**{given.kwarg.arg}"] if given.kwarg else [])
    return [name for name in names if name not in ("self", "cls") and name not in CONVENTIONS[package]]


def test_the_array_operations_are_the_same_three_times():
    names = [
        {node.name for node in tree(file).body if isinstance(node, ast.FunctionDef)}
        | {target.id for node in tree(file).body if isinstance(node, ast.Assign) for target in node.targets}
        for file in OPS
    ]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_names_and_arguments(name):
    ours, theirs = public("tfnlp", name), public("jaxnlp", name)
    alone = {
        each for each in set(ours) ^ set(theirs)
        if each.split(".")[-1] not in {*SPECIAL, *PROTOCOL} and f"{name}:{each}" not in TWIN_EXCEPTIONS
        and f"{name}:{each.split('.')[0]}" not in TWIN_EXCEPTIONS
    }  # fmt: skip
    assert not alone, f"{name}: only one package has {sorted(alone)}; add it to the other, or the reason here"
    for each in set(ours) & set(theirs):
        if f"{name}:{each}" not in TWIN_EXCEPTIONS:
            a, b = ours[each], theirs[each]
            assert a == b, f"{name}:{each}: tfnlp takes {a}, jaxnlp takes {b}"


def test_every_exception_is_still_one():
    stale = []
    for key in TWIN_EXCEPTIONS:
        name, each = key.split(":")
        ours, theirs = public("tfnlp", name), public("jaxnlp", name)
        if each not in {**ours, **theirs} or (each in ours and ours.get(each) == theirs.get(each, "none")):
            stale.append(key)
    assert not stale, f"TWIN_EXCEPTIONS names what is gone, or alike by now: {stale}"


@cache
def declared_elsewhere() -> set[str]:
    """Names that some class documents as a method, or declares as an attribute: here, they override that."""
    names = set()
    for cls in (n for file in sources(*PACKAGES) for n in ast.walk(tree(file)) if isinstance(n, ast.ClassDef)):
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def undocumented(file: str) -> list[str]:
    module = tree(file)
    missing = [] if ast.get_docstring(module) or not module.body else ["the module"]

    def visit(body, owner):
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            inherited = owner and node.name in declared_elsewhere() | PROTOCOL
            is_setter = any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)
            # A property that only hands on an attribute says all there is to say in its name.
            plain = (
                any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list) and len(node.body) == 1
            )
            if not (ast.get_docstring(node) or inherited or is_setter or plain):
                missing.append(f"{owner}{node.name} (line {node.lineno})")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{owner}{node.name}.")

    visit(module.body, "")
    return missing


@pytest.mark.parametrize("file", sources(*PACKAGES))
def test_what_is_public_has_a_docstring(file):
    missing = undocumented(file)
    assert not missing, f"{file}: no docstring for {', '.join(missing)}"


def unannotated(file: str) -> list[str]:
    """Public functions and methods with an argument or a result that has no annotation."""
    missing = []

    def visit(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name.startswith("_") and node.name not in ("__init__", "__call__"):
                    continue
                given = node.args
                names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                bare = [arg.arg for arg in names if arg and not arg.annotation and arg.arg not in ("self", "cls")]
                bare += ["return"] if node.returns is None and node.name != "__init__" else []
                if bare:
                    missing.append(f"{owner}{node.name} (line {node.lineno}): {', '.join(bare)}")

    visit(tree(file).body, "")
    return missing


@pytest.mark.parametrize("file", sources("shared/duonlp", "tfnlp", "jaxnlp", "tpu_scripts"))
def test_what_is_public_is_annotated(file):
    missing = unannotated(file)
    assert not missing, f"{file}: annotate {'; '.join(missing)}"


@pytest.mark.parametrize("file", sources(*PACKAGES))
def test_files_are_short(file):
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{file} has {lines} lines; split it so that each file does one thing"


def test_functions_are_short():
    long = []
    for file in sources(*PACKAGES):
        for node in ast.walk(tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                if lines > MOST_BODY_LINES:
                    long.append(f"{file}:{node.lineno} {node.name} ({lines} lines)")
    assert not long, "\n".join(["split these functions:", *long])


def test_folders_are_small():
    folders: dict[str, list[str]] = {}
    for file in sources("shared/duonlp", "tfnlp", "jaxnlp", "tpu_scripts", "benchmarks"):
        folder, _, name = file.rpartition("/")
        if not name.startswith("__"):
            folders.setdefault(folder, []).append(name)
    crowded = {folder: len(names) for folder, names in folders.items() if len(names) > MOST_MODULES}
    assert set(crowded) <= set(REGISTRIES), f"too many modules for one folder: {crowded}"


@cache
def import_graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports anywhere, except for type checking."""
    names = {
        file.removeprefix("shared/").removesuffix(".py").removesuffix("/__init__").replace("/", "."): file
        for file in sources(*PACKAGES)
    }
    graph: dict[str, set[str]] = {name: set() for name in names}

    def visit(node, name):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            targets = {f"{node.module}.{alias.name}" for alias in node.names}
            graph[name] |= {target if target in names else node.module for target in targets} & set(names)
        elif isinstance(node, ast.Import):
            graph[name] |= {alias.name for alias in node.names} & set(names)
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    for name, file in names.items():
        visit(tree(file), name)
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """The nodes of one cycle in order, or None."""
    done: set[str] = set()

    def search(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph[node]):
            if (cycle := search(target, [*path, node])) is not None:
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(graph) if (cycle := search(node, []))), None)


def test_there_are_no_import_cycles():
    graph = import_graph()
    assert (cycle := cycle_in(graph)) is None, f"modules import each other: {' -> '.join(cycle)}"


def test_folders_of_duonlp_do_not_import_each_other():
    """A folder's `__init__` imports its modules, so a cycle of folders would be one of modules."""
    folders: dict[str, set[str]] = {}
    for name, targets in import_graph().items():
        if name.startswith("duonlp."):
            folder = name.split(".")[1]
            folders.setdefault(folder, set()).update(
                target.split(".")[1] for target in targets if target.startswith("duonlp.")
            )
            folders[folder].discard(folder)
    assert (cycle := cycle_in(folders)) is None, f"folders import each other: {' -> '.join(cycle)}"


def test_only_the_command_line_imports_the_command_line():
    users = {
        name
        for name, targets in import_graph().items()
        if not name.startswith(("duonlp.cli", "duonlp.__main__"))
        and any(target == "duonlp.cli" or target.startswith("duonlp.cli.") for target in targets)
    }
    assert not users, f"a library module imports the command line: {sorted(users)}"


def test_a_cycle_is_found():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    report = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\n@atexit.register\ndef _():\n    {report}\n{code}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import duonlp",
        "from duonlp.cli import main; main(['--help'])",
        "import duonlp.parity, duonlp.tasks, duonlp.pipelines.pipeline, duonlp.checkpoints.checkpoint, duonlp.cli.demo\n"
        "import duonlp.runs.finetuning, duonlp.runs.distillation, duonlp.tuning.runs, duonlp.benchmark.performance",
    ],
    ids=["duonlp", "help", "every part"],
)
def test_importing_duonlp_is_light(code):
    heavy = modules_after(code) & set(HEAVY)
    assert not heavy, f"{code!r} imports {', '.join(sorted(heavy))}; import it inside the function that needs it"


def test_every_neutral_module_stays_clear_of_frameworks():
    names = [
        file.removeprefix("shared/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in sources("shared/duonlp")
        if not file.endswith("/__main__.py")
    ]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert not loaded & (TENSORFLOW | JAX | TORCH | {"tfnlp", "jaxnlp"})
