"""Check source conventions: imports, matching twins, docstrings, annotations, lengths of files and functions."""

import ast
import itertools
import re
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
# Modules that may import both frameworks, but only inside functions.
MAY_IMPORT_LAZILY = (
    "shared/duonlp/cli/demo.py",
    "shared/duonlp/util/frameworks.py",
    "shared/duonlp/doctor/probe.py",
    "shared/duonlp/parity/runners.py",
    "shared/duonlp/checkpoints/conversion/unpickle.py",
)

ONE_SIDED = {
    "jaxnlp/products.py": "custom gradients; TensorFlow's own products are as fast",
    "jaxnlp/training/chips.py": "published specifications of TPU chips",
    "jaxnlp/training/compile_check/__init__.py": "compiles steps ahead of time for a TPU pod",
    "jaxnlp/training/checkpoints.py": "uses Orbax; Keras has BackupAndRestore",
    "jaxnlp/training/compile_check/report.py": "reports on a step compiled for a TPU pod",
    "jaxnlp/training/distributed.py": "Keras leaves this to tf.distribute",
    "jaxnlp/training/export.py": "exports an Orbax checkpoint; a Keras model is trained in place",
    "jaxnlp/training/compile_check/hlo.py": "parses XLA's HLO",
    "jaxnlp/training/compile_check/hlo_cost.py": "parses XLA's HLO",
    "jaxnlp/training/loop.py": "the loop of all training; in Keras this is fit",
    "jaxnlp/training/mesh.py": "Keras leaves this to tf.distribute",
    "jaxnlp/training/model.py": "scan, rematerialization and sharding; Keras trains the model itself",
    "jaxnlp/training/objectives.py": "what the step minimizes; in Keras these are the losses of compile",
    "jaxnlp/training/step.py": "the training step; in Keras this is train_step",
    "jaxnlp/training/compile_check/topology.py": "describes TPU pods",
    "jaxnlp/training/trainer.py": "pretraining on blocks; in Keras this is Pretrainer and fit",
    "tfnlp/steps/saving.py": "the files of Keras' own save; jaxnlp has save_pretrained only",
    "tfnlp/training/backups.py": "backs up Keras variables; jaxnlp uses Orbax",
    "tfnlp/training/callbacks.py": "callbacks of Keras' fit",
    "tfnlp/training/evaluation.py": "callbacks of Keras' fit; jaxnlp's fit calls a function",
    "tfnlp/training/fit_callback.py": "implements fit as a callback; jaxnlp's fit has its own loop",
    "tfnlp/training/pretrainer.py": "the model that compile and fit train",
    "tfnlp/steps/__init__.py": "the step of Keras' compile and fit; jaxnlp's is training/step.py",
    "tfnlp/steps/data_mixin.py": "reads the data of Keras' fit, evaluate and predict",
    "tfnlp/steps/keras_data.py": "the forms of data that Keras' fit takes",
    "tfnlp/steps/step.py": "the step of Keras' compile and fit; jaxnlp's is training/step.py",
    "tfnlp/steps/terms.py": "the loss terms of Keras' losses, and a Keras metric",
    "jaxnlp/pruning/step_masks.py": "masks in the compiled step over stacked parameters; Keras' are variables",
    "tfnlp/pruning/keras_masks.py": "masks as Keras variables, and a callback; jaxnlp's are part of the step's state",
    "tfnlp/export/onnx_files.py": "jaxnlp exports to StableHLO; tfnlp, which has the same weights, to ONNX",
    "tfnlp/generation/export.py": "exports a SavedModel, a TensorFlow format",
    "tfnlp/kernels/onednn.py": "an operation of TensorFlow's graph; XLA's products are jaxnlp's only ones",
    "tfnlp/trainer_mixin.py": "adapts Keras' compile and fit; jaxnlp has no trainer object",
}
"""Modules without a twin in the other engine, and why."""
TWINS = (
    "embeddings.py",
    "encoder_decoder.py",
    "layers.py",
    "transformer.py",
    "model.py",
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
    "rag/model.py",
    "export/export.py",
    "export/graphs.py",
)
OPS = ("shared/duonlp/numpy_ops.py", "jaxnlp/ops.py", "tfnlp/ops.py")
"""The same array operations for NumPy, JAX and TensorFlow."""
# Arguments that exist only in one framework's calling convention.
CONVENTIONS = {
    "tfnlp": {
        "training": "Keras passes it to every layer; NNX takes rngs",
        "name": "Keras names layers",
        "inputs": "the dict that fit passes",
        "dtype": "a Keras dtype policy, which includes param_dtype in layers",
        "param_dtype": "the variable dtype of the policy, in models",
        "seed": "seeds dropout; NNX takes rngs",
    },
    "jaxnlp": {
        "rngs": "NNX modules take random streams, at construction and for dropout",
        "dtype": "see tfnlp's dtype",
        "param_dtype": "part of the dtype policy in Keras",
    },
}
TWIN_EXCEPTIONS = {
    "layers.py:Linear": "jaxnlp supports transposed kernels; tfnlp uses Keras' Dense, which Keras' tools recognize",
    "layers.py:dense": "creates Keras' Dense; jaxnlp has Linear",
    "layers.py:flatten_tokens": "TensorFlow fuses operations on matrices only",
    "layers.py:LayerNorm.__call__": "see layer_norm",
    "layers.py:layer_norm": "has a custom gradient; Keras has its own layer",
    "layers.py:attend": "has a custom gradient, faster than XLA's; tfnlp uses TensorFlow's",
    "layers.py:attention_scores": "see attend",
    "losses.py:SmoothedCrossEntropy": "a loss for compile; jaxnlp's fit has the setting label_smoothing",
    "layers.py:dropout": "a function in NNX; Keras has a layer",
    "layers.py:Dropout": "Keras' layer with fewer random bits; jaxnlp has a function",
    "inference.py:get_compiled": "jit already shares programs between models",
    "inference.py:cached": "see get_compiled",
    "pretrained.py:merged_values": "merges Keras' LoRA weights",
    "inference.py:transposed": "transposes the kernels of jaxnlp's Linear",
    "pretrained.py:ComputeStoragePolicy": "a Keras dtype policy",
    "pretrained.py:dtype_policy": "a Keras dtype policy",
    "model.py:Model.quantize": "overrides Keras' method, which changes the model itself",
    "pretrained.py:find_layer": "Keras names layers in other ways; NNX walks modules",
    "layers.py:add_bias": "TensorFlow adds biases in its fused products",
    "pretrained.py:fill": "Keras creates variables before filling them; NNX creates them from the values",
    "pretrained.py:split": "NNX's functional API",
    "pretrained.py:merge": "NNX's functional API",
    "pretrained.py:update": "NNX's functional API",
    "pretrained.py:functional": "NNX's functional API",
    "pretrained.py:Pretrained.input_signature": "used by Keras' export",
    "pretrained.py:Pretrained.export": "overrides Keras' export to set a signature",
    "generation/search.py:get_program": "a tf.function closes over its model; jit takes the weights as arguments",
    "model.py:Model.__init__": "takes options of keras.Model, such as name",
    "rag/model.py:Rag.__init__": "takes options of keras.Model, such as name",
    "rag/model.py:Rag.fit_step": "the step that fit runs; in Keras the model has it",
    "model.py:Model.train": "overrides NNX's train to raise an error; Keras' calls take training",
}

# Methods that a framework calls and documents.
PROTOCOL = {
    "call", "build", "get_config", "from_config", "compute_output_shape", "compute_mask", "train_step", "update_step",
    "set_model", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end",
}  # fmt: skip
MOST_LINES = 450
MOST_BODY_LINES = 70
MOST_MODULES = 15
REGISTRIES = ("shared/duonlp/architectures", "shared/duonlp/tasks", "shared/duonlp/cli", "benchmarks")
"""Folders that grow by one file per family, task, command or benchmark."""
ASKS_FOR_HEADS = ("shared/duonlp/heads.py", "shared/duonlp/architectures/")
"""Where code may compare a head with a name: the table of heads, and the families' weight tables."""
TOKENIZES = "shared/duonlp/util/tokenization.py"
"""The module that calls tokenizers, whose truncation and padding are not safe from threads."""
OWN_TOKENIZERS = {
    "shared/duonlp/data/blocks/writer.py": "a copy of its own, in one thread",
    "shared/duonlp/tokenizers/report.py": "a private one of util.tokenization, which nothing changes",
}
"""Modules that call a ``tokenizers.Tokenizer``, and why that is safe."""
WRITES_JSON = "shared/duonlp/util/json_text.py"
OWN_JSON = {
    "shared/duonlp/benchmark/memory.py": "a message between processes",
    "shared/duonlp/benchmark/performance.py": "hashed",
    "shared/duonlp/checkpoints/safetensors_file.py": "a header of integers",
    "shared/duonlp/checkpoints/conversion/unpickle.py": "a program that imports nothing of duonlp",
    "shared/duonlp/cli/evaluate_summarization.py": "hashed",
    "shared/duonlp/data/rows/length_batches.py": "hashed",
    "shared/duonlp/data/rows/manifest.py": "hashed",
    "shared/duonlp/distillation/teacher_logits.py": "hashed",
    "shared/duonlp/evaluation/human_eval.py": "verdicts; and hashed",
    "shared/duonlp/metrics/predictions.py": "only texts",
    "shared/duonlp/runs/labelled.py": "hashed",
    "shared/duonlp/runs/pretraining.py": "compared, not written",
    "shared/duonlp/runs/question_answering.py": "hashed",
    "shared/duonlp/runs/preparation.py": "compared, not written",
    "shared/duonlp/training/log/metrics_file.py": "writes NaN as a string, which it reads as a number",
    "shared/duonlp/training/run_file.py": "compared, not written",
    "shared/duonlp/training/settings_file.py": "quotes strings for TOML",
    "shared/duonlp/tuning/search_space.py": "the label of a choice",
    "shared/duonlp/tuning/study.py": "compared, not written",
    "benchmarks/_interleave.py": "a message between processes",
    "jaxnlp/training/distributed.py": "a message between processes",
    "tfnlp/pretrained.py": "inside Keras' own file",
    "tfnlp/training/backups.py": "inside a checkpoint",
}
"""Modules that call ``json.dumps`` themselves, and why."""
HEAVY = ("tensorflow", "keras", "jax", "flax", "optax", "torch", "transformers", "matplotlib", "datasets")


def sources(*packages: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports(file: str) -> list[tuple[str, int, bool]]:
    """Return (top-level module, line, is inside a function) of every import, including `import_module("...")`."""
    modules = []

    def visit(node, is_lazy):
        if isinstance(node, ast.Import):
            modules.extend((alias.name.split(".")[0], node.lineno, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: use an absolute import"
            modules.append((node.module.split(".")[0], node.lineno, is_lazy))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                modules.append((str(node.args[0].value).split(".")[0], node.lineno, is_lazy))
        inside = is_lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree(file), False)
    return modules


@pytest.mark.parametrize("file", sources(*FORBIDDEN))
def test_imports_follow_the_layering(file):
    forbidden = next(names for package, names in FORBIDDEN.items() if file.startswith(package + "/"))
    violations = [
        f"line {line} imports {module}"
        for module, line, lazily in imports(file)
        if module in forbidden and not (lazily and file in MAY_IMPORT_LAZILY)
    ]
    assert not violations, f"{file}: {'; '.join(violations)}; see FORBIDDEN"


def files_of(package: str) -> set[str]:
    return {file.split("/", 1)[1] for file in sources(package)}


def test_tfnlp_and_jaxnlp_have_the_same_files():
    for package, other in (("tfnlp", "jaxnlp"), ("jaxnlp", "tfnlp")):
        unmatched = {f"{package}/{name}" for name in files_of(package) - files_of(other)} - set(ONE_SIDED)
        assert not unmatched, f"{sorted(unmatched)} have no twin in {other}; add it, or a reason to ONE_SIDED"
    stale = [file for file in ONE_SIDED if not (ROOT / file).exists()]
    assert not stale, f"ONE_SIDED names files that do not exist: {stale}"


SPECIAL = {"__init__": "__init__", "__call__": "__call__", "call": "__call__"}  # compared if both engines have it


def public(package: str, file: str) -> dict[str, list[str] | None]:
    """Return the arguments of each function and method of a module, without CONVENTIONS, and None for each class."""
    members = {}

    def visit(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                members[owner + node.name] = None
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name in SPECIAL):
                name = SPECIAL.get(node.name, node.name) if owner else node.name
                if node.name != "call" or owner + name not in members:
                    members[owner + name] = arguments(package, node.args)

    visit(tree(f"{package}/{file}").body, "")
    return members


def arguments(package: str, signature: ast.arguments) -> list[str]:
    """Return the argument names in order, including *args and **kwargs, without CONVENTIONS."""
    names = [a.arg for a in (*signature.posonlyargs, *signature.args)]
    names += [f"*{signature.vararg.arg}"] if signature.vararg else []
    names += [a.arg for a in signature.kwonlyargs] + ([f"**{signature.kwarg.arg}"] if signature.kwarg else [])
    return [name for name in names if name not in ("self", "cls") and name not in CONVENTIONS[package]]


def test_array_operations_have_the_same_names_for_all_arrays():
    names = [
        {node.name for node in tree(file).body if isinstance(node, ast.FunctionDef)}
        | {target.id for node in tree(file).body if isinstance(node, ast.Assign) for target in node.targets}
        for file in OPS
    ]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_names_and_arguments(name):
    tf_members, jax_members = public("tfnlp", name), public("jaxnlp", name)
    unmatched = {
        member for member in set(tf_members) ^ set(jax_members)
        if member.split(".")[-1] not in {*SPECIAL, *PROTOCOL} and f"{name}:{member}" not in TWIN_EXCEPTIONS
        and f"{name}:{member.split('.')[0]}" not in TWIN_EXCEPTIONS
    }  # fmt: skip
    assert not unmatched, f"{name}: only one engine has {sorted(unmatched)}; add it, or a reason to TWIN_EXCEPTIONS"
    for member in set(tf_members) & set(jax_members):
        if f"{name}:{member}" not in TWIN_EXCEPTIONS:
            a, b = tf_members[member], jax_members[member]
            assert a == b, f"{name}:{member}: tfnlp takes {a}, jaxnlp takes {b}"


def names_a_head(node: ast.AST) -> bool:
    """Return whether an expression is a variable or attribute that holds the name of a head."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name == "head" or name.endswith("_head")


@pytest.mark.parametrize("file", [f for f in sources(*PACKAGES) if not f.startswith(ASKS_FOR_HEADS)])
def test_only_the_table_of_heads_asks_for_a_head_by_name(file):
    lines = []
    for node in (n for n in ast.walk(tree(file)) if isinstance(n, ast.Compare) and names_a_head(n.left)):
        constants = [n for other in node.comparators for n in ast.walk(other) if isinstance(n, ast.Constant)]
        lines += [node.lineno] * any(isinstance(constant.value, str) for constant in constants)
    assert not lines, f"{file}: lines {lines} compare a head with a name; describe the difference in duonlp/heads.py"


def calls(file: str) -> list[tuple[str, ast.Call]]:
    """Return (name of the function or method, call) of every call."""
    nodes = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    return [(n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", ""), n) for n in nodes]


@pytest.mark.parametrize("file", [f for f in sources(*PACKAGES) if f != TOKENIZES])
def test_tokenizers_are_called_in_one_module(file):
    # `checkpoint.tokenizer()`, without arguments, loads one.
    lines = [node.lineno for name, node in calls(file) if name == "tokenizer" and (node.args or node.keywords)]
    lines += [
        node.lineno for name, node in calls(file) if name.startswith("encode_batch") and file not in OWN_TOKENIZERS
    ]
    assert not lines, f"{file}: lines {lines} call a tokenizer; use duonlp.util.tokenization.tokenize"


@pytest.mark.parametrize("file", [f for f in sources(*PACKAGES) if f != WRITES_JSON])
def test_json_is_written_by_one_module(file):
    lines = [
        node.lineno for name, node in calls(file)
        if name in ("dump", "dumps") and getattr(getattr(node.func, "value", None), "id", "") == "json"
    ]  # fmt: skip
    if file in OWN_JSON:
        assert lines, f"{file}: OWN_JSON names a module that no longer calls json.dumps"
        return
    assert not lines, f"{file}: lines {lines} call json.dumps; use duonlp.util.json_text.to_json"


def test_twin_exceptions_are_current():
    stale = []
    for key in TWIN_EXCEPTIONS:
        name, member = key.split(":")
        tf_members, jax_members = public("tfnlp", name), public("jaxnlp", name)
        is_gone = member not in {**tf_members, **jax_members}
        if is_gone or (member in tf_members and tf_members[member] == jax_members.get(member, "none")):
            stale.append(key)
    assert not stale, f"TWIN_EXCEPTIONS has entries that no longer exist or no longer differ: {stale}"


@cache
def declared_elsewhere() -> set[str]:
    """Return names that any class documents as a method or declares as an attribute, which others may override."""
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
            # The name of a property that only returns an attribute documents it.
            is_trivial_property = (
                any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list) and len(node.body) == 1
            )
            if not (ast.get_docstring(node) or inherited or is_setter or is_trivial_property):
                missing.append(f"{owner}{node.name} (line {node.lineno})")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{owner}{node.name}.")

    visit(module.body, "")
    return missing


@pytest.mark.parametrize("file", sources(*PACKAGES))
def test_public_names_have_docstrings(file):
    missing = undocumented(file)
    assert not missing, f"{file}: no docstring for {', '.join(missing)}"


def unannotated(file: str) -> list[str]:
    """Return the public functions and methods that lack the annotation of an argument or of the result."""
    missing = []

    def visit(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{owner}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name.startswith("_") and node.name not in ("__init__", "__call__"):
                    continue
                args = node.args
                names = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
                bare = [arg.arg for arg in names if arg and not arg.annotation and arg.arg not in ("self", "cls")]
                bare += ["return"] if node.returns is None and node.name != "__init__" else []
                if bare:
                    missing.append(f"{owner}{node.name} (line {node.lineno}): {', '.join(bare)}")

    visit(tree(file).body, "")
    return missing


@pytest.mark.parametrize("file", sources("shared/duonlp", "tfnlp", "jaxnlp", "tpu_scripts"))
def test_public_functions_are_annotated(file):
    missing = unannotated(file)
    assert not missing, f"{file}: annotate {'; '.join(missing)}"


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_docstrings_come_first():
    """A string that follows a statement is not the function's docstring; one after an assignment documents a name."""
    late = [
        f"{file}:{statement.lineno}"
        for file in sources(*PACKAGES)
        for node in ast.walk(tree(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for previous, statement in itertools.pairwise(node.body)
        if is_string(statement) and not isinstance(previous, (ast.Assign, ast.AnnAssign))
    ]
    assert not late, f"move these docstrings to the start of their functions: {late}"


@pytest.mark.parametrize("file", sources(*PACKAGES))
def test_files_are_short(file):
    lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{file} has {lines} lines, more than {MOST_LINES}; split it by topic"


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
    assert set(crowded) <= set(REGISTRIES), f"folders with more than {MOST_MODULES} modules: {crowded}"


@cache
def import_graph() -> dict[str, set[str]]:
    """Return the modules of this repository that each module imports, except under TYPE_CHECKING."""
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
    """Return the nodes of one cycle in order, or None."""
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
    """Check folders, too: `__init__` imports its modules, so a cycle of folders is a cycle of modules."""
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
    assert not users, f"library modules import the command line: {sorted(users)}"


def test_cycle_in():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after running `code`."""
    report = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", f"import atexit\n@atexit.register\ndef _():\n    {report}\n{code}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return set(result.stderr.splitlines()[-1].split())


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
def test_importing_duonlp_loads_no_heavy_modules(code):
    heavy = modules_after(code) & set(HEAVY)
    assert not heavy, f"{code!r} imports {', '.join(sorted(heavy))}; import it inside the function that needs it"


def test_the_command_line_starts_without_numpy():
    assert "numpy" not in modules_after("from duonlp.cli import main; main(['--help'])")


def test_neutral_modules_import_no_framework():
    names = [
        file.removeprefix("shared/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in sources("shared/duonlp")
        # Haystack itself imports torch where it is installed; see tests/duonlp/haystack/test_package.py.
        if not file.endswith("/__main__.py") and not file.startswith("shared/duonlp/haystack/")
    ]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert not loaded & (TENSORFLOW | JAX | TORCH | {"tfnlp", "jaxnlp"})


PARSERS = re.compile(r"\bjson\.loads?\((?!json\.dumps)|\btomllib\.")
PARSES_JSON = {
    "shared/duonlp/util/reading.py": "the parser itself",
    "shared/duonlp/generation/stop_strings.py": "a tokenizer's own description",
    "shared/duonlp/tokenizers/report.py": "a tokenizer's own description",
    "shared/duonlp/data/objectives/vocabulary.py": "a tokenizer's own description",
    "shared/duonlp/data/rows/manifest.py": "a tokenizer's own description",
    "shared/duonlp/benchmark/memory.py": "from a child process of ours",
    "shared/duonlp/evaluation/sandbox.py": "from the sandbox, which has its own checks",
    "shared/duonlp/evaluation/sandbox_child.py": "from the parent process",
    "jaxnlp/training/distributed.py": "from another process of the run",
}
"""Files that parse JSON which no user wrote, and where it is from."""


@pytest.mark.parametrize("file", sources("shared/duonlp", "tfnlp", "jaxnlp", "tpu_scripts"))
def test_files_are_parsed_and_printed_in_one_place(file):
    """A user's JSON or TOML is read by ``duonlp.util.reading``, and their texts are printed by ``plain_console``."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if file not in PARSES_JSON:
        assert not PARSERS.search(text), f"{file} parses a file by itself; use duonlp.util.reading"
    if file != "shared/duonlp/util/console.py":
        assert not re.search(r"\bConsole\(", text), (
            f"{file} makes a rich Console; use duonlp.util.console.plain_console"
        )
        assert "rich.markup" not in text, f"{file} uses markup; use rich.text.Text"
