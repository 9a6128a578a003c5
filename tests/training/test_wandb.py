"""Weights & Biases beside TensorBoard: chosen in words, kept offline without a login, never the end of a training."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rave_tools.errors import UserError
from rave_tools.training.wandb import choose_mode

from .test_run import go


class Service(ModuleType):
    """Stands in for the package: keeps what it is given, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0
        self.fail_at = None
        self.Audio = lambda data, sample_rate: ("audio", len(data), sample_rate)
        self.Image = lambda data: ("image", data.shape)

    def init(self, **options):
        if self.fail_at == "init":
            raise ConnectionError("no route to host")
        self.started.append(options)
        return SimpleNamespace(id=options["id"] or "abc123", log=self._log, finish=self._finish)

    def _log(self, values, step):
        if self.fail_at == "log":
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def _finish(self):
        self.finished += 1


@pytest.fixture
def service(monkeypatch, tmp_path):
    made = Service()
    monkeypatch.setitem(sys.modules, "wandb", made)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return made


def test_what_is_chosen(service, monkeypatch, tmp_path):
    said = []
    assert choose_mode("off", said.append) is None
    assert choose_mode("offline", said.append) == "offline" and not said
    assert choose_mode("auto", said.append) == "offline" and "no login found" in said.pop()
    with pytest.raises(UserError, match="wandb login"):
        choose_mode("online", said.append)
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert choose_mode("auto", said.append) == choose_mode("online", said.append) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode("auto", said.append) is None and "WANDB_MODE" in said.pop()
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert choose_mode("auto", said.append) is None and "not installed" in said.pop()
    with pytest.raises(UserError, match=r"rave_tools\[wandb\]"):
        choose_mode("offline", said.append)


def test_a_run_shows_its_numbers_sounds_and_pictures_and_goes_on_under_its_name(service, tmp_path):
    go(tmp_path, wandb="offline", facts={"flags": {"batch": 4}})
    (start,) = service.started
    assert start["mode"] == "offline" and start["name"] == tmp_path.name and start["config"]["flags"] == {"batch": 4}
    steps = [step for step, _ in service.logged]
    assert steps == sorted(steps) and steps[-1] == 12
    shown = {name for _, values in service.logged for name in values}
    assert {"run/steps_per_second", "validation/distance", "optimisation/learning_rate"} <= shown
    assert ("audio", 128, 8000) in [v.get("reconstruction_then_original/0") for _, v in service.logged]
    assert service.finished == 1
    go(tmp_path, wandb="offline", resume="last", max_steps=13)
    assert service.started[1]["id"] == "abc123" and service.started[1]["resume"] == "allow"


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_service_that_fails_is_said_once_and_the_training_ends_well(service, tmp_path, where):
    service.fail_at = where
    said = []
    _, _, outcome = go(tmp_path, wandb="offline", report=said.append)
    assert outcome.step == 12
    assert sum("no route to host" in line for line in said) == 1
