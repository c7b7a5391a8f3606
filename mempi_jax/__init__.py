"""Mem-π in JAX: memory for LLM agents that is generated instead of retrieved (arXiv 2605.21463)."""
