"""Write tests/fixtures/encodec_segments.pt by running encodec 0.1.1: a small model of the 48 kHz kind.

tests/fixtures/README.md says what it holds. Run with a Python that can import it, never as part of the tests:

    python benchmarks/make_encodec_segments_fixture.py tests/fixtures
"""

import sys
from pathlib import Path

import torch
from encodec import modules
from encodec.model import EncodecModel
from encodec.quantization import ResidualVectorQuantizer

RATE, RATIOS, SEGMENT, OVERLAP = 4800, [4, 2], 0.1, 0.05
LENGTHS = (1, 50, 456, 457, 480, 500, 1403)


def main(folder: Path) -> None:
    """Codes, scales and sound of several lengths, around the segments' ends."""
    torch.manual_seed(3)
    sizes = {
        "channels": 2, "dimension": 6, "n_filters": 4, "ratios": RATIOS, "norm": "time_group_norm", "lstm": 1,
        "true_skip": False,
    }  # fmt: skip
    encoder = modules.SEANetEncoder(**sizes, causal=False)
    decoder = modules.SEANetDecoder(**sizes, causal=False)
    quantizer = ResidualVectorQuantizer(dimension=6, n_q=3, bins=16, kmeans_init=False)
    model = EncodecModel(encoder, decoder, quantizer, [7.2], RATE, 2, normalize=True, segment=SEGMENT, overlap=OVERLAP)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
            elif name.endswith("bias"):
                parameter.add_(0.05)
        latents = encoder(torch.randn(1, 2, 4800))
        for layer in quantizer.vq.layers:
            layer._codebook.embed.copy_(latents.std() * torch.randn(16, 6))
            layer._codebook.embed_avg.copy_(layer._codebook.embed)
    model.set_target_bandwidth(7.2)
    cases = []
    for length in LENGTHS:
        level = torch.linspace(0.1, 1.0, length)
        x = level * torch.randn(1, 2, length)
        with torch.no_grad():
            frames = model.encode(x)
            y = model.decode(frames)[..., :length]
        codes = [codes.short().contiguous() for codes, _ in frames]
        cases.append({"x": x, "codes": codes, "scales": [scale for _, scale in frames], "y": y})
    options = {"rate": RATE, "segment": SEGMENT, "overlap": OVERLAP, "sizes": {**sizes, "causal": False}}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"options": options, "state": state, "cases": cases}, folder / "encodec_segments.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
