from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="minirl",
    version="0.1.0",
    description="Reinforcement learning for language models, from scratch and small enough to read",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["minirl", "minirl.*"]),
    package_data={"minirl.testing": ["golden.json"], "minirl.app": ["*.html", "page.*s"]},
    # Lower bounds here; the versions that were tested together are in constraints.txt.
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",             # torch's bridge to arrays, and matplotlib's
        "tokenizers>=0.20",
        "safetensors>=0.4",
        "matplotlib>=3.8",
        "tqdm>=4.66",              # progress bars; comes with tokenizers' own huggingface_hub
        "huggingface_hub>=0.24",   # --init owner/name; comes with tokenizers
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",   # as many processes as there are cores: half of the time on two
            "ruff>=0.6",           # one width, sorted imports, no dead code: ruff.toml
            "mypy>=1.11",          # every function says what it takes: mypy.ini
            "hypothesis>=6.100",   # any text that a parser may be given
            "jupytext>=1.16",      # compares the tutorials' notebooks with their scripts
        ],
        # What builds the notebooks of the tutorials: python tutorials/make_notebooks.py
        "docs": ["jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6.29"],
        # What renders chat templates; torch brings it, too
        "chat": ["jinja2>=3.1.6"],
        # A user's own data: Parquet files, formulas as answers, reasoning_gym:NAME as a task
        "parquet": ["pyarrow>=14"],
        "math": ["math-verify>=0.8"],
        "gym": ["reasoning-gym>=0.1.19"],
        # Where metrics may go, too: --log tensorboard,wandb
        "trackers": ["tensorboard>=2.15", "wandb>=0.17"],
        # Other people's code to compare ours with, in tests/parity and benchmarks only; nothing in
        # minirl imports it. Needs Python 3.11.
        "parity": [
            "trl>=1.16",           # tests/parity calls methods that move between versions
            "transformers>=5.0",   # the same weights, the same logits
            "datasets>=4.7",       # trl imports it, and so has its bound
            "accelerate>=1.10",    # the same
            "gguf>=0.10",          # the weights of a real model, as a package has them
        ],
    },
    entry_points={"console_scripts": ["minirl=minirl.app.cli:main"]},
)
