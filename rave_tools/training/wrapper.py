"""What training wrappers share: judges, counters, the step's randomness, optimisers, the gradient guard, the update."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rave_tools.contracts import AudioBatch, Criterion, Losses, Reconstruction, View
from rave_tools.errors import UserError
from rave_tools.training.parallel import average_gradients, rank, world_size
from rave_tools.training.schedules import OnePhase, Phase, Schedule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Factor = Callable[[int], float]
Meeting = Callable[[Reconstruction], None]


class Judge(nn.Module):
    """One opinion about a reconstruction: a criterion and the view of it that it looks at.

    Its losses are called ``{name}_{key}``, with the keys of the criterion.

    Args:
        name: prefix of its losses, such as ``fullband``.
        view: picks (target, estimate) out of a Reconstruction.
        criterion: (target, estimate) -> named scalars.
    """

    def __init__(self, name: str, view: View, criterion: Criterion) -> None:
        super().__init__()
        self.name = name
        self.view = view
        self.criterion = criterion

    def forward(self, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """Named, unweighted scalars."""
        target, estimate = self.view(reconstruction)
        return {f"{self.name}_{key}": value for key, value in self.criterion(target, estimate).items()}


@dataclass
class Counters:
    """Where a run stands; the schedules are functions of these, and a checkpoint holds them.

    Attributes:
        generator_updates: what `--max_steps`, the phases and the schedules count.
        discriminator_updates: turns that the discriminator has taken.
        batches: micro-batches consumed, the position in the stream of training data.
        skipped: updates left out because a gradient was not finite.
    """

    generator_updates: int = 0
    discriminator_updates: int = 0
    batches: int = 0
    skipped: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, saved: Mapping[str, Any]) -> "Counters":
        """Counters out of a checkpoint's facts, in which other facts may stand beside them."""
        return cls(**{name: int(saved.get(name, 0)) for name in cls.__dataclass_fields__})


def step_seed(seed: int, batch: int, rank: int) -> int:
    """Seed of one micro-batch's noise, so that the noise of a run is a function of its position alone.

    Nothing needs saving for an exact resume, and validation cannot disturb the training. The mixing is the finaliser
    of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + batch * 0xD1B54A32D192ED03 + (rank + 1) * 0x8CB92BA72F3D8DD7) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1


@dataclass
class GradientGuard:
    """Lets an update through when its gradient is finite, counts the others, and stops a run that is lost.

    Attributes:
        consecutive: updates skipped in a row that stop the run.
        fraction: share of the last `window` updates whose skipping stops the run.
        window: see `fraction`.
    """

    consecutive: int = 20
    fraction: float = 0.5
    window: int = 200
    _recent: list[bool] = field(default_factory=list, repr=False)

    def admit(self, norm: float, losses: Mapping[str, Tensor]) -> bool:
        """Whether to make the update.

        Args:
            norm: norm of the gradient.
            losses: what was differentiated, asked by name only when the gradient is not finite.

        Raises:
            UserError: too many updates had to be skipped; the message names the losses that were not finite.
        """
        finite = norm == norm and abs(norm) != float("inf")
        self._recent = [*self._recent[-self.window + 1 :], finite]
        if finite:
            return True
        run = next((i for i, good in enumerate(reversed(self._recent)) if good), len(self._recent))
        bad = self._recent.count(False)
        if run >= self.consecutive or (len(self._recent) == self.window and bad >= self.fraction * self.window):
            raise UserError(self._verdict(run, bad, losses))
        return False

    def _verdict(self, run: int, bad: int, losses: Mapping[str, Tensor]) -> str:
        culprits = [name for name, value in losses.items() if not bool(torch.isfinite(value.detach()).all())]
        blame = f"not finite in the last one: {', '.join(culprits)}" if culprits else "every loss itself was finite"
        return (
            f"training stopped: {run} updates in a row ({bad} of the last {len(self._recent)}) had a gradient that was "
            f"not finite; {blame}. Lower the learning rate, train with --precision 32, or resume from an earlier "
            "checkpoint"
        )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, one tensor on their device; zero without gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies all gradients in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimiser's settings without its parameters: what a resumed run takes from its config, not from the past."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


class ScalarMeans:
    """Running means of named scalars that never wait for the device until somebody reads them."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        """Counts one observation of each scalar."""
        names = tuple(values)
        row = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        total, count = self._sums.get(names, (torch.zeros_like(row), 0))
        self._sums[names] = (total + row, count + 1)

    def read(self) -> dict[str, float]:
        """Means since the last reading, which starts afresh."""
        totals: dict[str, tuple[float, int]] = {}
        for names, (total, count) in self._sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                before, seen = totals.get(name, (0.0, 0))
                totals[name] = (before + value, seen + count)
        self._sums = {}
        return {name: value / count for name, (value, count) in totals.items()}


@dataclass
class Player:
    """One of those whose weights a training moves.

    Attributes:
        optimizer: parameters -> optimiser.
        learning_rate: factor on the optimiser's learning rate, as a function of the player's updates; 1 without.
        clip_norm: longest gradient allowed in an update, instead of the wrapper's.
    """

    optimizer: OptimizerFactory
    learning_rate: Factor | None = None
    clip_norm: float | None = None

    def factor(self, updates: int) -> float:
        """Factor on the learning rate after so many updates."""
        return 1.0 if self.learning_rate is None else self.learning_rate(updates)


class TrainingWrapper(LightningModule):
    """What every training shares: players with an optimiser each, turns, counters, and an update that is guarded.

    Every batch belongs to one player: to the generator, which is what is being trained, or to its adversary; the
    schedule says to whom, from counters that are saved with the weights. Noise is a function of (seed, batch), so a
    resumed run goes on bit for bit. What is trained, and on what losses, is a subclass's business.

    Args:
        players: the generator, then the adversary if there is one.
        schedule: phases and turns; without one, a single phase.
        betas: factor of each penalty by name, as functions of the generator's updates; 1 when absent.
        clip_norm: longest gradient allowed in an update, or None.
        guard: decides what happens to gradients that are not finite.

    Attributes:
        accumulate: batches whose gradients make one update; the run sets it.
        seed: of the noise that the model draws while training; the run sets it.
        codec: what gives the audio its meaning; trained here, or trained already.
        adversary: discriminator and its losses, or None.
        judges: opinions about a reconstruction; none where nothing is reconstructed.
        combiner: named losses -> the scalar to minimise.
        validation: collects a verdict on fixed segments.
    """

    codec: Any
    adversary: Any
    judges: Any
    combiner: Callable[[Mapping[str, Tensor]], Tensor]
    validation: Any

    def __init__(
        self,
        players: Sequence[Player],
        *,
        schedule: Schedule | None = None,
        betas: Mapping[str, Factor] | None = None,
        clip_norm: float | None = None,
        guard: GradientGuard | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.players = list(players)
        self.schedule = schedule or OnePhase()
        self.betas = dict(betas or {})
        self.accumulate = 1
        self.clip_norm = clip_norm
        self.guard = guard or GradientGuard()
        self.seed = 0
        self.counters = Counters()
        self.means = ScalarMeans()
        self.gradient_norms: dict[str, float] = {}
        self._micro_batch = 0
        # False while weights, counters and averages do not belong together: within an update, while averages are heard.
        self.settled = True

    def learners(self) -> list[list[nn.Parameter]]:
        """Parameters of each player."""
        raise NotImplementedError

    def averaged(self) -> dict[str, nn.Module]:
        """What an average of the weights follows, by its place in the state dict."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """What is worth compiling."""
        raise NotImplementedError

    def parts(self) -> list[tuple[str, nn.Module]]:
        """(name, module) of each part that a person would name."""
        raise NotImplementedError

    def declared_losses(self) -> list[str]:
        """Names of everything that any phase will minimise."""
        raise NotImplementedError

    def generator_losses(self, audio: Tensor, *, meet: Meeting | None = None) -> dict[str, Tensor]:
        """Everything that the generator minimises, by name.

        Args:
            audio: shape (B, C, T).
            meet: told of the reconstruction before the adversary judges it.
        """
        raise NotImplementedError

    def discriminator_losses(self, audio: Tensor, *, estimate: Tensor | None = None) -> dict[str, Tensor]:
        """What the adversary minimises, under ``discriminator``.

        Args:
            audio: shape (B, C, T).
            estimate: what the generator made of it, where that is known already. Shape (B, C, T).
        """
        raise NotImplementedError

    def load_codec(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights of a codec that is trained already.

        Raises:
            UserError: this training makes a codec.
        """
        raise UserError(f"{type(self).__name__} trains its codec itself; begin with other weights by --init_from")

    def check_window(self, n_signal: int) -> None:
        """Refuses training windows that are too short to learn from, beyond being whole frames."""

    def measure_receptive_field(self, earlier: Sequence[int] | None = None) -> tuple[int, int]:
        """Samples left and right that an output depends on; measured once, then remembered."""
        raise NotImplementedError

    @property
    def receptive_field(self) -> tuple[int, int]:
        """See `measure_receptive_field`; zero before it was measured."""
        return getattr(self, "_receptive_field", (0, 0))

    @property
    def phase(self) -> Phase:
        """The phase in force."""
        return self.schedule.at(self.counters.generator_updates)

    @property
    def discriminator_turn(self) -> bool:
        """Whether the next batch belongs to the discriminator."""
        return self.adversary is not None and self.schedule.discriminator_turn(
            self.counters.generator_updates, self.counters.discriminator_updates
        )

    @property
    def discriminator_joins(self) -> bool:
        """Whether the discriminator learns from the generator's next batch, just before it judges it."""
        return self.adversary is not None and self.schedule.discriminator_joins(
            self.counters.generator_updates, self.counters.discriminator_updates
        )

    @property
    def at_boundary(self) -> bool:
        """Whether no accumulated gradient is pending: only here a checkpoint holds the whole state."""
        return self._micro_batch == 0 and self.settled

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser per player."""
        made = [player.optimizer(group) for player, group in zip(self.players, self.learners(), strict=True)]
        self._settings = [hyperparameters(optimizer) for optimizer in made]
        return made

    def learning_rates(self) -> list[float]:
        """Of the generator and, if there is one, of the discriminator, now."""
        updates = (self.counters.generator_updates, self.counters.discriminator_updates)
        return [
            settings[0]["lr"] * player.factor(count)
            for settings, player, count in zip(self._settings, self.players, updates, strict=False)
        ]

    def watched(self) -> dict[str, Tensor]:
        """Scalars beside the losses that a person may want to see, as they are now: weights, shares, codebooks."""
        factors = getattr(self.combiner, "factors", {})
        return {f"gradient_weight_{name}": factor for name, factor in factors.items()}

    def beta(self, penalty: str) -> float:
        """Factor of a penalty, now."""
        factor = self.betas.get(penalty)
        return 1.0 if factor is None else factor(self.counters.generator_updates)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """One micro-batch for whoever's turn it is; an update when enough of them have been seen."""
        torch.manual_seed(step_seed(self.seed, self.counters.batches, rank()))
        turn = 1 if self.discriminator_turn else 0
        optimizer = self._optimizer(turn)
        if self._micro_batch == 0:
            optimizer.zero_grad(set_to_none=True)
        if turn:
            losses = self.discriminator_losses(batch.audio)
            total = losses["discriminator"]
        else:
            losses = self.generator_losses(batch.audio, meet=self._teach if self.discriminator_joins else None)
            if isinstance(losses, Losses):
                losses.parts, losses.scale = self.accumulate * world_size(), self._loss_scale()
            total = self.combiner(losses)
        losses = {name: value.detach() for name, value in losses.items()}  # the graphs are the total's alone
        self.manual_backward(total / self.accumulate)
        # Until here nothing but gradients has changed: an exception leaves a whole state behind.
        self.settled = False
        self.counters.batches += 1
        self._micro_batch = (self._micro_batch + 1) % self.accumulate
        shares = {} if turn else getattr(self.combiner, "shares", {})
        watched = {f"gradient_share_{name}": share for name, share in shares.items()}
        self.means.add({**losses, ("loss_discriminator" if turn else "loss"): total, **watched})
        if self._micro_batch == 0:
            self._update(turn, optimizer, losses)
            if not turn and hasattr(self.combiner, "settle"):
                self.combiner.settle()
        self.settled = True

    def _teach(self, reconstruction: Reconstruction) -> None:
        """The discriminator's step on a batch of the generator's; it is updated before it judges the last part."""
        optimizer = self._optimizer(1)
        if self._micro_batch == 0:
            optimizer.zero_grad(set_to_none=True)
        losses = self.discriminator_losses(reconstruction.target, estimate=reconstruction.estimate.detach())
        total = losses["discriminator"]
        losses = {name: value.detach() for name, value in losses.items()}
        self.manual_backward(total / self.accumulate)
        self.means.add({**losses, "loss_discriminator": total})
        if self._micro_batch == self.accumulate - 1:
            self.settled = False  # until the generator's half of the update is made as well
            self._update(1, optimizer, losses)

    def _optimizer(self, turn: int) -> Any:
        optimizers = self.optimizers()
        return optimizers[turn] if isinstance(optimizers, list) else optimizers

    def _float32(self) -> torch.autocast:
        """An island of float32 in whatever precision the trainer chose."""
        return torch.autocast(self.device.type, enabled=False)

    def _loss_scale(self) -> float:
        """What the trainer's precision multiplies losses by."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _update(self, turn: int, optimizer: Any, losses: Mapping[str, Tensor]) -> None:
        """Average over processes, measure, guard, step, count."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        scale = self._loss_scale()
        norm = float(gradient_norm(parameters)) / scale
        searching = scale > 1  # a scaler finds its scale by overflowing
        admitted = searching or self.guard.admit(norm, losses)
        finite = norm == norm and norm != float("inf")
        if admitted:
            own = self.players[turn].clip_norm
            limit = self.clip_norm if own is None else own
            if limit is not None and finite and norm > limit:
                scale_gradients(parameters, limit / norm)
            for group, lr in zip(optimizer.param_groups, self._rates(turn), strict=True):
                group["lr"] = lr
            optimizer.step()
        self._count(turn, finite, norm)

    def _rates(self, turn: int) -> list[float]:
        """Learning rate of each parameter group of one player, now."""
        updates = self.counters.discriminator_updates if turn else self.counters.generator_updates
        return [settings["lr"] * self.players[turn].factor(updates) for settings in self._settings[turn]]

    def _count(self, turn: int, finite: bool, norm: float) -> None:
        self.gradient_norms["discriminator" if turn else "generator"] = norm
        if not finite:
            self.counters.skipped += 1
        elif turn:
            self.counters.discriminator_updates += 1
        else:
            self.counters.generator_updates += 1
