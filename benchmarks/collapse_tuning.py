"""How strong each remedy of benchmarks/collapse.py should be: a few strengths of each, on a seed of
their own.

    python benchmarks/collapse_tuning.py --out FILE           train what FILE does not hold yet
    python benchmarks/collapse_tuning.py --out FILE --draw    the table of what it holds
"""

from __future__ import annotations

import collapse_report as report
from collapse import Arm, one_seed
from study import study

SEED = 100
ARMS = (
    Arm(report.PLAIN, "ε = 0.2, no KL, no bonus"),
    Arm("clip-higher", "ε_high = 0.28", dict(clip_high=0.28)),
    Arm("clip-higher", "ε_high = 0.5", dict(clip_high=0.5)),
    Arm("entropy bonus", "0.03 H", dict(entropy_coef=0.03)),
    Arm("entropy bonus", "0.1 H", dict(entropy_coef=0.1)),
    Arm("adaptive bonus", "up to 0.1 H, while H ≤ 0.2",
        dict(entropy_target=0.2, entropy_coef_max=0.1)),
    Arm("adaptive bonus", "up to 0.3 H, while H ≤ 0.4",
        dict(entropy_target=0.4, entropy_coef_max=0.3, entropy_coef_delta=0.02)),
    Arm("Clip-Cov", "10 % of tokens, covariance above 1", dict(cov_share=0.1), preset="clip-cov"),
    Arm("Clip-Cov", "10 % of tokens, covariance above 0.1", dict(cov_share=0.1, cov_low=0.1),
        preset="clip-cov"),
    Arm("KL-Cov", "1 token of 128", preset="kl-cov"),
    Arm("KL-Cov", "10 % of tokens", dict(cov_share=0.1), preset="kl-cov"),
    Arm("KL to the base", "0.2 k3", dict(kl_coef=0.2)),
    Arm("KL to the base", "1.0 k3", dict(kl_coef=1.0)),
)


def main() -> None:
    runs, _ = study(__doc__, lambda _, out: one_seed(SEED, out, ARMS))
    report.outcomes(runs, ARMS)


if __name__ == "__main__":
    main()
