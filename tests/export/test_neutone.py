"""Neutone models: what the plug-in reads and hears."""

import json
import sys

import pytest
import torch

from rave_tools.errors import UserError
from rave_tools.export.neutone import Card, buffer_sizes, export_neutone, require_sdk, sliders
from rave_tools.export.prepare import ExportOptions, assemble


@pytest.fixture(scope="module")
def sdk():
    """The SDK pulls in torchaudio, which loads only beside the torch that it was built for."""
    try:
        return require_sdk()
    except UserError as error:
        pytest.skip(f"needs the extra 'neutone' and a torchaudio made for this torch: {error}")


CASES = {
    "mono": ({}, {}, ["latent 1", "latent 2", "latent 3", "temperature"]),
    "stereo with noise, causal": (
        {"channels": 2, "noise": True, "padding": "causal"}, {}, ["latent 1", "latent 2", "temperature", "noise"],
    ),
    "mono to stereo at twice the rate, one latent": (
        {}, {"channels": 2, "sample_rate": 88200, "latent_size": 1}, ["latent 1", "temperature"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_model_plays_in_a_process_without_the_sdk(case, sdk, tmp_path, make_codec):
    codec, options, names = CASES[case]
    card = Card("small", authors=["somebody"])
    path = tmp_path / "model.nm"
    delivered = export_neutone(make_codec(**codec), path, options=ExportOptions(**options), card=card, time_it=False)
    assert delivered.verification.passed and len(delivered.verification.checks) == 8
    assert [file.name for file in tmp_path.iterdir()] == ["model.nm"]
    extra = {"metadata.json": ""}
    module = torch.jit.load(str(path), _extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert [metadata["neutone_parameters"][f"p{i + 1}"]["name"] for i in range(len(names))] == names
    assert metadata["native_sample_rates"] == [delivered.facts.sample_rate]
    assert metadata["native_buffer_sizes"] == buffer_sizes(delivered.facts)
    assert metadata["model_authors"] == ["somebody"] and metadata["is_input_mono"] == (delivered.facts.channels == 1)
    # The delay is told in samples of the host, which the SDK leaves at 48 kHz in the file.
    module.set_daw_sample_rate_and_buffer_size(delivered.facts.sample_rate, delivered.facts.hop)
    assert module.calc_model_delay_samples() == delivered.facts.latency
    assert module.get_metadata_json() and not module.is_resampling()


def test_sliders_and_buffers_follow_the_model(make_codec):
    facts = assemble(make_codec(noise=True), ExportOptions(latent_size=1)).facts
    assert sliders(facts) == ["latent 1", "temperature", "noise"]
    assert buffer_sizes(facts) == [64, 128, 256, 512, 1024, 2048, 4096, 8192]


def test_a_missing_sdk_is_said_with_the_extra(tmp_path, make_codec, monkeypatch):
    monkeypatch.setitem(sys.modules, "neutone_sdk", None)
    with pytest.raises(UserError, match=r"pip install 'rave_tools\[neutone\]'"):
        export_neutone(make_codec(), tmp_path / "model.nm", options=ExportOptions(), card=Card("small"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("codec", "options", "card", "message"),
    [
        ({}, {"streaming": False}, {}, "--nostreaming means nothing to --format neutone"),
        ({}, {"buffered": True}, {}, "--buffered means nothing to --format neutone"),
        ({}, {"channels": 4}, {}, "one or two channels, this model gives 4"),
        ({}, {}, {"name": "n" * 31}, "--name: 31 characters, and Neutone shows at most 30"),
        ({}, {}, {"tags": ["a" * 16]}, "--tag: 16 characters, and Neutone shows at most 15"),
        ({}, {}, {"authors": []}, "wants a name and an author"),
    ],
)
def test_what_the_plugin_cannot_honour_is_refused(codec, options, card, message, tmp_path, make_codec):
    with pytest.raises(UserError, match=message):
        export_neutone(
            make_codec(**codec),
            tmp_path / "model.nm",
            options=ExportOptions(**options),
            card=Card(**{"name": "small", **card}),
        )
