"""A codec small enough for tests of exports and of playing."""

from functools import partial

import torch

from rave_tools.codec.bottlenecks.variational import VariationalEncoder
from rave_tools.codec.nets.rave import EncoderV2, GeneratorV2
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.codec.rave import RAVE
from rave_tools.nn.conv import Convolutions, fold_weight_norm
from rave_tools.nn.noise import NoiseGeneratorV2
from rave_tools.nn.normalization import AdaptiveInstanceNormalization


def small_codec(*, channels=1, noise=False, padding="centered", sampling_rate=44100, adaptive=False):
    """A RAVE v2 of some thousand parameters: 4 bands, hop 64, 8 latents with unequal variances."""
    torch.manual_seed(5)
    style = Convolutions(padding=padding, normalization="weight_norm")
    bands, ratios, latents = 4, [4, 2, 2], 8
    shape = {"capacity": 8, "ratios": ratios, "kernel_size": 3, "dilations": [1, 3], "n_channels": channels}
    shape["convolutions"] = style
    if adaptive:
        shape["adain"] = AdaptiveInstanceNormalization
    branch = partial(NoiseGeneratorV2, convolutions=style, hidden_size=8, ratios=[2, 2], noise_bands=5)
    codec = RAVE(
        sampling_rate=sampling_rate,
        n_channels=channels,
        pqmf=CachedPQMF(attenuation=60, n_band=bands),
        encoder=VariationalEncoder(EncoderV2(data_size=bands, latent_size=latents, n_out=2, **shape)),
        decoder=GeneratorV2(
            data_size=bands,
            latent_size=latents,
            amplitude_modulation=True,
            noise_module=branch if noise else None,
            **shape,
        ),
    )
    with torch.no_grad():
        rotation = torch.linalg.qr(torch.randn(latents, latents))[0]
        codec.latent_pca.copy_(rotation)
        codec.latent_mean.normal_(0, 0.1)
        codec.fidelity.copy_(torch.tensor([0.5, 0.7, 0.8, 0.9, 0.96, 0.98, 0.99, 1.0]))
    return codec.eval()


def make_noise_loud(codec):
    """Raise the noise branch of a codec, in place, to a level that tests hear: untrained, it is at -100 dB."""
    *_, last = (layer for layer in codec.decoder.noise_module.modules() if isinstance(layer, torch.nn.Conv1d))
    with torch.no_grad():
        last.bias.add_(4.0)
    return codec


def speak_up(codec):
    """Scale every convolution of a codec, whose weights get folded, so that noise keeps its level: untrained, a deep
    network answers with nearly nothing, and nearly nothing equals anything."""
    codec = fold_weight_norm(codec)

    def scale(module, inputs, y):
        level = y.std()
        if level < 1e-9:
            return y
        for values in (module.weight, module.bias):
            if values is not None:
                values.div_(level)
        return y / level

    hooks = [
        module.register_forward_hook(scale)
        for name, module in codec.named_modules()
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)) and not name.startswith(("pqmf", "spectro"))
    ]
    audio = 0.3 * torch.randn(1, codec.channels, 32 * codec.hop)
    with torch.no_grad():
        codec(audio)
    for hook in hooks:
        hook.remove()
    if codec.num_codebooks:
        was_training = codec.training
        codec.train().encode_bands(codec.encoder_input(audio), step=0)  # unplaced codes are zeros
        codec.train(was_training)
    return codec
