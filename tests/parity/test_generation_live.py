"""Compare generated ids with Transformers' ``generate`` for the same keywords.

The cases of a group share compiled programs (strategy, sizes, processors) and differ in numbers, prompts and models. Tests
without a reference, or whose reference Transformers has removed, are in tests/parity/test_generation.py.
"""

import functools
import itertools
import json
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.cases import Case
from tests.generation import EOS, HF, LLAMA, language_model, prompts, windowed_model

pytestmark = pytest.mark.parity

MODELS = 3
ENDS = (EOS, 17, 33)
BATCHES = {1: ((7,), (5,)), 3: ((7, 4, 6), (5, 7, 2)), 4: ((7, 7, 7, 7), (6, 6, 6, 6)), 5: ((7, 6, 3, 5, 7),)}
"""Batch size -> prompt lengths of each set, in one bucket, so that the sets share a program. The prompts of batch size 4 have
no padding, because Transformers' repetition penalty treats padding as text."""

STOPPING = [
    {"early_stopping": early, "length_penalty": penalty}
    for early, penalty in itertools.product((True, False, "never"), (0.0, 0.6, 1.0, 2.0, -1.0))
]


def grid(**options) -> list[dict]:
    """Return every combination of the options' values."""
    return [dict(zip(options, values)) for values in itertools.product(*options.values())]


@dataclass(frozen=True)
class Group:
    """Cases that share a compiled program.

    Attributes:
        options: Options of all cases.
        cases: Additional options of each case.
        batch: Batch size, a key of BATCHES.
        sets: Number of sets of prompts.
        records: Whether to compare scores and logits as well.
        family: Models to run, see :func:`folders`.
    """

    options: dict
    cases: tuple | list = ({},)
    batch: int = 3
    sets: int = 2
    records: bool = False
    family: str = "gpt2"


FREE_TOKENS = "tokens of the unconstrained text"
"""Placeholder that :func:`resolve` replaces by tokens which the model generates without constraints."""

GROUPS = {
    "greedy": Group({}, grid(eos_token_id=(EOS, [EOS, 17], list(ENDS)), max_new_tokens=(9, 12))),
    "greedy, one": Group({}, grid(eos_token_id=(EOS, list(ENDS))), batch=1),
    "greedy, five": Group({}, grid(eos_token_id=(EOS, list(ENDS))), batch=5),
    "greedy, penalties": Group({"max_length": 18}, grid(repetition_penalty=(0.7, 1.3, 2.5), eos_token_id=(EOS, list(ENDS)))),
    "greedy, not before": Group({}, [*grid(min_new_tokens=(0, 3, 7), eos_token_id=(EOS, list(ENDS))), {"min_length": 11}]),
    "greedy, bigrams once": Group({"no_repeat_ngram_size": 2}),
    "greedy, trigrams once": Group({"no_repeat_ngram_size": 3}, grid(eos_token_id=(EOS, list(ENDS)))),
    "greedy, bad words": Group({"bad_words_ids": FREE_TOKENS}, grid(eos_token_id=(EOS, list(ENDS)))),
    "greedy, biases": Group({"sequence_bias": FREE_TOKENS}, grid(eos_token_id=(EOS, list(ENDS)))),
    "greedy, forced end": Group({}, grid(forced_eos_token_id=(EOS, 17), max_new_tokens=(3, 9))),
    "greedy, suppressed": Group({}, grid(suppress_tokens=([20, 21], [EOS, 5, 9]), begin_suppress_tokens=([EOS], [3, EOS]))),
    "greedy, decay": Group({}, grid(exponential_decay_length_penalty=((2, 1.5), (5, 1.2), (0, 3.0)))),
    "greedy, guided": Group({}, grid(guidance_scale=(0.5, 1.5, 3.0), eos_token_id=(EOS, list(ENDS)))),
    "greedy, all": Group(
        {"no_repeat_ngram_size": 2, "bad_words_ids": FREE_TOKENS, "renormalize_logits": True, "min_new_tokens": 3,
         "sequence_bias": FREE_TOKENS, "suppress_tokens": [30], "begin_suppress_tokens": [EOS]},
        grid(repetition_penalty=(0.8, 1.5), exponential_decay_length_penalty=((3, 1.2), (6, 2.0)),
                forced_eos_token_id=(EOS, 17)),
        batch=4,
        records=True,
    ),
    "greedy, recorded": Group({"repetition_penalty": 1.4}, records=True, batch=4),
    "2 beams": Group({"num_beams": 2}, STOPPING, sets=1),
    "3 beams": Group({"num_beams": 3, "num_return_sequences": 3}, STOPPING, sets=1, records=True),
    "5 beams": Group({"num_beams": 5, "num_return_sequences": 2}, STOPPING, sets=1),
    "3 beams, two ends": Group({"num_beams": 3, "num_return_sequences": 2, "eos_token_id": [EOS, 17]}, STOPPING, sets=1),
    "3 beams, one": Group({"num_beams": 3, "num_return_sequences": 3}, grid(early_stopping=(True, False)), batch=1),
    "2 beams, five": Group({"num_beams": 2}, grid(early_stopping=(True, "never")), batch=5, records=True),
    "3 beams, penalties": Group(
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        grid(repetition_penalty=(0.7, 1.5), early_stopping=(True, False), min_new_tokens=(2, 6)),
    ),
    "3 beams, words": Group(
        {"num_beams": 3, "bad_words_ids": FREE_TOKENS, "sequence_bias": FREE_TOKENS, "forced_eos_token_id": EOS},
        grid(early_stopping=(True, False), length_penalty=(0.0, 1.5)),
    ),
    "2 beams, decay": Group(
        {"num_beams": 2, "renormalize_logits": True, "suppress_tokens": [30, 31], "begin_suppress_tokens": [EOS, 4]},
        grid(exponential_decay_length_penalty=((2, 1.5), (5, 1.1)), early_stopping=(True, False)),
        records=True,
    ),
    "4 beams, three ends": Group(
        {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": list(ENDS)},
        grid(early_stopping=(True, False, "never"), max_new_tokens=(5, 12)),
    ),
    "llama, greedy": Group({}, grid(eos_token_id=(EOS, list(ENDS)), max_new_tokens=(9, 12)), family="llama"),
    "llama, guided": Group({}, grid(guidance_scale=(1.5, 3.0)), family="llama"),
    "llama, all": Group(
        {"no_repeat_ngram_size": 2, "bad_words_ids": FREE_TOKENS, "min_new_tokens": 3, "renormalize_logits": True},
        grid(repetition_penalty=(0.8, 1.5)), batch=4, records=True, family="llama",
    ),
    "llama, 3 beams": Group(
        {"num_beams": 3, "num_return_sequences": 3}, grid(early_stopping=(True, False, "never"), length_penalty=(0.0, 2.0)),
        sets=1, records=True, family="llama",
    ),
    "longrope, greedy": Group({}, records=True, family="longrope"),
    "dynamic, greedy": Group({}, records=True, family="dynamic"),
    "dynamic, 3 beams": Group({"num_beams": 3}, sets=1, family="dynamic"),
    "windows, greedy": Group({}, grid(eos_token_id=(EOS, list(ENDS))), records=True, family="windows"),
    "windows, 3 beams": Group(
        {"num_beams": 3, "num_return_sequences": 3}, grid(early_stopping=(True, False)), records=True, family="windows",
    ),
}  # fmt: skip


WINDOWS = (4, None, 4)
"""Attention windows of the layers of "windows"."""

LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0],
    "original_max_position_embeddings": 10,
}  # fmt: skip
FAMILIES = {
    "gpt2": HF,
    "llama": LLAMA,
    "windows": LLAMA,
    # The texts begin within the positions of pretraining and end beyond them.
    "longrope": LLAMA | {"rope_parameters": LONGROPE},
    "dynamic": LLAMA | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 10},
}


@functools.cache
def folders(family: str) -> list[Path]:
    """Write checkpoints whose end tokens have large embeddings, hence large logits, so that many texts end early.

    "windows" are Llama models whose layers have WINDOWS; Transformers calls them Ministral.
    """
    import torch

    from tests.engines import torch_model

    torch.set_num_threads(1)  # with models this small, several threads spend most of the time waiting for each other

    paths = []
    for seed in range(MODELS):
        folder = Path(tempfile.mkdtemp(prefix="duonlp-generation-"))
        case = Case(f"generation-live-{'' if family == 'gpt2' else 'llama-'}{seed}", FAMILIES[family], "causal-lm")
        model = torch_model(case.write(folder / "plain"), "causal-lm")
        with torch.no_grad():
            for token, size in zip(ENDS, (2.5, 1.5, 1.5)):
                model.get_output_embeddings().weight[token] *= size
            model.get_output_embeddings().weight[0] = 0.0  # so that padding is never generated
        model.save_pretrained(folder / "ends")
        paths.append(folder / "ends")
    return paths


@functools.cache
def reference(family: str, index: int):
    """Load Transformers' model of a checkpoint."""
    from transformers import MinistralConfig, MinistralForCausalLM

    from tests.engines import torch_model

    folder = folders(family)[index]
    if family != "windows":
        return torch_model(folder, "causal-lm").eval()
    hf = json.loads((folder / "config.json").read_text()) | {
        "model_type": "ministral", "sliding_window": WINDOWS[0],
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in WINDOWS],
    }  # fmt: skip
    config = MinistralConfig.from_dict(hf)
    return MinistralForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager").eval()


@functools.cache
def ours(framework: str, family: str):
    """Return a function from the checkpoint's index to our model.

    In TensorFlow it is one model whose weights are replaced, because compiled programs belong to a model.
    """
    nlp = import_module(f"{framework}nlp")
    windows = WINDOWS if family == "windows" else None
    models = [
        windowed_model(framework, folder, windows) if windows else nlp.AutoModelForCausalLM.from_pretrained(folder)
        for folder in folders(family)
    ]
    if framework == "jax":
        return models.__getitem__
    trees = [{path: v.numpy() for path, v in nlp.parameter_tree(model).items()} for model in models]

    def model(index):
        for path, variable in nlp.parameter_tree(models[0]).items():
            variable.assign(trees[index][path])
        return models[0]

    return model


def theirs(family: str, index: int, ids, mask, options: dict) -> dict:
    """Return the NumPy arrays that Transformers generates: sequences, scores, logits, and scores and indices of beams."""
    import torch

    out = reference(family, index).generate(
        torch.tensor(ids).long(), attention_mask=torch.tensor(mask), do_sample=False, **options,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    arrays = {}
    for name in ("sequences", "sequences_scores", "beam_indices", "scores", "logits"):
        value = out.get(name)
        if value is not None:
            arrays[name] = (torch.stack(value) if isinstance(value, tuple) else value).numpy()
    return arrays


@functools.cache
def free_texts(family: str, index: int, batch: int, number: int) -> np.ndarray:
    """Return the new tokens that a model generates greedily for a set of prompts without constraints, [B, 12]."""
    ids, mask = prompts(number, BATCHES[batch][number])
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": -1}
    return theirs(family, index, ids, mask, options)["sequences"][:, ids.shape[1] :]


def resolve(options: dict, index: int, group: Group, number: int) -> dict:
    """Replace FREE_TOKENS in the options by tokens that the model would otherwise generate."""
    row = [int(token) for token in free_texts(group.family, index, group.batch, number)[0]]
    words = {
        "bad_words_ids": [row[:1], row[1:3], [8, 9, 10]],
        "sequence_bias": [[row[:2], -6.0], [[row[2]], 3.0], [[4], 2.0]],
    }
    return {name: words[name] if value is FREE_TOKENS else value for name, value in options.items()}


def cases_of(group: Group):
    """Yield the (index of the model, number of the set of prompts, options) of every case."""
    for index in range(MODELS):
        for number in range(min(group.sets, len(BATCHES[group.batch]))):
            for case in group.cases:
                options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS} | group.options | case
                if "max_length" in options:
                    options.pop("max_new_tokens")
                yield index, number, resolve(options, index, group, number)


@functools.cache
def expected(name: str) -> list:
    """Return (model, ids, mask, options, Transformers' output) of every case of a group; both frameworks use it."""
    group, outputs = GROUPS[name], []
    for index, number, options in cases_of(group):
        ids, mask = prompts(number, BATCHES[group.batch][number])
        outputs.append((index, ids, mask, options, theirs(group.family, index, ids, mask, options)))
    return outputs


def lengths_of(sequences, columns: int, ends) -> np.ndarray:
    """Return the number of new tokens of each row up to and including its end token, int [B].

    Args:
        sequences: Prompts and new tokens, int [B, T].
        columns: Number of columns of the prompts.
        ends: End tokens.
    """
    new = sequences[:, columns:]
    is_end = np.isin(new, ends)
    return np.where(is_end.any(1), is_end.argmax(1) + 1, new.shape[1])


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("name", list(GROUPS))
def test_generated_ids(name: str, framework: str):
    group, differences = GROUPS[name], []
    beams = group.options.get("num_beams", 1) > 1
    dicts = {"return_dict_in_generate": True} | (
        {"output_scores": True, "output_logits": True} if group.records else {}
    )
    for index, ids, mask, options, reference_output in expected(name):
        model = ours(framework, group.family)(index)
        output = model.generate(ids, mask, **options, **(dicts if beams or group.records else {}))
        output = output if isinstance(output, dict) else {"sequences": output}
        same = np.array_equal(output["sequences"], reference_output["sequences"])
        if same and beams:
            same = np.abs(output["sequences_scores"] - reference_output["sequences_scores"]).max() < 1e-4
        if same and group.records:
            same = all(equal_records(output[record], reference_output[record]) for record in ("scores", "logits"))
            if beams:
                same = same and np.array_equal(output["beam_indices"], reference_output["beam_indices"])
        if not same:
            differences.append(f"model {index}, {options}\nours\n{output}\nTransformers'\n{reference_output}")
    total = len(expected(name))
    assert not differences, f"{len(differences)} of {total} cases differ\n" + "\n".join(differences[:2])


def test_cases_are_many_and_their_texts_vary_in_length():
    assert sum(len(list(cases_of(group))) for group in GROUPS.values()) >= 300
    for name in ("greedy", "2 beams"):
        lengths = [
            lengths_of(output["sequences"], ids.shape[1], options["eos_token_id"])
            for _, ids, _, options, output in expected(name)
        ]
        assert len(set(np.concatenate(lengths))) > 4
        assert any(len(set(batch)) == len(batch) for batch in lengths)


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "windows"])
def test_speculative_decoding_is_greedy_decoding(family: str, framework: str):
    """The ids do not depend on what proposes candidates, and equal those of Transformers' speculative decoding."""
    import torch

    model, options = ours(framework, family)(0), {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS}
    draft = language_model(framework, seed=9, n_layer=1)
    for seed in range(4):
        ids, mask = prompts(seed, (7,))
        tensors = {"inputs": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask), "do_sample": False}
        expected_ids = reference(family, 0).generate(**tensors, prompt_lookup_num_tokens=3, **options).numpy()
        assert np.array_equal(model.generate(ids, mask, **options), expected_ids)
        assert np.array_equal(model.generate(ids, mask, prompt_lookup_num_tokens=3, **options), expected_ids)
        assert np.array_equal(model.generate(ids, mask, assistant_model=draft, **options), expected_ids)


def equal_records(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether scores or logits have the same shape and infinities, and finite values within 1e-4."""
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return False
    finite = np.isfinite(theirs)
    return float(np.abs(np.where(finite, ours, 0) - np.where(finite, theirs, 0)).max()) < 1e-4


@pytest.mark.parametrize("framework", ["jax", "tf"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_token_types_continue_with_the_last_one(options: dict, framework: str):
    """GPT-2 adds their word vectors, to new tokens too; speculative decoding adds them to proposals."""
    import torch

    ids, mask = prompts(0, BATCHES[3][0])
    options = {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": EOS} | options
    model, plain = ours(framework, "gpt2")(0), theirs("gpt2", 0, ids, mask, options)["sequences"]
    for kind in range(2):
        types = (np.arange(ids.shape[1]) % 2 if kind else np.zeros_like(ids)) + np.array([[3], [0], [9]])
        expected_ids = theirs("gpt2", 0, ids, mask, options | {"token_type_ids": torch.tensor(types)})["sequences"]
        assert not np.array_equal(expected_ids, plain)
        generated = model.generate(ids, mask, token_type_ids=types, **options)
        np.testing.assert_array_equal(generated, expected_ids)
        if "num_beams" not in options:
            looked_up = model.generate(ids, mask, token_type_ids=types, prompt_lookup_num_tokens=3, **options)
            np.testing.assert_array_equal(looked_up, expected_ids)


@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_token_types_of_bert(framework: str, tmp_path):
    import torch

    from tests.engines import torch_model

    hf = {
        "model_type": "bert", "is_decoder": True, "pad_token_id": 0, "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 40, "type_vocab_size": 2,
    }  # fmt: skip
    folder = Case("bert-decoder", hf, "causal-lm").write(tmp_path / "m")
    ids, mask = prompts(0, BATCHES[3][0])
    options = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    model = import_module(f"{framework}nlp").AutoModelForCausalLM.from_pretrained(folder)
    reference_model = torch_model(folder, "causal-lm").eval()
    for types in (np.zeros_like(ids), np.ones_like(ids)):
        tensors = {"attention_mask": torch.tensor(mask), "token_type_ids": torch.tensor(types).long()}
        expected_ids = reference_model.generate(torch.tensor(ids).long(), **tensors, do_sample=False, **options).numpy()
        np.testing.assert_array_equal(model.generate(ids, mask, token_type_ids=types, **options), expected_ids)


@pytest.mark.parametrize(("types", "message"), [
    ([[0, 1]], "token_type_ids has shape"), ([[0, 99, 0]], "token types"), ([[[0, 0, 0]]], "token_type_ids has shape"),
])  # fmt: skip
def test_invalid_token_types_are_refused(types, message):
    from duonlp.errors import InputError
    from tests.generation import encoder_decoder

    with pytest.raises(InputError, match=message):
        ours("jax", "gpt2")(0).generate([[5, 6, 7]], token_type_ids=types, max_new_tokens=2)
    with pytest.raises(InputError, match="token_type_ids has no effect on a llama"):
        ours("jax", "llama")(0).generate([[5, 6, 7]], token_type_ids=[[0, 0, 0]])
    with pytest.raises(InputError, match="token_type_ids has no effect on a t5"):
        encoder_decoder("jax").generate([[5, 6, 7]], token_type_ids=[[0, 0, 0]])
    with pytest.raises(InputError, match="cannot be combined with guidance_scale"):
        ours("jax", "gpt2")(0).generate([[5, 6, 7]], token_type_ids=[[0, 0, 0]], guidance_scale=1.5)
