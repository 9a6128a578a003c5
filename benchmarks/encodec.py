"""EnCodec at 24 kHz beside encodec 0.1.1, in turn, same weights; exits with 1 where a floor is missed.

    python benchmarks/encodec.py --peer PYTHON [--rounds 15] [--seconds 5] [--kbps 6]

PYTHON is an interpreter that can import encodec 0.1.1. Both code and decode the same mono noise in their own process,
one after the other in each round, twice, of which the second time counts: it finds its own weights in the caches, as in
the middle of a folder. Figures are medians of the rounds, and the ratio is the median of the rounds' ratios.
The weights are the peer's random ones; that both give the same sound is checked first. Ours has its weight
normalisation folded and freed memory kept, as `rave_tools encode` and its sisters do; the peer is used as its README
says.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rave_tools import config  # noqa: E402
from rave_tools.nn.padded_conv import fold_to_play  # noqa: E402
from rave_tools.training import run  # noqa: E402
from rave_tools.training.memory import keep_freed_memory  # noqa: E402

FASTER = 1.5
THREADS = 2
CLOSE = 1e-4

PEER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from encodec import EncodecModel
folder, kbps, threads = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
for layer in model.quantizer.vq.layers:
    layer._codebook.embed.normal_().mul_(0.01)
    layer._codebook.inited.fill_(1)
model.set_target_bandwidth(kbps)
x = torch.load(folder + "/x.pt")
torch.save(model.state_dict(), folder + "/weights.pt")
with torch.no_grad():
    frames = model.encode(x)
    torch.save((frames[0][0], model.decode(frames)), folder + "/expected.pt")
    print("ready", flush=True)
    for line in sys.stdin:
        model.decode(model.encode(x))
        start = time.perf_counter()
        frames = model.encode(x)
        middle = time.perf_counter()
        model.decode(frames)
        print(json.dumps([middle - start, time.perf_counter() - middle]), flush=True)
"""


def ask(peer: subprocess.Popen[str], line: str) -> str:
    """One line to the peer, one line back."""
    peer.stdin.write(line + "\n")
    peer.stdin.flush()
    return answer(peer)


def answer(peer: subprocess.Popen[str]) -> str:
    """The next line of the peer."""
    line = peer.stdout.readline()
    if not line:
        raise SystemExit(f"the peer ended with {peer.wait()}; see its message above")
    return line


@torch.no_grad()
def measure(options: argparse.Namespace, folder: Path, peer: subprocess.Popen[str]) -> list[list[float]]:
    """Seconds of each round: our encode and decode, the peer's encode and decode."""
    codec = config.load(["encodec_24khz"], []).build_argument(run.train, "wrapper").codec.eval()
    codec.load_state_dict(torch.load(folder / "weights.pt", weights_only=True), strict=False)
    fold_to_play(codec)
    codec.set_bandwidth(options.kbps)
    x = torch.load(folder / "x.pt", weights_only=True)
    codes, sound = torch.load(folder / "expected.pt", weights_only=True)
    own = codec.encode(x, deterministic=True).codes
    same = float((own == codes).float().mean())
    distance = float((codec.decode(codec.dequantize(codes)) - sound).abs().max() / sound.abs().max())
    print(f"same codes {same:.2%}, largest difference of the sound {distance:.1e} of its peak")
    if same < 0.999 or distance > CLOSE:
        raise SystemExit("the two do not compute the same thing; no figure would mean anything")
    rows = []
    for _ in range(options.rounds):
        codec.decode(codec.dequantize(codec.encode(x, deterministic=True).codes))
        start = time.perf_counter()
        latent = codec.encode(x, deterministic=True)
        middle = time.perf_counter()
        codec.decode(codec.dequantize(latent.codes))
        rows.append([middle - start, time.perf_counter() - middle, *json.loads(ask(peer, "go"))])
    return rows


def main() -> int:
    """Print the table; 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="a Python with encodec 0.1.1")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--kbps", type=float, default=6.0)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        frames = int(options.seconds * 24000) // 320
        torch.save(0.3 * torch.randn(1, 1, frames * 320), Path(name) / "x.pt")
        command = [options.peer, "-c", PEER, name, str(options.kbps), str(THREADS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            answer(peer)
            rows = measure(options, Path(name), peer)
            peer.stdin.close()
    missed = False
    for i, part in enumerate(("encode", "decode")):
        ours, theirs = (statistics.median(row[i + j] for row in rows) for j in (0, 2))
        ratio = statistics.median(row[i + 2] / row[i] for row in rows)
        missed |= ratio < FASTER
        print(f"{part}: {ours * 1e3:7.1f} ms, encodec {theirs * 1e3:7.1f} ms, ratio {ratio:.2f} (floor {FASTER})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
