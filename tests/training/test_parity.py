"""Three consecutive updates of RAVE v2, beside acids-rave 2.3.1's own (tests/fixtures/README.md)."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from rave_tools import config
from rave_tools.runs import RunDirectory
from rave_tools.training import run
from rave_tools.training.schedules import LinearDecay, RAVESchedule

from .toys import Segments, ToyData, to_batch

FIXTURES = Path(__file__).parents[1] / "fixtures"
OVERRIDES = [
    "CAPACITY = 4",
    "LATENT_SIZE = 8",
    "PHASE_1_DURATION = 10",
    "BETA_WARMUP = 6",
    "MultiPeriodDiscriminator.periods = [2, 3]",
    "MultiScaleDiscriminator.n_discriminators = 2",
    "AudioDistanceV1.log_epsilon = 1e-1",
    "generator/optim.Adam.eps = 1e-4",
    "discriminator/optim.Adam.eps = 1e-4",
]
NAMES = {
    "regularization": "kl",
    "loss_dis": "loss_discriminator",
    "pred_real": "score_real",
    "pred_fake": "score_fake",
}
COMPATIBLE = ["v2", "rave_double_weighting"]


def load(name):
    return torch.load(FIXTURES / f"{name}.pt", weights_only=True)


def ours(peer_key):
    return ("adversary." if peer_key.startswith("discriminator.") else "codec.") + peer_key


def prepared(peer, files=COMPATIBLE):
    """Our wrapper with the peer's weights, receptive field and latent noise."""
    wrapper = config.load(files, OVERRIDES).build_argument(run.train, "wrapper")
    state = {ours(k): v for k, v in peer["initial"].items() if ours(k) in wrapper.state_dict()}
    absent = {ours(k) for k in peer["initial"]} - set(state)
    assert absent <= {"codec.encoder.warmed_up", "codec.receptive_field"}, absent
    wrapper.load_state_dict({**wrapper.state_dict(), **state})
    wrapper._receptive_field = tuple(peer["receptive_field"])
    wrapper._latent_noise = lambda audio: peer["steps"][wrapper.counters.batches]["gaussian"]
    return wrapper


class Peers(ToyData):
    def __init__(self, peer):
        super().__init__()
        self.peer, self.n_signal = peer, peer["x"].shape[-1]

    def audio(self, index):
        return self.peer["x"].float().roll(1000 * index, -1)

    def val_dataloader(self):
        return Segments([to_batch(self.audio(0)[:1])])


class Watch(Callback):
    """Losses and gradients of each batch."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def on_train_batch_end(self, trainer, wrapper, *_):
        self.losses.append(wrapper.means.read())
        parameters = dict(wrapper.named_parameters())
        self.gradients.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})


def go(tmp_path, wrapper, peer, updates):
    watch = Watch()
    run.train(
        wrapper=wrapper, data=Peers(peer), run=RunDirectory(tmp_path).create(), config_text="# parity",
        max_steps=updates, val_every=10**9, accelerator="cpu", progress=False, estimate=False, callbacks=[watch],
    )  # fmt: skip
    return watch


def compare(watch, wrapper, peer):
    """Losses to 1e-5, gradients to 1e-4.

    That is the peer's own rounding error against float64; after the first update, what Adam's division makes of it.
    """
    for index, (step, losses, gradients) in enumerate(zip(peer["steps"], watch.losses, watch.gradients, strict=True)):
        for name, value in step["logged"].items():
            mine = NAMES.get(name, name)
            if mine in losses:
                weight = wrapper.combiner.weights[mine] ** 0.5 if mine == "feature_matching" else 1.0
                assert weight * losses[mine] == pytest.approx(float(value), rel=1e-5, abs=1e-7), (name, step["updates"])
        for name, gradient in step["gradients"].items():
            error = (gradients[ours(name)] - gradient).abs().max() / gradient.abs().max()
            assert error < (0.05 if index else 1e-4), (name, index, error)
    state = wrapper.state_dict()
    for name, value in peer["final"].items():
        if ours(name) in state and value.is_floating_point() and "latent" not in name and name != "fidelity":
            moved = (value - peer["initial"][name]).square().mean().sqrt()
            difference = (state[ours(name)] - value).square().mean().sqrt()
            assert difference <= 1e-6 + 0.05 * moved, (name, difference, moved)


def test_representation_learning_takes_the_peers_steps(tmp_path):
    peer = load("training_phase_1")
    wrapper = prepared(peer)
    watch = go(tmp_path, wrapper, peer, 3)
    assert wrapper.counters.batches == 3
    compare(watch, wrapper, peer)


def test_adversarial_phase_takes_the_peers_steps(tmp_path):
    peer = load("training_phase_2")
    wrapper = prepared(peer)
    wrapper.schedule = RAVESchedule(0, 4)
    # The peer counts the discriminator's batch in the decay and in the ramp as well.
    decay, ramp = LinearDecay(1.0, 0.1, 10), wrapper.betas["kl"]
    wrapper.players[0].learning_rate = lambda updates: decay(updates + 1)
    wrapper.betas["kl"] = lambda updates: ramp(updates + 1)
    watch = go(tmp_path, wrapper, peer, 2)
    assert wrapper.counters.as_dict()["discriminator_updates"] == 1
    assert "fullband_spectral_distance" not in watch.losses[0]
    compare(watch, wrapper, peer)


def test_by_default_a_weight_counts_once():
    peer = load("training_phase_2")
    single, double = prepared(peer, ["v2"]), prepared(peer)
    assert single.combiner.weights["feature_matching"] == 20
    assert double.combiner.weights["feature_matching"] == 400
