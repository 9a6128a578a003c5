"""The contract of nn~ and the RAVE VST, held against any TorchScript file by reading it: nothing is played here.

What the hosts ask was measured with nn~ 1.5.6 and 1.6.0 in Pure Data and with the public loader of the RAVE VST; where
a host has a defect that an export must live with, the finding says which version.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rave_tools.export.subject import Signature, Subject
from rave_tools.findings import Finding, Severity

SMALLEST_RATIO = 64
"""Pd computes 64 samples at a time: nn~ 1.6.0 gives a method with a smaller ratio blocks that it plays only in part."""

CODES = {0: "bool", 1: "int", 2: "float", 3: "str", 4: "Tensor"}
"""TorchScript's types of the values of an attribute, by type code; 5 is a buffer, which nn~ 1.6 sets another way."""

BUFFER = 5
RESERVED = "sr"
BUILT_IN = {"aten", "prim", "prims", "quantized", "prepacked"}

NEWER = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "2.2",
    "aten::rms_norm": "2.4",
    "aten::_weight_int8pack_mm": "2.3",
    "aten::_safe_softmax": "2.5",
    "aten::_fused_rms_norm": "2.8",
}
"""Operators younger than libtorch 2.0, the oldest that nn~ 1.5 was built with, and the version that brought them."""

SCHEMA_CHANGED = {"aten::scaled_dot_product_attention": "2.5"}
"""Operators whose arguments grew after 2.0: an archive written today needs this version."""


def read_contract(subject: Subject) -> list[Finding]:
    """Everything that a host reads before it plays.

    Args:
        subject: the file.
    """
    findings = [*_file(subject), *_methods(subject), *_ratios(subject), *_attributes(subject), *_labels(subject)]
    return [*findings, *_rave_vst(subject), *_operators(subject)]


def _file(subject: Subject) -> Iterator[Finding]:
    path = subject.path
    if path.suffix != ".ts":
        yield Finding(
            "warning", "file name", f"{path.name} ends in {path.suffix or 'nothing'}, not in .ts",
            "Pd's nn~ appends .ts to the name that it is given and does not find the file", "rename it to end in .ts",
            "the path",
        )  # fmt: skip
    if " " in path.name:
        yield Finding(
            "warning", "file name", f"{path.name!r} has a space", "Pd reads it as two names",
            "rename it without spaces", "the path",
        )  # fmt: skip
    dtypes = sorted({str(p.dtype) for p in subject.module.parameters() if p.is_floating_point()} - {"torch.float32"})
    if dtypes:
        yield Finding(
            "note", "weights", f"some weights are {', '.join(dtypes)}", "a host sees only float32 at the borders",
            where="parameters",
        )  # fmt: skip


def _methods(subject: Subject) -> Iterator[Finding]:
    if subject.announced is None:
        answer = "answers no list" if subject.has("get_methods") else "does not exist"
        yield Finding(
            "note", "get_methods", f"get_methods() {answer}; found by their _params: {_words(subject.candidates)}",
            "nn~ looks for everything that has METHOD_params", "add get_methods() -> List[str]", "methods",
        )  # fmt: skip
    for name in subject.candidates:
        yield from _params(subject, name)
        if name in subject.methods:
            yield from _call(name, subject.signatures[name])
    if not subject.methods:
        yield Finding(
            "error", "methods", "0 methods can be played, at least 1 is needed",
            "no host can use this file: it is no nn~ model",
            "export with rave_tools export, or register METHOD_params as a tensor of 4 numbers", "methods and buffers",
        )  # fmt: skip
    elif "forward" not in subject.methods:
        yield Finding(
            "warning", "forward", f"there is no method forward among {_words(subject.methods)}",
            "Pd's nn~ falls back to forward when a method's name is unknown, and finds nothing",
            "add forward and forward_params", "get_methods()",
        )  # fmt: skip
    else:
        yield Finding("ok", "methods", ", ".join(
            f"{m.name} {m.channels_in}/{m.ratio_in} -> {m.channels_out}/{m.ratio_out}" for m in subject.methods.values()
        ), where="METHOD_params: channels/ratio")  # fmt: skip


def _params(subject: Subject, name: str) -> Iterator[Finding]:
    """One listed method: does it exist, and are its four numbers there as a tensor?"""
    where = f"{name}_params"
    value = subject.attribute(where)
    if not subject.has(name):
        yield Finding(
            "error", name, f"get_methods() lists {name}, which is no method of the file", "playing it fails",
            f"export {name} (torch.jit.export), or leave it out of the list", "get_methods()",
        )  # fmt: skip
    elif value is None:
        yield Finding(
            "warning", where, f"get_methods() lists {name}, but there is no {where}", "nn~ ignores the method",
            f"register_buffer('{where}', torch.tensor([channels in, ratio in, channels out, ratio out]))", "buffers",
        )  # fmt: skip
    elif not isinstance(value, Tensor):
        yield Finding(
            "error", where, f"{where} is a {type(value).__name__}, not a tensor", "nn~ cannot read it",
            f"register it as a buffer: torch.tensor({list(value) if isinstance(value, (list, tuple)) else value})",
            where,
        )  # fmt: skip
    elif value.numel() != 4 or name not in subject.methods:
        yield Finding(
            "error", where, f"{where} holds {value.flatten().tolist()}, not 4 numbers of at least 1",
            "nn~ cannot make the inputs and outputs of the method",
            "give [channels in, ratio in, channels out, ratio out]", where,
        )  # fmt: skip


def _call(name: str, signature: Signature) -> Iterator[Finding]:
    """Hosts call a method with one tensor and take one tensor."""
    arguments = signature.arguments
    needed = [argument for argument in arguments if not argument.optional]
    tensor = bool(arguments) and arguments[0].kind in ("Tensor", "Optional[Tensor]")
    if len(needed) > 1 or not tensor:
        kinds = ", ".join(f"{argument.name}: {argument.kind}" for argument in arguments) or "nothing"
        yield Finding(
            "error", name, f"{name} takes ({kinds}); hosts give it exactly 1 tensor", "every block fails",
            "give defaults to all arguments after the first", f"signature of {name}",
        )  # fmt: skip
    if signature.returns not in ("Tensor", "Any"):
        yield Finding(
            "error", name, f"{name} returns {signature.returns}, not 1 tensor", "every block fails",
            "return one float32 tensor (batch, channels, time)", f"signature of {name}",
        )  # fmt: skip


def _ratios(subject: Subject) -> Iterator[Finding]:
    methods = subject.methods.values()
    plays = any(method.ratio_in == method.ratio_out == 1 for method in methods)  # in nn~, whatever the others do
    severity: Severity = "warning" if plays else "error"
    for method in methods:
        for side, ratio in (("in", method.ratio_in), ("out", method.ratio_out)):
            if ratio & (ratio - 1):
                yield Finding(
                    severity, f"{method.name}_params", f"ratio {side} is {ratio}, no power of two",
                    "nn~ plays blocks of a power of two, of which this is no divisor",
                    "play forward if it has one with ratios of 1, or make the ratio a power of two",
                    f"{method.name}_params",
                )  # fmt: skip
    if methods and subject.ratio < SMALLEST_RATIO:
        yield Finding(
            "warning", "block", f"the largest ratio of all methods is {subject.ratio}, under {SMALLEST_RATIO}",
            "nn~ 1.6.0 in Pd without a block size makes blocks this short and plays only one of them per 64 samples",
            f"list a method with ratio {SMALLEST_RATIO} or more (better 512), or create nn~ with a block size",
            "METHOD_params",
        )  # fmt: skip
    single = [m.name for m in methods if m.channels_in == m.channels_out == 1]
    if single:
        yield Finding(
            "note", "block", f"1 channel in and 1 out: {_words(single)}",
            "nn~ 1.6.0 in Pd keeps buffers of 4096 for these: created with a larger block it crashes, with a "
            "smaller one it is later than it should be (1.5.6 is fine)",
            "in Pd create it with block 4096, then send it the message bufsize BLOCK", "METHOD_params",
        )  # fmt: skip


def _attributes(subject: Subject) -> Iterator[Finding]:
    if subject.listed is None:
        yield Finding(
            "note", "get_attributes", "get_attributes() does not exist or answers no list",
            "nn~ takes everything with X_params that is no method for an attribute",
            "add get_attributes() -> List[str]", "methods",
        )  # fmt: skip
        return
    if "none" in subject.listed:
        yield Finding(
            "note", "get_attributes", "the list holds the sentinel 'none' of nn_tilde 1.5",
            "nn~ 1.6 skips it, 1.5.6 shows it as an attribute", where="get_attributes()",
        )  # fmt: skip
    problems = _together([finding for name in subject.attributes for finding in _attribute(subject, name)])
    yield from problems
    if subject.attributes and not any(finding.severity in ("warning", "error") for finding in problems):
        yield Finding("ok", "attributes", ", ".join(subject.attributes), where="get_attributes()")
    if "reset" not in subject.attributes:
        yield Finding(
            "note", "reset", "there is no attribute reset among the "
            f"{len(subject.attributes)} attributes", "what the model has heard is forgotten only by loading it again",
            where="get_attributes()",
        )  # fmt: skip
    yield from _sample_rate_setter(subject)


def _together(findings: list[Finding]) -> list[Finding]:
    """Findings with the same consequence as one."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.means), []).append(finding)
    return [
        Finding(
            group[0].severity, _words(finding.subject for finding in group), "; ".join(f.seen for f in group),
            group[0].means, group[0].mend, _words(finding.where for finding in group),
        )
        for group in groups.values()
    ]  # fmt: skip


def _attribute(subject: Subject, name: str) -> Iterator[Finding]:
    where = f"{name}_params"
    codes = subject.attribute(where)
    if name == RESERVED:
        yield Finding(
            "warning", name, "an attribute is called sr", "nn~ 1.6 keeps this name for itself", "rename it",
            "get_attributes()",
        )  # fmt: skip
    if not isinstance(codes, Tensor) or codes.ndim != 1 or codes.numel() == 0:
        shape = "missing" if codes is None else f"of {codes.ndim} dimensions" if isinstance(codes, Tensor) else "a list"
        yield Finding(
            "warning", where, f"{where} is {shape}; a tensor of 1 dimension is needed",
            f"nn~ cannot set {name}", f"register_buffer('{where}', torch.tensor([type code, ...]))", where,
        )  # fmt: skip
        return
    numbers = [int(code) for code in codes]
    unknown = [code for code in numbers if code not in CODES and code != BUFFER]
    if unknown:
        yield Finding(
            "warning", where, f"type codes {unknown} are none of 0 to 5", f"nn~ cannot set {name}",
            "0 bool, 1 int, 2 float, 3 str, 4 Tensor, 5 buffer", where,
        )  # fmt: skip
        return
    if 0 in numbers:
        yield Finding(
            "note", name, f"{name} is a bool", "nn~ 1.6.0 in Pd reads 'set NAME 0' as true: Pd sends 0.000000",
            "send the symbol false, or export it as an int", where,
        )  # fmt: skip
    if BUFFER not in numbers:
        yield from _setter(subject, name, [CODES[code] for code in numbers])
        yield from _getter(subject, name)


def _setter(subject: Subject, name: str, kinds: list[str]) -> Iterator[Finding]:
    method = f"set_{name}"
    if not subject.has(method):
        yield Finding("warning", method, f"there is no {method}", f"{name} cannot be set",
                      f"export {method}({', '.join(kinds)}) -> int", "methods")  # fmt: skip
        return
    signature = subject.signatures[method]
    given = [argument.kind for argument in signature.arguments if not argument.optional]
    if given != kinds:
        yield Finding(
            "warning", method, f"{method} takes ({', '.join(given)}), but {name}_params announces ({', '.join(kinds)})",
            f"setting {name} fails", "one positional argument per value, with exactly that type",
            f"signature of {method}",
        )  # fmt: skip
    if signature.returns != "int":
        yield Finding(
            "warning", method, f"{method} returns {signature.returns}, not int",
            "hosts report a failure although the value was taken", "return 0", f"signature of {method}",
        )  # fmt: skip


def _getter(subject: Subject, name: str) -> Iterator[Finding]:
    method = f"get_{name}"
    if not subject.has(method):
        yield Finding("warning", method, f"there is no {method}", f"{name} cannot be read",
                      f"export {method}() -> Tuple[...]", "methods")  # fmt: skip
    elif not subject.signatures[method].returns.startswith(("Tuple", "List", "Any")):
        yield Finding(
            "warning", method, f"{method} returns {subject.signatures[method].returns}, no tuple",
            "nn~ 1.6.0 cannot read it (1.5.6 can)", "return a tuple, also of one value", f"signature of {method}",
        )  # fmt: skip


def _sample_rate_setter(subject: Subject) -> Iterator[Finding]:
    signature = subject.signatures.get("set_sample_rate")
    if signature is not None and [a.kind for a in signature.arguments] not in (["int"], ["Optional[int]"], ["int?"]):
        kinds = ", ".join(argument.kind for argument in signature.arguments)
        yield Finding(
            "error", "set_sample_rate", f"set_sample_rate takes ({kinds}), not 1 int",
            "the message reload ends Pd with nn~ 1.6.0", "take an int, and treat 0 as unknown",
            "signature of set_sample_rate",
        )  # fmt: skip


def _labels(subject: Subject) -> Iterator[Finding]:
    missing = []
    for method in subject.methods.values():
        for side, channels in (("input", method.channels_in), ("output", method.channels_out)):
            name = f"{method.name}_{side}_labels"
            labels = subject.attribute(name)
            if labels is None:
                missing.append(name)
            elif not isinstance(labels, list) or len(labels) != channels:
                size = len(labels) if isinstance(labels, (list, tuple)) else type(labels).__name__
                yield Finding(
                    "warning", name, f"{name} has {size} labels for {channels} channels", "Max shows the wrong ones",
                    "one label per channel", name,
                )  # fmt: skip
    if missing:
        yield Finding(
            "note", "labels", f"{len(missing)} lists of labels are missing: {_words(missing)}",
            "Max shows its own texts", "add METHOD_input_labels and METHOD_output_labels", "attributes",
        )  # fmt: skip


def _rave_vst(subject: Subject) -> Iterator[Finding]:
    if not {"encode", "decode"} <= subject.methods.keys():
        yield Finding(
            "note", "RAVE VST", f"needs encode and decode, the file has {_words(subject.methods) or 'no method'}",
            "the RAVE VST cannot load it; nn~ can", where="METHOD_params",
        )  # fmt: skip
        return
    missing = [] if subject.number("full_latent_size") is not None else ["full_latent_size"]
    rate = subject.number("sampling_rate")
    if rate is None:
        missing.append("sampling_rate")
    if missing:
        yield Finding(
            "note", "RAVE VST", f"missing: {_words(missing)}",
            "without full_latent_size its stereo mode reads uninitialised memory; without sampling_rate it shows a "
            "random one", "store both as int attributes", "attributes",
        )  # fmt: skip
    if not subject.has("set_stereo_mode"):
        yield Finding("note", "RAVE VST", "there is no set_stereo_mode", "newer versions play it in mono only",
                      where="methods")  # fmt: skip


def _operators(subject: Subject) -> Iterator[Finding]:
    names = {name.partition(".")[0] for name in torch.jit.export_opnames(subject.module)}
    foreign = sorted(name for name in names if name.partition("::")[0] not in BUILT_IN)
    if foreign:
        yield Finding(
            "error", "operators", f"{len(foreign)} operators are not libtorch's: {_words(foreign)}",
            "a host without that library cannot load the file, and Pd ends", "export without them",
            "the archive's code",
        )  # fmt: skip
    young = {**NEWER, **SCHEMA_CHANGED}
    needs = {name: young[name] for name in names if name in young}
    if needs:
        newest = max(needs.values(), key=lambda version: tuple(map(int, version.split("."))))
        yield Finding(
            "warning", "operators", f"needs libtorch {newest} or later: "
            + ", ".join(f"{name} ({version})" for name, version in sorted(needs.items())),
            "nn~ 1.6.0 brings 2.5.1, nn~ 1.5.6 brought 2.0", "use older operators, or a host with that libtorch",
            "the archive's code",
        )  # fmt: skip
    elif not foreign:
        yield Finding(
            "ok", "operators", f"{len(names)} operators, all of libtorch; none of the {len(young)} that are known here "
            "to be younger than 2.0", where="the archive's code",
        )  # fmt: skip


def _words(names: object) -> str:
    items = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
