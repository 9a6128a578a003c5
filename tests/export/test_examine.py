"""Any nn~ file under examination: each clause of the contract broken by a model of its own, and models that keep it."""

import pytest
import torch

from rave_tools.export import pace
from rave_tools.export.deliver import export
from rave_tools.export.examine import examine
from rave_tools.export.prepare import ExportOptions
from rave_tools.export.speed import BlockTimes, Speed
from rave_tools.export.subject import NotTorchScript
from tests.export import violations


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def examined(tmp_path):
    """A model's findings, by way of a file."""

    def examine_model(model, name="model.ts"):
        path = tmp_path / name
        torch.jit.save(torch.jit.script(model.eval()), str(path))
        return examine(path, time_it=False)

    return examine_model


def bad(findings):
    return [f"{f.severity} {f.subject}: {f.seen}" for f in findings if f.severity in ("warning", "error")]


def text_of(findings, severity):
    return "\n".join(f"{f.subject}: {f.seen} | {f.means} | {f.mend}" for f in findings if f.severity == severity)


def test_a_model_that_keeps_the_contract_has_no_warning(examined):
    findings = examined(violations.Keeper())
    assert not bad(findings)
    latency = next(f for f in findings if f.subject == "latency")
    assert "64 samples (8.0 ms) announced" in latency.seen and "most after 64 (8.0 ms)" in latency.seen
    assert "keeps its state" in text_of(findings, "ok")
    assert "repeats within -2" in text_of(findings, "ok")


@pytest.mark.parametrize(
    ("model", "severity", "subject", "words"),
    [
        (violations.ListParams, "error", "forward_params", "is a list, not a tensor"),
        (violations.ThreeNumbers, "error", "forward_params", "not 4 numbers"),
        (violations.OddRatio, "warning", "encode_params", "48, no power of two"),
        (violations.OddRatioEverywhere, "error", "forward_params", "48, no power of two"),
        (violations.NeedsTwo, "error", "forward", "hosts give it exactly 1 tensor"),
        (violations.Pair, "error", "forward", "returns Tuple[Tensor, Tensor]"),
        (violations.Half, "error", "forward", "answers torch.float16 and not float32"),
        (violations.Longer, "error", "forward", "answers (1, 1, 128) and not (1, 1, 64)"),
        (violations.Ghost, "error", "prior", "lists prior, which is no method"),
        (violations.Unnumbered, "warning", "get_methods_params", "there is no get_methods_params"),
        (violations.NoForward, "warning", "forward", "there is no method forward"),
        (violations.OnlyShort, "warning", "block", "largest ratio of all methods is 1, under 64"),
        (violations.ScalarGetter, "warning", "get_gain", "returns float, no tuple"),
        (violations.SilentSetter, "warning", "set_gain", "returns NoneType, not int"),
        (violations.OtherSetter, "warning", "set_gain", "takes (Tensor), but gain_params announces (float)"),
        (violations.FlatParams, "warning", "gain_params", "of 0 dimensions"),
        (violations.Undeclared, "warning", "set_colour", "there is no set_colour"),
        (violations.Undeclared, "warning", "get_colour", "there is no get_colour"),
        (violations.InPlaceReset, "error", "set_reset", "fails with its own present value after playing"),
        (violations.FloatRate, "error", "set_sample_rate", "takes (float), not 1 int"),
        (violations.WrongLabels, "warning", "forward_input_labels", "2 labels for 1 channels"),
        (violations.KeepsView, "error", "state", "overwriting a block after it was played"),
        (violations.GivesState, "error", "state", "overwriting what forward answered"),
        (violations.NeverForgets, "error", "NaN", "not finite again after"),
        (violations.ForgetsLate, "warning", "NaN", "257 samples (32 ms)"),
        (violations.Clicks, "error", "streaming", "differs from one block by"),
        (violations.RandomClicks, "error", "streaming", "its output is random"),
        (violations.OneRow, "warning", "forward", "(input (2, 1, 64), block of 64 samples)"),
        (violations.OneBlock, "error", "forward", "(input (1, 1, 128), block of 128 samples)"),
        (violations.Diverged, "error", "output", "samples are not finite"),
        (violations.LatencyLies, "warning", "latency", "1000 samples (125.0 ms) announced"),
        (violations.Unannounced, "note", "latency", "none announced; an impulse is heard from 64 to 64"),
        (violations.MonoOnly, "warning", "RAVE VST", "and not 2 channels or 2 rows"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_violation_is_found_and_named(examined, model, severity, subject, words):
    findings = examined(model())
    matching = [f for f in findings if f.subject == subject and words in f.seen]
    assert matching, "\n".join(f"{f.severity} {f.subject}: {f.seen}" for f in findings)
    assert matching[0].severity == severity and matching[0].means and matching[0].where


@pytest.mark.parametrize(
    "model",
    [violations.WrongLabels, violations.ScalarGetter, violations.LatencyLies, violations.ForgetsLate,
     violations.InPlaceReset, violations.GivesState, violations.OneRow],
    ids=lambda value: value.__name__,
)  # fmt: skip
def test_a_violation_brings_no_other_finding_with_it(examined, model):
    assert len(bad(examined(model()))) == 1


def test_a_model_without_get_methods_is_played_by_its_params(examined, tmp_path):
    class_without = torch.jit.script(violations.Keeper().eval())
    kept = [name for name in class_without._c._method_names() if name not in ("get_methods", "forward")]
    params = [f"{name}_params" for name in ("encode", "decode", "forward")]
    frozen = torch.jit.freeze(class_without, preserved_attrs=[*kept, *params])
    path = tmp_path / "without.ts"
    torch.jit.save(frozen, str(path))
    findings = examine(path, time_it=False)
    assert "get_methods() does not exist; found by their _params:" in text_of(findings, "note")
    assert "forward 1/1 -> 1/1" in text_of(findings, "ok")


def test_a_name_that_pd_cannot_load_is_a_warning(examined):
    findings = examined(violations.Keeper(), "my model.ts")
    assert bad(findings) == ["warning file name: 'my model.ts' has a space"]


def test_an_export_of_acids_rave_gets_its_known_findings(examined):
    findings = examined(violations.Stranger())
    notes, warnings, errors = (text_of(findings, severity) for severity in ("note", "warning", "error"))
    assert not errors
    assert "get_learn_target: get_learn_target returns bool, no tuple" in warnings
    assert "NaN: one NaN at the input makes" in warnings and "1 NaN" not in errors
    assert "the sentinel 'none'" in notes and "missing: sampling_rate" in notes
    assert "with other random numbers the output changes by" in notes
    assert "none announced; an impulse is heard from" in notes
    assert "there is no attribute reset" in notes and "learn_target is a bool" in notes
    assert "no clicks, but equality cannot be tested" in notes


@pytest.mark.slow
def test_our_own_export_has_no_warning(make_codec, tmp_path):
    path = tmp_path / "ours.ts"
    delivered = export(make_codec(noise=True), path, options=ExportOptions(), time_it=False)
    findings = examine(path, time_it=False)
    assert not bad(findings)
    latency = next(f for f in findings if f.subject == "latency")
    assert latency.severity == "ok" and f"{delivered.facts.latency} samples" in latency.seen


@pytest.mark.slow
def test_our_own_export_without_streaming_clicks(make_codec, tmp_path):
    path = tmp_path / "clicks.ts"
    export(make_codec(), path, options=ExportOptions(streaming=False), time_it=False)
    assert "differs from one block by" in text_of(examine(path, time_it=False), "error")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_a_corrupt_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "broken.ts"
    path.write_bytes(content)
    with pytest.raises(NotTorchScript, match="broken.ts is not a TorchScript file that can be loaded") as caught:
        examine(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_export_is_one_clear_line(tmp_path):
    path = tmp_path / "half.ts"
    torch.jit.save(torch.jit.script(violations.Keeper().eval()), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(NotTorchScript, match="half.ts is not a TorchScript file"):
        examine(path)


def test_a_module_without_methods_is_no_nn_model(tmp_path):
    path = tmp_path / "linear.ts"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2).eval()), str(path))
    assert "0 methods can be played" in text_of(examine(path), "error")


@pytest.mark.parametrize(("median", "severity"), [(0.001, "ok"), (0.007, "warning"), (0.012, "error")])
def test_the_real_time_factor_is_judged_against_the_block(median, severity):
    speed = Speed(0.1, (0.01, 0.01), 0.01, (BlockTimes(1, 0.01, median, 2 * median, 100),))
    factor, start = pace.judge_pace(speed, 512, "forward")
    assert factor.severity == severity and f"{median / 0.01:.3f} for blocks of 512 samples" in factor.seen
    assert start.severity == "ok"


def test_a_slow_start_is_noted():
    speed = Speed(0.1, (0.28, 0.22), 0.046, (BlockTimes(1, 0.046, 0.009, 0.01, 100),))
    start = pace.judge_pace(speed, 2048, "forward")[1]
    assert start.severity == "note" and "408 ms late" in start.seen


@pytest.mark.slow
def test_speed_is_measured_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "keeper.ts"
    torch.jit.save(torch.jit.script(violations.Keeper().eval()), str(path))
    findings = examine(path, seconds=0.05)
    factors = [f for f in findings if f.subject == "real-time factor"]
    assert all(f"blocks of {size} samples" in f.seen for size, f in zip((64, 128, 256), factors, strict=True))
    assert "1 thread, a fresh process" in factors[0].where
