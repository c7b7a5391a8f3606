"""A small hand-written room that shows every rule of ALFWorld, and where the official games are if they are there at all."""

import os
from pathlib import Path

import pytest

from mempi_jax.envs.alfworld.engine import engine_available
from mempi_jax.envs.alfworld.game import Game

PUT_MUG_IN_CABINET = """(exists (?r - receptacle) (exists (?o - object) (and
  (inReceptacle ?o ?r) (objectType ?o MugType) (receptacleType ?r CabinetType))))"""

ROOM = """; a kitchen with a lamp
(define (problem small)
(:domain alfred)
(:objects
  agent1 - agent
  Mug - object MugType AppleType KnifeType BowlType DeskLampType PenType - otype
  CabinetType CounterTopType ToasterType MicrowaveType FridgeType SinkBasinType SideTableType - rtype
  Mug_bar__plus_1 Mug_bar__plus_2 Mug_bar__minus_3 Apple_bar_1 Knife_bar_1 Bowl_bar_1 DeskLamp_bar_1 Pen_bar_1 Sink_bar_1 - object
  Cabinet_bar_1 Cabinet_bar_2 CounterTop_bar_1 Toaster_bar_1 Microwave_bar_1 Fridge_bar_1 Sink_bar_1_bar_SinkBasin SideTable_bar_1 - receptacle
  loc_bar_0 loc_bar_1 loc_bar_2 loc_bar_3 loc_bar_4 loc_bar_5 loc_bar_6 loc_bar_7 - location)
(:init
  (= (total-cost) 0)
  (atLocation agent1 START)
  (receptacleType Cabinet_bar_1 CabinetType) (receptacleType Cabinet_bar_2 CabinetType) (receptacleType CounterTop_bar_1 CounterTopType)
  (receptacleType Toaster_bar_1 ToasterType) (receptacleType Microwave_bar_1 MicrowaveType) (receptacleType Fridge_bar_1 FridgeType)
  (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleType SideTable_bar_1 SideTableType)
  (receptacleAtLocation Cabinet_bar_1 loc_bar_1) (receptacleAtLocation Cabinet_bar_2 loc_bar_2)
  (receptacleAtLocation CounterTop_bar_1 loc_bar_3) (receptacleAtLocation Toaster_bar_1 loc_bar_3)
  (receptacleAtLocation Microwave_bar_1 loc_bar_4) (receptacleAtLocation Fridge_bar_1 loc_bar_5)
  (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_6) (receptacleAtLocation SideTable_bar_1 loc_bar_7)
  (openable Cabinet_bar_1) (openable Microwave_bar_1) (openable Fridge_bar_1) (opened Fridge_bar_1)
  (objectType Mug_bar__plus_1 MugType) (objectType Mug_bar__plus_2 MugType) (objectType Mug_bar__minus_3 MugType)
  (objectType Apple_bar_1 AppleType) (objectType Knife_bar_1 KnifeType) (objectType Bowl_bar_1 BowlType)
  (objectType DeskLamp_bar_1 DeskLampType) (objectType Pen_bar_1 PenType)
  (pickupable Mug_bar__plus_1) (pickupable Mug_bar__plus_2) (pickupable Mug_bar__minus_3) (pickupable Apple_bar_1)
  (pickupable Knife_bar_1) (pickupable Bowl_bar_1) (pickupable Pen_bar_1)
  (cleanable Mug_bar__plus_1) (cleanable Mug_bar__plus_2) (cleanable Mug_bar__minus_3) (cleanable Apple_bar_1) (cleanable Knife_bar_1)
  (heatable Mug_bar__plus_1) (heatable Mug_bar__plus_2) (heatable Mug_bar__minus_3) (heatable Apple_bar_1)
  (coolable Mug_bar__plus_1) (coolable Mug_bar__plus_2) (coolable Mug_bar__minus_3) (coolable Apple_bar_1)
  (isCool Mug_bar__minus_3) (sliceable Apple_bar_1) (toggleable DeskLamp_bar_1) (isReceptacleObject Bowl_bar_1)
  (inReceptacleObject Pen_bar_1 Bowl_bar_1)
  (inReceptacle Mug_bar__plus_1 CounterTop_bar_1) (inReceptacle Mug_bar__plus_1 Toaster_bar_1)
  (inReceptacle Mug_bar__plus_2 SideTable_bar_1) (inReceptacle Mug_bar__minus_3 Fridge_bar_1)
  (inReceptacle Apple_bar_1 CounterTop_bar_1) (inReceptacle Knife_bar_1 CounterTop_bar_1) (inReceptacle Bowl_bar_1 CounterTop_bar_1)
  (inReceptacle Pen_bar_1 CounterTop_bar_1) (inReceptacle DeskLamp_bar_1 SideTable_bar_1)
  (objectAtLocation Mug_bar__plus_1 loc_bar_3) (objectAtLocation Mug_bar__plus_2 loc_bar_7) (objectAtLocation Mug_bar__minus_3 loc_bar_5)
  (objectAtLocation Apple_bar_1 loc_bar_3) (objectAtLocation Knife_bar_1 loc_bar_3) (objectAtLocation Bowl_bar_1 loc_bar_3)
  (objectAtLocation Pen_bar_1 loc_bar_3) (objectAtLocation DeskLamp_bar_1 loc_bar_7) (objectAtLocation Sink_bar_1 loc_bar_6)
  (canContain CabinetType MugType) (canContain CounterTopType MugType) (canContain ToasterType MugType) (canContain SideTableType MugType)
  (canContain FridgeType MugType) (canContain CounterTopType KnifeType) (canContain CounterTopType AppleType) (canContain FridgeType AppleType)
  (canContain SideTableType AppleType) (canContain SinkBasinType MugType) (canContain MicrowaveType AppleType)
  (canContain CounterTopType BowlType))
(:goal (and GOAL)))
"""


def _room(goal: str = PUT_MUG_IN_CABINET, start: str = 'loc_bar_0') -> str:
  """The PDDL text of the room, with another goal condition or starting place."""
  return ROOM.replace('GOAL', goal).replace('START', start)


def _small_game(game_id: str = 'small', **changes) -> Game:
  values = dict(
    task_type='pick_and_place_simple',
    goal='put a mug in cabinet.',
    problem=_room(),
    walk=('go to sidetable 1', 'take mug 1 from sidetable 1', 'go to cabinet 1', 'move mug 1 to cabinet 1'),
  )
  return Game(game_id, **{**values, **changes})


# Every rule, the odd ones included. In the small room "cabinet 2" is the one with a door (its id comes first).
EVERY_RULE = (
  'look', 'inventory', 'help', 'examine countertop 1', 'go to countertop 1', 'go to countertop 1', 'go to toaster 1', 'look',
  'take mug 2 from toaster 1', 'look', 'take mug 2 from countertop 1', 'examine mug 2', 'move mug 2 to countertop 1', 'look', 'take mug 2 from countertop 1',
  'move mug 2 to toaster 1', 'look', 'examine toaster 1', 'examine countertop 1', 'examine apple 1',
  'take bowl 1 from countertop 1', 'examine bowl 1', 'move bowl 1 to countertop 1', 'go to cabinet 2', 'move bowl 1 to cabinet 1', 'go to countertop 1',
  'move bowl 1 to countertop 1', 'take knife 1 from countertop 1', 'inventory', 'slice apple 1 with knife 1', 'slice mug 1 with knife 1', 'examine knife 1',
  'go to cabinet 1', 'slice apple 1 with knife 1', 'go to sinkbasin 1', 'clean knife 1 with sinkbasin 1', 'examine knife 1', 'go to countertop 1',
  'move knife 1 to countertop 1', 'take apple 1 from countertop 1', 'examine apple 1', 'go to microwave 1', 'heat apple 1 with microwave 1',
  'examine apple 1', 'move apple 1 to microwave 1', 'open microwave 1', 'move apple 1 to microwave 1', 'close microwave 1', 'examine microwave 1',
  'take apple 1 from microwave 1', 'open microwave 1', 'take apple 1 from microwave 1', 'go to fridge 1', 'cool apple 1 with fridge 1', 'examine apple 1',
  'go to sinkbasin 1', 'clean apple 1 with sinkbasin 1', 'examine apple 1', 'go to microwave 1', 'heat apple 1 with microwave 1', 'examine apple 1',
  'go to fridge 1', 'move apple 1 to fridge 1', 'take mug 1 from fridge 1', 'take mug 3 from fridge 1', 'examine mug 3', 'clean mug 3 with sinkbasin 1',
  'close fridge 1', 'cool mug 3 with fridge 1', 'go to microwave 1', 'heat mug 3 with microwave 1', 'examine mug 3', 'go to sinkbasin 1',
  'clean mug 3 with sinkbasin 1', 'examine mug 3', 'go to fridge 1', 'cool mug 3 with fridge 1', 'examine mug 3', 'go to sidetable 1', 'use desklamp 1', 'use desklamp 1',
  'take desklamp 1 from sidetable 1', 'examine desklamp 1', 'go to cabinet 2', 'move mug 3 to cabinet 2', 'open cabinet 2', 'move mug 3 to cabinet 2',
  'close cabinet 2', 'look', 'open cabinet 2', 'take mug 3 from cabinet 2', 'go to cabinet 1', 'move mug 3 to cabinet 1', 'GO TO CABINET 2', ' look ', '',
)  # fmt: skip


@pytest.fixture
def room():
  """room(goal, start) -> the PDDL text of the small room."""
  return _room


@pytest.fixture
def small_game():
  """small_game(game_id, **changes) -> a game in the small room."""
  return _small_game


@pytest.fixture
def every_rule() -> tuple[str, ...]:
  """Commands for the small room that meet every rule."""
  return EVERY_RULE


@pytest.fixture
def official_games() -> Path:
  """The file of official games; a test that uses it is skipped where there is none. MEMPI_ALFWORLD_GAMES names another file."""
  default = Path(__file__).parents[4] / 'shared' / 'data' / 'alfworld_train_1200.jsonl.xz'
  path = Path(os.environ.get('MEMPI_ALFWORLD_GAMES', default))
  if not path.exists():
    pytest.skip(f'no official ALFWorld games at {path}')
  return path


@pytest.fixture
def engine_installed() -> None:
  available = engine_available()
  if available is not True:
    pytest.skip(f'the real engine is not available: {available}')
