"""Beginning with the weights of another run: what was taken is said, and nothing taken is an error."""

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.training import summary

from .test_run import go
from .toys import toy_wrapper


def begin(folder, weights, **changes):
    lines = []
    wrapper, _, _ = go(folder, init_from=weights, max_steps=1, report=lines.append, **changes)
    return wrapper, "\n".join(lines)


def test_everything_that_fits_is_taken_and_counted(tmp_path):
    weights = {name: value + 1 for name, value in toy_wrapper().state_dict().items()}
    _, text = begin(tmp_path, weights)
    total = len(weights)
    assert f"initial weights: {total} of {total} tensors taken, 0 not; 100.0 % of the" in text
    assert "  codec.encoder: 2 of 2 weights taken" in text and "  adversary.discriminator: 8 of 8 weights taken" in text
    assert "not taken" not in text


def test_what_does_not_fit_is_named(tmp_path):
    weights = toy_wrapper().state_dict()
    weights["codec.encoder.bias"] = torch.zeros(5)
    weights["codec.other"] = torch.zeros(1)
    del weights["codec.decoder.bias"]
    _, text = begin(tmp_path, weights)
    assert "codec.encoder: 1 of 2 weights taken" in text and "codec.decoder: 1 of 2 weights taken" in text
    assert "not taken: codec.encoder.bias is (5,) in the checkpoint, (12,) in the model" in text
    assert "not taken: codec.other is not in the model" in text
    assert "not taken: codec.decoder.bias is not in the checkpoint" in text


def test_weights_really_come_along(tmp_path):
    weights = {name: value.clone() for name, value in toy_wrapper().state_dict().items()}
    weights["codec.decoder.bias"] += 3
    wrapper, _ = begin(tmp_path, weights)
    assert (wrapper.codec.decoder.bias - weights["codec.decoder.bias"]).abs().max() < 0.1, "one update away"


def test_nothing_taken_is_an_error(tmp_path):
    """The filter bank fits, as it does for any model with as many bands; but nothing that was learnt does."""
    frozen = {name: value for name, value in toy_wrapper().state_dict().items() if "pqmf" in name}
    weights = {**frozen, "generator.net.0.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"--init_from: none of the 13 weights that this training moves"):
        begin(tmp_path, weights)


def test_a_codec_that_does_not_stream_says_so():
    text = summary.latency_report(toy_wrapper().codec)
    assert text.startswith("Latency: unknown, it does not stream: ")
