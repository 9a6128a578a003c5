"""Residual quantisation beside audiocraft's, alternating in one run: codes of 5 s at 24 kb/s, and k-means' memory.

    python benchmarks/quantizers.py PEER_PYTHON [SHIM_FOLDER]

PEER_PYTHON is an interpreter that can import audiocraft (SHIM_FOLDER: with stubs of what it only names). Each number is
the least of several; rounds alternate between the two programs, so that a busy machine disturbs both alike.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]

ENCODE = """
import json, sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
{imports}
torch.manual_seed(0)
quantizer = Quantizer(128, 32, bins=1024, kmeans_init=False).eval()
z, best = torch.randn(1, 128, 375), 1e9
with torch.inference_mode():
    for _ in range(12):
        start = time.perf_counter()
        quantizer.encode(z)
        best = min(best, time.perf_counter() - start)
print(json.dumps(best))
"""

KMEANS = """
import json, resource, sys, time, torch
{imports}
torch.manual_seed(0)
vectors = torch.randn(int(sys.argv[1]), 128)
(vectors[:8] @ vectors[:8].T).sum()
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
place(vectors)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([(after - before) / 1024, time.perf_counter() - start]))
"""

OURS = """
import sys
sys.path.insert(0, {here!r})
from rave_tools.codec.bottlenecks.quantization import kmeans
from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer as Quantizer
place = lambda vectors: kmeans(vectors, 1024, iterations=1)
"""

PEER = """
import sys
if {shim!r}:
    sys.path.insert(0, {shim!r})
    import shim
    shim.install("audiocraft")
from audiocraft.quantization.core_vq import kmeans
from audiocraft.quantization.vq import ResidualVectorQuantizer as Quantizer
place = lambda vectors: kmeans(vectors, 1024, 1)
"""


def ask(python: str, program: str, *words: str) -> object:
    """What a program prints, as JSON."""
    ran = subprocess.run([python, "-c", program, *words], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def main(peer: str, shim: str = "") -> None:
    """Print two tables."""
    sides = {"rave_tools": (sys.executable, OURS.format(here=str(HERE))), "audiocraft": (peer, PEER.format(shim=shim))}
    for threads in ("1", "2"):
        best = dict.fromkeys(sides, float("inf"))
        for _ in range(5):
            for name, (python, imports) in sides.items():
                best[name] = min(best[name], ask(python, ENCODE.format(imports=imports), threads))
        ratio = best["audiocraft"] / best["rave_tools"]
        times = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in best.items())
        print(f"codes of 32 codebooks for 375 frames, {threads} thread(s): {times}, ratio {ratio:.2f}")
    for rows in (2400, 4800):
        for name, (python, imports) in sides.items():
            peak, seconds = ask(python, KMEANS.format(imports=imports), str(rows))
            print(f"one iteration of k-means, {rows} vectors, {name}: {peak:.0f} MB more, {seconds:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
