"""The shapes that an engine runs: few enough to compile before a run, close enough that little is padded.

Three numbers make a shape: rows (how many slots a call works on), width (new tokens a row in a prefill), window (how many cached tokens a
row may look back on). A call takes the smallest planned shape that holds its work; longer prompts go in pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

WINDOW, EVEN_WINDOWS = 128, 512  # multiples of 128 up to 512, then doubles
FIRST_WIDTH, WIDTH_FACTOR, LAST_WIDTH = 16, 4, 1024  # the last one is at most a quarter of a row, or 64
SMALLEST_ROWS, ROWS_FACTOR = 16, 4
# Tokens of a prefill call, padding included. An accelerator wants many; on a processor several calls run side by side, and small ones keep
# all cores busy.
PREFILL_TOKENS = {'cpu': 512, 'gpu': 8192, 'tpu': 8192}
# Rows of a decode call. An accelerator reads its weights once for all rows; on a processor attention counts, so rows of about one length
# run together and look no further back than they must.
DECODE_ROWS = {'cpu': 32}
STEPS = 16  # most decode steps of a call
# With few slots latency counts: prompts are read in one piece of about their length, and a call decodes longer.
FEW_SLOTS, FEW_WIDTH_FACTOR, FEW_LAST_WIDTH, FEW_STEPS = 8, 2, 256, 32


@dataclasses.dataclass(frozen=True)
class Plan:
  """The shapes of an engine with `slots` rows of `max_length` tokens."""

  slots: int
  max_length: int
  windows: tuple[int, ...]  # of cached tokens, ascending; the last one is the whole row
  widths: tuple[int, ...]  # of prefill chunks, ascending
  prefill_rows: tuple[int, ...]  # of a prefill call, one for each width
  decode_rows: tuple[int, ...]  # ascending
  steps: int

  def window(self, tokens: int) -> int:
    """The window that holds `tokens` cached tokens; 0 where there are none."""
    return 0 if tokens == 0 else smallest(tokens, self.windows)

  def width(self, tokens: int) -> int:
    """The width of the next piece of a chunk: the one that holds all of it, unless half of that would be padding."""
    holding = smallest(min(tokens, self.widths[-1]), self.widths)
    smaller = [width for width in self.widths if width <= tokens]
    return holding if not smaller or tokens >= holding or tokens > holding // 2 else smaller[-1]

  def padded(self, tokens: int) -> int:
    """Tokens that a chunk costs with its padding."""
    cost = 0
    while tokens > 0:
      cost += (width := self.width(tokens))
      tokens -= width
    return cost

  def rows_of(self, width: int) -> int:
    """Rows of a prefill call of that width."""
    return self.prefill_rows[self.widths.index(width)]

  def decode(self, rows: int) -> int:
    """Rows of the decode call that holds `rows` running ones, or as many of them as a call takes."""
    return smallest(min(rows, self.decode_rows[-1]), self.decode_rows)


def make_plan(slots: int, max_length: int, platform: str) -> Plan:
  """The plan for a device of that platform (cpu, gpu, tpu)."""
  if slots < 1 or max_length < 2:
    raise ValueError(f'an engine needs at least one slot of two tokens, found {slots} slots of {max_length} tokens')
  windows, widths, rows = [WINDOW], [FIRST_WIDTH], [min(slots, DECODE_ROWS.get(platform, slots))]
  while windows[-1] < max_length:
    windows.append(windows[-1] + WINDOW if windows[-1] < EVEN_WINDOWS else windows[-1] * 2)
  few = slots <= FEW_SLOTS
  factor, least = (FEW_WIDTH_FACTOR, FEW_LAST_WIDTH) if few else (WIDTH_FACTOR, 64)
  while widths[-1] * factor <= min(LAST_WIDTH, max_length, max(least, max_length // 4)):
    widths.append(widths[-1] * factor)
  while rows[0] >= SMALLEST_ROWS * ROWS_FACTOR:
    rows.insert(0, -(-rows[0] // ROWS_FACTOR))
  widths = [min(width, max_length) for width in widths]
  budget = PREFILL_TOKENS.get(platform, PREFILL_TOKENS['cpu'])
  return Plan(
    slots=slots,
    max_length=max_length,
    windows=(*windows[:-1], max_length),
    widths=tuple(widths),
    prefill_rows=tuple(max(1, min(slots, budget // width)) for width in widths),
    decode_rows=tuple(rows),
    steps=FEW_STEPS if few else STEPS,
  )


def smallest(size: int, choices: Sequence[int]) -> int:
  """The smallest of ascending `choices` that holds `size`."""
  return next(choice for choice in choices if choice >= size)
