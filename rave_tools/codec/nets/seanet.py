"""SEANet, the encoder and decoder of EnCodec and AudioCraft; argument names and state-dict keys are AudioCraft's.

Sources: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.1; Tagliasacchi et al., "SEANet: A
Multi-modal Speech Enhancement Network", 2020.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from rave_tools.nn.compose import Sequential
from rave_tools.nn.padded_conv import Norm, PadMode, StreamableConv1d, StreamableConvTranspose1d, check_norm
from rave_tools.nn.recurrent import LSTM
from rave_tools.nn.streaming import Delay, Streamable, stream_through


@dataclass(frozen=True)
class Style:
    """What all layers of a SEANet have in common. Fields: see `SEANetEncoder`."""

    activation: str
    activation_params: Mapping[str, Any] | None
    norm: Norm
    norm_params: Mapping[str, Any] | None
    causal: bool
    pad_mode: PadMode
    residual_kernel_size: int
    dilation_base: int
    compress: int
    true_skip: bool

    def activate(self, *, fresh: bool = True) -> nn.Module:
        """An activation; where nothing else reads its input (`fresh`), an ELU writes over it instead of beside it."""
        params = dict(self.activation_params or {})
        if not fresh:
            params.pop("inplace", None)  # what the skip reads must stand
        elif self.activation == "ELU" and params.get("alpha", 1.0) >= 0:
            params.setdefault("inplace", True)
        return make_activation(self.activation, params)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> StreamableConv1d:
        """A convolution in this style; options are those of StreamableConv1d."""
        return StreamableConv1d(
            in_channels,
            out_channels,
            kernel_size,
            causal=self.causal,
            norm=self.norm,
            norm_kwargs=self.norm_params if self.norm == "time_group_norm" else None,
            pad_mode=self.pad_mode,
            **options,
        )

    def upsample(self, in_channels: int, ratio: int, trim_right_ratio: float) -> StreamableConvTranspose1d:
        """Half as many channels, ratio times as many samples."""
        return StreamableConvTranspose1d(
            in_channels,
            in_channels // 2,
            2 * ratio,
            stride=ratio,
            causal=self.causal,
            norm=self.norm,
            norm_kwargs=self.norm_params if self.norm == "time_group_norm" else None,
            trim_right_ratio=trim_right_ratio,
        )

    def residuals(self, channels: int, count: int) -> list[nn.Module]:
        """Residual blocks with growing dilation."""
        return [SEANetResnetBlock(channels, self.dilation_base**j, self) for j in range(count)]

    def unnormed(self, off: bool) -> "Style":
        """The same without norm, where it is off."""
        return replace(self, norm="none") if off else self


class SEANetResnetBlock(nn.Module, Streamable):
    """shortcut(x) + block(x), the skip waiting for what the block costs; keys ``block.{1,3}.*`` and ``shortcut.*``.

    Args:
        channels: in and out.
        dilation: of the first convolution.
        style: of the network.
    """

    def __init__(self, channels: int, dilation: int, style: Style) -> None:
        super().__init__()
        hidden = channels // style.compress
        if hidden < 1:
            raise ValueError(
                f"compress {style.compress} leaves nothing of {channels} channels; use a smaller compress or a larger "
                "n_filters"
            )
        self.block = Sequential(
            style.activate(fresh=False),
            style.conv(channels, hidden, style.residual_kernel_size, dilation=dilation),
            style.activate(),
            style.conv(hidden, channels, 1),
        )
        self.shortcut: nn.Module = nn.Identity() if style.true_skip else style.conv(channels, channels, 1)
        self.late = Delay()

    def enable_streaming(self, delay: int) -> int:
        skipped = stream_through(self.shortcut, delay, "shortcut")
        through = self.block.enable_streaming(delay)
        self.late.set(through - skipped)
        return through

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        skipped = self.late(self.shortcut(x))
        return self.block(x).add_(skipped)


class SEANetEncoder(nn.Module, Streamable):
    """Waveform to latents: convolutions, residual blocks and strides, a recurrent layer if wanted.

    Args:
        channels: C of the audio, any number.
        dimension: D of the latents.
        n_filters: channels behind the first convolution; each stride doubles them.
        n_residual_layers: residual blocks before each stride, dilated by powers of `dilation_base`.
        ratios: strides in the decoder's order, the reverse of the encoder's.
        activation: name of a class of torch.nn.
        activation_params: its arguments; alpha 1 of an ELU, none of others by default.
        norm: ``none``, ``weight_norm``, ``spectral_norm`` or ``time_group_norm`` (not causal, does not stream).
        norm_params: arguments of time_group_norm.
        kernel_size, last_kernel_size, residual_kernel_size: of the first and last convolution and of the blocks.
        dilation_base: see n_residual_layers.
        causal: look at the past only; with constant padding the stream equals the plain network from the first sample.
        pad_mode: ``constant``, ``reflect`` or ``replicate``. A stream begins with silence, as only ``constant`` does.
        true_skip: let the skip of a residual block pass unchanged; otherwise it is a convolution of one sample.
        compress: a residual block has this many times fewer channels inside.
        lstm: layers of the recurrent layer, 0 for none.
        disable_norm_outer_blocks: so many blocks, counted from the waveform, go without norm. Blocks are the first
            convolution, each stride with its residual blocks, and the last convolution.

    Attributes:
        hop: samples per latent frame.
        in_channels, latent_size, n_out: C, D, 1.

    Raises:
        ValueError: options that do not exist or contradict each other.
    """

    n_out = 1

    def __init__(
        self,
        channels: int = 1,
        dimension: int = 128,
        *,
        n_filters: int = 32,
        n_residual_layers: int = 1,
        ratios: Sequence[int] = (8, 5, 4, 2),
        activation: str = "ELU",
        activation_params: Mapping[str, Any] | None = None,
        norm: Norm = "none",
        norm_params: Mapping[str, Any] | None = None,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        residual_kernel_size: int = 3,
        dilation_base: int = 2,
        causal: bool = False,
        pad_mode: PadMode = "reflect",
        true_skip: bool = True,
        compress: int = 2,
        lstm: int = 0,
        disable_norm_outer_blocks: int = 0,
    ) -> None:
        super().__init__()
        check_norm(norm, norm_params, causal=causal)
        blocks = count_blocks(ratios, disable_norm_outer_blocks)
        style = Style(
            activation, activation_params, norm, norm_params, causal, pad_mode, residual_kernel_size, dilation_base,
            compress, true_skip,
        )  # fmt: skip
        self.in_channels = channels
        self.latent_size = dimension
        self.hop = prod(ratios)
        width = n_filters
        layers: list[nn.Module] = [style.unnormed(disable_norm_outer_blocks >= 1).conv(channels, width, kernel_size)]
        for i, ratio in enumerate(reversed(ratios)):
            own = style.unnormed(disable_norm_outer_blocks >= i + 2)
            layers += own.residuals(width, n_residual_layers)
            layers += [own.activate(), own.conv(width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        if lstm:
            layers.append(LSTM(width, lstm))
        last = style.unnormed(disable_norm_outer_blocks == blocks)
        layers += [last.activate(), last.conv(width, dimension, last_kernel_size)]
        self.model = Sequential(*layers)

    def enable_streaming(self, delay: int) -> int:
        return stream_through(self.model, delay, "model")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, D, ceil(T / hop))."""
        return self.model(x)


class SEANetDecoder(nn.Module, Streamable):
    """Latents to waveform, the encoder's mirror image.

    Args:
        channels, dimension, n_filters, n_residual_layers, ratios, activation, activation_params, norm, norm_params,
        kernel_size, last_kernel_size, residual_kernel_size, dilation_base, causal, pad_mode, true_skip, compress, lstm,
        disable_norm_outer_blocks: see `SEANetEncoder`.
        final_activation: name of a class of torch.nn that stands behind the last convolution, such as ``Tanh``.
        final_activation_params: its arguments.
        trim_right_ratio: share of what a causal transposed convolution gives too much that is cut at the right; less
            than 1 looks ahead.

    Attributes:
        hop: samples per latent frame.
        out_channels, latent_size: C, D.

    Raises:
        ValueError: options that do not exist or contradict each other.
    """

    def __init__(
        self,
        channels: int = 1,
        dimension: int = 128,
        *,
        n_filters: int = 32,
        n_residual_layers: int = 1,
        ratios: Sequence[int] = (8, 5, 4, 2),
        activation: str = "ELU",
        activation_params: Mapping[str, Any] | None = None,
        final_activation: str | None = None,
        final_activation_params: Mapping[str, Any] | None = None,
        norm: Norm = "none",
        norm_params: Mapping[str, Any] | None = None,
        kernel_size: int = 7,
        last_kernel_size: int = 7,
        residual_kernel_size: int = 3,
        dilation_base: int = 2,
        causal: bool = False,
        pad_mode: PadMode = "reflect",
        true_skip: bool = True,
        compress: int = 2,
        lstm: int = 0,
        disable_norm_outer_blocks: int = 0,
        trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        check_norm(norm, norm_params, causal=causal)
        blocks = count_blocks(ratios, disable_norm_outer_blocks)
        if final_activation is None and final_activation_params:
            raise ValueError(
                f"final_activation_params {dict(final_activation_params)} do nothing without final_activation; name it"
            )
        style = Style(
            activation, activation_params, norm, norm_params, causal, pad_mode, residual_kernel_size, dilation_base,
            compress, true_skip,
        )  # fmt: skip
        self.out_channels = channels
        self.latent_size = dimension
        self.hop = prod(ratios)
        width = n_filters * 2 ** len(ratios)
        layers: list[nn.Module] = [
            style.unnormed(disable_norm_outer_blocks == blocks).conv(dimension, width, kernel_size)
        ]
        if lstm:
            layers.append(LSTM(width, lstm))
        for i, ratio in enumerate(ratios):
            own = style.unnormed(disable_norm_outer_blocks >= blocks - (i + 1))
            layers += [own.activate(), own.upsample(width, ratio, trim_right_ratio)]
            width //= 2
            layers += own.residuals(width, n_residual_layers)
        last = style.unnormed(disable_norm_outer_blocks >= 1)
        layers += [last.activate(), last.conv(width, channels, last_kernel_size)]
        if final_activation is not None:
            layers.append(make_activation(final_activation, final_activation_params or {}))
        self.model = Sequential(*layers)

    def enable_streaming(self, delay: int) -> int:
        return stream_through(self.model, delay, "model")

    def forward(self, z: Tensor) -> Tensor:
        """(B, D, N) -> (B, C, N * hop)."""
        return self.model(z)


def make_activation(name: str, params: Mapping[str, Any]) -> nn.Module:
    """A module of torch.nn by its name."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"activation {name!r} is no class of torch.nn; ELU, ReLU, LeakyReLU, SiLU and Tanh are some")
    return kind(**params)


def count_blocks(ratios: Sequence[int], disable_norm_outer_blocks: int) -> int:
    """First and last convolution, and one block per ratio."""
    if not ratios or min(ratios) < 1:
        raise ValueError(f"ratios are {list(ratios)}; they are at least one stride of at least 1")
    blocks = len(ratios) + 2
    if not 0 <= disable_norm_outer_blocks <= blocks:
        raise ValueError(
            f"disable_norm_outer_blocks is {disable_norm_outer_blocks}, but there are {blocks} blocks: the first and "
            "the last convolution and one per ratio"
        )
    return blocks
