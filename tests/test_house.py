"""The rules of the house, checked over the source: who may import whom, twins that match, docstrings, file lengths."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shared", "tfnlp", "jaxnlp", "tpu_scripts", "benchmarks")
OURS = {"shared", "tfnlp", "jaxnlp", "tpu_scripts", "benchmarks"}
TENSORFLOW = {"tensorflow", "keras", "tensorflow_text"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
TORCH = {"torch"}

FORBIDDEN = {
    "shared": TENSORFLOW | JAX | TORCH | (OURS - {"shared"}),
    "tfnlp": JAX | TORCH | (OURS - {"shared", "tfnlp"}),
    "jaxnlp": TENSORFLOW | TORCH | (OURS - {"shared", "jaxnlp"}),
    "tpu_scripts": TENSORFLOW | TORCH | (OURS - {"shared", "jaxnlp", "tpu_scripts"}),
}
# These may see both frameworks, inside functions alone: the command line, and the comparison it prints.
MAY_IMPORT_LAZILY = ("shared/cli.py", "shared/cli_demo.py", "shared/frameworks.py", "shared/parity.py")

ONE_SIDED = {
    "jaxnlp/pretraining.py": "tfnlp's users train with model.fit",
    "tfnlp/fit.py": "what Keras' compile and fit need to know; jaxnlp has no trainer object to teach",
}
TWINS = ("layers.py", "transformer.py", "heads.py", "auto.py", "pipelines.py")
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
}

# Names that a framework calls, documented there.
PROTOCOL = {"call", "build", "get_config", "from_config", "compute_output_shape", "compute_mask", "train_step"}
MOST_LINES = 450
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
    forbidden = FORBIDDEN[file.split("/")[0]]
    wrong = [
        f"line {line} imports {module}"
        for module, line, lazily in imports(file)
        if module in forbidden and not (lazily and file in MAY_IMPORT_LAZILY)
    ]
    assert not wrong, f"{file}: {'; '.join(wrong)}; see the arrows in the design"


def files_of(package: str) -> set[str]:
    return {file.split("/", 1)[1] for file in sources(package)}


def both_packages() -> bool:
    return all((ROOT / package / "__init__.py").exists() for package in ("tfnlp", "jaxnlp"))


def test_tfnlp_and_jaxnlp_have_the_same_files():
    if not both_packages():
        pytest.skip("one of the two packages is not there yet")
    for here, there in (("tfnlp", "jaxnlp"), ("jaxnlp", "tfnlp")):
        alone = {f"{here}/{name}" for name in files_of(here) - files_of(there)}
        assert alone <= set(ONE_SIDED), (
            f"no twin in {there} for {sorted(alone - set(ONE_SIDED))}: add it, or the reason here"
        )
    stale = [file for file in ONE_SIDED if not (ROOT / file).exists()]
    assert not stale, f"ONE_SIDED names files that are gone: {stale}"


def public_classes(file: str) -> dict[str, ast.ClassDef]:
    return {n.name: n for n in tree(file).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")}


def signature(package: str, cls: ast.ClassDef, method: str) -> list[str] | None:
    """Names of the arguments of a method, in order, without those of the framework's convention; None without it."""
    names = ("__call__", "call") if method == "__call__" else (method,)
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            a = node.args
            given = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            return [name for name in given if name != "self" and name not in CONVENTIONS[package]]
    return None


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_classes_and_arguments(name):
    pair = [ROOT / package / name for package in ("tfnlp", "jaxnlp")]
    if not all(path.exists() for path in pair):
        pytest.skip(f"{name} is not in both packages yet")
    ours, theirs = public_classes(f"tfnlp/{name}"), public_classes(f"jaxnlp/{name}")
    alone = {c for c in set(ours) ^ set(theirs) if f"{name}:{c}" not in TWIN_EXCEPTIONS}
    assert not alone, f"{name}: only one package has {sorted(alone)}"
    for cls in set(ours) & set(theirs):
        for method in ("__init__", "__call__"):
            key = f"{name}:{cls}.{method}"
            a, b = signature("tfnlp", ours[cls], method), signature("jaxnlp", theirs[cls], method)
            if key not in TWIN_EXCEPTIONS:
                assert a is None or b is None or a == b, f"{key}: tfnlp takes {a}, jaxnlp takes {b}"


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


@pytest.mark.parametrize("file", sources(*PACKAGES))
def test_files_are_short(file):
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{file} has {lines} lines; split it so that each file does one thing"


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
        "import shared",
        "from shared.cli import main; main(['--help'])",
        "import shared.parity, shared.tasks, shared.pipeline, shared.checkpoint, shared.generation, shared.cli_demo",
    ],
    ids=["shared", "help", "every part"],
)
def test_importing_shared_is_light(code):
    heavy = modules_after(code) & set(HEAVY)
    assert not heavy, f"{code!r} imports {', '.join(sorted(heavy))}; import it inside the function that needs it"


def test_every_shared_module_stays_clear_of_frameworks():
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in sources("shared")]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert not loaded & (TENSORFLOW | JAX | TORCH | {"tfnlp", "jaxnlp"})
