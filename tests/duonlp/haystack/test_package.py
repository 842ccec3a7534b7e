"""The package's import: telemetry, missing extras, no torch; and Haystack's conventions for components."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

needs_haystack = pytest.mark.skipif(find_spec("haystack") is None, reason="the extra qa is not installed")


def run(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "HAYSTACK_TELEMETRY_ENABLED"}
    result = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@needs_haystack
def test_telemetry_is_off_unless_the_user_wants_it(tmp_path):
    code = "import duonlp.haystack, haystack.telemetry._telemetry as t; print(t.telemetry)"
    assert run(code) == "None"
    assert run(f"import haystack; {code}", HOME=str(tmp_path)) == "None"  # where haystack keeps a file about its user
    # Do not let it start: it would write a file to the home directory.
    code = "import os, duonlp.retrieval.haystack_store as s; s.importlib.import_module = str; s.import_haystack(); "
    assert run(code + "print(os.environ['HAYSTACK_TELEMETRY_ENABLED'])", HAYSTACK_TELEMETRY_ENABLED="true") == "true"


def test_a_missing_haystack_is_named_with_its_extra():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "haystack" else find(name, *rest)
from duonlp.errors import MissingExtraError
try:
    import duonlp.haystack
except MissingExtraError as error:
    print(error)
"""
    assert run(code) == 'this needs Haystack, which is not installed; pip install "duonlp[qa]"'


@needs_haystack
def test_neither_torch_nor_a_framework_is_needed_to_build_a_pipeline():
    code = """
import sys
sys.modules["torch"] = None
from haystack import Pipeline
import duonlp.haystack as d
pipeline = Pipeline()
pipeline.add_component("embedder", d.TextEmbedder("no/model", framework="jax"))
pipeline.add_component("reader", d.ExtractiveReader("no/model", framework="tf"))
Pipeline.loads(pipeline.dumps(), allowed_modules=["duonlp.haystack"])
print([name for name in ("tensorflow", "jax", "flax", "keras") if name in sys.modules])
"""
    assert run(code) == "[]"


@needs_haystack
def test_yaml_loads_only_if_the_components_are_allowed():
    from haystack import Pipeline
    from haystack.core.errors import DeserializationError

    from duonlp.haystack import TextEmbedder

    pipeline = Pipeline()
    pipeline.add_component("embedder", TextEmbedder("no/model"))
    with pytest.raises(DeserializationError, match="duonlp"):
        Pipeline.loads(pipeline.dumps())


@needs_haystack
def test_classes_are_components_with_the_sockets_of_haystacks_own():
    from haystack.core.component import Component
    from haystack.core.component.component import component

    import duonlp.haystack as package

    sockets = {
        "TextEmbedder": ({"text"}, {"embedding"}),
        "DocumentEmbedder": ({"documents"}, {"documents"}),
        "ExtractiveReader": ({"query", "documents"}, {"answers"}),
    }
    for name, (mandatory, outputs) in sockets.items():
        built = getattr(package, name)("no/model")
        assert isinstance(built, Component) and f"{type(built).__module__}.{name}" in component.registry
        inputs = built.__haystack_input__._sockets_dict
        assert {key for key, socket in inputs.items() if socket.is_mandatory} == mandatory
        assert set(built.__haystack_output__._sockets_dict) == outputs
        assert type(built).from_dict(built.to_dict()).to_dict() == built.to_dict()
        assert callable(built.warm_up) and not built._pipeline  # models are loaded on first use
