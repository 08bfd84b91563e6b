"""Golden values of minirl/equations/distillation.py. π is the student, π_T the teacher."""

from __future__ import annotations

from minirl.testing.tables import INF, LN2, LN3, Row, Table, log

TABLE: Table = {
    "distillation_advantages": [
        Row("ln(1/4) - ln(1/2) = -ln 2: the teacher finds it half as likely",
            {"logp": log([[1 / 2]]), "teacher_logp": log([[1 / 4]])}, [[-LN2]]),
        Row("ln(3/4) - ln(1/4) = ln 3", {"logp": log([[1 / 4]]), "teacher_logp": log([[3 / 4]])},
            [[LN3]]),
        Row("0 where both agree", {"logp": log([[0.3]]), "teacher_logp": log([[0.3]])}, [[0.0]]),
        Row("a token that the teacher never says is the worst of all",
            {"logp": log([[1 / 2]]), "teacher_logp": log([[0.0]])}, [[-INF]]),
        Row("per token, two rows",
            {"logp": log([[1 / 2, 1 / 4], [1.0, 1 / 3]]),
             "teacher_logp": log([[1.0, 1 / 8], [1 / 3, 1.0]])}, [[LN2, -LN2], [-LN3, LN3]]),
    ],
    "distillation_values": [
        Row("-(1/2 ln 2 + 1/2 ln(2/3)) = -1/2 ln(4/3)",
            {"logits": log([1 / 2, 1 / 2]), "teacher_logits": log([1 / 4, 3 / 4])},
            -0.14384103622589045),
        Row("0 where both agree", {"logits": log([0.2, 0.8]), "teacher_logits": log([0.2, 0.8])},
            0.0),
        Row("three words: -(1/2 ln 2 + 1/4 ln 1 + 1/4 ln(1/2)) = -1/4 ln 2",
            {"logits": log([1 / 2, 1 / 4, 1 / 4]), "teacher_logits": log([1 / 4, 1 / 4, 1 / 2])},
            -LN2 / 4),
        Row("a word that the student never says adds nothing: -ln 2",
            {"logits": [0.0, -INF], "teacher_logits": log([1 / 2, 1 / 2])}, -LN2),
        Row("one number for each state of a batch; logits have no zero",
            {"logits": [[5.0, 5.0], log([1 / 4, 3 / 4])],
             "teacher_logits": [log([1 / 4, 3 / 4]), log([1 / 4, 3 / 4])]},
            [-0.14384103622589045, 0.0]),
    ],
}
