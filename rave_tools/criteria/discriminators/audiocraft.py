"""Judging the periods and the scales of a waveform with AudioCraft's networks, whose state-dict keys these have."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.contracts import Features
from rave_tools.criteria.discriminators.convnet import along_time
from rave_tools.nn.conv import Conv2d, PlainConv1d


class MultiPeriodDiscriminator(nn.Module):
    """One network per period p, which sees the waveform folded into rows of every p-th sample.

    The feature maps are taken after the activation. AudioCraft counts the verdict among them: for that,
    ``FeatureMatching.include_logits = True``.

    Args:
        channels: of the audio.
        periods: in samples; primes share least.
        n_layers: strided layers.
        kernel_sizes: of the layers, and of the verdict, along time.
        stride: of every layer but the last.
        filters: width before the first layer, as it were.
        filters_scale: each layer's width relative to the one before.
        max_filters: greatest width.
        out_channels: verdicts per place.
        slope: of the leaky rectifiers below zero.

    Source: Kong et al., "HiFi-GAN", 2020, section 2.3.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        n_layers: int = 5,
        kernel_sizes: tuple[int, int] = (5, 3),
        stride: int = 3,
        filters: int = 8,
        filters_scale: int = 4,
        max_filters: int = 1024,
        out_channels: int = 1,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        widths = [channels, *(min(filters * filters_scale ** (i + 1), max_filters) for i in range(n_layers))]
        strides = [stride] * (n_layers - 1) + [1]
        self.discriminators = nn.ModuleList(
            PeriodNetwork(p, widths, strides=strides, kernel_sizes=kernel_sizes, out_channels=out_channels, slope=slope)
            for p in periods
        )

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per period, of shape (B, C', T', p)."""
        return [network(audio) for network in self.discriminators]


class PeriodNetwork(nn.Module):
    """Sees every p-th sample side by side.

    Args:
        period: p, in samples.
        widths: channels before the first layer and after each.
        strides: of each layer.
        kernel_sizes: of the layers, and of the verdict.
        out_channels: verdicts per place.
        slope: of the leaky rectifiers below zero.
    """

    def __init__(
        self,
        period: int,
        widths: Sequence[int],
        *,
        strides: Sequence[int],
        kernel_sizes: tuple[int, int],
        out_channels: int,
        slope: float,
    ) -> None:
        super().__init__()
        self.period = period
        self.slope = slope
        self.convs = nn.ModuleList(
            _FoldedLayer(narrow, wide, kernel_sizes[0], stride)
            for narrow, wide, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.conv_post = _FoldedLayer(widths[-1], out_channels, kernel_sizes[1], 1)

    def forward(self, audio: Tensor) -> Features:
        """(B, C, T) -> Features of shape (B, C', T', p); the end of the last row is its mirror image."""
        missing = -audio.shape[-1] % self.period
        folded = F.pad(audio, (0, missing), mode="reflect").unflatten(-1, (-1, self.period))
        x = folded.permute(0, 3, 1, 2).flatten(0, 1)
        maps = []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), self.slope, inplace=True)
            maps.append(self._as_rows(x))
        return Features(self._as_rows(self.conv_post(x)), maps)

    def _as_rows(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.period)).permute(0, 2, 3, 1)


class MultiScaleDiscriminator(nn.Module):
    """Networks of one form, each listening at a lower sample rate than the one before.

    The feature maps are taken after the activation. AudioCraft counts the verdict among them: for that,
    ``FeatureMatching.include_logits = True``.

    Args:
        channels: of the audio.
        n_scales: networks.
        downsample_factor: from one to the next.
        pooled: False lets all of them hear the full rate, as those of AudioCraft do, which drops the signal that it has
            pooled.
        filters: width of the first layer.
        max_filters: greatest width.
        downsample_scales: strides of the grouped layers, which widen by as much; their kernels are 10 times as long.
        kernel_sizes: odd; of the last layer and of the verdict, and their product that of the first.
        out_channels: verdicts per place.
        slope: of the leaky rectifiers below zero.

    Source: Kumar et al., "MelGAN", 2019, section 2.2; Kong et al., "HiFi-GAN", 2020, section 2.3.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        n_scales: int = 3,
        downsample_factor: int = 2,
        pooled: bool = True,
        filters: int = 16,
        max_filters: int = 1024,
        downsample_scales: Sequence[int] = (4, 4, 4, 4),
        kernel_sizes: tuple[int, int] = (5, 3),
        out_channels: int = 1,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        if kernel_sizes[0] % 2 == 0 or kernel_sizes[1] % 2 == 0:
            raise ValueError(f"MultiScaleDiscriminator.kernel_sizes are {kernel_sizes}; both must be odd")
        if filters % 4:
            raise ValueError(f"MultiScaleDiscriminator.filters is {filters}; groups of four need a multiple of 4")
        self.pooled = pooled
        self.downsample_factor = downsample_factor
        self.discriminators = nn.ModuleList(
            ScaleNetwork(
                channels,
                filters=filters,
                max_filters=max_filters,
                strides=downsample_scales,
                kernel_sizes=kernel_sizes,
                out_channels=out_channels,
                slope=slope,
            )
            for _ in range(n_scales)
        )

    def forward(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale, of shape (B, C', T')."""
        features, factor = [], self.downsample_factor
        for index, network in enumerate(self.discriminators):
            if index and self.pooled:
                audio = F.avg_pool1d(audio, 2 * factor, factor, padding=factor)
            features.append(network(audio))
        return features


class ScaleNetwork(nn.Module):
    """Sees the waveform as it is; see `MultiScaleDiscriminator` for its arguments."""

    def __init__(
        self,
        channels: int,
        *,
        filters: int,
        max_filters: int,
        strides: Sequence[int],
        kernel_sizes: tuple[int, int],
        out_channels: int,
        slope: float,
    ) -> None:
        super().__init__()
        self.slope = slope
        first = kernel_sizes[0] * kernel_sizes[1]
        layers: list[nn.Module] = [
            nn.Sequential(nn.ReflectionPad1d(first // 2), _Layer(channels, filters, first, margin=0))
        ]
        width = filters
        for stride in strides:
            wide = min(width * stride, max_filters)
            layers.append(_Layer(width, wide, 10 * stride + 1, stride=stride, groups=width // 4))
            width = wide
        wide = min(2 * width, max_filters)
        layers.append(_Layer(width, wide, kernel_sizes[0]))
        self.convs = nn.ModuleList(layers)
        self.conv_post = _Layer(wide, out_channels, kernel_sizes[1])

    def forward(self, audio: Tensor) -> Features:
        """(B, C, T) -> Features of shape (B, C', T')."""
        x, maps = audio, []
        for layer in self.convs:
            x = F.leaky_relu(layer(x), self.slope, inplace=True)
            maps.append(x)
        return Features(self.conv_post(x), maps)


class _Layer(nn.Module):
    """A convolution of a signal, under the name that AudioCraft's checkpoints have for it."""

    def __init__(
        self, narrow: int, wide: int, length: int, *, stride: int = 1, groups: int = 1, margin: int | None = None
    ) -> None:
        super().__init__()
        margin = length // 2 if margin is None else margin
        self.conv = PlainConv1d(narrow, wide, length, stride=stride, groups=groups, padding=margin, weight_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return self.conv(x)


class _FoldedLayer(nn.Module):
    """A convolution along time of a folded signal, under the name that AudioCraft's checkpoints have for it."""

    def __init__(self, narrow: int, wide: int, length: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv2d(narrow, wide, (length, 1), stride=(stride, 1), padding=(length // 2, 0), weight_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B*p, C, T/p) -> (B*p, C', T')."""
        return along_time(self.conv, x)
