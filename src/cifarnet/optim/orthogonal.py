"""The nearest semi-orthogonal matrix, nearly, from matrix products alone.

Shapes: ``B`` matrices at once of ``R`` rows and ``C`` columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "newton_schulz"]

#: Of ``x -> a x + b x^3 + c x^5``, which a step does to each singular value: they make its slope at 0 as steep as it
#: can be, and need not end at 1 (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

_LONG = 2  # columns a row from which on a matrix is long: of 3 steps it saves a third of the arithmetic there

#: Eigenvalues of ``A`` that are 0 come out of its rounding below 0, and grow there twelvefold a step, until they make
#: ``X`` explode; a new ``A = X X^T`` has none. At first all are below 1 in sum, and there is room for one step more.
_FIRST_STEPS, _LATER_STEPS = 3, 2

_EPS = 1e-7  # the smallest norm that is divided by, as in torch.optim.Muon


def newton_schulz(matrices: Tensor, *, num_steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Bring all singular values near 1, and keep the singular vectors.

    Each matrix is divided by its Frobenius norm, so that no singular value is above 1, and then goes ``num_steps``
    times through ``X -> a X + (b A + c A A) X`` with ``A = X X^T``. After 5 steps singular values that were above 0.003
    of the norm lie between 0.68 and 1.21.

    Of a long matrix in float32 or more, only ``A`` goes through the first three steps, and the product of what they
    multiply ``X`` by is applied once, and so for every two later steps: the same in exact arithmetic, with fewer long
    products. In bfloat16 the rounding of that product would show.

    Args:
        matrices: Shape ``(B, R, C)``; all at once take less time than one by one, on a CPU too.
        num_steps: How often.
        dtype: Of the products; that of ``matrices`` if not given. 8 bits (bfloat16) are enough to train with.

    Returns:
        Shape ``(B, R, C)``, in ``dtype``.

    Example:
        >>> matrices = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        >>> print(newton_schulz(matrices))
        tensor([[[0.7229, 0.0000],
                 [0.0000, 1.1192]]])
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if is_tall else matrices  # the products of the shorter side are the smaller ones
    norms = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    x: Tensor = (wide / norms.clamp_min(_EPS)).to(dtype or matrices.dtype)
    if x.shape[-1] >= _LONG * x.shape[-2] and x.dtype in (torch.float32, torch.float64):
        done = 0
        while done < num_steps:
            at_once = min(_FIRST_STEPS if done == 0 else _LATER_STEPS, num_steps - done)
            x = _long(x, at_once)
            done += at_once
    else:
        x = _short(x, num_steps)
    return x.mT if is_tall else x


def _short(x: Tensor, num_steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(num_steps):
        gram = torch.bmm(x, x.mT)  # (B, R, R)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _long(x: Tensor, num_steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    gram = torch.bmm(x, x.mT)  # (B, R, R)
    factor: Tensor | None = None
    for step in range(num_steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial if factor is None else torch.bmm(polynomial, factor)
        if step < num_steps - 1:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)  # of the matrix after this step
    assert factor is not None
    return torch.bmm(factor, x)
