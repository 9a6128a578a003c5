"""Write tests/fixtures/dac.pt by running descript-audio-codec 1.0.0; tests/fixtures/README.md says what it holds.

Run with a Python that can import it, never as part of the tests; a folder with a module `shim` (stubs of what
descript-audiotools only names) may be given:

    python benchmarks/make_dac_fixtures.py tests/fixtures [shim folder]
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if len(sys.argv) > 2:
    sys.path.insert(0, sys.argv[2])
    import shim

    shim.install("dac")

from dac.model.dac import DAC
from dac.model.discriminator import Discriminator

SMALL = {"encoder_dim": 2, "decoder_dim": 16, "n_codebooks": 4, "codebook_size": 16, "codebook_dim": 3}
RATES = {"even": [4], "odd": [2, 3, 5]}


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Weights that make a sound: scaled at random, with biases."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        draw = torch.rand(parameter.shape, generator=generator)
        if name.endswith("weight_g"):
            parameter.mul_(0.8 + 0.6 * draw)
        if name.endswith("alpha"):
            parameter.copy_(0.3 + 2 * draw)
        if name.endswith("bias"):
            parameter.copy_(0.2 * draw - 0.1)


def make(rates: list[int]) -> dict[str, Any]:
    """A small codec there and back, with all codebooks and with two."""
    torch.manual_seed(3)
    model = DAC(encoder_rates=rates, decoder_rates=rates[::-1], **SMALL).eval()
    enliven(model)
    x = torch.randn(2, 1, 40 * int(np.prod(rates)), generator=torch.Generator().manual_seed(5)) / 2
    case: dict[str, Any] = {"state": state(model), "rates": rates, "x": x}
    with torch.no_grad():
        encoded = model.encoder(x)
        z, codes, _, commitment, codebook = model.quantizer(encoded)
        case.update(
            encoded=encoded, z=z, codes=codes.short(), audio=model.decode(z), commitment=commitment, codebook=codebook
        )
        case["z_two"] = model.quantizer(encoded, 2)[0]
        case["from_two_codes"] = model.quantizer.from_codes(codes[:, :2])[0]
    return case


def train() -> dict[str, Any]:
    """The quantiser in training, half of the items with fewer codebooks."""
    torch.manual_seed(3)
    model = DAC(encoder_rates=[4], decoder_rates=[4], latent_dim=8, quantizer_dropout=0.5, **SMALL).train()
    enliven(model)
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(6, 8, 15, generator=generator, requires_grad=True)
    pull = torch.randn(6, 8, 15, generator=generator)
    torch.manual_seed(11)
    z, codes, _, commitment, codebook = model.quantizer(x)
    parameters = dict(model.quantizer.named_parameters())
    loss = (z * pull).sum() / 100 + 0.25 * commitment + codebook
    gradients = torch.autograd.grad(loss, [x, *parameters.values()])
    return {
        "state": state(model.quantizer), "x": x.detach(), "pull": pull, "z": z.detach(), "codes": codes.short(),
        "commitment": commitment.detach(), "codebook": codebook.detach(), "gradient": gradients[0],
        "parameter_gradients": dict(zip(parameters, gradients[1:], strict=True)),
    }  # fmt: skip


def full() -> dict[str, Any]:
    """Names and shapes of the 44.1 kHz codec, and how its weights begin."""
    torch.manual_seed(0)
    model = DAC()
    model.eval()(torch.zeros(1, 1, 512))
    first = model.encoder.block[1].block[0].block[1]
    return {
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "first_deviation": float(first.weight.detach().std()),
        "largest_bias": max(float(m.bias.abs().max()) for m in model.modules() if isinstance(m, nn.Conv1d)),
    }


@torch.no_grad()
def discriminate() -> dict[str, Any]:
    """The discriminator at full width; tensor i of its state dict is drawn by numpy's RandomState(i)."""
    model = Discriminator(periods=[2], fft_sizes=[512])
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        u = torch.from_numpy(np.random.RandomState(i).uniform(-1, 1, tuple(tensor.shape))).float()
        tensor.copy_(1.2 + 0.4 * u if name.endswith("weight_g") else 0.1 * u if name.endswith("bias") else u)
    x = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(5)) / 2
    return {
        "keys": list(model.state_dict()),
        "x": x,
        "features": [
            [{"shape": list(m.shape), "values": m.flatten()[::1997].clone()} for m in maps] for maps in model(x)
        ],
    }


def main(folder: str) -> None:
    """Write the file."""
    cases = {name: make(rates) for name, rates in RATES.items()}
    torch.save(
        {"sizes": SMALL, **cases, "training": train(), "full": full(), "discriminator": discriminate()},
        Path(folder) / "dac.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1])
