"""minirl/app/report.py: `minirl report`, a run as an HTML page."""

import json
import shutil

import pytest

from minirl.app.cli import main
from minirl.app.report import MOST, describe, plain, thinned
from minirl.app.rundir import RunDir
from tests.app.reading import numbers_in


def test_a_run_is_all_there(finished, inside, capsys):
    assert main(["report", str(finished)]) == 0
    assert "report.html" in capsys.readouterr().out
    data = numbers_in((inside / "report.html").read_text(encoding="utf-8"))
    [run] = data["runs"]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert run["curves"]["reward"] == [[line["step"], line["reward"]] for line in lines]
    assert set(run["curves"]) == {name for line in lines for name in line} - {"step"}
    assert data["main"][0] == "rewards/accuracy/mean"
    summary = json.loads((finished / "summary.json").read_text())
    shown = dict(data["facts"])
    before, after = (summary[f"accuracy_{when}"] for when in ("before", "after"))
    assert shown["accuracy, before and after"] == f"{before:.4g} → {after:.4g}"
    assert shown["steps"] == "4"


def test_the_configuration_says_what_is_not_the_default(finished):
    [run] = describe([RunDir(finished)])["runs"]
    fields = {field: (value, changed) for field, value, changed in run["config"]["grpo"]}
    assert fields["weight_decay"] == ("1.0", True) and fields["kl_coef"] == ("0.01", False)
    environment = {name: value for name, value, _ in run["config"]["run"]}
    assert {"command", "preset", "torch", "threads", "python", "platform"} <= set(environment)


def test_samples_stand_side_by_side(finished):
    [run] = describe([RunDir(finished)])["runs"]
    headings = [section["heading"] for section in run["samples"]]
    assert headings == ["step 0: before", "step 2: halfway", "step 4: after"]
    first = [section["answers"][0] for section in run["samples"]]
    assert len({answer["prompt"] for answer in first}) == 1 and "=" in first[0]["prompt"]
    assert all(answer["verdict"] in ("right", "wrong") for answer in first)
    text = (finished / "samples.md").read_text(encoding="utf-8")
    assert all(answer["text"] in text for answer in first)


def test_samples_of_another_form_are_shown_as_they_are(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "samples.md").write_text("# title\n\n## step 0: before\n\nno list\n")
    [run] = describe([RunDir(copy)])["runs"]
    assert run["samples"] == [] and "no list" in run["text"]
    (copy / "samples.md").unlink()
    [run] = describe([RunDir(copy)])["runs"]
    assert run["samples"] == [] and run["text"] == ""


def test_two_runs_and_one_that_goes_on(finished, tmp_path, inside):
    copy = tmp_path / "other"
    shutil.copytree(finished, copy)
    (copy / "summary.json").unlink()
    assert main(["report", str(finished), str(copy), "-o", "two.html"]) == 0
    data = numbers_in((inside / "two.html").read_text(encoding="utf-8"))
    assert [run["name"] for run in data["runs"]] == ["grpo", "other"] and data["facts"] == []
    assert describe([RunDir(copy)])["facts"] == [("steps so far", "4")]


def test_without_a_name_it_is_the_newest_run(finished, inside, capsys):
    shutil.copytree(finished, inside / "runs" / "grpo")
    assert main(["report"]) == 0 and (inside / "report.html").is_file()


def test_a_pipeline_names_its_stages(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "r1" / "zero")
    assert main(["report", str(tmp_path / "r1")]) == 2
    assert f"name its stages, such as {tmp_path / 'r1' / 'zero'}" in capsys.readouterr().err


def test_numbers_that_json_has_not_are_left_out(finished, tmp_path, inside):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "reward": float("nan")})
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["report", str(copy)]) == 0
    data = numbers_in((inside / "report.html").read_text(encoding="utf-8"))
    assert [step for step, _ in data["runs"][0]["curves"]["reward"]] == [2, 3, 4]


@pytest.mark.parametrize("code, inner", [("`3+4`", "3+4"), ("```a `` b```", "a `` b"),
                                         ("`` ` ``", "`"), ("` `", " ")])
def test_inline_code(code, inner):
    assert plain(code) == inner


def test_a_long_curve_is_thinned_to_means():
    curve = [(i, float(i % 2)) for i in range(4 * MOST)]
    short = thinned(curve)
    assert len(short) == MOST and {y for _, y in short} == {0.5}
    assert thinned(curve[:10]) == curve[:10]
