"""Published codecs, made by their own programs, become ours: same codes, same sound, and training goes on."""

import json
from math import nan

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn
from torch.package import PackageExporter

from rave_tools import config
from rave_tools.cli import opening
from rave_tools.cli.main import main
from rave_tools.importing import seanet
from rave_tools.importing.weights import with_old_weight_norm
from rave_tools.runs import open_run
from rave_tools.training import run as training

from .codecs_of_others import FOLDER, FORMS, folded, load, old, parametrized, unpacked, write


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bring(family, checkpoint, ours, *words):
    return main(["import", "--from", family, "--checkpoint", str(checkpoint), "--output", str(ours), *words])


def exported(fixture, path, **changes):
    """A file as AudioCraft's export writes it: best weights and configuration as YAML."""
    content = {"best_state": fixture["state"], "xp.cfg": fixture["config"], "version": "1.3.0", "exported": True}
    return write(path, {**content, **changes})


def hub(fixture, folder, name="model.safetensors", **changes):
    """A folder as transformers' save_pretrained writes it."""
    write(folder / name, fixture["state"])
    (folder / "config.json").write_text(json.dumps({**json.loads(fixture["config"]), **changes}))
    return folder


def unpack(name, path):
    path.write_bytes(unpacked(name))
    return path


def module_of(state):
    """A network of plain modules with these weights."""
    root = nn.Module()
    for name, value in state.items():
        module, (*parts, last) = root, name.split(".")
        for part in parts:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(last, nn.Parameter(value))
    return root


def package(fixture, path):
    """An archive as descript-audio-codec saves itself by torch.package, without the source code."""
    network = module_of(fixture["state"])
    network.metadata = fixture["metadata"]
    with PackageExporter(str(path)) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("DAC", "DAC.pth", network)
        exporter.save_pickle("DAC", "DAC.metadata", network.metadata)
    return path


def saved_dac(tmp_path):
    """Descript's file as plain values: state_dict and metadata, and what it sounds like."""
    return {**torch.load(unpack("dac_weights.pth", tmp_path / "saved.pth"), weights_only=True), **load("dac")}


def dac_fixture(tmp_path):
    content = saved_dac(tmp_path)
    return {**content, "state": content["state_dict"]}


# Name -> (fixture, family, how its file is written into a folder).
FILES = {
    "encodec 24 kHz, th": ("encodec_24khz", lambda f, p: write(p / "encodec_24khz-d7cc33bc.th", f["state"])),
    "encodec 24 kHz, parametrized, pt": ("encodec_24khz", lambda f, p: write(p / "a.pt", parametrized(f["state"]))),
    "encodec 24 kHz, folded, safetensors": (
        "encodec_24khz", lambda f, p: write(p / "a.safetensors", folded(f["state"])),
    ),
    "encodec 48 kHz, th": ("encodec_48khz", lambda f, p: write(p / "encodec_48khz-7e698e3e.th", f["state"])),
    "encodec 48 kHz, safetensors": ("encodec_48khz", lambda f, p: write(p / "a.safetensors", f["state"])),
    "audiocraft, export": ("audiocraft", lambda f, p: exported(f, p / "compression_state_dict.bin")),
    "audiocraft, checkpoint": ("audiocraft", lambda f, p: unpack("audiocraft_checkpoint.th", p / "checkpoint.th")),
    "audiocraft, folded": (
        "audiocraft", lambda f, p: exported(f, p / "a.bin", best_state=folded(f["state"])),
    ),
    "audiocraft, causal": ("audiocraft_causal", lambda f, p: exported(f, p / "a.bin")),
    "audiocraft, causal, folded": (
        "audiocraft_causal", lambda f, p: exported(f, p / "a.bin", best_state=folded(f["state"])),
    ),
    "audiocraft, stereo, normalised": ("audiocraft_stereo", lambda f, p: exported(f, p / "a.bin")),
    "transformers 24 kHz, safetensors": ("transformers_24khz", lambda f, p: hub(f, p / "a")),
    "transformers 24 kHz, old, bin": (
        "transformers_24khz", lambda f, p: hub({**f, "state": old(f["state"])}, p / "a", "pytorch_model.bin"),
    ),
    "transformers 32 kHz": ("transformers_32khz", lambda f, p: hub(f, p / "a")),
    "transformers 48 kHz": ("transformers_48khz", lambda f, p: hub(f, p / "a")),
    "transformers dac": ("transformers_dac", lambda f, p: hub(f, p / "a")),
    "dac, weights": ("dac", lambda f, p: unpack("dac_weights.pth", p / "weights.pth")),
    "dac, package": ("dac", lambda f, p: package(f, p / "package.pth")),
    "dac, parametrized, safetensors": (
        "dac", lambda f, p: write(p / "a.safetensors", parametrized(f["state"])),
    ),
}  # fmt: skip
MORE = {"dac, parametrized, safetensors": ["--config", "{folder}/dac.yaml"]}
SHOWN = ("encodec 24 kHz, th", "encodec 48 kHz, th", "audiocraft, checkpoint", "transformers 32 kHz", "dac, weights")
"""One of each, for what takes longer."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Name of a file -> (fixture, folder of the run made of it); each is imported once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("codec")
            fixture_name, writer = FILES[name]
            fixture = dac_fixture(folder) if fixture_name == "dac" else load(fixture_name)
            (folder / "dac.yaml").write_text("sample_rate: 24000\n")
            words = [word.format(folder=folder) for word in MORE.get(name, [])]
            family = fixture_name.partition("_")[0]
            assert bring(family, writer(fixture, folder), folder / "ours", *words) == 0
            made[name] = fixture, folder / "ours"
        return made[name]

    return make


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_codes_and_sound_are_the_same(imported, name):
    fixture, folder = imported(name)
    codec, _ = opening.open_codec(str(folder))
    latent = codec.encode(fixture["x"], deterministic=True)
    assert torch.equal(latent.codes, fixture["codes"].long())
    if "scale" in fixture:
        torch.testing.assert_close(latent.scale, fixture["scale"])
    assert fixture["audio"].std() > 0.03 and len(fixture["codes"].unique()) > 8
    torch.testing.assert_close(codec.decode_latent(latent), fixture["audio"], rtol=0, atol=1e-5)
    latent.z = codec.dequantize(fixture["codes"].long())
    torch.testing.assert_close(codec.decode_latent(latent), fixture["audio"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SHOWN)
def test_the_file_stands_alone_and_every_binding_is_read(imported, name):
    _, folder = imported(name)
    text = (folder / "config.gin").read_text()
    assert "\ninclude " not in text
    loaded = config.load([], text=text)
    loaded.check_unused(training.train, ["db_path"])
    assert loaded.operative(training.train) == text == open_run(folder).config_text
    assert "NOT TAKEN" not in (folder / "import.txt").read_text()


def test_rates_and_kinds_arrive(imported):
    for name, rate, channels in (
        ("encodec 24 kHz, th", 24000, 1), ("encodec 48 kHz, th", 48000, 2), ("audiocraft, export", 16000, 1),
        ("audiocraft, stereo, normalised", 16000, 2), ("transformers 32 kHz", 32000, 1), ("dac, weights", 24000, 1),
        ("transformers dac", 16000, 1),
    ):  # fmt: skip
        codec, opened = opening.open_codec(str(imported(name)[1]))
        assert (codec.sample_rate, codec.channels, codec.hop) == (rate, channels, 8)
        assert opened.step == 0 and opened.facts["imported"]["checkpoint"]
    codec, _ = opening.open_codec(str(imported("transformers 48 kHz")[1]))
    assert codec.renormalize and codec.segment == 1.0 and codec.overlap == 0.01 and codec.bandwidths == (120.0,)
    codec, _ = opening.open_codec(str(imported("transformers 24 kHz, safetensors")[1]))
    codec.set_bandwidth(30.0)
    assert codec.num_codebooks == 2


@pytest.mark.parametrize("name", SHOWN)
@torch.no_grad()
def test_fewer_codebooks_are_the_first_ones(imported, name):
    fixture, folder = imported(name)
    codec, _ = opening.open_codec(str(folder))
    codec.set_num_codebooks(2)
    assert torch.equal(codec.encode(fixture["x"], deterministic=True).codes, fixture["codes"][:, :2].long())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(4)
    for rate in (16000, 24000, 32000, 48000):
        noise = generator.normal(0, 0.1, (2 * rate, 2 if rate == 48000 else 1))
        soundfile.write(folder / f"{rate}.wav", np.clip(noise, -1, 1), rate)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_runs_play_and_training_goes_on(imported, name, sounds, tmp_path):
    _, folder = imported(name)
    codec, before = opening.open_codec(str(folder))
    sound = sounds / f"{codec.sample_rate}.wav"
    played = tmp_path / "played"
    words = ["--input", str(sound), "--out_path", str(played), "--noprogress"]
    assert main(["generate", "--model", str(folder), *words]) == 0
    heard, rate = soundfile.read(next(played.glob("*.wav")))
    assert rate == codec.sample_rate and len(heard) == 2 * rate and np.isfinite(heard).all() and heard.std() > 0.01
    db, run = tmp_path / "db", tmp_path / "run"
    window = 2**14
    data = ["--input_path", str(sound), "--output_path", str(db), "--num_signal", str(2 * window)]
    assert main(["preprocess", *data, "--sampling_rate", str(rate), "--channels", str(codec.channels)]) == 0
    run.mkdir()
    for item in folder.rglob("*"):
        if item.is_file():
            (run / item.relative_to(folder)).parent.mkdir(exist_ok=True)
            (run / item.relative_to(folder)).write_bytes(item.read_bytes())
    words = ["--db_path", str(db), "--n_signal", str(window), "--batch", "1", "--workers", "0", "--accelerator", "cpu"]
    assert main(["train", "--resume", str(run), *words, "--max_steps", "1", "--noestimate"]) == 0
    after = open_run(run)
    assert after.step == 1
    moved = [name for name, value in before.part("codec").items() if not torch.equal(value, after.part("codec")[name])]
    assert any(name.startswith("encoder.") for name in moved) and any(name.startswith("decoder.") for name in moved)
    for name, value in before.part("codec").items():
        if not name.startswith("quantizer."):  # codebooks of few counts follow a batch in leaps
            torch.testing.assert_close(after.part("codec")[name], value, rtol=0.01, atol=0.01)


def test_musicgens_folder_gives_its_codec(tmp_path, capsys):
    fixture = load("transformers_32khz")
    state = {f"audio_encoder.{name}": value for name, value in fixture["state"].items()}
    state["decoder.embed.weight"] = torch.zeros(3, 2)
    inner = {"model_type": "musicgen", "audio_encoder": json.loads(fixture["config"])}
    folder = hub({"state": state, "config": json.dumps(inner)}, tmp_path / "musicgen")
    assert bring("transformers", folder, tmp_path / "ours") == 0
    count = len(fixture["state"])
    assert f"only its codec (audio_encoder) is taken, {count} of {count + 1} tensors" in capsys.readouterr().out


def test_run_and_checkpoint_both_name_the_file(tmp_path, capsys):
    fixture = load("encodec_24khz")
    write(tmp_path / "theirs" / "encodec_24khz.th", fixture["state"])
    write(tmp_path / "theirs" / "encodec_24khz_2.th", fixture["state"])
    words = ["import", "--from", "encodec", "--output", str(tmp_path / "ours")]
    assert main([*words, "--run", str(tmp_path / "theirs")]) == 1
    assert "several files of weights, encodec_24khz.th, encodec_24khz_2.th" in capsys.readouterr().err
    assert main([*words, "--run", str(tmp_path / "theirs"), "--checkpoint", "khz_2"]) == 0
    assert open_run(tmp_path / "ours").facts["imported"]["checkpoint"] == "encodec_24khz_2.th"
    assert main(["import", "--from", "encodec", "--output", str(tmp_path / "other")]) == 1
    assert "give --checkpoint FILE" in capsys.readouterr().err


def test_what_is_assumed_is_said_and_can_be_overridden(tmp_path, capsys):
    theirs = write(tmp_path / "a.th", load("encodec_24khz")["state"])
    assert bring("encodec", theirs, tmp_path / "ours", "--override", "SAMPLING_RATE = 22050") == 0
    said = capsys.readouterr().out
    assert "are assumed: 24000 Hz, causal, padding by reflection" in said and "CompressionModel, 22050 Hz" in said
    assert opening.open_codec(str(tmp_path / "ours"))[0].sample_rate == 22050


@torch.no_grad()
def test_a_bare_file_takes_a_configuration_of_audiocraft_or_transformers(tmp_path):
    fixture = load("audiocraft_causal")
    theirs = write(tmp_path / "a.th", fixture["state"])
    (tmp_path / "a.yaml").write_text(fixture["config"])
    for family in ("encodec", "audiocraft"):
        assert bring(family, theirs, tmp_path / family, "--config", str(tmp_path / "a.yaml")) == 0
        codec, _ = opening.open_codec(str(tmp_path / family))
        torch.testing.assert_close(
            codec(fixture["x"]), fixture["audio"][..., : fixture["x"].shape[-1]], rtol=0, atol=1e-5
        )


def test_a_continuous_codec_of_audiocraft(tmp_path):
    fixture = load("audiocraft")
    settings = yaml.safe_load(fixture["config"])
    settings["encodec"]["quantizer"] = "no_quant"
    state = {name: value for name, value in fixture["state"].items() if not name.startswith("quantizer.")}
    theirs = exported({"state": state, "config": yaml.safe_dump(settings)}, tmp_path / "a.bin")
    assert bring("audiocraft", theirs, tmp_path / "ours") == 0
    codec, _ = opening.open_codec(str(tmp_path / "ours"))
    assert codec.num_codebooks == 0 and codec.latent_dim == 12


def test_generate_points_to_the_import(tmp_path, sounds, capsys):
    words = ["--input", str(sounds), "--out_path", str(tmp_path / "o")]
    for name, path in (
        ("encodec", write(tmp_path / "a.th", load("encodec_24khz")["state"])),
        ("audiocraft", exported(load("audiocraft"), tmp_path / "b.bin")),
        ("dac", unpack("dac_weights.pth", tmp_path / "c.pth")),
    ):
        assert main(["generate", "--model", str(path), *words]) == 1
        said = capsys.readouterr().err
        assert f"--checkpoint {path}" in said and name in said and said.count("\n") == 1


def test_bandwidths_that_cannot_be_are_said(tmp_path, capsys):
    theirs = hub(load("transformers_24khz"), tmp_path / "a", target_bandwidths=[3.0, 15.0, 60.0, 90.0])
    assert bring("transformers", theirs, tmp_path / "ours") == 0
    assert "NOT TAKEN: the bandwidths 3, 90 kb/s: 4 codebooks of 32 codes at 3000 Hz" in capsys.readouterr().out
    assert opening.open_codec(str(tmp_path / "ours"))[0].bandwidths == (15.0, 60.0)


@torch.no_grad()
def test_odd_ratios_of_dac_lose_samples_only_when_asked_to(tmp_path, capsys):
    fixture = torch.load(FOLDER.parents[1] / "dac.pt", weights_only=True)["odd"]
    theirs = write(tmp_path / "a.pth", fixture["state"])
    (tmp_path / "a.json").write_text('{"sample_rate": 16000}')
    words = ["--config", str(tmp_path / "a.json")]
    assert bring("dac", theirs, tmp_path / "whole", *words) == 0
    assert "the original loses the last samples of a sound, here they are kept" in capsys.readouterr().out
    assert bring("dac", theirs, tmp_path / "ours", *words, "--override", "DACDecoder.whole = False") == 0
    length = fixture["audio"].shape[-1]
    for folder, compared in (("ours", length), ("whole", length - 600)):
        codec, _ = opening.open_codec(str(tmp_path / folder))
        latent = codec.encode(fixture["x"], deterministic=True)
        assert torch.equal(latent.codes, fixture["codes"].long())
        heard = codec.decode_latent(latent)
        assert heard.shape == fixture["x"].shape
        torch.testing.assert_close(heard[..., :compared], fixture["audio"][..., :compared], rtol=0, atol=1e-5)


def test_what_has_no_counterpart_is_listed(tmp_path, capsys):
    fixture = load("audiocraft")
    settings = yaml.safe_load(fixture["config"])
    settings["seanet"]["attention"] = 3
    settings["rvq"]["rotation"] = True
    theirs = exported({**fixture, "config": yaml.safe_dump(settings)}, tmp_path / "a.bin")
    assert bring("audiocraft", theirs, tmp_path / "ours") == 0
    said = capsys.readouterr().out
    assert "NOT TAKEN: seanet.encoder.attention = 3" in said and "NOT TAKEN: rvq.rotation = True" in said
    odd = hub(load("transformers_dac"), tmp_path / "b", attention=3)
    assert bring("transformers", odd, tmp_path / "b_ours") == 0
    said = capsys.readouterr().out
    assert "NOT TAKEN: attention = 3 in" in said and said.count("NOT TAKEN") == 1
    assert "section optim of" in (tmp_path / "ours" / "import.txt").read_text()


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def less(state, key):
    assert key in state
    return {name: value for name, value in state.items() if name != key}


def codec_file(path, spoil=lambda state: state, name="encodec_24khz"):
    return write(path, spoil(load(name)["state"]))


def reworded(folder, before, after):
    fixture = load("audiocraft")
    assert before in fixture["config"]
    return exported({**fixture, "config": fixture["config"].replace(before, after)}, folder / "a.bin")


WRONG = {
    "a file that is not there": ("encodec", lambda p: p / "none.th", "there is no file"),
    "an empty file": ("encodec", lambda p: write_bytes(p / "a.th", b""), "is damaged or no checkpoint (it is empty)"),
    "a text": ("dac", lambda p: write_bytes(p / "a.pth", b"not weights at all"), "it is no torch archive"),
    "a truncated file": ("encodec", lambda p: cut(codec_file(p / "a.th")), "truncated at"),
    "a truncated safetensors file": ("encodec", lambda p: cut(codec_file(p / "a.safetensors")), "is truncated at"),
    "a truncated package": (
        "dac", lambda p: cut(package(dac_fixture(p), p / "a.pth")), "a.pth is damaged or no checkpoint (truncated at",
    ),
    "a missing weight": (
        "encodec", lambda p: codec_file(p / "a.th", lambda s: less(s, "encoder.model.0.conv.conv.bias")),
        "codec.encoder.model.0.conv.conv.bias is missing",
    ),
    "a missing kernel": (
        "encodec", lambda p: codec_file(p / "a.th", lambda s: less(s, "encoder.model.0.conv.conv.weight_v")),
        "the encoder has no weight conv.conv.* in its layer 0",
    ),
    "no decoder": (
        "encodec", lambda p: codec_file(p / "a.th", lambda s: {k: v for k, v in s.items() if k[0] != "d"}),
        "has no decoder of a SEANet",
    ),
    "no codebooks": (
        "encodec", lambda p: codec_file(p / "a.th", lambda s: {k: v for k, v in s.items() if k[0] != "q"}),
        "has 0 codebooks",
    ),
    "a weight too many": (
        "encodec", lambda p: codec_file(p / "a.th", lambda s: {**s, "quantizer.extra": torch.zeros(2)}),
        "codec.quantizer.extra (2,) is left over",
    ),
    "weights that are no numbers": (
        "encodec",
        lambda p: codec_file(p / "a.th", lambda s: {**s, "encoder.model.0.conv.conv.bias": torch.full((4,), nan)}),
        "encoder.model.0.conv.conv.bias holds numbers that are not finite",
    ),
    "dac as encodec": ("encodec", lambda p: unpack("dac_weights.pth", p / "a.pth"), "import it with --from dac"),
    "encodec as dac": ("dac", lambda p: codec_file(p / "a.th"), "import it with --from encodec"),
    "transformers as encodec": (
        "encodec", lambda p: codec_file(p / "a.th", name="transformers_24khz"), "import it with --from transformers",
    ),
    "audiocraft as encodec": (
        "encodec", lambda p: exported(load("audiocraft"), p / "a.bin"), "import it with --from audiocraft",
    ),
    "bare weights as audiocraft": ("audiocraft", lambda p: codec_file(p / "a.th"), "has no configuration (xp.cfg)"),
    "a reference to others": (
        "audiocraft", lambda p: write(p / "a.bin", {"pretrained": "facebook/encodec_32khz", "exported": True}),
        "only the name of others: facebook/encodec_32khz",
    ),
    "a language model": (
        "audiocraft",
        lambda p: exported({"state": {"emb.weight": torch.zeros(2)}, "config": "solver: musicgen\n"}, p / "a.bin"),
        "is of MusicGen (solver musicgen), a model over codes and no codec",
    ),
    "another quantiser": (
        "audiocraft", lambda p: reworded(p, ": rvq", ": fsq"),
        "the quantiser fsq has no counterpart here",
    ),
    "a configuration of other weights": (
        "audiocraft", lambda p: reworded(p, "n_filters: 4", "n_filters: 8"),
        "n_filters is 8 there and 4 in the weights",
    ),
    "a reference that leads nowhere": (
        "audiocraft", lambda p: reworded(p, "${channels}", "${chanels}"),
        "refers to ${chanels}, which it does not have",
    ),
    "audiocraft's weights without configuration": (
        "encodec", lambda p: codec_file(p / "a.th", name="audiocraft"), "Give its configuration with --config FILE",
    ),
    "no config.json": (
        "transformers", lambda p: codec_file(p / "model.safetensors", name="transformers_24khz"),
        "say where it is with --config",
    ),
    "another model of transformers": (
        "transformers", lambda p: hub(load("transformers_24khz"), p / "a", model_type="bert"), "is of the model bert",
    ),
    "a config.json of other weights": (
        "transformers", lambda p: hub(load("transformers_24khz"), p / "a", hidden_size=16),
        "dimension is 16 there and 12",
    ),
    "weights in several files": (
        "transformers", lambda p: write_bytes(p / "model.safetensors.index.json", b"{}").parent,
        "keeps its weights in several files",
    ),
    "an unknown rate": (
        "dac", lambda p: write(p / "a.pth", dac_fixture(p)["state"]), "does not say its sample rate",
    ),
    "arguments of other weights": (
        "dac", lambda p: write(p / "a.pth", {**saved_dac(p), "metadata": {"kwargs": {"decoder_dim": 32}}}),
        "DECODER_CAPACITY is 32 there and 16 in the weights",
    ),
    "our own checkpoint": (
        "dac", lambda p: write(p / "a.ckpt", {"rave_tools": {}, "state_dict": {}}),
        "is a checkpoint of rave_tools already",
    ),
}  # fmt: skip


def write_bytes(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_gets_one_line(case, tmp_path, capsys):
    family, make, message = WRONG[case]
    (tmp_path / "theirs").mkdir()
    assert bring(family, make(tmp_path / "theirs"), tmp_path / "ours") == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_shows_the_same_sizes(form, tmp_path):
    state = with_old_weight_norm(FORMS[form](load("audiocraft_causal")["state"]))
    for half in ("encoder", "decoder"):
        net = seanet.net(state, half, tmp_path)
        assert (net.channels, net.dimension, net.n_filters, net.n_residual_layers) == (1, 12, 4, 2)
        assert (net.ratios, net.lstm, net.true_skip, net.compress) == ([4, 2], 2, True, 2)
        assert (net.norm, net.disable_norm_outer_blocks) == (("none", 0) if form == "folded" else ("weight_norm", 2))


def test_fixtures_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.glob("*.xz")]
    assert len(sizes) >= 12 and max(sizes) < 300_000 and sum(sizes) < 1_500_000
