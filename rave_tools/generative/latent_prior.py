"""RAVE's prior: a causal network that continues the latents of a codec, one quantised latent after the other.

Continuous latents are quantised here; those of a discrete codec are classes already, one codebook index each.

Latent d of a frame is predicted d steps after latent 0 of it (`quantization.to_diagonal`), so that one pass of the
network predicts one class of every latent and each of them still knows those before it. Source: Caillon and Esling,
"RAVE", arXiv 2111.05011, and the state-dict keys of acids-rave's ``Prior``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.generative.nets.wavenet import GatedBlock
from rave_tools.generative.quantization import from_classes, to_classes, to_diagonal
from rave_tools.nn.compose import Sequential
from rave_tools.nn.conv import Conv1d
from rave_tools.nn.streaming import Streamable

SLOPE = 0.2
SMALLEST_SCALE = 1e-4
COLDEST = 1e-3
"""A temperature at which no class but the most probable one has a chance; colder ones are not divided by."""


class LatentPrior(nn.Module, Streamable):
    """Probabilities of the next class of every latent, given all earlier ones.

    The first frame is predicted from silence, which the network sees as frames without any class, so the likelihood of
    a stretch is that of the whole stretch.

    Args:
        latent_size: D, latents that are predicted.
        resolution: classes per latent; of codebook indices, the size of a codebook.
        discrete: latents are codebook indices, so there is nothing to quantise.
        res_size: channels inside the network, a multiple of D.
        skp_size: channels of its output, a multiple of D.
        kernel_size: taps of each convolution over frames.
        cycle_size: blocks until the dilation, which doubles from block to block, starts again at 1.
        n_layers: number of blocks.

    Attributes:
        latent_shift, latent_scale: mean and deviation of the latents, which bring them near a standard normal; 0 and 1
            until measured. Shape (D,).
    """

    def __init__(
        self,
        latent_size: int,
        *,
        resolution: int = 32,
        discrete: bool = False,
        res_size: int = 512,
        skp_size: int = 256,
        kernel_size: int = 3,
        cycle_size: int = 4,
        n_layers: int = 10,
    ) -> None:
        super().__init__()
        for name, number in (("res_size", res_size), ("skp_size", skp_size)):
            if number % latent_size:
                raise ValueError(
                    f"LatentPrior.{name} is {number}, no multiple of its {latent_size} latents; "
                    f"take {-(-number // latent_size) * latent_size}, or another number of latents"
                )
        if resolution < 2:
            raise ValueError(f"LatentPrior.resolution is {resolution}; two classes are the fewest that say anything")
        self.latent_size = latent_size
        self.resolution = resolution
        self.discrete = discrete
        self.skp_size = skp_size
        self.dilations = [2 ** (layer % cycle_size) for layer in range(n_layers)]
        self.receptive_field = (kernel_size - 1) * (1 + sum(self.dilations)) + 1
        self.pre_net = Sequential(
            Conv1d(latent_size * resolution, res_size, kernel_size, padding=(kernel_size - 1, 0), groups=latent_size),
            nn.LeakyReLU(SLOPE),
        )
        self.residuals = nn.ModuleList(
            GatedBlock(res_size, skp_size, kernel_size=kernel_size, dilation=dilation) for dilation in self.dilations
        )
        self.post_net = Sequential(
            Conv1d(skp_size, skp_size, 1),
            nn.LeakyReLU(SLOPE),
            Conv1d(skp_size, latent_size * resolution, 1, groups=latent_size),
        )
        self.register_buffer("latent_shift", torch.zeros(latent_size))
        self.register_buffer("latent_scale", torch.ones(latent_size))

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Says how the latents of a codec lie.

        Args:
            mean: shape (D,).
            deviation: likewise.
        """
        self.latent_shift.copy_(mean)
        self.latent_scale.copy_(deviation.clamp(min=SMALLEST_SCALE))

    def enable_streaming(self, delay: int) -> int:
        """Causal throughout, so a stream of classes is predicted without delay."""
        for module in (self.pre_net, *self.residuals, self.post_net):
            delay = module.enable_streaming(delay)
        return delay

    def forward(self, frames: Tensor) -> Tensor:
        """The network itself.

        Args:
            frames: classes as ones among zeros, those of latent 0 first. Shape (B, D * resolution, N).

        Returns:
            Logits of the classes of the next frame, in the same order. Shape (B, D * resolution, N).
        """
        x = self.pre_net(frames)
        skips = torch.zeros(x.shape[0], self.skp_size, x.shape[2], dtype=x.dtype, device=x.device)
        for block in self.residuals:
            x, skips = block(x, skips)
        return self.post_net(skips)

    def classes(self, controls: Tensor) -> Tensor:
        """Latents as diagonal frames of classes: (B, D, N) -> (B, D, N - D + 1).

        Raises:
            ValueError: another number of latents, or fewer frames than latents.
        """
        if controls.shape[1] != self.latent_size or controls.shape[2] < self.latent_size:
            raise ValueError(
                f"this prior predicts {self.latent_size} latents and needs at least as many frames, "
                f"not {controls.shape[1]} latents in {controls.shape[2]} frames"
            )
        if self.discrete:
            return to_diagonal(controls.round().long().clamp(0, self.resolution - 1))
        centred = controls - self.latent_shift.unsqueeze(-1)
        return to_diagonal(to_classes(centred / self.latent_scale.unsqueeze(-1), self.resolution))

    def one_hot(self, classes: Tensor) -> Tensor:
        """Classes as `forward` wants them: (B, D, N) -> (B, D * resolution, N)."""
        ones = F.one_hot(classes, self.resolution).to(self.latent_scale.dtype)
        return ones.permute(0, 1, 3, 2).flatten(1, 2)

    def logits(self, classes: Tensor) -> Tensor:
        """Of each class given the frames before it: (B, D, N) -> (B, D, N, resolution)."""
        before = F.pad(self.one_hot(classes)[..., :-1], (1, 0))
        return self(before).float().unflatten(1, (self.latent_size, self.resolution)).transpose(2, 3)

    def log_likelihood(self, controls: Tensor) -> Tensor:
        """Logarithm of the probability of each latent's class, in nats: (B, D, N) -> (B, D, N - D + 1)."""
        classes = self.classes(controls)
        return torch.log_softmax(self.logits(classes), -1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)

    def sampler(self) -> "PriorSampler":
        """What draws latents, with a copy of the weights as they are."""
        return PriorSampler(self)


class PriorSampler(nn.Module):
    """The prior frame by frame, a pure function of (temperature, noise, state), scriptable.

    Layers over one frame are products of matrices, so nothing is computed twice and nothing is kept but the past that
    the convolutions reach for.

    Args:
        prior: whose weights to take.

    Attributes:
        delay: frames by which the latents are late, as latent 0 waits for the last one; before that, what was never
            drawn is zero deviations from the mean, or code 0.
    """

    def __init__(self, prior: LatentPrior) -> None:
        super().__init__()
        entry, middle, leave = prior.pre_net[0], prior.post_net[0], prior.post_net[2]
        blocks: list[Any] = list(prior.residuals)
        self.latent_size = prior.latent_size
        self.resolution = prior.resolution
        self.discrete = prior.discrete
        self.dilations = list(prior.dilations)
        self.res_size = entry.out_channels
        self.kernel_size = entry.kernel_size[0]
        self.slope, self.coldest = SLOPE, COLDEST
        self.delay = prior.latent_size - 1

        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))

        # Matrices stand as (inputs, outputs), which is the quicker way round for the product of a single row with them.
        # One row per class and one of zeros in front, for a frame in which nothing was drawn.
        table = entry.weight.unflatten(0, (self.latent_size, -1)).permute(0, 3, 2, 1)
        keep("table", F.pad(table, (0, 0, 1, 0)))
        keep("entry_bias", entry.bias)
        keep("gates", torch.stack([block.dconv.weight.permute(2, 1, 0).flatten(0, 1) for block in blocks]))
        keep("gate_biases", torch.stack([block.dconv.bias for block in blocks]))
        keep("ways", torch.stack([torch.cat([b.rconv.weight, b.sconv.weight]).squeeze(-1).t() for b in blocks]))
        keep("way_biases", torch.stack([torch.cat([b.rconv.bias, b.sconv.bias]) for b in blocks]))
        keep("middle", middle.weight.squeeze(-1).t())
        keep("middle_bias", middle.bias)
        keep("leave", leave.weight.squeeze(-1).unflatten(0, (self.latent_size, -1)).transpose(1, 2))
        keep("leave_bias", leave.bias.view(self.latent_size, 1, -1))
        keep("latent_shift", prior.latent_shift)
        keep("latent_scale", prior.latent_scale)
        keep("rows", torch.arange(self.latent_size).unsqueeze(-1))
        keep("taps", torch.arange(self.kernel_size))

    @torch.jit.export
    def silence(self, rows: int) -> list[Tensor]:
        """The state before anything was drawn, all zeros: classes heard, the past of each block, latents that wait.

        Args:
            rows: B.
        """
        device = self.latent_shift.device
        state = [torch.zeros(rows, self.latent_size, self.kernel_size, device=device)]
        for dilation in self.dilations:
            state.append(torch.zeros(rows, self.res_size, (self.kernel_size - 1) * dilation, device=device))
        state.append(torch.zeros(rows, self.latent_size, self.latent_size - 1, device=device))
        return state

    def predict(self, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits of the next classes, (B, D, resolution), and the blocks' new pasts."""
        rows = state[0].shape[0]
        taken = self.table[self.rows, self.taps, state[0].long()].sum(2).flatten(1)
        x = F.leaky_relu(taken + self.entry_bias, self.slope)
        skips = torch.zeros(rows, self.middle.shape[0], dtype=x.dtype, device=x.device)
        pasts: list[Tensor] = []
        for layer, dilation in enumerate(self.dilations):
            window = torch.cat([state[1 + layer], x.unsqueeze(-1)], -1)
            taps = window[..., ::dilation].transpose(1, 2).flatten(1)
            gate, value = torch.addmm(self.gate_biases[layer], taps, self.gates[layer]).chunk(2, 1)
            hidden = torch.addmm(self.way_biases[layer], torch.sigmoid(gate) * torch.tanh(value), self.ways[layer])
            x = x + hidden[:, : self.res_size]
            skips = skips + hidden[:, self.res_size :]
            pasts.append(window[..., 1:].clone())
        skips = F.leaky_relu(torch.addmm(self.middle_bias, skips, self.middle), self.slope)
        groups = skips.view(rows, self.latent_size, 1, -1).transpose(0, 1).flatten(1, 2)
        return torch.baddbmm(self.leave_bias, groups, self.leave).transpose(0, 1), pasts

    def draw(self, logits: Tensor, temperature: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Classes and places inside them; one uniform number decides both.

        Args:
            logits: shape (B, D, resolution).
            temperature: 1 draws as the network believes, 0 takes the most probable class and its median. Shape (B, 1).
            noise: uniform in [0, 1). Shape (B, D).

        Returns:
            Classes and places, each (B, D).
        """
        share = torch.softmax(logits / temperature.clamp(min=self.coldest).unsqueeze(-1), -1)
        edges = share.cumsum(-1)
        drawn = (edges <= noise.unsqueeze(-1)).sum(-1).clamp(max=self.resolution - 1)
        of_drawn = drawn.unsqueeze(-1)
        size = share.gather(-1, of_drawn).squeeze(-1).clamp(min=1e-12)
        within = 1 - (edges.gather(-1, of_drawn).squeeze(-1) - noise) / size
        cold = temperature <= self.coldest
        classes = torch.where(cold, logits.argmax(-1), drawn)
        return classes, torch.where(cold, torch.full_like(within, 0.5), within.clamp(0, 1))

    def forward(self, temperature: Tensor, noise: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Draw the next frames.

        Args:
            temperature: of each frame. Shape (B, 1, N).
            noise: uniform in [0, 1). Shape (B, D, N).
            state: as `silence` or an earlier call gave it; it is left as it is.

        Returns:
            Latents (B, D, N) and the state behind them.
        """
        drawn: list[Tensor] = []
        heard, pasts, waiting = state[0], state[1:-1], state[-1]
        for frame in range(temperature.shape[2]):
            logits, pasts = self.predict([heard] + pasts)
            classes, within = self.draw(logits, temperature[:, :, frame], noise[:, :, frame])
            heard = torch.cat([heard[..., 1:], (classes + 1).to(heard.dtype).unsqueeze(-1)], -1)
            if self.discrete:
                values = classes.to(within.dtype)
            else:
                values = from_classes(classes, within, self.resolution)
            window = torch.cat([waiting, values.unsqueeze(-1)], -1)
            drawn.append(torch.diagonal(window, 0, 1, 2))
            waiting = window[..., 1:].clone()
        latents = torch.stack(drawn, -1) * self.latent_scale.unsqueeze(-1) + self.latent_shift.unsqueeze(-1)
        return latents, [heard] + pasts + [waiting]
