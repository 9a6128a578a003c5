"""Random weights that make a sound: fresh models answer so quietly that any two of them would pass for equal."""

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.nn.conv import WeightNormed
from rave_tools.nn.padded_conv import StreamableConv1d, StreamableConvTranspose1d


@torch.no_grad()
def make_loud(codec: Autoencoder, *, frames: int = 24) -> None:
    """Scale every convolution of encoder and decoder, in place, so that on noise it answers with unit deviation.

    Args:
        codec: as built, without biases; its codebooks are placed too, if it has any.
        frames: of the noise.
    """

    def scale(module: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> Tensor:
        layer = next(m for m in module.modules() if isinstance(m, WeightNormed))
        factor = 1 / y.std().clamp_min(1e-12)
        (layer.weight if layer.weight_g is None else layer.weight_g).mul_(factor)
        return y * factor

    modules = [m for net in (codec.encoder, codec.decoder) for m in net.modules()]
    padded = [m for m in modules if isinstance(m, (StreamableConv1d, StreamableConvTranspose1d))]
    inside = {m for layer in padded for m in layer.modules()}  # which it computes itself, not by calling them
    layers = padded + [m for m in modules if isinstance(m, WeightNormed) and m not in inside]
    hooks = [m.register_forward_hook(scale) for m in layers]
    was_training = codec.training
    audio = 0.3 * torch.randn(2, codec.channels, frames * codec.hop)
    codec(audio)
    for hook in hooks:
        hook.remove()
    if codec.num_codebooks:
        with torch.enable_grad():  # codebooks learn when an encoder does
            codec.train().encode_bands(codec.encoder_input(audio), step=0)
    codec.train(was_training)
