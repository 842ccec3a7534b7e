"""Generated ids, live against Transformers' ``generate`` with the same keywords.

A group of cases shares what is compiled (the strategy, sizes, which processors are on); its cases differ in numbers, prompts
and models. tests/parity/test_generation.py has what needs no reference, or has none in Transformers any more.
"""

import functools
import itertools
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.cases import Case
from tests.generation import EOS, HF, language_model, prompts

pytestmark = pytest.mark.parity

MODELS = 3
ENDS = (EOS, 17, 33)
BATCHES = {1: ((7,), (5,)), 3: ((7, 4, 6), (5, 7, 2)), 4: ((7, 7, 7, 7), (6, 6, 6, 6)), 5: ((7, 6, 3, 5, 7),)}
"""The lengths of the prompts, by batch: in one bucket, so that they share a program. Those of 4 have no padding, which
Transformers' processors take for text: it penalises the padding's id."""

STOPPING = [
    {"early_stopping": early, "length_penalty": penalty}
    for early, penalty in itertools.product((True, False, "never"), (0.0, 0.6, 1.0, 2.0, -1.0))
]


def several(**options) -> list[dict]:
    """Every combination of the values given for each option."""
    return [dict(zip(options, values)) for values in itertools.product(*options.values())]


@dataclass(frozen=True)
class Group:
    """Cases of one compiled program: those options in common, and one case for each of ``cases``."""

    options: dict
    cases: tuple | list = ({},)
    batch: int = 3
    sets: int = 2  # of prompts
    records: bool = False


BAD, BIAS = [[[7]], [[5, 6], [8, 9, 10]]], [[[[11], -5.0]], [[[12], 4.0], [[3, 4], -2.0]]]
"""And with them, what each model says when it may say everything: see ``resolved``."""

GROUPS = {
    "greedy": Group({}, several(eos_token_id=(EOS, [EOS, 17], list(ENDS)), max_new_tokens=(9, 12))),
    "greedy, one": Group({}, several(eos_token_id=(EOS, list(ENDS))), batch=1),
    "greedy, five": Group({}, several(eos_token_id=(EOS, list(ENDS))), batch=5),
    "greedy, penalties": Group({"max_length": 18}, several(repetition_penalty=(0.7, 1.3, 2.5), eos_token_id=(EOS, list(ENDS)))),
    "greedy, not before": Group({}, [*several(min_new_tokens=(0, 3, 7), eos_token_id=(EOS, list(ENDS))), {"min_length": 11}]),
    "greedy, bigrams once": Group({"no_repeat_ngram_size": 2}),
    "greedy, trigrams once": Group({"no_repeat_ngram_size": 3}, several(eos_token_id=(EOS, list(ENDS)))),
    "greedy, bad words": Group({"bad_words_ids": "said"}, several(eos_token_id=(EOS, list(ENDS)))),
    "greedy, biases": Group({"sequence_bias": "said"}, several(eos_token_id=(EOS, list(ENDS)))),
    "greedy, forced end": Group({}, several(forced_eos_token_id=(EOS, 17), max_new_tokens=(3, 9))),
    "greedy, suppressed": Group({}, several(suppress_tokens=([20, 21], [EOS, 5, 9]), begin_suppress_tokens=([EOS], [3, EOS]))),
    "greedy, decay": Group({}, several(exponential_decay_length_penalty=((2, 1.5), (5, 1.2), (0, 3.0)))),
    "greedy, guided": Group({}, several(guidance_scale=(0.5, 1.5, 3.0), eos_token_id=(EOS, list(ENDS)))),
    "greedy, all": Group(
        {"no_repeat_ngram_size": 2, "bad_words_ids": "said", "renormalize_logits": True, "min_new_tokens": 3,
         "sequence_bias": "said", "suppress_tokens": [30], "begin_suppress_tokens": [EOS]},
        several(repetition_penalty=(0.8, 1.5), exponential_decay_length_penalty=((3, 1.2), (6, 2.0)),
                forced_eos_token_id=(EOS, 17)),
        batch=4,
        records=True,
    ),
    "greedy, recorded": Group({"repetition_penalty": 1.4}, records=True, batch=4),
    "2 beams": Group({"num_beams": 2}, STOPPING, sets=1),
    "3 beams": Group({"num_beams": 3, "num_return_sequences": 3}, STOPPING, sets=1, records=True),
    "5 beams": Group({"num_beams": 5, "num_return_sequences": 2}, STOPPING, sets=1),
    "3 beams, two ends": Group({"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [EOS, 17]}, STOPPING, sets=1),
    "3 beams, one": Group({"num_beams": 3, "num_return_sequences": 3}, several(early_stopping=(True, False)), batch=1),
    "2 beams, five": Group({"num_beams": 2}, several(early_stopping=(True, "never")), batch=5, records=True),
    "3 beams, penalties": Group(
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        several(repetition_penalty=(0.7, 1.5), early_stopping=(True, False), min_new_tokens=(2, 6)),
    ),
    "3 beams, words": Group(
        {"num_beams": 3, "bad_words_ids": "said", "sequence_bias": "said", "forced_eos_token_id": EOS},
        several(early_stopping=(True, False), length_penalty=(0.0, 1.5)),
    ),
    "2 beams, decay": Group(
        {"num_beams": 2, "renormalize_logits": True, "suppress_tokens": [30, 31], "begin_suppress_tokens": [EOS, 4]},
        several(exponential_decay_length_penalty=((2, 1.5), (5, 1.1)), early_stopping=(True, False)),
        records=True,
    ),
    "4 beams, three ends": Group(
        {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": list(ENDS)},
        several(early_stopping=(True, False, "never"), max_new_tokens=(5, 12)),
    ),
}  # fmt: skip


@functools.cache
def folders() -> list[Path]:
    """Checkpoints of models for which an end is often likely: its embedding, and so its logit, is larger than others'."""
    import torch

    from tests.engines import torch_model

    torch.set_num_threads(1)  # models this small: more threads wait for each other a hundred times as long

    made = []
    for seed in range(MODELS):
        folder = Path(tempfile.mkdtemp(prefix="duonlp-generation-"))
        model = torch_model(Case(f"generation-live-{seed}", HF, "causal-lm").write(folder / "plain"), "causal-lm")
        with torch.no_grad():
            for token, size in zip(ENDS, (2.5, 1.5, 1.5)):
                model.transformer.wte.weight[token] *= size
            model.transformer.wte.weight[0] = 0.0  # padding is not said
        model.save_pretrained(folder / "ends")
        made.append(folder / "ends")
    return made


@functools.cache
def reference(index: int):
    """Transformers' model."""
    from tests.engines import torch_model

    return torch_model(folders()[index], "causal-lm").eval()


@functools.cache
def ours(framework: str):
    """index -> our model. In TensorFlow it is one that changes its weights: what is compiled belongs to a model."""
    nlp = import_module(f"{framework}nlp")
    models = [nlp.AutoModelForCausalLM.from_pretrained(folder) for folder in folders()]
    if framework == "jax":
        return models.__getitem__
    trees = [{path: v.numpy() for path, v in nlp.parameter_tree(model).items()} for model in models]

    def model(index):
        for path, variable in nlp.parameter_tree(models[0]).items():
            variable.assign(trees[index][path])
        return models[0]

    return model


def theirs(index: int, ids, mask, options: dict) -> dict:
    """What Transformers gives, as NumPy."""
    import torch

    out = reference(index).generate(
        torch.tensor(ids).long(), attention_mask=torch.tensor(mask), do_sample=False, **options,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    found = {}
    for name in ("sequences", "sequences_scores", "beam_indices", "scores", "logits"):
        value = out.get(name)
        if value is not None:
            found[name] = (torch.stack(value) if isinstance(value, tuple) else value).numpy()
    return found


@functools.cache
def said(index: int, batch: int, which: int) -> np.ndarray:
    """What a model says when nothing forbids it."""
    ids, mask = prompts(which, BATCHES[batch][which])
    return theirs(index, ids, mask, {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": -1})["sequences"][
        :, ids.shape[1] :
    ]


def resolved(options: dict, index: int, batch: int, which: int) -> dict:
    """Options with tokens that the model would say where they are to be named."""
    row = [int(token) for token in said(index, batch, which)[0]]
    words = {
        "bad_words_ids": [row[:1], row[1:3], [8, 9, 10]],
        "sequence_bias": [[row[:2], -6.0], [[row[2]], 3.0], [[4], 2.0]],
    }
    return {name: words[name] if value == "said" else value for name, value in options.items()}


def cases_of(group: Group):
    """(model, prompts, options) of every case."""
    for index in range(MODELS):
        for which in range(min(group.sets, len(BATCHES[group.batch]))):
            for case in group.cases:
                options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS} | group.options | case
                if "max_length" in options:
                    options.pop("max_new_tokens")
                yield index, which, resolved(options, index, group.batch, which)


@functools.cache
def expected(name: str) -> list:
    """A group's cases and what Transformers gives for them; for both frameworks."""
    group, found = GROUPS[name], []
    for index, which, options in cases_of(group):
        ids, mask = prompts(which, BATCHES[group.batch][which])
        found.append((index, ids, mask, options, theirs(index, ids, mask, options)))
    return found


def lengths_of(sequences, columns: int, ends) -> np.ndarray:
    """How many tokens each row has until its end, the end included."""
    new = sequences[:, columns:]
    hit = np.isin(new, ends)
    return np.where(hit.any(1), hit.argmax(1) + 1, new.shape[1])


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("name", list(GROUPS))
def test_generated_ids(name: str, framework: str):
    group, wrong = GROUPS[name], []
    beams = group.options.get("num_beams", 1) > 1
    dicts = {"return_dict_in_generate": True} | (
        {"output_scores": True, "output_logits": True} if group.records else {}
    )
    for index, ids, mask, options, wanted in expected(name):
        model = ours(framework)(index)
        found = model.generate(ids, mask, **options, **(dicts if beams or group.records else {}))
        found = found if isinstance(found, dict) else {"sequences": found}
        same = np.array_equal(found["sequences"], wanted["sequences"])
        if same and beams:
            same = np.abs(found["sequences_scores"] - wanted["sequences_scores"]).max() < 1e-4
        if same and group.records:
            same = all(equal_records(found[record], wanted[record]) for record in ("scores", "logits"))
            if beams:
                same = same and np.array_equal(found["beam_indices"], wanted["beam_indices"])
        if not same:
            wrong.append(f"model {index}, {options}\nours\n{found}\nTransformers'\n{wanted}")
    assert not wrong, f"{len(wrong)} of {len(expected(name))} cases differ\n" + "\n".join(wrong[:2])


def test_there_are_hundreds_of_cases_and_texts_of_many_lengths():
    assert sum(len(list(cases_of(group))) for group in GROUPS.values()) >= 300
    for name in ("greedy", "2 beams"):
        lengths = [
            lengths_of(wanted["sequences"], ids.shape[1], options["eos_token_id"])
            for _, ids, _, options, wanted in expected(name)
        ]
        assert len(set(np.concatenate(lengths))) > 4
        assert any(len(set(each)) == len(each) for each in lengths)


@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_speculative_decoding_is_greedy_decoding(framework: str):
    """Whatever is proposed; and Transformers', whose proposals are its own."""
    import torch

    model, options = ours(framework)(0), {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS}
    draft = language_model(framework, seed=9, n_layer=1)
    for seed in range(4):
        ids, mask = prompts(seed, (7,))
        tensors = {"inputs": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask), "do_sample": False}
        wanted = reference(0).generate(**tensors, prompt_lookup_num_tokens=3, **options).numpy()
        assert np.array_equal(model.generate(ids, mask, **options), wanted)
        assert np.array_equal(model.generate(ids, mask, prompt_lookup_num_tokens=3, **options), wanted)
        assert np.array_equal(model.generate(ids, mask, assistant_model=draft, **options), wanted)


def equal_records(found, wanted) -> bool:
    """Whether logits are alike; a row whose text has ended is fed other padding there and here."""
    if found.shape != wanted.shape or not np.array_equal(np.isfinite(found), np.isfinite(wanted)):
        return False
    finite = np.isfinite(wanted)
    return float(np.abs(np.where(finite, found, 0) - np.where(finite, wanted, 0)).max()) < 1e-4
