"""What every HTML page of results shares: one file without network, its style inside, all text from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import struct
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

from mempi_jax.evals import plots, tables
from mempi_jax.evals.tables import plain


def render(template: str, page: Mapping[str, Any], *, script: str = '') -> str:
  """A template of assets/ filled in. The security policy allows report.css and the asset `script`, if one is named, and nothing else."""
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(asset), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize, trim_blocks=True
  )
  environment.globals |= {
    'label': plots.label,
    'split_label': plots.split_label,
    'colour': plots.colour,
    'marker_path': plots.marker_path,
    'wide': tables.WIDE,
  }
  inside = {'style': asset('report.css')} | ({'script': asset(script)} if script else {})
  trusted = {name: markupsafe.Markup(text) for name, text in inside.items()}
  hashes = {f'{name}_hash': _base64(hashlib.sha256(text.encode('utf-8')).digest()) for name, text in inside.items()}
  return environment.get_template(template).render(**page, **trusted, **hashes)


def embedded(images: Mapping[str, bytes]) -> dict[str, Any]:
  """A figure as `plots.draw` gives it, for the inside of a page: both themes as data URLs, with width and height in pixels of the page."""
  width, height = struct.unpack('>II', images['light.png'][16:24])
  sources = {theme: 'data:image/svg+xml;base64,' + _base64(images[f'{theme}.svg']) for theme in ('light', 'dark')}
  return {**sources, 'width': width // 2, 'height': height // 2}


def asset(name: str) -> str:
  """The text of a file in assets/."""
  return importlib.resources.files('mempi_jax').joinpath('assets', name).read_text(encoding='utf-8')


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode('ascii')


def _finalize(value: Any) -> Any:
  """Applied to everything that a template prints, before it is escaped."""
  return plain(value) if type(value) is str else value  # markup of macros is a subclass, and was made from escaped text
