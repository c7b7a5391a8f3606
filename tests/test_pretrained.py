"""A pretrained model as guidance policy: the real trainer from a Hugging Face folder, with and without LoRA, and the way out again."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from mempi_jax import export as export_lib
from mempi_jax import train as train_lib
from mempi_jax.config import ConfigError, load_config, resolve
from mempi_jax.models.decoder import count_params, init_params, stack_layers
from mempi_jax.models.hf import load_model, save_model
from mempi_jax.models.lora import LoraConfig, init_lora
from mempi_jax.models.presets import differences, preset
from mempi_jax.policy.policy import load_policy
from mempi_jax.policy.pretrained import load_pretrained
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.runtime.checkpoint import Checkpointer
from mempi_jax.training.objectives import stage2_loss
from mempi_jax.training.update import forward_loss
from mempi_jax.types import Context, Task

CONFIGS = Path(__file__).parents[1] / 'configs'
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CONTEXTS = [Context(Task('alfworld', str(i), 'train', i), f'put a mug in shelf {i}', 'You see a drawer 1 and a shelf 1.') for i in range(3)]

SMALL = {
  'world.household': 'test-0',
  'agent.batch_size': 32,
  'bank.games': 24,
  'stage1.duration': '6 steps',
  'stage1.batch_size': 8,
  'stage1.validation': 0.2,
  'stage1.evaluate_every': 3,
  'stage1.checkpoint_every': 3,
  'stage1.optimizer.warmup': '1 steps',
  'stage2.updates': 1,
  'stage2.replay': 0,
  'stage2.games': 8,
  'stage2.groups': 8,
  'stage2.branches': 2,
  'stage2.abstain_outcomes': 1,
  'stage2.probe_games': 6,
  'stage2.probe_runs': 1,
  'stage2.checkpoint_every': 1,
  'stage2.optimizer.warmup': '0 steps',
}


def pretrained_tokenizer() -> Tokenizer:
  """A byte-level tokenizer as chat models have it: no decisions among its tokens."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=['<|im_start|>', '<|im_end|>'], initial_alphabet=alphabet, show_progress=False)
  backend.train_from_iterator(['You see a drawer 1, and a shelf 1. put a mug in shelf. the mug is usually in the drawer.'] * 9, trainer)
  return Tokenizer(backend, {'eos_token': '<|im_end|>'}, CHAT)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A folder as the hub has it: a Llama without room for more tokens."""
  folder = tmp_path_factory.mktemp('hub') / 'tiny-llama'
  tokenizer = pretrained_tokenizer()
  config = preset('dummy', tokenizer.vocab_size)
  save_model(folder, config, init_params(config, jax.random.key(0)))
  tokenizer.save(folder)
  return folder


def arguments(workdir, init, **overrides):
  fields = SMALL | {'policy.init': init, 'policy.model': '', 'policy.template': 'chat', 'policy.max_prompt': 700, 'policy.max_content': 64}
  fields |= {name.replace('__', '.'): value for name, value in overrides.items()}
  return [f'--config={CONFIGS / "quickstart.py"}', f'--workdir={workdir}', *(f'--config.{name}={value}' for name, value in fields.items())]


def test_a_lora_policy_is_trained_saved_loaded_and_exported(pretrained, tmp_path, capsys):
  train_lib.main(arguments(tmp_path / 'run', pretrained, policy__lora__rank=2, policy__scan_layers=True, policy__remat='full'))
  folder = tmp_path / 'run' / 'stage2' / 'policy'
  assert {'adapter_config.json', 'adapter_model.safetensors', 'policy.json', 'tokenizer.json'} <= {path.name for path in folder.iterdir()}
  assert not (folder / 'model.safetensors').exists()
  # The checkpoint holds the adapter and its moments, and nothing of the frozen model.
  policy = load_policy(folder)
  description = json.loads((tmp_path / 'run' / 'stage2' / 'checkpoints' / '00000001' / 'checkpoint.json').read_text())
  sizes = [np.prod(json.loads('[' + text.split('[')[1]) or [1]) for name, text in description['leaves'].items() if name.startswith('params')]
  assert sum(sizes) == count_params(policy.trained) < count_params(policy.frozen) / 4
  # What is trained did change, the decisions' rows among it.
  first = load_pretrained(str(pretrained))
  assert np.abs(policy.trained['layer_0']['q_proj']['b']).max() > 0
  rows = np.asarray(policy.trained['tokens']['embedding'])
  assert np.abs(rows - np.asarray(first[1]['embedding'])[list(policy.tokenizer.decisions)]).max() > 0 and np.abs(rows[0] - rows[1]).max() > 0
  # Exported, as an adapter and merged, it answers the same.
  expected = policy.decision_logits(CONTEXTS)
  export_lib.main(['--policy', str(folder), '--out', str(tmp_path / 'adapter')])
  export_lib.main(['--policy', str(tmp_path / 'run'), '--out', str(tmp_path / 'merged'), '--merge_lora'])
  assert 'the embedding grew by 2 rows' in capsys.readouterr().out
  for name in ('adapter', 'merged'):
    np.testing.assert_allclose(load_policy(tmp_path / name).decision_logits(CONTEXTS), expected, atol=1e-4)
  config, params = load_model(tmp_path / 'merged')
  assert params['embedding'].shape == (config.vocab_size, 32) and config.vocab_size == first[0].vocab_size
  with pytest.raises(SystemExit):
    export_lib.main(['--policy', str(folder), '--out', str(tmp_path / 'merged')])
  assert 'not empty' in capsys.readouterr().err


def test_a_whole_model_in_half_precision_goes_on_after_its_first_stage(pretrained, tmp_path):
  settings = dict(policy__param_dtype='bfloat16', policy__dtype='bfloat16', policy__scan_layers=True)
  train_lib.main(arguments(tmp_path / 'run', pretrained, **settings, stage2__updates=0))
  policy = load_policy(tmp_path / 'run' / 'stage1' / 'policy', param_dtype='bfloat16', dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(policy.params)} == {jnp.dtype('bfloat16')}
  state = Checkpointer(tmp_path / 'run' / 'stage1' / 'checkpoints')
  description = json.loads((state.folder / '00000006' / 'checkpoint.json').read_text())['leaves']
  assert {text.split('[')[0] for name, text in description.items() if '/mu/' in name or '/nu/' in name} == {'float32'}
  assert {text.split('[')[0] for name, text in description.items() if name.startswith('params')} == {'bfloat16'}
  with pytest.raises(SystemExit):
    train_lib.main(arguments(tmp_path / 'run', pretrained))  # another config: refused, not mixed


def test_padding_rows_are_taken_before_the_embedding_grows(pretrained, tmp_path):
  config, params, tokenizer, grown = load_pretrained(str(pretrained))
  known = tokenizer.vocab_size - 2
  assert grown == 2 and config.vocab_size == tokenizer.vocab_size
  np.testing.assert_allclose(params['embedding'][known], params['embedding'][:known].mean(0), atol=1e-6)
  roomy = preset('dummy', known + 7)
  save_model(tmp_path / 'roomy', roomy, init_params(roomy, jax.random.key(0)))
  pretrained_tokenizer().save(tmp_path / 'roomy')
  config, params, _, grown = load_pretrained(str(tmp_path / 'roomy'))
  assert grown == 0 and config == roomy
  np.testing.assert_allclose(params['embedding'][known + 1], params['embedding'][:known].mean(0), atol=1e-6)
  small = preset('dummy', known - 1)
  save_model(tmp_path / 'small', small, init_params(small, jax.random.key(0)))
  pretrained_tokenizer().save(tmp_path / 'small')
  (tmp_path / 'small' / 'model.safetensors').unlink()  # found before the weights are looked at
  with pytest.raises(ValueError, match=f'the tokenizer has {known} tokens, the model only {known - 1}'):
    load_pretrained(str(tmp_path / 'small'))


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'policy.lora.rank': 4}, "policy.lora needs a pretrained model .*found policy.init 'agent'"),
    ({'policy.init': '{pretrained}', 'policy.model': 'smollm2_135m'}, 'is not the policy.model smollm2_135m: vocab_size'),
    ({'policy.init': '{pretrained}'}, "is not the policy.model tiny: embed_dim 32 .expected 128.*policy.model '' takes any shape"),
    ({'policy.init': '/nowhere', 'policy.model': ''}, 'no checkpoint at /nowhere'),
  ],
)
def test_settings_that_cannot_be(pretrained, overrides, message):
  config = load_config(CONFIGS / 'quickstart.py', {n: str(v).format(pretrained=pretrained) if isinstance(v, str) else v for n, v in overrides.items()})

  class Stub:
    pass

  world = Stub()
  world.config, world.agent, world.place = resolve(config), Stub(), None
  lm = world.agent
  lm.config, lm.params, lm.tokenizer = preset('dummy', 400), {}, None
  with pytest.raises((ConfigError, FileNotFoundError), match=message):
    train_lib.initial_policy(world)


@pytest.mark.parametrize(
  'path, trained_millions',
  [
    ('smollm2_135m_alfworld.py', 134.5),
    ('qwen2_5_7b_alfworld.py', 40.4),
    ('qwen2_5_7b_alfworld.py:mesh=v5e-16', 40.4),
    ('qwen2_5_7b_alfworld.py:mesh=v5p-8,full=true', 7615.6),
  ],
)
def test_configs_of_real_models_resolve_and_fit_together(path, trained_millions):
  """Shapes alone: the loss of both stages and its gradient, in the layout and the precision of the config."""
  config = resolve(load_config(CONFIGS / path))
  settings = config.policy
  shape = preset(settings.model)
  compute = dataclasses.replace(
    shape, dtype=settings.dtype, attention=settings.attention, remat=settings.remat, scan_layers=settings.scan_layers
  )
  params = jax.eval_shape(lambda: init_params(shape, jax.random.key(0), settings.param_dtype))
  policy, trained, frozen = object.__new__(train_lib.GuidancePolicy), params, {}
  policy.config, policy.generate_id, policy.abstain_id, policy.adaptation = compute, shape.vocab_size - 2, shape.vocab_size - 1, None
  if settings.lora.rank:
    lora = LoraConfig(settings.lora.rank, settings.lora.alpha, settings.lora.targets, tokens=(policy.generate_id, policy.abstain_id))
    frozen, trained = params, jax.eval_shape(lambda params: init_lora(shape, lora, params, jax.random.key(0)), params)
    policy.adaptation = train_lib.Adaptation(lora, trained, settings.init)
  assert round(count_params(trained) / 1e6, 1) == trained_millions
  if settings.scan_layers:
    frozen = jax.eval_shape(stack_layers, frozen) if frozen else {}
    trained = jax.eval_shape(stack_layers, trained)
  groups, branches = config.mesh.fsdp, config.stage2.branches
  width = branches * (settings.max_content + 1)
  time = settings.max_prompt + branches * (settings.max_content + 2)
  i32, f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32), functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  arrays = {name: i32((groups, time)) for name in ('tokens', 'branch', 'positions')}
  arrays |= {name: i32((groups, width)) for name in ('score_index', 'targets')} | {'decision_index': i32((groups,))}
  arrays |= {name: f32((groups, width)) for name in ('content_mask', 'content_adv', 'old_logps', 'ref_logps')}
  arrays |= {name: f32((groups,)) for name in ('decision_target', 'decision_adv', 'ref_logit', 'old_logit')}
  arrays['valid'] = jax.ShapeDtypeStruct((groups,), jnp.bool_)
  loss = forward_loss(compute, (policy.generate_id, policy.abstain_id), functools.partial(stage2_loss, config.stage2), policy.assemble)
  gradients = jax.eval_shape(lambda *arguments: jax.grad(loss, has_aux=True)(*arguments)[0], trained, frozen, arrays)
  assert jax.tree.map(lambda leaf: leaf.shape, gradients) == jax.tree.map(lambda leaf: leaf.shape, trained)
  assert differences(compute, shape) == ''

