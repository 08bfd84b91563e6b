"""Test-time compute: what several samples of one problem are worth."""

from __future__ import annotations


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""Probability that at least one of k samples is right, estimated without bias from n samples of which c were right.

    Equation   pass@k = 1 - C(n - c, k) / C(n, k)  =  1 - prod_{i = n-c+1..n} (1 - k / i)
    Paper      Codex, arXiv:2107.03374, section 2.1, eq. 1.
    Erratum    The plug-in 1 - (1 - c/n)^k is biased downwards: 0.64 where the unbiased value is 0.7 (n = 5, c = 2, k = 2).
    Raises     ValueError unless 1 <= k <= n and 0 <= c <= n.

    >>> round(pass_at_k(5, 2, 2), 4), round(pass_at_k(10, 3, 5), 4)          # 1 - 3/10, 1 - 21/252
    (0.7, 0.9167)
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"n = {n}, c = {c}, k = {k}: 1 <= k <= n and 0 <= c <= n are wanted")
    if n - c < k:
        return 1.0
    none_right = 1.0
    for i in range(n - c + 1, n + 1):
        none_right *= 1 - k / i
    return 1 - none_right
