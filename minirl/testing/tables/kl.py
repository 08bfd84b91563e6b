"""Golden values of minirl/equations/kl.py. π and ref are probabilities of the sampled token."""

from __future__ import annotations

from minirl.testing.tables import LN2, LN3, Row, Table, log

TABLE: Table = {
    "k1": [
        Row("ln(1/2) - ln(1/4) = ln 2", {"logp": log([1 / 2]), "ref_logp": log([1 / 4])},
            [LN2], {"logp": [1.0]}),
        Row("negative where the reference is surer: ln(1/4) - ln(1/2) = -ln 2",
            {"logp": log([1 / 4]), "ref_logp": log([1 / 2])}, [-LN2], {"logp": [1.0]}),
        Row("0 at the reference, with the same gradient 1",
            {"logp": log([0.3]), "ref_logp": log([0.3])}, [0.0], {"logp": [1.0]}),
        Row("per token, not per sequence: ln 3, ln(1/2)",
            {"logp": log([[3 / 4, 1 / 8]]), "ref_logp": log([[1 / 4, 1 / 4]])},
            [[LN3, -LN2]], {"logp": [[1.0, 1.0]]}),
        Row("a log-ratio of 100 stays 100", {"logp": [0.0], "ref_logp": [-100.0]},
            [100.0], {"logp": [1.0]}),
    ],
}
