"""One readable page per algorithm, in five stages: sample, score, freeze, update, report. Here belongs the order in which things happen;
an equation that a page needs lives in equations/, and what makes it fast in lm/.
"""

from minirl.train.dpo import train_dpo
from minirl.train.grpo import train_grpo
from minirl.train.ppo import train_ppo
from minirl.train.r1 import train_r1
from minirl.train.reward_model import train_reward_model
from minirl.train.sft import train_sft

__all__ = ["train_dpo", "train_grpo", "train_ppo", "train_r1", "train_reward_model", "train_sft"]
