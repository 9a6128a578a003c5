"""The contract of realtime hosts: a TorchScript module that nn~ 1.5 and 1.6 and the RAVE VST load.

Every method is called with one float32 tensor (B, channels, T / in ratio) inside ``InferenceMode``; setters are called
outside of it. So state is assigned, never written in place; setters return 0; getters return tuples; ``METHOD_params``
are tensors of [channels in, ratio in, channels out, ratio out].
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Union

import torch
from torch import Tensor, nn

from rave_tools.export.player import HostFacts, Player
from rave_tools.export.step import FIRST_SWITCH, NOISE, TEMPERATURE
from rave_tools.nn.normalization import SWITCHES
from rave_tools.runs import write_bytes

BOOL, INT, FLOAT = 0, 1, 2
"""Type codes of ``ATTRIBUTE_params``."""

FACTS_FILE = "rave_tools.json"


def read_switch(value: Union[Tensor, bool, int]) -> bool:  # noqa: UP007 (TorchScript reads typing.Union)
    """A switch as the RAVE VST (tensor), nn~ (int) or Python (bool) sends it."""
    if isinstance(value, Tensor):
        return bool(value.item())
    elif isinstance(value, bool):
        return value
    else:
        return value != 0


@torch.jit.interface
class Playing(nn.Module):
    """What a player can do. Called through this interface, each of its methods keeps one compiled form."""

    def encode(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass

    def decode(self, z: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[empty-body]
        pass

    def forget(self) -> None:
        pass

    def turn(self, place: int, value: float) -> None:
        pass

    def set_stereo(self, stereo: bool) -> None:
        pass

    def set_queue(self, queue: bool) -> None:
        pass

    def queues(self) -> bool:  # type: ignore[empty-body]
        pass

    def is_touched(self) -> bool:  # type: ignore[empty-body]
        pass

    def rest(self) -> None:
        pass


class HostModel(nn.Module):
    """The module that is scripted: methods encode, decode, forward and the attributes of the contract.

    Attributes that a host can set: ``reset`` (any value but 0 forgets everything heard), ``temperature`` (1: latents
    are drawn from the posterior and what was cut away is drawn at random, as RAVE does; 0: neither, the model
    is deterministic), ``noise`` (gain of the decoder's noise branch), ``buffered`` (forward accepts blocks of any
    length, one hop later). ``latency`` and ``input_offset`` can be read. With adaptive instance normalisation also
    ``learn_source`` and ``learn_target`` (any value but 0: what is heard from now on is learned), ``reset_source`` and
    ``reset_target`` (any value but 0: what was learned is forgotten, for as long as it stays on).

    Args:
        encode: module ``(audio, knobs) -> controls`` that keeps its own state and can ``forget()`` it.
        decode: likewise ``(latents, knobs) -> audio``.
        controls: what a host sends to what the decoder wants; TorchScript-able method ``hidden(controls)``, attribute
            ``temperature``.
        facts: numbers of the contract.
    """

    player: Playing
    encode_params: Tensor
    decode_params: Tensor
    forward_params: Tensor

    def __init__(self, encode: nn.Module, decode: nn.Module, *, controls: nn.Module, facts: HostFacts) -> None:
        super().__init__()
        player = Player(encode, decode, controls=controls, facts=facts)
        self.player = torch.jit.script(player.eval().requires_grad_(False))
        self.sr = facts.sample_rate
        self.sampling_rate = facts.sample_rate
        self.n_channels = facts.channels
        self.target_channels = facts.target_channels
        self.hop = facts.hop
        self.latent_size = facts.latent_size
        self.full_latent_size = facts.full_latent_size
        self.latency_samples = facts.latency
        self.input_offset = facts.offset
        self.streaming = facts.streaming
        self.stereo_mode = False
        self._register_methods(facts)
        self._register_attributes(facts)

    def _register_methods(self, facts: HostFacts) -> None:
        latents = list(facts.labels)
        inputs = [f"(signal) Channel {i + 1}" for i in range(facts.channels)]
        outputs = [f"(signal) Channel {i + 1}" for i in range(facts.target_channels)]
        self.encode_input_labels, self.encode_output_labels = inputs, latents
        self.decode_input_labels, self.decode_output_labels = latents, outputs
        self.forward_input_labels, self.forward_output_labels = inputs, outputs
        self.register_buffer("encode_params", torch.tensor([facts.channels, 1, facts.latent_size, facts.hop]))
        self.register_buffer("decode_params", torch.tensor([facts.latent_size, facts.hop, facts.target_channels, 1]))
        self.register_buffer("forward_params", torch.tensor([facts.channels, 1, facts.target_channels, 1]))
        self.method_names = ["encode", "decode", "forward"]

    def _register_attributes(self, facts: HostFacts) -> None:
        self.reset = (0,)
        self.temperature = (1.0,)
        self.noise = (1.0,)
        self.buffered = (int(facts.buffered),)
        self.latency = (facts.latency,)
        self.adaptive = facts.adaptive
        self.switches = dict.fromkeys(SWITCHES, 0)
        self.switch_places = {name: FIRST_SWITCH + place for place, name in enumerate(SWITCHES)}
        self.learning_place = self.switch_places["learn_source"]
        self.temperature_place, self.noise_place = TEMPERATURE, NOISE
        self.attribute_names = ["reset", "temperature", "buffered", "latency"] + ["noise"] * facts.has_noise
        self.attribute_names += list(SWITCHES) * facts.adaptive
        for name in ("reset", "buffered", "latency", *SWITCHES):
            self.register_buffer(f"{name}_params", torch.tensor([INT]))
        for name in ("temperature", "noise"):
            self.register_buffer(f"{name}_params", torch.tensor([FLOAT]))

    @torch.jit.export
    def get_methods(self) -> list[str]:
        self.wake()
        return self.method_names

    def wake(self) -> None:
        """Let the host's compiler see every graph, before sound depends on it.

        A host asks for the methods when it has loaded the file, long before its audio thread calls the first of them;
        compilation takes two runs.
        """
        if self.is_untouched():
            self.play_silence()
            if self.adaptive:
                self.player.turn(self.learning_place, 1.0)
                self.play_silence()
                self.player.turn(self.learning_place, 0.0)
            self.rest()

    def is_untouched(self) -> bool:
        """Nothing was played yet."""
        return not self.player.is_touched()

    def rest(self) -> None:
        """As if nothing had ever been played."""
        self.player.rest()

    def play_silence(self) -> None:
        silence = torch.zeros([1, self.n_channels, self.hop])
        for _ in range(3):
            self.player.decode(self.player.encode(silence))
            self.player.forward(silence)

    @torch.jit.export
    def get_attributes(self) -> list[str]:
        return self.attribute_names

    @torch.jit.export
    def encode(self, x: Tensor) -> Tensor:
        """Audio (B, C, T) -> controls (B, L, T / hop)."""
        return self.player.encode(x)

    @torch.jit.export
    def decode(self, z: Tensor) -> Tensor:
        """Controls (B, L or full, N) -> audio (B, C', N * hop); in stereo mode two rows become left and right."""
        return self.player.decode(z)

    def forward(self, x: Tensor) -> Tensor:
        """Audio (B, C, T) -> audio (B, C', T); other lengths than whole hops pass a queue, one hop later."""
        return self.player.forward(x)

    @torch.jit.export
    def set_stereo_mode(self, stereo: Union[Tensor, bool, int]) -> int:  # noqa: UP007 (TorchScript reads typing.Union)
        self.stereo_mode = read_switch(stereo)
        self.player.set_stereo(self.stereo_mode)
        return 0

    @torch.jit.export
    def set_reset(self, reset: int) -> int:
        if reset != 0:
            self.player.forget()
        return 0

    @torch.jit.export
    def get_reset(self) -> tuple[int]:
        return self.reset

    @torch.jit.export
    def set_temperature(self, temperature: float) -> int:
        self.temperature = (max(temperature, 0.0),)
        self.player.turn(self.temperature_place, self.temperature[0])
        return 0

    @torch.jit.export
    def get_temperature(self) -> tuple[float]:
        return self.temperature

    @torch.jit.export
    def set_noise(self, noise: float) -> int:
        self.noise = (noise,)
        self.player.turn(self.noise_place, noise)
        return 0

    @torch.jit.export
    def get_noise(self) -> tuple[float]:
        return self.noise

    @torch.jit.export
    def set_learn_source(self, learn_source: int) -> int:
        return self.switch("learn_source", learn_source)

    @torch.jit.export
    def get_learn_source(self) -> tuple[int]:
        return (self.switches["learn_source"],)

    @torch.jit.export
    def set_learn_target(self, learn_target: int) -> int:
        return self.switch("learn_target", learn_target)

    @torch.jit.export
    def get_learn_target(self) -> tuple[int]:
        return (self.switches["learn_target"],)

    @torch.jit.export
    def set_reset_source(self, reset_source: int) -> int:
        return self.switch("reset_source", reset_source)

    @torch.jit.export
    def get_reset_source(self) -> tuple[int]:
        return (self.switches["reset_source"],)

    @torch.jit.export
    def set_reset_target(self, reset_target: int) -> int:
        return self.switch("reset_target", reset_target)

    @torch.jit.export
    def get_reset_target(self) -> tuple[int]:
        return (self.switches["reset_target"],)

    def switch(self, name: str, value: int) -> int:
        """Any value but 0 is on."""
        if not self.adaptive:
            return 1
        self.switches[name] = int(value != 0)
        self.player.turn(self.switch_places[name], float(self.switches[name]))
        return 0

    @torch.jit.export
    def set_buffered(self, buffered: int) -> int:
        self.player.set_queue(buffered != 0)
        return 0

    @torch.jit.export
    def get_buffered(self) -> tuple[int]:
        self.buffered = (int(self.player.queues()),)
        return self.buffered

    @torch.jit.export
    def set_latency(self, latency: int) -> int:
        """Latency is a fact; any answer but 0 tells the host that it was not changed."""
        return 1

    @torch.jit.export
    def get_latency(self) -> tuple[int]:
        """In samples, with that of the queue."""
        self.latency = (self.latency_samples + self.hop * int(self.player.queues()),)
        return self.latency


NUMBERS = (
    "sr",
    "sampling_rate",
    "n_channels",
    "target_channels",
    "hop",
    "latent_size",
    "full_latent_size",
    "latency_samples",
    "input_offset",
    "streaming",
    "stereo_mode",
)
LABELS = tuple(f"{name}_{side}_labels" for name in ("encode", "decode", "forward") for side in ("input", "output"))


def script(host: HostModel) -> torch.jit.ScriptModule:
    """Compile a host module, as it is."""
    return torch.jit.script(host.eval().requires_grad_(False))


def write(module: torch.jit.ScriptModule, path: Path, *, facts: HostFacts, check: Callable[[Path], None]) -> None:
    """Save under a passing name, check that file, and only then give it its name: a file that fails is not left behind.

    Args:
        module: scripted.
        path: ends in ``.ts``.
        facts: stored beside the model as ``rave_tools.json``, for tools that read the archive without running it.
        check: raises when the file must not be kept.

    Raises:
        RunError: there is no room for it, or no permission.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.stem}.{os.getpid()}.part.ts")
    try:
        # By way of memory: on a full disk torch's own writing ends the process.
        archive = io.BytesIO()
        torch.jit.save(module, archive, _extra_files={FACTS_FILE: json.dumps(asdict(facts))})
        write_bytes(passing, archive.getbuffer())
        check(passing)
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)
