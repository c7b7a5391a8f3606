"""The generation engine: continuous batching over a fixed number of slots, each with its own stretch of the key-value cache.

A request is a whole transcript and how to go on from it. What of the transcript a slot holds already is not computed again, wherever that
comes from: the request's own session (an episode's earlier turns), or another request with the same beginning (a group's prompt, a
common instruction), whose cache is copied. Slots are given to requests as they come free; a session that loses its slot is read anew when
it comes back. A sample depends on its request's seed and on positions in its transcript alone. See plan.py for shapes, programs.py for
what runs on the device.

    engine = Engine(config, params, slots=64, max_length=512)
    results = engine.generate([Request(prompt=ids, max_new=32, seed=i) for i, ids in enumerate(prompts)])

or, where requests come and go: `ticket = engine.submit(request)`, then `engine.step()` until `ticket.result` is there.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mempi_jax.inference import cache, programs
from mempi_jax.inference.plan import Plan, make_plan
from mempi_jax.inference.programs import Drawn, Sampling
from mempi_jax.inference.requests import Finish, QueueFull, Request, Result, Ticket
from mempi_jax.models.decoder import DecoderConfig

MAX_STOPS, STOP_LENGTH, MAX_FORCED = 4, 8, 8
MIN_SHARED = 16  # a shorter common beginning is not worth a copy
PATIENCE = 4  # rounds that a prompt waits for others to share its call


@dataclasses.dataclass
class Counters:
  """What an engine has done."""

  requests: int = 0
  prompt_tokens: int = 0  # of the requests' prompts
  prefilled: int = 0  # of them really computed
  copied: int = 0  # of them copied from another slot
  generated: int = 0
  evictions: int = 0  # of a session from its slot
  prefill_calls: int = 0
  decode_calls: int = 0
  compilations: int = 0


@dataclasses.dataclass(eq=False)
class _Reading:
  """A request on its way into its slot: copy `start` tokens from the slot `source` (if any), then compute the rest of its prompt."""

  ticket: Ticket
  start: int  # tokens that the slot holds already
  source: int | None = None
  after: _Reading | None = None  # who reads into `source` now, and must have ended
  twin: bool = False  # `after` has the same prompt: its logits do
  logits: tuple[jax.Array, int] | None = None  # once it has ended: those after the prompt, and the row there
  rounds: int = 0  # that it has waited for others to share its calls


class _Row(NamedTuple):
  """What one call drew for one request."""

  tokens: list[int]
  logps: list[float]
  model_logps: list[float]
  stop_logp: float
  broken: int  # the first token whose log-prob is not finite; -1: none


def _rows(drawn: Drawn, counts: np.ndarray) -> list[_Row]:
  """A call's arrays as one `_Row` a row, `counts` i32[b] tokens each."""
  token, logp, model_logp = (np.asarray(part).reshape(len(part), -1) for part in drawn[:3])
  bad = ~np.isfinite(model_logp[: len(counts)]) & (np.arange(model_logp.shape[1]) < counts[:, None])  # a call has rows to spare
  broken = np.where(bad.any(axis=1), bad.argmax(axis=1), -1).tolist()
  parts = zip(token.tolist(), logp.tolist(), model_logp.tolist(), np.asarray(drawn.stop_logp).tolist(), broken, counts.tolist(), strict=False)
  return [_Row(tokens[:n], logps[:n], model_logps[:n], stop, bad) for tokens, logps, model_logps, stop, bad, n in parts]


class Engine:
  """Generates for many requests at once. Not thread-safe; one owner.

  Args:
    config: the decoder, in the unrolled layout.
    params: its parameters, where they are: nothing is copied. Set anew at any time; what was computed with others is then forgotten.
    slots: how many requests run side by side.
    max_length: tokens of a transcript, what is produced included.
    cache_kind: of `cache.CACHE_DTYPES`.
    max_queue: most waiting requests (None: any number).

  Raises ValueError for impossible sizes, MemoryError where the cache cannot fit, saying what would.
  """

  def __init__(
    self,
    config: DecoderConfig,
    params: Any,
    *,
    slots: int,
    max_length: int,
    cache_kind: str = 'model',
    max_queue: int | None = None,
  ):
    self.config, self.max_queue, self.cache_kind = config, max_queue, cache_kind
    self.plan: Plan = make_plan(slots, max_length, jax.default_backend())
    self.cache_bytes = cache.cache_bytes(config, slots, max_length, cache_kind)
    cache.check_memory(self.cache_bytes, slots, max_length)
    self._params = params
    self.store = cache.place(cache.init_store(config, slots, max_length, cache_kind), params, slots)
    self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count()) if jax.default_backend() == 'cpu' else None
    self.counters = Counters()
    self.resident = np.full((slots, max_length), -1, np.int32)  # the tokens whose keys and values each slot holds
    self.held = np.zeros(slots, np.int32)  # how many
    self.owner: list[Ticket | None] = [None] * slots  # who is running there
    self.session_of: list[Hashable | None] = [None] * slots
    self.slot_of: dict[Hashable, int] = {}
    self.used = np.zeros(slots, np.int64)  # when it was last used
    self.clock = 0
    self.waiting: collections.deque[Ticket] = collections.deque()
    self.unread: list[_Reading] = []  # have a slot, and a prompt to be read
    self.how = Sampling(
      np.zeros(slots, np.uint32),
      np.zeros(slots, np.float32),
      np.zeros(slots, np.int32),
      np.ones(slots, np.float32),
      np.zeros((slots, MAX_FORCED), np.int32),
      np.zeros(slots, np.int32),
      np.full((slots, MAX_STOPS, STOP_LENGTH), -1, np.int32),
    )

  # What its users call.

  @property
  def params(self) -> Any:
    """The decoder's parameters."""
    return self._params

  @params.setter
  def params(self, params: Any) -> None:
    if self.running:
      raise RuntimeError(f'{self.running} requests are running: parameters change between them, not within')
    self._params = params
    self.forget()

  @property
  def running(self) -> int:
    """Requests that are waiting or in a slot."""
    return len(self.waiting) + sum(owner is not None for owner in self.owner)

  def forget(self) -> None:
    """Empties the cache of what no running request needs."""
    for slot, owner in enumerate(self.owner):
      if owner is None:
        self._empty(slot)

  def submit(self, request: Request) -> Ticket:
    """Queues a request. Raises ValueError for one that cannot be served, saying why, and QueueFull where there is no room to wait."""
    prompt = np.asarray(request.prompt, np.int32).reshape(-1)
    self._check(request, prompt)
    if self.max_queue is not None and len(self.waiting) >= self.max_queue:
      raise QueueFull(f'{len(self.waiting)} requests are waiting, as many as max_queue allows: let the engine step before more')
    ticket = Ticket(request, self.counters.requests, prompt=prompt)
    self.counters.requests += 1
    self.counters.prompt_tokens += len(ticket.prompt)
    if request.max_new == 0 and not request.forced:
      self._finish(ticket, Finish.LENGTH)
    else:
      self.waiting.append(ticket)
    return ticket

  def step(self) -> list[Ticket]:
    """One round: requests that found a slot are read, or else the running ones go on for a few tokens. Returns those that ended."""
    compiled = programs.compiled()
    ended = self._drop_cancelled()
    self._admit()
    ended += self._read()
    if not ended and (slots := self._started()):
      ended += self._go_on(slots)
    self.counters.compilations += programs.compiled() - compiled
    return ended

  def generate(self, requests: Iterable[Request]) -> list[Result]:
    """Runs requests to their end; results in their order. Raises FloatingPointError, naming the first one that failed."""
    tickets = [self.submit(request) for request in requests]
    while any(ticket.result is None for ticket in tickets):
      self.step()
    results = [ticket.result for ticket in tickets]
    for result in results:
      if result.finish is Finish.ERROR:
        raise FloatingPointError(result.error)
    return results

  def warm_up(self) -> int:
    """Compiles every program of the plan, several at a time, so that none is compiled later; returns how many.

    Each runs once on padding alone, and leaves the cache as it is. Requests with top-k or top-p have a decode program of their own, which
    is compiled when the first one comes.
    """
    compiled, plan = programs.compiled(), self.plan
    nobody = lambda size: (np.full(size, plan.slots, np.int32), np.zeros(size, np.int32))

    def reads(width: int, window: int) -> Callable[[], Any]:
      """A prefill and its first tokens."""

      def run() -> Any:
        size = plan.rows_of(width)
        rows, zeros = nobody(size)
        past = programs.take(self.store, rows, window=window) if window else None
        logits, new = programs.prefill(self.config, self._params, past, zeros, np.zeros((size, width), np.int32), zeros)
        programs.first(logits, zeros, zeros, self._how(zeros), filtered=False)
        return programs.write, (rows, zeros, zeros, new)

      return run

    def goes_on(size: int, window: int) -> Callable[[], Any]:
      """A run of decode steps."""

      def run() -> Any:
        rows, zeros = nobody(size)
        whole = size == plan.slots and window == plan.max_length
        past = self.store if whole else programs.take(self.store, rows, window=window)
        counts, _, new = programs.decode(
          self.config, self._params, past, zeros.astype(bool), zeros, zeros, zeros, zeros,
          np.zeros((size, STOP_LENGTH), np.int32), self._how(zeros), np.int32(1), steps=plan.steps, filtered=False,
        )  # fmt: skip
        return programs.write, (rows, zeros, counts, new)

      return run

    def copies(window: int) -> Callable[[], Any]:
      """A prefix from slot to slot."""

      def run() -> Any:
        rows, _ = nobody(plan.prefill_rows[0])
        return programs.put, (rows, programs.take(self.store, rows, window=window))

      return run

    work = [reads(width, window) for width in plan.widths for window in (0, *plan.windows)]
    work += [goes_on(size, window) for size in plan.decode_rows for window in plan.windows]
    work += [copies(window) for window in plan.windows]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      last = list(pool.map(lambda run: run(), work))
    for program, arguments in last:  # these take the cache and give it back, so one after the other
      self.store = program(self.store, *arguments)
    self.counters.compilations += programs.compiled() - compiled
    return programs.compiled() - compiled

  def describe(self) -> str:
    """Its size in words, before anything runs."""
    plan = self.plan
    return f'{plan.slots} slots of {plan.max_length} tokens, a cache of {self.cache_bytes / 1e6:,.1f} MB ({self.cache_kind}), allocated once'

  def close_session(self, session: Hashable) -> None:
    """Gives the session's slot free; what it holds may still serve others with the same beginning."""
    slot = self.slot_of.pop(session, None)
    if slot is not None:
      self.session_of[slot] = None

  # Requests and slots.

  def _check(self, request: Request, prompt: np.ndarray) -> None:
    size, new = len(prompt), len(request.forced) + request.max_new
    refuse = lambda problem: ValueError(f'request refused: {problem}')
    if not size:
      raise refuse('an empty prompt, there is nothing to go on from')
    if size + new > self.plan.max_length:
      raise refuse(f'{size} prompt tokens and {new} new ones are {size + new}, more than the max_length of {self.plan.max_length}')
    if request.max_new < 0 or request.top_k < 0 or not request.temperature >= 0:
      raise refuse(f'max_new {request.max_new}, top_k {request.top_k}, temperature {request.temperature}: expected 0 or more of each')
    if not 0 < request.top_p <= 1:
      raise refuse(f'top_p {request.top_p}: expected more than 0 and at most 1')
    if len(request.stop) > MAX_STOPS or any(not 0 < len(stop) <= STOP_LENGTH for stop in request.stop):
      lengths = [len(stop) for stop in request.stop]
      raise refuse(f'stop sequences of {lengths} tokens: expected at most {MAX_STOPS} of 1 to {STOP_LENGTH} tokens')
    if len(request.forced) > MAX_FORCED:
      raise refuse(f'{len(request.forced)} forced tokens: expected at most {MAX_FORCED}')
    given = [*request.forced, *(token for stop in request.stop for token in stop)]
    # As unsigned numbers negative ids are large.
    if int(prompt.view(np.uint32).max()) >= self.config.vocab_size or not all(0 <= token < self.config.vocab_size for token in given):
      ids = [*prompt.tolist(), *given]
      raise refuse(f'token ids from {min(ids)} to {max(ids)}: expected 0 to {self.config.vocab_size - 1}')

  def _started(self) -> list[int]:
    """The slots of requests that have a first token."""
    return [slot for slot, owner in enumerate(self.owner) if owner is not None and owner.tokens]

  def _admit(self) -> None:
    """Gives slots to waiting requests, in order, as long as there are any."""
    if not self.waiting:
      return
    idle = sorted(
      (slot for slot, owner in enumerate(self.owner) if owner is None),
      key=lambda slot: (self.session_of[slot] is not None, self.used[slot]),
    )  # first those without a session, the one that was unused longest first
    reading = {entry.ticket.slot: entry for entry in self.unread}
    later: list[Ticket] = []
    while self.waiting and idle:
      ticket = self.waiting.popleft()
      entry = self._place(ticket, reading, idle)
      if entry is None:
        later.append(ticket)
      else:
        reading[ticket.slot] = entry
        self.unread.append(entry)
    self.waiting.extendleft(reversed(later))

  def _place(self, ticket: Ticket, reading: dict[int, _Reading], idle: list[int]) -> _Reading | None:
    """One of the `idle` slots for a request, and what it finds there; None where its session's last request still runs."""
    prompt, session = ticket.prompt, ticket.request.session
    slot = self.slot_of.get(session) if session is not None else None
    if slot is not None and self.owner[slot] is not None:
      return None
    entry, source = _Reading(ticket, 0), None
    if slot is not None:
      entry.start = min(self._common(slot, prompt), len(prompt) - 1)
      idle.remove(slot)
    else:
      source, shared = self._donor(prompt)
      after = reading.get(source) if source is not None else None
      if after is not None and len(after.ticket.prompt) == len(prompt) == shared:
        entry.start, entry.twin, entry.after = shared, True, after
      elif source is not None and self._worth_sharing(len(prompt), shared):
        entry.start, entry.after = min(shared, len(prompt) - 1), after
      else:
        source = None
      if source is not None and self.owner[source] is None and self.session_of[source] is None:
        slot, source = source, None  # it is there already
        idle.remove(slot)
      else:
        slot = idle.pop(0)
        if self.session_of[slot] is not None:
          self.counters.evictions += 1
          self.close_session(self.session_of[slot])
      if session is not None:
        self.slot_of[session], self.session_of[slot] = slot, session
    entry.source = source
    ticket.slot, self.owner[slot] = slot, ticket
    self.resident[slot, : len(prompt)] = prompt
    self.held[slot] = len(prompt)
    self._set_sampling(slot, ticket.request)
    self.clock += 1
    self.used[slot] = self.clock
    return entry

  def _common(self, slot: int, prompt: np.ndarray) -> int:
    """How many tokens the slot's content and the prompt have in common at their beginning."""
    size = min(int(self.held[slot]), len(prompt))
    different = np.flatnonzero(self.resident[slot, :size] != prompt[:size])
    return int(different[0]) if different.size else size

  def _donor(self, prompt: np.ndarray) -> tuple[int | None, int]:
    """The slot with the longest common beginning, and its length."""
    size = len(prompt)
    if size < MIN_SHARED:
      return None, 0
    # Few slots begin like the prompt; only those are compared to the end.
    alike = np.flatnonzero((self.held >= MIN_SHARED) & (self.resident[:, :MIN_SHARED] == prompt[:MIN_SHARED]).all(axis=1))
    if not alike.size:
      return None, 0
    same = self.resident[alike, :size] == prompt
    common = np.minimum(np.where(same.all(axis=1), size, np.argmin(same, axis=1)), self.held[alike])
    best = int(np.argmax(common))
    return int(alike[best]), int(common[best])

  def _worth_sharing(self, size: int, shared: int) -> bool:
    return shared >= MIN_SHARED and self.plan.padded(size - min(shared, size - 1)) < self.plan.padded(size)

  def _set_sampling(self, slot: int, request: Request) -> None:
    how = self.how
    how.seeds[slot], how.temperature[slot] = np.uint32(request.seed % 2**32), request.temperature
    how.top_k[slot], how.top_p[slot] = request.top_k, request.top_p
    how.forced[slot], how.num_forced[slot] = 0, len(request.forced)
    how.forced[slot, : len(request.forced)] = request.forced
    how.stops[slot] = -1
    for i, stop in enumerate(request.stop):
      how.stops[slot, i, STOP_LENGTH - len(stop) :] = stop

  def _empty(self, slot: int) -> None:
    self.held[slot] = 0
    self.resident[slot] = -1
    if self.session_of[slot] is not None:
      self.close_session(self.session_of[slot])

  def _drop_cancelled(self) -> list[Ticket]:
    dropped = [ticket for ticket in (*self.waiting, *self.owner) if ticket is not None and ticket.cancelled]
    if not dropped:
      return []
    self.waiting = collections.deque(ticket for ticket in self.waiting if not ticket.cancelled)
    gone = [entry for entry in self.unread if entry.ticket.cancelled]
    self.unread = [entry for entry in self.unread if not entry.ticket.cancelled]
    for entry in self.unread:
      if entry.after in gone:  # what it waits for never comes: it reads its prompt itself
        entry.start, entry.source, entry.after, entry.twin = 0, None, None, False
    for ticket in dropped:
      self._finish(ticket, Finish.CANCELLED)
    for entry in gone:
      self._empty(entry.ticket.slot)  # its prompt was never read, or not all of it
    return dropped

  def _finish(self, ticket: Ticket, finish: Finish, error: str = '') -> None:
    ticket.result = Result(tuple(ticket.tokens), tuple(ticket.logps), tuple(ticket.model_logps), ticket.stop_logp, finish, error)
    if ticket.slot >= 0:
      self.owner[ticket.slot] = None
      if finish is Finish.ERROR:
        self._empty(ticket.slot)

  # Reading prompts.

  def _read(self) -> list[Ticket]:
    """Reads prompts, and draws the first token of those that are through.

    A call that would be nearly empty waits for more to share it, as long as enough others go on meanwhile.
    """
    if not self.unread:
      return []
    running = len(self._started())
    drawn: list[tuple[Sequence[_Reading], Drawn]] = []
    while True:
      ready = [entry for entry in self.unread if entry.after is None or entry.after.logits is not None]
      self._copy([entry for entry in ready if entry.source is not None])
      for entry in ready:
        if entry.twin:
          entry.logits = entry.after.logits
      calls = self._calls([entry for entry in ready if entry.logits is None], running)
      for (width, part), logits in zip(calls, self._prefill(calls), strict=True):
        for row, entry in enumerate(part):
          entry.start, entry.rounds = min(entry.start + width, len(entry.ticket.prompt)), 0
          if entry.start == len(entry.ticket.prompt):
            entry.logits = logits, row
      read = [entry for entry in ready if entry.logits is not None]
      if read:
        drawn += self._first(read)
        self.unread = [entry for entry in self.unread if entry.logits is None]
      if not read and not calls:
        break
    for entry in self.unread:
      entry.rounds += 1
    ended = []
    for entries, result in drawn:
      rows = _rows(result, np.ones(len(entries), np.int32))
      ended += [entry.ticket for entry, row in zip(entries, rows, strict=False) if self._take(entry.ticket, row)]
    return ended

  def _calls(self, entries: Sequence[_Reading], running: int) -> list[tuple[int, list[_Reading]]]:
    """The prefill calls to make now, (width, entries), while `running` others can go on."""
    by_width: dict[int, list[_Reading]] = {}
    for entry in entries:
      by_width.setdefault(self.plan.width(len(entry.ticket.prompt) - entry.start), []).append(entry)
    calls = []
    for width, items in sorted(by_width.items()):
      size = self.plan.rows_of(width)
      rest = len(items) % size
      if 0 < rest < size / 2 and rest <= running and max(entry.rounds for entry in items[-rest:]) < PATIENCE:
        items = items[:-rest]
      items = sorted(items, key=lambda entry: entry.start)
      calls += [(width, items[start : start + size]) for start in range(0, len(items), size)]
    return calls

  def _copy(self, entries: Sequence[_Reading]) -> None:
    """Puts what others hold already where the entries' slots begin."""
    size = self.plan.prefill_rows[0]
    for start in range(0, len(entries), size):
      part = entries[start : start + size]
      sources, targets = np.zeros(size, np.int32), np.full(size, self.plan.slots, np.int32)
      sources[: len(part)] = [entry.source for entry in part]
      targets[: len(part)] = [entry.ticket.slot for entry in part]
      window = self.plan.window(max(entry.start for entry in part))
      self.store = programs.put(self.store, targets, programs.take(self.store, sources, window=window))
      self.counters.copied += sum(entry.start for entry in part)
      for entry in part:
        entry.source = None

  def _prefill(self, calls: Sequence[tuple[int, list[_Reading]]]) -> list[jax.Array]:
    """Prefill calls, (width, entries) each: the next piece of each prompt. Returns the logits after it, an array a call."""

    def read(width: int, part: Sequence[_Reading]) -> tuple[jax.Array, tuple[Any, ...]]:
      """One call: its logits, and what is to be written to the cache."""
      size = self.plan.rows_of(width)
      rows, lengths = np.full(size, self.plan.slots, np.int32), np.zeros(size, np.int32)
      chunk, counts = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
      for row, entry in enumerate(part):
        piece = entry.ticket.prompt[entry.start : entry.start + width]
        rows[row], lengths[row], counts[row] = entry.ticket.slot, entry.start, len(piece)
        chunk[row, : len(piece)] = piece
      window = self.plan.window(int(lengths.max()))
      past = programs.take(self.store, rows, window=window) if window else None
      logits, new = programs.prefill(self.config, self._params, past, lengths, chunk, counts)
      return logits, (rows, lengths, counts, new)

    results = self._side_by_side([functools.partial(read, *call) for call in calls])
    for _, (rows, lengths, counts, new) in results:
      self.store = programs.write(self.store, rows, lengths, counts, new)
      self.counters.prefill_calls += 1
      self.counters.prefilled += int(counts.sum())
    return [logits for logits, _ in results]

  def _first(self, entries: Sequence[_Reading]) -> list[tuple[Sequence[_Reading], Drawn]]:
    """The first tokens, a call for each array of logits."""
    groups: dict[int, list[_Reading]] = {}
    for entry in entries:
      groups.setdefault(id(entry.logits[0]), []).append(entry)
    calls = []
    for members in groups.values():
      size = len(members[0].logits[0])
      calls += [functools.partial(self._draw, members[start : start + size], size) for start in range(0, len(members), size)]
    return self._side_by_side(calls)

  def _draw(self, entries: Sequence[_Reading], size: int) -> tuple[Sequence[_Reading], Drawn]:
    """The first tokens of requests whose logits are rows of one array."""
    pad = lambda values: np.array([*values, *[values[0]] * (size - len(entries))], np.int32)
    slots = pad([entry.ticket.slot for entry in entries])
    index, positions = pad([entry.logits[1] for entry in entries]), pad([len(entry.ticket.prompt) for entry in entries])
    return entries, programs.first(entries[0].logits[0], index, positions, self._how(slots), filtered=self._filtered(slots))

  # Going on.

  def _go_on(self, slots: Sequence[int]) -> list[Ticket]:
    """A run of decode steps for these slots, those of about one length together."""
    order = sorted(slots, key=lambda slot: int(self.held[slot]))
    size = self.plan.decode_rows[-1]
    groups = [np.array(order[start : start + size]) for start in range(0, len(order), size)]
    calls = self._side_by_side([functools.partial(self._decode, group) for group in groups])
    ended = []
    for slots, counts, drawn, written in calls:
      self.store = programs.write(self.store, *written)
      self.counters.decode_calls += 1
      counts = np.asarray(counts)
      for slot, row in zip(slots, _rows(drawn, counts), strict=False):
        ticket, held, count = self.owner[slot], int(self.held[slot]), len(row.tokens)
        # Every token but the last one drawn is in the cache now.
        self.resident[slot, held : held + count] = (ticket.tokens[-1], *row.tokens[:-1])
        self.held[slot] += count
        if self._take(ticket, row):
          ended.append(ticket)
    return ended

  def _decode(self, slots: np.ndarray) -> tuple[list[int], jax.Array, Drawn, tuple[Any, ...]]:
    """One decode call; returns its slots, by row how many tokens came, and which, and what is to be written to the cache."""
    count, size = len(slots), self.plan.decode(len(slots))
    window = self.plan.window(int(self.held[slots].max()))
    whole = size == self.plan.slots and window == self.plan.max_length
    place = slots if whole else np.arange(count)  # the whole cache is read where it lies, so rows are slots
    rows = np.full(size, self.plan.slots, np.int32)
    token, produced, limit = np.zeros(size, np.int32), np.zeros(size, np.int32), np.ones(size, np.int32)
    tail, lengths, active = np.full((size, STOP_LENGTH), -2, np.int32), np.zeros(size, np.int32), np.zeros(size, bool)
    settings = np.zeros(size, np.int64)
    for row, slot in zip(place, slots, strict=True):
      ticket = self.owner[slot]
      rows[row], settings[row], active[row], lengths[row] = slot, slot, True, self.held[slot]
      token[row], produced[row] = ticket.tokens[-1], len(ticket.tokens)
      limit[row] = len(ticket.request.forced) + ticket.request.max_new
      last = ticket.tokens[-STOP_LENGTH:]
      tail[row, STOP_LENGTH - len(last) :] = last
    past = self.store if whole else programs.take(self.store, rows, window=window)
    enough = np.int32(max(1, count // 3))
    counts, record, new = programs.decode(
      self.config, self._params, past, active, lengths, token, produced, limit, tail, self._how(settings), enough,
      steps=self.plan.steps, filtered=self._filtered(slots),
    )  # fmt: skip
    written = rows, lengths, counts, new
    if whole:
      counts, record = jax.tree.map(lambda leaf: np.asarray(leaf)[place], (counts, record))
    return slots.tolist(), counts, record, written

  def _take(self, ticket: Ticket, row: _Row) -> bool:
    """Adds what was drawn to a request; True where it ended."""
    self.counters.generated += len(row.tokens)
    self.clock += 1
    self.used[ticket.slot] = self.clock
    if row.broken >= 0:
      step = len(ticket.tokens) + row.broken
      self._finish(ticket, Finish.ERROR, f'request {ticket.number}: the model gave non-finite logits at its token {step}')
      return True
    ticket.tokens += row.tokens
    ticket.logps += row.logps
    ticket.model_logps += row.model_logps
    ticket.stop_logp = row.stop_logp
    request = ticket.request
    if len(ticket.tokens) > len(request.forced) and any(tuple(ticket.tokens[-len(stop) :]) == tuple(stop) for stop in request.stop):
      self._finish(ticket, Finish.STOP)
    elif len(ticket.tokens) >= len(request.forced) + request.max_new:
      self._finish(ticket, Finish.LENGTH)
    return ticket.result is not None

  # Calls.

  def _how(self, slots: np.ndarray) -> Sampling:
    return Sampling(*(part[slots] for part in self.how))

  def _filtered(self, slots: np.ndarray) -> bool:
    return bool((self.how.top_k[slots] > 0).any() or (self.how.top_p[slots] < 1.0).any())

  def _side_by_side(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of calls that only read the cache.

    On a processor each runs in a thread: programs of many small steps keep one core busy, not all of them. An accelerator takes one after
    the other, without waiting for any.
    """
    if len(calls) < 2 or self._pool is None:
      return [call() for call in calls]
    return list(self._pool.map(lambda call: jax.block_until_ready(call()), calls))
