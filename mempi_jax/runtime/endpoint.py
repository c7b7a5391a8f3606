"""A chat model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, hosted): the frozen agent's, or Mem0's manager.

Standard library alone. Many requests are under way at once, up to a limit; what may pass is tried again; what was answered once is kept in
a file and never asked again, so that a run that was killed goes on where it stopped, and a sampled run can be repeated. The server is not
trusted: whatever it sends is an answer or an error of this file.

What the server's key is stands in an environment variable, and nowhere else: neither in errors nor in the file.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import email.utils
import fcntl
import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.runtime import files, hosts, preemption

Message = dict[str, str]  # {'role': 'system' | 'user' | 'assistant', 'content': ...}

OURS = ('model', 'messages', 'seed', 'stream', 'n')  # what settings of the sampling cannot say
PASSING = (408, 409, 425, 429)  # statuses under 500 that a later attempt may not meet
REFUSED = (401, 403, 404)  # the key, the model or the address is wrong: so it is for every request
LARGEST = 2**24  # bytes of an answer
LOOK = 1.0  # seconds between looks at whether the run is asked to end
# What servers say, in one phrasing or the other, of a request that does not fit: OpenAI and vLLM, SGLang, llama.cpp, TGI and others.
OUT_OF_CONTEXT = re.compile(
  r'context_length_exceeded|exceed_context_size|context (length|size|window)|maximum (model|context) length|prompt is too long|'
  r'max_tokens must be at least 1, got -|inputs?\W{1,2}(tokens?\W.{0,60}(must be|exceed)|must have less)',
  re.IGNORECASE,
)


# What the formats of chat models write around turns: ChatML, Llama, Gemma, DeepSeek (with wide bars), Mistral, GLM, and our own.
_CONTROL = re.compile(
  r'[<\[](?=[|｜][^<>\n]{1,80}>|[^<>\s][^<>\n]{0,80}[|｜]>'
  r'|/?(?:s|bos|eos|pad|unk|sys|think|tool_call|tool_response|tools|(?:start|end)_of_(?:turn|image)|[se]op)>'
  r'|/?(?:inst|system_prompt|available_tools|tool_calls|tool_results|tool_content|gmask|bos|eos|pad|unk|generate|abstain)\])',
  re.IGNORECASE,
)
_UNPRINTABLE = dict.fromkeys([*(i for i in range(32) if chr(i) not in '\t\n'), *range(127, 160)])


class EndpointError(OSError):
  """A request failed for good; others may not."""


class ContextLengthError(EndpointError):
  """The request is longer than the model's context."""


class EndpointUnavailable(EndpointError):
  """No request can be answered now: a wrong key, model or address, a server that is down or wants to be left alone for long."""


class _Passing(Exception):
  """An attempt failed; the next one may not. `wait`: the least number of seconds that the server wants to be left alone."""

  def __init__(self, reason: str, wait: float = 0.0):
    super().__init__(reason)
    self.wait = wait


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """What the model said, why it stopped ('stop', 'length', ...; '' unknown), and the tokens that it read and wrote (0 unknown)."""

  text: str
  finish: str = ''
  prompt_tokens: int = 0
  completion_tokens: int = 0


@dataclasses.dataclass
class Traffic:
  """What went over the wire, and what did not have to."""

  attempts: int = 0  # requests sent, repeated ones included
  retries: int = 0
  answers: int = 0  # of the server
  recalled: int = 0  # answers from the file
  failures: int = 0  # requests that failed for good, those out of context left out
  out_of_context: int = 0
  prompt_tokens: int = 0  # of the server's answers
  completion_tokens: int = 0
  without_usage: int = 0  # answers that do not say their tokens


class AnswerFile:
  """Answers by the hash of their request: a JSONL file, one line an answer, whole lines whenever the process is killed.

  A line shows the model, the seed and the last message beside the answer; the request itself is in its key. One process at a time.

  Raises BlockingIOError while another process, or another `AnswerFile`, has the file; ValueError for a line that is none of its own, with
  its number.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = open(self.path, 'ab')
    try:
      # Of several hosts that share the file the first one keeps what it was answered; the others read what there is.
      fcntl.flock(self._lock, (fcntl.LOCK_EX | fcntl.LOCK_NB) if hosts.is_first() else fcntl.LOCK_UN)
    except BlockingIOError:
      self._lock.close()
      raise BlockingIOError(f'{self.path} is in use by another process: each needs a file of its own') from None
    except OSError:
      pass  # a file system without locks
    files.cut_half_line(self.path)
    self._answers: dict[str, Answer] = {}
    for number, record in enumerate(files.read_jsonl(self.path, growing=not hosts.is_first()), start=1):
      try:
        self._answers[record['key']] = Answer(*(record[field.name] for field in dataclasses.fields(Answer)))
      except KeyError as error:
        raise ValueError(f'{self.path}:{number}: no {error} in it: not a file of answers') from None
    self._log = files.JsonlLog(self.path)
    self._guard = threading.Lock()

  def __len__(self) -> int:
    return len(self._answers)

  def get(self, key: str) -> Answer | None:
    """The answer to a request; None: it was never asked."""
    return self._answers.get(key)

  def keep(self, key: str, request: Mapping[str, Any], answer: Answer) -> Answer:
    """Keeps an answer, unless the request has one already; returns the one that is kept."""
    with self._guard:
      if key not in self._answers:
        shown = {'model': request['model'], 'seed': request.get('seed'), 'asked': request['messages'][-1]['content']}
        self._log.append({'key': key, **shown, **dataclasses.asdict(answer)})
        self._answers[key] = answer
      return self._answers[key]

  def close(self) -> None:
    """Closes the file."""
    with self._guard:
      self._log.close()
      self._lock.close()


def wait_for(future: concurrent.futures.Future[Answer]) -> Answer:
  """What `Endpoint.submit` promised. Raises Preempted where the run is asked to end before it comes: a server may take minutes."""
  while not future.done():
    preemption.check()
    concurrent.futures.wait([future], timeout=LOOK)
  return future.result()


class Endpoint:
  """One model of one server, with the settings of its sampling.

  Args:
    url: the base address, up to and without /chat/completions: http://127.0.0.1:8000/v1.
    model: its name there.
    sampling: what a request says besides model, messages and seed: temperature, max_tokens, ...
    concurrency: most requests under way at a time, their waits between attempts included.
    timeout: seconds without a byte, and for all bytes of a body.
    retries: attempts after the first, with waits of `backoff` seconds, twice as long each time up to a minute, and up to half shorter by chance.
      A server's Retry-After makes them longer.
    longest_wait: a server that asks for more seconds is unavailable.
    patience: so many requests that fail for good one after the other, with no answer between, mean that the server is down.
    key_variable: the environment variable with the key; where it is not set, none is sent.
    answers: where answers are kept; None: nowhere.

  Raises ValueError for settings that cannot be, and what `AnswerFile` raises.
  """

  def __init__(
    self,
    url: str,
    model: str,
    sampling: Mapping[str, Any],
    *,
    concurrency: int = 32,
    timeout: float = 120.0,
    retries: int = 8,
    backoff: float = 0.5,
    longest_wait: float = 300.0,
    patience: int = 16,
    key_variable: str = 'OPENAI_API_KEY',
    answers: str | Path | None = None,
  ):
    self.address = address_of(url)
    if taken := sorted(set(sampling) & set(OURS)):
      raise ValueError(f'the sampling of a chat model sets {", ".join(taken)}: that is not its to set')
    for name, value, least in (('concurrency', concurrency, 1), ('retries', retries, 0), ('patience', patience, 1)):
      if value < least:
        raise ValueError(f'{name} is {value}: expected at least {least}')
    if not timeout > 0:
      raise ValueError(f'timeout is {timeout}: expected a positive number of seconds')
    self.model, self.sampling = model, dict(sampling)
    self.concurrency, self.timeout, self.retries, self.patience = concurrency, timeout, retries, patience
    self.backoff, self.longest_wait = backoff, longest_wait
    self.traffic = Traffic()
    self._key = _read_key(key_variable)
    self._opener = urllib.request.build_opener(_AnyStatus)
    self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._workers: list[threading.Thread] = []
    self._guard = threading.Lock()
    self._failed_in_a_row = 0
    self._closed = threading.Event()
    self._chance = random.Random()  # of its own: whoever seeds the module's is not disturbed
    self._answers = AnswerFile(answers) if answers is not None else None

  def complete(self, messages: Sequence[Message], seed: int | None = None) -> Answer:
    """The answer to messages. Raises EndpointError, or one of its kinds, when there is none, and Preempted as `wait_for`."""
    return wait_for(self.submit(messages, seed))

  def submit(self, messages: Sequence[Message], seed: int | None = None) -> concurrent.futures.Future[Answer]:
    """Asks without waiting: the future has the answer, or what `complete` raises. One that has not begun can be cancelled.

    Contents go through `harmless`. Raises EndpointError once it is closed.
    """
    request = {'model': self.model, 'messages': [{'role': m['role'], 'content': harmless(m['content'])} for m in messages], **self.sampling}
    if seed is not None:
      request['seed'] = seed
    key = files.hash_json(request)
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()
    known = self._answers.get(key) if self._answers is not None else None
    if known is not None:
      self._count(recalled=1)
      future.set_result(known)
      return future
    with self._guard:
      self._check_open()
      self._jobs.put((future, key, request))
      if len(self._workers) < self.concurrency:
        # A daemon: who interrupts a run does not wait for a server.
        self._workers.append(threading.Thread(target=self._work, daemon=True))
        self._workers[-1].start()
    return future

  def close(self) -> None:
    """Ends waits and closes the file; what is still under way fails."""
    with self._guard:
      self._closed.set()
      for _ in self._workers:
        self._jobs.put(None)
    if self._answers is not None:
      self._answers.close()

  def __enter__(self) -> Endpoint:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _work(self) -> None:
    """What a thread does: one request after the other."""
    while (job := self._jobs.get()) is not None:
      self._serve(*job)

  def _serve(self, future: concurrent.futures.Future[Answer], key: str, request: Mapping[str, Any]) -> None:
    """A request, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
      return
    try:
      answer = self._ask(request)
      if self._answers is not None:
        answer = self._answers.keep(key, request, answer)
    except BaseException as error:  # noqa: BLE001  the future carries it
      future.set_exception(error)
    else:
      future.set_result(answer)

  def _ask(self, request: Mapping[str, Any]) -> Answer:
    """Attempts, until one of them is answered."""
    data = json.dumps(request).encode()
    for attempt in range(self.retries + 1):
      self._check_open()
      self._count(attempts=1, retries=int(attempt > 0))
      try:
        answer = self._attempt(data)
      except _Passing as fault:
        if fault.wait > self.longest_wait:
          raise EndpointUnavailable(self._says(f'{fault}; it wants to be left alone for {fault.wait:.0f} seconds')) from None
        last, wait = fault, max(fault.wait, min(60.0, self.backoff * 2.0**attempt) * self._chance.uniform(0.5, 1.0))
      except ContextLengthError:
        self._count(out_of_context=1)
        raise
      except EndpointError as error:
        raise self._failed(error) from None
      else:
        self._answered(answer)
        return answer
      if attempt < self.retries:
        self._closed.wait(wait)
    raise self._failed(EndpointError(self._says(f'{self.retries + 1} attempts failed, the last one so: {last}')))

  def _attempt(self, data: bytes) -> Answer:
    """One attempt. Raises _Passing where another may help, else EndpointError."""
    headers = {'Content-Type': 'application/json', 'Accept': 'application/json', 'User-Agent': 'mempi_jax'}
    if self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    try:
      with self._opener.open(urllib.request.Request(self.address, data, headers), timeout=self.timeout) as response:
        status, wait, body = response.status, read_retry_after(response.headers.get('Retry-After')), _read(response, self.timeout)
    except (OSError, http.client.HTTPException) as error:
      raise _Passing(self._without_key(f'no answer: {error!r}')) from None
    try:
      text = body.decode('utf-8')
    except UnicodeDecodeError as error:
      if 200 <= status < 300:
        raise _Passing(f'an answer that is not UTF-8: {error.reason} at byte {error.start}') from None
      text = body.decode('utf-8', 'replace')
    return self._judge(status, wait, text)

  def _judge(self, status: int, wait: float, text: str) -> Answer:
    """What the server's words come to."""
    if 200 <= status < 300:
      answer = read_answer(text, self._excerpt)
      return dataclasses.replace(answer, text=self._without_key(answer.text))
    reason = f'status {status}: {self._excerpt(text)}'
    if status in REFUSED:
      raise EndpointUnavailable(self._says(f'{reason}; check the address, the model {self.model!r} and the key'))
    if status != 429 and OUT_OF_CONTEXT.search(text):
      raise ContextLengthError(self._says(reason))
    if status in PASSING or status >= 500:
      raise _Passing(reason, wait)
    raise EndpointError(self._says(reason))

  def _answered(self, answer: Answer) -> None:
    with self._guard:
      self._failed_in_a_row = 0
    read, written = answer.prompt_tokens, answer.completion_tokens
    self._count(answers=1, prompt_tokens=read, completion_tokens=written, without_usage=int(not read and not written))

  def _failed(self, error: EndpointError) -> EndpointError:
    """The error, or, after too many of them, what says that the server is down."""
    self._count(failures=1)
    with self._guard:
      self._failed_in_a_row += 1
      count = self._failed_in_a_row
    if count < self.patience or isinstance(error, EndpointUnavailable):
      return error
    return EndpointUnavailable(f'{count} requests failed one after the other. {error}')

  def _count(self, **more: int) -> None:
    with self._guard:
      for name, number in more.items():
        setattr(self.traffic, name, getattr(self.traffic, name) + number)

  def _check_open(self) -> None:
    if self._closed.is_set():
      raise EndpointError(self._says('it was closed'))

  def _says(self, what: str) -> str:
    return f'the chat endpoint {self.address}: {what}'

  def _excerpt(self, text: str) -> str:
    """The beginning of what the server said, in one line, fit for an error."""
    line = ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in text[:2000]).split())
    return self._without_key(line)[:200] or '(nothing)'

  def _without_key(self, text: str) -> str:
    """Servers quote what they are sent. A word such as EMPTY, which stands in for a key, is no secret."""
    return text.replace(self._key, '[key]') if len(self._key) >= 8 else text


class _AnyStatus(urllib.request.HTTPErrorProcessor):
  """Every status is an answer; redirections, which would carry the key elsewhere, are not followed."""

  def http_response(self, request: urllib.request.Request, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    return response

  https_response = http_response


def harmless(text: str) -> str:
  """The text without control characters and surrounding white space, and with a space in what chat formats write as control tokens: servers
  put contents and such tokens into one text, and few of them can tell afterwards which was which.

  It knows the formats that it lists; a model with another one is as safe as its server makes it.
  """
  text = '\n'.join(_encodable(text).splitlines()).translate(_UNPRINTABLE)
  return _CONTROL.sub(lambda match: match.group() + ' ', text).strip()


def read_answer(text: str, excerpt: Callable[[str], str] = repr) -> Answer:
  """The answer in a body. Raises _Passing for one that has none, and ContextLengthError where it says so."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    raise _Passing(f'an answer that is not JSON: {excerpt(text)}') from None
  match found:
    case {'choices': [{'message': {'content': str() | None as content}, **choice}, *_]}:
      finish, usage = choice.get('finish_reason'), found.get('usage')
    case {'error': _} if OUT_OF_CONTEXT.search(text):
      raise ContextLengthError(f'the chat endpoint says: {excerpt(text)}')
    case _:
      raise _Passing(f'an answer without choices[0].message.content: {excerpt(text)}')
  read, written = (_tokens(usage, name) for name in ('prompt_tokens', 'completion_tokens'))
  return Answer(_encodable(content or ''), finish if finish in ('stop', 'length') else '', read, written)


def read_retry_after(value: str | None) -> float:
  """Seconds, of a number or a date; 0 for anything else."""
  if value is None:
    return 0.0
  if re.fullmatch(r'\d{1,9}(\.\d{1,9})?', value.strip(), re.ASCII):
    return float(value)
  with contextlib.suppress(ValueError, TypeError, OverflowError):
    date = email.utils.parsedate_to_datetime(value)
    return max(0.0, (date - datetime.datetime.now(date.tzinfo and datetime.UTC)).total_seconds())
  return 0.0


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
  """The body, of limited size, within limited time: a server that sends a byte now and then does not hold anyone up."""
  parts, size, deadline = [], 0, time.monotonic() + timeout
  while part := response.read1(65536):
    parts.append(part)
    size += len(part)
    if size > LARGEST:
      raise http.client.HTTPException(f'the answer is longer than {LARGEST} bytes')
    if time.monotonic() > deadline:
      raise TimeoutError(f'the answer took more than {timeout} seconds')
  return b''.join(parts)


def _tokens(usage: Any, name: str) -> int:
  count = usage.get(name) if isinstance(usage, dict) else None
  return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 else 0


def address_of(url: str) -> str:
  """Where the requests to a base address go. Raises ValueError, which shows no password, for one that is none."""
  try:
    parts = urllib.parse.urlsplit(url)
    good = parts.scheme in ('http', 'https') and parts.hostname and not parts.query and not parts.fragment and (parts.port or True)
  except ValueError:
    parts, good = None, False
  if parts is not None and '@' in parts.netloc:
    raise ValueError('the address of the chat endpoint holds a user or a password: a key belongs in its environment variable')
  if not good or not url.isascii() or not url.isprintable() or ' ' in url:
    raise ValueError(f'the address of the chat endpoint is {url!r}: expected one such as http://127.0.0.1:8000/v1')
  return url.rstrip('/') + '/chat/completions'


def _read_key(variable: str) -> str:
  """The key; '' where there is none. Raises ValueError, which does not show it, for one that no header can hold."""
  key = os.environ.get(variable, '').strip()
  if not re.fullmatch(r'[!-~]*', key):
    raise ValueError(f'the key in {variable} has white space or letters outside ASCII in it')
  return key


def _encodable(text: str) -> str:
  """The text without halves of surrogate pairs, which are not Unicode text."""
  return text.encode('utf-8', 'replace').decode('utf-8')
