"""Layouts with the rules of configs/alfworld.py, of any shape: what tests of several devices share."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from mempi_jax.config import load_config
from mempi_jax.runtime.sharding import Layout, make_layout
from tests.small_run import CONFIG


def layout(data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Layout:
  """The layout of a mesh [data, fsdp, tensor]."""
  mesh = ConfigDict(load_config(CONFIG).mesh)
  mesh.data, mesh.fsdp, mesh.tensor = data, fsdp, tensor
  return make_layout(mesh, devices)
