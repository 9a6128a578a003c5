"""Measures against closed forms and slow references; evaluations of machines whose faults are known."""

import math
import sys
import types
import warnings

import numpy as np
import pytest
import scipy.linalg
import soundfile
import torch

from rave_tools.criteria import measures
from rave_tools.criteria.frechet import Gaussian, frechet_distance
from rave_tools.criteria.measures import MEASURES, SI_SDR, Undefined
from rave_tools.errors import UserError
from rave_tools.inference import embeddings, speech
from rave_tools.inference.evaluate import Contestant, Evaluation, Settings, choose, pace, read_clip, summarize
from rave_tools.inference.reconstruct import Machine
from rave_tools.inference.report import number

RATE = 16000


def noise(*shape, seed=0, gain=0.1):
    return gain * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def machine(function=lambda x: x, *, rate=RATE, channels=1, hop=16, **facts):
    facts = {"out_channels": channels, "unit": hop, "streaming": False, **facts}
    return Machine(
        process=function, restart=lambda: None, sample_rate=rate, channels=channels, hop=hop, **facts
    )


def evaluation(*machines, rate=RATE, chosen=MEASURES, seconds=None, embedding=None):
    contestants = [Contestant(f"m{i}", f"m{i}.ts", m) for i, m in enumerate(machines)]
    return Evaluation(contestants, measures=chosen, settings=Settings(rate, seconds), embedding=embedding)


def rows_of(machines, audio, tmp_path, *, rate=RATE, **options):
    soundfile.write(tmp_path / "x.wav", np.asarray(audio).T, rate, subtype="FLOAT")
    evaluated = evaluation(*machines, **options)
    return list(evaluated.measure(tmp_path / "x.wav", "x.wav", keep=True))


class TestSISDR:
    @pytest.mark.parametrize("level", [-10.0, 0.0, 35.5])
    def test_of_orthogonal_noise_is_the_ratio_of_powers(self, level):
        time = torch.arange(1000, dtype=torch.float64)
        x, n = torch.sin(2 * math.pi * 10 * time / 1000), torch.sin(2 * math.pi * 17 * time / 1000)
        y = 0.3 * x + 0.3 * 10 ** (-level / 20) * n + 0.05  # the level and the offset do not count
        assert float(measures.si_sdr(x, y)) == pytest.approx(level, abs=1e-6)

    def test_is_what_a_search_for_the_best_gain_finds(self):
        x, y = noise(400).double(), noise(400, seed=1).double()
        y = x + 0.5 * y
        a, b = (np.array([v - sum(z) / len(z) for v in z]) for z in (x.tolist(), y.tolist()))
        # the projection is where the rest of the estimate no longer correlates with the reference
        gains = np.linspace(0, 2, 200001)
        rest = (b @ b) - 2 * gains * (a @ b) + gains**2 * (a @ a)
        gain = gains[rest.argmin()]
        wanted = sum((gain * v) ** 2 for v in a) / sum((w - gain * v) ** 2 for v, w in zip(a, b, strict=True))
        assert float(measures.si_sdr(x, y)) == pytest.approx(10 * math.log10(wanted), abs=1e-3)

    def test_silence_copies_and_a_mute_model(self):
        x = noise(3, 500)
        x[1] = 0.2  # an offset is silence too
        values = measures.si_sdr(x, x)
        assert values[1].isnan() and float(values[0]) == float(values[2]) == measures.LARGEST_SI_SDR
        assert measures.mean_si_sdr(x, x, RATE) == measures.LARGEST_SI_SDR
        assert measures.mean_si_sdr(x, 0 * x, RATE) == -measures.LARGEST_SI_SDR
        with pytest.raises(Undefined, match="silent"):
            measures.mean_si_sdr(0 * x, x, RATE)

    def test_takes_channels_by_themselves(self):
        x = torch.stack([noise(800), 100 * noise(800, seed=1)])
        y = x + torch.stack([0.01 * noise(800, seed=2), 10 * noise(800, seed=3)])
        both = [float(measures.si_sdr(x[i], y[i])) for i in range(2)]
        assert measures.mean_si_sdr(x, y, RATE) == pytest.approx(sum(both) / 2)

    def test_refuses_lengths_that_differ(self):
        with pytest.raises(ValueError, match="length that they have in common"):
            measures.si_sdr(noise(1, 10), noise(1, 11))


def slow_magnitudes(x, window):
    """Centred, mirrored, periodic Hann, hop a quarter: one frame after the other by its definition."""
    x = np.asarray(x, np.float64)
    half, hop = window // 2, window // 4
    padded = np.concatenate([x[half:0:-1], x, x[-2 : -half - 2 : -1]])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), np.arange(window)) / window)
    return np.stack([np.abs(basis @ (hann * padded[n * hop : n * hop + window])) for n in range(len(x) // hop + 1)], 1)


def slow_triangles(rate, window, bands):
    def mel(hertz):
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def hertz(value):
        return value * 200 / 3 if value < 15 else 1000 * 6.4 ** ((value - 15) / 27)

    edges = [hertz(mel(rate / 2) * i / (bands + 1)) for i in range(bands + 2)]
    filters = np.zeros((bands, window // 2 + 1))
    for band in range(bands):
        low, centre, high = edges[band : band + 3]
        for k in range(window // 2 + 1):
            f = k * rate / window
            height = (f - low) / (centre - low) if f <= centre else (high - f) / (high - centre)
            filters[band, k] = max(0.0, height) * 2 / (high - low)
    return filters


class TestSpectra:
    def test_mel_distance_by_its_definition(self):
        x, y = noise(1500), noise(1500, seed=1, gain=0.05)
        wanted = 0.0
        for window, bands in zip(measures.MEL_SCALES, measures.MEL_BANDS, strict=True):
            filters = slow_triangles(RATE, window, bands)
            a, b = (np.log10(np.maximum(filters @ slow_magnitudes(z, window), 1e-5)) for z in (x, y))
            wanted += np.abs(a - b).mean()
        assert measures.mel_distance(x[None], y[None], RATE) == pytest.approx(wanted, rel=1e-4)

    def test_stft_distance_by_its_definition(self):
        x, y = noise(1500), noise(1500, seed=1, gain=0.05)
        wanted = []
        for window in measures.STFT_SCALES:
            a, b = (np.sqrt(np.maximum(slow_magnitudes(z, window) ** 2, 1e-7)) for z in (x, y))
            convergence = math.sqrt(((a - b) ** 2).sum()) / math.sqrt((a**2).sum())
            wanted.append(convergence + np.abs(np.log(a) - np.log(b)).mean())
        assert measures.stft_distance(x[None], y[None], RATE) == pytest.approx(np.mean(wanted), rel=1e-4)

    @pytest.mark.parametrize("distance", [measures.mel_distance, measures.stft_distance])
    def test_short_equal_and_many_channels(self, distance):
        x, y = noise(2, 3000), noise(2, 3000, seed=1)
        assert distance(x, x, RATE) == 0
        one_by_one = [distance(x[i : i + 1], y[i : i + 1], RATE) for i in range(2)]
        assert distance(x, y, RATE) == pytest.approx(sum(one_by_one) / 2)
        with pytest.raises(Undefined, match="too short"):
            distance(x[:, :1024], y[:, :1024], RATE)
        assert distance(x[:, :1025], y[:, :1025], RATE) > 0

    def test_l1(self):
        assert measures.l1(torch.zeros(2, 4), torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 0]]), RATE) == 0.5


class TestFrechet:
    def test_of_axis_aligned_gaussians_is_that_of_means_and_deviations(self):
        m, n = torch.tensor([0.0, 1, 2]), torch.tensor([1.0, 1, -1])
        s, t = torch.tensor([1.0, 2, 0]), torch.tensor([3.0, 0.5, 2])
        wanted = float((m - n).square().sum() + (s - t).square().sum())
        assert frechet_distance(m, s.square().diag(), n, t.square().diag()) == pytest.approx(wanted)

    @pytest.mark.parametrize("rank", [12, 5])
    def test_agrees_with_a_general_matrix_root(self, rank):
        a, b = noise(12, rank, gain=1).double(), noise(12, rank, seed=1, gain=1).double()
        s, t = a @ a.T, b @ b.T
        m, n = noise(12, seed=2).double(), noise(12, seed=3).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the general root complains of singular matrices
            root = scipy.linalg.sqrtm((s @ t).numpy()).real
        wanted = float((m - n).square().sum() + s.trace() + t.trace()) - 2 * np.trace(root)
        assert frechet_distance(m, s, n, t) == pytest.approx(wanted, rel=1e-5)
        assert frechet_distance(m, s, m, s) == pytest.approx(0, abs=1e-6)

    def test_moments_come_bit_by_bit(self):
        x = 1e4 + noise(500, 6, gain=1).double() @ noise(6, 6, seed=1, gain=1).double()
        cloud = Gaussian()
        for part in x.split(37):
            cloud.add(part)
        mean, covariance = cloud.moments()
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(x.T.numpy()), rtol=1e-7, atol=1e-9)
        with pytest.raises(ValueError, match="5 dimensions after 6"):
            cloud.add(noise(2, 5))
        with pytest.raises(ValueError, match="not finite"):
            cloud.add(torch.full((1, 6), math.nan))
        with pytest.raises(ValueError, match="at least 2"):
            Gaussian().moments()


class PesqError(RuntimeError):
    pass


class NoUtterancesError(PesqError):
    pass


class BufferTooShortError(PesqError):
    pass


@pytest.fixture
def fakes(monkeypatch):
    """PESQ and STOI by name; PESQ answers ten times the sample in the middle, or fails if that is above 0.4."""
    heard = []

    def pesq(rate, x, y, mode):
        heard.append((rate, mode, len(x), len(y)))
        level = x[len(x) // 2]
        if level > 0.4:
            raise NoUtterancesError(b"No utterances detected")
        if len(x) < rate // 4:
            raise BufferTooShortError(b"Buffer needs to be at least 1/4 of a second long")
        return 10 * level

    def stoi(x, y, rate, extended):
        heard.append((rate, extended, len(x), len(y)))
        if len(x) < 4000:
            warnings.warn("Not enough STFT frames", RuntimeWarning, stacklevel=1)
            return 1e-5
        return 0.75

    module = types.ModuleType("pesq")
    for name, value in (("pesq", pesq), ("PesqError", PesqError), ("NoUtterancesError", NoUtterancesError),
                        ("BufferTooShortError", BufferTooShortError)):  # fmt: skip
        setattr(module, name, value)
    other = types.ModuleType("pystoi")
    other.stoi = stoi
    monkeypatch.setitem(sys.modules, "pesq", module)
    monkeypatch.setitem(sys.modules, "pystoi", other)
    return heard


class TestSpeech:
    def test_hears_each_channel_at_its_own_rate(self, fakes):
        x = torch.stack([torch.full((32000,), 0.2), torch.full((32000,), 0.3), torch.zeros(32000)])
        assert speech.pesq(x, x, 32000) == pytest.approx(2.5, rel=1e-3)  # silence takes no part
        assert speech.stoi(x, x, 32000) == 0.75
        assert fakes == [(16000, "wb", 16000, 16000)] * 2 + [(10000, False, 10000, 10000)] * 2

    def test_what_has_no_value_says_why(self, fakes):
        loud, short = torch.full((1, 16000), 0.5), torch.full((1, 1600), 0.1)
        with pytest.raises(Undefined, match="no utterances"):
            speech.pesq(loud, loud, 16000)
        with pytest.raises(Undefined, match="too short"):
            speech.pesq(short, short, 16000)
        with pytest.raises(Undefined, match="too short"):
            speech.stoi(short, short, 16000)
        with pytest.raises(Undefined, match="silent"):
            speech.stoi(0 * loud, loud, 16000)
        assert speech.pesq(torch.cat([loud, 0.2 * loud]), torch.cat([loud, loud]), 16000) == pytest.approx(1)

    @pytest.mark.parametrize(("name", "package"), [("pesq", "pesq"), ("stoi", "pystoi")])
    def test_a_missing_package_names_the_extra(self, monkeypatch, name, package):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"--measures {name} needs the package {package}.*rave_tools\[metrics\]"):
            speech.need(["si_sdr", name])
        speech.need(["si_sdr", "l1"])

    def test_the_true_packages_where_they_are(self):
        pytest.importorskip("pesq")
        pytest.importorskip("pystoi")
        time = torch.arange(2 * RATE) / RATE
        x = (torch.sin(2 * math.pi * 300 * time) * (torch.sin(2 * math.pi * 3 * time) > 0) * 0.3)[None]
        assert speech.pesq(x, x, RATE) > 4.5
        assert speech.stoi(x, x, RATE) == pytest.approx(1, abs=1e-3)


class TestEvaluation:
    def test_faults_of_known_size(self, tmp_path):
        x = noise(1, 8000)
        fault = 0.01 * noise(1, 1, 8000, seed=1)
        copy, noisy = rows_of([machine(), machine(lambda x: x + fault)], x, tmp_path)
        assert copy.values == {"si_sdr": measures.LARGEST_SI_SDR, "l1": 0, "mel": 0, "stft": 0}
        assert noisy.values["si_sdr"] == pytest.approx(float(measures.si_sdr(x, x + fault[0])), abs=1e-3)
        assert noisy.values["l1"] == pytest.approx(float(fault.abs().mean()), rel=1e-4)
        assert (copy.seconds, copy.channels, copy.notes, copy.length_difference) == (0.5, 1, [], 0)
        assert copy.spent > 0 and pace([copy, noisy]) == pytest.approx(1 / (copy.spent + noisy.spent))

    def test_latency_of_a_streaming_model_is_taken_out(self, tmp_path):
        late, memory = 48, []

        def delay(x):
            past = memory.pop() if memory else torch.zeros(1, 1, late)
            line = torch.cat([past, x], -1)
            memory.append(line[..., -late:])
            return line[..., :-late]

        told = machine(delay, streaming=True, latency=late)
        told.restart = memory.clear
        untold = machine(delay, streaming=True, latency=None)
        untold.restart = memory.clear
        first, second = rows_of([told, untold], noise(1, 8000), tmp_path)
        assert first.values["si_sdr"] == measures.LARGEST_SI_SDR
        assert second.values["si_sdr"] < 0

    def test_channels_and_rates_are_converted_and_it_is_said(self, tmp_path):
        time = np.arange(22050) / 44100
        audio = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 700 * time)]) * 0.4
        mono, stereo = rows_of([machine(), machine(channels=2, rate=32000)], audio, tmp_path, rate=44100)
        assert mono.channels == stereo.channels == 2
        assert mono.notes == ["2 channels: each channel on its own", "resampled from 44100 to 16000 Hz"]
        assert stereo.notes[:2] == ["resampled from 44100 to 32000 Hz", f"compared at {RATE} Hz"]
        assert mono.values["si_sdr"] == measures.LARGEST_SI_SDR
        assert stereo.values["si_sdr"] > 40  # one resampling more
        assert abs(stereo.length_difference) <= 1

    def test_a_length_that_differs_is_cut_and_said(self, tmp_path):
        (row,) = rows_of([machine(lambda x: x[..., :-40])], noise(1, 8000), tmp_path)
        assert row.length_difference == -40 and row.values["l1"] == 0 and row.seconds == 7960 / RATE
        assert "-40 samples; compared over the length in common" in row.notes

    def test_silence_and_shortness_have_reasons(self, tmp_path):
        embedding = embeddings.log_mel(RATE)
        (silent,) = rows_of([machine()], np.zeros((1, 8000)), tmp_path, embedding=embedding)
        assert silent.undefined == {"si_sdr": "silent", "stft": "silent"} and silent.values == {"l1": 0, "mel": 0}
        (short,) = rows_of([machine()], noise(1, 700), tmp_path)
        assert short.values["si_sdr"] == 100 and set(short.undefined) == {"mel", "stft"}
        assert short.undefined["mel"].startswith("too short")
        summary = summarize([silent, short], SI_SDR)
        assert (summary.mean, summary.count, summary.undefined) == (100, 1, {"silent": 1})
        assert not silent.problem and not short.problem

    def test_models_that_fail_are_problems(self, tmp_path):
        def broken(x):
            raise RuntimeError("first line\nout of luck")

        nan, failed, good = rows_of(
            [machine(lambda x: x * math.nan), machine(broken), machine()], noise(1, 8000), tmp_path
        )
        assert nan.problem == "the model answered 8000 samples that are not finite" and not nan.values
        assert failed.problem == "the model failed: out of luck" and good.values and not good.problem

    def test_numbers_beyond_all_bounds_are_no_values(self, tmp_path):
        """Finite samples whose powers are not: neither the tables nor the clouds take them in."""
        embedding = embeddings.log_mel(RATE)
        soundfile.write(tmp_path / "x.wav", noise(8000).numpy(), RATE)
        evaluated = evaluation(machine(lambda x: x * 3e38), machine(), embedding=embedding)
        huge, good = evaluated.measure(tmp_path / "x.wav", "x.wav")
        assert huge.undefined["mel"] == huge.undefined["stft"] == "not finite" and not huge.problem
        assert all(math.isfinite(value) for value in huge.values.values()) and len(good.values) == 4
        score = evaluated.frechet("m0")
        assert score.count == 0 and score.left_out == {"the embedding gave numbers that are not finite": 1}

    def test_an_unreadable_file_is_a_problem_of_all(self, tmp_path):
        (tmp_path / "x.wav").write_bytes(b"nonsense")
        evaluated = evaluation(machine(), machine())
        rows = list(evaluated.measure(tmp_path / "x.wav", "x.wav"))
        assert len(rows) == 2 and all("not audio" in row.problem and not row.values for row in rows)
        assert evaluated.files == ["x.wav"]

    def test_a_model_with_other_channels_out_than_in_is_refused(self):
        with pytest.raises(UserError, match="makes 2 channels of 1"):
            evaluation(machine(out_channels=2))

    def test_random_models_answer_alike_for_each_file(self, tmp_path):
        m = machine(lambda x: x + 0.1 * torch.randn_like(x))
        once, again = (rows_of([m, m], noise(1, 4000), tmp_path) for _ in range(2))
        assert once[0].values == once[1].values == again[0].values
        assert math.isfinite(once[0].values["mel"])

    def test_the_middle_of_a_file(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.arange(1000) / 1000, 1000, subtype="FLOAT")
        clip = read_clip(tmp_path / "x.wav", 0.1)
        np.testing.assert_allclose(clip.samples[0], np.arange(450, 550) / 1000, atol=1e-6)
        assert read_clip(tmp_path / "x.wav", None).samples.shape == (1, 1000)
        assert read_clip(tmp_path / "x.wav", 5).samples.shape == (1, 1000)

    def test_a_limit_draws_by_the_seed_and_keeps_the_order(self):
        files = list(range(50))
        assert choose(files, None, 0) == choose(files, 50, 0) == files
        drawn = choose(files, 10, 3)
        assert drawn == sorted(drawn) == choose(files, 10, 3) != choose(files, 10, 4) and len(set(drawn)) == 10

    def test_worst_is_the_lowest_of_what_should_be_high(self, tmp_path):
        rows = rows_of([machine(), machine(lambda x: x + 0.1)], noise(1, 4000), tmp_path)
        for row, value in zip(rows, (1.0, 5.0), strict=True):
            row.values = {"si_sdr": value, "l1": value}
            row.file = str(value)
        high, low = summarize(rows, SI_SDR), summarize(rows, measures.L1)
        assert (high.worst, high.worst_file, high.median, low.worst, low.worst_file) == (1, "1.0", 3, 5, "5.0")


class Statistics(torch.nn.Module):
    """Mean and deviation of halves of a sound."""

    sample_rate: int

    def __init__(self, flat: bool):
        super().__init__()
        self.sample_rate = 8000
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = torch.stack(x[:, 0].chunk(2, -1), -1)
        vectors = torch.stack([halves.mean(1), halves.std(1)], 1)
        return vectors.mean(-1) if self.flat else vectors


class TestEmbeddings:
    def test_frechet_of_a_gain_by_hand(self, tmp_path, make_codec):
        """A gain of ten moves every log-mel vector by one: the distance is the dimension."""
        x = noise(1, 40000)
        soundfile.write(tmp_path / "x.wav", x[0].numpy() * 0.1, RATE, subtype="FLOAT")
        evaluated = evaluation(machine(), machine(lambda x: 10 * x), embedding=embeddings.log_mel(RATE))
        list(evaluated.measure(tmp_path / "x.wav", "x.wav"))
        same, louder = (evaluated.frechet(name) for name in ("m0", "m1"))
        assert same.value == pytest.approx(0, abs=1e-9) and louder.value == pytest.approx(64, rel=1e-3)
        assert (louder.count, louder.dimension) == ((40000 - 2048) // 1024 + 1, 64)
        assert "38 vectors for 64 dimensions" in louder.caution

    def test_too_few_and_left_out(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", noise(1, 1000)[0].numpy(), RATE)
        evaluated = evaluation(machine(), embedding=embeddings.log_mel(RATE))
        list(evaluated.measure(tmp_path / "x.wav", "x.wav"))
        score = evaluated.frechet("m0")
        assert score.value is None and "too few" in score.caution
        assert score.left_out == {"too short (under 2048 samples)": 1}

    @pytest.mark.parametrize("flat", [True, False])
    def test_a_torchscript_file(self, tmp_path, flat):
        torch.jit.script(Statistics(flat)).save(tmp_path / "e.ts")
        embedding = embeddings.exported(tmp_path / "e.ts")
        vectors = embedding(noise(3, 16000), 16000)
        assert vectors.shape == ((3, 2) if flat else (6, 2)) and embedding.name == "e.ts (8000 Hz)"

    def test_files_that_are_no_embedding(self, tmp_path):
        torch.jit.script(torch.nn.Identity()).save(tmp_path / "e.ts")
        with pytest.raises(UserError, match="--embedding_rate"):
            embeddings.exported(tmp_path / "e.ts")
        torch.jit.script(torch.nn.Flatten(0)).save(tmp_path / "f.ts")
        with pytest.raises(UserError, match="is no embedding"):
            embeddings.exported(tmp_path / "f.ts", rate=RATE)(noise(1, 1000), RATE)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_latents_of_a_codec(self, make_codec, channels):
        codec = make_codec(channels=channels)
        embedding = embeddings.latents(codec, "tiny")
        x = noise(3, 64 * 10 + 5)
        vectors = embedding(x, 44100)
        whole = x[:, None, :640].expand(-1, channels, -1)
        wanted = codec.encode(whole, deterministic=True).z
        torch.testing.assert_close(vectors.reshape(3, 10, 8), wanted.transpose(1, 2))
        with pytest.raises(Undefined, match="under 64 samples"):
            embedding(x[:, :60], 44100)


def test_a_model_that_divides_by_its_loudness_gives_the_level_back():
    """What crosses the bottleneck beside the latents belongs to the sound."""
    from rave_tools.codec.bottlenecks.latent import Unquantized
    from rave_tools.codec.compression import CompressionModel
    from rave_tools.inference.reconstruct import machine_of

    class Frames(torch.nn.Module):
        hop, in_channels, out_channels, latent_size, n_out = 4, 1, 1, 4, 1

        def __init__(self, back):
            super().__init__()
            self.back = back

        def forward(self, x):
            if self.back:
                return x.transpose(1, 2).reshape(len(x), 1, -1)
            return x.reshape(len(x), -1, 4).transpose(1, 2)

    codec = CompressionModel(
        sampling_rate=RATE, encoder=Frames(False), decoder=Frames(True), quantizer=Unquantized(4), renormalize=True
    )
    x = noise(1, 1, 64, gain=0.01)
    torch.testing.assert_close(machine_of(codec, live=False).process(x), x)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1.5e-14, "1.5e-14"), (0.01234, "0.0123"), (-1.23456, "-1.235"), (45.678, "45.68"),
     (12345.6, "12346")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text
