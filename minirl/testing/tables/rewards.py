"""Golden values of minirl/equations/rewards.py."""

from __future__ import annotations

from minirl.testing.tables import Row, Table

TABLE: Table = {
    "overlong_penalty": [
        Row("DAPO's 20480 and 4096: free up to 16384, half way at 18432, -1 at the end and after",
            {"lengths": [16384.0, 18432.0, 20480.0, 20481.0]}, [0.0, -0.5, -1.0, -1.0]),
        Row("the first token too many: -1 / 4096",
            {"lengths": [16385.0, 100.0]}, [-1 / 4096, 0.0]),
        Row("an empty answer is not too long", {"lengths": [0.0]}, [0.0]),
        Row("100 and 20: (80 - 85) / 20 = -0.25, (80 - 99) / 20 = -0.95",
            {"lengths": [80.0, 85.0, 99.0, 100.0], "max_length": 100, "cache": 20},
            [0.0, -0.25, -0.95, -1.0]),
        Row("a cache as long as the answer: -3/8 from the first token on",
            {"lengths": [0.0, 3.0, 8.0], "max_length": 8, "cache": 8}, [0.0, -0.375, -1.0]),
        Row("a cache of one token is a step: 0 at 9, -1 at 10",
            {"lengths": [9.0, 10.0], "max_length": 10, "cache": 1}, [0.0, -1.0]),
        Row("far too long is no worse than -1, and a group keeps its shape",
            {"lengths": [[10.0, 1e6], [90.0, 95.0]], "max_length": 100, "cache": 20},
            [[0.0, -1.0], [-0.5, -0.75]]),
    ],
    "reward_bias": [
        Row("-(1 + 3) / 2", {"demonstration_scores": [1.0, 3.0]}, -2.0),
        Row("-(-1 - 4 - 4) / 3", {"demonstration_scores": [-1.0, -4.0, -4.0]}, 3.0),
        Row("one demonstration is its own mean", {"demonstration_scores": [0.7]}, -0.7),
        Row("0 on average already", {"demonstration_scores": [2.0, -3.0, 1.0]}, 0.0),
        Row("equal scores, no spread: -5", {"demonstration_scores": [5.0, 5.0, 5.0, 5.0]}, -5.0),
        Row("the mean, not the median: -(0 + 0 + 0 + 10) / 4",
            {"demonstration_scores": [0.0, 0.0, 0.0, 10.0]}, -2.5),
    ],
    "reward_gain_and_bias": [
        Row("mean 2, standard deviation 1 (ddof 0, not 1.41): gain 1, bias -2",
            {"scores": [1.0, 3.0]}, (1.0, -2.0)),
        Row("4, 4, 8, 8 has mean 6 and standard deviation 2: gain 1/2, bias -1/2 * 6",
            {"scores": [4.0, 4.0, 8.0, 8.0]}, (0.5, -3.0)),
        Row("mean 10 and deviation 4 of 1, 3: gain 4, bias 10 - 4 * 2",
            {"scores": [1.0, 3.0], "mean": 10.0, "std": 4.0}, (4.0, 2.0)),
        Row("narrow scores get a gain above 1: 0, 1/4 has deviation 1/8, so 8 and -8 * 1/8",
            {"scores": [0.0, 0.25]}, (8.0, -1.0)),
        Row("0, 0, 0, 0, 5 has mean 1 and variance (4 * 1 + 16) / 5 = 4: gain 1/2, bias -1/2",
            {"scores": [0.0, 0.0, 0.0, 0.0, 5.0]}, (0.5, -0.5)),
        Row("negative scores, -8 and -4: mean -6, deviation 2; to 1 and 3: 1.5 and 1 + 9",
            {"scores": [-8.0, -4.0], "mean": 1.0, "std": 3.0}, (1.5, 10.0)),
    ],
}
