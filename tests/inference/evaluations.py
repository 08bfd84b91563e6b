"""Evaluations as policies might leave them, for what is made of them."""

from minirl.inference.evaluate import Evaluation
from minirl.tasks.problem import Problem


def evaluation(problems, completion, accuracy, **verdicts):
    """Each problem has the same completion, 4 tokens long."""
    one = [[None]] * len(problems)
    columns = {"accuracy": accuracy, **verdicts}
    return Evaluation(
        problems, [[completion]] * len(problems), [[[1, 2, 3, 4]] for _ in one],
        {name: [[verdict] for verdict in column] for name, column in columns.items()},
        [[4] for _ in one], [[False] for _ in one])


def instructed(text):
    """Four instructions with a true reward and a reward model's score; two answers are right."""
    problems = [Problem(f"sort {text}{i}:", f"abc{text}") for i in range(4)]
    return evaluation(problems, text, [1.0, 0.0, 0.0, 1.0], true_reward=[1.0, 2.0, 0.5, 1.5],
                      reward_model=[123.4567] * 4)


def summed(text, accuracy=(1.0, 0.0, 0.0, 1.0)):
    """Four sums, of which two are right and one is in the asked form."""
    problems = [Problem(f"1+{i}={text}", f"7{text}") for i in range(4)]
    return evaluation(problems, text, list(accuracy), format_reward=[1.0, 0.0, 0.0, 0.0])
