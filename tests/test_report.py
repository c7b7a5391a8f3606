"""The report on made-up workdirs: it shows the numbers, survives what is missing, and lets no text of a game act."""

import html.parser
import json
import math
import re
import struct

import numpy as np
import pytest

from mempi_jax import report
from mempi_jax.evals import plots, stats, success
from mempi_jax.runtime import files

ALL = ('none', 'oracle', 'rag', 'mempi_stage1', 'mempi')
OBSERVATION = 'You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 1, and a shelf 1.'


def make_workdir(folder, *, household='h1', seed=0, games=60, memories=ALL, splits=success.SPLITS, stages=('stage1', 'stage2'), extra=''):
  """A workdir as an evaluation leaves it: easy games need no guidance, hard ones do. `extra` is added to every text of a game."""
  rng = np.random.default_rng(seed)
  effect = {'none': 0.0, 'oracle': 3.0, 'rag': 1.0, 'mempi_stage1': 1.8, 'mempi': 2.1}
  episodes, base_runs = [], []
  for split in splits:
    ease = rng.normal(-0.4, 1.8, games)  # of each game, for the agent alone
    luck = rng.logistic(size=games)  # shared by all memories: the same seed
    for memory in memories:
      for i in range(games):
        generate = memory != 'none' and not (memory == 'mempi' and ease[i] > 0.3)
        shift = effect[memory] + 0.6 * rng.normal() if generate else 0.0
        solved = bool(ease[i] + shift + luck[i] > 0)
        steps = [['go to drawer 1', f'The drawer 1 is closed.{extra}'], ['open drawer 1', 'In it, you see a mug 1.']]
        status = 'success' if solved else 'truncated'
        episodes.append(
          {
            'memory': memory,
            'split': split,
            'task_id': f'{split}-{i:03d}',
            'seed': 7,
            'goal': f'put a mug in shelf.{extra}',
            'observation': OBSERVATION + extra,
            'decision': '[GENERATE]' if generate else '[ABSTAIN]',
            'p_generate': round(float(1 / (1 + math.exp(2 * ease[i]))), 4) if memory.startswith('mempi') else None,
            'guidance': f'the mug is usually in the drawer{extra}' if generate else '',
            'guidance_tokens': {'rag': 9, 'oracle': 6}.get(memory, 4) if generate else 0,
            'success': solved,
            'status': status,
            'agent_steps': 5 if solved else 10,
            'steps': steps,
          }
        )
    if split == 'heldout_games':
      for s in range(8):
        for i in range(games):
          solved = bool(ease[i] + rng.logistic() > 0)
          run = {'split': split, 'task_id': f'{split}-{i:03d}', 'seed': 100 + s, 'success': solved, 'agent_steps': 5 if solved else 10}
          base_runs.append(run)
  write_lines(folder / success.EPISODES_FILE, episodes)
  write_lines(folder / success.BASE_RUNS_FILE, base_runs)
  for stage in stages:
    write_lines(folder / stage / 'metrics.jsonl', made_up_metrics(stage, rng))
  manifest = {'step_cap': 10, 'household': household, 'seed': seed, 'sampler': {'greedy': True}, 'packages': {'jax': '0.10.2'}}
  files.write_json(folder / 'manifest.json', manifest)
  return folder


def made_up_metrics(stage, rng):
  if stage == 'stage1':
    records = [{'step': s, 'train/loss': math.exp(-s / 40), 'train/content_logp': -2 * math.exp(-s / 30)} for s in range(120)]
    return [{**r, **({'val/loss': math.exp(-r['step'] / 50)} if r['step'] % 20 == 0 else {})} for r in records]
  names = {'decision/p_generate': 0.8, 'decision/p_generate_easy': 0.5, 'decision/p_generate_hard': 0.95, 'rollout/guidance_tokens': 3.0}
  names |= {'rollout/success_generate': 0.65, 'rollout/success_abstain': 0.45, 'train/loss': 0.1}
  return [{'step': s, **{name: value + 0.03 * rng.normal() for name, value in names.items()}} for s in range(60)]


def write_lines(path, records):
  files.write_text(path, ''.join(json.dumps(record) + '\n' for record in records))


def write_results(folder):
  episodes = success.read_episodes(folder)
  results = {
    'manifest': files.read_json(folder / 'manifest.json'),
    'rows': success.summarise(episodes),
    'comparisons': success.compare(episodes, success.present_pairs(episodes)),
    'real_engine_replay': {'episodes': 24, 'agree': 24},
    'wall_time_s': {'stage1': 31.25, 'stage2': 125.0},
  }
  files.write_json(folder / 'results.json', results)
  return results


class Page(html.parser.HTMLParser):
  """Collects the elements and the visible text of a page, and complains about elements that are not closed."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.attributes, self.visible, self.open = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'not closed: {self.open}'
    self.text = re.sub(r'\s+', ' ', ''.join(self.visible))

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    if tag not in ('meta', 'img', 'source'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ['style']:
      self.visible.append(data)


def open_page(path):
  return Page(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = make_workdir(tmp_path_factory.mktemp('run'))
  write_results(folder)
  files.write_json(folder / 'real_engine_replay.json', {'episodes': 24, 'agree': 24})
  return folder


@pytest.fixture
def no_drawing(monkeypatch):
  """Pages without the cost of their pictures: a stub of one pixel each."""
  stub = b'\x89PNG\r\n\x1a\n' + struct.pack('>I4sII', 13, b'IHDR', 1, 1)
  monkeypatch.setattr(plots, 'draw', lambda figure, *arguments: {'light': stub, 'dark': stub})


def test_whole_report(workdir):
  path = report.write_report(workdir)
  assert path == workdir / 'report' / 'index.html'
  page = open_page(path)
  results = files.read_json(workdir / 'results.json')
  for row in results['rows']:
    low, high = row['ci95']
    assert f'{row["success_rate"]:.3f} [{low:.2f}, {high:.2f}]' in page.text
  for row in results['comparisons']:
    assert f'{row["diff"]:+.3f}[{row["ci95"][0]:+.3f}, {row["ci95"][1]:+.3f}]' in page.text.replace(' [', '[')
  assert 'oracle (upper bound)' in page.text and 'Stage 2 has not been evaluated' not in page.text
  assert '24 of 24 evaluation episodes gave the same outcome' in page.text
  for title in ('Guidance helped', 'It abstained, and the agent succeeded', 'stage 1 (SFT)', 'stage 2 (RL)', 'Manifest', 'packages.jax'):
    assert title in page.text
  assert '2 min 05 s' in page.text and '31.2 s' in page.text
  assert 'the mug is usually in the drawer' in page.text
  # Every picture is there in both themes, and the page shows no other.
  names = {'success', 'differences', 'tokens', 'abstention', 'training_stage1', 'training_stage2'}
  assert {p.name for p in path.parent.glob('*.png')} == {f'{name}_{theme}.png' for name in names for theme in ('light', 'dark')}
  sources = [value for name, value in page.attributes if name in ('src', 'srcset', 'href')]
  assert set(sources) == {p.name for p in path.parent.glob('*.png')}
  for png in path.parent.glob('*.png'):
    width, height = struct.unpack('>II', png.read_bytes()[16:24])
    assert 500 < width < 2000 and 300 < height < 3000


def test_report_is_the_same_when_written_again(workdir, no_drawing):
  before, after = report.write_report(workdir).read_bytes(), report.write_report(workdir).read_bytes()
  assert before == after and len(before) > 10_000


def test_pictures_are_the_same_when_drawn_again():
  records = made_up_metrics('stage1', np.random.default_rng(0))
  first, second = plots.draw(plots.training, records), plots.draw(plots.training, records)
  assert first == second and first['light'] != first['dark'] and first['light'].startswith(b'\x89PNG')


def test_no_script_and_no_network(workdir, no_drawing):
  text = report.write_report(workdir).read_text(encoding='utf-8')
  page = Page(text)
  assert not {'script', 'iframe', 'object', 'link', 'form'} & set(page.elements)
  assert 'http:' not in text and 'https:' not in text and '//' not in re.sub(r'<style>.*</style>', '', text, flags=re.S)


def test_text_of_games_cannot_act(tmp_path, no_drawing):
  attack = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>&lt;b&gt;\x00\x1b\u202e{{ 7 * 7 }}\ud800'
  folder = make_workdir(tmp_path, games=12, splits=('heldout_games',), extra=attack)
  page = open_page(report.write_report(folder))
  assert 'script' not in page.elements and not any(name.startswith('on') for name, _ in page.attributes)
  assert 'x' not in [value for name, value in page.attributes if name == 'src']
  # The reader sees what the text was; characters that hide or reorder appear as their codes.
  assert attack.partition('\x00')[0] in page.text
  assert '\\u0000\\u001b\\u202e{{ 7 * 7 }}\\ud800' in page.text and '\u202e' not in page.text


def test_before_stage_2(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=20, memories=ALL[:-1], stages=('stage1',))
  page = open_page(report.write_report(folder))
  assert 'Stage 2 has not been evaluated yet' in page.text and 'with Mem-π, stage 1 in' in page.text
  assert 'Not done. The run has not reached it yet.' in page.text
  assert not (folder / 'report' / 'training_stage2_light.png').exists()


def test_with_one_memory_and_no_base_runs(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=20, memories=('none',), splits=('heldout_games',), stages=())
  (folder / success.BASE_RUNS_FILE).unlink()
  (folder / 'manifest.json').unlink()
  page = open_page(report.write_report(folder))
  assert 'agent alone' in page.text and 'Episodes to read' not in page.text and 'Manifest' not in page.text


def test_with_metrics_alone(tmp_path):
  write_lines(tmp_path / 'stage1' / 'metrics.jsonl', made_up_metrics('stage1', np.random.default_rng(0)))
  page = open_page(report.write_report(tmp_path))
  assert 'stage 1 (SFT)' in page.text and 'Comparisons' not in page.text and 'Replay' not in page.text


def test_replay_that_was_not_done_and_one_that_disagrees(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=10, splits=('heldout_games',))
  files.write_json(folder / 'real_engine_replay.json', {'episodes': 0, 'agree': 0, 'reason': 'alfworld is not installed <here>'})
  assert 'Not done. alfworld is not installed <here>' in open_page(report.write_report(folder)).text
  files.write_json(folder / 'real_engine_replay.json', {'episodes': 24, 'agree': 22})
  assert '22 of 24 evaluation episodes' in (text := open_page(report.write_report(folder)).text) and '2 did not.' in text


def test_environment_errors_are_shown(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=10, splits=('heldout_games',))
  episodes = success.read_episodes(folder)
  episodes[-1].update(status='env_error', success=False)
  write_lines(folder / success.EPISODES_FILE, episodes)
  assert 'Mem-π, held-out games: 1 episodes' in open_page(report.write_report(folder)).text


def test_nothing_to_report(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing to report'):
    report.write_report(tmp_path)
  with pytest.raises(FileNotFoundError, match='no folder'):
    report.write_report(tmp_path / 'absent')
  with pytest.raises(SystemExit, match='report: nothing to report'):
    report.main(['--workdir', str(tmp_path)])
  assert list(tmp_path.iterdir()) == []


def test_a_broken_line_is_named_and_leaves_the_old_page(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=10, splits=('heldout_games',))
  before = report.write_report(folder).read_bytes()
  with open(folder / success.EPISODES_FILE, 'a', encoding='utf-8') as file:
    file.write('{"memory": "no')
  with pytest.raises(SystemExit, match='episodes.jsonl:51: the last line is half written'):
    report.main(['--workdir', str(folder)])
  assert (folder / 'report' / 'index.html').read_bytes() == before


# Sentences.


def sentences(diff, ci95, *, memory='mempi', growth=None):
  names = {'none': 0.4, 'rag': 0.5, 'mempi_stage1': 0.6, memory: 0.4 + diff}
  rows = [
    {'memory': m, 'split': 'heldout_games', 'n': 100, 'success_rate': r, 'ci95': [r - 0.1, r + 0.1], 'guidance_tokens': tokens}
    for (m, r), tokens in zip(names.items(), (0.0, 9.0, 4.0, 1.0))
  ]
  pairs = [
    {'split': 'heldout_games', 'a': memory, 'b': b, 'diff': diff, 'ci95': ci95, 'mcnemar_p': 0.5, 'minimum_detectable_effect': 0.12}
    for b in ('none', 'mempi_stage1')
  ]
  return report.headlines(rows, pairs, {'mempi': stats.Estimate(0.7, 0.6, 0.8, 40, 40)}, growth)


def test_headlines_claim_what_the_interval_supports():
  first, second, third = sentences(0.2, [0.1, 0.3])
  assert first == (
    'Over 100 episodes of held-out games the agent alone succeeds in 40.0% [30.0, 50.0], with Mem-π in 60.0% [50.0, 70.0]: '
    '+20.0 points [+10.0, +30.0], paired over games.'
  )
  assert "25% of stage 1's" in second and second.endswith('a loss of 3 points or more is excluded.')
  assert '+70.0 points [+60.0, +80.0]' in third and 'null controls' in third


def test_headlines_say_when_nothing_was_shown():
  first, second, _ = sentences(0.02, [-0.05, 0.09])
  assert 'the interval holds 0, so this evaluation shows no difference' in first
  assert first.endswith('(it would have found one of 12.0 points four times in five).')
  assert second.endswith('a loss of 3 points or more is not excluded.')


def test_no_headline_without_the_agent_alone():
  assert report.headlines([], [], {}, None) == []


# Pictures.


def test_families_of_curves():
  first = {'train/loss': 2.0, 'decision/p_generate': 0.8, 'decision/p_generate_easy': 0.5, 'rollout/success_abstain': 0.4}
  later = {'decision/p_generate_hard': 0.9, 'rollout/success_generate': 0.6, 'rollout/guidance_tokens': 3.0, 'train/loss_large': 900.0}
  records = [{'step': 0, **first}, {'step': 1, **later}]
  assert plots.curve_families(records) == {
    'train/loss': ['train/loss'],
    'train/loss_large': ['train/loss_large'],
    'decision/p_generate': ['decision/p_generate', 'decision/p_generate_easy', 'decision/p_generate_hard'],
    'rollout/guidance_tokens': ['rollout/guidance_tokens'],
    'rollout/success': ['rollout/success_abstain', 'rollout/success_generate'],
  }


def test_every_memory_has_a_colour_and_a_marker_of_its_own():
  assert len(set(plots.COLOURS.values())) == len(set(plots.MARKERS.values())) == len(success.MEMORIES)
  assert set(plots.COLOURS) == set(plots.MARKERS) == set(plots.LABELS) == set(success.MEMORIES)


# Several runs.


def test_pooled_report(tmp_path, no_drawing):
  workdirs = [make_workdir(tmp_path / f'{h}{s}', household=h, seed=s, games=15, stages=()) for h in ('h|1', 'h2') for s in (0, 1)]
  out = tmp_path / 'out'
  report.main(['--workdirs', *map(str, workdirs), '--out', str(out)])
  pooled = files.read_json(out / 'results.json')
  cell = next(row for row in pooled['rows'] if (row['memory'], row['split']) == ('mempi', 'heldout_games'))
  assert cell['n'] == 60
  runs = [success.summarise(success.read_episodes(workdir)) for workdir in workdirs]
  own = [row['success_rate'] for rows in runs for row in rows if (row['memory'], row['split']) == ('mempi', 'heldout_games')]
  assert cell['success_rate'] == pytest.approx(np.mean(own), abs=1e-5)
  assert [run['success']['mempi'] for run in pooled['runs']] == pytest.approx(own)
  assert len(pooled['abstention_by_difficulty']) == 5
  table = (out / 'table.md').read_text(encoding='utf-8')
  low, high = cell['ci95']
  assert f'| Mem-π | {cell["success_rate"]:.3f} [{low:.3f}, {high:.3f}] |' in table and '| h\\|1 | 0 | 15 |' in table
  page = open_page(out / 'index.html')
  assert 'Mem-π: 4 runs on 2 households' in page.text and 'The runs that were pooled' in page.text


def test_pooling_refuses_other_manifests(tmp_path):
  a, b = make_workdir(tmp_path / 'a', games=10, stages=()), make_workdir(tmp_path / 'b', seed=1, games=10, stages=())
  files.write_json(b / 'manifest.json', {**files.read_json(b / 'manifest.json'), 'step_cap': 50})
  with pytest.raises(SystemExit, match='step_cap: 10 against 50'):
    report.main(['--workdirs', str(a), str(b), '--out', str(tmp_path / 'out')])
  assert not (tmp_path / 'out').exists()


def test_pooling_needs_a_place_to_write(tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    report.main(['--workdirs', str(tmp_path)])
  assert error.value.code == 2 and '--workdirs and --out go together' in capsys.readouterr().err
