"""torch.export: the streaming step as an ``ExportedProgram`` in a ``.pt2`` file, for what follows TorchScript."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.export.nn_tilde import FACTS_FILE
from rave_tools.export.prepare import ExportOptions, assemble
from rave_tools.export.pure import make_steps, trace
from rave_tools.export.stateless import (
    Run,
    Written,
    check_block,
    describe_method,
    finish,
    keep,
    name_files,
    refuse_options,
)
from rave_tools.export.verify import Verification
from rave_tools.runs import write_bytes


def load_program(path: Path) -> Run:
    """A ``.pt2`` file as a function on audio of shape (B, C, T).

    Inside of the file audio has the shape (B, C, N, hop).
    """
    extra = {FACTS_FILE: ""}
    module = torch.export.load(str(path), extra_files=extra).module()
    facts = json.loads(extra[FACTS_FILE])
    hop, takes_audio, gives_audio = facts["hop"], facts["method"] != "decode", facts["method"] != "encode"

    @torch.no_grad()
    def run(x: Tensor, knobs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if takes_audio:
            x = x.reshape(x.shape[0], x.shape[1], -1, hop)
        y, state = module(x, knobs, state)
        return y.flatten(2) if gives_audio else y, state

    return run


def export_program(
    codec: Autoencoder,
    path: Path,
    *,
    options: ExportOptions,
    block: int | None = None,
    time_it: bool = True,
    report: Callable[[str], None] | None = None,
) -> Written:
    """Write ``forward``, ``encode`` and ``decode`` of a codec as programs of torch.export.

    Args:
        codec: trained; it stays as it is.
        path: of ``forward``, ending in ``.pt2``; the others lie beside it.
        options: what the files should be.
        block: samples of every block, one row; None for any number of hops and rows.
        time_it: measure the speed of ``forward`` in a process of its own.
        report: told what happens.

    Raises:
        UserError: options that the format or the codec cannot meet.
        ExportFailed: the files are not what they claim; nothing is left behind.
    """
    tell = report or (lambda line: None)
    refuse_options("pt2", options)
    tell("preparing: folding weights, finding the grid with the least latency")
    assembled = assemble(codec, options)
    check_block(block, assembled.facts)
    steps = make_steps(assembled)
    state_sizes = {method: step.state_size for method, step in steps.items()}
    paths = name_files(path)
    outcome: list[Verification] = []

    def write(method: str, passing: Path) -> None:
        tell(f"tracing {method}")
        program = trace(steps[method], block=block)
        text = describe_method(assembled.facts, method, state_size=state_sizes[method], block=block)
        # By way of memory: on a full disk torch's own writing ends the process.
        archive = io.BytesIO()
        torch.export.save(program, archive, extra_files={FACTS_FILE: text})
        write_bytes(passing, archive.getbuffer())

    def check(passing: dict[str, Path]) -> None:
        tell("verifying the saved files against the plain model")
        finished = finish(
            load_program, passing, assembled, state_sizes=state_sizes, block=block, path=path, time_it=time_it
        )
        outcome.append(finished)

    keep(paths, write, check)
    return Written(paths, assembled.facts, state_sizes, block, outcome[0], assembled.warnings)
