"""Benchmarks: `python -m mempi_jax.bench NAME`.

    python -m mempi_jax.bench simulator --games PATH

plays the same commands in the real ALFWorld engine, as it is installed, and in the simulator, in turns and in one run, and prints the steps per
second of both, resets included, and their ratio: median and range over the repeats.

    python -m mempi_jax.bench sft [--vs torch,trl,tunix]

measures supervised fine-tuning of a decoder (sft.py), alone or beside peers.

    python -m mempi_jax.bench update [--vs trl,tunix]

measures updates of reinforcement learning on given completions (update.py), alone or beside peers.

    python -m mempi_jax.bench generate [--vs torch,trl,tunix]

measures generation, and whole steps of reinforcement learning (generate.py), alone or beside peers.

    python -m mempi_jax.bench pool

plays episodes in worker processes without faults and with faults in 5% of the steps, in turns (pool.py).

    python -m mempi_jax.bench terminal [--server URL] [--image NAME]

measures database tasks, and fresh machines with commands (terminal.py).

    python -m mempi_jax.bench browser [--backends fast,browsergym]

measures MiniWoB++: resets, and steps a second (browser.py).

    python -m mempi_jax.bench memory --config=FILE [--devices N | --topology NAME] [--measure]

says what an update takes of each device's memory, before anything is allocated (memory.py).

    python -m mempi_jax.bench overhead --workdir FOLDER

says where the seconds of a run's training loops went: the share that is the host's own work (overhead.py).

Peers run in Pythons of their own, one at a time. `bash mempi_jax/bench/peers/install.sh DIR` makes those Pythons, `--peers DIR` names
them; PyTorch may also be installed beside this package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import jax

from mempi_jax.bench import generate, sft, update
from mempi_jax.bench.browser import bench_browser, print_browser
from mempi_jax.bench.memory import bench_memory, print_memory
from mempi_jax.bench.models import QWEN2_5M
from mempi_jax.bench.overhead import bench_overhead, print_overhead
from mempi_jax.bench.pool import BACKENDS, bench_pool, print_pool
from mempi_jax.bench.simulator import bench_simulator, print_simulator
from mempi_jax.bench.terminal import bench_terminal, print_terminal
from mempi_jax.bench.turns import find_python, parse_peers
from mempi_jax.envs.alfworld.engine import engine_available
from mempi_jax.models.attention import IMPLEMENTATIONS
from mempi_jax.models.decoder import REMAT
from mempi_jax.models.presets import PRESETS
from mempi_jax.runtime import files
from mempi_jax.runtime.host import has_accelerator, keep_freed_memory

BUSY = 0.5  # a load average above which comparisons are not to be trusted


def main(argv: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(prog='python -m mempi_jax.bench', description='Benchmarks.')
  commands = parser.add_subparsers(dest='benchmark', required=True)
  add_simulator(commands)
  add_sft(commands)
  add_update(commands)
  add_generate(commands)
  add_pool(commands)
  add_terminal(commands)
  add_browser(commands)
  add_memory(commands)
  add_overhead(commands)
  for command in commands.choices.values():
    command.add_argument('--repeats', type=int, default=5)
    command.add_argument('--seed', type=int, default=0)
    command.add_argument('--output', help='also write the figures to this JSON file')
  arguments = parser.parse_args(argv)
  try:
    result = arguments.run(arguments)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  arguments.show(result)
  if arguments.output:
    files.write_json(arguments.output, result)
  return 0


def add_simulator(commands: argparse._SubParsersAction) -> None:
  """The simulator's options."""
  parser = commands.add_parser('simulator', help='the ALFWorld simulator beside the real engine')
  parser.add_argument('--games', required=True, help='a folder of game.tw-pddl files, a .jsonl or .jsonl.xz file, or generated:HOUSEHOLD')
  parser.add_argument('--count', type=int, default=4, help='how many games (default 4)')
  parser.add_argument('--random-steps', type=int, default=20, help='random commands after the walk (default 20)')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if arguments.count < 1 or arguments.repeats < 1 or arguments.random_steps < 0:
      raise ValueError('--count and --repeats must be at least 1, --random-steps must not be negative')
    available = engine_available()
    if available is not True:
      raise ValueError(f'the real ALFWorld engine is not available: {available}')
    return bench_simulator(arguments)

  parser.set_defaults(run=run, show=print_simulator)


def add_peers(parser: argparse.ArgumentParser, known: Sequence[str]) -> None:
  """The options of a benchmark that may run beside peers."""
  parser.add_argument('--vs', default='', metavar='NAME,...', help=f'also measure these, on a CPU in float32: some of {", ".join(known)}')
  parser.add_argument('--peers', metavar='DIR', help='where install.sh made the Pythons of peers')


def start_peers(arguments: argparse.Namespace, known: Sequence[str]) -> bool:
  """Parses --vs, looks for its Pythons, and makes this process ready for JAX; whether its C library keeps freed memory from now on."""
  arguments.vs = parse_peers(arguments.vs, known) if arguments.vs else ()
  memory_kept = (bool(arguments.vs) or not has_accelerator()) and keep_freed_memory()  # before the next line starts JAX
  if arguments.vs and jax.default_backend() != 'cpu':
    raise ValueError(f'--vs compares float32 on a CPU, found JAX on {jax.default_backend()}; set JAX_PLATFORMS=cpu')
  for name in arguments.vs:
    find_python(name, arguments.peers)
  if arguments.vs and (load := os.getloadavg()[0]) > BUSY:
    print(f'warning: this machine is busy (load average {load:.1f}); such figures mean little, and PyTorch suffers most', file=sys.stderr)
  return memory_kept


def add_model(parser: argparse.ArgumentParser) -> None:
  """Which model a benchmark runs."""
  parser.add_argument(
    '--model', default=QWEN2_5M, help=f'{QWEN2_5M} (default), {", ".join(PRESETS)}, or a folder whose config.json is read'
  )


def add_computation(parser: argparse.ArgumentParser) -> None:
  """How a model is trained."""
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of activations; weights and moments are float32')
  parser.add_argument('--remat', choices=tuple(REMAT), default='none', help='what is computed again in the backward pass (default none)')
  parser.add_argument('--scan-layers', action='store_true', help='one compiled layer, scanned')
  parser.add_argument('--attention', choices=IMPLEMENTATIONS, default='auto')


def check_computation(arguments: argparse.Namespace) -> None:
  """Raises ValueError where peers are to compute in another dtype than theirs."""
  if arguments.vs and arguments.dtype != 'float32':
    raise ValueError(f'--vs compares float32 on a CPU, found {arguments.dtype}')


def add_sft(commands: argparse._SubParsersAction) -> None:
  """The fine-tuning's options."""
  parser = commands.add_parser('sft', help='supervised fine-tuning, alone or beside PyTorch, TRL, Tunix')
  add_peers(parser, sft.PEERS)
  add_model(parser)
  parser.add_argument('--batch-size', type=int, default=8, help='rows a step (default 8)')
  parser.add_argument('--length', type=int, default=256, help='tokens a row (default 256)')
  parser.add_argument('--steps', type=int, default=5, help='steps a turn (default 5)')
  add_computation(parser)
  parser.add_argument('--compile', action='store_true', help='with --vs: PyTorch also with torch.compile (needs a C++ compiler)')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.batch_size, arguments.steps, arguments.repeats) < 1 or arguments.length < 2:
      raise ValueError('--batch-size, --steps and --repeats must be at least 1, --length at least 2')
    check_computation(arguments)
    return sft.bench_sft(arguments, start_peers(arguments, sft.PEERS))

  parser.set_defaults(run=run, show=sft.print_sft)


def add_update(commands: argparse._SubParsersAction) -> None:
  """The options of updates."""
  parser = commands.add_parser('update', help='updates of reinforcement learning on given completions, alone or beside TRL, Tunix')
  add_peers(parser, update.PEERS)
  add_model(parser)
  parser.add_argument('--prompts', type=int, default=2, help='prompts an update (default 2)')
  parser.add_argument('--length', type=int, default=128, help='tokens of a prompt (default 128)')
  parser.add_argument('--branches', type=int, default=8, help='completions a prompt (default 8)')
  parser.add_argument('--new', type=int, default=64, help='tokens of a completion (default 64)')
  parser.add_argument('--steps', type=int, default=5, help='updates a turn (default 5)')
  parser.add_argument('--micro-batches', type=int, default=1, help='parts that the rows, one a prompt, are computed in (default 1)')
  add_computation(parser)

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.prompts, arguments.length, arguments.new, arguments.steps, arguments.micro_batches, arguments.repeats) < 1:
      raise ValueError('--prompts, --length, --new, --steps, --micro-batches and --repeats must be at least 1')
    if arguments.prompts % arguments.micro_batches:
      raise ValueError(f'--micro-batches {arguments.micro_batches} must divide --prompts {arguments.prompts}: a group is never split')
    check_branches(arguments)
    check_computation(arguments)
    return update.bench_update(arguments, start_peers(arguments, update.PEERS))

  parser.set_defaults(run=run, show=update.print_update)


def check_branches(arguments: argparse.Namespace) -> None:
  """Raises ValueError where there is nothing to compare."""
  if arguments.branches < 2:
    raise ValueError(f'--branches must be at least 2, found {arguments.branches}: advantages compare completions of one prompt')


def add_generate(commands: argparse._SubParsersAction) -> None:
  """The options of generation and of reinforcement learning."""
  parser = commands.add_parser('generate', help='generation and steps of reinforcement learning, alone or beside PyTorch, TRL, Tunix')
  add_peers(parser, generate.PEERS)
  add_model(parser)
  parser.add_argument('--rows', type=int, nargs='*', default=[1, 16, 64], help='numbers of prompts (default 1 16 64; none: no generation)')
  parser.add_argument('--length', type=int, default=128, help='tokens of a prompt (default 128)')
  parser.add_argument('--new', type=int, default=64, help='new tokens a prompt or completion (default 64)')
  parser.add_argument('--steps', type=int, default=2, help='steps of reinforcement learning a turn (default 2; 0: none)')
  parser.add_argument('--prompts', type=int, default=2, help='prompts a step (default 2)')
  parser.add_argument('--branches', type=int, default=8, help='completions a prompt (default 8)')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.length, arguments.new, arguments.repeats, arguments.prompts, *arguments.rows) < 1 or arguments.steps < 0:
      raise ValueError('--rows, --length, --new, --prompts and --repeats must be at least 1, --steps must not be negative')
    check_branches(arguments)
    return generate.bench_generate(arguments, start_peers(arguments, generate.PEERS))

  parser.set_defaults(run=run, show=generate.print_generate)


def add_pool(commands: argparse._SubParsersAction) -> None:
  """The pool's options."""
  parser = commands.add_parser('pool', help='worker processes that are killed, hang, leak, print and raise, beside the same without faults')
  parser.add_argument('--episodes', type=int, default=2000, help='(default 2000)')
  parser.add_argument('--workers', type=int, default=16, help='(default 16)')
  parser.add_argument('--backend', nargs='+', choices=BACKENDS, default=['process'], help='several take turns (default process)')
  parser.add_argument('--spares', type=int, default=2, help='workers that are started ahead (default 2)')
  parser.add_argument('--step-ms', type=float, default=100.0, help='what a step waits, as for a browser or a server (default 100)')
  parser.add_argument('--deadline', type=float, default=0.5, help='seconds for a reset or step (default 0.5)')
  parser.add_argument('--rate', type=float, default=0.05, help='share of resets and steps with a fault (default 0.05)')
  parser.add_argument('--retries', type=int, default=3, help='(default 3)')
  parser.add_argument('--memory-mb', type=int, default=100, help='limit of a worker (default 100)')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.episodes, arguments.workers, arguments.repeats) < 1 or min(arguments.spares, arguments.retries) < 0:
      raise ValueError('--episodes, --workers and --repeats must be at least 1, --spares and --retries must not be negative')
    if not 0 < arguments.rate < 1 or not 0 <= arguments.step_ms / 1000 < arguments.deadline:
      raise ValueError('--rate must be between 0 and 1, --step-ms shorter than --deadline')
    return bench_pool(arguments)

  parser.set_defaults(run=run, show=print_pool)


def add_terminal(commands: argparse._SubParsersAction) -> None:
  """The options of terminal environments."""
  parser = commands.add_parser('terminal', help='database tasks, and fresh machines with commands')
  parser.add_argument('--data', help='a file of database tasks (default: generated ones)')
  parser.add_argument('--count', type=int, default=100, help='how many database tasks (default 100)')
  parser.add_argument('--server', help='also on this server: mysql://user@host:port, the password in $MYSQL_PWD')
  parser.add_argument('--resets', type=int, default=20, help='fresh machines a turn (default 20)')
  parser.add_argument('--rootfs', help='the folder that envs/terminal/rootfs.py made (default: where it is looked for)')
  parser.add_argument('--image', help='also in containers of this Docker image')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.count, arguments.resets, arguments.repeats) < 1:
      raise ValueError('--count, --resets and --repeats must be at least 1')
    return bench_terminal(arguments)

  parser.set_defaults(run=run, show=print_terminal)


def add_browser(commands: argparse._SubParsersAction) -> None:
  """The options of browsers."""
  parser = commands.add_parser('browser', help='MiniWoB++ in one process')
  parser.add_argument('--backends', default='fast,browsergym', help='default fast,browsergym')
  parser.add_argument('--episodes', type=int, default=40, help='a turn (default 40)')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    if min(arguments.episodes, arguments.repeats) < 1:
      raise ValueError('--episodes and --repeats must be at least 1')
    return bench_browser(arguments)

  parser.set_defaults(run=run, show=print_browser)


def add_memory(commands: argparse._SubParsersAction) -> None:
  """The options of the memory plan."""
  parser = commands.add_parser('memory', help="what an update takes of each device's memory")
  parser.add_argument('--config', required=True, help='config file')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE', help='overrides one of its fields')
  parser.add_argument('--stages', default='stage1,stage2', help='default stage1,stage2')
  parser.add_argument('--devices', type=int, default=0, help='plan for so many processors (default: the devices found)')
  parser.add_argument('--topology', default='', metavar='NAME', help="plan for TPUs that need not be there: 'v5p:2x2x2'; needs libtpu")
  parser.add_argument('--device-gb', type=float, default=0.0, help='memory of one device: says whether the plan fits')
  parser.add_argument('--measure', action='store_true', help='also allocates, and takes two steps')

  def run(arguments: argparse.Namespace) -> dict[str, object]:
    fields = dict(part.partition('=')[::2] for part in arguments.set)
    if arguments.devices and not has_accelerator():
      jax.config.update('jax_num_cpu_devices', arguments.devices)
    return bench_memory(arguments, fields)

  parser.set_defaults(run=run, show=print_memory)


def add_overhead(commands: argparse._SubParsersAction) -> None:
  """The options of the overheads."""
  parser = commands.add_parser('overhead', help="the share of a run's training loops that is the host's own work")
  parser.add_argument('--workdir', required=True, help='of a finished training')
  parser.set_defaults(run=lambda arguments: bench_overhead(arguments.workdir), show=print_overhead)


if __name__ == '__main__':
  sys.exit(main())
