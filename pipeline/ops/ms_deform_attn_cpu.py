"""Multi-scale deformable attention on the CPU, forward and backward, as products with one sparse matrix.

Forward is the matrix (`Entries`) times the values. The gradient of the values is the transposed matrix times the
gradient that comes in; that of an entry is a row of this gradient times a row of the values. Nothing as large as points
times channels is ever made.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from scipy.sparse import csc_array
from torch import Tensor

from .ms_deform_attn_entries import Shapes, cat, exact_type, groups, per_level, without_rim
from .roi_align_reference import without_autocast


@without_autocast
def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn`, in the dtype of `value`. "b q (m d)" """
    b, q, m = weights.shape[:3]
    if not weights.numel():
        return value.new_zeros(b, q, m * value.shape[3])
    found = [
        F.embedding_bag(entries.columns, table, per_sample_weights=entries.values(), mode="sum")
        for table, entries in groups(value, shapes, locations, weights)
    ]
    return cat(found).to(value.dtype).view(b, q, -1)


@without_autocast
def attend_backward(
    grad: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in its own dtype, from that of the result "b q (m d)"."""
    if not weights.numel():
        return torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
    (_, _, m, d), found, start = value.shape, [], 0
    rows = grad.to(exact_type(value)).reshape(-1, d)
    for table, entries in groups(value, shapes, locations, weights):
        some = rows[start : start + len(entries.columns)]
        start += len(some)
        values = entries.values()
        spread = _transposed_product(entries.columns, values, some, len(table))
        products = _sampled_product(entries.columns, some, table, out=values)
        found.append((without_rim(spread.view(-1, m, d), shapes), *entries.derivatives(products)))
    by_value, by_x, by_y, by_weight = (cat(parts) for parts in zip(*found, strict=True))
    h, w = (per_level(sides, weights, by_x.dtype) for sides in zip(*shapes, strict=True))
    by_location = torch.stack([by_x.view(weights.shape) * w, by_y.view(weights.shape) * h], dim=-1)
    return (
        by_value.to(value.dtype),
        by_location.to(locations.dtype),
        by_weight.view(weights.shape).to(weights.dtype),
    )


def _transposed_product(columns: Tensor, values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum of each row "n d" times its entries, into those of `count` rows that the entries name.

    SciPy's loop adds where it stands, on one core; what PyTorch has sorts all entries first, 5 to 20 times as slow.
    """
    ends = torch.arange(0, columns.numel() + 1, columns.shape[1], dtype=torch.int32)
    parts = values.flatten().numpy(), columns.flatten().numpy(), ends.numpy()
    return torch.from_numpy(csc_array(parts, shape=(count, len(rows)), copy=False) @ rows.numpy())


def _sampled_product(columns: Tensor, rows: Tensor, table: Tensor, *, out: Tensor) -> Tensor:
    """<row "n d", row of the table> for each of the `columns` "n (4 k)", written to `out`."""
    _silence_beta()
    ends = torch.arange(0, columns.numel() + 1, columns.shape[1], dtype=torch.int32)
    size = len(rows), len(table)
    pattern = torch.sparse_csr_tensor(ends, columns.flatten(), out.flatten(), size, check_invariants=False)
    found = torch.sparse.sampled_addmm(pattern, rows, table.t(), beta=0.0, out=pattern)
    return found.values().view(columns.shape)


@functools.cache
def _silence_beta() -> None:
    """PyTorch says once in each process what its sparse matrices lack: let it say so here, unheard."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)", category=UserWarning)
        index = torch.zeros(1, dtype=torch.int32)
        torch.sparse_csr_tensor(index, index[:0], torch.empty(0), (0, 1), check_invariants=False)
