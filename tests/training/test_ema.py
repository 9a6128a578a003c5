import pytest
import torch

from rave_tools.runs import RunDirectory, open_run
from rave_tools.training.ema import EMA
from rave_tools.training.run import train

from .toys import ToyData, toy_wrapper


def test_average_follows_generator_updates_only_and_is_heard_in_validation(tmp_path):
    from lightning.pytorch import Callback

    history, heard = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, wrapper, *_):
            history.append((wrapper.counters.generator_updates, wrapper.codec.encoder.weight.detach().clone()))

        def on_validation_start(self, trainer, wrapper):
            heard.append(wrapper.codec.encoder.weight.detach().clone())

    wrapper = toy_wrapper(phase_1=3)
    start = wrapper.codec.encoder.weight.detach().clone()
    train(
        wrapper=wrapper,
        data=ToyData(),
        run=RunDirectory(tmp_path).create(),
        config_text="#",
        max_steps=6,
        val_every=100,
        accelerator="cpu",
        ema=0.5,
        progress=False,
        estimate=False,
        report=lambda line: None,
        callbacks=[Watch()],
    )
    average, seen = start, 0
    for updates, weight in history:
        if updates > seen:
            average, seen = 0.5 * average + 0.5 * weight, updates
    torch.testing.assert_close(heard[-1], average)
    averaged = open_run(tmp_path, ema=True).state_dict["codec.encoder.weight"]
    torch.testing.assert_close(averaged, average)
    live = open_run(tmp_path).state_dict["codec.encoder.weight"]
    assert torch.equal(live, wrapper.codec.encoder.weight) and torch.equal(live, history[-1][1])


def test_impossible_factor_is_refused():
    with pytest.raises(ValueError, match="--ema"):
        EMA(1.0)
