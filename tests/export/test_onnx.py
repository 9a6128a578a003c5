"""ONNX files, played by onnxruntime as a host would."""

import json
import sys

import pytest
import torch
from torch.nn import functional as F

from rave_tools import config
from rave_tools.errors import UserError
from rave_tools.export.nn_tilde import FACTS_FILE
from rave_tools.export.onnx import OPSET, export_onnx, load_onnx
from rave_tools.export.prepare import ExportOptions, assemble
from rave_tools.export.pure import make_steps
from rave_tools.export.stateless import play_step
from tests.export.small import make_noise_loud

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
pytest.importorskip("onnxscript", reason="needs the extra 'export'")


@pytest.fixture(scope="module")
def codec(make_codec):
    return make_noise_loud(make_codec(noise=True, channels=2))


@pytest.fixture(scope="module")
def written(tmp_path_factory, codec):
    """Any number of hops and rows, two channels in, three out."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return export_onnx(codec, path, options=ExportOptions(channels=3), time_it=False)


def shapes(ports):
    return {
        port.name: [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim] for port in ports
    }


@pytest.mark.slow
def test_ports_have_names_and_sizes_that_a_host_can_read(written):
    sizes = written.state_sizes
    expected = {
        "forward": (
            {"audio": ["batch", 2, "64*frames"], "knobs": [2], "state": ["batch", sizes["forward"]]},
            {"audio_out": ["batch", 3, "64*frames"], "state_out": ["batch", sizes["forward"]]},
        ),
        "encode": (
            {"audio": ["batch", 2, "64*frames"], "knobs": [2], "state": ["batch", sizes["encode"]]},
            {"latents_out": ["batch", 4, "frames"], "state_out": ["batch", sizes["encode"]]},
        ),
        "decode": (
            {"latents": ["batch", 4, "frames"], "knobs": [2], "state": ["batch", sizes["decode"]]},
            {"audio_out": ["batch", 3, "64*frames"], "state_out": ["batch", sizes["decode"]]},
        ),
    }
    for method, path in written.paths.items():
        model = onnx.load(path)
        assert (shapes(model.graph.input), shapes(model.graph.output)) == expected[method]
        assert {opset.version for opset in model.opset_import} == {OPSET}
        assert {opset.domain for opset in model.opset_import} == {""}
        assert not {node.op_type for node in model.graph.node} & {"DFT", "If", "Loop", "Scan"}
        props = {entry.key: entry.value for entry in model.metadata_props}
        assert (props["latency"], props["hop"], props["sample_rate"]) == (str(written.facts.latency), "64", "44100")
        facts = json.loads(props[FACTS_FILE])
        assert facts["method"] == method and facts["state_size"] == sizes[method] and facts["target_channels"] == 3
    assert sorted(path.name for path in written.paths["forward"].parent.iterdir()) == [
        "model.onnx", "model_decode.onnx", "model_encode.onnx",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_loop_over_onnxruntime_equals_the_plain_model_at_the_latency(written, codec):
    """The loop of docs/export.md, against the codec itself: no code of the export takes part."""
    session = onnxruntime.InferenceSession(str(written.paths["forward"]), providers=["CPUExecutionProvider"])
    facts = written.facts
    generator = torch.Generator().manual_seed(8)
    audio = 0.3 * torch.randn(1, 2, 64 * 120, generator=generator)
    state = torch.zeros(1, written.state_sizes["forward"]).numpy()
    knobs = torch.zeros(2).numpy()
    outputs, start = [], 0
    for hops in [1, 16, 3, 1, 7, 2, 5, 1, 1, 8] * 2:
        block = audio[..., start : start + 64 * hops].numpy()
        y, state = session.run(["audio_out", "state_out"], {"audio": block, "knobs": knobs, "state": state})
        outputs.append(torch.from_numpy(y))
        start += 64 * hops
    stream = torch.cat(outputs, -1)
    expected = assemble(codec, ExportOptions(channels=3)).reference(F.pad(audio, (facts.offset, 64 - facts.offset)))
    late = facts.latency - facts.offset
    settled = facts.latency + 64 * 40
    error = (stream[..., settled:] - expected[..., settled - late : stream.shape[-1] - late]).abs().max()
    assert error < 1e-4 * expected.abs().max()
    assert stream[..., settled:].shape[-1] > 64 * 20


@pytest.mark.slow
def test_noise_and_temperature_are_those_of_the_model(written, codec):
    """Random numbers differ, so levels are compared."""
    step = make_steps(assemble(codec, ExportOptions(channels=3)))["forward"]
    run = load_onnx(written.paths["forward"])
    silence = torch.zeros(1, written.state_sizes["forward"])
    x = torch.zeros(1, 2, 64 * 400)

    @torch.no_grad()
    def eager(x, knobs, state):
        y, state = step(x.reshape(1, 2, -1, 64), knobs, state)
        return y.flatten(2), state

    def level(run, knobs):
        quiet = play_step(run, x, [64 * 20], state=silence)
        loud = play_step(run, x, [64 * 20], state=silence, knobs=knobs)
        return float((loud - quiet)[..., 6400:].square().mean().sqrt())

    for knobs in ((0.0, 1.0), (0.0, 0.5), (1.0, 0.0)):
        ours, theirs = level(run, knobs), level(eager, knobs)
        assert theirs > 1e-4 and abs(ours / theirs - 1) < 0.15, knobs
    assert level(run, (0.0, 0.0)) == 0


@pytest.mark.slow
def test_rows_do_not_hear_each_other(written):
    run = load_onnx(written.paths["forward"])
    size = written.state_sizes["forward"]
    x = 0.3 * torch.randn(3, 2, 640)
    together = play_step(run, x, [64, 128], state=torch.zeros(3, size))
    alone = play_step(run, x[2:], [64, 128], state=torch.zeros(1, size))
    torch.testing.assert_close(alone, together[2:], atol=1e-6, rtol=0)


def test_a_missing_extra_is_said_before_anything_else(tmp_path, codec, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'rave_tools\[export\]'"):
        export_onnx(codec, tmp_path / "model.onnx", options=ExportOptions())


MODELS = {
    "v1": "include 'v1.gin'",
    "v2": "include 'v2.gin'",
    "v2 causal": "include 'v2.gin'\ninclude 'causal.gin'",
    "v2_small": "include 'v2_small.gin'",
    "v2_small stereo": "include 'v2_small.gin'\nCHANNELS = 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_configuration_plays_in_onnxruntime(name, tmp_path):
    """Fixed blocks of one hop: the sizes that hosts and accelerators like best, and the quickest to make."""
    text = f"from __gin__ import dynamic_registration\n{MODELS[name]}\nCAPACITY = 2\nLATENT_SIZE = 4\n"
    torch.manual_seed(0)
    codec = config.load([], text=text).build("CODEC").eval()
    path = tmp_path / "model.onnx"
    written = export_onnx(codec, path, options=ExportOptions(), block=codec.hop, time_it=False)
    assert written.verification.passed
    assert shapes(onnx.load(path).graph.input)["audio"] == [1, codec.channels, codec.hop]
