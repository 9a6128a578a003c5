"""Random weights that make a sound: fresh models answer so quietly that any two of them would pass for equal."""

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.nn.conv import WeightNormed


@torch.no_grad()
def make_loud(codec: Autoencoder, *, frames: int = 24) -> None:
    """Scale every convolution of encoder and decoder, in place, so that on noise it answers with unit deviation.

    Args:
        codec: as built, without biases; its codebooks are placed too, if it has any.
        frames: of the noise.
    """

    def scale(layer: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> Tensor:
        factor = 1 / y.std().clamp_min(1e-12)
        (layer.weight if layer.weight_g is None else layer.weight_g).mul_(factor)
        return y * factor

    networks = (codec.encoder, codec.decoder)
    hooks = [m.register_forward_hook(scale) for net in networks for m in net.modules() if isinstance(m, WeightNormed)]
    was_training = codec.training
    audio = 0.3 * torch.randn(2, codec.channels, frames * codec.hop)
    codec(audio)
    for hook in hooks:
        hook.remove()
    if codec.num_codebooks:
        with torch.enable_grad():  # codebooks learn when an encoder does
            codec.train().encode_bands(codec.encoder_input(audio), step=0)
    codec.train(was_training)
