"""One readable page per algorithm, in five stages: sample, score, freeze, update, report. Here belongs the order in which things happen;
an equation that a page needs lives in equations/, and what makes it fast in lm/.
"""

from minirl.train.grpo import train_grpo
from minirl.train.sft import train_sft

__all__ = ["train_grpo", "train_sft"]
