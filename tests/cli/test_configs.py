"""``rave_tools configs``, and every configuration that is shipped."""

from pathlib import Path

import pytest

from rave_tools import config, config_files, config_graph
from rave_tools.cli import configs as command
from rave_tools.cli.main import main

SHIPPED = config_files.shipped_files()
WHOLE = [path.stem for path in SHIPPED if path.parent.name in ("models", "recipes")]
# A mixin is tried on the first of these models that it fits.
HOSTS = ("v2", "v2_small", "v1", "v2_with_augs")
MIXINS = [path.stem for path in SHIPPED if path.parent.name in ("bottlenecks", "discriminators", "losses", "mixins")]
# What is written for two mixins at once: causal spectra.
COMBINED = [["v2", "hybrid", "causal"]]
AUGMENTATIONS = [path.stem for path in SHIPPED if path.parent.name == "augment"]
SMALL = ["CAPACITY = 4"]


def test_list_names_every_file_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "list"]) == 0
    text = capsys.readouterr().out
    for path in SHIPPED:
        description = config_files.description(path)
        assert description, f"{path} has no letter-head"
        assert any(line.split()[:1] == [path.stem] and description in line for line in text.splitlines())
    assert main(["configs"]) == 0 and capsys.readouterr().out == text


def test_bare_names_are_unique() -> None:
    for path in SHIPPED:
        assert config_files.find(path.stem) == path


@pytest.mark.parametrize("name", WHOLE)
def test_a_shipped_model_builds_and_rebuilds_from_its_text(name: str) -> None:
    entrance = command.entrance()
    loaded = config.load([name], SMALL)
    assert not loaded.unread(entrance)
    wrapper = loaded.build_argument(entrance, "wrapper")
    again = config.load([], text=loaded.operative(entrance)).build_argument(entrance, "wrapper")
    shapes = {key: value.shape for key, value in wrapper.state_dict().items()}
    assert shapes and shapes == {key: value.shape for key, value in again.state_dict().items()}
    codec = loaded.build("CODEC")
    assert (codec.sample_rate, codec.channels) == (loaded.macro("SAMPLING_RATE"), loaded.macro("CHANNELS"))


def test_every_shipped_binding_is_read_by_some_model() -> None:
    """A misspelt scope in a file that several models share would be excused in each of them."""
    entrance = command.entrance()
    written, read = set(), set()
    for names in [*([name] for name in WHOLE), *([host, mixin] for host in HOSTS for mixin in MIXINS), *COMBINED]:
        loaded = config.load(names)
        roots = loaded.roots(entrance)
        for _, stage in loaded.stages:
            written |= {str(binding.origin) for binding in stage.values()}
            read |= {str(stage[key].origin) for key in config_graph.reachable(stage, roots)[0]}
    facts = {origin for origin in written - read if _line(origin).split("=")[0].strip().isupper()}
    assert not written - read - facts


def _line(origin: str) -> str:
    name, _, line = origin.rpartition(":")
    return (config_files.shipped_folder().parent / name).read_text(encoding="utf-8").splitlines()[int(line) - 1]


@pytest.mark.parametrize("name", MIXINS)
def test_a_shipped_mixin_fits_a_model(name: str) -> None:
    errors = []
    for host in HOSTS:
        try:
            assert "fine" in command.check([host, name], SMALL)
            return
        except config.ConfigError as error:
            errors.append(str(error))
    pytest.fail("\n".join(errors))


def test_shipped_augmentations_build() -> None:
    for name in AUGMENTATIONS:
        assert callable(config.load([name]).build("AUGMENTATION"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_shipped_model_takes_two_channels_and_keeps_them(name: str) -> None:
    """acids-rave's exported configuration lost n_channels; here the run's text alone gives it back."""
    loaded = config.load([name], [*SMALL, "CHANNELS = 2"])
    assert config.load([], text=loaded.operative(command.entrance())).build("CODEC").channels == 2


def test_show_names_origins_and_what_can_still_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "show", "v2.gin", "--override", "CAPACITY = 8"]) == 0
    text = capsys.readouterr().out
    assert "CAPACITY = 8  # --override 'CAPACITY = 8'" in text
    assert "SAMPLING_RATE = 44100  # configs/base/rave.gin:" in text
    assert "# What can still be set, with its default:" in text
    assert config.load([], text=text).macro("CAPACITY") == 8, "what is shown can be loaded"
    assert main(["configs", "show", "v2", "--nodefaults"]) == 0
    assert "still be set" not in capsys.readouterr().out


def test_check_counts_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "check", "v2_small"]) == 0
    assert "14,570,888 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["check", "v2", "--override", "CAPCITY = 3"], "Did you mean CAPACITY?"),
    (["check", "causal"], "it is a mixin; check it on a model"),
    (["check", "v1", "wasserstein"], "is a mixin given on a model that it is not made for?"),
    (["show"], "needs a file"),
    (["chek", "v2"], "knows list, show and check, not 'chek'"),
    (["show", "v22"], "Did you mean v2"),
])
def test_what_is_wrong_is_said_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_check_of_a_persons_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("# Mine.\ninclude 'v2_small'\nCAPACITY = 4\nSAMPLNG_RATE = 48000\n")
    assert main(["configs", "check", "mine"]) == 1
    assert "SAMPLNG_RATE (mine.gin:4). Did you mean SAMPLING_RATE?" in capsys.readouterr().err


def test_show_says_how_late_the_codec_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "show", "brave", "--override", "CAPACITY = 4", "--nodefaults"]) == 0
    text = capsys.readouterr().out
    codec = config.load(["brave"], SMALL).build("CODEC")
    _, info = codec.streaming()
    line = next(line for line in text.splitlines() if "Latency" in line)
    assert line.startswith(f"# Latency: {1000 * info.latency / codec.sample_rate:.1f} ms ({info.latency} samples)")
    assert main(["configs", "show", "causal"]) == 0
    assert "Latency" not in capsys.readouterr().out, "a mixin describes no codec"
    assert main(["configs", "show", "rave_v2"]) == 0
    assert "Latency: unknown, the codec cannot be built: " in capsys.readouterr().out
