"""Whole runs of a toy: phases, exact resume, checkpoints, interruption, guards."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rave_tools.errors import UserError
from rave_tools.runs import RunDirectory, load_checkpoint, open_run
from rave_tools.training.cadence import TrainingStopped
from rave_tools.training.run import train

from .toys import ToyData, toy_wrapper


class Losses(Callback):
    """Every batch's losses, exactly."""

    def __init__(self) -> None:
        self.rows = []

    def on_train_batch_end(self, trainer, wrapper, *_):
        self.rows.append((wrapper.counters.as_dict(), wrapper.means.read()))


def go(folder, *, wrapper=None, resume=None, data=None, callbacks=(), report=lambda line: None, **changes):
    wrapper = wrapper or toy_wrapper()
    run = RunDirectory(folder).create()
    arguments = dict(max_steps=12, val_every=5, save_every=4, accelerator="cpu", progress=False, estimate=False)
    losses = Losses()
    outcome = train(
        wrapper=wrapper,
        data=data or ToyData(),
        run=run,
        config_text="# toy",
        resume=load_checkpoint(run.checkpoint_path(resume)) if resume else None,
        report=report,
        callbacks=[losses, *callbacks],
        **{**arguments, **changes},
    )
    return wrapper, losses.rows, outcome


def same_weights(first, second):
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_both_phases_run_and_only_the_due_weights_move(tmp_path):
    snapshots = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, wrapper, *_):
            parts = (wrapper.codec.encoder, wrapper.codec.decoder, wrapper.adversary)
            snapshots.append([torch.cat([p.detach().flatten() for p in part.parameters()]).clone() for part in parts])

    wrapper, rows, outcome = go(tmp_path, callbacks=[Watch()])
    assert outcome.step == 12
    assert wrapper.counters.as_dict() == {
        "generator_updates": 12,
        "discriminator_updates": 4,
        "batches": 16,
        "skipped": 0,
    }
    moved = "".join(
        "".join("edD"[i] for i in range(3) if not torch.equal(before[i], after[i])) + " "
        for before, after in zip(snapshots, snapshots[1:], strict=False)
    )
    assert moved == "ed " * 3 + "D d d D d d D d d D d d "
    assert "fullband_distance" in rows[0][1] and "adversarial" not in rows[0][1]
    assert "score_real" in rows[4][1] and "fullband_distance" not in rows[4][1]
    assert {"adversarial", "feature_matching", "kl", "loss"} <= set(rows[5][1])


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole, rows, _ = go(tmp_path / "whole", ema=0.9)
    _, before, _ = go(tmp_path / "split", max_steps=stop, ema=0.9)
    torch.manual_seed(99)  # whatever the global generator does elsewhere
    second, after, _ = go(tmp_path / "split", resume="last", ema=0.9)
    assert [row[1] for row in before + after] == [row[1] for row in rows]
    same_weights(whole, second)
    ends = [open_run(tmp_path / name, which="last") for name in ("whole", "split")]
    assert ends[0].step == ends[1].step == 12
    for name, weight in ends[0].extra["ema"].items():
        assert torch.equal(weight, ends[1].extra["ema"][name]), name


def test_validation_does_not_disturb_the_training(tmp_path):
    first, rows, _ = go(tmp_path / "often", val_every=1)
    second, others, _ = go(tmp_path / "seldom", val_every=11, estimate=True)
    assert [row[1] for row in rows] == [row[1] for row in others]
    same = {name: value for name, value in first.state_dict().items() if "latent" not in name and "fidel" not in name}
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in same.items())


def test_resume_says_where_it_goes_on(tmp_path):
    lines = []
    go(tmp_path, max_steps=6)
    go(tmp_path, resume="last", report=lines.append)
    assert any("resuming at step 6, phase 2" in line for line in lines)


def test_a_resumed_run_hides_nothing_that_was_shown_before_it(tmp_path):
    go(tmp_path, max_steps=5)
    go(tmp_path, resume="last", max_steps=10)
    shown = EventAccumulator(str(tmp_path)).Reload().Scalars("validation/distance")
    assert {event.step for event in shown} == {5, 10}


def test_checkpoints_last_best_and_kept(tmp_path):
    _, _, outcome = go(tmp_path)
    names = {path.stem for path in (tmp_path / "checkpoints").glob("*.ckpt")}
    assert names == {"last", "best", "step_00000004", "step_00000008", "step_00000012"}
    content = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert content["config"] == "# toy"
    assert content["rave_tools"]["generator_updates"] == 12
    assert content["rave_tools"]["best_distance"] == pytest.approx(outcome.best)
    assert not content["state_dict"]["codec.fidelity"].eq(0).all()


def test_first_checkpoint_comes_with_the_first_validation(tmp_path):
    class Crash(Callback):
        def on_train_batch_end(self, trainer, wrapper, *_):
            if wrapper.counters.generator_updates == 3:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        go(tmp_path, val_every=2, save_every=1000, callbacks=[Crash()])
    assert open_run(tmp_path, which="last").step == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, signum):
    class Press(Callback):
        def on_train_batch_start(self, trainer, wrapper, *_):
            if wrapper.counters.batches == 6:
                os.kill(os.getpid(), signum)

    handler = signal.getsignal(signum)
    with pytest.raises(TrainingStopped) as stopped:
        go(tmp_path, val_every=1000, save_every=1000, callbacks=[Press()])
    assert stopped.value.signum == signum
    assert open_run(tmp_path, which="last").extra["rave_tools"]["batches"] == 7
    assert signal.getsignal(signum) == handler
    whole, _, _ = go(tmp_path / "whole", val_every=1000)
    resumed, _, _ = go(tmp_path, resume="last", val_every=1000)
    same_weights(whole, resumed)


def test_a_signal_that_also_kills_a_loader_still_saves(tmp_path):
    class Killed(ToyData):
        def audio(self, index):
            if index == 7:
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("DataLoader worker exited unexpectedly")
            return super().audio(index)

    with pytest.raises(TrainingStopped) as stopped:
        go(tmp_path, data=Killed(), val_every=1000, save_every=1000)
    assert stopped.value.saved
    whole, _, _ = go(tmp_path / "whole", val_every=1000)
    resumed, _, _ = go(tmp_path, resume="last", val_every=1000)
    same_weights(whole, resumed)


def test_a_full_disk_is_reported_and_the_training_goes_on(tmp_path, monkeypatch):
    lines = []
    save = RunDirectory.save

    def full(self, name, content):
        if content["rave_tools"]["generator_updates"] == 5:
            raise UserError("cannot write: the disk is full")
        return save(self, name, content)

    monkeypatch.setattr(RunDirectory, "save", full)
    _, _, outcome = go(tmp_path, save_every=1000, report=lines.append)
    assert outcome.step == 12
    assert sum("the disk is full" in line for line in lines) == 1


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    def quiet():
        wrapper = toy_wrapper(phase_1=100)
        wrapper.codec.noisy = False
        wrapper._latent_noise = lambda audio: torch.zeros(audio.shape[0], 6, 8)
        return wrapper

    class Halves(ToyData):
        def audio(self, index):
            return super().audio(index // 2)[index % 2 :: 2]

    large, _, _ = go(tmp_path / "large", wrapper=quiet(), max_steps=4)
    small, _, _ = go(tmp_path / "small", wrapper=quiet(), data=Halves(), accumulate=2, max_steps=4)
    assert small.counters.batches == 8 and large.counters.batches == 4
    for (name, a), b in zip(large.state_dict().items(), small.state_dict().values(), strict=True):
        if "latent" not in name and "fidel" not in name:
            torch.testing.assert_close(a, b, msg=name)


class Poison(ToyData):
    """Not-a-number in some batches."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def audio(self, index):
        return super().audio(index) * (float("nan") if index in self.bad else 1.0)


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path):
    lines = []
    wrapper, rows, outcome = go(tmp_path, data=Poison({2, 5}), report=lines.append)
    assert outcome.skipped == 2 and outcome.step == 12 and wrapper.counters.batches == 18
    assert all(torch.isfinite(p).all() for p in wrapper.parameters())
    assert rows[2][0]["generator_updates"] == rows[1][0]["generator_updates"] == 2


def test_too_many_of_them_stop_the_run_and_name_the_loss(tmp_path):
    with pytest.raises(UserError, match="20 updates in a row.*fullband_distance"):
        go(tmp_path, data=Poison(range(3, 1000)), max_steps=500)


def test_another_model_cannot_be_resumed(tmp_path):
    go(tmp_path, max_steps=3)
    with pytest.raises(UserError, match="adversary"):
        go(tmp_path, resume="last", wrapper=toy_wrapper(adversary=None, schedule=None))


def test_a_finished_run_says_so(tmp_path):
    go(tmp_path, max_steps=3)
    with pytest.raises(UserError, match="--max_steps"):
        go(tmp_path, resume="last", max_steps=3)


def test_changed_learning_rate_takes_effect_on_resume(tmp_path):
    from .toys import adam

    go(tmp_path, max_steps=3)
    wrapper, _, _ = go(tmp_path, resume="last", wrapper=toy_wrapper(generator_optimizer=adam(1e-5)))
    assert wrapper.learning_rates()[0] == pytest.approx(1e-6)


def test_smoke_test_does_a_few_steps_only(tmp_path):
    _, _, outcome = go(tmp_path, smoke_test=True, max_steps=10**6)
    assert outcome.step == 2
    assert open_run(tmp_path, which="best").step in (1, 2)


def test_beta_of_a_penalty_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="betas has kll, but the codec's penalties are kl"):
        go(tmp_path, wrapper=toy_wrapper(betas={"kll": lambda updates: 1.0}))


def test_window_that_is_no_whole_number_of_frames(tmp_path):
    data = ToyData()
    data.n_signal = 65
    with pytest.raises(UserError, match="--n_signal 65.*64"):
        go(tmp_path, data=data)


def test_bf16_trains_with_float32_losses(tmp_path):
    wrapper, rows, _ = go(tmp_path, precision="bf16-mixed")
    _, exact, _ = go(tmp_path / "exact")
    assert wrapper.counters.generator_updates == 12
    assert rows[0][1]["loss"] == pytest.approx(exact[0][1]["loss"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in wrapper.parameters())


def test_no_adversary_means_one_phase(tmp_path):
    wrapper, rows, _ = go(tmp_path, wrapper=toy_wrapper(adversary=None, schedule=None))
    assert wrapper.counters.batches == 12
    assert wrapper.phase.name == "reconstruction"
