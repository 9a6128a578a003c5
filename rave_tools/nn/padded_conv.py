"""Convolutions that pad themselves, with the norms and the state-dict keys of EnCodec and AudioCraft, and that stream.

The padding is that of the field: a convolution of stride s gives ceil(T / s) samples, a transposed one s T.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.nn import time_major
from rave_tools.nn.conv import PlainConv1d, WeightNormed, fold_weight_norm
from rave_tools.nn.streaming import Memory, NotStreamable, Stateful, Streamable

Norm = Literal["none", "weight_norm", "spectral_norm", "time_group_norm"]
PadMode = Literal["constant", "reflect", "replicate"]

NORMS = ("none", "weight_norm", "spectral_norm", "time_group_norm")
PAD_MODES = ("constant", "reflect", "replicate")
FAINTEST_NORM = 1e-12


class SpectralNormed(WeightNormed):
    """Mixin of convolutions whose weight is divided by an estimate of its largest singular value.

    Each evaluation in training brings the estimate closer by one power iteration. Names are torch's: ``weight_orig``,
    ``weight_u``, ``weight_v``.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018.
    """

    rows_at = 0
    """Dimension of the weight that counts its rows: that of the output channels."""

    def init_spectral_norm(self) -> None:
        """To be called once, after the layer's own constructor."""
        weight = self.weight.detach()
        rows = weight.shape[self.rows_at]
        self.register_parameter("weight", None)
        self.weight_orig = nn.Parameter(weight.clone())
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0, eps=FAINTEST_NORM))
        self.register_buffer("weight_v", F.normalize(torch.randn(weight.numel() // rows), dim=0, eps=FAINTEST_NORM))

    def kernel(self) -> Tensor:
        """The weight in use."""
        if self.weight_orig is None:
            return self.weight
        matrix = self.weight_orig.transpose(0, self.rows_at).flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=FAINTEST_NORM))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=FAINTEST_NORM))
        # Copies, since a second evaluation before the gradient changes the buffers.
        return self.weight_orig / (self.weight_u.clone() @ (matrix @ self.weight_v.clone()))

    def fold_weight_norm(self) -> None:
        """Store the weight itself from now on."""
        if self.weight_orig is not None:
            was_training, self.training = self.training, False
            self.weight = nn.Parameter(self.kernel().detach().clone(), requires_grad=self.weight_orig.requires_grad)
            self.training = was_training
            self.register_parameter("weight_orig", None)
            self.weight_u = None
            self.weight_v = None


class SpectralConv1d(SpectralNormed, nn.Conv1d):
    """torch.nn.Conv1d with spectral normalisation inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_spectral_norm()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return F.conv1d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainConvTranspose1d(WeightNormed, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d with weight normalisation inside, a length per input channel."""

    def __init__(self, *args: Any, weight_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_weight_norm(weight_norm)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, T) -> (B, C', (T - 1) stride + kernel_size)."""
        return F.conv_transpose1d(x, self.kernel(), self.bias, self.stride)


class SpectralConvTranspose1d(SpectralNormed, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d with spectral normalisation inside."""

    rows_at = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_spectral_norm()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, T) -> (B, C', (T - 1) stride + kernel_size)."""
        return F.conv_transpose1d(x, self.kernel(), self.bias, self.stride)


class NormConv1d(nn.Module):
    """A convolution and the norm behind it; keys ``conv.*`` and ``norm.*``.

    Args:
        norm: how the weight or the output is normalised.
        norm_kwargs: arguments of the group norm.
        causal: refuse norms that look ahead.
        args, kwargs: of torch.nn.Conv1d.
    """

    def __init__(
        self, *args: Any, norm: Norm = "none", norm_kwargs: Mapping[str, Any] | None = None, causal: bool, **kwargs: Any
    ) -> None:
        super().__init__()
        check_norm(norm, norm_kwargs, causal=causal)
        if norm == "spectral_norm":
            self.conv: nn.Conv1d = SpectralConv1d(*args, **kwargs)
        else:
            self.conv = PlainConv1d(*args, weight_norm=norm == "weight_norm", **kwargs)
        self.norm = make_norm(norm, self.conv.out_channels, norm_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return self.norm(self.conv(x))

    def over_time(self, x: Tensor, left: int, right: int, mode: str) -> Tensor:
        """The same of a padded sound; see rave_tools.nn.time_major."""
        conv = self.conv
        y = time_major.conv1d(
            x, conv.kernel(), conv.bias,
            stride=conv.stride[0], dilation=conv.dilation[0], groups=conv.groups, left=left, right=right, mode=mode,
        )  # fmt: skip
        return y if isinstance(self.norm, nn.Identity) else normalize_over_time(self.norm, y)


class NormConvTranspose1d(nn.Module):
    """A transposed convolution and the norm behind it; keys ``convtr.*`` and ``norm.*``; see `NormConv1d`."""

    def __init__(
        self, *args: Any, norm: Norm = "none", norm_kwargs: Mapping[str, Any] | None = None, causal: bool, **kwargs: Any
    ) -> None:
        super().__init__()
        check_norm(norm, norm_kwargs, causal=causal)
        if norm == "spectral_norm":
            self.convtr: nn.ConvTranspose1d = SpectralConvTranspose1d(*args, **kwargs)
        else:
            self.convtr = PlainConvTranspose1d(*args, weight_norm=norm == "weight_norm", **kwargs)
        self.norm = make_norm(norm, self.convtr.out_channels, norm_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        return self.norm(self.convtr(x))

    def over_time(self, x: Tensor, left: int, length: int) -> Tensor:
        """So many samples of it; see rave_tools.nn.time_major. A group norm hears all of them before."""
        layer = self.convtr
        if isinstance(self.norm, nn.Identity):
            return time_major.conv_transpose1d(
                x, layer.kernel(), layer.bias, stride=layer.stride[0], left=left, length=length
            )
        whole = (x.shape[2] - 1) * layer.stride[0] + layer.kernel_size[0]
        y = time_major.conv_transpose1d(x, layer.kernel(), layer.bias, stride=layer.stride[0], length=whole)
        return normalize_over_time(self.norm, y)[..., left : left + length]


def fold_to_play(model: nn.Module) -> nn.Module:
    """Fold every normalised weight of a model in place, and lay those of padded convolutions as they are read.

    Outputs do not change. Not for streams and exports, which read weights in torch's own order.
    """
    fold_weight_norm(model)
    for module in model.modules():
        if isinstance(module, (NormConv1d, NormConvTranspose1d)):
            layer = module.conv if isinstance(module, NormConv1d) else module.convtr
            layer.weight.data = time_major.together(layer.weight.data)
    return model


class StreamableConv1d(nn.Module, Streamable):
    """Convolution that pads its input so that ceil(T / stride) samples come out; keys ``conv.conv.*``.

    Streaming, the past is silence where the plain layer pads with something else: ``reflect`` and ``replicate`` differ
    at the beginning and at the end of a sound.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as torch.nn.Conv1d.
        causal: all padding at the left; otherwise half of it, and the odd sample, is.
        norm: ``none``, ``weight_norm``, ``spectral_norm`` or ``time_group_norm`` (one group norm over channels and
            time, behind the convolution; never causal, never streaming).
        norm_kwargs: arguments of the group norm.
        pad_mode: ``constant`` (zeros), ``reflect`` or ``replicate``. Where a sound is too short to be reflected, zeros
            are put behind it first.

    Raises:
        ValueError: a norm or mode that does not exist, a kernel shorter than the stride, a causal group norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        causal: bool = False,
        norm: Norm = "none",
        norm_kwargs: Mapping[str, Any] | None = None,
        pad_mode: PadMode = "reflect",
    ) -> None:
        super().__init__()
        if pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode is {pad_mode!r}; it is one of {', '.join(PAD_MODES)}")
        self.extent = (kernel_size - 1) * dilation
        padding = self.extent + 1 - stride
        if padding < 0:
            raise ValueError(
                f"a convolution with stride {stride} needs a kernel that spans at least as many samples, got "
                f"{self.extent + 1}: samples in between would never be heard; use a larger kernel_size"
            )
        self.right = 0 if causal else padding // 2
        self.left = padding - self.right
        self.stride = stride
        self.pad_mode = pad_mode
        self.grouped = norm == "time_group_norm"
        self.streaming = False
        self.memory = Memory()
        self.conv = NormConv1d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            groups=groups,
            bias=bias,
            causal=causal,
            norm=norm,
            norm_kwargs=norm_kwargs,
        )

    def enable_streaming(self, delay: int) -> int:
        """As rave_tools.nn.conv.Conv1d: window n of the plain layer ends at n stride + extent - left."""
        refuse_group_norm(self.grouped)
        ahead = self.extent - self.left + delay
        self.streaming = True
        self.memory.length = self.extent - ahead % self.stride
        return ahead // self.stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', ceil(T / stride))."""
        if self.streaming:
            return self.conv(self.memory(x))
        if torch.jit.is_scripting():
            left, right, missing = self.padding(x.shape[-1])
            x = F.pad(F.pad(x, [0, missing]), [left, right], self.pad_mode)
            return self.conv(x[..., : x.shape[-1] - missing])
        return self.over_time(x)

    def over_time(self, x: Tensor) -> Tensor:
        """The plain layer."""
        left, right, missing = self.padding(x.shape[-1])
        if missing == 0:
            return self.conv.over_time(x, left, right, self.pad_mode)
        x = time_major.pad(F.pad(x, [0, missing]), left, right, self.pad_mode)
        return self.conv.over_time(x[..., : x.shape[-1] - missing], 0, 0, self.pad_mode)

    def padding(self, length: int) -> tuple[int, int, int]:
        """Samples at the left, at the right, where they also fill the last window, and what a reflection lacks."""
        left, right = self.left, self.right + -length % self.stride
        return left, right, max(0, max(left, right) - length + 1) if self.pad_mode == "reflect" else 0


class StreamableConvTranspose1d(nn.Module, Streamable, Stateful):
    """Transposed convolution that cuts its output to stride T samples and streams by overlap-add; keys ``convtr.*``.

    Args:
        in_channels, out_channels, kernel_size, stride: as torch.nn.ConvTranspose1d.
        causal: cut at the right only, or as `trim_right_ratio` says; otherwise half at each side, and the odd sample at
            the left.
        norm, norm_kwargs: see `StreamableConv1d`.
        trim_right_ratio: share of the cut that is made at the right, causal only. Less than 1 looks ahead.

    Raises:
        ValueError: a kernel shorter than the stride, a ratio outside [0, 1], or one that nothing would heed.
    """

    state_names = ("tail",)
    tail: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        causal: bool = False,
        norm: Norm = "none",
        norm_kwargs: Mapping[str, Any] | None = None,
        trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= trim_right_ratio <= 1:
            raise ValueError(f"trim_right_ratio is {trim_right_ratio}; it is a share between 0 and 1")
        if not causal and trim_right_ratio != 1:
            raise ValueError(
                f"trim_right_ratio is {trim_right_ratio}, but only causal networks heed it; set causal = True, or "
                "leave it at 1.0"
            )
        padding = kernel_size - stride
        if padding < 0:
            raise ValueError(
                f"a transposed convolution with stride {stride} needs a kernel of at least {stride} samples, got "
                f"{kernel_size}"
            )
        right = ceil(padding * trim_right_ratio) if causal else padding // 2
        self.left = padding - right
        self.stride = stride
        self.overlap = padding
        self.grouped = norm == "time_group_norm"
        self.streaming = False
        self.register_buffer("tail", torch.zeros(0, 0, 0), persistent=False)
        self.convtr = NormConvTranspose1d(
            in_channels, out_channels, kernel_size, stride=stride, causal=causal, norm=norm, norm_kwargs=norm_kwargs
        )

    def enable_streaming(self, delay: int) -> int:
        """As rave_tools.nn.conv.ConvTranspose1d."""
        refuse_group_norm(self.grouped)
        self.streaming = True
        return delay * self.stride + self.left

    def forget(self) -> None:
        self.tail = torch.zeros_like(self.tail[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T * stride)."""
        length = x.shape[-1] * self.stride
        if not self.streaming:
            if torch.jit.is_scripting():
                return self.convtr(x)[..., self.left : self.left + length]
            return self.convtr.over_time(x, self.left, length)
        layer = self.convtr.convtr
        full = F.conv_transpose1d(x, layer.kernel(), None, self.stride)
        if self.overlap > 0:
            if self.tail.shape[0] != x.shape[0]:
                self.tail = torch.zeros(x.shape[0], full.shape[1], self.overlap, dtype=x.dtype, device=x.device)
            full = torch.cat([full[..., : self.overlap] + self.tail, full[..., self.overlap :]], -1)
            self.tail = full[..., length:].clone()
        y = full[..., :length]
        bias = layer.bias  # a name of its own, of which TorchScript knows that it is not None
        if bias is not None:
            y = y + bias.unsqueeze(-1)
        return y


def check_norm(norm: str, norm_kwargs: Mapping[str, Any] | None, *, causal: bool) -> None:
    """Refuse norms that do not exist, and arguments that nothing heeds."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; it is one of {', '.join(NORMS)}")
    if norm == "time_group_norm" and causal:
        raise ValueError(
            "time_group_norm looks at the whole sound and cannot be causal; set causal = False, or norm = 'weight_norm'"
        )
    if norm_kwargs and norm != "time_group_norm":
        raise ValueError(
            f"norm_params {dict(norm_kwargs)} are arguments of time_group_norm, but norm is {norm!r}; take them out"
        )


def make_norm(norm: str, channels: int, norm_kwargs: Mapping[str, Any] | None) -> nn.Module:
    """What stands behind a convolution."""
    return nn.GroupNorm(1, channels, **(norm_kwargs or {})) if norm == "time_group_norm" else nn.Identity()


def normalize_over_time(norm: nn.Module, x: Tensor) -> Tensor:
    """A group norm, which keeps the order of memory of images only: (B, C, T) -> (B, C, T)."""
    return norm(x.unsqueeze(2)).squeeze(2)


def refuse_group_norm(grouped: bool) -> None:
    """A stream never knows the whole sound."""
    if grouped:
        raise NotStreamable(
            "time_group_norm normalises over the whole sound and has no streaming form; build the network with "
            "norm = 'weight_norm', or play it offline"
        )
