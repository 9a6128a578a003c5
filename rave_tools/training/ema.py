"""A slow copy of the generator's weights, the one to listen to."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rave_tools.errors import ConfigError
from rave_tools.training.wrapper import TrainingWrapper


class EMA(Callback):
    """Keeps an exponential moving average of the learning weights, swapped in for validation.

    A checkpoint carries it under ``ema``, with the keys of ``state_dict``, for export and generation.

    Args:
        factor: weight of the past at each generator update, such as 0.999.

    Raises:
        ConfigError: a factor outside [0, 1).
    """

    def __init__(self, factor: float) -> None:
        if not 0 <= factor < 1:
            raise ConfigError(f"the EMA factor is {factor}; set --ema in [0, 1), such as 0.999")
        self.factor = factor
        self.weights: dict[str, Tensor] = {}
        self._updates = -1

    @staticmethod
    def _live(wrapper: TrainingWrapper) -> dict[str, Tensor]:
        return {
            f"{place}.{name}": p.data
            for place, module in wrapper.averaged().items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights at hand, unless a checkpoint brought an average."""
        live = self._live(pl_module)
        self.weights = {
            name: self.weights[name].to(p.device) if name in self.weights else p.clone() for name, p in live.items()
        }
        self._updates = pl_module.counters.generator_updates

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Follows the weights after each generator update, not after the discriminator's turns."""
        if pl_module.counters.generator_updates == self._updates:
            return
        self._updates = pl_module.counters.generator_updates
        live = self._live(pl_module)
        averages = [self.weights[name] for name in live]
        torch._foreach_mul_(averages, self.factor)
        torch._foreach_add_(averages, list(live.values()), alpha=1 - self.factor)

    @torch.no_grad()
    def _swap(self, wrapper: TrainingWrapper) -> None:
        for name, live in self._live(wrapper).items():
            held = live.clone()
            live.copy_(self.weights[name])
            self.weights[name].copy_(held)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation hears the average."""
        pl_module.settled = False
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on with the live weights."""
        self._swap(pl_module)
        pl_module.settled = True

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: weight.clone() for name, weight in self.weights.items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Takes up the average of a checkpoint; called before training starts."""
        self.weights = dict(saved)
