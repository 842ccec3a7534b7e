"""Tensors that are taken to equal others, or what the model computes: what happens where they do not."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from duonlp import architectures
from duonlp.architectures._common import BIAS, DECODER_WORDS, OUTPUT, POSITION_TABLES, WORDS
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.copies import BUFFERS, CONSTANTS, present
from duonlp.checkpoints.layouts import our_layout
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import CheckpointError, CheckpointWarning
from duonlp.positions import fixed_table, rotary_frequencies
from tests.cases import cases
from tests.copies import CASES, OUTPUTS, OWN, L, Own, read, rewrite

STACKS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")


def loaded(folder, head, **overrides):
    """Return the configuration, the parameters by path, and the texts of the warnings of a checkpoint."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        checkpoint = open_checkpoint(folder)
        cfg = checkpoint.transformer_config(head, **overrides)
        values = {source.path: np.array(source.read()) for source in checkpoint.plan(cfg, head)}
    return cfg, values, [str(w.message) for w in record if issubclass(w.category, CheckpointWarning)]


def tie_weights(own: Own, tensors) -> dict[str, str]:
    """Return the tensor that Transformers uses for the words of the stacks and the output, by the name it has there."""
    head, prefix = own.case.head, architectures.get(own.case.hf["model_type"]).PREFIX if own.case.head != "base" else ""
    if own.case.config.decoder is None:
        output, words = OUTPUTS[own.case.name]
        tied = [(output, words)]
    else:
        shared, encoder, decoder = (f"{prefix}{name}.weight" for name in STACKS)
        shared = shared if own.case.config.decoder.shares_words else decoder
        outputs = [(L, shared)] if head == "seq2seq-lm" else []
        t5 = own.case.hf["model_type"] == "t5"
        stacks = [(encoder, shared), (decoder, shared)] if shared != decoder else []
        tied = [*stacks, *outputs] if t5 else [*outputs, *stacks[::-1]]
    used = {name: name for name in tensors}
    for i, (target, source) in enumerate(tied):
        if source in used and target in used:
            if np.array_equal(tensors[used[source]], tensors[used[target]]):
                used[target] = used[source]
        elif target in used:
            used[source] = used[target]
        else:
            used[target] = used[source] if source in used else next(used[t] for t, s in tied[i + 1 :] if t in used)
    return used


WORDS_CASES = [own for own in OWN if not any(name.endswith("bias") or "positions" in name for name in own.added)]


@pytest.mark.parametrize("own", WORDS_CASES, ids=lambda own: own.name)
def test_tied_tensors_are_used_as_transformers_does(own: Own, tmp_path):
    folder = own.write(tmp_path / "model")
    tensors = read(folder)
    used = tie_weights(own, tensors)
    cfg, values, told = loaded(folder, own.case.head)
    rows = {row.path: row for row in architectures.get(cfg.model_type).weights(cfg, own.case.head)}
    prefix = "" if own.case.head != "base" else architectures.get(cfg.model_type).PREFIX
    names = {path: rows[path].name.removeprefix(prefix) for path in (WORDS, DECODER_WORDS, OUTPUT) if path in rows}
    if cfg.decoder is not None and cfg.decoder.shares_words:
        assert used[names[WORDS].replace("shared", STACKS[1])] == used[names[WORDS].replace("shared", STACKS[2])]
        names[WORDS] = names[WORDS].replace("shared", STACKS[1])
    for path, name in names.items():
        expected = our_layout(rows[path].layout, tensors[used[name]])
        assert np.array_equal(values[path], expected), path
    if OUTPUT not in names and own.case.head == "seq2seq-lm":  # tied to the decoder's words
        decoder = next(name for name in used if name.endswith(f"{STACKS[2]}.weight"))
        assert used[L] == used[decoder]
    assert len(told) == 1 and "not tied" in told[0]


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.name)
def test_a_saved_checkpoint_has_the_same_values_and_no_warning(own: Own, tmp_path):
    cfg, values, told = loaded(own.write(tmp_path / "model"), own.case.head)
    assert len(told) == own.warns
    save_checkpoint(tmp_path / "saved", cfg, own.case.head, values.__getitem__, np.float32)
    again, back, told = loaded(tmp_path / "saved", own.case.head)
    assert again == cfg and not told
    assert set(back) == set(values) and all(np.array_equal(back[path], value) for path, value in values.items())
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is own.stays_tied
    # A configuration alone, as a run or a .keras file keeps it, describes the same parameters.
    assert architectures.config_from_hf(architectures.hf_config(cfg, own.case.head)) == cfg


@pytest.mark.parametrize("case", ["gpt2-causal-lm", "bert-masked-lm", "t5-seq2seq-lm", "bart-seq2seq-lm"])
def test_settings_that_silence_the_warning(case, tmp_path):
    own = next(own for own in OWN if own.case.name == case)
    folder = own.write(tmp_path / "model")
    expected = loaded(folder, own.case.head)
    said = re.findall(r"(\w+) to (true|false)", expected[2][0])
    assert ("tie_word_embeddings", "false") in said
    hf = json.loads((folder / "config.json").read_text()) | {key: value == "true" for key, value in said}
    (folder / "config.json").write_text(json.dumps(hf))
    cfg, values, told = loaded(folder, own.case.head)
    assert (cfg, told) == (expected[0], [])
    assert all(np.array_equal(values[path], value) for path, value in expected[1].items())


def test_overrides_count_like_config_json(tmp_path):
    own = next(own for own in OWN if own.case.name == "gpt2-causal-lm")
    folder = own.write(tmp_path / "model")
    assert not loaded(folder, "causal-lm", tie_word_embeddings=False)[2]
    untied = CASES["gpt2-causal-lm[tie_word_embeddings=False]"]
    cfg, values, told = loaded(untied.write(tmp_path / "untied"), "causal-lm", tie_word_embeddings=True)
    assert not cfg.lm_head.tied and len(told) == 1 and OUTPUT in values


def test_heads_without_an_output_ignore_it(tmp_path):
    for name, heads in {"gpt2-causal-lm": ("base", "sequence-classification"), "bart-seq2seq-lm": ("base",)}.items():
        folder = next(own for own in OWN if own.case.name == name).write(tmp_path / name)
        for head in heads:
            cfg, values, told = loaded(folder, head)
            assert cfg.lm_head.tied and not told and OUTPUT not in values


def test_a_head_that_is_asked_for_later_changes_nothing(tmp_path):
    own = next(own for own in OWN if own.case.name == "bert-masked-lm")
    checkpoint = open_checkpoint(own.write(tmp_path / "model"))
    cfg = checkpoint.transformer_config("masked-lm")
    assert checkpoint.transformer_config("base") != cfg
    with pytest.warns(CheckpointWarning, match="not tied"):
        plan = checkpoint.plan(cfg, "masked-lm")
    assert next(source for source in plan if source.path == OUTPUT).tensor is not None


def test_a_configuration_that_contradicts_the_tensors_is_refused(tmp_path):
    own = next(own for own in OWN if own.case.name == "gpt2-causal-lm")
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false in"):
        open_checkpoint(own.write(tmp_path / "model")).plan(own.case.config, "causal-lm")


def test_an_output_of_another_shape_or_of_integers_is_refused(tmp_path):
    for change in (lambda v: v[:-1], lambda v: v.astype(np.int32)):
        folder = CASES["gpt2-causal-lm"].write(tmp_path / "model")
        tensors = read(folder)
        rewrite(folder, tensors | {L: change(tensors["transformer.wte.weight"] + 1)})
        with pytest.raises(CheckpointError, match=r"stand for the same values and differ|has dtype int32"):
            loaded(folder, "causal-lm")


# -- positions -------------------------------------------------------------------------------------------------------------

PEGASUS = CASES["pegasus-seq2seq-lm"]


def test_computed_positions_are_saved_exactly_whatever_the_dtype(tmp_path):
    cfg, values, _ = loaded(PEGASUS.write(tmp_path / "model"), PEGASUS.head)
    save_checkpoint(tmp_path / "half", cfg, PEGASUS.head, values.__getitem__, np.float16)
    again, half, _ = loaded(tmp_path / "half", PEGASUS.head)
    assert again == cfg and half[WORDS].dtype == np.float32


def test_rounded_positions_are_those_of_the_checkpoint(tmp_path):
    folder = PEGASUS.write(tmp_path / "model")
    name = "model.encoder.embed_positions.weight"
    tensors = read(folder)
    rewrite(folder, tensors | {name: tensors[name].astype(np.float16)})
    cfg, values, told = loaded(folder, PEGASUS.head)
    assert cfg.embedding.stored_positions and not told
    assert np.array_equal(values[POSITION_TABLES[0]], tensors[name].astype(np.float16))
    assert np.array_equal(values[POSITION_TABLES[1]], fixed_table(PEGASUS.config.decoder.embedding))


def test_positions_of_another_length_are_refused_unless_they_are_the_computed_ones(tmp_path):
    folder = PEGASUS.write(tmp_path / "model")
    tensors, name = read(folder), "model.encoder.embed_positions.weight"
    longer = fixed_table(replace(PEGASUS.config.embedding, max_positions=30))
    rewrite(folder, tensors | {name: longer})
    assert not loaded(folder, PEGASUS.head)[0].embedding.stored_positions
    rewrite(folder, tensors | {name: longer + 1})
    with pytest.raises(CheckpointError, match=r"differ from those that pegasus computes, float \[20, 24\]"):
        loaded(folder, PEGASUS.head)


# -- every row of every family ---------------------------------------------------------------------------------------------

LOADED = {WORDS, DECODER_WORDS, OUTPUT, BIAS, *POSITION_TABLES}
"""Paths of the parameters that a tensor which is taken to be a copy becomes if it is not one; those of OWN."""

NEVER_USED = (
    r"(encoder|decoder)\.version",  # a constant of fairseq
    r"embed_positions\._float_tensor",  # an empty tensor of fairseq
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # cross-attention has no positions
    r"(question|ctx)_encoder\.bert_model\.pooler\.dense\.(weight|bias)",  # DPR takes the CLS token, without BERT's pooler
)
"""Tensors that no version of a model reads, whatever their values."""


def every_row():
    """Yield the rows without a path of every model, by family."""
    for case in cases():
        for row in architectures.get(case.config.model_type).weights(case.config, case.head):
            if row.path is None:
                yield case.config.model_type, row


def test_every_tensor_that_is_not_loaded_is_compared_with_something():
    for family, row in every_row():
        assert bool(row.own_path) != bool(row.constant), (family, row.name)
        assert row.own_path in LOADED or row.constant in CONSTANTS, (family, row.name)
        assert (row.constant == "unused") == any(re.search(p, row.name) for p in NEVER_USED), (family, row.name)
    assert set(BUFFERS.values()) <= set(CONSTANTS) - {"unused"}
    tested = {row.own_path for own in OWN for row in rows_of(own) if set(own.added) & names_of(row, own)}
    assert tested == {row.own_path for _, row in every_row()} - {""} == LOADED


def rows_of(own):
    return architectures.get(own.case.config.model_type).weights(own.case.config, own.case.head)


def names_of(row, own):
    prefix = architectures.get(own.case.config.model_type).PREFIX
    return {row.name, row.name.removeprefix(prefix)}


def test_every_name_of_a_row_is_compared_or_a_substitute():
    """Further names of a parameter: of tied tensors (above), compared by name, or read only where the first is missing."""
    for case in cases():
        family = architectures.get(case.config.model_type)
        table = family.weights(case.config, case.head)
        tied = {
            row.name
            for head in family.heads(case.config.model_type)
            for row in family.weights(case.config, head)
            if row.own_path
        }
        main = [row.name for row in table]
        for row in table:
            for name in {*row.aliases} - tied:
                synonym = name.endswith((".gamma", ".beta")) or name not in main
                assert synonym or name in row.copies or sum(name in (r.name, *r.aliases) for r in table) > 1, (
                    case.name,
                    name,
                )


ROTARY = CASES["llama-causal-lm"].config.attention.rotary
CONSTANT_TENSORS = {
    "bert.embeddings.position_ids": ("bert-masked-lm", np.arange(20)[None]),
    "roberta.embeddings.position_ids": ("roberta-masked-lm", np.arange(20)[None]),
    "bert.embeddings.token_type_ids": ("bert-masked-lm", np.zeros((1, 20), np.int64)),
    "transformer.h.0.attn.bias": ("gpt2-causal-lm", np.tri(20, dtype=bool)[None, None]),
    "transformer.h.1.attn.masked_bias": ("gpt2-causal-lm", np.float32(-1e4)),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("llama-causal-lm", rotary_frequencies(ROTARY)[0]),
    "model.encoder.embed_positions.weights": ("m2m_100-seq2seq-lm", fixed_table(CASES["m2m_100-base"].config.embedding)),
    "model.decoder.embed_positions.weight": ("m2m_100-seq2seq-lm", fixed_table(CASES["m2m_100-base"].config.embedding)),
    "model.decoder.embed_positions.weights": ("pegasus-seq2seq-lm", fixed_table(PEGASUS.config.embedding)),
}  # fmt: skip
"""Constants that Transformers ignores: case and values by name."""


@pytest.mark.parametrize("name", CONSTANT_TENSORS)
def test_constants_that_differ_are_ignored_with_one_warning(name, tmp_path):
    case, value = CASES[CONSTANT_TENSORS[name][0]], np.asarray(CONSTANT_TENSORS[name][1])
    folder = case.write(tmp_path / "model")
    tensors, (_, expected, told) = read(folder), loaded(folder, case.head)
    assert not told
    for changed in (False, True):
        rewrite(folder, tensors | {name: (1 - value).astype(value.dtype) if changed else value})
        _, values, told = loaded(folder, case.head)
        assert len(told) == changed and (not told or (name in told[0] and "ignored" in told[0]))
        assert all(np.array_equal(values[path], v) for path, v in expected.items())


def test_all_kinds_of_constants_are_tested():
    kinds = {kind for name in CONSTANT_TENSORS for pattern, kind in BUFFERS.items() if re.search(pattern, name)}
    rows = {
        row.constant
        for name, (case, _) in CONSTANT_TENSORS.items()
        for row in architectures.get(CASES[case].config.model_type).weights(CASES[case].config, CASES[case].head)
        if row.name == name and row.constant
    }
    assert kinds | rows == set(CONSTANTS) - {"unused"}


def test_unused_tensors_are_never_mentioned(tmp_path):
    case = CASES["t5-seq2seq-lm"]
    folder = case.write(tmp_path / "model")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewrite(folder, read(folder) | {name: np.ones((8, 4), np.float32)})
    assert not loaded(folder, case.head)[2]


def test_present_finds_names_without_the_prefix(tmp_path):
    case = CASES["bert-masked-lm"]
    folder = case.write(tmp_path / "model")
    tensors = open_checkpoint(folder).tensors
    row = next(row for row in architectures.get("bert").weights(case.config, case.head) if row.path == WORDS)
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    assert present(row, "bert.", bare) == present(row, "bert.", tensors) != []
