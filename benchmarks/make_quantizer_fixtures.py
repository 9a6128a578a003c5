"""Write tests/fixtures/quantizers.pt by running audiocraft 1.3.0 and encodec 0.1.1.

tests/fixtures/README.md says what it holds. Run with a Python that can import both, never as part of the tests; a
folder with a module `shim` (stubs of what audiocraft only names: xformers, spacy, ...) may be given:

    python benchmarks/make_quantizer_fixtures.py tests/fixtures [shim folder]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if len(sys.argv) > 2:
    sys.path.insert(0, sys.argv[2])
    import shim

    shim.install("audiocraft")

from audiocraft.quantization.vq import ResidualVectorQuantizer as AudioCraft
from encodec.quantization.core_vq import ResidualVectorQuantization as EncodecCore
from encodec.quantization.vq import ResidualVectorQuantizer as Encodec

Outcome = tuple[Tensor, Tensor, Tensor]
"""Quantised (B, D, N), codes (B, K, N), penalty."""

SIZES = {"dimension": 8, "n_q": 3, "bins": 24, "kmeans_iters": 5}


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def steps(quantizer: nn.Module, call: Callable[[Tensor], Outcome], number: int = 3) -> list[dict[str, Any]]:
    """Forward passes in training mode, each with a seed of its own, and what they leave behind."""
    rows = []
    quantizer.train()
    for index in range(number):
        generator = torch.Generator().manual_seed(100 + index)
        x = torch.randn(2, 8, 20, generator=generator) * 2 ** torch.randn(1, 8, 1, generator=generator)
        x.requires_grad_()
        pull = torch.randn(2, 8, 20, generator=generator)
        torch.manual_seed(index)
        quantized, codes, penalty = call(x)
        parameters = dict(quantizer.named_parameters())
        loss = (quantized * pull).sum() / 100 + penalty
        gradients = torch.autograd.grad(loss, [x, *parameters.values()])
        rows.append({
            "x": x.detach(), "pull": pull, "quantized": quantized.detach(),
            "codes": codes.detach().short().contiguous(), "penalty": penalty.detach(), "gradient": gradients[0],
            "parameter_gradients": dict(zip(parameters, gradients[1:], strict=True)), "next": torch.rand(()),
        })  # fmt: skip
    rows[-1]["state"] = state(quantizer)
    return rows


def audiocraft(**options: Any) -> dict[str, Any]:
    """Three training steps, then codes of a sound with every number of codebooks."""
    torch.manual_seed(7)
    quantizer = AudioCraft(**{**SIZES, **options})
    case = {"options": {**SIZES, **options}, "initial": state(quantizer)}

    def call(x: Tensor) -> Outcome:
        found = quantizer(x, 75)
        return found.x, found.codes, found.penalty

    case["steps"] = steps(quantizer, call, 2 if options else 3)
    if options:
        return case
    quantizer.eval()
    x = case["steps"][0]["x"]
    with torch.no_grad():
        for number in range(1, SIZES["n_q"] + 1):
            quantizer.set_num_codebooks(number)
            codes = quantizer.encode(x)
            case[f"codes_{number}"], case[f"decoded_{number}"] = codes.short().contiguous(), quantizer.decode(codes)
    return case


def encodec_training(**options: Any) -> dict[str, Any]:
    """As above by Meta's first package, whose commitment reaches the encoder from the first codebook only."""
    torch.manual_seed(7)
    quantizer = Encodec(**{**SIZES, **options})

    def call(x: Tensor) -> Outcome:
        found = quantizer(x, 75)
        return found.quantized, found.codes.transpose(0, 1), found.penalty

    return {"options": {**SIZES, **options}, "initial": state(quantizer), "steps": steps(quantizer, call)}


def projected() -> dict[str, Any]:
    """Codes of fewer dimensions than the vectors."""
    torch.manual_seed(7)
    core = EncodecCore(num_quantizers=3, dim=8, codebook_size=24, codebook_dim=3, kmeans_init=False)

    def call(x: Tensor) -> Outcome:
        quantized, codes, losses = core(x)
        return quantized, codes.transpose(0, 1), losses.mean()

    return {"initial": state(core), "steps": steps(core, call)}


@torch.no_grad()
def bandwidths() -> dict[str, Any]:
    """The 24 kHz model's quantiser at each of its bandwidths; codebook q is drawn by numpy's RandomState(q)."""
    quantizer = Encodec(dimension=16, n_q=32, bins=1024).eval()
    for number, layer in enumerate(quantizer.vq.layers):
        drawn = np.random.RandomState(number).standard_normal((1024, 16)) * 0.8**number
        layer._codebook.embed.copy_(torch.from_numpy(drawn).float())
        layer._codebook.inited.fill_(1)
    x = torch.from_numpy(np.random.RandomState(99).standard_normal((2, 16, 30))).float()
    case: dict[str, Any] = {}
    for bandwidth in (1.5, 3.0, 6.0, 12.0, 24.0):
        codes = quantizer.encode(x, 75, bandwidth)
        case[str(bandwidth)] = {"codes": codes.transpose(0, 1).short().contiguous(), "decoded": quantizer.decode(codes)}
    return case


def main(folder: str) -> None:
    """Write the file."""
    torch.save({
        "audiocraft": audiocraft(),
        "audiocraft_dropout": audiocraft(q_dropout=True),
        "audiocraft_orthogonal": audiocraft(orthogonal_reg_weight=0.5),
        "audiocraft_orthogonal_few": audiocraft(
            orthogonal_reg_weight=0.5, orthogonal_reg_active_codes_only=True, orthogonal_reg_max_codes=6
        ),
        "audiocraft_no_expiry": audiocraft(threshold_ema_dead_code=0, kmeans_init=False),
        "encodec": encodec_training(),
        "encodec_projected": projected(),
        "encodec_bandwidths": bandwidths(),
    }, Path(folder) / "quantizers.pt")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
