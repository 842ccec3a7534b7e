"""Test the settings, the schedule and the masks of pruning, and what is made of them, without an engine."""

import numpy as np
import pytest

from duonlp.architectures import config_from_hf, hf_config
from duonlp.errors import ConfigError, InputError
from duonlp.parameters import parameters
from duonlp.pruning import (
    Pruning,
    compute_masks,
    expand,
    load_sparse,
    mask_shapes,
    plot_accuracy,
    plot_histograms,
    pruned_values,
    save_sparse,
    shrunk_values,
    sparsity_report,
    sparsity_table,
    total_sparsity,
)
from duonlp.training import FitConfig, build, to_toml
from tests.pruning import CONFIG

CFG, HEAD = config_from_hf(CONFIG), "sequence-classification"
RNG = np.random.default_rng(0)
VALUES = {path: RNG.normal(size=p.shape).astype(np.float32) for path, p in parameters(CFG, HEAD).items()}


def masks_of(step=7, **settings):
    pruning = Pruning(**{"begin": 2, "end": 7, **settings})
    shapes = mask_shapes(pruning, CFG, HEAD)
    values = {path: np.zeros(shape) for path, shape in shapes.items()} if pruning.trains_scores else VALUES
    return compute_masks(pruning, shapes, values, step)


def test_the_schedule_is_cubic():
    settings = Pruning(sparsity=0.8, initial_sparsity=0.2, begin=10, end=110, every=25)
    assert [settings.sparsity_at(step) for step in (0, 9, 10, 60, 110, 500)] == pytest.approx(
        [0, 0, 0.2, 0.8 - 0.6 * 0.5**3, 0.8, 0.8]
    )
    assert [step for step in range(200) if settings.due(step)] == [10, 35, 60, 85, 110]
    assert Pruning(sparsity=0.5).resolved(100).end == 70
    soft = Pruning(method="soft-movement", penalty=3.0, end=10)
    assert soft.penalty_at(0) == 0 and soft.penalty_at(10) == pytest.approx(3) and soft.sparsity_at(10) == 0.1


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_weights_of_least_magnitude_go(scope):
    masks = masks_of(sparsity=0.3, scope=scope)
    assert len(masks) == 12 and all(mask.shape == VALUES[path].shape for path, mask in masks.items())
    pools = [masks] if scope == "global" else [{path: mask} for path, mask in masks.items()]
    for pool in pools:
        kept = np.concatenate([np.abs(VALUES[path][mask]) for path, mask in pool.items()])
        gone = np.concatenate([np.abs(VALUES[path][~mask]) for path, mask in pool.items()])
        assert kept.min() >= gone.max() and gone.size == round(0.3 * (gone.size + kept.size))


def test_equal_scores_give_the_exact_sparsity():
    masks = masks_of(sparsity=0.25, method="movement")
    assert sum((~mask).sum() for mask in masks.values()) == sum(mask.size for mask in masks.values()) // 4
    assert all(mask.all() for mask in masks_of(sparsity=0.25, method="movement", step=2).values())


def test_two_of_four_inputs_stay():
    for path, mask in masks_of(structure="2:4").items():
        groups = mask.reshape(-1, 4, mask.shape[1])
        assert (groups.sum(axis=1) == 2).all()
        kept = np.where(groups, np.abs(VALUES[path]).reshape(groups.shape), np.inf).min(axis=1)
        assert (kept >= np.where(groups, 0, np.abs(VALUES[path]).reshape(groups.shape)).max(axis=1)).all()
    assert all(
        (mask.reshape(-1, 4, mask.shape[1]).sum(axis=1) == 4).all() for mask in masks_of(2, structure="2:4").values()
    )


def test_blocks_and_units_are_pruned_as_a_whole():
    masks = masks_of(sparsity=0.5, structure="blocks", block=(8, 4))
    assert masks["encoder/layer_0/attention/query/kernel"].shape == (2, 4)
    whole = expand(masks["encoder/layer_0/attention/query/kernel"], (16, 16)).reshape(2, 8, 4, 4)
    assert (whole.all(axis=(1, 3)) | ~whole.any(axis=(1, 3))).all()
    masks = masks_of(sparsity=0.9, structure="units")
    assert {path.split("/", 2)[2]: mask.shape for path, mask in masks.items()} == {
        "attention/output/kernel": (4, 1), "feed_forward/down/kernel": (32, 1),
    }  # fmt: skip
    assert all(mask.any() for mask in masks.values())
    rows = [mask for path, mask in masks.items() if "down" in path]
    assert sum(mask.sum() for mask in rows) == 64 - round(0.9 * 64) and sum(m.sum() for m in masks.values()) == 6 + 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1.0; it must be in \[0, 1\)"),
        ({"sparsity": -0.1}, "must be in"),
        ({}, "sparsity is missing"),
        ({"sparsity": 0.5, "structure": "2:4"}, "'2:4' fixes it"),
        ({"structure": "4:2"}, "N from 1 to M - 1"),
        ({"sparsity": 0.5, "structure": "rows"}, "not one of weights"),
        ({"sparsity": 0.5, "method": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "method": "soft-movement"}, "the penalty decides"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "lower it"),
        ({"sparsity": 0.5, "begin": 5, "end": 4}, "before it begins"),
        ({"sparsity": 0.5, "every": 0}, "positive"),
        ({"sparsity": 0.5, "layers": "x"}, "pass a list"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        Pruning(**settings)


def test_the_model_and_the_run_are_checked():
    for settings, message in (
        ({"layers": ["*/feed_foward/*"]}, "matches no layer of the model; its layers are"),
        ({"layers": ["*"], "skip": ["*"]}, "prune no layer"),
        ({"structure": "3:5", "sparsity": None}, "16 inputs and 16 outputs, which do not divide into 3:5"),
        ({"structure": "blocks"}, "do not divide into blocks of 32 x 32"),
    ):
        with pytest.raises(InputError, match=message):
            mask_shapes(Pruning(**{"sparsity": 0.5, **settings}), CFG, HEAD)
    with pytest.raises(InputError, match="step 30, but the run has 30 steps"):
        Pruning(sparsity=0.5, end=30).resolved(30)
    with pytest.raises(InputError, match="only training gives"):
        pruned_values(VALUES.__getitem__, CFG, HEAD, Pruning(sparsity=0.5, method="movement"))


def test_settings_of_a_run_are_written_and_read():
    config = FitConfig(pruning=Pruning(sparsity=0.7, method="movement", layers=["*/feed_forward/*"], end=20))
    import tomllib

    assert build(FitConfig, tomllib.loads(to_toml(config))) == config
    config.check_resumable(config.to_dict())
    assert FitConfig.of(config.to_dict()) == config
    with pytest.raises(InputError, match="pruning="):
        FitConfig().check_resumable(config.to_dict())


def test_zero_heads_and_rows_are_removed_and_written_to_the_configuration():
    pruned = VALUES | pruned_values(VALUES.__getitem__, CFG, HEAD, Pruning(sparsity=0.5, structure="units"))
    cfg, values = shrunk_values(pruned.__getitem__, CFG, HEAD)
    specs = parameters(cfg, HEAD)
    assert all(specs[path].shape == value.shape for path, value in values.items()) and cfg != CFG
    assert sum(layer.attention.num_heads for layer in cfg.layers) == 4
    assert sum(layer.feed_forward.size for layer in cfg.layers) == 32
    stored = hf_config(cfg, HEAD)
    assert stored["num_attention_heads"] == 4 and stored["intermediate_size"] == 32
    assert config_from_hf(stored) == cfg
    for broken in ([], [[4, None, 32]], [[5, None, 32]] * 2, [[0, None, 32]] * 2, [[4, 4, 32]] * 2, "x"):
        with pytest.raises(ConfigError, match="pruned_layers"):
            config_from_hf(stored | {"pruned_layers": broken})
    with pytest.raises(InputError, match="nothing can be removed"):
        shrunk_values(VALUES.__getitem__, CFG, HEAD)


def test_reports_and_sparse_files(tmp_path):
    pruned = VALUES | pruned_values(VALUES.__getitem__, CFG, HEAD, Pruning(sparsity=0.75))
    rows = sparsity_report(pruned)
    assert "| 16x16 |" in sparsity_table(rows) and 0.6 < total_sparsity(rows) < 0.75
    size = save_sparse(tmp_path / "sparse.safetensors", pruned)
    assert size < sum(value.nbytes for value in pruned.values())
    restored = load_sparse(tmp_path / "sparse.safetensors")
    assert set(restored) == set(pruned)
    for path, value in pruned.items():
        np.testing.assert_array_equal(restored[path], value)
    pytest.importorskip("matplotlib")
    plot_accuracy(tmp_path / "a.png", {"magnitude": [(0.5, 0.9), (0.0, 0.95)]})
    plot_histograms(tmp_path / "h.png", {"kernel": pruned["encoder/layer_0/attention/query/kernel"]})
    assert (tmp_path / "a.png").stat().st_size and (tmp_path / "h.png").stat().st_size
