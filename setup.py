"""Installs rave_tools; the top-level configs/ folder travels inside the package as rave_tools.configs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "rave_tools" / "__init__.py").read_text(encoding="utf-8"))[1]
README = HERE / "README.md"

REQUIRED = [
    "torch>=2.4",
    "lightning>=2.2",
    "gin-config>=0.5",
    "cached-conv>=2.5",
    "einops>=0.7",
    "udls>=1.1",
    "absl-py>=2.0",
    "tensorboard>=2.14",
    "lmdb>=1.4",
    "protobuf>=3.20",
    "av>=12.0",
    "soundfile>=0.12",
    "soxr>=0.3.7",
    "scipy>=1.10",
    "numpy>=1.24",
    "pyyaml>=6.0",
    "tqdm>=4.65",
    "matplotlib>=3.7",
]

EXTRAS = {
    "text": ["transformers>=4.40", "sentencepiece>=0.2"],
    "metrics": ["pesq>=0.0.4", "pystoi>=0.4"],
    "export": ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.3"],
    "neutone": ["neutone-sdk>=1.5.2"],
    "wandb": ["wandb>=0.16"],
    "cluster": ["submitit>=1.5"],
    "dev": ["pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.4", "mypy>=1.10", "types-PyYAML>=6.0", "setuptools>=68"],
}
EXTRAS["dev"] += EXTRAS["export"]

setup(
    name="rave_tools",
    version=VERSION,
    description="Audio models from gin-bindable blocks, trained here, played in realtime hosts",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["rave_tools", "rave_tools.*"]), "rave_tools.configs"],
    package_dir={"rave_tools.configs": "configs"},
    package_data={
        "rave_tools.configs": ["*.gin", "**/*.gin"],
        "rave_tools": ["py.typed", "training/reference_curves.json"],
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rave_tools = rave_tools.cli.main:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio",
    ],
)
