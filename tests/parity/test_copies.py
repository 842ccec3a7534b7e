"""Tensors that are taken to equal others and differ: loaded, saved and decoded with as Transformers does."""

import json
import warnings
from importlib import import_module

import numpy as np
import pytest

from duonlp import architectures
from duonlp.checkpoints.weight_files import WEIGHTS
from duonlp.errors import CheckpointWarning
from tests.copies import OWN, Own
from tests.engines import difference, run, torch_model

pytestmark = pytest.mark.parity


def logits(framework, folder, own):
    outputs, gradients = run(framework, folder, own.case.head, own.case.inputs(), gradients=own.gradients)
    return {k: v for k, v in outputs.items() if k in ("logits", "loss", "last_hidden_state")}, gradients


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("own", OWN, ids=lambda own: own.name)
def test_outputs_gradients_and_the_saved_checkpoint(own: Own, framework, tmp_path):
    folder, saved = own.write(tmp_path / "model"), tmp_path / "saved"
    theirs, their_gradients = logits("torch", folder, own)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        ours, gradients = logits(framework, folder, own)
    about = [str(w.message) for w in record if issubclass(w.category, CheckpointWarning)]
    assert len(about) == own.warns
    assert not about or sum(name in "".join(about) for name in own.added) >= len(own.added) - 1, about
    for name, values in theirs.items():
        assert difference(ours[name], values) < 1e-5, name
    largest = max((np.abs(values).max() for values in their_gradients.values()), default=1.0)
    for path, values in their_gradients.items():
        if not path.endswith("position_table"):  # Transformers 5 forgets on loading that it is not trained
            assert np.abs(gradients[path] - values).max() / largest < 1e-4, path
        else:
            assert not gradients[path].any()
    heads = import_module(f"{framework}nlp.heads").HEADS
    heads[own.case.head].from_pretrained(folder).save_pretrained(saved)
    torch_model(saved, own.case.head)  # nothing is missing or unexpected
    for loader in ("torch", framework):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            again, _ = run(loader, saved, own.case.head, own.case.inputs(), gradients=False)
        assert not [w for w in record if issubclass(w.category, CheckpointWarning)]
        for name, values in theirs.items():
            if name != "loss":
                assert difference(again[name], values) < 1e-5, (loader, name)
    config = json.loads((saved / "config.json").read_text())
    assert config["tie_word_embeddings"] is own.stays_tied
    assert (saved / WEIGHTS).exists() and architectures.config_from_hf(config)


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("case", ["pegasus-seq2seq-lm", "marian-seq2seq-lm", "bart-seq2seq-lm", "gpt2-causal-lm"])
def test_decoding_with_a_cache(case, framework, tmp_path):
    """Ids are those of Transformers with its own tables, whose rows a cache reads one at a time."""
    own = next(
        own for own in OWN[::-1] if own.case.name == case and (own.added.keys() == {"lm_head.weight"} or not own.warns)
    )
    folder = own.write(tmp_path / "model")
    ids = np.random.default_rng(0).integers(5, 55, (2, 7))
    options = {"max_new_tokens": 8, "num_beams": 2, "do_sample": False}
    theirs = torch_model(folder, own.case.head).eval().generate(pytest.importorskip("torch").tensor(ids), **options)
    heads = import_module(f"{framework}nlp.heads").HEADS
    ours = heads[own.case.head].from_pretrained(folder).generate(ids, **options)
    assert np.array_equal(np.asarray(ours), theirs.numpy())
