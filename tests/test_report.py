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
from mempi_jax.evals import plots, reading, stats, success
from mempi_jax.runtime import files

ALL = ('none', 'oracle', 'rag', 'mempi_stage1', 'mempi')
EVERY = (*success.MEMORIES, 'one_of_tomorrow')
THRESHOLD = 0.36
BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
OBSERVATION = 'You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 1, and a shelf 1.'


def make_workdir(folder, *, household='h1', seed=0, games=60, memories=ALL, splits=success.SPLITS, stages=('stage1', 'stage2'), extra=''):
  """A workdir as an evaluation leaves it: easy games need no guidance, hard ones do. `extra` is added to every text of a game.

  Guidance hurts in the easiest games. Mem-π speaks where P(GENERATE) >= 0.36; where it speaks it plays as `always` does, where it is
  silent as `none`. Its model reads 50 to 52 tokens and writes the decision, 4 tokens, and end-of-sequence.
  """
  rng = np.random.default_rng(seed)
  effects = {'none': 0.0, 'oracle': 3.0, 'mem0': 1.2, 'memrl': 0.9, 'untrained': -0.4, 'mempi_stage1': 1.8, 'mempi': 2.1, 'always': 2.1}
  models = ('untrained', 'always', 'mempi_stage1', 'mempi')
  silent = ('none', 'token_matched')
  episodes, base_runs = [], []
  for split in splits:
    ease = rng.normal(-0.4, 1.8, games)  # of each game, for the agent alone
    luck = rng.logistic(size=games)  # shared by all memories: the same seed
    noise = rng.normal(size=games)  # of Mem-π's guidance
    for memory in memories:
      for i in range(games):
        p = round(float(1 / (1 + math.exp(2 * ease[i]))), 4)
        generate = memory not in silent and not (memory in ('mempi', 'rag_abstain') and p < THRESHOLD)
        shift = 0.6 * (noise[i] if memory in ('mempi', 'always') else rng.normal()) + effects.get(memory, 1.0) if generate else 0.0
        if generate and ease[i] > 1.5:
          shift -= 3.0
        if memory == 'token_matched':
          shift = 0.3
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
            'p_generate': p if memory in (*models, 'rag_abstain') else None,
            'guidance': f'the mug is usually in the drawer{extra}' if generate else '',
            'nearest': [f'train-{i:03d}@1: the mug is usually in the shelf{extra}'],
            'guidance_tokens': {'rag': 9, 'oracle': 6}.get(memory, 4) if generate else 0,
            'read_tokens': 50 + i % 3 if memory in (*models, 'rag_abstain') else 0,
            'written_tokens': 0 if memory not in (*models, 'rag_abstain') else 6 if generate and memory != 'rag_abstain' else 1,
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
  sampler = {'greedy': True, 'threshold': THRESHOLD}
  manifest = {'step_cap': 10, 'household': household, 'seed': seed, 'sampler': sampler, 'packages': {'jax': '0.10.2'}}
  files.write_json(folder / 'manifest.json', manifest)
  return folder


def made_up_metrics(stage, rng):
  if stage == 'stage1':
    records = [{'step': s, 'train/loss': math.exp(-s / 40), 'train/content_logp': -2 * math.exp(-s / 30)} for s in range(120)]
    return [{**r, **({'val/loss': math.exp(-r['step'] / 50)} if r['step'] % 20 == 0 else {})} for r in records]
  names = {'decision/p_generate': 0.8, 'decision/p_generate_easy': 0.5, 'decision/p_generate_hard': 0.95, 'rollout/guidance_tokens': 3.0}
  names |= {'rollout/success_generate': 0.65, 'rollout/success_abstain': 0.45, 'train/loss': 0.1}
  records = [{'step': s, **{name: value + 0.03 * rng.normal() for name, value in names.items()}} for s in range(60)]
  for record in records[::10]:  # a probe parts easy contexts from hard ones
    easy, hard = 0.9 - 0.01 * record['step'], 0.9 + 0.001 * record['step']
    record |= {'probe/p_generate': (easy + hard) / 2, 'probe/p_generate_easy': easy, 'probe/p_generate_hard': hard}
  return records


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


PNG = b'\x89PNG\r\n\x1a\n' + struct.pack('>I4sII', 13, b'IHDR', 2400, 1000)  # all of it that a page reads
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="500"></svg>'


@pytest.fixture
def no_drawing(monkeypatch):
  """Pages without the cost of their pictures; returns the figures that would have been drawn: name -> arguments."""
  drawn = {}

  def draw(figure, *arguments):
    drawn[figure.__name__] = arguments
    return {f'{theme}.{kind}': image for theme in ('light', 'dark') for kind, image in (('png', PNG), ('svg', SVG))}

  monkeypatch.setattr(plots, 'draw', draw)
  return drawn


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
  data = reading.browser_data([episode])
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
  text = reading.describe_episode([episode, other], other, 80)
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
    reading.EpisodeError, match='2 episodes are called .*none/heldout_games-000@7, none/heldout_games-000@8; give the seed'
  ):
    reading.find_episode(twice, 'none/heldout_games-000')
  with pytest.raises(
    reading.EpisodeError, match='near ones: rag/heldout_games-000@7, rag/heldout_games-001@7, rag/heldout_games-002@7, ...$'
  ):
    reading.find_episode(episodes, 'rag/heldout_games-0')
  with pytest.raises(reading.EpisodeError, match='expected memory/task_id@seed, as in none/heldout_games-000@7'):
    reading.find_episode(episodes, '?')


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


# What the decision is worth, and what guidance costs.

DECISION_TABLES = ('calibration', 'reliability', 'coverage', 'routing', 'costs', 'thresholds')
JUDGED = ('none', 'oracle', 'rag', 'rag_abstain', 'always', 'mempi_stage1', 'mempi')


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
  """A run whose decision can be judged: held-out games alone."""
  return make_workdir(tmp_path_factory.mktemp('judged'), games=80, memories=JUDGED, splits=('heldout_games',), stages=())


def arrays_of(folder):
  """memory -> field -> array over games; success as 0 and 1."""
  episodes = [e for e in success.read_episodes(folder) if e['split'] == 'heldout_games']
  fields = ('p_generate', 'success', 'guidance_tokens', 'read_tokens', 'written_tokens', 'decision')
  order = sorted({e['task_id'] for e in episodes})
  by_key = {(e['memory'], e['task_id']): e for e in episodes}
  column = lambda memory, field: np.array([by_key[memory, task][field] for task in order])
  return {m: {f: column(m, f) * 1 if f == 'success' else column(m, f) for f in fields} for m in success.memories_of(episodes)}


def read_table(folder, name):
  return list(csv.DictReader((folder / f'table_{name}.csv').open(encoding='utf-8')))


def test_the_decision_is_judged_by_what_was_measured(judged, no_drawing):
  path = report.write_report(judged)
  page, of = open_page(path), arrays_of(judged)
  benefit, spoke = of['always']['success'] - of['none']['success'], of['mempi']['decision'] == '[GENERATE]'
  p = of['mempi']['p_generate']
  assert 0.3 < spoke.mean() < 0.9 and {-1, 0, 1} == set(benefit)
  # Errors of routing, counted anew.
  wrong = [np.mean(spoke & (benefit < 0)), np.mean(~spoke & (benefit > 0)), np.mean(spoke & (benefit == 0))]
  records = read_table(path.parent, 'routing')
  assert [float(record['share']) for record in records] == pytest.approx(wrong, abs=1e-6)
  assert [float(record['success_lost']) for record in records[:2]] == pytest.approx(wrong[:2], abs=1e-6)  # one seed: a benefit of 1 or -1
  own, oracle = of['mempi']['success'].mean(), np.maximum(of['always']['success'], of['none']['success']).mean()
  assert f'{own:.3f} + {wrong[0]:.3f} + {wrong[1]:.3f} = {oracle:.3f}.' in page.text
  assert f'Its own decisions reach {100 * own:.1f}%.' in page.text and f'it would be oracle routing, {100 * oracle:.1f}%.' in page.text
  # The calibration error, over bins of a tenth.
  number = np.minimum((p * 10).astype(int), 9)
  bins = [number == i for i in np.unique(number)]
  ece = sum(abs(p[part].mean() - (benefit[part] > 0).mean()) * part.mean() for part in bins)
  records = read_table(path.parent, 'calibration')
  assert float(records[0]['ece']) == pytest.approx(ece, abs=1e-6) and [int(r['n']) for r in records] == [80, np.sum(benefit != 0)]
  assert f'{ece:.3f}, where a perfectly calibrated policy would have {float(records[0]["ece_if_calibrated"]):.3f}.' in page.text
  assert 0.0 < float(records[0]['ece_if_calibrated']) < ece
  records = [record for record in read_table(path.parent, 'reliability') if record['of'] == 'all']
  assert [float(record['helped']) for record in records] == pytest.approx([(benefit[part] > 0).mean() for part in bins], abs=1e-6)
  assert [float(record['benefit']) for record in records] == pytest.approx([benefit[part].mean() for part in bins], abs=1e-6)
  assert [int(record['contexts']) for record in records] == [part.sum() for part in bins]
  # The order: success when the k contexts with the highest P(GENERATE) are guided, as a mean over k.
  routed = of['none']['success'].mean() + np.concatenate([[0.0], np.cumsum(benefit[np.argsort(-p)])]) / 80
  areas = [float(record['mean_success']) for record in read_table(path.parent, 'coverage')]
  assert len(set(p)) == 80 and areas[0] == pytest.approx(np.trapezoid(routed, dx=1 / 80), abs=1e-6)
  assert areas[1] == pytest.approx((of['none']['success'].mean() + of['always']['success'].mean()) / 2, abs=1e-6) and areas[2] > areas[0]
  assert '80 contexts, each a game of a run' in page.text and 'With one seed a context a benefit is −1, 0 or 1' in page.text


def test_what_guidance_costs_is_what_was_recorded(judged, no_drawing):
  path = report.write_report(judged)
  page, of = open_page(path), arrays_of(judged)
  cost = lambda part, rows=slice(None): sum(part[f'{k}_tokens'][rows].mean() for k in ('guidance', 'read', 'written'))
  records = {record['memory']: record for record in read_table(path.parent, 'costs')}
  assert set(records) == set(JUDGED)
  for memory, record in records.items():
    assert float(record['cost']) == pytest.approx(cost(of[memory]), abs=1e-5)
    assert float(record['success_rate']) == pytest.approx(of[memory]['success'].mean(), abs=1e-6)
  assert float(records['rag']['cost']) == 9.0 and float(records['none']['cost']) == 0.0
  points = read_table(path.parent, 'thresholds')
  # At the run's threshold the curve goes through the memory's own row.
  (chosen,) = (point for point in points if point['chosen'] == 'True')
  assert float(chosen['threshold']) == THRESHOLD and float(chosen['success_rate']) == float(records['mempi']['success_rate'])
  assert [float(chosen[k]) for k in ('inserted_tokens', 'read_tokens', 'written_tokens', 'cost')] == pytest.approx(
    [float(records['mempi'][k]) for k in ('inserted_tokens', 'read_tokens', 'written_tokens', 'cost')], abs=1e-5
  )
  # Its ends are the agent alone, which nobody asks, guidance everywhere, and silence that still reads.
  assert (points[0]['threshold'], float(points[0]['cost'])) == ('', 0.0)
  assert float(points[1]['threshold']) == 0.0 and float(points[1]['cost']) == pytest.approx(cost(of['always']), abs=1e-5)
  assert float(points[-1]['threshold']) > 1.0 and float(points[-1]['cost']) == pytest.approx(
    of['mempi']['read_tokens'].mean() + 1, abs=1e-5
  )
  # Every other point by hand.
  for point in points[1:]:
    speaks = of['mempi']['p_generate'] >= float(point['threshold'])
    assert float(point['success_rate']) == pytest.approx(np.where(speaks, of['always']['success'], of['none']['success']).mean(), abs=1e-6)
    assert float(point['abstain_rate']) == pytest.approx(1 - speaks.mean(), abs=1e-6)
  # Pareto: no other point costs as little and succeeds as often.
  pairs = [(float(point['cost']), float(point['success_rate'])) for point in points]
  unbeaten = [not any(c <= cost and s >= rate and (c, s) != (cost, rate) for c, s in pairs) for cost, rate in pairs]
  assert [point['pareto'] == 'True' for point in points] == unbeaten and 2 < sum(unbeaten) < len(points)
  silent = np.mean(of['mempi']['decision'] == '[ABSTAIN]')
  assert (
    f'At its threshold, τ = 0.36, Mem-π abstains in {silent:.0%} of the episodes and takes {float(chosen["cost"]):.1f} tokens' in page.text
  )
  assert '0.36 (chosen)' in page.text and '0.0 (always speaks)' in page.text and '> 1 (never speaks)' in page.text


def test_tables_and_figures_of_the_decision_are_listed(judged, no_drawing):
  path = report.write_report(judged)
  page = open_page(path)
  links = {value for name, value in page.attributes if name == 'href'}
  figures = {
    f'{name}_{t}.{kind}' for name in ('reliability', 'risk_coverage', 'cost') for t in ('light', 'dark') for kind in ('png', 'svg')
  }
  files_of = {f'table_{table}.{kind}' for table in DECISION_TABLES for kind in ('csv', 'tex')}
  assert {'#trust', '#cost'} | figures | files_of <= links
  assert {value for value in links if not value.startswith('#')} == {p.name for p in path.parent.iterdir()} - {'index.html'}
  assert page.text.count('[O]') >= 5 and all(
    f'Figure: {report.FIGURES[name]}.' in page.text for name in ('reliability', 'risk_coverage', 'cost')
  )


def test_without_a_forced_memory_nothing_is_judged(workdir, no_drawing):
  path = report.write_report(workdir)
  page = open_page(path)
  assert 'Can the decision be trusted?' not in page.text and 'What does guidance cost?' not in page.text
  assert not list(path.parent.glob('table_routing.*')) and '#trust' not in [value for _, value in page.attributes]


def changed(workdir, folder, change):
  """A copy of a workdir, without its report, whose records of episodes were changed in place."""
  shutil.copytree(workdir, folder, ignore=shutil.ignore_patterns('report'))
  episodes = success.read_episodes(folder)
  for episode in episodes:
    change(episode)
  write_lines(folder / success.EPISODES_FILE, episodes)
  return folder


def test_what_cannot_be_computed_says_why(judged, tmp_path, no_drawing):
  older = changed(judged, tmp_path / 'older', lambda e: [e.pop(name) for name in ('read_tokens', 'written_tokens')])
  page = open_page(report.write_report(older))
  assert "Not computed. no field 'read_tokens' in a record of memory mempi" in page.text and 'Which decisions were wrong?' in page.text
  assert 'As the threshold moves' not in page.text and not (older / 'report' / 'table_costs.csv').exists()
  silent = changed(judged, tmp_path / 'silent', lambda e: e['memory'] == 'always' and e.update(decision='[ABSTAIN]'))
  text = open_page(report.write_report(silent)).text
  assert 'Not computed. memory always decided [ABSTAIN]' in text and 'Which decisions were wrong?' not in text
  broken = changed(judged, tmp_path / 'broken', lambda e: e['memory'] == 'always' and e.update(success=False, status='env_error'))
  assert open_page(report.write_report(broken)).text.count('Not computed. every episode of heldout_games ended') == 2


def test_a_memory_without_recorded_tokens_has_no_cost(judged, tmp_path, no_drawing):
  folder = changed(judged, tmp_path / 'run', lambda e: e['memory'] in ('rag', 'oracle') and e.update(read_tokens=None))
  path = report.write_report(folder)
  assert 'Without recorded tokens, and so not here: oracle (upper bound), RAG.' in open_page(path).text
  assert [record['memory'] for record in read_table(path.parent, 'costs')] == [m for m in JUDGED if m not in ('rag', 'oracle')]


def test_a_threshold_that_nobody_knows_is_not_marked(judged, tmp_path, no_drawing):
  folder = changed(judged, tmp_path / 'run', lambda episode: None)
  files.write_json(folder / 'manifest.json', {**files.read_json(folder / 'manifest.json'), 'sampler': {}})
  path = report.write_report(folder)
  points = read_table(path.parent, 'thresholds')
  assert 'At its threshold' not in open_page(path).text and {point['chosen'] for point in points} == {'False'} and len(points) == 22


def test_thresholds_that_decide_alike_give_way_to_the_runs_own(judged, tmp_path, no_drawing):
  folder = changed(judged, tmp_path / 'run', lambda episode: None)
  manifest = files.read_json(folder / 'manifest.json')
  lowest = arrays_of(folder)['mempi']['p_generate'].min()
  files.write_json(folder / 'manifest.json', {**manifest, 'sampler': {'threshold': lowest / 2}})  # speaks everywhere
  points = read_table(report.write_report(folder).parent, 'thresholds')
  assert (float(points[1]['threshold']), points[1]['chosen'], float(points[1]['abstain_rate'])) == (lowest / 2, 'True', 0.0)
  assert float(points[2]['abstain_rate']) > 0.0 and len(points) == 22


def test_sentences_about_the_decision():
  found = {
    'contexts': 40, 'ece': 0.25, 'ece_if_calibrated': 0.0625, 'ece_decisive': 0.5, 'ece_if_calibrated_decisive': 0.125,
    'coverage': {'advantage': -0.02, 'advantage_ci95': [-0.05, 0.0125], 'share_of_oracle': -0.2},
    'routing': {'success': 0.625, 'cost_spoke': 0.025, 'cost_spoke_ci95': [0.0, 0.05], 'cost_silent': 0.1, 'cost_silent_ci95': [0.05, 0.2],
                'oracle': 0.75},
  }  # fmt: skip
  first, second, third, fourth = report.trust_sentences(found)
  assert first == 'ECE of P(GENERATE) as the probability that guiding helps: 0.250, where a perfectly calibrated policy would have 0.062.'
  assert second == 'Over the contexts where guidance made a difference: 0.500, where a perfectly calibrated policy would have 0.125.'
  assert third == (
    'Guiding where P(GENERATE) is highest instead of at random: −2.0 points [−5.0, +1.2] of success, as a mean over all budgets; '
    '−20% of what oracle routing gains.'
  )
  assert fourth == (
    'Its own decisions reach 62.5%. Speaking where silence would have won costs 2.5 points [0.0, 5.0], silence where guidance would have '
    'won 10.0 points [5.0, 20.0]; without both it would be oracle routing, 75.0%.'
  )
  # Guidance that made no difference anywhere: no order is better than another.
  found |= {'ece_decisive': None, 'coverage': {'advantage': 0.0, 'advantage_ci95': [-0.05, 0.05], 'share_of_oracle': None}}
  first, second, _ = report.trust_sentences(found)
  assert second.endswith('+0.0 points [−5.0, +5.0] of success, as a mean over all budgets.')


def test_sentences_about_the_cost():
  point = {'threshold': 0.5, 'abstain_rate': 0.25, 'cost': 58.04, 'read_tokens': 51.5, 'over_alone': 0.25, 'over_alone_ci95': [0.1, 0.4]}
  points = [{**point, 'threshold': None}, {**point, 'over_always': -0.015, 'over_always_ci95': [-0.03, 0.0]}]
  assert report.cost_sentences(points, 0.5) == [
    'At its threshold, τ = 0.5, Mem-π abstains in 25% of the episodes and takes 58.0 tokens an episode, 51.5 of them read to decide.',
    'Success against the agent alone: +25.0 points [+10.0, +40.0]; against speaking everywhere: −1.5 points [−3.0, +0.0].',
  ]
  assert report.cost_sentences(points, None) == []


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


def test_the_training_figure_shows_the_probes():
  families = plots.curve_families(made_up_metrics('stage2', np.random.default_rng(0)))
  assert families['probe/p_generate'] == ['probe/p_generate', 'probe/p_generate_easy', 'probe/p_generate_hard']


def test_probes_of_several_runs_are_drawn_with_their_mean():
  easy = ([(0, 0.9), (5, 0.6), (10, 0.2)], [(0, 0.8), (5, 0.4)])
  runs = [[{'step': s, 'probe/p_generate_easy': p, 'probe/p_generate_hard': 0.9} for s, p in curve] for curve in easy]
  (axes,) = plots.dynamics(runs).axes
  lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
  assert lines[:2] == [([0, 5, 10], [0.9, 0.6, 0.2]), ([0, 5], [0.8, 0.4])]
  assert lines[2] == ([0, 5], pytest.approx([0.85, 0.5]))  # the mean, where all runs have a probe
  assert [line.get_label() for line in axes.lines if line.get_label()[0] != '_'] == [
    f'{n} contexts, mean of 2 runs' for n in ('easy', 'hard')
  ]
  (axes,) = plots.dynamics(runs[:1]).axes
  assert [line.get_label() for line in axes.lines] == ['easy contexts', 'hard contexts']


def test_the_cost_figure_shows_the_curve_and_what_is_best(judged, no_drawing):
  report.write_report(judged)
  points, rows, chosen = no_drawing['cost']
  figure = plots.cost(points, rows, chosen)
  whole, near = figure.axes
  moved = sorted((p for p in points if p['threshold'] is not None), key=lambda p: p['cost'])
  line, dots, rings = near.lines[:3]
  assert list(line.get_xdata()) == list(dots.get_xdata()) == [p['cost'] for p in moved]
  assert list(line.get_ydata()) == [p['success_rate'] for p in moved]
  assert list(zip(rings.get_xdata(), rings.get_ydata())) == [(p['cost'], p['success_rate']) for p in moved if p['pareto']]
  own = next(p for p in moved if p['threshold'] == chosen)
  texts = {text.get_text(): text for text in near.texts}
  assert chosen == THRESHOLD and texts['τ = 0.36'].xy == (own['cost'], own['success_rate_ci95'][0])
  assert {'τ > 1', 'τ = 0'} <= set(texts) and len(texts) <= 8
  # Every memory has its marker at its own cost, or beside it where others are.
  markers = {container[0].get_marker(): container[0].get_xydata()[0] for container in whole.containers}
  for row in rows:
    x, y = markers[plots.MARKERS[row['memory']]]
    assert y == row['success_rate'] and abs(x - row['cost']) < 2.0
  assert len(markers) == len(rows) == len(JUDGED) and markers['s'][0] == 9.0


def test_the_figures_of_the_decision_show_what_was_measured(judged, no_drawing):
  report.write_report(judged)
  (found,) = no_drawing['reliability']
  helped, benefit, counts = plots.reliability(found).axes
  shown = helped.containers[0][0].get_xydata()
  np.testing.assert_allclose(shown[:, 1], [part['helped'] for part in found['bins']])
  np.testing.assert_allclose(shown[:, 0], [part['p_generate'] for part in found['bins']], atol=0.01)
  np.testing.assert_allclose(benefit.containers[0][0].get_xydata()[:, 1], [part['benefit'] for part in found['bins']])
  assert [text.get_text() for text in counts.texts] == [str(part['contexts']) for part in found['bins']]
  label = f'all contexts: ECE {found["ece"]:.3f} ({found["ece_if_calibrated"]:.3f} if calibrated)'
  assert label in helped.get_legend_handles_labels()[1]
  # Guidance that made no difference anywhere leaves one series.
  nothing = {**found, 'bins_decisive': [], 'ece_decisive': None, 'ece_if_calibrated_decisive': None}
  assert len(plots.reliability(nothing).axes[0].containers) == 1
  curves, routing = no_drawing['risk_coverage']
  (axes,) = plots.risk_coverage(curves, routing).axes
  oracle, routed, random = axes.lines[:3]
  assert list(routed.get_ydata()) == list(curves.routed) and list(oracle.get_ydata()) == list(curves.oracle)
  assert list(random.get_xdata()) == [0.0, 1.0] and list(random.get_ydata()) == pytest.approx([curves.random[0], curves.random[-1]])
  points = {container[0].get_marker(): tuple(container[0].get_xydata()[0]) for container in axes.containers}
  assert points == {
    plots.MARKERS['none']: (0.0, curves.routed[0]),
    plots.MARKERS['always']: (1.0, curves.routed[-1]),
    plots.MARKERS['mempi']: (routing['spoke'], routing['success']),
  }
  # Its own decisions are a point of the curve.
  assert np.interp(routing['spoke'], curves.coverage, curves.routed) == pytest.approx(routing['success'])


def test_the_figures_of_the_decision_have_two_themes_and_a_readable_size(judged, no_drawing, monkeypatch):
  report.write_report(judged)
  monkeypatch.undo()
  for name in ('reliability', 'risk_coverage', 'cost'):
    images = plots.draw(getattr(plots, name), *no_drawing[name])
    assert images['light.png'] != images['dark.png'] and images['light.svg'] != images['dark.svg'] and b'<svg' in images['dark.svg']
    width, height = struct.unpack('>II', images['light.png'][16:24])
    assert width == 1080 and 600 < height < 1500


def test_memories_of_equal_cost_stand_side_by_side():
  assert plots._side_by_side([5.0, 0.0, 5.1, 9.0, 5.0], 1.0) == [-1.0, 0.0, 0.0, 0.0, 1.0]


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


def test_pooled_runs_are_judged_together(tmp_path, no_drawing):
  places = [('maple', 0), ('maple', 1), ('cedar', 0)]
  options = {'games': 20, 'memories': JUDGED, 'splits': ('heldout_games',)}
  stages = [('stage2',), ('stage2',), ()]
  workdirs = [make_workdir(tmp_path / f'{h}{s}', household=h, seed=s, stages=stage, **options) for (h, s), stage in zip(places, stages)]
  out = tmp_path / 'out'
  page = open_page(report.write_pooled_report(workdirs, out))
  of = [arrays_of(workdir) for workdir in workdirs]
  together = lambda memory, field: np.concatenate([run[memory][field] for run in of])
  benefit = together('always', 'success') - together('none', 'success')
  silent = together('mempi', 'decision') == '[ABSTAIN]'
  pooled = files.read_json(out / 'results.json')
  assert pooled['calibration']['contexts'] == 60
  assert pooled['calibration']['routing']['cost_silent'] == pytest.approx(np.mean(silent & (benefit > 0)), abs=1e-6)
  own = next(point for point in pooled['cost_curve'] if point['threshold'] == THRESHOLD)
  assert own['success_rate'] == pytest.approx(together('mempi', 'success').mean(), abs=1e-6)
  assert f'{own["cost"]:.1f} tokens an episode' in page.text and f'{own["cost"]:.1f} tokens an episode' in (out / 'table.md').read_text()
  assert 'Can the decision be trusted?' in page.text and '60 contexts' in page.text
  # Training: the runs that have probes.
  (probed,) = no_drawing['dynamics']
  assert [len([r for r in run if 'probe/p_generate_easy' in r]) for run in probed] == [6, 6]
  assert no_drawing['risk_coverage'][0].coverage.shape == (61,)


def test_fifteen_memories(tmp_path, no_drawing):
  assert len(EVERY) == 15
  options = {'games': 12, 'memories': EVERY, 'stages': ()}
  workdirs = [make_workdir(tmp_path / f'h{s}', seed=s, **options) for s in (0, 1)]
  path = report.write_pooled_report(workdirs, tmp_path / 'out')
  page = open_page(path)
  names = list(map(plots.label, EVERY))
  assert [record['memory'] for record in read_table(path.parent, 'success')] == list(EVERY) and all(name in page.text for name in names)
  assert len(read_table(path.parent, 'runs')[0]) == 3 + 15 and ('class', 'dense') in page.attributes
  assert len({(r['split'], r['a'], r['b']) for r in read_table(path.parent, 'comparisons')}) == 3 * len(success.PAIRS)
  assert [record['memory'] for record in read_table(path.parent, 'costs')] == list(EVERY)
  assert 'Over 24 episodes of held-out games the agent alone succeeds in' in page.text and 'Against RAG over the same bank' in page.text


FRAMES = """<p></p><script>
  const found = [];
  for (const width of [400, 1280]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    frame.onload = () => {
      const page = frame.contentDocument.documentElement, all = [...page.querySelectorAll("img, table")];
      const wide = all.filter((element) => !element.closest(".scroll") && element.getBoundingClientRect().right > width);
      found.push(`${width}: ${page.scrollWidth} ${wide.length} ${page.querySelectorAll("img").length} ${page.querySelectorAll("table").length}`);
      document.querySelector("p").textContent = found.sort().join("; ");
    };
    frame.src = ADDRESS;
    document.body.append(frame);
  }
</script>"""


@pytest.mark.skipif(BROWSER is None, reason='needs Chromium')
def test_a_page_of_many_memories_never_scrolls_sideways(tmp_path, no_drawing):
  workdirs = [make_workdir(tmp_path / f'h{s}', seed=s, games=12, memories=EVERY, stages=('stage2',)) for s in (0, 1)]
  path = report.write_pooled_report(workdirs, tmp_path / 'out')
  files.write_text(tmp_path / 'frames.html', FRAMES.replace('ADDRESS', json.dumps(path.resolve().as_uri())))
  command = [BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--allow-file-access-from-files']
  command += ['--virtual-time-budget=5000', '--window-size=1400,1000', '--dump-dom', (tmp_path / 'frames.html').resolve().as_uri()]
  dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
  images, shown = len(no_drawing), path.read_text(encoding='utf-8').count('<table')
  assert images == 8 and shown == 14
  assert f'<p>1280: 1280 0 {images} {shown}; 400: 400 0 {images} {shown}</p>' in dom


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
