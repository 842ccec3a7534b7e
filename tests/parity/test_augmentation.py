"""Compare augmenters in both engines with each other, and back-translation with Transformers' ``generate``."""

import importlib
from importlib.util import find_spec

import pytest

from duonlp.augmentation import BackTranslation, MaskedSubstitution, Protection
from tests import augmentation
from tests.cases import ENCODER, SIZES, Case
from tests.reference import record_pipelines as reference

PACKAGES = ("tfnlp", "jaxnlp")
TEXTS = ["Paris is lovely. The model fails again", "memory grows"]
BEAMS = 3

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("tensorflow", "flax"))), reason="one of the frameworks is not installed"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write two small random Marian models with a tokenizer."""
    tokenizer = reference.load_tokenizer("unigram")
    sizes = SIZES["marian"] | {
        "vocab_size": len(tokenizer),
        "decoder_vocab_size": len(tokenizer),
        "forced_eos_token_id": None,
    }
    sizes |= {
        "model_type": "marian",
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "max_position_embeddings": 64,
    }
    paths = []
    for name in ("there", "back"):
        path = Case(f"back-translation-{name}", sizes, "seq2seq-lm").write(tmp_path_factory.mktemp(name) / "marian")
        tokenizer.save_pretrained(path)
        paths.append(path)
    return paths


@pytest.mark.parity
def test_copies_are_those_of_transformers(folders):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    tokenizer = reference.load_tokenizer("unigram")
    models = [transformers.MarianMTModel.from_pretrained(folder).eval() for folder in folders]

    def translate(model, text: str, count: int) -> list[str]:
        with torch.no_grad():
            ids = model.generate(
                **tokenizer(text, return_tensors="pt"), num_beams=BEAMS, num_return_sequences=count, max_new_tokens=8
            )
        return [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]

    def copies(sentence: str) -> list[str]:
        there = translate(models[0], sentence, 2)
        return [(translate(models[1], text, 1)[0] if text.strip() else "").strip() or sentence for text in there]

    expected = []
    for text in TEXTS:
        parts = [copies(sentence) for sentence in text.replace(". ", ".|").split("|")]
        expected.append([" ".join(part[number] for part in parts) for number in range(2)])
    made = {}
    for name in PACKAGES:
        pipes = [importlib.import_module(name).pipeline("translation", folder, batch_size=8) for folder in folders]
        options = {"max_new_tokens": 8}
        augmenter = BackTranslation(
            *pipes,
            beams=BEAMS,
            forward_options=options,
            backward_options=options,
            protect=Protection(identifiers=False),
        )
        made[name] = augmenter.augment(TEXTS, 2)
    assert made["jaxnlp"] == expected
    assert made["tfnlp"] == expected
    assert expected != [[text] * 2 for text in TEXTS]


def test_engines_substitute_the_same_words(tmp_path):
    tokenizer = augmentation.tokenizer("wordpiece")
    sizes = ENCODER | {"model_type": "bert", "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    folder = Case("substitution", sizes, "masked-lm").write(tmp_path / "bert")
    tokenizer.save_pretrained(folder)
    copies = []
    for name in PACKAGES:
        pipe = importlib.import_module(name).pipeline("fill-mask", folder, batch_size=8)
        masked = MaskedSubstitution(pipe, share=0.3, max_length=64)
        copies.append(masked.augment(augmentation.TEXTS, 2, seed=1))
        assert len(masked.settings()["model"]) == 64
    assert copies[0] == copies[1] and copies[0][0][0] != augmentation.TEXTS[0]
