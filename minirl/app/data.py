"""A user's files at the command line: the task that --data names, and files that a resumed run must
find as they were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from minirl.app.chat import AUTO, NONE
from minirl.app.flags import json_object
from minirl.app.preflight import refuse
from minirl.app.survival import warn
from minirl.app.tasks import OF_A_FILE
from minirl.lm.digests import digest
from minirl.tasks.dataset import files_of
from minirl.tasks.latex import is_installed
from minirl.tasks.problem import Task, listed, weights_of

FILES = "data", "eval_data", "rankings", "chat_template"   # flags that name what is learnt from
GYM = "reasoning_gym"


def data_fields(name: str, data: str | None, eval_data: str | None, math_verify: bool | None,
                task_config: str | None) -> dict[str, Any]:
    """Return the fields of a task that reads a file, or of one of reasoning-gym.

    Paths are absolute, so that minirl eval finds the files from another folder.
    """
    if name not in OF_A_FILE:
        return {"name": name, "config": config_of(task_config)}
    paths = {"data": data, "eval_data": eval_data}
    fields: dict[str, Any] = {"name": name, **{
        flag: os.path.abspath(path) for flag, path in paths.items() if path is not None}}
    if name == "dataset":                              # later, too, whatever is installed by then
        fields["math_verify"] = is_installed() if math_verify is None else math_verify
    return fields


def measured_on(data: str, name: str | None, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task of all problems in a file; of a file that the run learnt from,
    those that were held out. `run` is its config.json."""
    fields = run.get("task", {})
    if name not in (None, *OF_A_FILE):
        raise ValueError(f"--data is given, but the task {name} reads no file: leave it out")
    learnt = run.get("files", {}).get("data", {}).get("sha256")
    if learnt is not None and learnt == digest_of(data):
        if fields.get("name") in OF_A_FILE:
            return {**fields, "data": os.path.abspath(data)}
        warn(f"this checkpoint has learnt from all of {data}: none of it was held out")
    own = fields.get("name") if fields.get("name") in OF_A_FILE else "dataset"
    return {"name": name or own, "data": os.path.abspath(data), "split": "test"}


def config_of(text: str | None) -> dict[str, Any]:
    """Return what --task-config says. Raises ValueError for anything but a JSON object."""
    return json_object("task_config", text, '{"max_terms": 3}')


def check_data_flags(name: str, flags: Collection[str]) -> None:
    """Raise ValueError for a flag that a task of this name does not read."""
    if name not in OF_A_FILE:
        refuse(flags, ("data", "eval_data"), f"the task {name} reads no file")
    if name != "dataset":
        refuse(flags, ["math_verify"], f"the task {name} has no formulas for answers")
    if not name.startswith(GYM):
        refuse(flags, ["task_config"], f"the task {name} has none")
    if name in OF_A_FILE or name.startswith(GYM):
        refuse(flags, ["digits"], f"the task {name} has no such numbers")


def check_answers(task: Task) -> None:
    """Raise ValueError for problems of which the rewards that count could judge the format alone.
    """
    counts = {name for name, weight in weights_of(task).items() if weight}
    problems = listed(task)
    if problems and counts <= {"accuracy", "format_reward"} and not any(
            problem.answer for problem in problems):
        raise ValueError(f"{task.name}: no problem has an answer, so that nothing but the format "
                         "would be learnt: add a column 'answer', or name a --reward of yours")


# the same files when a run goes on

def digests_of(configs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return path and digest of every file that the configurations name, by its flag."""
    paths = {name: path for config in configs.values() for name in FILES
             if (path := getattr(config, name, None)) not in (None, AUTO, NONE)}
    return {name: {"path": os.path.abspath(path), "sha256": digest_of(path)}
            for name, path in paths.items()}


def digest_of(path: str | Path) -> str:
    """Return the digest of a file, or of all files in a folder that are read."""
    digests = [digest(file) for file, _ in files_of(path)]
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else together


def check_unchanged(config: Mapping[str, Any]) -> None:
    """Raise ValueError where a file that a run learns from is gone, or has changed since its start.
    """
    for name, file in config.get("files", {}).items():
        path = Path(file["path"])
        problem = "has changed since this run began" if path.exists() else "is gone"
        if not path.exists() or digest_of(path) != file["sha256"]:
            raise ValueError(f"{path}, which --{name.replace('_', '-')} named, {problem}: restore "
                             "it, or start a new run")
