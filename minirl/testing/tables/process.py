"""Golden values of minirl/equations/process.py."""

from __future__ import annotations

from minirl.testing.tables import LN2, LN3, NAN, Row, Table

TABLE: Table = {
    "soft_estimate": [
        Row("one of four is right", {"verdicts": [0.0, 1.0, 0.0, 0.0]}, 0.25),
        Row("none and all of eight",
            {"verdicts": [[0.0] * 8, [1.0] * 8]}, [0.0, 1.0]),
        Row("three of the four with a verdict: a missing one counts neither way",
            {"verdicts": [1.0, NAN, 1.0, 0.0, 1.0]}, 0.75),
        Row("no verdict, no estimate", {"verdicts": [[NAN, NAN], [NAN, 1.0]]}, [NAN, 1.0]),
        Row("one completion: its own verdict", {"verdicts": [[1.0], [0.0]]}, [1.0, 0.0]),
        Row("two solutions of two steps, two completions each: 1/2, 1; 0, 1/2",
            {"verdicts": [[[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]]},
            [[0.5, 1.0], [0.0, 0.5]]),
    ],
    "hard_estimate": [
        Row("none right is 0, any right is 1", {"values": [0.0, 0.125, 0.5, 1.0]},
            [0.0, 1.0, 1.0, 1.0]),
        Row("one of a thousand is enough", {"values": [0.001, 0.0]}, [1.0, 0.0]),
        Row("no verdict stays none", {"values": [NAN, 0.25, NAN, 0.0]}, [NAN, 1.0, NAN, 0.0]),
        Row("verdicts are values of one completion", {"values": [1.0, 0.0]}, [1.0, 0.0]),
        Row("a row per solution", {"values": [[0.75, 0.5, 0.0], [1.0, NAN, NAN]]},
            [[1.0, 1.0, 0.0], [1.0, NAN, NAN]]),
    ],
    "process_reward_loss": [
        Row("σ(0) = 1/2: ln 2 for either label, and the gradient is 1/2 - y",
            {"scores": [0.0, 0.0], "labels": [1.0, 0.0]}, [LN2, LN2], {"scores": [-0.5, 0.5]}),
        Row("σ(ln 3) = 3/4: -ln(3/4) = 2 ln 2 - ln 3 for a good step, -ln(1/4) for a bad one",
            {"scores": [LN3, LN3], "labels": [1.0, 0.0]}, [2 * LN2 - LN3, 2 * LN2],
            {"scores": [-0.25, 0.75]}),
        Row("a soft label, right in 3 of 4: the loss is the label's entropy, and the gradient 0",
            {"scores": [LN3], "labels": [0.75]}, [2 * LN2 - 0.75 * LN3], {"scores": [0.0]}),
        Row("σ(-ln 3) = 1/4 where half are right: (2 ln 2 + 2 ln 2 - ln 3) / 2, slope -1/4",
            {"scores": [-LN3], "labels": [0.5]}, [2 * LN2 - LN3 / 2], {"scores": [-0.25]}),
        Row("without a label there is no loss and no gradient, whatever the score",
            {"scores": [[0.0, 5.0, NAN]], "labels": [[1.0, NAN, NAN]]}, [[LN2, 0.0, 0.0]],
            {"scores": [[-0.5, 0.0, 0.0]]}),
        Row("a hundred nats off: the loss is the score, not infinity",
            {"scores": [100.0, -100.0, 100.0], "labels": [0.0, 1.0, 1.0]}, [100.0, 100.0, 0.0],
            {"scores": [1.0, -1.0, 0.0]}),
    ],
}
