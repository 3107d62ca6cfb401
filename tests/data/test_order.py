"""Orders, crops, mirrors and colour shifts against their definitions in the 2012 code and in the paper."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from helpers.paths import ROOT
from twotower.config import InputConfig
from twotower.data.augment import Changes, draw_changes
from twotower.data.colour_noise import colour_shifts, noise_form, noise_scale
from twotower.data.crops import check_crops
from twotower.data.order import epoch_order, steps_per_epoch

CONF = ROOT / "conf" / "input"

# Values of the 2012 code's meta file for ILSVRC-2012: standard deviations, and axes (R, G, B) as columns.
STDS = np.array([19.7208, 37.0939, 121.7801])
AXES = np.array([[0.4180, -0.7126, -0.5635], [-0.8170, -0.0235, -0.5762], [0.3973, 0.7012, -0.5920]])


def load_input(name: str, **overrides: Any) -> InputConfig:
    """conf/input/NAME.yaml with overrides by key."""
    merged = OmegaConf.merge(
        OmegaConf.structured(InputConfig), OmegaConf.load(CONF / f"{name}.yaml"), {"crop_size": 224} | overrides
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, InputConfig)
    return config


def draw(config: InputConfig, **at: int) -> Changes:
    """The changes for the colours of ILSVRC-2012, by default at step 0 of epoch 0."""
    return draw_changes(config, STDS**2, AXES, **({"seed": 1, "epoch": 0, "step": 0, "batch_size": 8} | at))


def assert_uniform(counts: NDArray[np.int64]) -> None:
    """Pearson's chi-square is within 5 of its standard deviations of that of a uniform choice, on both sides."""
    counts = counts.ravel()
    expected = counts.sum() / counts.size
    assert expected >= 20, "too few draws for this test"
    freedom = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def same(a: Changes, b: Changes) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("offsets", "flips", "noise"))


# Orders


@pytest.mark.parametrize("num_images", [1, 2, 97, 1000])
def test_an_epoch_is_a_permutation(num_images: int) -> None:
    """An order drawn with replacement would show some images twice and others never."""
    assert sorted(epoch_order(num_images, seed=5, epoch=3).tolist()) == list(range(num_images))


def test_orders_differ_by_epoch_and_seed_and_come_again() -> None:
    orders = {(seed, epoch): epoch_order(100, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert len({order.tobytes() for order in orders.values()}) == 9  # (0, 1) and (1, 0) differ, too
    for (seed, epoch), order in orders.items():
        np.testing.assert_array_equal(epoch_order(100, seed, epoch), order)


def test_every_image_is_equally_often_at_every_place() -> None:
    """An order that only shifts or sorts parts of the set would be a permutation, too."""
    counts = np.zeros((8, 8), np.int64)
    for epoch in range(4000):
        counts[np.arange(8), epoch_order(8, seed=0, epoch=epoch)] += 1
    assert_uniform(counts)


@pytest.mark.parametrize(
    ("images", "batch", "replicas", "steps"),
    [(1281167, 128, 1, 10009), (1281167, 128, 4, 2502), (128, 128, 1, 1), (255, 128, 1, 1), (255, 64, 2, 1)],
)
def test_an_epoch_has_whole_batches_only(images: int, batch: int, replicas: int, steps: int) -> None:
    assert steps_per_epoch(images, batch, replicas) == steps


@pytest.mark.parametrize(("images", "batch", "replicas"), [(7, 8, 1), (15, 8, 2), (0, 1, 1)])
def test_a_set_smaller_than_a_batch_is_refused(images: int, batch: int, replicas: int) -> None:
    with pytest.raises(ValueError, match=rf"{images} images.*optim\.batch_size={batch} x {replicas} replica"):
        steps_per_epoch(images, batch, replicas)


# Crops and flips


def test_configs_say_what_code_and_paper_did() -> None:
    assert load_input("code_2012") == InputConfig(images_per_draw=32)
    assert load_input("paper") == InputConfig(mean="aligned", offsets=32, colour_noise="paper")


@pytest.mark.parametrize(("name", "positions"), [("code_2012", 33), ("paper", 32)])
def test_crops_are_uniform_over_all_positions(name: str, positions: int) -> None:
    """Offsets are 0..32 in the 2012 code and 0..31 in the paper; y, x and the mirror are independent."""
    config = load_input(name, images_per_draw=1)
    drawn = [draw(config, step=step, batch_size=4000) for step in range(12)]
    offsets = np.concatenate([d.offsets for d in drawn])
    flips = np.concatenate([d.flips for d in drawn])
    assert offsets.shape == (48000, 2)
    assert offsets.dtype == flips.dtype == np.int32
    assert (offsets.min(), offsets.max()) == (0, positions - 1)
    assert set(flips.tolist()) == {0, 1}
    joint = np.zeros((positions, positions), np.int64)
    np.add.at(joint, (offsets[:, 0], offsets[:, 1]), 1)
    assert_uniform(joint)
    for axis in (0, 1):
        with_flip = np.zeros((positions, 2), np.int64)
        np.add.at(with_flip, (offsets[:, axis], flips), 1)
        assert_uniform(with_flip.sum(1))
        assert_uniform(with_flip)


def test_half_of_the_images_are_mirrored() -> None:
    flips = draw(load_input("paper"), batch_size=40000).flips
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(40000)
    # Neighbours agree half of the time, because flips that alternate would have the right mean, too.
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(40000)


def test_32_consecutive_images_share_crop_and_flip_but_not_noise() -> None:
    drawn = draw(load_input("code_2012"), batch_size=32 * 40 + 16)
    settings = np.column_stack([drawn.offsets, drawn.flips])
    for start in range(0, len(settings), 32):
        assert (settings[start : start + 32] == settings[start]).all()
    assert len(np.unique(settings[::32], axis=0)) > 30  # of 41 groups
    assert len(np.unique(drawn.noise, axis=0)) == len(drawn.noise)


def test_groups_are_those_of_the_whole_batch() -> None:
    """Groups counted anew in each replica would make 2 x 48 images differ from 1 x 96."""
    parts = [draw(load_input("code_2012"), batch_size=48, replica=i, num_replicas=2) for i in (0, 1)]
    settings = np.concatenate([np.column_stack([d.offsets, d.flips]) for d in parts])
    assert (settings[32:64] == settings[32]).all()
    assert len({tuple(settings[start]) for start in (0, 32, 64)}) == 3


def test_crop_and_flip_can_be_switched_off() -> None:
    """Switching one off does not change what else is drawn."""
    config = load_input("paper")
    usual = draw(config, batch_size=64)
    centred = draw(load_input("paper", random_crop=False), batch_size=64)
    assert (centred.offsets == 16).all()
    np.testing.assert_array_equal(centred.flips, usual.flips)
    np.testing.assert_array_equal(centred.noise, usual.noise)
    upright = draw(load_input("paper", flip=False), batch_size=64)
    assert (upright.flips == 0).all()
    assert usual.flips.any()
    np.testing.assert_array_equal(upright.offsets, usual.offsets)
    np.testing.assert_array_equal(upright.noise, usual.noise)


@pytest.mark.parametrize(("size", "crop", "middle"), [(256, 224, 16), (32, 24, 4), (31, 24, 3), (32, 32, 0)])
def test_without_random_crops_all_are_in_the_middle(size: int, crop: int, middle: int) -> None:
    """The crop lies half a pixel to the left and above where the rest is odd."""
    config = load_input("paper", crop_size=crop, random_crop=False)
    drawn = draw_changes(config, STDS**2, AXES, seed=1, epoch=0, step=0, batch_size=8, span=size - crop)
    assert (drawn.offsets == middle).all()


@pytest.mark.parametrize(("size", "crop"), [(256, 224), (32, 24), (24, 24)])
def test_offsets_up_to_the_edge_are_taken_and_no_more(size: int, crop: int) -> None:
    positions = size - crop + 1
    config = load_input("paper", crop_size=crop, offsets=positions)
    check_crops(config, size)
    drawn = draw(config, batch_size=2000)
    assert (drawn.offsets.min(), drawn.offsets.max()) == (0, size - crop)
    with pytest.raises(ValueError, match=rf"input\.offsets={positions + 1} is more than the {positions} positions"):
        check_crops(load_input("paper", crop_size=crop, offsets=positions + 1), size)
    with pytest.raises(ValueError, match=rf"network\.image_size={size + 1} is more than the {size} pixels"):
        check_crops(load_input("paper", crop_size=size + 1, offsets=1, random_crop=False), size)


@pytest.mark.parametrize("name", ["paper", "code_2012"])
@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_see_the_rows_of_one_larger_batch(name: str, replicas: int) -> None:
    config = load_input(name)
    at = {"seed": 4, "epoch": 2, "step": 7}
    whole = draw(config, batch_size=20 * replicas, **at)
    for replica in range(replicas):
        part = draw(config, batch_size=20, replica=replica, num_replicas=replicas, **at)
        rows = slice(20 * replica, 20 * (replica + 1))
        np.testing.assert_array_equal(part.offsets, whole.offsets[rows])
        np.testing.assert_array_equal(part.flips, whole.flips[rows])
        np.testing.assert_array_equal(part.noise, whole.noise[rows])


def test_steps_epochs_and_seeds_differ_and_come_again() -> None:
    """A stream keyed by the sum of step and epoch, or by the step alone, would repeat itself."""
    config = load_input("paper")
    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    drawn = {k: draw(config, seed=k[0], epoch=k[1], step=k[2], batch_size=16) for k in keys}
    assert len({d.offsets.tobytes() for d in drawn.values()}) == len(keys)
    assert len({d.noise.tobytes() for d in drawn.values()}) == len(keys)
    for seed, epoch, step in keys:
        assert same(draw(config, seed=seed, epoch=epoch, step=step, batch_size=16), drawn[seed, epoch, step])


# Colours


def test_shifts_of_both_forms_follow_their_formulas() -> None:
    """Eigenvectors taken as rows instead of columns would give other colours."""
    stream = np.random.default_rng(0)
    alphas = stream.normal(0, 0.1, (50, 3))
    axes = np.linalg.qr(stream.normal(size=(3, 3)))[0]
    eigenvalues = np.array([12.5, 700.0, 9000.0])
    shifts = {form: colour_shifts(form, alphas, eigenvalues, axes) for form in ("2012", "paper", "none")}
    for alpha, of_2012, of_paper in zip(alphas, shifts["2012"], shifts["paper"], strict=True):
        wanted = sum(axes[:, i] * alpha[i] * eigenvalues[i] ** 0.5 for i in range(3))
        np.testing.assert_allclose(of_2012, wanted, rtol=1e-5, atol=1e-5)
        in_units = sum(axes[:, i] * alpha[i] * (eigenvalues[i] / 65025) for i in range(3))  # pixels in 0..1
        np.testing.assert_allclose(of_paper, 255 * in_units, rtol=1e-5, atol=1e-5)
    assert (shifts["none"] == 0).all()
    assert {array.dtype for array in shifts.values()} == {np.dtype(np.float32)}
    assert {array.shape for array in shifts.values()} == {(50, 3)}


def test_size_of_the_shift_on_imagenet() -> None:
    """The shift is 0.1 along the main axis: 12.2 grey levels in the 2012 code, 1483 by the paper's letter."""
    alpha = np.array([[0.0, 0.0, 0.1]])
    lengths = {form: np.linalg.norm(colour_shifts(form, alpha, STDS**2, AXES)) for form in ("2012", "paper")}
    assert lengths["2012"] == pytest.approx(12.2, abs=0.05)
    assert lengths["paper"] == pytest.approx(1483 / 255, abs=0.01)  # 5.8
    as_printed = np.linalg.norm(0.1 * STDS[2] ** 2 * AXES[:, 2])
    assert as_printed == pytest.approx(1483, abs=1)


def test_an_eigenvalue_just_below_zero_is_zero() -> None:
    """Grey images have eigenvalues like -1e-12, and their roots would be NaN."""
    shifts = colour_shifts("2012", np.full((1, 3), 0.1), np.array([-1e-12, 0.0, 100.0]), np.eye(3))
    np.testing.assert_allclose(shifts, [[0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(("form", "lengths"), [("2012", STDS), ("paper", STDS**2 / 255)])
def test_covariance_of_the_noise(form: str, lengths: NDArray[np.float64]) -> None:
    """2012: 0.01 P diag(lambda) P^T, the colours' own covariance at a hundredth of its size."""
    noise = draw(load_input("paper", colour_noise=form), batch_size=60000).noise.astype(np.float64)
    wanted = 0.01 * AXES @ np.diag(lengths**2) @ AXES.T
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / len(noise))
    assert (abs(np.cov(noise.T) - wanted) < 5 * error).all()
    assert (abs(noise.mean(0)) < 5 * np.sqrt(np.diag(wanted) / len(noise))).all()


@pytest.mark.parametrize("std", [0.1, 0.05])
def test_only_the_noise_of_2012_comes_with_a_division(std: float) -> None:
    scales = {
        form: draw(load_input("paper", colour_noise=form, colour_noise_std=std)).scale
        for form in ("none", "2012", "paper")
    }
    assert scales == {"none": 1.0, "2012": pytest.approx(1 / (1 + std), abs=1e-12), "paper": 1.0}
    assert (draw(load_input("paper", colour_noise="none")).noise == 0).all()
    small, large = (draw(load_input("paper", colour_noise_std=s)).noise for s in (std, 2 * std))
    np.testing.assert_allclose(large, 2 * small, rtol=1e-6)


@pytest.mark.parametrize("last", [0, 1, 30])
@pytest.mark.parametrize("form", ["2012", "paper", "none"])
def test_noise_ends_after_the_given_number_of_epochs(form: str, last: int) -> None:
    """The division ends with the noise. Crops and mirrors stay the same."""
    always = load_input("paper", colour_noise=form)
    ending = load_input("paper", colour_noise=form, colour_noise_epochs=last)
    for epoch in (0, 1, 29, 30, 31):
        before, after = draw(always, epoch=epoch), draw(ending, epoch=epoch)
        if epoch < last:
            assert same(before, after)
            assert after.scale == before.scale == noise_scale(form, 0.1)
            assert after.noise.any() == (form != "none")
        else:
            assert (after.noise == 0).all()
            assert after.scale == 1
            np.testing.assert_array_equal(after.offsets, before.offsets)
            np.testing.assert_array_equal(after.flips, before.flips)
        assert noise_form(ending, epoch) == (form if epoch < last else "none")
        assert noise_form(always, epoch) == form  # null: it never ends
