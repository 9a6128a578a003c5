"""Any nn~ file, ours or a stranger's, opened so that it can be asked: methods, attributes, fresh copies."""

import io
import re
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.errors import UserError

Module = torch.jit.ScriptModule


class NotTorchScript(UserError):
    """The file cannot be loaded as a TorchScript archive."""


@dataclass(frozen=True)
class Argument:
    """One argument of a TorchScript method.

    Attributes:
        name: as in the archive.
        kind: TorchScript's name of its type, such as ``Tensor`` or ``float``.
        optional: has a default value.
    """

    name: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """What a TorchScript method takes, without self, and what it returns."""

    arguments: tuple[Argument, ...]
    returns: str


@dataclass(frozen=True)
class Method:
    """A method that a host can play.

    Attributes:
        name: of the method.
        channels_in, ratio_in: channels of its input, and how many samples make one value of it.
        channels_out, ratio_out: likewise for the output.
    """

    name: str
    channels_in: int
    ratio_in: int
    channels_out: int
    ratio_out: int

    @property
    def ratio(self) -> int:
        """The larger of both ratios."""
        return max(self.ratio_in, self.ratio_out)


class Subject:
    """A file under examination.

    Args:
        path: of a TorchScript archive.

    Attributes:
        module: loaded once, only for looking at it; what plays gets a copy of its own from `fresh`.

    Raises:
        NotTorchScript: there is no such file, it is damaged, or it needs operators that this torch does not have.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise NotTorchScript(f"{path}: there is no such file")
        self.path = path
        self._bytes = path.read_bytes()
        self.module = self.fresh()

    def fresh(self) -> Module:
        """A copy that has heard nothing, as a host loads it."""
        try:
            return torch.jit.load(io.BytesIO(self._bytes), map_location="cpu").eval()
        except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "Unknown builtin op" in line), lines[0] if lines else "no reason")
            raise NotTorchScript(
                f"{self.path} is not a TorchScript file that can be loaded, and nn~ would end Pd over it: "
                f"{re.sub(r' *Could not find.*', '', reason)[:160]}"
            ) from error

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """Every method that the archive has, playable or not."""
        found = {}
        for name in self.module._c._method_names():
            schema = self.module._c._get_method(name).schema
            arguments = tuple(Argument(a.name, str(a.type), a.has_default_value()) for a in schema.arguments[1:])
            found[name] = Signature(arguments, ", ".join(str(value.type) for value in schema.returns))
        return found

    def has(self, name: str) -> bool:
        """Whether there is a method of this name."""
        return name in self.signatures

    def attribute(self, name: str) -> object:
        """The value of an attribute, or None."""
        return getattr(self.module, name, None)

    def number(self, *names: str) -> int | None:
        """The first of these attributes that is a number; old exports of RAVE keep theirs in a submodule ``_rave``."""
        for holder in (self.module, getattr(self.module, "_rave", None)):
            for name in names:
                value = getattr(holder, name, None) if holder is not None else None
                if isinstance(value, Tensor) and value.numel() == 1:
                    value = value.item()
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    return int(value)
        return None

    @cached_property
    def announced(self) -> list[str] | None:
        """What ``get_methods()`` answers, None when it is missing or answers no list: then nn~ looks by itself."""
        return self._names("get_methods")

    @cached_property
    def listed(self) -> list[str] | None:
        """What ``get_attributes()`` answers, None when it is missing or answers no list."""
        return self._names("get_attributes")

    def _names(self, method: str) -> list[str] | None:
        if not self.has(method) or self.signatures[method].arguments:
            return None
        answer = getattr(self.module, method)()
        return list(answer) if isinstance(answer, list) else None

    @cached_property
    def candidates(self) -> list[str]:
        """Names of the methods that a host will consider."""
        if self.announced is not None:
            return self.announced
        return [name for name in self.signatures if self.attribute(f"{name}_params") is not None
                and not self.has(f"set_{name}") and not self.has(f"get_{name}")]  # fmt: skip

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The methods that a host can play: those with four sound numbers in ``METHOD_params``."""
        found = {}
        for name in self.candidates:
            params = self.attribute(f"{name}_params")
            if self.has(name) and isinstance(params, Tensor) and params.numel() == 4:
                numbers = [int(number) for number in params.flatten().double().nan_to_num()]
                if min(numbers) > 0:
                    found[name] = Method(name, *numbers)
        return found

    @property
    def ratio(self) -> int:
        """The largest ratio of all methods: nn~ makes its blocks no shorter than this."""
        return max((method.ratio for method in self.methods.values()), default=1)

    @cached_property
    def attributes(self) -> list[str]:
        """Names of the attributes that a host offers, the sentinel ``none`` left out."""
        return [name for name in self.listed or [] if name != "none"]

    @property
    def through(self) -> tuple[Method, ...] | None:
        """The methods that lead from audio to audio: forward, or encode and then decode; None without such a way."""
        forward = self.methods.get("forward")
        if forward is not None and forward.ratio_in == forward.ratio_out == 1:
            return (forward,)
        encode, decode = self.methods.get("encode"), self.methods.get("decode")
        if encode is None or decode is None or encode.ratio_in != 1 or decode.ratio_out != 1:
            return None
        if (encode.channels_out, encode.ratio_out) != (decode.channels_in, decode.ratio_in):
            return None
        return encode, decode
