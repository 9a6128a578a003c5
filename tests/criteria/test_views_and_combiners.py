"""What judges see and how their verdicts add up."""

import pytest
import torch

from rave_tools.contracts import Reconstruction
from rave_tools.criteria import views
from rave_tools.criteria.combiners import WeightedSum


def test_the_crop_is_whole_where_it_can_be() -> None:
    assert views.valid_crop(8192, 1695, 1651, 2048) == (1695, 8192 - 1651)
    assert views.valid_crop(100, 0, 0, 2048) == (0, 100)


@pytest.mark.parametrize("length", [1, 750, 2047, 2048, 2049, 4096, 5000, 5394, 5395])
def test_the_crop_leaves_the_minimum(length: int) -> None:
    left, right = 1695, 1651
    start, stop = views.valid_crop(length, left, right, 2048)
    assert stop - start == max(min(length, 2048), length - left - right)
    assert 0 <= start <= left and 0 <= length - stop <= right
    assert abs(start * right - (length - stop) * left) <= left + right


def test_the_crop_is_one_sided_for_a_causal_codec() -> None:
    assert views.valid_crop(4096, 3000, 0, 2048) == (2048, 4096)
    assert views.valid_crop(4096, 0, 3000, 2048) == (0, 2048)


def test_bands_drop_what_the_codec_could_not_know() -> None:
    bands = torch.arange(4096.0).expand(1, 16, 4096)
    audio = torch.zeros(1, 1, 65536)
    reconstruction = Reconstruction(audio, audio, bands, bands, receptive_field=(3000, 2500))
    target, estimate = views.Bands()(reconstruction)
    assert target[0, 0, 0] == 3000 // 16 and target[0, 0, -1] == 4095 - 157
    assert estimate.shape == target.shape
    assert views.Bands(valid_crop=False)(reconstruction)[0].shape[-1] == 4096


def test_stereo_crops_as_many_frames_as_mono() -> None:
    bands = torch.zeros(1, 32, 4096)
    audio = torch.zeros(1, 2, 65536)
    reconstruction = Reconstruction(audio, audio, bands, bands, receptive_field=(3200, 1600))
    assert views.Bands()(reconstruction)[0].shape[-1] == 4096 - 200 - 100


def test_each_weight_counts_once() -> None:
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert WeightedSum({"a": 20.0, "b": 1.0})(losses) == 43
    assert WeightedSum({"a": 20.0, "b": 1.0}, applied_twice=("a",))(losses) == 803


def test_losses_and_weights_must_agree() -> None:
    combiner = WeightedSum({"kl": 1.0, "fulband": 1.0, "adversarial": 1.0})
    with pytest.raises(ValueError, match=r"no weight for the losses fullband; no loss for the weights fulband"):
        combiner.declare(["kl", "fullband", "adversarial"])
    with pytest.raises(ValueError, match="no weight for the losses fullband"):
        combiner({"fullband": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="applied_twice names feature_matching"):
        WeightedSum({"kl": 1.0}, applied_twice=("feature_matching",))


def test_a_loss_of_a_later_phase_may_be_absent() -> None:
    combiner = WeightedSum({"kl": 1.0, "adversarial": 1.0})
    combiner.declare(["kl", "adversarial"])
    assert combiner({"kl": torch.tensor(0.5)}) == 0.5
