"""How an engine multiplies: anywhere with plain operators, or faster with kernels that only some builds of torch have.

A product of a few rows waits for memory. FBGEMM's kernels read matrices that were packed once, at two bytes a number,
and are three to six times as fast there. They are part of the official builds of torch and libtorch for x86 processors
(with AVX2), and of none for Apple silicon.
"""

import torch
from torch import Tensor, nn


class PlainProducts(nn.Module):
    """``torch.mm`` for all."""

    @torch.jit.export
    def serves(self, rows: int, exact: bool) -> bool:
        """Whether ``multiply`` should do a product with that many rows."""
        return False

    @torch.jit.export
    def place(self, number: int, matrix: Tensor) -> int:
        """Prepare a matrix (in, out) with that number; what ``multiply`` calls it."""
        return 0

    @torch.jit.export
    def multiply(self, a: Tensor, place: int, out: Tensor) -> None:
        """out = a w."""


class PackedProducts(nn.Module):
    """FBGEMM's products of single precision with packed half precision.

    Args:
        split: a matrix is the sum of two, w = high + low / 2048, which keeps single precision.
            Otherwise what float16 leaves of them must be enough, except where the program says exact.
    """

    def __init__(self, *, split: bool) -> None:
        super().__init__()
        self.split = split
        # Packed when a host loads the file: a packed matrix cannot be saved.
        self.places: dict[int, int] = {0: 0}
        self.forms = [torch.zeros(0)]
        self.biases = [torch.zeros(0)]

    @torch.jit.export
    def serves(self, rows: int, exact: bool) -> bool:
        # Two products are as fast as torch.mm at some ten rows.
        return rows <= 8 if self.split else not exact

    @torch.jit.export
    def place(self, number: int, matrix: Tensor) -> int:
        if number not in self.places:
            self.places[number] = len(self.forms)
            weight = matrix.t().float().contiguous()
            high = weight.half().float()
            self.forms.append(torch.fbgemm_pack_gemm_matrix_fp16(high))
            self.biases.append(torch.zeros([weight.shape[0]]))
            if self.split:
                # 2^11: the rest of a number is below that share of it, and float16's smallest numbers are coarse.
                self.forms.append(torch.fbgemm_pack_gemm_matrix_fp16((weight - high) * 2048.0))
                self.biases.append(torch.zeros([weight.shape[0]]))
        return self.places[number]

    @torch.jit.export
    def multiply(self, a: Tensor, place: int, out: Tensor) -> None:
        out.copy_(torch.fbgemm_linear_fp16_weight_fp32_activation(a, self.forms[place], self.biases[place]))
        if self.split:
            low = torch.fbgemm_linear_fp16_weight_fp32_activation(a, self.forms[place + 1], self.biases[place])
            out.add_(low, alpha=1.0 / 2048.0)
