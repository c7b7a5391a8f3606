"""Demonstrations for the agent: a scripted expert plays games of many households, with and without guidance in its prompt.

The agent must not know the household that it is later tried in, and it must be able to follow guidance: so every demonstration comes
from one of many other households, and a share of them carries guidance (what an insider of that household would say, pitfalls
that hold, and now and then a wrong hint, after which the expert shows how to recover).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from mempi_jax.envs.alfworld.env import AlfworldEnv
from mempi_jax.envs.alfworld.expert import ExploringExpert
from mempi_jax.envs.alfworld.game import Game
from mempi_jax.envs.alfworld.generator import generate_games
from mempi_jax.policy.template import GUIDANCE, NEWLINE, TURN, action_tokens, agent_turn, content_tokens, opening
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.runtime.rng import host_seed
from mempi_jax.types import Context, Task


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One game as the expert played it; `is_expert[i]` is False where action i was random and must not be imitated."""

  context: Context
  guidance: str
  observations: tuple[str, ...]  # what each action brought
  actions: tuple[str, ...]
  is_expert: tuple[bool, ...]


def choose_guidance(game: Game, rng: random.Random, guided: float, pitfall: float, wrong: float) -> str:
  """Guidance for a demonstration: none, the household's rule, a pitfall ("seldom in") or a wrong place, by the given shares."""
  if rng.random() >= guided:
    return ''
  kind = rng.random()
  places = sorted({place for place in game.hidden['receptacle_types'] if place != game.hidden['location_type']})
  if kind < pitfall and places:
    return f'the {game.target} is seldom in the {rng.choice(places)}.'
  if kind < pitfall + wrong and places:
    return f'the {game.target} is usually in the {rng.choice(places)}.'
  return game.hidden['guidance']


def demonstrate(game: Game, seed: int, *, max_steps: int, random_actions: float, guidance: str) -> Demonstration:
  """The expert plays one game; each of its actions is preceded by a random one with probability `random_actions`."""
  rng = random.Random(seed)
  env = AlfworldEnv({game.game_id: game})
  context = env.reset(Task('alfworld', game.game_id, game.split, seed))
  expert = ExploringExpert(seed)
  expert.begin(context.goal, context.observation, guidance)
  observation = context.observation
  observations, actions, is_expert = [], [], []
  for _ in range(max_steps):
    wander = rng.random() < random_actions
    action = expert.act(observation)
    if wander:
      action = rng.choice(env.admissible_commands() + ['go to ' + rng.choice(['drawer 9', 'shelf 8', 'cabinet 20'])])
      expert.overruled(action)
    result = env.step(action)
    observation = result.observation
    observations.append(observation)
    actions.append(action)
    is_expert.append(not wander)
    if result.done:
      break
  return Demonstration(context, guidance, tuple(observations), tuple(actions), tuple(is_expert))


def make_demonstrations(
  *,
  households: int,
  games_per_household: int,
  seed: int,
  small_fraction: float,
  guided: float,
  pitfall: float,
  wrong: float,
  wandering: float,
  random_actions: float,
  max_steps: int,
) -> list[Demonstration]:
  """Demonstrations over `households` households named clone-0, clone-1, ...; no other part of the project uses those."""
  demonstrations = []
  for h in range(households):
    games = []
    long_games = max(1, games_per_household // 8)
    games += generate_games(f'clone-{h}', 'train', games_per_household - long_games, seed, small_fraction=small_fraction)
    games += generate_games(f'clone-{h}', 'long_horizon', long_games, seed)
    for game in games:
      game_seed = host_seed(seed, 'demonstration', game.game_id)
      rng = random.Random(game_seed)
      guidance = choose_guidance(game, rng, guided, pitfall, wrong)
      noise = random_actions if rng.random() < wandering else 0.0
      demonstrations.append(demonstrate(game, game_seed, max_steps=max_steps, random_actions=noise, guidance=guidance))
  return demonstrations


def transcript(tokenizer: Tokenizer, demonstration: Demonstration) -> tuple[list[int], list[float]]:
  """The agent's transcript as ids, and the loss weight of each: 1 on the expert's actions and on guidance, 0 elsewhere."""
  ids = opening(tokenizer, demonstration.context)
  weights = [0.0] * len(ids)

  def add(tokens: Sequence[int], weight: float) -> None:
    ids.extend(tokens)
    weights.extend([weight] * len(tokens))

  if demonstration.guidance:
    add(tokenizer.encode(GUIDANCE), 0.0)
    add(content_tokens(tokenizer, demonstration.guidance), 1.0)
    add(tokenizer.encode(NEWLINE), 1.0)
  add(tokenizer.encode(TURN), 0.0)
  for action, observation, expert in zip(demonstration.actions, demonstration.observations, demonstration.is_expert, strict=True):
    add(action_tokens(tokenizer, action), 1.0 if expert else 0.0)
    add(agent_turn(tokenizer, observation), 0.0)
  return ids, weights


@dataclasses.dataclass(frozen=True)
class CloneBatch:
  """Several transcripts a row, each its own branch."""

  tokens: np.ndarray  # i32[B, T]
  branch: np.ndarray  # i32[B, T]  1, 2, ... by transcript; -1 padding
  positions: np.ndarray  # i32[B, T]
  weights: np.ndarray  # f32[B, T]  of predicting this token from the one before it


def pack_transcripts(transcripts: Sequence[tuple[list[int], list[float]]], *, row_tokens: int) -> list[tuple[np.ndarray, ...]]:
  """Packs transcripts (cut at row_tokens) into rows of row_tokens, first fit in order; a row is (tokens, branch, positions, weights)."""
  rows: list[tuple[np.ndarray, ...]] = []
  used: list[int] = []
  count: list[int] = []
  open_rows: list[int] = []
  for ids, weights in transcripts:
    ids, weights = ids[:row_tokens], weights[:row_tokens]
    place = next((r for r in open_rows if used[r] + len(ids) <= row_tokens), None)
    if place is None:
      place = len(rows)
      rows.append(
        (np.zeros(row_tokens, np.int32), np.full(row_tokens, -1, np.int32), np.zeros(row_tokens, np.int32), np.zeros(row_tokens, np.float32))
      )
      used.append(0)
      count.append(0)
      open_rows = [*open_rows, place][-32:]
    tokens, branch, positions, loss = rows[place]
    start, stop = used[place], used[place] + len(ids)
    count[place] += 1
    tokens[start:stop], branch[start:stop], positions[start:stop], loss[start:stop] = ids, count[place], np.arange(len(ids)), weights
    loss[start] = 0.0  # nothing of this transcript stands before its first token
    used[place] = stop
  return rows


def batch_of(rows: Sequence[tuple[np.ndarray, ...]], indices: Sequence[int]) -> CloneBatch:
  """The rows at `indices` as one batch."""
  return CloneBatch(*(np.stack([rows[i][part] for i in indices]) for part in range(4)))
