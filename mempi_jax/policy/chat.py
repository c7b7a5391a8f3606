"""Messages become the ids of a pretrained model's chat format, in which no content can forge a turn.

The chat template is rendered with a mark in the place of each content. The result is cut at the control tokens, which are the template's
own, since no content is in it yet; then the contents are put into the text between, and that is encoded as plain text. For ordinary
contents this gives the ids that transformers' `apply_chat_template` gives. It differs on purpose where

- a content contains a control token's text: there it is text;
- the template looks into a content, as Qwen3's does for </think>: it sees the mark, and the content stays whole;
- the template writes today's date: it is always 26 Jul 2024, Llama 3's own default, so that equal messages give equal ids.

What marks a turn in Llama 2's format, [INST], is text to its tokenizer. There a content can still spell the end of a turn.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence

from mempi_jax.policy.tokenizer import Tokenizer

ROLES = ('system', 'user', 'assistant', 'tool')
_DATE = '{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n'


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
  """The ids of messages {'role', 'content'}, up to where the assistant's answer begins if `add_generation_prompt`.

  Raises ValueError where the tokenizer has no chat template, and for messages that are malformed, that the template refuses, or whose
  content it leaves out.
  """
  _check(messages)
  marks = [hashlib.sha256(f'{i}{tokenizer.chat_template}'.encode()).hexdigest() for i in range(len(messages))]
  contents, marked = {}, []
  for mark, message in zip(marks, messages):
    # White space around a content is the template's to keep or to strip.
    content = message['content']
    contents[mark] = core = content.strip()
    marked.append({'role': message['role'], 'content': content.replace(core, mark) if core else content})
  rendered = _render(tokenizer, marked, add_generation_prompt)
  for mark, message in zip(marks, messages):
    if contents[mark] and mark not in rendered:
      raise ValueError(f'the chat template leaves out the content of the {message["role"]} message {message["content"]!r:.100}')
  fill = functools.partial(re.compile('|'.join(marks)).sub, lambda match: contents[match.group()])
  pattern, ids = _control_tokens(tokenizer)
  chat: list[int] = []
  for i, piece in enumerate(pattern.split(rendered)):
    if i % 2:
      chat.append(ids[piece] if piece in ids else ids[piece.strip()])
    elif piece:
      chat += tokenizer.encode_after(fill(piece)) if chat else tokenizer.encode(fill(piece))
  return chat


@functools.lru_cache(maxsize=8)
def takes_system(tokenizer: Tokenizer) -> bool:
  """Whether the chat template has a place for a system message. Raises ValueError where there is no chat template."""
  user = {'role': 'user', 'content': 'x'}
  encode_chat(tokenizer, [user])
  try:
    encode_chat(tokenizer, [{'role': 'system', 'content': 'x'}, user])
  except ValueError:
    return False
  return True


def _check(messages: Sequence[Mapping[str, str]]) -> None:
  if not messages:
    raise ValueError('a chat of no messages: expected at least one')
  for message in messages:
    if sorted(message) != ['content', 'role'] or not isinstance(message['content'], str):
      raise ValueError(f'expected a message with role and content, both text, found {message!r:.200}')
    if message['role'] not in ROLES:
      raise ValueError(f'unknown role {message["role"]!r:.100}: expected one of {", ".join(ROLES)}')


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
  if tokenizer.chat_template is None:
    raise ValueError('the tokenizer has no chat template: expected chat_template.jinja, or chat_template in tokenizer_config.json')
  # Importing transformers takes seconds: only who chats waits for it.
  import jinja2
  from transformers.utils.chat_template_utils import render_jinja_template

  named = {name: token for name, token in tokenizer.config.items() if name.endswith('_token')}
  try:
    rendered, _ = render_jinja_template(
      conversations=[messages], chat_template=_DATE + tokenizer.chat_template, add_generation_prompt=add_generation_prompt, **named
    )
  except jinja2.TemplateError as error:
    roles = ', '.join(message['role'] for message in messages)
    raise ValueError(f'the chat template refuses messages of the roles {roles}: {error}') from None
  return rendered[0]


@functools.lru_cache(maxsize=8)
def _control_tokens(tokenizer: Tokenizer) -> tuple[re.Pattern[str], dict[str, int]]:
  """A pattern that splits a text at control tokens, as the library does (longest first), and their ids."""
  tokens = {i: token for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
  longest_first = sorted(tokens.values(), key=lambda token: -len(token.content))
  spaced = [r'\s*' * token.lstrip + re.escape(token.content) + r'\s*' * token.rstrip for token in longest_first]
  return re.compile(f'({"|".join(spaced)})'), {token.content: i for i, token in tokens.items()}
