"""How a discrete model is compared: codes may differ where two are equally near, and nowhere else."""

import torch

from rave_tools.export.verify import BLOCKS, Choices, Measure, verdict

HOP, LATE, FRAMES = 4, 3, 2000


class Decoder:
    """Codes as steps of a waveform."""

    def heard(self, codes):
        return codes.float().sum(1, keepdim=True).repeat_interleave(HOP, -1)


def make_measure():
    torch.manual_seed(0)
    codes = torch.randint(1, 100, (2, 2, FRAMES))
    decoder = Decoder()
    audio = torch.zeros(2, 1, FRAMES * HOP)
    measure = Measure(audio, decoder.heard(codes), 40 * HOP, Choices(decoder, codes, HOP, 0))
    stream = torch.cat([torch.zeros(2, 2, LATE, dtype=torch.int64), codes], -1)[..., :FRAMES].clone()
    return measure, stream, decoder


def ask(measure, stream, output, precision="fp32"):
    return verdict(measure, output, LATE * HOP, precision=precision, encode=lambda: stream)


def test_equal_codes_are_compared_directly():
    measure, stream, decoder = make_measure()
    passed, answer = ask(measure, stream, decoder.heard(stream))
    assert passed and "own codes" not in answer


def test_a_few_other_codes_are_followed():
    measure, stream, decoder = make_measure()
    stream[:, :, 500] += 1
    passed, answer = ask(measure, stream, decoder.heard(stream))
    assert passed and "99.9% of the first are the same" in answer


def test_many_other_codes_are_another_model():
    measure, stream, decoder = make_measure()
    stream[:, :, ::20] += 1
    assert not ask(measure, stream, decoder.heard(stream))[0]
    assert ask(measure, stream, decoder.heard(stream), "bf16")[0], "rounding to bf16 moves more"


def test_a_decoder_that_differs_is_found_behind_other_codes():
    measure, stream, decoder = make_measure()
    stream[:, :, 500] += 1
    output = decoder.heard(stream)
    output[..., HOP * (max(BLOCKS) + 100)] += 5
    assert not ask(measure, stream, output)[0]


def test_a_wrong_latency_is_found_behind_other_codes():
    measure, stream, decoder = make_measure()
    stream[:, :, 500] += 1
    assert not ask(measure, stream, decoder.heard(stream).roll(1, -1))[0]
