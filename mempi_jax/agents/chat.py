"""The frozen agent as a chat model behind an endpoint: many episodes' requests under way at once, each episode one conversation.

    system     the environment's rules
    user       Task: {goal}⏎Observation: {observation}⏎Hint: {guidance}      the last line after [GENERATE] alone
    assistant  what the model said, without what it thought
    user       Observation: {observation}
    ...

After [ABSTAIN] the messages are exactly those without memory [P]. Guidance comes last, so that branches of a group share what a server keeps
of the prompt. Neither guidance nor observations are trusted: a role is a field of the request, which no content reaches; what chat formats
write as control tokens is spelt apart; a line that begins as one of ours is quoted.

An answer depends on the conversation, the episode's seed and the turn, so that neither the order in which answers come nor what is asked
beside it changes an episode, as far as the server keeps its word about seeds.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mempi_jax.policy.template import plain
from mempi_jax.runtime import files
from mempi_jax.runtime.endpoint import Answer, ContextLengthError, Endpoint, EndpointError, EndpointUnavailable, Message, harmless
from mempi_jax.runtime.rng import host_seed
from mempi_jax.types import AgentFault, Context, Decision, Episode, Guidance

PATIENCE = 5.0  # seconds without any answer, after which the caller may look at other things
LONGEST = 200  # characters of an answer without an action that stand for one
SILENT = '(nothing)'  # stands for an answer without words


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
  """How an environment is put to a chat model.

  `rules` are the system's message; '': there is none. `goal`, `observation` and `guidance` begin their lines. `verbs` are the words with
  which an action can begin, so that it is found among prose; none: any line can be an action. `edges` are stripped from its ends, and `lower`
  makes it lower case, where an environment knows no other. `blocks` is for environments whose actions have many lines and which read replies
  themselves: a pattern of what an action looks like; a reply in which it is found is the action, all of it as it is.
  """

  rules: str
  goal: str = 'Task: '
  observation: str = 'Observation: '
  guidance: str = 'Hint: '
  verbs: tuple[str, ...] = ()
  edges: str = ''
  lower: bool = False
  blocks: str = ''

  @property
  def labels(self) -> tuple[str, ...]:
    """The beginnings of lines that no content may have, in lower case."""
    return tuple(label.strip().lower() for label in (self.goal, self.observation, self.guidance) if label.strip())


PROMPTS = {
  'alfworld': ChatPrompt(
    rules=(
      'You act in a household, in a text world, to get a task done in few steps. Each observation says what your last action brought; '
      '"Nothing happens." means that it was not possible. You can carry one thing at a time, and reach only what is where you are.\n'
      'Actions:\n'
      'go to (place)\nopen (place)\nclose (place)\ntake (object) from (place)\nmove (object) to (place)\nexamine (place or object)\n'
      'use (lamp)\nclean (object) with (place)\nheat (object) with (place)\ncool (object) with (place)\n'
      'slice (object) with (object)\nlook\ninventory\n'
      'Names have numbers: go to shelf 1. A hint, if there is one, comes from experience in such households; it can be wrong.\n'
      'Answer with one line, and nothing else:\n'
      'Action: (the action)'
    ),
    verbs=('go', 'open', 'close', 'take', 'move', 'put', 'examine', 'use', 'clean', 'heat', 'cool', 'slice', 'look', 'inventory', 'help'),
    edges='.,;!',
    lower=True,
  ),
  'text': ChatPrompt(
    rules=(
      'You act in a text environment to get a task done in few steps. Each observation says what your last action brought. '
      'A hint, if there is one, comes from experience; it can be wrong. Answer with one line, and nothing else:\n'
      'Action: (the action)'
    )
  ),
  'lifelong_db': ChatPrompt(
    rules=(
      'You work on one table of a MySQL database: you answer a question about it, or change it as you are told, in few turns. In each turn you '
      'run one SQL statement and are shown what it brings, or you finish. A hint, if there is one, comes from experience; it can be wrong. '
      'Say in a sentence what you are about to do, then do one thing.\n'
      'To run a statement:\n'
      'Action: Operation\n```sql\n(one statement)\n```\n'
      'To finish:\n'
      "Action: Answer\nFinal Answer: (all rows of the answer, as the database printed them, such as [(1, 'a'), (2, 'b')]; done, if you changed the table)\n"
      'Do not write what the database answers: it is shown to you in the next turn.'
    ),
    blocks=r'(?i)\baction\W{0,8}:\W{0,8}(?:operation|answer)\b|\bfinal\s{1,8}answer\W{0,8}:|```|\A\s*(?:select|with|insert|replace|update|delete|show|desc)\b',
  ),
  'lifelong_os': ChatPrompt(
    rules=(
      'You administer a Linux machine through bash, as root, without network and without anybody who could answer a prompt; you get a task done '
      'in few turns. In each turn you run a block of commands and are shown what they print, or you say that you are finished; then the state of '
      'the machine is checked. A hint, if there is one, comes from experience; it can be wrong. Say in a sentence what you are about to do, then '
      'do one thing.\n'
      'To run commands:\n'
      'Act: bash\n```bash\n(commands)\n```\n'
      'When the task is done:\n'
      'Act: finish\n'
      'Do not write what the commands print: it is shown to you in the next turn.'
    ),
    blocks=r'(?im)^[\s>*_#`]{0,16}act(?:ion)?\s{0,8}[*_`]{0,4}\s{0,8}:|```|\A\W{0,8}(?:finish(?:ed)?|done)\W{0,8}\Z',
  ),
  'lifelong_kg': ChatPrompt(
    rules=(
      'You answer a question from a knowledge graph, in at most fifteen turns. You cannot see the graph; in each turn you carry out one action on it. '
      'Some make a variable, a set of things, called #0, #1, ... in the order in which they are made; when one of them is the answer, you say which.\n'
      'Action: get_relations(x)  lists the relations that lead from an entity of the question, or from the members of a variable\n'
      'Action: get_neighbors(x, relation)  makes a variable of what such a relation leads to; list the relations of x first\n'
      'Action: intersection(#0, #1)  makes a variable of what two variables of one type share\n'
      'Action: get_attributes(#0)  lists the attributes with which the members of a variable can be compared\n'
      'Action: argmax(#0, attribute)  makes a variable of the members with the largest value, argmin with the smallest; list the attributes first\n'
      'Action: count(#0)  makes a variable that is the number of members\n'
      'What argmax, argmin and count make can only be the answer. To answer:\n'
      'Final Answer: #2\n'
      'A hint, if there is one, comes from experience; it can be wrong. Say in a sentence what you are about to do, then do one thing; what it brings '
      'is shown to you in the next turn.'
    ),
    blocks=r'(?im)\baction\W{0,8}:\W{0,8}\w+[*_`]{0,3}\s?\(|^[\s>*_`]{0,16}(?:get_\w+|intersection|argmax|argmin|count)\s?\(|\bfinal\s{1,8}answer\W{0,8}:',
  ),
}

_THOUGHT = re.compile(r'<(think|thinking|reasoning)>.*?(?:</\1>|\Z)', re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r'\A.*</(?:think|thinking|reasoning)>', re.DOTALL | re.IGNORECASE)  # a template may have begun the thought
_LABELLED = re.compile(r'^[ \t*_#>-]*(?:next |final )?action(?: ?\d+)?[ \t*_]*:[ \t*_]*', re.IGNORECASE | re.MULTILINE)
_FENCED = re.compile(r'```[^\n`]*\n(.*?)(?:```|\Z)', re.DOTALL)
_INLINE = re.compile(r'`([^`\n]+)`')
_BULLET = re.compile(r'^(?:[-*•]|\d+[.)])\s+')


@dataclasses.dataclass
class EpisodeCost:
  """What an episode took: answers of the model, those among them without an action that could be read, and the tokens they say."""

  answers: int = 0
  unread: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0


class ChatAgent:
  """An agent that asks a chat model for each action.

  `system_message`: the rules go into a message of the system's; without, for models that have none, before the task. `costs` grows by an
  entry an episode.
  """

  def __init__(self, endpoint: Endpoint, prompt: ChatPrompt, *, system_message: bool = True):
    self.endpoint, self.prompt, self.system_message = endpoint, prompt, system_message
    self.costs: dict[tuple[str, int, str, int], EpisodeCost] = {}

  def fingerprint(self) -> str:
    """Hash of everything that is known to decide what this agent does: not of the server's address, nor of the weights behind the name."""
    prompt = dataclasses.asdict(self.prompt)
    settings = [self.endpoint.model, self.endpoint.sampling, prompt, self.system_message]
    return files.hash_json(settings)[:16]

  def describe(self) -> str:
    """One line for people."""
    return f'{self.endpoint.model} at {self.endpoint.address}, {self.endpoint.concurrency} requests at a time'

  def begin(self) -> ChatAgentSession:
    """A session without episodes."""
    return ChatAgentSession(self)

  def cost_of(self, episode: Episode) -> EpisodeCost | None:
    """What an episode took; None: this agent did not play it with that guidance."""
    return self.costs.get(episode_name(episode.context, episode.guidance, episode.context.task.seed))

  def close(self) -> None:
    """Closes the endpoint."""
    self.endpoint.close()


@dataclasses.dataclass
class _Conversation:
  """A running episode."""

  messages: list[Message]
  seed: int
  cost: EpisodeCost


class ChatAgentSession:
  """Running episodes of a `ChatAgent`."""

  def __init__(self, agent: ChatAgent):
    self.agent = agent
    self._running: dict[int, _Conversation] = {}
    self._owed: dict[int, concurrent.futures.Future[Answer]] = {}  # in the order in which they were asked

  def start(self, key: int, context: Context, guidance: Guidance, seed: int) -> None:
    """See `types.AgentSession`."""
    agent, cost = self.agent, EpisodeCost()
    messages = opening_messages(agent.prompt, context, guidance, system_message=agent.system_message)
    self._running[key] = _Conversation(messages, int(seed), cost)
    agent.costs[episode_name(context, guidance, int(seed))] = cost
    self._ask(key)

  def observe(self, key: int, observation: str) -> None:
    """See `types.AgentSession`."""
    self._running[key].messages.append(observation_message(self.agent.prompt, observation))
    self._ask(key)

  def act(self) -> list[tuple[int, str | None | AgentFault]]:
    """See `types.AgentSession`; none where no answer comes for a while, so that a run which is asked to end can.

    A fault stands for a request that failed for good; raises EndpointUnavailable where all would.
    """
    done = concurrent.futures.wait(self._owed.values(), timeout=PATIENCE, return_when=concurrent.futures.FIRST_COMPLETED).done
    return [(key, self._action(key, future)) for key, future in list(self._owed.items()) if future in done]

  def end(self, key: int) -> None:
    """See `types.AgentSession`."""
    self._running.pop(key, None)
    if future := self._owed.pop(key, None):
      future.cancel()

  def _ask(self, key: int) -> None:
    """Asks for the next action; each turn has a seed of its own."""
    conversation = self._running[key]
    seed = host_seed(conversation.seed, 'turn', conversation.cost.answers)
    self._owed[key] = self.agent.endpoint.submit(self._messages(conversation), seed)

  def _messages(self, conversation: Any) -> list[Message]:
    """What is asked next."""
    return conversation.messages

  def _read(self, said: str) -> str | None:
    """The action in an answer; None where none can be read."""
    return find_action(said, self.agent.prompt)

  def _keep(self, conversation: Any, said: str, action: str) -> None:
    """The answer becomes part of the conversation."""
    conversation.messages.append({'role': 'assistant', 'content': said})

  def _action(self, key: int, future: concurrent.futures.Future[Answer]) -> str | None | AgentFault:
    """What an answer comes to."""
    del self._owed[key]
    conversation = self._running[key]
    try:
      answer = future.result()
    except EndpointUnavailable:
      raise
    except ContextLengthError:
      return None
    except EndpointError as error:
      return AgentFault(str(error))
    said = spoken(answer.text)
    action = self._read(said)
    cost = conversation.cost
    cost.answers += 1
    cost.unread += action is None
    cost.prompt_tokens += answer.prompt_tokens
    cost.completion_tokens += answer.completion_tokens
    done = action if action is not None else plain(said)[:LONGEST] or SILENT
    self._keep(conversation, harmless(said) or SILENT, done)
    return done


def make_chat_agent(
  url: str,
  model: str,
  *,
  prompt: str | ChatPrompt,
  temperature: float,
  max_action_tokens: int,
  top_p: float | None = None,
  concurrency: int = 32,
  timeout: float = 120.0,
  retries: int = 8,
  key_variable: str = 'OPENAI_API_KEY',
  answers: str | Path | None = None,
  system_message: bool = True,
  limit_field: str = 'max_tokens',
  extra: Mapping[str, Any] | None = None,
) -> ChatAgent:
  """An agent behind an OpenAI-compatible endpoint. It needs no package beyond Python's own, and does not call the server yet.

  Args:
    url: the server's base address, up to and without /chat/completions: http://127.0.0.1:8000/v1.
    model: the model's name there.
    prompt: how the environment is put to it: a name of PROMPTS, or a `ChatPrompt`.
    temperature, top_p: of the sampling.
    max_action_tokens: most tokens of an answer; a model that thinks first needs room for that.
    concurrency: most requests under way at a time.
    timeout: seconds without a byte, and for all bytes of an answer.
    retries: attempts after the first, where the server is busy, broken or cannot be understood.
    key_variable: the environment variable that holds the key; a local server needs none.
    answers: a JSONL file where answers are kept and looked up; None: nowhere, and a run that was killed asks everything again.
    system_message: whether the model has a system's role; else the rules stand before the task.
    limit_field: what the server calls max_action_tokens; some want max_completion_tokens.
    extra: more fields of a request: {'stop': ['\\n']}, {'chat_template_kwargs': {'enable_thinking': False}}.

  Raises ValueError for an unknown prompt and for settings that cannot be, and what `AnswerFile` raises.
  """
  if isinstance(prompt, str):
    if prompt not in PROMPTS:
      raise ValueError(f'unknown chat prompt {prompt!r}: expected one of {", ".join(PROMPTS)}')
    prompt = PROMPTS[prompt]
  sampling = {'temperature': temperature, limit_field: max_action_tokens, **({} if top_p is None else {'top_p': top_p}), **(extra or {})}
  endpoint = Endpoint(
    url, model, sampling, concurrency=concurrency, timeout=timeout, retries=retries, key_variable=key_variable, answers=answers
  )
  return ChatAgent(endpoint, prompt, system_message=system_message)


# Messages.


def opening_messages(prompt: ChatPrompt, context: Context, guidance: Guidance, *, system_message: bool = True) -> list[Message]:
  """The conversation up to the first action: rules, task, what came before, the observation, and the guidance if there is any."""
  messages = [{'role': 'system', 'content': prompt.rules}] if prompt.rules and system_message else []
  head = prompt.goal + harmless(plain(context.goal)) + '\n'
  if prompt.rules and not system_message:
    head = f'{prompt.rules}\n\n{head}'
  for step in context.history:
    messages.append({'role': 'user', 'content': head + observation_message(prompt, step.observation)['content']})
    action = harmless(step.action) if prompt.blocks else f'Action: {harmless(plain(step.action))}'
    messages.append({'role': 'assistant', 'content': action or SILENT})
    head = ''
  tail = f'\n{prompt.guidance}{harmless(plain(guidance.text))}' if _speaks(guidance) else ''
  return [*messages, {'role': 'user', 'content': head + observation_message(prompt, context.observation)['content'] + tail}]


def observation_message(prompt: ChatPrompt, observation: str) -> Message:
  """What the environment said, as the user's message. Its lines stay lines, but for those that begin as one of the prompt's own."""
  lines = [f'| {line}' if line.strip().lower().startswith(prompt.labels) else line for line in harmless(observation).split('\n')]
  return {'role': 'user', 'content': prompt.observation + '\n'.join(lines)}


# Answers.


def spoken(text: str) -> str:
  """An answer without what the model thought: between tags, before a closing one alone, after an opening one alone."""
  return _THOUGHT_END.sub('', _THOUGHT.sub('', text)).strip()


def find_action(said: str, prompt: ChatPrompt) -> str | None:
  """The action in an answer; None where none can be read. In one line, unless the prompt says that actions are blocks.

  The first of: what follows "Action:"; the first line in a code fence; a line after ">"; the one thing between back-quotes; a line that
  begins with a verb; the whole, where it is one line and the prompt names no verbs. Of several the first counts: what comes after it is
  often a dream of how the environment answers.
  """
  if prompt.blocks:
    return said if re.search(prompt.blocks, said) else None
  if match := _LABELLED.search(said):
    return _first_line(_unfenced(said[match.end() :]), prompt)
  if match := _FENCED.search(said):
    return _first_line(match.group(1), prompt)
  lines = [line.strip() for line in said.splitlines() if line.strip()]
  if turns := _that_can([line.removeprefix('>') for line in lines if line.startswith('>')], prompt):
    return turns[0]
  if len(quoted := _that_can(_INLINE.findall(said), prompt)) == 1:
    return quoted[0]
  whole = _that_can([_BULLET.sub('', line) for line in lines] if prompt.verbs else lines, prompt)
  return whole[0] if whole and (prompt.verbs or len(lines) == 1) else None


def _unfenced(text: str) -> str:
  match = _FENCED.match(text.lstrip())
  return match.group(1) if match else text


def _first_line(text: str, prompt: ChatPrompt) -> str | None:
  """The first line with words in it, without the marks around it."""
  for line in text.splitlines():
    action = plain(line.strip().removeprefix('>')).strip(prompt.edges or None)
    for mark in ('**', '```', '`', '"', "'"):
      if len(action) > 2 * len(mark) and action.startswith(mark) and action.endswith(mark):
        action = action[len(mark) : -len(mark)]
    if action := action.strip().strip(prompt.edges or None).strip():
      return action.lower() if prompt.lower else action
  return None


def _that_can(lines: Sequence[str], prompt: ChatPrompt) -> list[str]:
  """The lines that can be actions, as actions."""
  actions = [action for line in lines if (action := _first_line(line, prompt))]
  return [action for action in actions if not prompt.verbs or action.split()[0].lower() in prompt.verbs]


def _speaks(guidance: Guidance) -> bool:
  return guidance.decision is Decision.GENERATE and bool(guidance.text.strip())


def episode_name(context: Context, guidance: Guidance, seed: int) -> tuple[str, int, str, int]:
  """An episode is a function of this."""
  return context.task.task_id, seed, guidance.text if _speaks(guidance) else '', guidance.extra_steps
