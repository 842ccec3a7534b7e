"""The ahead-of-time check: topologies, the compiler's output and a real compilation."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("jax")

from duonlp.errors import InputError, MissingExtraError
from duonlp.training.config import PretrainingConfig
from jaxnlp.training.chips import CHIPS
from jaxnlp.training.compile_check import report as compile_report
from jaxnlp.training.compile_check import topology
from jaxnlp.training.compile_check.hlo_cost import Collective
from jaxnlp.training.compile_check.report import Exchange, Memory, StepReport
from tpu_scripts import compile_check
from tpu_scripts._program import run

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
TINY = {"model_type": "gpt2", "n_layer": 2, "n_embd": 128, "n_head": 2, "vocab_size": 512, "n_positions": 128}


def slice_of(chip: str, *shape: int) -> topology.Topology:
    """Return a slice whose devices have coordinates only."""
    places = np.stack(np.meshgrid(*map(range, shape), indexing="ij"), -1).reshape(-1, len(shape))
    devices = tuple(SimpleNamespace(coords=[*map(int, place)]) for place in places)
    return topology.Topology(f"{chip}:{'x'.join(map(str, shape))}", CHIPS[chip], shape, devices)


def mesh_on(slice_, **shape):
    """Return the attributes of a Mesh that the check reads."""
    devices = np.empty(len(slice_.devices), object)
    devices[:] = slice_.devices
    return SimpleNamespace(shape=shape, devices=devices.reshape(tuple(shape.values())))


@pytest.mark.parametrize(
    "name, parsed",
    [("v5e:16x16", ("v5e", (16, 16))), (" V5P:4x4x4 ", ("v5p", (4, 4, 4))), ("v4:2x2x1", ("v4", (2, 2, 1)))],
)
def test_names_of_topologies(name, parsed):
    assert topology.parse(name) == parsed


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:16", "v5e:4x4x4", "v9:4x4", "v5e:32x32", "v5e:0x4", "v5p:4x4", "tpu"]
)
def test_an_unknown_topology_lists_those_that_work(name):
    with pytest.raises(InputError, match=r"v5e:16x16.*v4:4x4x4") as error:
        topology.parse(name)
    assert repr(name) in str(error.value)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "duonlp\[topology\]"'):
        topology.topology("v5e:2x2")


@pytest.mark.parametrize(
    "chip, shape, group, links",
    [
        ("v5e", (16, 16), range(16), 2),  # a whole row wraps around
        ("v5e", (16, 16), range(8), 1),  # half of one does not
        ("v5e", (16, 16), range(256), 4),
        ("v5e", (4, 4), range(16), 2),  # a small slice has no way around
        ("v5p", (4, 4, 4), range(64), 6),
        ("v5p", (2, 2, 1), range(4), 2),
        ("v5e", (1, 1), range(1), 1),
    ],
)
def test_links_along_a_group(chip, shape, group, links):
    slice_ = slice_of(chip, *shape)
    bandwidth = slice_.group_bandwidth([slice_.devices[i] for i in group])
    assert bandwidth == pytest.approx(links * CHIPS[chip].ici_bandwidth / CHIPS[chip].ici_links)


@pytest.mark.parametrize(
    "group, axes",
    [
        ((0, 4, 8, 12), "data"), ((0, 1, 2, 3), "fsdp"), (tuple(range(16)), "data+fsdp"), ((3, 7, 11, 15), "data"),
        ((0, 1), "part of fsdp"), ((0, 5), "part of data+fsdp"),
    ],
)  # fmt: skip
def test_axes_of_a_group(group, axes):
    assert compile_report.axes_of(group, {"data": 4, "fsdp": 4, "tensor": 1}) == axes


def test_exchanges_of_one_kind_and_axis_are_summed():
    slice_ = slice_of("v5e", 16, 16)
    row = tuple(range(16))
    found = [
        Collective("all-gather", row, 2, 1600),
        Collective("all-gather", row, 1, 3200),
        Collective("all-reduce", row, 1, 16),
    ]
    gather, reduce = compile_report.exchanges_of(found, mesh_on(slice_, data=16, fsdp=16, tensor=1), slice_)
    assert gather == Exchange("all-gather", "fsdp", 16, 3, 6400, 6000, pytest.approx(6000 / 100e9))
    assert (reduce.sent, reduce.seconds) == (30, pytest.approx(30 / 100e9))


@pytest.mark.parametrize(
    "message, needed",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.81G) exceeds "
            "available HBM (15.75G).",
            22.81 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 17.5 * GIB),
        ("INTERNAL: something else about HBM", None),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.50M of 16.00M vmem.", None),
    ],
)  # fmt: skip
def test_memory_is_read_from_the_compiler_error(message, needed):
    assert compile_report.memory_needed(message) == (None if needed is None else round(needed))


def report(total=20 * GIB, state=8 * GIB, **changes) -> StepReport:
    memory = Memory(state // 3, state - state // 3, *[None] * 5, total=total, available=16 * GIB)
    known = {"topology": "v5e:16x16", "chips": 256, "mesh": {"data": 256, "fsdp": 1, "tensor": 1}, "tokens": 2**20}
    return StepReport(
        **known, parameters=10**9, memory=memory, fits=False, compile_seconds=1.0, model_flops=1e12, **changes
    )


def test_advice_for_a_step_that_does_not_fit():
    config = PretrainingConfig(steps=1, batch_size=1024)
    heavy_state = compile_report.advice(report(), config)
    assert "fsdp=4" in heavy_state[0] and "remat" in heavy_state[1] and "accumulation 2" in heavy_state[2]
    light_state = compile_report.advice(report(state=GIB), config)
    assert "remat" in light_state[0] and not any("fsdp" in way for way in light_state)
    assert "lion" in compile_report.advice(report(), PretrainingConfig(steps=1, batch_size=256, remat="full"))[-1]
    assert "3.32" not in compile_check.shortfall(report(), 0.05) and "4.80 GiB too much" in compile_check.shortfall(
        report(), 0.05
    )


def test_a_step_that_does_not_fit_has_status_1_and_advice(capsys):
    for as_json in (True, False):
        assert compile_check.show("big", PretrainingConfig(steps=1, batch_size=1024), report(), 0.05, as_json) == 1
        printed = capsys.readouterr()
        assert (
            "4.80 GiB too much" in printed.err and "Try: shard parameters" in printed.err and "20.00 GiB" in printed.err
        )
        assert json.loads(printed.out)["fits"] is False if as_json else "20.00 GiB" in printed.out


def test_the_slowest_resource_bounds_a_step():
    known = {"flops": 10, "compute_seconds": 0.2, "memory_seconds": 0.5, "interconnect_seconds": 0.1}
    bounded = report(**known)
    assert (bounded.step_seconds, bounded.bound_by) == (0.5, "memory")
    assert bounded.tokens_per_second == 2**21 and json.loads(json.dumps(bounded.to_dict()))["bound_by"] == "memory"
    assert report().step_seconds is None and report().tokens_per_second is None


@pytest.mark.parametrize("name", compile_report.PRESETS)
def test_presets_have_their_published_sizes(name):
    from duonlp.parameters import parameters

    config = compile_check.load_model(name, dropout=True).config
    millions = sum(p.size for p in parameters(config, "causal-lm").values()) / 1e6
    known = {
        "gpt2": 124,
        "gpt2-medium": 355,
        "gpt2-large": 774,
        "gpt2-xl": 1558,
        "codeparrot-small": 111,
        "codeparrot": 1530,
    }
    assert round(millions) == known[name]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tpu_scripts/compile_check.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v5e:banana"], "v5e:banana"),
        (["--batch-per-chip", "0"], "--batch-per-chip is 0"),
        (["--mesh", "data"], "--mesh has 'data'"),
        (["--mesh", "data=1,data=2"], "--mesh has 'data=2'"),
        (["--head-room", "2"], "--head-room is 2"),
        (["--sweep", "--hlo", "x"], "--sweep"),
        (["--colour"], "--colour"),
    ],
)
def test_invalid_input_has_status_2(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(topology, "topology", lambda name: topology.parse(name) and slice_of("v5e", 2, 2))
    monkeypatch.setattr(sys, "argv", ["compile_check.py", *arguments])
    assert run(compile_check.app, "compile_check") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [("no json", "is not valid JSON"), ('{"model_type": "nonesuch"}', "nonesuch"), (None, "cannot read")],
)
def test_an_unreadable_config_is_named(content, message, tmp_path):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Exception, match=message) as error:
        compile_check.load_model(str(file), dropout=True)
    assert isinstance(error.value, (InputError, ValueError))
    with pytest.raises(InputError, match="codeparrot-small"):
        compile_check.load_model("gpt5", dropout=True)


def test_a_run_is_checked_as_pretrain_would_run_it():
    file = ROOT / "tpu_scripts" / "configs" / "codeparrot_xl.py"
    model, name, config, length, _ = compile_check.read_run(file, ["training.batch_size=1024"], dropout=False)
    assert (name, length, config.batch_size, config.mesh["fsdp"]) == ("codeparrot_xl", 1024, 1024, 16)
    assert (model.config.embedding.vocab_size, model.config.num_layers) == (32768, 48)
    assert model.config == model.config.without_dropout() and model.head == "causal-lm"


def test_a_step_that_cannot_be_compiled_ahead_of_time():
    model, slice_ = compile_check.load_model("gpt2", dropout=True), slice_of("v5e", 2, 2)
    with pytest.raises(InputError, match="pmap"):
        compile_report.compile_step(model, PretrainingConfig(steps=1, parallelism="pmap"), slice_, 1024)
    with pytest.raises(InputError, match="2048"):
        compile_report.compile_step(model, PretrainingConfig(steps=1), slice_, 2048)


@pytest.mark.topology
def test_a_step_is_compiled_without_chips(tmp_path):
    file, text = tmp_path / "config.json", tmp_path / "step.hlo"
    file.write_text(json.dumps(TINY))
    done = command(
        "--topology", "v5e:2x2", "--model", str(file), "--mesh", "data=2,fsdp=2", "--sequence-length", "128", "--no-dropout",
        "--batch-per-chip", "2", "--json", "--hlo", str(text),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # Exactly the model's products in both passes: loops over layers are counted in full.
    assert result["flops"] == result["model_flops"] > result["xla_flops"] / 2
    memory = result["memory"]
    assert result["fits"] and memory["parameters"] + memory["optimizer"] <= memory["arguments"] < memory["total"]
    assert memory["aliased"] >= memory["parameters"] + memory["optimizer"]  # the state was donated
    kinds = {(row["kind"], row["axes"]) for row in result["exchanges"]}
    assert ("all-gather", "fsdp") in kinds and any(kind in ("all-reduce", "reduce-scatter") for kind, _ in kinds)
    assert result["unknown_loops"] == 0 and 0 < result["mfu_bound"] < 1
    assert text.read_text().startswith("HloModule")


@pytest.mark.topology
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_other_kinds_of_chips(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    done = command("--topology", name, "--model", str(tmp_path / "config.json"), "--sequence-length", "128", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]


@pytest.mark.topology
@pytest.mark.slow
def test_a_real_step_that_does_not_fit(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    done = command(
        "--topology", "v5e:2x2", "--model", str(tmp_path / "config.json"), "--sequence-length", "128",
        "--batch-per-chip", "65536",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stderr and "fewer rows per chip" in done.stderr
