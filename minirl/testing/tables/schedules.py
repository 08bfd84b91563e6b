"""Golden values of minirl/equations/schedules.py: factors on the learning rate."""

from __future__ import annotations

from minirl.testing.tables import Row, Table

TABLE: Table = {
    "cosine_to_floor": [
        Row("the first of 5 steps: cos 0 = 1, so the factor is 1", {"step": 0, "steps": 5}, 1.0),
        Row("a quarter of the way: cos 45° = √½ = 0.7071, 0.1 + 0.9 (1 + 0.7071) / 2 = 0.8682",
            {"step": 1, "steps": 5}, 0.8681980515339464),
        Row("halfway: cos 90° = 0, 0.1 + 0.9 / 2 = 0.55", {"step": 2, "steps": 5}, 0.55),
        Row("the last step stands on the floor: cos 180° = -1", {"step": 4, "steps": 5}, 0.1),
        Row("a third of the way to 0.2: cos 60° = 1/2, 0.2 + 0.8 · 3/4 = 0.8",
            {"step": 1, "steps": 4, "floor": 0.2}, 0.8),
        Row("two thirds of the way to 0.2: cos 120° = -1/2, 0.2 + 0.8 · 1/4 = 0.4",
            {"step": 2, "steps": 4, "floor": 0.2}, 0.4),
        Row("floor 0: the last step does not move the weights",
            {"step": 3, "steps": 4, "floor": 0.0}, 0.0),
        Row("floor 1: the rate stays", {"step": 2, "steps": 4, "floor": 1.0}, 1.0),
        Row("the first of 3 steps of warm-up: 1 / (3 + 1), and not 0",
            {"step": 0, "steps": 9, "warmup": 3}, 0.25),
        Row("the last of 3 steps of warm-up: 3 / (3 + 1)",
            {"step": 2, "steps": 9, "warmup": 3}, 0.75),
        Row("behind the warm-up the cosine begins, at 1", {"step": 3, "steps": 9, "warmup": 3},
            1.0),
        Row("the cosine counts from the warm-up: (4 - 3) / (6 - 3) is a third, 0.1 + 0.9 · 3/4",
            {"step": 4, "steps": 7, "warmup": 3}, 0.775),
        Row("one step alone, and no 0 / 0", {"step": 0, "steps": 1}, 1.0),
        Row("all steps but the last are warm-up: it has the full rate, and no 0 / 0",
            {"step": 4, "steps": 5, "warmup": 4}, 1.0),
    ],
    "warmup_to_constant": [
        Row("the first step has a tenth of the rate", {"step": 0}, 0.1),
        Row("5 of 10 steps: 0.1 + 0.9 / 2", {"step": 5}, 0.55),
        Row("9 of 10 steps: 0.1 + 0.9 · 9/10 = 0.91", {"step": 9}, 0.91),
        Row("after 10 steps the rate is full", {"step": 10}, 1.0),
        Row("and it stays so: 13 of 10 steps are not 1.27", {"step": 13}, 1.0),
        Row("from 0: 1 of 4 steps is a quarter", {"step": 1, "warmup": 4, "start": 0.0}, 0.25),
        Row("from 0.2: 3 of 4 steps, 0.2 + 0.8 · 3/4 = 0.8",
            {"step": 3, "warmup": 4, "start": 0.2}, 0.8),
        Row("from 1 there is nothing to rise", {"step": 1, "warmup": 4, "start": 1.0}, 1.0),
        Row("no warm-up: the full rate at once, and no 0 / 0", {"step": 0, "warmup": 0}, 1.0),
    ],
}
