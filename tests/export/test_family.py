"""Every configuration as a graph of torch.export and of ONNX, played block by block, equals the plain model."""

import pytest
import torch

from rave_tools import config
from rave_tools.errors import UserError
from rave_tools.export.prepare import ExportOptions, assemble
from rave_tools.export.pure import make_steps, trace
from rave_tools.export.step import still_knobs
from rave_tools.export.verify import BLOCKS, cut, make_measure
from tests.export.small import speak_up

CODES = ["NUM_QUANTIZERS = 3", "CODEBOOK_SIZE = 16", "NOISE_AUGMENTATION = 3"]

FAMILY = {
    "v1": [],
    "v2": [],
    "v2_small": ["CHANNELS = 2"],
    "v2 causal": [],
    "v2 noise": [],
    "onnx": [],
    "raspberry causal": [],
    "brave": [],
    "v2_nopqmf": [],
    "v3": [],
    "discrete": CODES,
    "discrete_v3": CODES,
    "v2 wasserstein": ["NOISE_AUGMENTATION = 3"],
    "v2 spherical causal": [],
    "v2_small adain": [],
    "v2_small snake": [],
}

CONVERTED = ("brave", "discrete", "v2 wasserstein", "v2 spherical causal")
"""Converted to ONNX too: one of each part that has a form of its own there; a conversion takes half a minute."""

RECURRENT = ("v2 hybrid", "v2 hybrid causal")


def build(names, overrides):
    torch.manual_seed(0)
    loaded = config.load(names.split(), ["CAPACITY = 2", "LATENT_SIZE = 4", *overrides])
    return assemble(speak_up(loaded.build("CODEC").eval()), ExportOptions())


def play(run, measure, facts, *, state_size, hops, rows):
    """The measure's audio through ``run(x, knobs, state)``, everything random off."""
    state, knobs = torch.zeros(rows, state_size), torch.zeros_like(still_knobs(facts.adaptive))
    outputs = []
    for start, end in cut(measure.audio.shape[-1], [count * facts.hop for count in hops]):
        y, state = run(measure.audio[:rows, :, start:end], knobs, state)
        outputs.append(y)
    return torch.cat(outputs, -1)


def check(run, assembled, **settings):
    facts, measure = assembled.facts, make_measure(assembled)
    assert measure.expected.abs().max() > 0.1, "a silent model proves nothing"
    _, decibels = measure.compare(play(run, measure, facts, **settings), facts.latency - facts.offset)
    assert decibels < -85


def graph(step, **sizes):
    """A traced step on audio of shape (B, C, T)."""
    module, hop = trace(step, **sizes).module(), step.facts.hop

    @torch.no_grad()
    def run(x, knobs, state):
        y, state = module(x.reshape(x.shape[0], x.shape[1], -1, hop), knobs, state)
        return y.flatten(2), state

    return run


@pytest.mark.slow
@pytest.mark.parametrize("names", FAMILY)
def test_a_graph_for_any_number_of_hops_and_rows_equals_the_plain_model(names):
    assembled = build(names, FAMILY[names])
    step = make_steps(assembled)["forward"]
    check(graph(step), assembled, state_size=step.state_size, hops=BLOCKS, rows=2)


@pytest.mark.slow
@pytest.mark.parametrize("names", CONVERTED)
def test_onnxruntime_equals_the_plain_model(names):
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    from rave_tools.export.onnx import chain, convert

    assembled = build(names, FAMILY[names])
    steps = make_steps(assembled)
    sizes = {method: step.state_size for method, step in steps.items()}
    block = assembled.facts.hop
    halves = {method: convert(steps[method], block=block) for method in ("encode", "decode")}
    content = chain(**halves, state_sizes=sizes, block=block).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(x, knobs, state):
        inputs = {"audio": x.contiguous(), "knobs": knobs, "state": state}
        y, state = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(y), torch.from_numpy(state)

    check(run, assembled, state_size=sizes["forward"], hops=[1], rows=1)


@pytest.mark.slow
@pytest.mark.parametrize("names", RECURRENT)
def test_recurrent_layers_need_blocks_of_a_fixed_length(names):
    assembled = build(names, ["N_MELS = 32"])
    step = make_steps(assembled)["forward"]
    hop = assembled.facts.hop
    with pytest.raises(UserError, match=rf"is a GRU \(hybrid.gin\).*for example --block {hop}"):
        trace(step)
    check(graph(step, block=hop), assembled, state_size=step.state_size, hops=[1], rows=1)
