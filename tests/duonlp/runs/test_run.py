"""Configurations of pretraining runs, overrides and errors, and preparation of corpus, tokenizer and blocks."""

import json
import shutil

import pytest

pytest.importorskip("array_record")
pytest.importorskip("detect_secrets")

from duonlp.data.cleaning import FilterConfig
from duonlp.errors import ConfigError, InputError
from duonlp.runs.preparation import load_tokenizer, open_prepared, prepare
from duonlp.runs.pretraining import RunConfig, load_run

SMALL = {
    "held_out": 0.3,
    "cleaning": {"filters": None, "near_duplicates": None},
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "block_length": 16,
    "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2},
    "training": {"steps": 4, "batch_size": 2},
}


def write_source(folder):
    """Write thirty-one small programs, two of which are identical."""
    folder.mkdir()
    for i in range(30):
        (folder / f"m{i}.py").write_text(f"def f{i}(x):\n    '''Adds {i * 7}.'''\n    return x + {i}\n")
    (folder / "copy.py").write_text((folder / "m1.py").read_text())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunConfig.of(SMALL | {"corpus": str(write_source(tmp_path_factory.mktemp("run") / "source"))})


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, prepare(run, folder)


def test_round_trip_through_json(run):
    assert RunConfig.of(json.loads(json.dumps(run.to_dict()))) == run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blok_length": 3}, "not a setting of a run.*did you mean 'block_length'"),
        ({"training": {"step": 3}}, "'step' is not a setting of pretraining"),
        ({"cleaning": {"filter": None}}, "not a setting of cleaning.*did you mean 'filters'"),
        ({"cleaning": {"filters": {"maximum_byte": 3}}}, "not a setting of cleaning.filters.*maximum_bytes"),
        ({"training": {"steps": 0}}, "steps is 0; it must be positive"),
        ({"training": {"steps": 1, "optimizer": "sgd"}}, "optimizer is 'sgd'; it must be one of adamw"),
        (
            {"training": {"steps": 1, "mesh": {"model": 4}}},
            "unknown mesh axis 'model'; the axes are data, fsdp, tensor",
        ),
        (
            {"training": {"steps": 1, "parallelism": "pmap", "mesh": {"fsdp": 4}}},
            "pmap replicates it; use parallelism='jit'",
        ),
        (
            {"training": {"steps": 1, "batch_size": 6, "accumulation": 4}},
            "batch_size=6 is not divisible by accumulation=4",
        ),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        RunConfig.of(settings)


def test_filters_by_name():
    prose = RunConfig.of({"cleaning": {"filters": "prose"}}).cleaning.filters
    assert prose == FilterConfig.for_prose()
    filters = {"preset": "prose", "minimum_bytes": 9}
    assert RunConfig.of({"cleaning": {"filters": filters}}).cleaning.filters == FilterConfig.for_prose(minimum_bytes=9)
    with pytest.raises(InputError, match="did you mean 'prose'"):
        RunConfig.of({"cleaning": {"filters": "pros"}})


def test_overrides(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(f"CONFIG = {SMALL!r}")
    changed = load_run(file, ["training.steps=9", 'training.mesh={"fsdp": 2}', "tokenizer.kind=wordpiece"])
    assert (changed.training.steps, changed.training.mesh, changed.tokenizer["kind"]) == (9, {"fsdp": 2}, "wordpiece")
    assert load_run(file).training.steps == 4
    for override, message in (
        ("training.step=9", "'step'"),
        ("steps", "KEY=VALUE"),
        ("held_out.x=1", "no settings of its own"),
    ):
        with pytest.raises(InputError, match=message):
            load_run(file, [override])
    with pytest.raises(InputError, match=r"other\.py' does not exist"):
        load_run(tmp_path / "other.py")
    file.write_text("CONFIGURATION = {}")
    with pytest.raises(InputError, match="has no CONFIG"):
        load_run(file)
    for name, message in (("run.json", "is not valid JSON"), ("run.txt", "is not a Python file")):
        (tmp_path / name).write_text("{")
        with pytest.raises(InputError, match=message):
            load_run(tmp_path / name)


def test_prepared_parts_belong_together(run, made):
    folder, prepared = made
    assert prepared.corpus["dropped"]["exact duplicate"]["documents"] == 1
    assert (
        prepared.training.manifest.documents + prepared.held_out.manifest.documents
        == prepared.corpus["kept"]["documents"]
    )
    assert prepared.training.manifest.block_length == 16 and 257 < len(prepared.tokenizer) <= 300

    again = open_prepared(folder)
    assert again.training.manifest == prepared.training.manifest
    config = run.model_config(prepared.tokenizer)
    assert (config["vocab_size"], config["n_positions"], config["eos_token_id"]) == (len(prepared.tokenizer), 16, 0)


def test_complete_stages_are_not_repeated(run, made, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*.jsonl.gz")}
    shutil.rmtree(folder / "blocks")
    prepare(run, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.jsonl.gz")} == times
    # as if killed in the corpus stage, which is then repeated
    (folder / "corpus" / "stage.json").unlink()
    prepare(run, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.jsonl.gz")} != times
    with pytest.raises(InputError, match="made with other settings"):
        prepare(RunConfig.of(run.to_dict() | {"held_out": 0.2}), folder)
    (folder / "tokenizer" / "stage.json").unlink()
    with pytest.raises(InputError, match="no finished tokenizer"):
        open_prepared(folder)


def test_an_empty_corpus(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"matches '\*\.py'"):
        prepare(RunConfig.of(SMALL | {"corpus": str(tmp_path / "empty")}), tmp_path / "made")


def test_the_model_must_fit_the_blocks(run, made):
    short = RunConfig.of(run.to_dict() | {"model": {**SMALL["model"], "n_positions": 8}})
    with pytest.raises(ConfigError, match="8 positions, but blocks have 16"):
        short.model_config(made[1].tokenizer)
    with pytest.raises(InputError, match="leave vocab_size out"):
        RunConfig.of(run.to_dict() | {"model": {**SMALL["model"], "vocab_size": 20}}).model_config(made[1].tokenizer)


SPANS = SMALL | {
    "objective": "span-corruption",
    "tokenizer": {"kind": "unigram", "vocab_size": 260},
    "block_length": 32,
    "model": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
}


def test_a_run_of_an_encoder_decoder(tmp_path):
    run = RunConfig.of(SPANS | {"corpus": str(write_source(tmp_path / "source"))})
    made = prepare(run, tmp_path / "made")
    vocabulary = made.tokenizer.get_vocab()
    assert {"<extra_id_0>", "<extra_id_99>"} <= set(vocabulary)
    config = run.model_config(made.tokenizer)
    assert config["decoder_start_token_id"] == made.tokenizer.pad_token_id and "max_position_embeddings" not in config
    objective = run.make_objective(made.tokenizer)
    batch = objective(made.training.read([0])["input_ids"], None, [0], 0)
    assert (
        batch["input_ids"].shape == (1, objective.lengths(32)[0]) and vocabulary["<extra_id_0>"] in batch["input_ids"]
    )


def test_invalid_settings_of_an_encoder_decoder(made):
    with pytest.raises(InputError, match="set segment_ids=False"):
        RunConfig.of(SPANS | {"segment_ids": True})
    with pytest.raises(InputError, match="objective is 'mlm'"):
        RunConfig.of(SPANS | {"objective": "mlm"})
    tokenizer = load_tokenizer(made[0])
    with pytest.raises(InputError, match="needs 2 sentinels"):
        RunConfig.of(SPANS).model_config(tokenizer)
    gpt2 = SPANS | {"model": SMALL["model"], "objective": "text-infilling", "objective_options": {"mask_share": 0.2}}
    tokenizer.mask_token = "a"
    with pytest.raises(
        InputError, match="text-infilling trains models with the head seq2seq-lm; this one's is that of a gpt2"
    ):
        RunConfig.of(gpt2).model_config(tokenizer)
    options = RunConfig.of(gpt2 | {"tokenizer": {"kind": "bpe"}}).tokenizer_options
    assert options == {"kind": "bpe", "special_tokens": {"mask_token": "<mask>"}}
    assert RunConfig.of(gpt2 | {"objective": "gap-sentences"}).tokenizer_options["extra_special_tokens"] == ["<mask_1>"]
