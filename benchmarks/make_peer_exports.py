"""Write streaming exports of acids-rave 2.3.1 with random weights, for benchmarks/streaming.py to run beside ours.

Run with a Python that can import `rave`, its export script and `nn_tilde` (the packages acids-rave 2.3.1 and nn-tilde),
never as part of the tests:

    python benchmarks/make_peer_exports.py FOLDER v2 v2_small v2+causal ...

Each NAME, configurations joined by +, becomes FOLDER/NAME.ts: mono, 44.1 kHz, at full size, streaming, 8 latents shown
as a trained model would. The classes and the order of calls are those of the peer's own export command, which only a
run with a checkpoint could be given to. Files that exist are kept.
"""

import sys
import time
from pathlib import Path

LATENTS = 8


def export(name: str, path: Path) -> None:
    """Build one model of the peer and export it as its command does."""
    import cached_conv
    import gin
    import rave
    import torch
    from torch import nn

    from scripts import export as command

    classes = {
        rave.blocks.VariationalEncoder: command.VariationalScriptedRAVE,
        rave.blocks.DiscreteEncoder: command.DiscreteScriptedRAVE,
        rave.blocks.WasserteinEncoder: command.WasserteinScriptedRAVE,
        rave.blocks.SphericalEncoder: command.SphericalScriptedRAVE,
    }
    cached_conv.use_cached_conv(True)
    gin.clear_config()
    gin.parse_config_files_and_bindings([f"{part}.gin" for part in name.split("+")], [])
    torch.manual_seed(0)
    model = rave.RAVE(n_channels=1).eval()
    if "fidelity" in dict(model.named_buffers()):
        model.fidelity[LATENTS:] = 1.0  # what validation would have found: that many latents carry the variance
    for module in model.modules():
        if hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    host = classes[type(model.encoder)](pretrained=model)
    host.decode(host.encode(torch.zeros(1, 1, 2**14)))
    host.export_to_ts(str(path))


def mend_scipy() -> None:
    """Give the peer the scipy and numpy that it was written for: what moved, what was renamed,
    arrays of one that passed for numbers."""
    import scipy.optimize
    import scipy.signal

    if not hasattr(scipy.signal, "kaiser"):
        scipy.signal.kaiser = scipy.signal.windows.kaiser
    fmin, firwin = scipy.optimize.fmin, scipy.signal.firwin
    scipy.optimize.fmin = lambda function, start, **options: fmin(lambda x: function(float(x[0])), start, **options)

    def firwin_with_nyquist(*arguments: object, nyq: float | None = None, **options: object) -> object:
        return firwin(*arguments, **options, **({} if nyq is None else {"fs": 2 * nyq}))

    scipy.signal.firwin = firwin_with_nyquist


def main(folder: Path, *names: str) -> None:
    """Write every file that is not there."""
    import torch

    mend_scipy()
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path, passing = folder / f"{name}.ts", folder / f".{name}.part.ts"
        if path.exists():
            continue
        start = time.perf_counter()
        export(name, passing)
        passing.replace(path)
        sys.stdout.write(f"{path} {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
