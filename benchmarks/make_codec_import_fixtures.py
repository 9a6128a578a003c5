"""Write tests/fixtures/import/codecs/* by running encodec 0.1.1, audiocraft 1.3.0, transformers 5.24 and
descript-audio-codec 1.0.0; tests/fixtures/README.md says what they hold.

Run with a Python that can import them, never as part of the tests; a folder with a module `shim` (stubs of what they
only name) may be given:

    python benchmarks/make_codec_import_fixtures.py tests/fixtures/import/codecs [shim folder]
"""

import io
import lzma
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if len(sys.argv) > 2:
    sys.path.insert(0, sys.argv[2])
    import shim

    shim.install("dac")

import encodec.modules as encodec_modules
from audiocraft.models import builders
from dac.model.dac import DAC
from encodec import EncodecModel
from encodec.quantization import ResidualVectorQuantizer
from omegaconf import OmegaConf
from safetensors.torch import save
from transformers import DacConfig, DacModel, EncodecConfig
from transformers import EncodecModel as HubEncodec

NETS = {"dimension": 12, "n_filters": 4, "ratios": [4, 2]}
CODES = {"n_q": 4, "bins": 32}
LENGTH = 400


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a state dict."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def sound(channels: int, length: int = LENGTH) -> Tensor:
    """Two loud items of noise of different level."""
    noise = torch.randn(2, channels, length, generator=torch.Generator().manual_seed(5)) / 2
    return noise * torch.tensor([1.0, 0.3])[:, None, None]


@torch.no_grad()
def enliven(model: nn.Module, *, gain: float = 1.3) -> None:
    """Weights that make a sound: scaled at random, with biases."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        draw = torch.rand(parameter.shape, generator=generator)
        if name.endswith(("weight_g", "original0")):
            parameter.mul_(gain + 0.6 * draw)
        if name.endswith("alpha"):
            parameter.copy_(0.3 + 2 * draw)
        if name.endswith("norm.weight"):
            parameter.copy_(0.7 + 0.6 * draw)
        if name.endswith("bias"):
            parameter.copy_(0.2 * draw - 0.1)


@torch.no_grad()
def place(quantizer: nn.Module, latents: Tensor) -> None:
    """Put every codebook among the latents that are left for it, so that codes differ."""
    rest = latents.transpose(1, 2).flatten(0, 1)
    generator = torch.Generator().manual_seed(2)
    layers = quantizer.vq.layers if hasattr(quantizer, "vq") else quantizer.layers
    for layer in layers:
        book = layer._codebook if hasattr(layer, "_codebook") else layer.codebook
        chosen = rest[torch.randperm(len(rest), generator=generator)[: len(book.embed)]]
        book.embed.copy_(chosen + 0.05 * torch.randn(chosen.shape, generator=generator))
        book.cluster_size.copy_(1 + 5 * torch.rand(book.cluster_size.shape, generator=generator))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        book.inited.fill_(1)
        rest = rest - book.embed[torch.cdist(rest, book.embed).argmin(1)]


@torch.no_grad()
def make_encodec(*, channels: int, norm: str, causal: bool, normalize: bool) -> dict[str, Any]:
    """Meta's encodec package."""
    torch.manual_seed(3)
    shared = {**NETS, "channels": channels, "norm": norm, "causal": causal}
    quantizer = ResidualVectorQuantizer(dimension=NETS["dimension"], **CODES)
    model = EncodecModel(
        encodec_modules.SEANetEncoder(**shared), encodec_modules.SEANetDecoder(**shared), quantizer,
        target_bandwidths=[24.0], sample_rate=24000, channels=channels, normalize=normalize,
    ).eval()  # fmt: skip
    enliven(model)
    x = sound(channels)
    level = x.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() if normalize else 1
    place(quantizer, model.encoder(x / level))
    [(codes, scale)] = model.encode(x)
    case = {"state": state(model), "x": x, "codes": codes.short(), "audio": model.decode([(codes, scale)])}
    return case if scale is None else {**case, "scale": scale}


def audiocraft_config(**changes: Any) -> Any:
    """What a run of AudioCraft keeps, interpolations and all."""
    return OmegaConf.create({
        "solver": "compression", "sample_rate": 16000, "channels": changes.get("channels", 1),
        "compression_model": "encodec", "device": "cpu", "dtype": "float32",
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}",
                    "channels": "${channels}", "causal": changes.get("causal", False),
                    "renormalize": changes.get("renormalize", False)},
        "seanet": {"dimension": 12, "channels": "${channels}", "causal": "${encodec.causal}", "n_filters": 4,
                   "n_residual_layers": changes.get("n_residual_layers", 1), "ratios": [4, 2], "activation": "ELU",
                   "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {}, "kernel_size": 7,
                   "residual_kernel_size": 3, "last_kernel_size": 7, "dilation_base": 2, "pad_mode": "constant",
                   "true_skip": True, "compress": 2, "lstm": 2,
                   "disable_norm_outer_blocks": changes.get("disable_norm_outer_blocks", 0),
                   "decoder": {"trim_right_ratio": changes.get("trim_right_ratio", 1.0), "final_activation": None,
                               "final_activation_params": None},
                   "encoder": {}},
        "rvq": {**CODES, "q_dropout": False, "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50,
                "threshold_ema_dead_code": 2, "orthogonal_reg_weight": 0.0,
                "orthogonal_reg_active_codes_only": False, "orthogonal_reg_max_codes": None},
        "optim": {"epochs": 200, "lr": 3e-4},
    })  # fmt: skip


@torch.no_grad()
def make_audiocraft(**changes: Any) -> tuple[dict[str, Any], Any]:
    """A compression model of AudioCraft's builders, and its configuration."""
    torch.manual_seed(3)
    config = audiocraft_config(**changes)
    model = builders.get_compression_model(config).eval()
    enliven(model)
    x = sound(config.channels)
    place(model.quantizer, model.encoder(model.preprocess(x)[0]))
    codes, scale = model.encode(x)
    case = {"state": state(model), "config": OmegaConf.to_yaml(config), "x": x, "codes": codes.short(),
            "audio": model.decode(codes, scale)}  # fmt: skip
    return (case if scale is None else {**case, "scale": scale}), config


@torch.no_grad()
def make_hub_encodec(**changes: Any) -> dict[str, Any]:
    """EncodecModel of transformers."""
    torch.manual_seed(3)
    config = EncodecConfig(
        num_filters=4, upsampling_ratios=[4, 2], hidden_size=12, codebook_size=32, codebook_dim=12,
        target_bandwidths=changes.pop("target_bandwidths", [15.0, 30.0, 60.0]), **changes,
    )  # fmt: skip
    model = HubEncodec(config).eval()
    enliven(model)
    x = sound(config.audio_channels)
    level = x.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() if config.normalize else 1
    place(model.quantizer, model.encoder(x / level))
    codes, scale = model._encode_frame(x, max(config.target_bandwidths))
    case = {"state": state(model), "config": config.to_json_string(use_diff=False), "x": x, "codes": codes.short(),
            "audio": model._decode_frame(codes, scale)}  # fmt: skip
    return case if scale is None else {**case, "scale": scale}


@torch.no_grad()
def make_hub_dac() -> dict[str, Any]:
    """DacModel of transformers, whose convolutions are plain."""
    torch.manual_seed(3)
    config = DacConfig(encoder_hidden_size=2, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3,
                       codebook_size=16, codebook_dim=3, sampling_rate=16000)  # fmt: skip
    model = DacModel(config).eval()
    enliven(model)
    for parameter in model.parameters():
        if parameter.ndim == 3 and parameter.shape[0] != 1:
            parameter.copy_(0.17 * torch.randn(parameter.shape))
    for quantizer in model.quantizer.quantizers:
        quantizer.codebook.weight.copy_(torch.randn(quantizer.codebook.weight.shape))
    x = sound(1, 400)
    found = model.encode(x)
    audio = model.decode(found.quantized_representation).audio_values
    return {"state": state(model), "config": config.to_json_string(use_diff=False), "x": x,
            "codes": found.audio_codes.short(), "audio": audio.reshape(2, 1, -1)}  # fmt: skip


@torch.no_grad()
def make_dac() -> tuple[dict[str, Any], bytes]:
    """Descript's codec, and the file that it saves its weights in."""
    torch.manual_seed(3)
    model = DAC(encoder_dim=2, encoder_rates=[2, 4], decoder_dim=16, decoder_rates=[4, 2], n_codebooks=3,
                codebook_size=16, codebook_dim=3, quantizer_dropout=0.5, sample_rate=24000).eval()  # fmt: skip
    enliven(model, gain=0.8)
    x = sound(1, 400)
    z, codes, *_ = model.encode(x)
    stream = io.BytesIO()
    model.save(stream, package=False)
    return {"x": x, "codes": codes.short(), "audio": model.decode(z)}, stream.getvalue()


def main(folder: Path) -> None:
    """Write every file."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = {
        "encodec_24khz": make_encodec(channels=1, norm="weight_norm", causal=True, normalize=False),
        "encodec_48khz": make_encodec(channels=2, norm="time_group_norm", causal=False, normalize=True),
        "transformers_24khz": make_hub_encodec(),
        "transformers_32khz": make_hub_encodec(
            sampling_rate=32000, use_causal_conv=False, use_conv_shortcut=False, pad_mode="reflect",
            target_bandwidths=[40.0, 80.0],
        ),
        "transformers_48khz": make_hub_encodec(
            sampling_rate=48000, audio_channels=2, use_causal_conv=False, norm_type="time_group_norm", normalize=True,
            chunk_length_s=1.0, overlap=0.01, target_bandwidths=[120.0],
        ),
        "transformers_dac": make_hub_dac(),
    }  # fmt: skip
    cases["audiocraft"], config = make_audiocraft()
    cases["audiocraft_causal"], _ = make_audiocraft(
        causal=True, trim_right_ratio=0.5, n_residual_layers=2, disable_norm_outer_blocks=2
    )
    cases["audiocraft_stereo"], _ = make_audiocraft(channels=2, renormalize=True)
    cases["dac"], saved = make_dac()
    stream = io.BytesIO()
    weights = cases["audiocraft"]["state"]
    torch.save({
        "model": {name: torch.zeros_like(value) for name, value in weights.items()}, "best_state": {"model": weights},
        "xp.cfg": config, "xp.sig": "0d1c2b3a", "history": [{"train": {"l1": 0.1}}],
    }, stream)  # fmt: skip
    numbers = torch.arange(10.0)
    files = {
        "audiocraft_checkpoint.th": stream.getvalue(),
        "dac_weights.pth": saved,
        "numbers.safetensors": save({"single": numbers.reshape(2, 5), "brain": numbers.bfloat16()}),
    }
    for name, case in cases.items():
        stream = io.BytesIO()
        torch.save(case, stream)
        files[f"{name}.pt"] = stream.getvalue()
    for name, content in files.items():
        path = folder / f"{name}.xz"
        path.write_bytes(lzma.compress(content, preset=9))
        sys.stdout.write(f"{path} {path.stat().st_size // 1024} KiB\n")
    for name, case in cases.items():
        sys.stdout.write(f"{name}: {len(case['codes'].unique())} codes, audio of {case['audio'].std():.3f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
