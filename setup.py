"""Package metadata and dependencies of amvl."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="amvl",
    version="0.1.0",
    description="DeepSpeed training of multimodal LLMs that reason in continuous latent slots (AMVL)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["trainer*", "model*", "data*", "eval*"]),
    package_data={name: ["*.html", "*.css"] for name in ("eval", "eval.diagnosis", "trainer.rl")},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",
        "accelerate>=1.1",  # transformers' loading under ZeRO-3 asks for it
        "deepspeed>=0.19.8",  # the engine leans on how this one adds up the gradients of a step
        "fsspec>=2025.1",
        "aiohttp",  # http and https through fsspec
        "pyarrow>=16",
        "matplotlib",
        "safetensors",
        "tokenizers",
        "numpy",
        "scipy",
        "scikit-learn",  # linear probes of latents
        "statsmodels>=0.14",  # Wilson, McNemar, Holm
        "requests",  # an OpenAI-compatible judge
        "pillow>=11",
        "pydantic>=2.10,<3",
        "pyyaml",
        "jinja2",
        "mlflow>=3.0",
        "tqdm",
        "psutil",
        "ninja",  # DeepSpeed builds a small operator for CPU ranks
        "easy-vqa==1.0",  # the quickstart's real images
    ],
    extras_require={
        "gpu": ["flash-attn>=2.7", "liger-kernel>=0.6"],
        # For the tests of the fused modules: they run without a GPU too, under Triton's interpreter.
        "kernels": ["liger-kernel>=0.6", "triton"],
        "peers": ["datasets==5.2.0", "megatron-energon==7.4.1", "webdataset==1.0.2"],  # for benchmarks.stream
        "s3": ["s3fs>=2025.1"],  # shards in s3, and whatever speaks its protocol
        "dev": [
            "boto3",
            "hypothesis",
            "moto[s3,server]>=5",
            "mypy",
            "pre-commit",
            "pytest",
            "pytest-timeout",
            "ruff",
            "s3fs>=2025.1",
            "selenium>=4.20",  # drives the Chromium that looks at reports
            "types-PyYAML",
            "types-requests",
            "webdataset>=1.0",  # reads the same shards
        ],
    },
)
