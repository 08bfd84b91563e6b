"""Golden values of minirl/equations/regression.py."""

from __future__ import annotations

from math import exp, log

from minirl.testing.tables import LN2, NAN, Row, Table

TABLE: Table = {
    "optimal_values": [
        Row("β = 1/2: 1/2 ln((e² + e⁰) / 2)", {"rewards": [[1.0, 0.0]]},
            [log((exp(2) + 1) / 2) / 2]),
        Row("equal rewards: the value is that reward, whatever β",
            {"rewards": [[0.7, 0.7, 0.7], [-3.0, -3.0, -3.0]], "beta": 0.01}, [0.7, -3.0]),
        Row("β = 1, rewards ln 1, ln 2 and ln 3: ln of their mean, ln 2",
            {"rewards": [[0.0, LN2, log(3)]], "beta": 1.0}, [LN2]),
        Row("a small β: the best reward, less β ln 4 for being one of four: 1000 - 0.01 ln 4",
            {"rewards": [[1000.0, 0.0, 0.0, 0.0]], "beta": 0.01}, [1000 - 0.01 * log(4)]),
        Row("a prompt for itself: 0 beside ln((e + 1) / 2)",
            {"rewards": [[0.0, 0.0], [1.0, 0.0]], "beta": 1.0}, [0.0, log((exp(1) + 1) / 2)]),
        Row("NaN is no verdict: ln of the mean of 1 and 3; without any there is no value",
            {"rewards": [[0.0, NAN, log(3)], [NAN] * 3], "beta": 1.0}, [LN2, NAN], ours=True),
    ],
    "astar_po_loss": [
        Row("β = 1: (ln 2 - (1 - 0))²; the gradient is 2 (ln 2 - 1)",
            {"logp": [log(1 / 2)], "ref_logp": [log(1 / 4)], "rewards": [1.0], "values": [0.0],
             "beta": 1.0}, [(LN2 - 1) ** 2], {"logp": [2 * (LN2 - 1)]}),
        Row("at the reference: (0 - (1 - 0.75))² = 1/16, and the slope is 2 * β * -1/4",
            {"logp": [-5.0], "ref_logp": [-5.0], "rewards": [1.0], "values": [0.75], "beta": 0.5},
            [0.0625], {"logp": [-0.25]}),
        Row("at the optimum, β ln(π/ref) = r - V*: 2 * 0.5 = 1",
            {"logp": [-1.0], "ref_logp": [-1.5], "rewards": [1.5], "values": [0.5], "beta": 2.0},
            [0.0], {"logp": [0.0]}),
        Row("beyond it, 2 * 1 for 1: the square of 1, slope 2 * β * 1",
            {"logp": [-1.0], "ref_logp": [-2.0], "rewards": [1.5], "values": [0.5], "beta": 2.0},
            [1.0], {"logp": [4.0]}),
        Row("the default β = 1e-3: (0.001 * 1000 - 3)² = 4, slope 2 * 0.001 * -2; a row for itself",
            {"logp": [-1.0, -2.0], "ref_logp": [-1001.0, -2.0], "rewards": [3.0, 0.5],
             "values": [0.0, 0.5]}, [4.0, 0.0], {"logp": [-0.004, 0.0]}),
    ],
}
