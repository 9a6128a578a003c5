"""The networks of RAVE (Caillon and Esling, arXiv 2111.05011), first and second version."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rave_tools.nn.activations import leaky_relu, shifted_power_sigmoid
from rave_tools.nn.compose import Branches, Residual, Sequential
from rave_tools.nn.conv import Conv1d, Convolutions
from rave_tools.nn.normalization import SampleNorm
from rave_tools.nn.residual import Activation, Chain, DilatedUnit, ResidualStack, UpsampleLayer
from rave_tools.nn.streaming import Delay, Streamable, stream_through

NoiseFactory = Callable[[int, int], nn.Module]
LayerFactory = Callable[[int], nn.Module]


def _per_ratio(dilations: Sequence[int] | Sequence[Sequence[int]], ratios: Sequence[int]) -> list[list[int]]:
    """One list of dilations per ratio; a flat list serves every ratio."""
    if isinstance(dilations[0], int):
        return [list(dilations) for _ in ratios]
    if len(dilations) != len(ratios):
        raise ValueError(
            f"DILATIONS has {len(dilations)} lists and RATIOS has {len(ratios)} numbers; give one list per ratio"
        )
    return [list(d) for d in dilations]


class EncoderV1(Chain):
    """Encoder of RAVE v1: strided convolutions between normalisations.

    Args:
        data_size: bands per audio channel.
        capacity: channels of the first layer, doubled at each ratio.
        latent_size: D.
        ratios: strides.
        n_out: outputs per latent (2: mean and scale).
        convolutions: style of the convolutions.
        sample_norm: normalise each instant instead of each channel over the batch.
        repeat_layers: layers per ratio.
        n_channels: audio channels.
    """

    def __init__(
        self,
        *,
        data_size: int,
        capacity: int,
        latent_size: int,
        ratios: Sequence[int],
        n_out: int,
        convolutions: Convolutions,
        sample_norm: bool = False,
        repeat_layers: int = 1,
        n_channels: int = 1,
    ) -> None:
        layers: list[nn.Module] = [convolutions.plain(data_size * n_channels, capacity, 7)]

        def normalized_layer(width: int, layer: Conv1d) -> list[nn.Module]:
            return [SampleNorm() if sample_norm else nn.BatchNorm1d(width), nn.LeakyReLU(0.2), layer]

        width = capacity
        for ratio in ratios:
            layers += normalized_layer(width, convolutions.plain(width, 2 * width, 2 * ratio + 1, stride=ratio))
            width *= 2
            for _ in range(repeat_layers - 1):
                layers += normalized_layer(width, convolutions.plain(width, width, 3))
        layers += [nn.LeakyReLU(0.2), convolutions.plain(width, latent_size * n_out, 5, groups=n_out)]
        super().__init__(Sequential(*layers))
        self.hop = math.prod(ratios)
        self.latent_size = latent_size
        self.n_out = n_out
        self.in_channels = data_size * n_channels


class EncoderV2(Chain):
    """Encoder of RAVE v2: residual dilated units, then a strided convolution, at each ratio.

    Args:
        data_size: bands per audio channel.
        capacity: channels of the first layer, doubled at each ratio.
        latent_size: D.
        ratios: strides.
        n_out: outputs per latent (2: mean and scale).
        kernel_size: of the residual units.
        dilations: of the residual units, one list or one per ratio.
        convolutions: style of the convolutions.
        keep_dim: multiply the channels by the ratio instead of two.
        n_channels: audio channels.
        activation: factory of those around the strided convolutions, called with the number of channels.
        unit_activation: factory of those inside the residual units (acids-rave's snake.gin does not reach them).
        adain: factory of a layer in front of each residual unit, called with the number of channels, or None.
        recurrent_layer: factory of a last layer, called with the number of channels, or None.
    """

    def __init__(
        self,
        *,
        data_size: int,
        capacity: int,
        latent_size: int,
        ratios: Sequence[int],
        n_out: int,
        kernel_size: int,
        dilations: Sequence[int] | Sequence[Sequence[int]],
        convolutions: Convolutions,
        keep_dim: bool = False,
        n_channels: int = 1,
        activation: Activation = leaky_relu,
        unit_activation: Activation = leaky_relu,
        adain: LayerFactory | None = None,
        recurrent_layer: LayerFactory | None = None,
    ) -> None:
        layers: list[nn.Module] = [convolutions.normalized(data_size * n_channels, capacity, 2 * kernel_size + 1)]
        width = capacity
        for ratio, unit_dilations in zip(ratios, _per_ratio(dilations, ratios), strict=True):
            for dilation in unit_dilations:
                layers += [] if adain is None else [adain(width)]
                unit = DilatedUnit(
                    width, kernel_size, dilation=dilation, convolutions=convolutions, activation=unit_activation
                )
                layers.append(Residual(unit))
            wider = width * (ratio if keep_dim else 2)
            layers += [activation(width), convolutions.normalized(width, wider, 2 * ratio, stride=ratio)]
            width = wider
        layers += [activation(width), convolutions.normalized(width, latent_size * n_out, kernel_size)]
        layers += [] if recurrent_layer is None else [recurrent_layer(latent_size * n_out)]
        super().__init__(Sequential(*layers))
        self.hop = math.prod(ratios)
        self.latent_size = latent_size
        self.n_out = n_out
        self.in_channels = data_size * n_channels


class _Loudness(Conv1d):
    """A strided convolution whose output is held until the next one."""

    def enable_streaming(self, delay: int) -> int:
        return super().enable_streaming(delay) * self.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, 1, T)."""
        return self.convolve(x).repeat_interleave(self.stride[0], -1)


class GeneratorV1(nn.Module, Streamable):
    """Decoder of RAVE v1: waveform times loudness, plus filtered noise.

    Args:
        latent_size: D.
        capacity: channels of the last layer, doubled at each ratio towards the latents.
        data_size: bands per audio channel.
        ratios: upsampling, first to last.
        residual_stack: factory, called with the number of channels.
        convolutions: style of the convolutions.
        loud_stride: frames that share a loudness.
        noise_module: factory of the noise branch, called with (channels, bands), or None.
        noise_from_phase: training phase from which on the noise is heard.
        n_channels: audio channels.
    """

    def __init__(
        self,
        *,
        latent_size: int,
        capacity: int,
        data_size: int,
        ratios: Sequence[int],
        residual_stack: Callable[[int], nn.Module] | None = None,
        convolutions: Convolutions,
        loud_stride: int = 1,
        noise_module: NoiseFactory | None = None,
        noise_from_phase: int = 2,
        n_channels: int = 1,
    ) -> None:
        super().__init__()
        width = capacity * 2 ** len(ratios)
        layers: list[nn.Module] = [convolutions.normalized(latent_size, width, 7)]
        for ratio in ratios:
            layers.append(UpsampleLayer(width, width // 2, ratio=ratio, convolutions=convolutions))
            width //= 2
            if residual_stack is None:
                layers.append(ResidualStack(width, convolutions=convolutions))
            else:
                layers.append(residual_stack(width))
        self.net = Sequential(*layers)
        out_channels = data_size * n_channels
        loudness = _Loudness(
            width,
            1,
            2 * loud_stride + 1,
            stride=loud_stride,
            padding=convolutions.same(2 * loud_stride + 1, loud_stride),
            bias=convolutions.bias,
            weight_norm=convolutions.normalization == "weight_norm",
        )
        branches: list[nn.Module] = [convolutions.normalized(width, out_channels, 7), loudness]
        if noise_module is not None:
            branches.append(noise_module(width, out_channels))
        self.synth = Branches(*branches)
        self.noise_from_phase = noise_from_phase
        self.hop = math.prod(ratios)
        self.latent_size = latent_size
        self.out_channels = out_channels

    def enable_streaming(self, delay: int) -> int:
        return self.synth.enable_streaming(self.net.enable_streaming(delay))

    def forward(self, z: Tensor, phase: int = 2) -> Tensor:
        """Latents to bands: (B, D, N) -> (B, C*M, N * hop); ``phase`` is that of training, 2 outside of it."""
        outputs = self.synth(self.net(z))
        bands = torch.tanh(outputs[0]) * shifted_power_sigmoid(outputs[1])
        if len(outputs) > 2 and phase >= self.noise_from_phase:
            bands = bands + outputs[2]
        return bands


class GeneratorV2(nn.Module, Streamable):
    """Decoder of RAVE v2: the encoder mirrored, with amplitude modulation and an optional noise branch.

    Args:
        capacity: channels of the last layer, doubled at each ratio towards the latents.
        ratios: those of the encoder, in the encoder's order.
        latent_size: D, with the channels of a noise augmentation.
        kernel_size: of the residual units.
        dilations: of the residual units, one list or one per ratio, in the encoder's order.
        convolutions: style of the convolutions.
        keep_dim: divide the channels by the ratio instead of two.
        data_size: bands per audio channel.
        n_channels: audio channels.
        amplitude_modulation: draw an amplitude in (0, 1) for each band and instant.
        noise_module: factory of the noise branch, called with (channels, bands), or None.
        activation: factory of those around the transposed convolutions, called with the number of channels.
        unit_activation: factory of those inside the residual units (acids-rave's snake.gin does not reach them).
        adain: factory of a layer in front of each residual unit, called with the number of channels, or None.
        recurrent_layer: factory of a first layer, called with the latent size, or None.
    """

    def __init__(
        self,
        *,
        capacity: int,
        ratios: Sequence[int],
        latent_size: int,
        kernel_size: int,
        dilations: Sequence[int] | Sequence[Sequence[int]],
        convolutions: Convolutions,
        keep_dim: bool = False,
        data_size: int = 1,
        n_channels: int = 1,
        amplitude_modulation: bool = False,
        noise_module: NoiseFactory | None = None,
        activation: Activation = leaky_relu,
        unit_activation: Activation = leaky_relu,
        adain: LayerFactory | None = None,
        recurrent_layer: LayerFactory | None = None,
    ) -> None:
        super().__init__()
        width = capacity * (math.prod(ratios) if keep_dim else 2 ** len(ratios))
        layers: list[nn.Module] = [] if recurrent_layer is None else [recurrent_layer(latent_size)]
        layers.append(convolutions.normalized(latent_size, width, kernel_size))
        for ratio, unit_dilations in zip(ratios[::-1], _per_ratio(dilations, ratios)[::-1], strict=True):
            narrower = width // (ratio if keep_dim else 2)
            layers += [activation(width), convolutions.upsampling(width, narrower, ratio)]
            width = narrower
            for dilation in unit_dilations:
                layers += [] if adain is None else [adain(width)]
                unit = DilatedUnit(
                    width, kernel_size, dilation=dilation, convolutions=convolutions, activation=unit_activation
                )
                layers.append(Residual(unit))
        layers.append(activation(width))
        out_channels = data_size * n_channels
        waveform = convolutions.normalized(
            width, out_channels * (2 if amplitude_modulation else 1), 2 * kernel_size + 1
        )
        self.noise_module: nn.Module | None = None
        self.waveform_module: nn.Module | None = None
        if noise_module is None:
            layers.append(waveform)
        else:
            self.waveform_module = waveform
            self.noise_module = noise_module(width, out_channels)
            self.waveform_delay = Delay()
            self.noise_delay = Delay()
        self.net = Sequential(*layers)
        self.amplitude_modulation = amplitude_modulation
        self.hop = math.prod(ratios)
        self.latent_size = latent_size
        self.out_channels = out_channels

    def enable_streaming(self, delay: int) -> int:
        delay = self.net.enable_streaming(delay)
        if self.noise_module is None:
            return delay
        waveform = stream_through(self.waveform_module, delay, "waveform_module")
        noise = stream_through(self.noise_module, delay, "noise_module")
        self.waveform_delay.set(max(waveform, noise) - waveform)
        self.noise_delay.set(max(waveform, noise) - noise)
        return max(waveform, noise)

    def forward(self, z: Tensor, phase: int = 2) -> Tensor:
        """Latents to bands: (B, D, N) -> (B, C*M, N * hop); the training phase changes nothing here."""
        x = self.net(z)
        bands = x
        if self.waveform_module is not None:
            bands = self.waveform_delay(self.waveform_module(x))
        if self.amplitude_modulation:
            bands, amplitude = bands.chunk(2, 1)
            bands = bands * torch.sigmoid(amplitude)
        if self.noise_module is not None:
            bands = bands + self.noise_delay(self.noise_module(x))
        return torch.tanh(bands)
