"""Which of several methods is better on the same faces, in pairs (NumPy only)."""

from __future__ import annotations

import itertools

import numpy as np

from asmnet_tf.evaluation import metrics

ALL_PAIRS_UP_TO = 4  # methods; of more, the first is compared with each of the others


def compare(errors: dict[str, np.ndarray], subsets: dict[str, np.ndarray]) -> dict[str, list[dict]]:
    """Compares methods in pairs, in the order given; see `metrics.paired_bootstrap`.

    Args:    errors: method -> NME of each face, fractions (N,). subsets: name -> bool (N,).
    Returns: subset -> for each pair a, b, n, left_out, nme_difference_pct (A - B) with ci95, a_better_pct and
        b_better_pct; plain values, None where no face tells.
    """
    names = list(errors)
    pairs = list(itertools.combinations(names, 2))
    if len(names) > ALL_PAIRS_UP_TO:
        pairs = [pair for pair in pairs if pair[0] == names[0]]

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    result: dict[str, list[dict]] = {}
    for subset, mask in subsets.items():
        result[subset] = []
        for a, b in pairs:
            found = metrics.paired_bootstrap(errors[a][mask], errors[b][mask])
            result[subset].append(
                {
                    "a": a,
                    "b": b,
                    "n": int(np.sum(mask)),
                    "left_out": found.left_out,
                    "nme_difference_pct": percent(found.difference),
                    "ci95": [percent(value) for value in found.interval],
                    "a_better_pct": percent(found.share_a_better),
                    "b_better_pct": percent(found.share_b_better),
                }
            )
    return result
