"""Configurations: how files are found, what is refused and in which words, what is built, what a run keeps."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rave_tools import config, config_files
from rave_tools.config import ConfigError
from rave_tools.config_values import Names, did_you_mean

TOYS = '''
class Encoder:
    def __init__(self, size, *, capacity=8, ratios=(2, 2)):
        self.size, self.capacity, self.ratios = size, capacity, ratios

class Wide(Encoder):
    pass

class Codec:
    def __init__(self, encoder, *, rate=1, channels=1):
        if channels < 1:
            raise ValueError(f"channels is {channels}, at least 1 is needed")
        self.encoder, self.rate, self.channels = encoder(size=3), rate, channels

class Wrapper:
    def __init__(self, codec, loss):
        self.codec, self.loss = codec, loss

def difference(a, b, *, relative=False):
    return (a - b) / a if relative else a - b

def train(wrapper, db_path, *, max_steps=10, rate=1e-4, betas=(0.5, 0.9)):
    return wrapper, db_path, max_steps, rate
'''

BASE = """\
# A small model for tests.
from __gin__ import dynamic_registration
import config_toys

RATE = 44100
CAPACITY = 4
CODEC = @config_toys.Codec()
config_toys.Codec:
    encoder = @variational/config_toys.Encoder
    rate = %RATE
variational/config_toys.Encoder.capacity = %CAPACITY
loss/config_toys.difference.relative = True
config_toys.Wrapper:
    codec = %CODEC
    loss = @loss/config_toys.difference
config_toys.train.wrapper = @config_toys.Wrapper()
"""

HEAD = "from __gin__ import dynamic_registration\nimport config_toys\n"


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("toys")
    (folder / "config_toys.py").write_text(TOYS)
    sys.path.insert(0, str(folder))
    import config_toys

    return config_toys


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toys: ModuleType) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(BASE)
    return tmp_path


def refused(toys: ModuleType, names: list[str], overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(names, overrides or []).call(toys.train, db_path="db")
    return str(caught.value)


# Building


def test_call_injects_and_the_caller_wins(folder: Path, toys: ModuleType) -> None:
    wrapper, db_path, max_steps, rate = config.load(["base"], ["config_toys.train.rate = 3e-4"]).call(
        toys.train, db_path="db", max_steps=3)
    assert type(wrapper) is toys.Wrapper and type(wrapper.codec) is toys.Codec
    assert (wrapper.codec.rate, wrapper.codec.encoder.capacity) == (44100, 4)
    assert (db_path, max_steps, rate) == ("db", 3, 3e-4)
    assert wrapper.loss(2.0, 1.0) == 0.5, "a function called later keeps its scope"


def test_overrides_reach_macros_defined_in_files(folder: Path, toys: ModuleType) -> None:
    loaded = config.load(["base"], ["CAPACITY = 32", "RATE = 16000"])
    codec = loaded.build("CODEC")
    assert (codec.encoder.capacity, codec.rate, loaded.macro("RATE")) == (32, 16000, 16000)


@pytest.mark.parametrize("left", [
    "variational/config_toys.Encoder.ratios", "variational/Encoder.ratios", "Encoder.ratios"])
def test_overrides_need_no_imports(folder: Path, left: str) -> None:
    assert config.load(["base"], [f"{left} = [4, 4]"]).build("CODEC").encoder.ratios == [4, 4]


def test_a_plain_call_is_untouched_by_the_configuration(folder: Path, toys: ModuleType) -> None:
    config.load(["base"], ["Encoder.ratios = [7]"]).build("CODEC")
    assert toys.Encoder(3).ratios == (2, 2)


def test_every_build_is_new_and_two_configurations_do_not_mix(folder: Path) -> None:
    small, large = config.load(["base"]), config.load(["base"], ["CAPACITY = 64"])
    first, second = small.build("CODEC"), large.build("CODEC")
    assert small.build("CODEC") is not first
    assert (first.encoder.capacity, second.encoder.capacity, small.build("CODEC").encoder.capacity) == (4, 64, 4)


def test_build_argument(folder: Path, toys: ModuleType) -> None:
    assert isinstance(config.load(["base"]).build_argument(toys.train, "wrapper"), toys.Wrapper)
    with pytest.raises(ConfigError, match="binds no train.rate"):
        config.load(["base"]).build_argument(toys.train, "rate")


# Files


def test_names_resolve_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = folder / "shipped" / "configs"
    for path in ("models/one.gin", "models/two.gin", "old/two.gin", "base/deep/three.gin"):
        (shipped / path).parent.mkdir(parents=True, exist_ok=True)
        (shipped / path).write_text(f"# {path}\n")
    monkeypatch.setattr(config_files, "shipped_folder", lambda: shipped)
    for name in ("one", "one.gin", "models/one", "models/one.gin", "configs/models/one.gin"):
        assert config_files.find(name) == shipped / "models/one.gin"
    assert config_files.find("deep/three") == shipped / "base/deep/three.gin"
    assert config_files.find(str(folder / "base.gin")) == folder / "base.gin"
    with pytest.raises(ConfigError, match=r"'two' means several files: configs/models/two.gin and configs/old/two.gin"):
        config_files.find("two")
    (folder / "one.gin").write_text("# mine\n")
    assert config_files.find("one").resolve() == folder / "one.gin", "the working directory comes first"
    assert config_files.description(shipped / "models/one.gin") == "models/one.gin"
    with pytest.raises(ConfigError, match="Did you mean three?"):
        config_files.find("thre")


def test_a_folder_of_the_same_name_is_no_file(folder: Path) -> None:
    (folder / "base").mkdir()
    assert config_files.find("base").is_file()


def test_includes_resolve_beside_the_file_and_apply_in_place(folder: Path, toys: ModuleType) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.gin").write_text("CAPACITY = 5\n")
    (folder / "sub" / "outer.gin").write_text("include 'base.gin'\nCAPACITY = 6\ninclude 'inner'\nRATE = 8000\n")
    loaded = config.load(["sub/outer.gin"])
    assert (loaded.macro("CAPACITY"), loaded.macro("RATE")) == (5, 8000)


def test_includes_in_a_circle(folder: Path, toys: ModuleType) -> None:
    (folder / "a.gin").write_text("include 'b'\n")
    (folder / "b.gin").write_text("include 'a'\n")
    assert "include each other: a.gin -> b.gin -> a.gin" in refused(toys, ["a"])


def test_the_shipped_folder_exists() -> None:
    assert config_files.shipped_folder().name == "configs"


# What is refused


@pytest.mark.parametrize(("override", "message"), [
    ("CAPCITY = 3", "nothing reads CAPCITY (--override 'CAPCITY = 3'). Did you mean CAPACITY?"),
    ("variatonal/Encoder.capacity = 3", "Did you mean variational/config_toys.Encoder.capacity?"),
    ("config_toys.Encoder.capacity = 3", "Did you mean variational/config_toys.Encoder.capacity?"),
    ("Encoder.capcity = 3", "config_toys.Encoder has no parameter 'capcity'. Did you mean capacity?"),
    ("config_toys.Encdr.capacity = 3", "config_toys has no 'Encdr'. Did you mean Encoder?"),
    ("Codecc.rate = 1", "no class or function 'Codecc' in this configuration. Did you mean config_toys.Codec?"),
    ("CODEC = @config_toys.Codc()", "config_toys has no 'Codc'. Did you mean Codec?"),
    ("CAPACITY = %RAT", "CAPACITY uses %RAT, which is not defined. Did you mean RATE?"),
    ("RATE = %gin.REQUIRED", "RATE is required (--override 'RATE = %gin.REQUIRED'): give it with --override 'RATE"),
    ("Encoder.size = 4", "config_toys.Encoder.size has no effect: whatever builds Encoder supplies size itself."),
    ("train.db_path = 'x'", "the command sets it, use its flag"),
    ("Wide.capacity = 3", "no class or function 'Wide'"),
    ("config_toys.Wide.capacity = 3", "Wide is not used by this configuration."),
    ("Codec.channels = 0", "channels is 0, at least 1 is needed (building Codec"),
    ("CAPACITY = big", "write text in quotes"),
    ("CAPACITY = [1,", "a bracket or a quote is not closed"),
    ("CAPACITY 3", "expected ':' or '='"),
    ("include 'base'", "only bindings"),
    ("", "empty"),
])
def test_a_wrong_override_is_one_line(folder: Path, toys: ModuleType, override: str, message: str) -> None:
    text = refused(toys, ["base"], [override])
    assert message in text and "\n" not in text


@pytest.mark.parametrize(("text", "message"), [
    ("include 'bse'\n", "mine.gin:1: no configuration 'bse' in"),
    ("\nimport os\n", "mine.gin:2: begin the file with: from __gin__ import dynamic_registration"),
    (HEAD + "import config_toyz\n", "mine.gin:3: there is no module 'config_toyz'"),
    (HEAD + "from rave_tools import confg\n", "there is no module 'rave_tools.confg'. Did you mean config"),
    (HEAD + "from rave_tools.errors import UserError\n", "import rave_tools.errors and write errors.UserError"),
    (HEAD + "\nconfig_toys.Codec:\n    rat = 3\n", "mine.gin:5: config_toys.Codec has no parameter 'rat'. Did you"),
    (HEAD + "config_toy.Codec.rate = 3\n",
     "mine.gin:3: 'config_toy' in 'config_toy.Codec' is not imported here. Did you mean config_toys?"),
    (HEAD + "config_toys.Codec.rate = %RATTE\n", "mine.gin:3: config_toys.Codec.rate uses %RATTE, which is not"),
    (HEAD + "config_toys.Codec.rate == 3\n", "mine.gin:3:"),
    (HEAD + "config_toys.train.rate = 3\nSPED = 3\n", "nothing reads SPED (mine.gin:4)"),
    (HEAD + "varational/config_toys.Encoder.ratios = [3]\n", "nothing reads varational/config_toys.Encoder.ratios"),
])
def test_a_wrong_file_is_named_with_its_line(folder: Path, toys: ModuleType, text: str, message: str) -> None:
    (folder / "mine.gin").write_text(text)
    found = refused(toys, ["base", "mine"])
    assert message in found and "\n" not in found


def test_a_negative_size_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = config.load(["encodec_24khz"], ["CAPACITY = -4"])
    with pytest.raises(ConfigError, match=r"must be positive; negative here: CAPACITY = -4 \(--override") as caught:
        loaded.build("CODEC")
    assert "SEANetEncoder" in str(caught.value)


def test_several_unread_bindings_are_listed_together(folder: Path, toys: ModuleType) -> None:
    text = refused(toys, ["base"], ["CAPCITY = 3", "RTE = 4"])
    assert "CAPCITY" in text and "RTE" in text and "Did you mean RATE?" in text


def test_a_missing_part_says_what_to_add(folder: Path, toys: ModuleType) -> None:
    (folder / "mixin.gin").write_text(HEAD + "config_toys.train.rate = 1.0\n")
    assert "train needs wrapper, and no configuration binds it" in refused(toys, ["mixin"])


def test_a_mixin_may_replace_what_a_base_set_up(folder: Path, toys: ModuleType) -> None:
    """variational/Encoder.capacity of the base is not read any more, and that is no error."""
    (folder / "wide.gin").write_text(HEAD + "config_toys.Codec.encoder = @wide/config_toys.Wide\n"
                                     "wide/config_toys.Wide.capacity = %CAPACITY\n")
    wrapper, *_ = config.load(["base", "wide"]).call(toys.train, db_path="db")
    assert type(wrapper.codec.encoder) is toys.Wide
    assert "Encoder is not used" in refused(toys, ["base", "wide"], ["variational/config_toys.Encoder.capacity = 3"])


def test_a_mixin_that_changes_nothing_is_refused(folder: Path, toys: ModuleType,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files, "is_shipped", lambda path: path.name != "base.gin")
    (folder / "idle.gin").write_text(HEAD + "config_toys.Wide.capacity = 3\n")
    assert "Wide is not used" in refused(toys, ["base", "idle"])
    (folder / "idle.gin").write_text(HEAD + "config_toys.Wide.capacity = 3\nconfig_toys.Wide.ratios = [3]\n")
    assert refused(toys, ["base", "idle"]) == "idle.gin does not fit this configuration, where Wide is not used."
    (folder / "half.gin").write_text(HEAD + "config_toys.Wide.capacity = 3\nCAPACITY = 9\n")
    wrapper, *_ = config.load(["base", "half"]).call(toys.train, db_path="db")
    assert wrapper.codec.encoder.capacity == 9, "a shipped mixin may serve several models"


def test_a_mixin_before_its_model_is_refused(folder: Path, toys: ModuleType) -> None:
    """The model would set everything back, in silence."""
    (folder / "more.gin").write_text("CAPACITY = 9\nRATE = 8000\n")
    message = refused(toys, ["more", "base"])
    assert message.startswith("more.gin has no effect: base.gin:6 sets CAPACITY after it; give the model first")
    assert config.load(["base", "more"]).macro("CAPACITY") == 9
    (folder / "more.gin").write_text("CAPACITY = 9\nEXTRA = 1\n")
    assert config.load(["more", "base"]).macro("EXTRA") == 1


def test_a_binding_overridden_later_is_not_unread(folder: Path, toys: ModuleType) -> None:
    config.load(["base"], ["CAPACITY = 3", "CAPACITY = 5"]).call(toys.train, db_path="db")


def test_errors_of_the_entrance_itself_pass_untouched(folder: Path, toys: ModuleType) -> None:
    def entrance(wrapper: object) -> None:
        raise KeyError("mine")

    loaded = config.load(["base"])
    with pytest.raises(ConfigError, match="needs wrapper"):
        loaded.call(entrance)
    with pytest.raises(KeyError, match="mine"):
        loaded.bindings.clear()
        loaded.stages = ()
        loaded.call(entrance, wrapper=1)


# What a run keeps


def test_the_operative_text_rebuilds_the_same_objects(folder: Path, toys: ModuleType) -> None:
    (folder / "stereo.gin").write_text(HEAD + "CHANNELS = 2\nconfig_toys.Codec.channels = %CHANNELS\n")
    loaded = config.load(["base", "stereo"], ["Encoder.ratios = [[1, 2], [3]]", "train.betas = (0.1, -1e-3)"])
    text = loaded.operative(toys.train, max_steps=7, db_path="db")
    again = config.load([], text=text)
    wrapper, _, max_steps, _ = again.call(toys.train, db_path="elsewhere")
    assert (wrapper.codec.channels, wrapper.codec.encoder.ratios, max_steps) == (2, [[1, 2], [3]], 7)
    assert again.operative(toys.train, max_steps=7, db_path="db") == text, "writing it again changes nothing"
    wrapper, *_ = config.load(["base"], ["CAPACITY = 5"], text=text).call(toys.train, db_path="db")
    assert wrapper.codec.encoder.capacity == 5, "a resumed run takes files and overrides on top"


def test_the_operative_text_leaves_out_what_is_not_used(folder: Path, toys: ModuleType) -> None:
    (folder / "wide.gin").write_text(HEAD + "config_toys.Codec.encoder = @wide/config_toys.Wide\n")
    assert "variational" not in config.load(["base", "wide"]).operative(toys.train)


def test_long_values_and_strings_survive_writing(folder: Path) -> None:
    value = {"a": list(range(60)), "b": ["it's \"quoted\"", None, True, -2.5, 1e-7, ()]}
    loaded = config.load(["base"], [f"THING = {value!r}"])
    assert config.load([], text=loaded.text()).macro("THING") == value


def test_differences_say_what_changed(folder: Path) -> None:
    before, after = config.load(["base"]), config.load(["base"], ["CAPACITY = 9", "NEW = 1"])
    assert config.differences(before, after) == [
        "CAPACITY = 9 (was 4; --override 'CAPACITY = 9')", "NEW = 1 (new, --override 'NEW = 1')"]
    assert config.differences(before, before) == []


def test_the_merged_text_names_the_origin_of_every_binding(folder: Path) -> None:
    text = config.load(["base"], ["RATE = 8000"]).text()
    assert "RATE = 8000  # --override 'RATE = 8000'" in text
    assert "CAPACITY = 4  # base.gin:6" in text
    assert config.load([], text=text).macro("RATE") == 8000


def test_settable_lists_what_no_binding_sets(folder: Path, toys: ModuleType) -> None:
    free = {target.path: names for target, names in config.load(["base"]).settable(toys.train).items()}
    assert free["Codec"] == {"channels": 1}
    assert "capacity" not in free["Encoder"] and "ratios" in free["Encoder"]
    assert "Wide" not in free


def test_modules_with_the_same_last_name_get_different_ones() -> None:
    names = Names(["a.noise", "b.noise", "c.b.noise", "noise"])
    assert len(set(names.short.values())) == 4


def test_did_you_mean_ignores_case_and_finds_last_parts() -> None:
    assert did_you_mean("capacity", ["CAPACITY"]) == " Did you mean CAPACITY?"
    assert did_you_mean("Encoder", ["nets.deep.Encoder"]) == " Did you mean nets.deep.Encoder?"
    assert did_you_mean("zebra", ["CAPACITY"]) == ""
