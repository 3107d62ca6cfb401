"""Exact nearest neighbours by Euclidean distance, in memory that does not grow with the number of rows.

The base (21 GB for ILSVRC-2012 at 4096 units) is read once, front to back, in blocks. In each block
|q|^2 - 2 q.b + |b|^2 by a matrix product in float32 finds the candidates. It cancels: for rows that are close
together nothing of the difference may be left. So it comes with a bound of its error, all rows that could be among
the nearest within that bound are kept, and those few are compared by the difference itself, in float64.

Why this is own code: libraries for nearest neighbours (faiss, scikit-learn) hold the whole base in memory or answer
approximately, and take the same float32 product without a bound of its error; figure 4 must name the same images on
every machine.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

BASE_BLOCK = 8192  # rows
QUERY_BLOCK = 256
REFINED_BYTES = 64 << 20  # bytes of differences in float64 at a time
LARGEST = 1e15  # largest norm of a row; float32 products of larger ones could overflow
_UNIT = 2.0**-24  # relative error of one addition or product in float32
_TINY = 2.0**-126  # smallest normal float32: the error of a product that is rounded to zero


class Rows(Protocol):
    """float32 [N, D], of which only slices of rows are asked: an array or a memory map."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]: ...


def nearest(queries: Rows, base: Rows, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest rows of `base` [N, D] for each of `queries` [Q, D], the nearest first; of equal ones the lowest.

    A query that is itself in the base finds itself.

    Returns: places int64 [Q, k], and Euclidean distances float64 [Q, k].

    Raises: ValueError for k outside 1..N, rows of another length, values that are not finite or above 1e15.
    """
    (num_queries, width), (num_rows, base_width) = queries.shape, base.shape
    if not 1 <= k <= num_rows:
        raise ValueError(f"{k} neighbours are asked of {num_rows} rows; ask for 1 to {num_rows}.")
    if width != base_width:
        raise ValueError(f"the queries have {width} values a row and the base {base_width}; they must be alike.")
    places = np.full((num_queries, k), -1, np.int64)
    squares = np.full((num_queries, k), np.inf)
    for begin in range(0, num_rows, BASE_BLOCK):
        block = np.array(base[begin : begin + BASE_BLOCK], np.float32)
        norms = _norms(block, "base", begin)
        for first in range(0, num_queries, QUERY_BLOCK):
            part = slice(first, first + QUERY_BLOCK)
            asked = np.array(queries[part], np.float32)
            rows, columns = _candidates(asked, _norms(asked, "queries", first), block, norms, squares[part, -1], k)
            found = _squares(asked, block, rows, columns)
            places[part], squares[part] = _merge(places[part], squares[part], rows, columns + begin, found)
    return places, np.sqrt(squares)


def _norms(rows: NDArray[np.float32], name: str, first: int) -> NDArray[np.float64]:
    """Squared, float64 [N]."""
    norms = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    wrong = ~(norms <= LARGEST**2)
    if wrong.any():
        raise ValueError(
            f"row {first + int(wrong.argmax())} of the {name} has values that are not finite or above {LARGEST:g}, "
            "and no distances; the network that made them has diverged."
        )
    return norms


def _candidates(
    asked: NDArray[np.float32],
    asked_norms: NDArray[np.float64],
    block: NDArray[np.float32],
    norms: NDArray[np.float64],
    farthest: NDArray[np.float64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query and row of each pair that may be among the k nearest; `farthest`: squared, of the k-th so far."""
    width = asked.shape[1]
    products = (torch.from_numpy(asked) @ torch.from_numpy(block).T).numpy()
    between = np.multiply(products, -2.0, dtype=np.float64)
    between += asked_norms[:, None]
    between += norms
    # A sum of D products is wrong by at most D units of |q||b|, in whatever order it is added (Higham, Accuracy and
    # Stability of Numerical Algorithms, 3.1), and counts twice here. Twice of that again leaves room for the sums in
    # float64, and the last term for products that are too small for float32.
    error = np.sqrt(asked_norms)[:, None] * (4 * (width + 2) * _UNIT * np.sqrt(norms))
    error += 4 * width * _TINY
    may_be = np.ones(between.shape, bool)
    if len(block) >= k and np.isinf(farthest).any():  # no k-th distance yet: rows are compared with each other
        may_be &= between - error <= np.partition(between + error, k - 1, axis=1)[:, k - 1 : k]
    # Ties go to the lower index, which an earlier block holds; a candidate must be strictly nearer than the k-th.
    between -= error
    may_be &= np.maximum(between, 0, out=between) < farthest[:, None]
    rows, columns = np.nonzero(may_be)
    return rows, columns


def _squares(
    asked: NDArray[np.float32], block: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Squared distances of pairs, computed from their difference."""
    found = np.empty(len(rows))
    at_once = max(1, REFINED_BYTES // (8 * asked.shape[1]))
    for begin in range(0, len(rows), at_once):
        part = slice(begin, begin + at_once)
        difference = asked[rows[part]].astype(np.float64)
        difference -= block[columns[part]]
        found[part] = np.square(difference, out=difference).sum(axis=1)
    return found


def _merge(
    places: NDArray[np.int64],
    squares: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    found: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest of those so far [Q, k] and of new pairs, by distance and then by place."""
    count, k = places.shape
    queries = np.concatenate([np.repeat(np.arange(count), k), rows])
    all_places, all_squares = np.concatenate([places.ravel(), columns]), np.concatenate([squares.ravel(), found])
    order = np.lexsort((all_places, all_squares, queries))
    sizes = np.bincount(queries, minlength=count)
    firsts = np.cumsum(sizes) - sizes
    nearest_pairs = order[(firsts[:, None] + np.arange(k)).ravel()]
    return all_places[nearest_pairs].reshape(count, k), all_squares[nearest_pairs].reshape(count, k)
