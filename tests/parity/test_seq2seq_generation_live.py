"""Ids that encoder-decoders of every family generate, live against Transformers' ``generate`` with the same keywords.

As test_generation_live.py, whose groups show more options: here it is the families, their starts, lengths and sources.
"""

import functools
import itertools
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.cases import Case, cases
from tests.generation import sources
from tests.parity.test_generation_live import equal_records, lengths_of, several

pytestmark = pytest.mark.parity

LENGTHS = ((12, 9, 10), (11, 12, 12))
"""Of the sources, in one bucket. Those of EVEN have no padding, which Transformers' processors take for a part of the source."""
EVEN = ((12, 12, 12), (11, 11, 11))


@dataclass(frozen=True)
class Group:
    """Cases of one compiled program: those options in common, and one case for each of ``cases``."""

    options: dict
    cases: tuple | list = ({},)
    lengths: tuple = LENGTHS
    families: tuple = ("t5", "bart", "mbart", "m2m_100", "marian", "pegasus")
    records: bool = False


TWO = ("t5", "bart")
GROUPS = {
    "greedy": Group({}, several(eos_token_id=("one", "three"), max_new_tokens=(5, 12)), records=True),
    "beams": Group(
        {"num_beams": 3, "num_return_sequences": 2},
        several(early_stopping=(True, False, "never"), length_penalty=(-1.0, 0.0, 0.6, 2.0)),
    ),
    "language": Group(
        {"num_beams": 2, "forced_bos_token_id": 21, "forced_eos_token_id": 7},
        several(length_penalty=(0.5, 1.5), max_length=(6, 12)),
        families=("mbart", "m2m_100"),
    ),
    "source": Group(
        {"encoder_no_repeat_ngram_size": 2},
        several(encoder_repetition_penalty=(0.6, 1.5), eos_token_id=("one", "three")),
        lengths=EVEN,
        families=TWO,
    ),
    "summary": Group(
        {"num_beams": 4, "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3, "min_length": 6},
        several(length_penalty=(0.8, 2.0), early_stopping=(True, False), max_length=(10, 12)),
        lengths=EVEN,
        families=TWO,
    ),
    "begun": Group({"begun": True}, several(eos_token_id=("one", "three")), families=TWO),
}  # fmt: skip


@functools.cache
def folder_of(family: str) -> Path:
    """A checkpoint whose output is not its table of words: a tied model that was never trained repeats what it is given."""
    import torch

    from tests.engines import torch_model

    torch.set_num_threads(1)  # models this small: more threads wait for each other a hundred times as long
    plain = next(case for case in cases() if case.name == f"{family}-seq2seq-lm")
    folder = Path(tempfile.mkdtemp(prefix="duonlp-generation-"))
    hf = plain.hf | {"tie_word_embeddings": False, "forced_eos_token_id": None}
    hf |= {} if hf.get("decoder_start_token_id") is not None else {"decoder_start_token_id": 2}
    model = torch_model(Case(f"live-{family}", hf, "seq2seq-lm").write(folder / "plain"), "seq2seq-lm")
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.pad_token_id] = 0  # padding is not said
        model.get_input_embeddings().weight.mul_(
            4
        )  # beside sines and cosines, which are larger than words that are not trained
    model.save_pretrained(folder / "model")
    return folder / "model"


@functools.cache
def ends(family: str) -> list[int]:
    """Tokens that the model says when nothing ends a text, and such that with them as ends texts have different lengths."""
    ids, mask, pad = *sources(0, LENGTHS[0]), reference(family).config.pad_token_id
    texts = generated(
        family, np.where(mask, ids + 4, pad), mask, {"max_new_tokens": 12, "eos_token_id": -1, "pad_token_id": pad}
    )
    texts = texts.sequences.numpy()
    said = [int(token) for token in np.unique(texts[:, 2:]) if token != pad]
    return sorted(said, key=lambda token: -len(set(lengths_of(texts, 1, [token]))))[:3]


def generated(family: str, ids, mask, options: dict, **more):
    """What Transformers gives."""
    import torch

    tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return reference(family).generate(
        torch.tensor(ids).long(), attention_mask=torch.tensor(mask), do_sample=False, **tensors, **more,
        return_dict_in_generate=True,
    )  # fmt: skip


@functools.cache
def reference(family: str):
    """Transformers' model."""
    from tests.engines import torch_model

    return torch_model(folder_of(family), "seq2seq-lm").eval()


@functools.cache
def ours(framework: str, family: str):
    """Our model."""
    return import_module(f"{framework}nlp").AutoModelForSeq2SeqLM.from_pretrained(folder_of(family))


@functools.cache
def expected(name: str, family: str) -> list:
    """A group's cases and what Transformers gives for them; for both frameworks."""
    import torch

    group, found, config = GROUPS[name], [], reference(family).config
    for (seed, lengths), case in itertools.product(enumerate(group.lengths), group.cases):
        ids, mask = sources(seed, lengths)
        ids = np.where(mask, ids + 4, config.pad_token_id).astype(np.int32)
        options = {"max_new_tokens": 12, "eos_token_id": "one"} | group.options | case
        chosen = ends(family)[: 1 if options["eos_token_id"] == "one" else 3]
        options |= {"pad_token_id": config.pad_token_id, "eos_token_id": chosen}
        if "max_length" in options:
            options.pop("max_new_tokens")
        if options.pop("begun", False):
            rng = np.random.default_rng(seed)
            options["decoder_input_ids"] = rng.integers(40, 55, (len(lengths), 3))
        out = generated(family, ids, mask, options, output_scores=True, output_logits=True)
        wanted = {"sequences": out.sequences.numpy()}
        if out.get("sequences_scores") is not None:
            wanted["sequences_scores"] = out.sequences_scores.numpy()
        wanted |= {record: torch.stack(out[record]).numpy() for record in ("scores", "logits") if group.records}
        found.append((ids, mask, options, wanted))
    return found


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize(("name", "family"), [(n, family) for n, group in GROUPS.items() for family in group.families])
def test_generated_ids(name: str, family: str, framework: str):
    group, wrong = GROUPS[name], []
    dicts = {"return_dict_in_generate": True, "output_scores": group.records, "output_logits": group.records}
    for ids, mask, options, wanted in expected(name, family):
        found = ours(framework, family).generate(ids, mask, **options, **dicts)
        same = np.array_equal(found["sequences"], wanted["sequences"])
        if same and "sequences_scores" in wanted:
            same = np.allclose(found["sequences_scores"], wanted["sequences_scores"], rtol=1e-5, atol=1e-4)
        if same and group.records:
            # What a text that has ended is fed, and at which position, is nobody's business.
            lengths = lengths_of(wanted["sequences"], 1, options["eos_token_id"])
            open_texts = (np.arange(len(wanted["scores"]))[:, None] < lengths)[..., None]
            cut = [{r: np.where(open_texts, out[r], 0) for r in ("scores", "logits")} for out in (found, wanted)]
            same = all(equal_records(cut[0][r], cut[1][r]) for r in ("scores", "logits"))
        if not same:
            wrong.append(f"{options}\nours\n{found}\nTransformers'\n{wanted}")
    assert not wrong, f"{len(wrong)} of {len(expected(name, family))} cases differ\n" + "\n".join(wrong[:2])


@pytest.mark.parametrize("family", GROUPS["greedy"].families)
def test_texts_end_early_and_at_different_times(family: str):
    lengths = [
        lengths_of(wanted["sequences"], 1, options["eos_token_id"])
        for _, _, options, wanted in expected("greedy", family)
    ]
    assert len(set(np.concatenate(lengths))) > 2
    texts = {wanted["sequences"].tobytes() for *_, wanted in expected("greedy", family)}
    assert len(texts) > 2
