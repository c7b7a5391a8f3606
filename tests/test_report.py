"""The report on made-up workdirs: it shows the numbers, survives what is missing, and lets no text of a game act."""

import base64
import csv
import gzip
import hashlib
import html.parser
import json
import math
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

from mempi_jax import report
from mempi_jax.evals import plots, stats, success
from mempi_jax.runtime import files

ALL = ('none', 'oracle', 'rag', 'mempi_stage1', 'mempi')
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
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
            'nearest': [f'train-{i:03d}@1: the mug is usually in the shelf{extra}'],
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
    self.elements, self.attributes, self.visible, self.scripts, self.open = [], [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'not closed: {self.open}'
    self.text = re.sub(r'\s+', ' ', ''.join(self.visible))

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    if tag not in ('meta', 'img', 'source', 'input'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] not in (['style'], ['script']):
      self.visible.append(data)
    elif self.open[-1] == 'script':
      self.scripts.append(data)


def open_page(path):
  return Page(path.read_text(encoding='utf-8'))


def data_of(page):
  """What the episode browser of a page would read."""
  return json.loads(gzip.decompress(base64.b64decode(page.scripts[0])))


def record_of(data, i):
  """An episode of the browser's data as a record."""
  string = lambda place: data['strings'][place]
  steps = [string(place) for place in data['steps'][i]]
  return {
    'memory': data['memories'][data['memory'][i]]['name'],
    'split': data['splits'][data['split'][i]]['name'],
    'status': data['statuses'][data['status'][i]],
    'decision': ('[ABSTAIN]', '[GENERATE]')[data['decision'][i]],
    'nearest': [string(place) for place in data['nearest'][i]],
    'steps': [list(pair) for pair in zip(steps[::2], steps[1::2])],
    **{name: data[name][i] for name in ('seed', 'p_generate', 'guidance_tokens', 'agent_steps')},
    **{name: string(data[column][i]) for name, column in (('task_id', 'task'), *((n, n) for n in ('goal', 'observation', 'guidance')))},
  }


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
  monkeypatch.setattr(plots, 'draw', lambda figure, *arguments: {f'{t}.{kind}': stub for t in ('light', 'dark') for kind in ('png', 'svg')})


def test_whole_report(workdir):
  path = report.write_report(workdir)
  assert path == workdir / 'report' / 'index.html'
  page = open_page(path)
  results = files.read_json(workdir / 'results.json')
  for row in results['rows']:
    low, high = row['ci95']
    assert f'{row["success_rate"]:.3f} [{low:.3f}, {high:.3f}]' in page.text
  for row in results['comparisons']:
    interval = f'{row["diff"]:+.3f} [{row["ci95"][0]:+.3f}, {row["ci95"][1]:+.3f}]'
    assert interval.replace('-', '−') in page.text
  assert 'oracle (upper bound)' in page.text and 'Stage 2 has not been evaluated' not in page.text
  assert '24 of 24 evaluation episodes gave the same outcome' in page.text
  for title in ('Guidance helped', 'It abstained, and the agent succeeded', 'stage 1 (SFT)', 'stage 2 (RL)', 'Manifest', 'packages.jax'):
    assert title in page.text
  assert '2 min 05 s' in page.text and '31.2 s' in page.text
  assert 'the mug is usually in the drawer' in page.text
  # Every figure is beside the page in both themes and forms, and inside it.
  names = {'success', 'differences', 'tokens', 'abstention', 'training_stage1', 'training_stage2'}
  figures = {f'{name}_{theme}.{kind}' for name in names for theme in ('light', 'dark') for kind in ('png', 'svg')}
  assert {p.name for p in path.parent.iterdir() if p.suffix in ('.png', '.svg')} == figures
  embedded = [value for name, value in page.attributes if name in ('src', 'srcset')]
  on_disk = {p.read_bytes() for p in path.parent.glob('*.svg')}
  assert len(embedded) == 2 * len(names)
  assert {base64.b64decode(uri.removeprefix('data:image/svg+xml;base64,')) for uri in embedded} == on_disk
  for png in path.parent.glob('*.png'):
    width, height = struct.unpack('>II', png.read_bytes()[16:24])
    assert 500 < width < 2000 and 300 < height < 3000
  # Every file beside the page is linked, and every link leads somewhere.
  links = {value for name, value in page.attributes if name == 'href' and not value.startswith('#')}
  assert links == {p.name for p in path.parent.iterdir()} - {'index.html'}
  assert {value[1:] for name, value in page.attributes if name == 'href' and value.startswith('#')} <= {
    value for name, value in page.attributes if name == 'id'
  }


def test_tables_as_files_hold_the_numbers(workdir, no_drawing):
  folder = report.write_report(workdir).parent
  results = files.read_json(workdir / 'results.json')
  found = list(csv.DictReader((folder / 'table_cells.csv').open(encoding='utf-8')))
  assert len(found) == len(results['rows']) == 15
  for line, row in zip(found, results['rows']):
    assert (line['memory'], line['split'], int(line['n'])) == (row['memory'], row['split'], row['n'])
    assert [float(line[name]) for name in ('success_rate', 'ci95_low', 'ci95_high')] == [row['success_rate'], *row['ci95']]
  found = list(csv.DictReader((folder / 'table_comparisons.csv').open(encoding='utf-8')))
  assert [(line['a'], line['b'], float(line['diff'])) for line in found] == [(r['a'], r['b'], r['diff']) for r in results['comparisons']]
  latex = (folder / 'table_comparisons.tex').read_text(encoding='utf-8')
  assert latex.count(r'\\') == 1 + len(results['comparisons']) and latex.count(r'\midrule') == 3
  assert {p.stem for p in folder.glob('*.csv')} == {p.stem for p in folder.glob('*.tex')}


def test_holm_is_shown_where_it_is_known(workdir, tmp_path, no_drawing):
  results = files.read_json(workdir / 'results.json')
  folder = tmp_path / 'run'
  shutil.copytree(workdir, folder)
  for row in results['comparisons']:
    row['holm_p'] = 0.0421
  files.write_json(folder / 'results.json', results)
  page = open_page(report.write_report(folder))
  assert 'p (Holm)' in page.text and page.text.count('0.042') >= len(results['comparisons']) and "Holm's correction" in page.text
  for row in results['comparisons']:
    del row['holm_p']
  files.write_json(folder / 'results.json', results)
  assert 'Holm' not in open_page(report.write_report(folder)).text


def test_report_is_the_same_when_written_again(workdir, no_drawing):
  before, after = report.write_report(workdir).read_bytes(), report.write_report(workdir).read_bytes()
  assert before == after and len(before) > 10_000


def test_pictures_are_the_same_when_drawn_again():
  records = made_up_metrics('stage1', np.random.default_rng(0))
  first, second = plots.draw(plots.training, records), plots.draw(plots.training, records)
  assert first == second and first['light.png'] != first['dark.png'] and first['light.png'].startswith(b'\x89PNG')
  assert first['light.svg'] != first['dark.svg'] and b'<svg' in first['light.svg']


def test_one_script_and_no_network(workdir, no_drawing):
  text = report.write_report(workdir).read_text(encoding='utf-8')
  page = Page(text)
  assert not {'iframe', 'object', 'link', 'form'} & set(page.elements) and page.elements.count('script') == 2
  # The policy lets the page's own script and style act, and nothing else.
  digest = lambda content: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
  style = re.search(r'<style>(.*)</style>', text, flags=re.S).group(1)
  policy = next(value for name, value in page.attributes if name == 'content' and 'script-src' in value)
  assert policy == (
    f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(page.scripts[1])}'; "
    "base-uri 'none'; form-action 'none'"
  )
  assert not any(name == 'style' or name.startswith('on') for name, _ in page.attributes)
  outside = text.replace(page.scripts[0], '').replace(page.scripts[1], '')
  assert 'http:' not in outside and 'https:' not in outside and '//' not in re.sub('data:[^"]*', '', outside)
  # What the script itself must not do.
  for forbidden in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(', 'Function(', 'fetch(', '</', '<!--'):
    assert forbidden not in page.scripts[1]


ATTACK = '</script><img src=x onerror=alert(1)><!--<script>alert(2)</script>"\'>&lt;b&gt;\x00\x1b\u202e{{ 7 * 7 }}\ud800'


def test_text_of_games_cannot_act(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=12, splits=('heldout_games',), extra=ATTACK)
  path = report.write_report(folder)
  raw, page = path.read_text(encoding='utf-8'), open_page(path)
  assert page.elements.count('script') == 2 and not any(name.startswith('on') for name, _ in page.attributes)
  assert 'x' not in [value for name, value in page.attributes if name == 'src']
  assert '<img src=x' not in raw and '<!--' not in raw and not set('\x00\x1b\u202e') & set(raw)
  # The reader sees what the text was; characters that hide or reorder appear as their codes.
  shown = ATTACK.partition('\x00')[0] + '\\u0000\\u001b\\u202e{{ 7 * 7 }}\\ud800'
  assert shown in page.text
  data = data_of(page)
  assert any(shown in text for text in data['strings']) and not any(set('\x00\x1b\u202e\ud800') & set(text) for text in data['strings'])


@pytest.mark.skipif(BROWSER is None, reason='needs Chromium')
def test_the_browser_shows_hostile_text_as_text(tmp_path, no_drawing):
  folder = make_workdir(tmp_path, games=12, splits=('heldout_games',), extra=ATTACK)
  command = [BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=5000', '--dump-dom']
  address = report.write_report(folder).resolve().as_uri() + '#episode=rag/heldout_games-003@7'
  dom = subprocess.run([*command, address], capture_output=True, text=True, timeout=60).stdout
  assert 'aria-setsize="12"' in dom and '<code>rag/heldout_games-003@7</code>' in dom
  assert '<img src="x"' not in dom and '&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;' in dom and '\\u202e' in dom
  assert dom.count('class="side"') == 2 and 'Nearest entries of the experience bank' in dom


# The episode browser's data.


def test_the_browser_has_every_episode(workdir, no_drawing):
  data = data_of(open_page(report.write_report(workdir)))
  episodes = success.read_episodes(workdir)
  assert len(data['memory']) == len(episodes) == 900
  for i, episode in enumerate(episodes):
    kept = record_of(data, i)
    assert kept == {name: episode[name] for name in kept}
  games = {}
  for i, episode in enumerate(episodes):
    games.setdefault(data['game'][i], []).append((episode['split'], episode['task_id'], episode['seed'], episode['memory']))
  assert len(games) == 180
  for members in games.values():
    assert len({key[:3] for key in members}) == 1 and sorted(key[3] for key in members) == sorted(ALL)
  assert data['runs'] == [''] and len(data['strings']) == len(set(data['strings']))


def test_long_texts_are_cut_and_missing_ones_are_empty():
  episode = {
    'memory': 'none',
    'split': 's',
    'task_id': 't',
    'seed': 1,
    'status': 'failure',
    'decision': '[ABSTAIN]',
    'p_generate': None,
    'guidance_tokens': 0,
    'agent_steps': 0,
    'goal': 'g' * 4100,
  }
  data = report.browser_data([episode])
  assert data['strings'][data['goal'][0]] == 'g' * 4000 + ' … (100 more characters; --episode shows them)'
  assert data['steps'] == [[]] and data['nearest'] == [[]] and data['strings'][data['observation'][0]] == ''


# One episode in the terminal.


def test_an_episode_is_printed_beside_its_unguided_pair(workdir, capsys):
  episodes = success.read_episodes(workdir)
  pairs = success.paired(episodes, 'heldout_games', 'mempi', 'none')
  mine, alone = next(
    (mine, alone) for mine, alone in pairs if mine['decision'] == '[GENERATE]' and mine['success'] and not alone['success']
  )
  report.main(['--workdir', str(workdir), '--episode', f'mempi/{mine["task_id"]}@7'])
  text = capsys.readouterr().out
  assert text.startswith(f'mempi/{mine["task_id"]}@7\n')
  for line in (
    OBSERVATION[:60],
    '[GENERATE]',
    f'{mine["p_generate"]:.4f}',
    'the mug is usually in the drawer (4 tokens)',
    mine['nearest'][0],
  ):
    assert line in text
  assert re.search(r'truncated after 10 actions +│ success after 5 actions', text) and 'The memory helped.' in text
  assert re.search(r'> go to drawer 1 +│ > go to drawer 1', text)
  report.main(['--workdir', str(workdir), '--episode', f'mempi/{mine["task_id"]}'])
  assert capsys.readouterr().out == text
  report.main(['--workdir', str(workdir), '--episode', f'none/{mine["task_id"]}'])
  assert 'agent alone: truncated after 10 actions\n> go to drawer 1' in capsys.readouterr().out


def test_where_two_episodes_part():
  episode = {'memory': 'none', 'split': 's', 'task_id': 't', 'seed': 1, 'decision': '[ABSTAIN]', 'p_generate': None, 'guidance_tokens': 0}
  episode |= {'success': True, 'status': 'success', 'agent_steps': 2, 'steps': [['look', 'a desk'], ['take pen', 'taken']]}
  other = {**episode, 'memory': 'mempi', 'decision': '[GENERATE]', 'p_generate': 0.75, 'guidance': 'look\x1b[2J', 'guidance_tokens': 1}
  other |= {'success': False, 'status': 'failure', 'agent_steps': 3, 'steps': [['look', 'a desk'], ['go', 'gone'], ['wait', 'nothing']]}
  text = report.describe_episode([episode, other], other, 80)
  rule = '─' * 39 + '┼' + '─' * 39
  assert text.endswith(
    f"""
agent alone                            │ with Mem-π
{rule}
> look                                 │ > look
  a desk                               │   a desk
{' from here they differ ':─^80}
> take pen                             │ > go
  taken                                │   gone
                                       │ > wait
                                       │   nothing
{rule}
success after 2 actions                │ failure after 3 actions

The memory hurt."""
  )
  assert 'look\\u001b[2J (1 token)' in text and '\x1b' not in text


def test_an_unknown_episode_names_near_ones(workdir):
  with pytest.raises(SystemExit) as error:
    report.main(['--workdir', str(workdir), '--episode', 'mempi/heldout_games-0003@7'])
  message = str(error.value)
  assert message.startswith("report: no episode 'mempi/heldout_games-0003@7'; near ones: ") and 'mempi/heldout_games-003@7' in message
  assert '\n' not in message
  episodes = success.read_episodes(workdir)
  twice = [*episodes, {**episodes[0], 'seed': 8}]
  with pytest.raises(
    report.EpisodeError, match='2 episodes are called .*none/heldout_games-000@7, none/heldout_games-000@8; give the seed'
  ):
    report.find_episode(twice, 'none/heldout_games-000')
  with pytest.raises(
    report.EpisodeError, match='near ones: rag/heldout_games-000@7, rag/heldout_games-001@7, rag/heldout_games-002@7, ...$'
  ):
    report.find_episode(episodes, 'rag/heldout_games-0')
  with pytest.raises(report.EpisodeError, match='expected memory/task_id@seed, as in none/heldout_games-000@7'):
    report.find_episode(episodes, '?')


def test_an_episode_needs_one_workdir(workdir, tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    report.main(['--workdirs', str(workdir), '--out', str(tmp_path), '--episode', 'x'])
  assert error.value.code == 2 and '--episode needs --workdir' in capsys.readouterr().err


# What a workdir lacks.


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
  assert len(set(plots.COLOURS.values())) == len(set(plots.MARKERS.values())) == len(plots.LABELS)
  assert set(plots.COLOURS) == set(plots.MARKERS) == set(plots.LABELS) >= set(success.MEMORIES)
  assert all(plots.marker_path(memory).endswith('Z') for memory in [*plots.MARKERS, 'one of tomorrow'])


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
  runs = list(csv.DictReader((out / 'table_runs.csv').open(encoding='utf-8')))
  assert [float(run['success_mempi']) for run in runs] == pytest.approx(own) and runs[0]['household'] == 'h|1'
  page = open_page(out / 'index.html')
  data = data_of(page)
  assert data['runs'] == ['h|1, seed 0', 'h|1, seed 1', 'h2, seed 0', 'h2, seed 1']
  assert len(set(data['game'])) == 4 * 45 and len(data['memory']) == 4 * 45 * len(ALL)
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
