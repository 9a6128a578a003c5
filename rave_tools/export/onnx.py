"""ONNX: the streaming step for onnxruntime, with its state as an input and an output.

onnxruntime runs one graph per file, so there is a file for each of ``forward``, ``encode`` and ``decode``. All have the
inputs ``audio`` or ``latents``, ``knobs`` and ``state``, and the outputs ``audio_out`` or ``latents_out`` and
``state_out``.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.errors import UserError
from rave_tools.export.nn_tilde import FACTS_FILE
from rave_tools.export.player import HostFacts
from rave_tools.export.prepare import ExportOptions, assemble
from rave_tools.export.pure import PureStep, make_steps, trace
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

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

OPSET = 18
"""Run by onnxruntime since 1.14."""

NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


def require_onnx() -> None:
    """Ask for the extra before minutes are spent.

    Raises:
        UserError: names what is missing and how to get it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs {error.name}: pip install 'rave_tools[export]'") from error


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself; errors are raised."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def convert(step: PureStep, *, block: int | None = None) -> "ModelProto":
    """A step as an ONNX model.

    Args:
        step: the function.
        block: see trace.

    Raises:
        UserError: an operator that ONNX does not have; names the method.
    """
    program = trace(step, block=block)
    try:
        with quiet_exporter():
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        causes = str(error.__cause__ or error).strip().splitlines()
        raise UserError(f"{step.method} of this model has no form in ONNX: {causes[0] if causes else error}") from error
    model = converted.model_proto
    shape_ports(model.graph, step, block)
    return model


def shape_ports(graph: "GraphProto", step: PureStep, block: int | None) -> None:
    """Name inputs and outputs, and let audio come and go as (B, C, T), in place.

    Args:
        graph: as converted, audio as (B, C, N, hop).
        step: the function.
        block: see trace.
    """
    from onnx import TensorProto, helper

    facts = step.facts
    names = {
        graph.input[0].name: "audio_hops" if step.takes_audio else "latents",
        graph.input[1].name: "knobs",
        graph.input[2].name: "state",
        graph.output[0].name: "audio_hops_out" if step.gives_audio else "latents_out",
        graph.output[1].name: "state_out",
    }
    rename(graph, names)
    symbols = [dimension.dim_param for dimension in graph.input[0].type.tensor_type.shape.dim]
    rename_dimensions(graph, {symbols[0]: "batch", symbols[2]: "frames"} if block is None else {})
    batch: Any = 1 if block else "batch"
    samples: Any = block or f"{facts.hop}*frames"
    if step.takes_audio:
        shape = helper.make_tensor("audio_hops_shape", TensorProto.INT64, [4], [0, 0, -1, facts.hop])
        graph.initializer.append(shape)
        graph.node.insert(0, helper.make_node("Reshape", ["audio", shape.name], ["audio_hops"], name="to_hops"))
        port = helper.make_tensor_value_info("audio", TensorProto.FLOAT, [batch, facts.channels, samples])
        replace_port(graph.input, port)
    if step.gives_audio:
        shape = helper.make_tensor("audio_out_shape", TensorProto.INT64, [3], [0, 0, -1])
        graph.initializer.append(shape)
        graph.node.append(helper.make_node("Reshape", ["audio_hops_out", shape.name], ["audio_out"], name="from_hops"))
        port = helper.make_tensor_value_info("audio_out", TensorProto.FLOAT, [batch, facts.target_channels, samples])
        replace_port(graph.output, port)


def state_facts(model: "ModelProto", facts: HostFacts, *, method: str, state_size: int, block: int | None) -> None:
    """Write into a model's metadata what a host must know, in place."""
    from onnx import helper

    # Numbers apart, for hosts that read no JSON.
    numbers = {name: str(getattr(facts, name)) for name in ("sample_rate", "hop", "channels", "latency", "offset")}
    text = describe_method(facts, method, state_size=state_size, block=block)
    helper.set_model_props(model, {FACTS_FILE: text, "method": method, "state_size": str(state_size)} | numbers)


def chain(
    encode: "ModelProto", decode: "ModelProto", *, state_sizes: dict[str, int], block: int | None
) -> "ModelProto":
    """``forward`` from its halves: their states lie one behind the other, the encoder's first.

    Args:
        encode, decode: as converted.
        state_sizes: per method.
        block: see trace.
    """
    from onnx import TensorProto, compose, helper

    wires = [("latents_out", "latents")]
    model = compose.merge_models(encode, decode, io_map=wires, prefix1="encode/", prefix2="decode/")
    graph = model.graph
    rename(
        graph,
        {
            "encode/audio": "audio",
            "encode/knobs": "knobs",
            "decode/knobs": "knobs",
            "decode/audio_out": "audio_out",
        },
    )
    sizes = [state_sizes["encode"], state_sizes["decode"]]
    halves = ["encode/state", "decode/state"]
    graph.initializer.append(helper.make_tensor("state_sizes", TensorProto.INT64, [2], sizes))
    graph.node.insert(0, helper.make_node("Split", ["state", "state_sizes"], halves, name="split_state", axis=1))
    outputs = [f"{half}_out" for half in halves]
    graph.node.append(helper.make_node("Concat", outputs, ["state_out"], name="join_state", axis=1))
    shape = [1 if block else "batch", sum(sizes)]
    ports = {port.name: port for port in [*graph.input, *graph.output]}
    ports["state"], ports["state_out"] = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("state", "state_out")
    )
    del graph.input[:], graph.output[:]
    graph.input.extend([ports["audio"], ports["knobs"], ports["state"]])
    graph.output.extend([ports["audio_out"], ports["state_out"]])
    return model


def rename(graph: Any, names: dict[str, str]) -> None:
    """Give values of a graph other names, in place."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)


def rename_dimensions(graph: Any, names: dict[str, str]) -> None:
    """Give symbolic sizes other names, in place, also inside of formulas."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dimension.dim_param)


def replace_port(ports: Any, port: "ValueInfoProto") -> None:
    """Put a port in the first place."""
    rest = list(ports)[1:]
    del ports[:]
    ports.extend([port, *rest])


def load_onnx(path: Path) -> Run:
    """A file as a function, run by onnxruntime on one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(x: Tensor, knobs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = {name: value.numpy() for name, value in zip(names, (x, knobs, state), strict=True)}
        y, after = session.run(None, inputs)
        return torch.from_numpy(y), torch.from_numpy(after)

    return run


def export_onnx(
    codec: Autoencoder,
    path: Path,
    *,
    options: ExportOptions,
    block: int | None = None,
    time_it: bool = True,
    report: Callable[[str], None] | None = None,
) -> Written:
    """Write ``forward``, ``encode`` and ``decode`` of a codec as ONNX files.

    Args:
        codec: trained; it stays as it is.
        path: of ``forward``, ending in ``.onnx``; the others lie beside it.
        options: what the files should be.
        block: samples of every block, one row, for runtimes that want fixed sizes; None for any number of hops and
            rows.
        time_it: measure the speed of ``forward`` in a process of its own.
        report: told what happens.

    Raises:
        UserError: options that the format or the codec cannot meet; a missing extra.
        ExportFailed: the files are not what they claim; nothing is left behind.
    """
    tell = report or (lambda line: None)
    require_onnx()
    refuse_options("onnx", options)
    tell("preparing: folding weights, finding the grid with the least latency")
    assembled = assemble(codec, options)
    check_block(block, assembled.facts)
    steps = make_steps(assembled)
    state_sizes = {method: step.state_size for method, step in steps.items()}
    paths = name_files(path)
    outcome: list[Verification] = []
    models = {}
    for method in ("encode", "decode"):
        tell(f"converting {method}")
        models[method] = convert(steps[method], block=block)
    models["forward"] = chain(**models, state_sizes=state_sizes, block=block)

    def write(method: str, passing: Path) -> None:
        import onnx

        model = models[method]
        state_facts(model, assembled.facts, method=method, state_size=state_sizes[method], block=block)
        onnx.checker.check_model(model)
        onnx.save(model, str(passing))

    def check(passing: dict[str, Path]) -> None:
        tell("verifying the saved files with onnxruntime against the plain model")
        finished = finish(
            load_onnx, passing, assembled, state_sizes=state_sizes, block=block, path=path, time_it=time_it
        )
        outcome.append(finished)

    keep(paths, write, check)
    return Written(paths, assembled.facts, state_sizes, block, outcome[0], assembled.warnings)
