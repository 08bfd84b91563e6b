"""Golden values of minirl/equations/sequence_objectives.py. d is a token's log-ratio, ρ = e^d."""

from __future__ import annotations

from math import exp

from minirl.testing.tables import LN2, NAN, Row, Table, log

ZERO, BOTH = [[0.0, 0.0]], [[True, True]]
# ratios 4 and 1/2, with a token of a tool in between; then a row without a token
GAP = {"logp": [[*log([4 / 5]), NAN, *log([1 / 4])], log([1 / 2] * 3)],
       "old_logp": [[*log([1 / 5]), -1.0, *log([1 / 2])], log([1 / 4] * 3)],
       "mask": [[True, False, True], [False, False, False]]}
HALF = log([[1 / 2, 1 / 2]])

TABLE: Table = {
    "gmpo": [
        Row("A = 1: d = 1 is cut to 0.4, -0.2 stays: e^((0.4 - 0.2) / 2); half of it for the token "
            "that is not cut",
            {"logp": [[1.0, -0.2]], "old_logp": ZERO, "adv": [1.0], "mask": BOTH}, [exp(0.1)],
            {"logp": [[0.0, exp(0.1) / 2]]}),
        Row("A = -1 cuts nothing above: -e^((1 - 0.2) / 2), half of it for each token",
            {"logp": [[1.0, -0.2]], "old_logp": ZERO, "adv": [-1.0], "mask": BOTH}, [-exp(0.4)],
            {"logp": [[-exp(0.4) / 2, -exp(0.4) / 2]]}),
        Row("A = -2: d = -1 is cut to -0.4, beside 0.4 the mean is 0: -2 e^0",
            {"logp": [[-1.0, 0.4]], "old_logp": ZERO, "adv": [-2.0], "mask": BOTH}, [-2.0],
            {"logp": [[0.0, -1.0]]}),
        Row("A = 2 cuts nothing below: 2 e^((-1 + 0.4) / 2)",
            {"logp": [[-1.0, 0.4]], "old_logp": ZERO, "adv": [2.0], "mask": BOTH},
            [2 * exp(-0.3)], {"logp": [[exp(-0.3), exp(-0.3)]]}),
        Row("ε = 0.7 is above ln 2: ratios 2 and 1/2 cancel, 3 e^0",
            {"logp": log([[1 / 2, 1 / 4]]), "old_logp": log([[1 / 4, 1 / 2]]), "adv": [3.0],
             "mask": BOTH, "clip": 0.7}, [3.0], {"logp": [[1.5, 1.5]]}),
        Row("ε = 1: ratio 4 is cut to e, beside 1/2: √(e/2); a row without a token has ratio 1",
            {**GAP, "adv": [1.0, -3.0], "clip": 1.0}, [exp((1 - LN2) / 2), -3.0],
            {"logp": [[0.0, 0.0, exp((1 - LN2) / 2) / 2], [0.0] * 3]}),
        Row("A = 0 teaches nothing", {"logp": [[1.0, -1.0]], "old_logp": ZERO, "adv": [0.0],
                                      "mask": BOTH}, [0.0], {"logp": [[0.0, 0.0]]}),
        Row("A = -1, a mean log-ratio of 100: capped at e^20, without a gradient",
            {"logp": ZERO, "old_logp": [[-100.0, -100.0]], "adv": [-1.0], "mask": BOTH},
            [-485165195.4097903], {"logp": [[0.0, 0.0]]}, ours=True),
    ],
    "luspo": [
        Row("A = 1: the mean of 0.1 and 0.3 is 0.2, not cut at 1.3: 2 e^0.2, e^0.2 for each token",
            {"logp": [[0.1, 0.3]], "old_logp": ZERO, "adv": [1.0], "mask": BOTH, "clip_low": 0.2,
             "clip_high": 0.3}, [2 * exp(0.2)], {"logp": [[exp(0.2), exp(0.2)]]}),
        Row("the bound 1.2 cuts e^0.2 = 1.2214: 2 * 1.2, without a gradient",
            {"logp": [[0.1, 0.3]], "old_logp": ZERO, "adv": [1.0], "mask": BOTH, "clip_low": 0.2,
             "clip_high": 0.2}, [2.4], {"logp": [[0.0, 0.0]]}),
        Row("A = -1 is not cut above: -2 e^0.2",
            {"logp": [[0.1, 0.3]], "old_logp": ZERO, "adv": [-1.0], "mask": BOTH, "clip_low": 0.2,
             "clip_high": 0.2}, [-2 * exp(0.2)], {"logp": [[-exp(0.2), -exp(0.2)]]}),
        Row("A = -1, both ratios 1/2: counts as 0.8, twice",
            {"logp": log([[1 / 4, 1 / 4]]), "old_logp": HALF, "adv": [-1.0], "mask": BOTH,
             "clip_low": 0.2, "clip_high": 0.3}, [-1.6], {"logp": [[0.0, 0.0]]}),
        Row("on-policy, lengths 2 and 1: 2 * 3 and 1 * -5; every token has the weight A",
            {"logp": HALF + HALF, "old_logp": HALF + HALF, "adv": [3.0, -5.0],
             "mask": [[True, True], [False, True]], "clip_low": 3e-4, "clip_high": 4e-4},
            [6.0, -5.0], {"logp": [[3.0, 3.0], [0.0, -5.0]]}),
        Row("ratios 4 and 1/2 over a gap: √2 twice; an empty row counts once, with ratio 1",
            {**GAP, "adv": [1.0, -3.0], "clip_low": 0.5, "clip_high": 0.5},
            [2 * exp(LN2 / 2), -3.0],
            {"logp": [[exp(LN2 / 2), 0.0, exp(LN2 / 2)], [0.0] * 3]}),
        Row("A = -1, a mean log-ratio of 100: twice e^20, without a gradient",
            {"logp": ZERO, "old_logp": [[-100.0, -100.0]], "adv": [-1.0], "mask": BOTH,
             "clip_low": 0.2, "clip_high": 0.2}, [-970330390.8195806], {"logp": [[0.0, 0.0]]},
            ours=True),
    ],
    "vespo": [
        Row("on-policy w = 1 and φ = 1: A ln π; the gradient is A",
            {"logp": HALF, "old_logp": HALF, "adv": [[3.0, -2.0]], "mask": BOTH},
            [[-3 * LN2, 2 * LN2]], {"logp": [[3.0, -2.0]]}),
        Row("w = 2 * 1: φ = 2² e^(3 - 6) where A > 0, 2³ e^(2 - 4) where A < 0",
            {"logp": HALF, "old_logp": log([[1 / 4, 1 / 2]]), "adv": [[1.0, -1.0]], "mask": BOTH},
            [[-4 * exp(-3) * LN2, 8 * exp(-2) * LN2]],
            {"logp": [[4 * exp(-3), -8 * exp(-2)]]}),
        Row("w = 1/2: φ = 1/4 e^(3 - 3/2), and 1/8 e^(2 - 1)",
            {"logp": log([[1 / 4, 1 / 2]]), "old_logp": HALF, "adv": [[1.0, -1.0]], "mask": BOTH},
            [[-exp(1.5) / 2 * LN2, exp(1) / 8 * LN2]],
            {"logp": [[exp(1.5) / 4, -exp(1) / 8]]}),
        Row("A = 0 counts as positive, and teaches nothing",
            {"logp": HALF, "old_logp": HALF, "adv": [[0.0, 0.0]], "mask": BOTH}, [[0.0, 0.0]],
            {"logp": [[0.0, 0.0]]}),
        Row("other numbers, w = 4 * 1/2 = 2: 2 e^(1 - 2) and 2² e^(1/2 - 1); 0 at the tool's token "
            "and in an empty row",
            {**GAP, "adv": [[1.0, 1.0, -1.0], [1.0] * 3], "k_pos": 1.0, "lam_pos": 1.0,
             "k_neg": 2.0, "lam_neg": 0.5},
            [[2 * exp(-1) * log(0.8), 0.0, 8 * exp(-0.5) * LN2], [0.0] * 3],
            {"logp": [[2 * exp(-1), 0.0, -4 * exp(-0.5)], [0.0] * 3]}),
        Row("far away on either side, w = e^60 and e^-60, the weight is practically 0",
            {"logp": [[-1.0, -1.0], [-31.0, -31.0]], "old_logp": [[-31.0, -31.0], [-1.0, -1.0]],
             "adv": [[1.0, -1.0]] * 2, "mask": BOTH * 2}, [[0.0, 0.0]] * 2,
            {"logp": [[0.0, 0.0]] * 2}),
    ],
}
