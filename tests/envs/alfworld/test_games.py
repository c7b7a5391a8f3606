"""Reading and writing games."""

import dataclasses
import json
import lzma

import pytest

from mempi_jax.envs.alfworld import games as games_module
from mempi_jax.envs.alfworld.games import folder_name, game_data, load_games, write_games


@pytest.fixture
def rows(room):
  return [
    {
      'split': 'train',
      'task': f'pick_and_place_simple-Mug-None-Cabinet-{number}',
      'trial': 'trial_1',
      'type': 'pick_and_place_simple',
      'goal': 'put a mug in cabinet.',
      'problem': room(),
      'walk': ['look'],
    }
    for number in (2, 315)
  ]


def write(path, rows):
  data = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  path.write_bytes(lzma.compress(data) if path.suffix == '.xz' else data)
  return path


@pytest.mark.parametrize('name', ['games.jsonl', 'games.jsonl.xz'])
def test_json_lines(tmp_path, rows, name):
  games = load_games(write(tmp_path / name, rows))
  assert [game.game_id for game in games] == ['pick_and_place_simple-Mug-None-Cabinet-2/trial_1', 'pick_and_place_simple-Mug-None-Cabinet-315/trial_1']
  assert [game.room for game in games] == ['kitchen', 'bedroom']
  assert (games[0].target, games[0].destination, games[0].goal, games[0].walk) == ('mug', 'cabinet', 'put a mug in cabinet.', ('look',))
  assert games[0].problem == rows[0]['problem']
  assert len(load_games(tmp_path / name, count=1)) == 1


@pytest.mark.parametrize(
  'change, message',
  [
    ({'goal': None}, ':2: goal must be'),
    ({'type': 'pick_nothing'}, ':2: unknown task type'),
    ({'problem': '(define (:objects'}, r':2: the PDDL problem has no \(:init'),
    ({'walk': 'look'}, ':2: walk must be a list'),
    ({'task': 'pick_and_place_simple-Mug-None-Cabinet-2'}, ':2: game .* is there twice, first in line 1'),
  ],
)
def test_broken_field_names_file_and_line(tmp_path, rows, change, message):
  rows[1].update(change)
  with pytest.raises(ValueError, match='games.jsonl' + message):
    load_games(write(tmp_path / 'games.jsonl', rows))


def test_missing_fields_and_broken_lines(tmp_path, rows):
  del rows[1]['goal'], rows[1]['walk']
  with pytest.raises(ValueError, match=r'games\.jsonl:2: missing goal, walk'):
    load_games(write(tmp_path / 'games.jsonl', rows))
  with open(tmp_path / 'cut.jsonl', 'w') as file:
    file.write(json.dumps(rows[0] | {'walk': []}) + '\n{"split": "tr')
  with pytest.raises(ValueError, match=r'cut\.jsonl:2: not JSON'):
    load_games(tmp_path / 'cut.jsonl')
  (tmp_path / 'list.jsonl').write_text('[1]\n')
  with pytest.raises(ValueError, match=r'list\.jsonl:1: expected a JSON object, found list'):
    load_games(tmp_path / 'list.jsonl')
  (tmp_path / 'empty.jsonl').write_text('\n')
  with pytest.raises(ValueError, match='no games'):
    load_games(tmp_path / 'empty.jsonl')


def test_cut_off_xz(tmp_path, rows):
  path = write(tmp_path / 'games.jsonl.xz', rows)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match=r'games\.jsonl\.xz:\d+: the xz file is broken or cut off'):
    load_games(path)


def test_sources_that_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    load_games(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='no game.tw-pddl under'):
    load_games(tmp_path)
  (tmp_path / 'games.csv').write_text('x')
  with pytest.raises(ValueError, match='unknown kind of file'):
    load_games(tmp_path / 'games.csv')
  with pytest.raises(ValueError, match='names no household'):
    load_games('generated:')


def test_generated_games():
  games = load_games('generated:willow', count=3, seed=5, split='heldout_games')
  assert len({game.game_id for game in games}) == 3
  assert {game.household for game in games} == {'willow'} and {game.split for game in games} == {'heldout_games'}


@pytest.fixture
def engine_texts(monkeypatch):
  """Stands in for the data of the alfworld package, which is not there everywhere."""
  texts = {'alfred.pddl': '(define (domain alfred))', 'alfred.twl2': 'grammar :: "Your task is to: UNKNOWN GOAL."'}
  monkeypatch.setattr(games_module, 'alfworld_text', texts.__getitem__)


def test_what_is_written_is_read(tmp_path, small_game, engine_texts):
  games = [small_game('a', split='heldout_games', household='elm', target='mug', hidden={'place': 'secret'}), small_game('b', walk=())]
  paths = write_games(games, tmp_path)
  assert [path.relative_to(tmp_path).as_posix() for path in paths] == ['a/game.tw-pddl', 'b/game.tw-pddl']
  assert load_games(tmp_path) == [dataclasses.replace(games[0], hidden={}), games[1]]
  data = json.loads(paths[0].read_text())
  assert data['grammar'] == 'grammar :: "Your task is to: put a mug in cabinet."'
  assert 'secret' not in paths[0].read_text()


def test_official_folder(tmp_path, small_game, engine_texts):
  folder = tmp_path / 'pick_and_place_simple-Mug-None-Cabinet-7' / 'trial_9'
  folder.mkdir(parents=True)
  (folder / 'game.tw-pddl').write_text(json.dumps(game_data(small_game(), '', 'x "Your task is to: UNKNOWN GOAL."')))
  (game,) = load_games(tmp_path)
  assert (game.game_id, game.target, game.room) == ('pick_and_place_simple-Mug-None-Cabinet-7/trial_9', 'mug', 'kitchen')
  assert game.goal == 'put a mug in cabinet.' and game.walk == small_game().walk


def test_task_type_follows_from_the_goal_where_no_name_tells_it(tmp_path, small_game, room):
  goals = {
    'look_at_obj_in_light': '(exists (?o - object) (isToggled ?o))',
    'pick_heat_then_place_in_recep': '(exists (?o - object ?r - receptacle) (and (isHot ?o) (inReceptacle ?o ?r)))',
    'pick_two_obj_and_place': '(exists (?a ?b - object ?r - receptacle) (and (inReceptacle ?a ?r) (inReceptacle ?b ?r) (not (= ?a ?b))))',
  }
  for i, (expected, goal) in enumerate(goals.items()):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / 'game.tw-pddl').write_text(json.dumps(game_data(small_game(problem=room(goal)), '', '"Your task is to: UNKNOWN GOAL."')))
    assert load_games(folder)[0].task_type == expected


def test_broken_game_file(tmp_path):
  (tmp_path / 'game.tw-pddl').write_text('{"pddl_problem": "x",\n oops')
  with pytest.raises(ValueError, match='game.tw-pddl:2: not JSON'):
    load_games(tmp_path)
  (tmp_path / 'game.tw-pddl').write_text('{"grammar": "x"}')
  with pytest.raises(ValueError, match='pddl_problem is missing'):
    load_games(tmp_path)


@pytest.mark.parametrize('game_id', ['../../etc/passwd', '/etc/passwd', '..', 'a/b', 'x' * 400, '', 'a\x00b', 'c:\\d', '.hidden'])
def test_ids_never_leave_the_folder(tmp_path, game_id):
  name = folder_name(game_id)
  assert name and len(name) < 200 and '/' not in name and '\\' not in name and '\x00' not in name and not name.startswith('.')
  assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_different_ids_have_different_folders():
  assert len({folder_name(game_id) for game_id in ('a/b', 'a b', 'a_b', '../a_b', 'a:b')}) == 5


def test_goal_that_would_be_a_rule_of_the_grammar(small_game):
  for goal in ('put #look.feedback# in cabinet.', 'put {a} in cabinet.', 'put "mug" in cabinet.', 'put a\nmug.'):
    with pytest.raises(ValueError, match='takes for a rule'):
      game_data(small_game(goal=goal), '', 'UNKNOWN GOAL.')
