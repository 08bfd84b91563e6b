"""What R1's policies are worth on held-out problems, as files of the run."""

from __future__ import annotations

from typing import Any

from torch import nn

from minirl.app.plots import plot_stages
from minirl.app.rundir import RunDir
from minirl.app.stages import KINDS, Stages
from minirl.lm.checkpoint import load_pretrained
from minirl.lm.files import read_json
from minirl.lm.model import Transformer
from minirl.lm.precision import compute_in
from minirl.lm.progress import Progress
from minirl.tasks.instructions import Instructions
from minirl.train.r1 import R1Config
from minirl.train.stage import Page
from minirl.train.worth import SIDE, with_win_rates, worth


class Worths:
    """What each policy is worth on held-out problems, in stages.json. `stage` is for pipelines."""

    def __init__(self, stages: Stages, config: R1Config) -> None:
        self.stages, self.config, self.file = stages, config, stages.run.path / "stages.json"
        self.entries = {entry["stage"]: entry for entry in read_json(self.file).get("stages", ())}

    def stage(self, name: str, config: Any, start: nn.Module, page: Page) -> Any:
        model = self.stages(name, config, start, page)
        if KINDS[type(config)].load is load_pretrained:        # reward models are no policies
            self.measure(name, model)
        return model

    def measure(self, name: str, model: Transformer) -> None:
        """Put what a policy is worth into stages.json, unless it is there."""
        if name in self.entries:
            return
        run, settings = self.stages.run, self.stages.settings
        seconds = RunDir(run.path / name).summary.get("seconds", 0.0)
        completions = settings.eval_problems * (2 * settings.samples + 1)
        with (compute_in(settings.dtype, self.stages.device),
              Progress(f"measuring {name}", completions, unit="completion") as progress):
            numbers = worth(
                model, self.stages.tokenizer, easy=settings.easy, hard=settings.hard,
                general=Instructions(), n=settings.eval_problems, samples=settings.samples,
                max_new_tokens=self.config.max_new_tokens, seed=settings.seed, progress=progress)
        self.entries[name] = {"stage": name, "seconds": seconds, **numbers}
        run.write_json(self.file.name, {"stages": list(self.entries.values())})

    def finish(self) -> list[dict[str, Any]]:
        """Write stages.json with win rates, stages.png and summary.json -> the entries."""
        run, entries = self.stages.run, with_win_rates(list(self.entries.values()))
        run.write_json(self.file.name, {"stages": entries})
        main = [entry for entry in entries if entry["stage"] not in SIDE]
        with run.replacing("stages.png") as partial_file:
            plot_stages(main, partial_file)
        before, after = main[0], main[-1]
        run.write_json("summary.json", {
            "accuracy_before": before["hard"], "accuracy_after": after["hard"],
            "mean_length_before": before["length"], "mean_length_after": after["length"],
            "language_after": after["language"], "win_rate_after": after["win_rate"],
            "seconds": round(self.stages.seconds, 1)})
        return entries
