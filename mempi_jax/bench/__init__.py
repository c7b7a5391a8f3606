"""Benchmarks; the command is `python -m mempi_jax.bench`, see __main__.py."""
