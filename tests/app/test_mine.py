"""minirl/app/mine.py: what minirl mine prints and writes, and how it goes on after a kill."""

import json
import re
import signal
import subprocess
import sys

import pytest

from minirl.app.cli import main
from minirl.app.rundir import RunDir
from minirl.corpus.pages import Corpus, Page, line_of
from minirl.corpus.web import seed_texts, web

SMALL = ["--examples", "500", "--dim", "8", "--buckets", "4096", "--rounds", "2"]
KILLED = """
import os, signal, sys
from minirl.app.cli import main
import minirl.corpus.mining as mining
save, saved = mining.np.save, []
def last_words(file, array):
    saved.append(file)
    if len(saved) == 2:                       # round 2 has written its corpus, and is not complete
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, array)
mining.np.save = last_words
main(sys.argv[1:])
"""


def files(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*")
            if path.is_file() and path.suffix in (".jsonl", ".json", ".npy")}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    run = tmp_path_factory.mktemp("mine") / "run"
    assert main(["mine", "--pages", "1500", "--run-dir", str(run), *SMALL]) == 0
    return run


def test_a_synthetic_web_is_mined_and_reported(synthetic, tmp_path, capsys):
    assert main(["mine", "--pages", "300", "--run-dir", str(tmp_path / "r"), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"minirl mine: 2 rounds over a synthetic web -> {tmp_path}/r/"
    assert re.fullmatch(r"300 pages, [\d,]+ words", lines[1])
    assert lines[3].split()[:4] == ["round", "seeds", "kept", "words"]
    assert lines[4].split()[:2] == ["1", "300"] and lines[5].split()[0] == "2"
    assert lines[9].startswith("recall by topic") and lines[10].split()[:2] == ["round", "sums"]
    assert lines[-1].endswith("round-2/corpus.jsonl; 0 malformed lines were skipped")
    assert (synthetic / "rounds.png").read_bytes()[:4] == b"\x89PNG"
    summary = RunDir(synthetic).summary
    assert [report["seeds"] >= 300 for report in summary["rounds"]] == [True, True]
    assert summary["malformed"] == 0
    written = list(Corpus([synthetic / "round-2" / "corpus.jsonl"]))
    last = summary["rounds"][1]
    assert len(written) == last["pages"] - last["contaminated"]


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(synthetic, tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["mine", "--pages", "1500", "--run-dir", str(run), *SMALL]
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (run / "round-1").is_dir() and not (run / "round-2").exists()
    first = (run / "round-1" / "round.json").stat().st_mtime_ns
    assert main(["mine", "--resume", "--run-dir", str(run)]) == 0
    assert (run / "round-1" / "round.json").stat().st_mtime_ns == first, "it was made again"
    assert files(run) == files(synthetic)
    assert not list(run.glob("*.partial"))
    assert capsys.readouterr().out.count("\n2 ") == 2, "round 2 in both tables"


def test_a_run_that_is_complete_is_only_read(synthetic, monkeypatch, capsys):
    before = files(synthetic)
    monkeypatch.setattr("minirl.app.mine.mine_round", None)
    assert main(["mine", "--resume", "--run-dir", str(synthetic)]) == 0
    assert files(synthetic) == before and "round" in capsys.readouterr().out


@pytest.fixture
def given(tmp_path):
    """Files of pages, one of them with two malformed lines, and what they are mined with."""
    pages = list(web(600))
    for name, part in (("a", pages[:300]), ("b", pages[300:])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(
            line_of(Page(page.text, page.url)) for page in part))
    with open(tmp_path / "b.jsonl", "ab") as file:
        file.write(b'{"text": "cut\n[]\n')
    (tmp_path / "seeds.txt").write_text("\n\n".join(seed_texts(50)))
    question = "Tom has 17 grey cats, 23 white hens and 5 old cows; how many legs is that?"
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(line_of(Page(f"{seed_texts(1)[0]} {question.upper()}")))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": question, "answer": "1"}))
    return tmp_path


def test_given_files_are_mined(given, capsys):
    flags = ["--input", str(given / "a.jsonl"), str(given / "b.jsonl"), "--seeds",
             str(given / "seeds.txt"), "--benchmarks", str(given / "test.jsonl")]
    run = given / "run"
    assert main(["mine", *flags, "--run-dir", str(run), *SMALL]) == 0
    out, error = capsys.readouterr()
    assert "601 pages" in out and out.rstrip().endswith("2 malformed lines were skipped")
    assert f"{given}/b.jsonl:301: not JSON" in error and f"{given}/b.jsonl:302: not an" in error
    report = RunDir(run).summary["rounds"][0]
    assert report["recall"] is None and not (run / "rounds.png").exists()
    assert report["contaminated"] == 1 and "recall by topic" not in out
    written = [page.text for page in Corpus([run / "round-1" / "corpus.jsonl"])]
    assert written and not any("17 GREY CATS" in text for text in written)


def test_a_file_that_has_changed_is_not_mined_further(given, capsys):
    flags = ["--input", str(given / "a.jsonl"), "--seeds", str(given / "seeds.txt")]
    run = given / "run"
    assert main(["mine", *flags, "--run-dir", str(run), *SMALL]) == 0
    with open(given / "a.jsonl", "ab") as file:
        file.write(b'{"text": "one more"}\n')
    capsys.readouterr()
    assert main(["mine", "--resume", "--run-dir", str(run)]) == 2
    assert re.search(r"a\.jsonl has [\d,]+ bytes and had [\d,]+", capsys.readouterr().err)
