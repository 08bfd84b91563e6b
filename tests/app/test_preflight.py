"""minirl/app/preflight.py: command lines that cannot work. Each ends with exit code 2 and one line
that says what to do, within the time of a start, and leaves nothing behind.

Some of these once trained a base model for two minutes first; others left a folder that `--resume`
and `plot` then picked, or ended in a traceback.
"""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch

from minirl.app import preflight, sums
from minirl.app.cli import COMMANDS, main
from minirl.lm import memory
from minirl.lm.checkpoint import inspect_pretrained, save_pretrained
from minirl.lm.heads import ScalarModel
from minirl.lm.memory import parameters_of
from minirl.lm.tiny import TinySizes, make_base

TINY = TinySizes(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32)
SECONDS = 3.0            # of processor time, a start: what `import torch` takes is not in it here

WRONG = {
    "": ["--nosuch", "--seed 1", "grp", "GRPO"],
    "sft": ["--foo", "--lr abc", "--lr 0", "--lr -1", "--lr nan", "--lr inf", "--epochs 0",
        "--batch-size 0", "--examples 0", "--examples 100000000000000", "--worked-share 2",
        "--worked-share nan", "--guessed-share -0.1", "--num-heads 0", "--num-heads 7",
        "--hidden-size 95", "--hidden-size 1000000", "--num-layers 0",
        "--intermediate-size 100000000000", "--max-seq-len 16", "--max-seq-len 60 --digits 5",
        "--dropout 1.5", "--warmup-steps -1", "--min-lr-ratio 2", "--beta1 1", "--beta2 -0.5",
        "--weight-decay -1", "--max-grad-norm 0", "--token-budget 0", "--digits 0", "--digits 6",
        "--task poetry", "--tools hammer", "--tools ''", "--task products --worked-share 0.5",
        "--task products --guessed-share 0.5", "--tool-share 0.5", "--task products --digits 9",
        "--task products --tool-share 2", "--seed -1", "--seed 99999999999999999999",
        "--eval-problems 0", "--eval-problems 1000000000000", "--checkpoint-every 0",
        "--keep-checkpoints 0",
        "--device abacus", "--dtype float99", "--sampler-dtype half", "--compile maybe",
        "--batch-invariant maybe", "--batch-invariant true --compile on",
        "--batch-invariant true --sampler-dtype float16",
        "--log mlflow", "--log tensorboard,", "--log ''",
        "--preset best",
        "--init nowhere", "--init ''", "--init {base} --hidden-size 64", "--data nowhere.jsonl",
        "--data {folder}/broken.jsonl",
        "--data {folder}/deep.jsonl", "--data {folder}/huge.jsonl", "--data {folder}/latin.jsonl",
        "--data {folder}/long.jsonl", "--data {folder}/pairs.jsonl --examples 5",
        "--data {folder}/pairs.jsonl --digits 2", "--data {folder}/twice.csv",
        "--data {folder}/ragged.csv", "--data {folder}/bad.parquet", "--data {folder}",
        "--data {folder}/pairs.jsonl --eval-data {folder}/pairs.jsonl",
        "--data {folder}/pairs.jsonl --math-verify true", "--eval-data {folder}/pairs.jsonl",
        "--data {folder}/pairs.jsonl --task addition", "--task gsm8k", "--task dataset",
        "--data {folder}/pairs.jsonl --task gsm8k", "--task reasoning_gym:chain_sum",
        "--data {folder}/pairs.jsonl --task dataset --examples 5",
        "--run-dir ''", "--run-dir {finished}",
        "--run-dir {folder}/pairs.jsonl", "--resume", "--resume --run-dir nowhere",
        "--resume --run-dir {finished}"],
    "grpo": ["--grop-size 4", "--group-size 1", "--group-size 2.5", "--steps 0",
        "--steps 100000000000000000000000000", "--prompts-per-step 1000000000000",
        "--max-new-tokens 0", "--max-new-tokens 125", "--max-new-tokens 125 --init {base}",
        "--temperature 0", "--temperature -1", "--temperature inf", "--kl-coef -1", "--kl-coef nan",
        "--clip-low -1", "--scale std", "--ddof 5", "--aggregate mean", "--minibatches 1000",
        "--overlong-cache 81", "--ref-sync-steps -1", "--dynamic-sampling maybe", "--init nowhere",
        "--init {finished}", "--init {folder}", "--init {mistral}", "--init {torn}", "--init {run}",
        "--init {reward_model}", "--preset sapo --clip-high 0.5", "--preset rloo --ddof 0",
        "--preset reinforce --scale none", "--preset maxrl --clip-high 0.1",
        "--preset cispo --clip-low 0.1", "--max-draws 0", "--max-draws 5", "--top-entropy 1.5",
        "--top-entropy nan", "--off-policy -1", "--off-policy 1000", "--old-logp reference",
        "--top-k -1", "--top-p 0", "--top-p nan", "--min-p 2", "--repetition-penalty 0",
        "--top-p 0.9 --old-logp sampler", "--preset icepop --top-k 5",
        "--importance token", "--importance-max 2", "--importance token_mask --importance-max -1",
        "--importance token_mask --importance-max 0.5 --importance-min 0.5",
        "--importance token_mask --old-logp sampler", "--geometric-min 2 --geometric-max 1",
        "--geometric-max 1.1 --old-logp sampler", "--off-policy-delta -0.1", "--dual-clip 1.1",
        "--preset gspo --dual-clip 3", "--pass-k 2", "--preset passk --pass-k 9",
        "--preset passk --group-size 2", "--preset passk --pass-k 1", "--dppo-delta 0.1",
        "--preset dppo --dppo-delta 2",
        "--sapo-temp-pos 2", "--preset sapo --sapo-temp-neg 0", "--vespo-k-pos 1",
        "--preset dppo --vespo-lambda-neg 1", "--cov-share 0.1", "--preset clip-cov --cov-low 5",
        "--preset kl-cov --cov-share 0", "--preset kl-cov --cov-low 2",
        "--preset kl-cov --clip-high 0.2", "--preset clip-cov --cov-kl-coef 2", "--kl-estimator k1",
        "--kl-coef 0 --kl-estimator k2", "--ref-mixup 0.5", "--ref-sync-steps 5 --ref-mixup 0",
        "--entropy-coef -1", "--entropy-target -1", "--entropy-coef-min 0.1",
        "--entropy-target 0.5 --entropy-coef 2", "--mask-truncated maybe",
        "--preset gdpo --scale none", "--preset gdpo --overlong-cache 8", "--preset best",
        "--task gsm8k", "--task dataset", "--data nowhere.csv", "--data {folder}/broken.jsonl",
        "--data {folder}/twice.csv", "--data {folder}/ragged.csv", "--data {folder}/latin.jsonl",
        "--data {folder}/bad.parquet", "--data {folder}/one_problem.jsonl", "--data {folder}",
        "--data {folder}/no_answers.jsonl", "--data {folder}/no_answers.jsonl --task gsm8k",
        "--data {folder}/long.jsonl --reward accuracy", "--data {folder}/mixed.jsonl",
        "--data {folder}/problems.jsonl --digits 2", "--task addition --eval-data nowhere.csv",
        "--data {folder}/problems.jsonl --eval-data nowhere.csv", "--math-verify true",
        "--data {folder}/problems.jsonl --task addition", "--task-config {{}}",
        "--data {folder}/problems.jsonl --task-config {{}}", "--task reasoning_gym",
        "--task reasoning_gym:", "--task reasoning_gym:nosuch", "--task addition:chain_sum",
        "--task reasoning_gym:chain_sum --task-config []",
        "--task reasoning_gym:chain_sum --task-config {{",
        "--resume --data {folder}/problems.jsonl --run-dir {finished}",
        "--tools hammer", "--task products --tools ''", "--max-tool-calls 2",
        "--task products --tools calculator --max-tool-calls 0",
        "--task products --digits 5 --max-new-tokens 120", "--resume --lr 1 --run-dir {finished}",
        "--resume --preset dapo --run-dir {finished}", "--resume --run-dir {base}/..",
        "--reward", "--reward short", "--reward math", "--reward math:pi", "--reward math:exp",
        "--reward nosuch:f", "--reward minirl.tasks.rewards:accuracy", "--reward-weights 1",
        "--reward minirl.tasks.rewards:language_consistency", "--reward builtins:exit",
        "--reward accuracy --reward-weights 1 2", "--reward accuracy --reward-weights nan",
        "--reward accuracy --reward-weights 0", "--reward accuracy --reward-timeout -1",
        "--preset maxrl --reward accuracy --reward-weights -1",
        "--reward-timeout 5", "--resume --reward accuracy --run-dir {finished}",
        "--rollout math", "--rollout math:pi", "--rollout math:exp", "--rollout nosuch:f",
        "--rollout math:pow --task products --tools calculator"],
    "rm": ["--best-of 4", "--reward-model x", "--rankings nowhere.jsonl",
        "--rankings {folder}/pairs.jsonl", "--rankings {folder}/same.jsonl",
        "--rankings {folder}/one.jsonl", "--labeller-noise 0", "--labeller-noise nan",
        "--right-share 2", "--ranked-prompts 0", "--demonstrations 0",
        "--rankings {folder}/ranked.jsonl --ranked-prompts 5", "--epochs 0", "--warmup-steps 3"],
    "prm": ["--task products", "--task subtraction", "--slip-share 2", "--slip-share nan",
        "--init {base} --slip-share 0.1", "--labelled-problems 0", "--step-samples 0",
        "--best-of 0", "--batch-size 0", "--epochs 0", "--digits 9", "--clip-low 0.1",
        "--preset medium", "--init nowhere"],
    "ppo": ["--lam -1", "--lam 2", "--gamma -1", "--gamma 2", "--preset adaptive-kl --kl-coef 0",
        "--whiten-advantages maybe", "--episodes 0", "--minibatch-size 0", "--value-lr 0",
        "--ema-decay 1", "--warmup-steps -1", "--max-new-tokens 500", "--reward-model nowhere",
        "--reward-model {base}", "--missing-eos-penalty -1", "--best-of 0", "--kl-target 0",
        "--profile=yes", "--tools calculator", "--reward accuracy", "--digits 2",
        "--task poetry", "--task gsm8k", "--data nowhere.csv", "--data {folder}/no_answers.jsonl",
        "--task addition --best-of 2", "--task addition --rankings {folder}/ranked.jsonl",
        "--task addition --preset ppo-ptx", "--task addition --reward-model {base}",
        "--data {folder}/problems.jsonl --reward nosuch:f", "--task addition --reward-timeout 5"],
    "dpo": ["--rankings {folder}/twice.csv", "--rankings {folder}/bad.parquet",
        "--warmup-steps -1", "--beta 0", "--beta inf", "--min-lr-ratio -1",
        "--rankings {folder}/broken.jsonl", "--rankings {folder}/surrogate.jsonl", "--clip-low 0.1",
        "--steps 5"],
    "distill": ["--small 0", "--small 17", "--teacher nowhere", "--teacher {reward_model}",
        "--init {base} --small 32", "--on-policy-share 2",
        "--on-policy-share 0.5", "--preset exact --jsd-beta 0.5", "--preset gkd --jsd-beta 2",
        "--teacher-decay -1", "--steps 0", "--group-size 4", "--max-new-tokens 500",
        "--prompts-per-step 0", "--temperature 0", "--preset kd", "--teacher {base}/.."],
    "r1": ["--scale 0", "--scale 1000", "--language fr", "--number-length 9", "--small 17",
        "--rounds 0", "--preference-steps 1", "--general-share 0", "--max-new-tokens 4",
        "--profile", "--samples 0", "--too-long -1", "--final-temperature 0", "--zero-steps 0"],
    "search": ["--task products", "--task subtraction", "--digits 4", "--digits 0",
        "--slip-share 2", "--slip-share nan", "--init {base} --slip-share 0.1", "--init nowhere",
        "--labelled-problems 0", "--step-samples 0", "--eval-problems 0", "--largest 0",
        "--largest 2.5", "--largest 100000000", "--expansions 0", "--expansions 3",
        "--temperature 0", "--temperature nan", "--max-new-tokens 0", "--max-new-tokens 125",
        "--preset search-and-learn", "--preset beam", "--profile", "--reward nowhere",
        "--reward ''", "--reward {base}", "--reward {reward_model}",
        "--reward {scores} --labelled-problems 5", "--reward {scores} --step-samples 5",
        "--reward {other_scores}", "--beams 4", "--best-of 4", "--resume",
        "--resume --run-dir {finished}", "--run-dir {finished}", "--seed -1", "--dtype int8"],
    "sample": ["--init nowhere", "--init {run}", "--init {base} -n 0",
        "--init {base} -n 1000000000000", "--init {base} --temperature -1",
        "--init {base} --temperature nan", "--init {base} --top-k -1", "--init {base} --top-p 0",
        "--init {base} --min-p 2", "--init {base} --min-p nan", "--init {base} --task gsm8k",
        "--init {base} --data nowhere.csv", "--init {base} --task-config {{}}",
        "--init {base} --max-tool-calls 2",
        "--init {base} --repetition-penalty 0", "--init {base} --repetition-penalty inf",
        "--init {base} --max-new-tokens 0", "--init {base} --max-new-tokens 500",
        "--init {base} " + "1" * 200, "--init {base} --seed -1",
        "--init {base} --seed 99999999999999999999", "--init {base} --dtype int8",
        "--init {base} --device abacus", "--init {torn}", "\udcff\udcfe"],
    "eval": ["--init nowhere", "--init {base} --problems 0",
        "--init {base} --problems 100000000000000", "--init {base} --samples 0",
        "--init {base} --samples 4 --k 8", "--init {base} --k 0", "--init {base} --digits 0",
        "--init {base} --digits 9", "--init {base} --task poetry",
        "--init {base} --max-tool-calls 2",
        "--init {base} --data nowhere.csv", "--init {base} --data {folder}/twice.csv",
        "--init {base} --task addition --data {folder}/problems.jsonl",
        "--init {base} --task gsm8k", "--init {base} --task reasoning_gym",
        "--init {base} --task-config {{}}", "--init {base} --task addition --task-config {{}}",
        "--init {base} --voting 0", "--init {base} --voting 1000000000000",
        "--init {base} --voting x",
        "--init {base} --best-of 0 --reward {scores}", "--init {base} --best-of 4",
        "--init {base} --reward {scores}", "--init {base} --best-of 2 --reward nowhere",
        "--init {base} --best-of 2 --reward ''", "--init {base} --best-of 2 --reward {base}",
        "--init {base} --how last",
        "--init {base} --voting 2 --how min", "--best-of 2 --reward nowhere",
        "--init {base} --best-of 2 --reward {scores} --how mean",
        "--init {base} --best-of 2 --reward {outcomes} --how last",
        "--init {base} --best-of 2 --reward {other_scores}",
        "--init {base} --best-of 2 --reward {short}",
        "--init {base} --max-new-tokens 500", "--init {base} --task instructions --digits 2",
        "--init {instructed} --digits 2", "--init {unknown}"],
    "equations": ["kl.k33", "--nosuch"],
    "check": ["", "math:exp", "math --against k3", "nosuch:loss --against k3",
              "math:pi --against k3", "math:exp --against k4", "math:exp --against k3 --sign up",
              "math:exp --against k3 --fixed beta", "math:exp --against k3 --reduced max"],
    "mine": ["--input nowhere --seeds {folder}/pages.txt", "--input {folder}/pages.txt",
        "--seeds {folder}/pages.txt", "--benchmarks {folder}/pages.txt", "--pages 5",
        "--pages 5000000000", "--pages 1000 --input {folder}/pages.txt --seeds {folder}/pages.txt",
        "--input {folder}/pages.txt --seeds {folder}/broken.jsonl",
        "--input {folder}/broken.jsonl --seeds {folder}/pages.txt", "--input {folder} --seeds x",
        "--rounds 0", "--words -1", "--domain-share 0", "--path-share 1", "--path-share nan",
        "--examples 0", "--lr 0", "--lr nan", "--dim 0", "--buckets 0", "--ngrams 0",
        "--buckets 99999999999", "--epochs 0", "--seed -1", "--resume", "--resume --rounds 2",
        "--resume --run-dir {finished}", "--run-dir {finished}", "--run-dir ''"],
    "precision": ["--init nowhere", "--init {run}", "--init {reward_model}", "--init {torn}",
        "--init {base} --problems 0", "--init {base} --problems x", "--init {base} --samples 0",
        "--init {base} --samples 100000000000", "--init {base} --steps 0",
        "--init {base} --temperature 0", "--init {base} --temperature nan",
        "--init {base} --max-new-tokens 0", "--init {base} --max-new-tokens 500",
        "--init {base} --seed -1", "--init {base} --device abacus", "--init {base} --dtype float16",
        "--init {base} --out nowhere/x.png", "--init {base} --out {folder}",
        "--init {base} --task poetry", "--init {base} --data nowhere.jsonl"],
    "trace": ["nowhere", "{run}", "{reward_model}", "{torn}", "{base} --group-size 1",
        "{base} --group-size x", "{base} --updates 0", "{base} --steps 0", "{base} --lr 0",
        "{base} --lr nan", "{base} --temperature 0", "{base} --max-new-tokens 0",
        "{base} --max-new-tokens 500", "{base} --seed -1", "{base} --device abacus",
        "{base} --dtype float99", "{base} --out nowhere/x.html", "{base} --out {folder}",
        "{base} --answer 5", "{base} --prompt hello", "{base} --page dpo", "{base} --preset best",
        "{base} --page ppo --preset dapo", "{base} --reward-model {base}", "{base} --row 0",
        "{base} --row 9", "{base} --init {base}"],
    "report": ["", "nowhere", "{folder}", "{finished} --out nowhere/x.html",
        "{finished} --out {folder}"],
    "plot": ["", "nowhere", "{folder}", "{finished} --out nowhere/x.png",
        "{finished} --out {folder}"],
}
CHAT = ["--system-prompt x", "--chat-template none --system-prompt x", "--chat-template nowhere",
        "--chat-template ''", "--chat-template {folder}/broken.jinja", "--chat-template-kwargs [1]",
        "--chat-template-kwargs x", '--chat-template-kwargs {{"tools":1}}']
for command, model in (("sft", ""), ("grpo", ""), ("ppo", "--init {base}"), ("dpo", ""),
                       ("sample", "--init {base}"), ("eval", "--init {base}"),
                       ("precision", "--init {base}"), ("trace", "{base}")):
    WRONG[command] += [f"{model} {line}".strip() for line in CHAT]


def name(command, line):
    return f"{command} {line}".strip()[:60].encode("ascii", "replace").decode()


LINES = [pytest.param(command, line, id=name(command, line))
         for command, lines in WRONG.items() for line in lines]


@pytest.fixture(scope="module")
def places(base, finished, tmp_path_factory):
    """What the command lines name: files and folders, most of them broken."""
    folder = tmp_path_factory.mktemp("places")
    files = {
        "pairs.jsonl": '{"prompt": "1+1=", "completion": "2"}\n',
        "broken.jsonl": '{"prompt": "1+1=", "comple', "deep.jsonl": "[" * 100_000 + "\n",
        "huge.jsonl": '{"prompt": ' + "1" * 5000 + ', "completion": "2"}\n',
        "long.jsonl": json.dumps({"prompt": "1" * 500, "completion": "2"}) + "\n",
        "same.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
        "one.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        "ranked.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
                        '{"prompt": "d", "chosen": "b", "rejected": "c"}\n',
        "twice.csv": "prompt,answer,answer\n1+1=,2,2\n", "ragged.csv": "prompt,answer\n1+1=\n",
        "bad.parquet": "PAR1", "one_problem.jsonl": '{"prompt": "1+1=", "answer": 2}\n',
        "problems.jsonl": '{"prompt": "1+1=", "answer": 2}\n{"prompt": "1+2=", "answer": 3}\n',
        "no_answers.jsonl": '{"prompt": "1+1="}\n{"prompt": "1+2="}\n',
        "mixed.jsonl": '{"prompt": "1+1=", "answer": 2}\n{"prompt": "1+2="}\n',
        "pages.txt": "one two\n\nthree four\n", "broken.jinja": "{% for m in messages %}",
        "surrogate.jsonl": '{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}\n'}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "latin.jsonl").write_bytes('{"prompt": "é", "completion": "2"}\n'.encode("latin-1"))
    made = {name: folder / name for name in ("mistral", "torn", "reward_model")}
    made["mistral"].mkdir()
    (made["mistral"] / "config.json").write_text('{"model_type": "mistral"}')
    (made["mistral"] / "pytorch_model.bin").write_bytes(b"x")
    shutil.copytree(base, made["torn"])
    weights = (made["torn"] / "model.safetensors").read_bytes()
    (made["torn"] / "model.safetensors").write_bytes(weights[:-100])
    shutil.copytree(base, made["reward_model"])
    shutil.copy(base / "model.safetensors", made["reward_model"] / "score.safetensors")
    for name, task in (("instructed", "instructions"), ("unknown", "poetry")):
        made[name] = folder / name / "final"
        shutil.copytree(base, made[name])
        config = {"command": "grpo", "task": {"name": task}}
        (folder / name / "config.json").write_text(json.dumps(config))
    for name, command, words, context in (
            ("scores", "prm", (), 128), ("outcomes", "rm", (), 128), ("short", "prm", (), 64),
            ("other_scores", "prm", ("once", "upon"), 128)):
        made[name] = folder / name / "final"
        sizes = replace(TINY, max_seq_len=context)
        model, tokenizer = make_base(sizes, seed=0, device="cpu", words=words)
        save_pretrained(ScalarModel(model), tokenizer, made[name])
        (folder / name / "config.json").write_text(json.dumps({"command": command}))
    return {"folder": folder, "base": base, "run": base.parent, "finished": finished, **made}


def tree(*folders):
    return {path: path.stat().st_mtime_ns
            for folder in folders for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("command, line", LINES)
def test_a_command_line_that_cannot_work(command, line, places, inside, capsys):
    words = ["" if word == "''" else word.format(**places) for word in line.split()]
    watched = inside, places["folder"], places["run"], places["finished"]
    before, began = tree(*watched), time.process_time()
    try:
        code = main([command, *words] if command else words)
    except SystemExit as stop:
        code = stop.code
    seconds, error = time.process_time() - began, capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    assert tree(*watched) == before, "a refused command leaves nothing behind"
    assert seconds < SECONDS
    assert error.isprintable() or error[:-1].isprintable()


def test_every_command_is_tried():
    assert set(WRONG) - {""} == set(COMMANDS) and len(LINES) >= 100


TINY_STEP = "--prompts-per-step 1 --group-size 2 --max-new-tokens 1 --eval-problems 1"
COPIES = [        # of the weights, that a run holds at once
    ("grpo", TINY_STEP, "6 copies of {} weights (5 to train, 1 as the reference)",
     "--kl-coef 0 needs no reference"),
    ("grpo", TINY_STEP + " --off-policy 8",
     "14 copies of {} weights (5 to train, 1 as the reference, 8 of old policies)",
     "give a smaller --off-policy"),
    ("grpo", TINY_STEP + " --off-policy 64 --kl-coef 0",
     "69 copies of {} weights (5 to train, 64 of old policies)", "give a smaller --off-policy"),
    ("ppo", "", "13 copies of {} weights (5 to train, 4 of the value function, 2 as the reference "
     "and the average, 1 as the reward model, 1 trained by DPO)", "name a smaller --init")]


@pytest.mark.parametrize("command, line, copies, advice", COPIES)
def test_all_copies_of_the_weights_fit(command, line, copies, advice, base, finished, capsys,
                                       monkeypatch):
    """A machine that is one byte too small, and one that is not. Once only the five to train were
    counted, and a reference or 64 old policies ended the process without a word. (The plan of all
    that a run holds has a test of its own.)"""
    monkeypatch.setattr(sums, "check_plan", lambda plan, device: None)
    weights = parameters_of(inspect_pretrained(base)[0])
    need = 4 * weights * int(copies.split()[0])
    line = f"--init {base} --run-dir {finished} --device cpu {line}"
    errors = []
    for room in (need - 1, need):
        monkeypatch.setattr(memory, "memory_of", lambda device, room=room: room)
        assert main([command, *line.split()]) == 2
        errors.append(capsys.readouterr().err)
    assert errors[0].startswith(f"minirl {command}: {copies.format(f'{weights:,}')} would take ")
    assert errors[0].endswith(f": {advice}\n") and errors[0].count("\n") == 1
    assert "already" in errors[1], "it fits; what is wrong is the folder"


@pytest.mark.parametrize("command", ["grpo", "ppo"])
def test_a_plan_larger_than_the_memory_is_refused_with_the_flags_to_change(
        command, base, inside, capsys, monkeypatch):
    """All copies of the weights fit a machine of 100 MB; torch itself, and the rest, do not."""
    monkeypatch.setattr(memory, "memory_of", lambda device: 10 ** 8)
    line = f"--init {base} --device cpu --task addition"
    assert main([command, *line.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minirl {command}: this run, at its peak (") and error.count("\n") == 1
    assert "the process, with torch" in error and not list(inside.iterdir())
    for name in ("--token-budget", "--gradient-checkpointing", "--group-size", "--dtype"):
        assert name in error


def test_on_cuda_samplers_have_copies_of_their_own(base, monkeypatch):
    """Of the policy and of the model it started from: 5 to train, a reference and 2 are 8."""
    config, tokenizer = inspect_pretrained(base)
    start = preflight.Start(config, tokenizer, torch.device("cuda"), "grpo")
    need = 4 * parameters_of(config) * 8
    monkeypatch.setattr(memory, "memory_of", lambda device: need)
    preflight.check_copies(start, {"as the reference": 1}, "")
    with pytest.raises(ValueError, match=r"^9 copies .*, 2 as the reference, 2 in samplers\)"):
        preflight.check_copies(start, {"as the reference": 2}, "")


def test_what_a_terminal_would_obey_is_escaped(inside, capsys):
    """The name of a folder may hold what moves the cursor or sets a window's title."""
    assert main(["sample", "--init", "a\x1b]0;owned\x07b"]) == 2
    assert "a\\x1b]0;owned\\x07b" in capsys.readouterr().err
