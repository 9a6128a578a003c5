"""Write tests/fixtures/seanet.pt and seanet_sizes.pt by running encodec 0.1.1 and audiocraft 1.3.0 on small SEANets.

Run with a Python that can import both, and give the folder of a module `shim` that makes their imports succeed:

    python benchmarks/make_seanet_fixtures.py tests/fixtures --shim FOLDER
"""

import argparse
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BASE = {"n_filters": 2, "dimension": 5, "ratios": [3, 2], "n_residual_layers": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "encodec_24k": ("encodec", {"norm": "weight_norm", "causal": True, "lstm": 2, "true_skip": False}),
    "encodec_48k": ("encodec", {"norm": "time_group_norm", "channels": 2, "lstm": 2, "true_skip": False}),
    "audiogen": ("audiocraft", {"norm": "weight_norm", "pad_mode": "constant", "true_skip": True, "lstm": 2}),
    "causal_constant": ("audiocraft", {"norm": "weight_norm", "causal": True, "pad_mode": "constant", "lstm": 1}),
    "many_channels": ("audiocraft", {"n_filters": 4, "channels": 32, "norm": "weight_norm", "pad_mode": "constant"}),
    "spectral": ("audiocraft", {"norm": "spectral_norm", "true_skip": False}),
    "group_params": ("audiocraft", {"norm": "time_group_norm", "norm_params": {"eps": 1e-3}}),
    "deep": (
        "audiocraft",
        {"n_filters": 4, "n_residual_layers": 3, "dilation_base": 3, "residual_kernel_size": 5, "compress": 4},
    ),
    "trim_half": ("audiocraft", {"causal": True, "trim_right_ratio": 0.5, "norm": "weight_norm"}),
    "trim_none": ("audiocraft", {"causal": True, "trim_right_ratio": 0.0, "pad_mode": "replicate"}),
    "outer_1": ("audiocraft", {"norm": "weight_norm", "disable_norm_outer_blocks": 1}),
    "outer_2": ("audiocraft", {"norm": "weight_norm", "disable_norm_outer_blocks": 2}),
    "outer_all": ("audiocraft", {"norm": "weight_norm", "disable_norm_outer_blocks": 4}),
    "relu_tanh": (
        "audiocraft",
        {"activation": "LeakyReLU", "activation_params": {"negative_slope": 0.1}, "final_activation": "Tanh",
         "kernel_size": 5, "last_kernel_size": 3},
    ),
}  # fmt: skip
DECODER_ONLY = ("trim_right_ratio", "final_activation", "final_activation_params")
LENGTHS = (3, 24, 61)
FULL = {
    "encodec_24khz": {"norm": "weight_norm", "causal": True},
    "encodec_48khz": {"norm": "time_group_norm", "channels": 2},
}
AUDIOGEN = {
    "n_filters": 64, "n_residual_layers": 1,
    "norm": "weight_norm", "pad_mode": "constant", "true_skip": True, "lstm": 2,
}  # fmt: skip


def enliven(model: nn.Module) -> None:
    """Loud weights, and biases that count."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            factor = torch.rand(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.add_(0.2 * (factor - 0.5))
            else:
                parameter.mul_(1.0 + 0.6 * factor if name.endswith("weight_g") else 0.9 + 0.2 * factor)


def nets(peer: str) -> Any:
    """The peer's module with both classes."""
    return importlib.import_module(f"{peer}.modules.seanet")


def pair(peer: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a peer."""
    module = nets(peer)
    shared = {name: value for name, value in options.items() if name not in DECODER_ONLY}
    return module.SEANetEncoder(**shared), module.SEANetDecoder(**options)


def packed(net: nn.Module) -> dict[str, Any]:
    """A state dict as shapes by key and one tensor of values, since a file of many tensors is mostly headers."""
    state = net.state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    return {"shapes": shapes, "values": torch.cat([value.flatten() for value in state.values()])}


def small(peer: str, options: dict[str, Any]) -> dict[str, Any]:
    """Weights, inputs, outputs."""
    torch.manual_seed(0)
    options = {**BASE, **options}
    encoder, decoder = pair(peer, options)
    enliven(encoder)
    enliven(decoder)
    channels = options.get("channels", 1)
    with torch.no_grad():
        for _ in range(20 if options.get("norm") == "spectral_norm" else 0):  # until the singular vectors are found
            decoder(encoder(torch.randn(1, channels, 60)))
    encoder.eval()
    decoder.eval()
    saved: dict[str, Any] = {
        "options": options,
        "encoder": packed(encoder),
        "decoder": packed(decoder),
        "cases": [],
    }
    with torch.no_grad():
        for length in LENGTHS:
            x = torch.randn(1 if channels > 2 else 2, channels, length)
            z = encoder(x)
            saved["cases"].append({"x": x, "z": z, "y": decoder(z)})
    if options.get("norm") == "spectral_norm":
        saved["training"] = [encoder.train()(saved["cases"][1]["x"]).detach() for _ in range(2)]
    return saved


def sizes(encoder: nn.Module, decoder: nn.Module) -> dict[str, list[int]]:
    """Shapes by key."""
    both = {"encoder": encoder, "decoder": decoder}
    return {f"{name}.{key}": list(value.shape) for name, net in both.items() for key, value in net.state_dict().items()}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shim", required=True, help="folder of shim.py")
    options = parser.parse_args()
    sys.path.insert(0, options.shim)
    importlib.import_module("shim").install("audiocraft", "audiocraft.modules")
    warnings.filterwarnings("ignore", category=FutureWarning)
    fixtures: dict[str, Tensor | Any] = {name: small(peer, extra) for name, (peer, extra) in VARIANTS.items()}
    torch.save(fixtures, options.folder / "seanet.pt")
    full = {name: sizes(*pair("encodec", extra)) for name, extra in FULL.items()}
    full["encodec_32khz"] = sizes(*pair("audiocraft", {**AUDIOGEN, "ratios": [8, 5, 4, 4]}))
    full["audiogen_codec_16khz"] = sizes(*pair("audiocraft", {**AUDIOGEN, "ratios": [8, 5, 4, 2]}))
    torch.save(full, options.folder / "seanet_sizes.pt")


if __name__ == "__main__":
    main()
