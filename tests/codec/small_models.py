"""RAVE models in every size, assembled by hand as the .gin files do it."""

from rave_tools.codec.bottlenecks.variational import VariationalEncoder
from rave_tools.codec.nets.rave import EncoderV1, EncoderV2, GeneratorV1, GeneratorV2
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.codec.rave import RAVE
from rave_tools.nn.conv import Convolutions
from rave_tools.nn.noise import NoiseGenerator, NoiseGeneratorV2

DILATIONS = [[1, 3, 9], [1, 3, 9], [1, 3, 9], [1, 3]]


def style(padding="centered"):
    return Convolutions(bias=False, padding=padding, normalization="weight_norm")


def rave_v1(*, capacity=4, latent_size=8, padding="centered", ratios=(4, 4, 4, 2), noise=True, n_channels=1):
    convolutions = style(padding)
    shared = dict(capacity=capacity, latent_size=latent_size, ratios=list(ratios), data_size=16, n_channels=n_channels)
    return RAVE(
        sampling_rate=44100,
        n_channels=n_channels,
        pqmf=CachedPQMF(padding=padding),
        encoder=VariationalEncoder(EncoderV1(**shared, n_out=2, convolutions=convolutions)),
        decoder=GeneratorV1(
            **shared,
            convolutions=convolutions,
            noise_module=(lambda a, b: NoiseGenerator(a, b, convolutions=convolutions)) if noise else None,
        ),
    )


def rave_v2(
    *, capacity=4, latent_size=8, padding="centered", ratios=(4, 4, 4, 2), noise=None, n_channels=1, dilations=None
):
    """noise: arguments of NoiseGeneratorV2, or None."""
    convolutions = style(padding)
    shared = dict(
        capacity=capacity,
        latent_size=latent_size,
        ratios=list(ratios),
        data_size=16,
        n_channels=n_channels,
        kernel_size=3,
        dilations=dilations or DILATIONS,
        convolutions=convolutions,
    )
    factory = None
    if noise is not None:

        def factory(width, bands):
            return NoiseGeneratorV2(width, bands, convolutions=convolutions, **noise)

    return RAVE(
        sampling_rate=44100,
        n_channels=n_channels,
        pqmf=CachedPQMF(padding=padding),
        encoder=VariationalEncoder(EncoderV2(**shared, n_out=2)),
        decoder=GeneratorV2(**shared, amplitude_modulation=True, noise_module=factory),
    )


def rave_v2_small(**kwargs):
    return rave_v2(ratios=(4, 2, 2, 2), noise=dict(hidden_size=64, ratios=[2, 2, 2], noise_bands=32), **kwargs)
