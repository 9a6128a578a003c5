"""Distances: gradients only where they belong, and the same numbers however a batch is split."""

import os
import subprocess
import sys

import pytest
import torch

from rave_tools.criteria import distances, multiresolution


def test_silence_as_a_target_gives_a_finite_distance() -> None:
    estimate = torch.full((1, 1, 4096), 0.1, requires_grad=True)
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256, 128)))
    loss = criterion(torch.zeros(1, 1, 4096), estimate)["spectral_distance"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(estimate.grad).all()


def test_two_silences_give_zero_and_a_finite_gradient() -> None:
    estimate = torch.zeros(1, 1, 4096, requires_grad=True)
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256, 128)))
    loss = criterion(torch.zeros(1, 1, 4096), estimate)["spectral_distance"]
    loss.backward()
    assert loss == 0 and torch.isfinite(estimate.grad).all()


def test_a_silent_estimate_of_a_sound_has_a_finite_gradient() -> None:
    torch.manual_seed(0)
    estimate = torch.zeros(1, 1, 4096, requires_grad=True)
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256, 128)))
    criterion(torch.randn(1, 1, 4096), estimate)["spectral_distance"].backward()
    assert torch.isfinite(estimate.grad).all()


def test_audio_distance_is_the_sum_of_its_plain_formula() -> None:
    torch.manual_seed(0)
    target, estimate = torch.randn(2, 3, 5000), torch.randn(2, 3, 5000, requires_grad=True)
    stft = multiresolution.MultiScaleSTFT((512, 128))
    fast = multiresolution.AudioDistanceV1(stft, log_epsilon=1e-3)(target, estimate)["spectral_distance"]
    plain = torch.zeros(())
    for x, y in zip(stft(target), stft(estimate), strict=True):
        plain = plain + distances.mean_difference(x, y, norm="L2", relative=True)
        plain = plain + distances.mean_difference(torch.log(x + 1e-3), torch.log(y + 1e-3))
    torch.testing.assert_close(fast, plain)
    gradients = [torch.autograd.grad(loss, estimate)[0] for loss in (3 * fast, 3 * plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_a_shift_by_one_percent_of_level_is_heard_equally_at_every_level() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8192)
    quiet, loud = (distances.mean_difference(g * x, 1.01 * g * x, norm="L2", relative=True) for g in (0.01, 1.0))
    torch.testing.assert_close(quiet, loud)
    torch.testing.assert_close(loud, torch.tensor(1e-4), rtol=1e-3, atol=0)


def test_no_gradient_reaches_the_target() -> None:
    target, estimate = torch.randn(1, 1, 4096, requires_grad=True), torch.randn(1, 1, 4096, requires_grad=True)
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256,)))
    criterion(target, estimate)["spectral_distance"].backward()
    assert target.grad is None and estimate.grad is not None


def test_criteria_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    target, estimate = torch.randn(1, 1, 4096), torch.randn(1, 1, 4096)
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256,)))
    plain = criterion(target, estimate)["spectral_distance"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(target, estimate)["spectral_distance"], plain)
        rounded = criterion(target.bfloat16(), estimate.bfloat16())["spectral_distance"]
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_gradients_are_the_derivatives_on_both_sides(norm: str) -> None:
    torch.manual_seed(0)
    target, value = torch.randn(2, 50, requires_grad=True), torch.randn(2, 50, requires_grad=True)
    difference = target - value
    plain = difference.abs().mean() if norm == "L1" else difference.square().mean()
    ours = distances.mean_difference(target, value, norm=norm)
    torch.testing.assert_close(ours, plain)
    for mine, other in zip(*(torch.autograd.grad(3 * loss, [target, value]) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(mine, other)


def test_means_of_millions_are_exact() -> None:
    ones = torch.full((2**23,), 0.1)
    torch.testing.assert_close(distances.mean_difference(ones, -ones), torch.tensor(0.2), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        distances.mean_difference(ones, -ones, relative=True), torch.tensor(2.0), rtol=1e-6, atol=0
    )


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'L3'"):
        distances.mean_difference(torch.zeros(1), torch.zeros(1), norm="L3")


def gradient_of_half(rank: int, folder: str) -> None:
    """One process's half of a batch, as data-parallel training divides it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    target, estimate = batch()
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256, 128)))
    mine = estimate[rank::2].clone().requires_grad_()
    loss = criterion(target[rank::2], mine)["spectral_distance"]
    loss.backward()
    torch.save((loss.detach(), mine.grad / 2), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    loudness = torch.tensor([1.0, 0.1, 0.5, 0.01])[:, None, None]
    target, error = torch.randn(2, 4, 1, 2048, generator=generator)
    return loudness * target, loudness * target + 0.1 * error


def test_two_processes_equal_one_with_the_whole_batch(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    target, estimate = batch()
    estimate.requires_grad_()
    criterion = multiresolution.AudioDistanceV1(multiresolution.MultiScaleSTFT((256, 128)))
    loss = criterion(target, estimate)["spectral_distance"]
    loss.backward()
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, loss.detach())
    for rank, (_, gradient) in enumerate(halves):
        # a bin whose magnitude is all but zero has a huge logarithmic gradient, so rounding shows in the sum
        torch.testing.assert_close(gradient, estimate.grad[rank::2], rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    gradient_of_half(int(sys.argv[2]), sys.argv[1])
