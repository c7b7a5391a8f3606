"""The guidance policy π_mem: asked with a context, it decides whether to speak and what to say (method sections 1 and 4)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mempi_jax.inference.engine import Engine
from mempi_jax.inference.requests import Request
from mempi_jax.models.decoder import Decoder, DecoderConfig
from mempi_jax.models.hf import Place, load_model, save_model
from mempi_jax.models.lora import ADAPTER_CONFIG, Adapter, LoraConfig, apply_lora, load_peft, merge_lora, read_peft_config, save_peft
from mempi_jax.models.vocabulary import check_vocabulary
from mempi_jax.policy.pretrained import load_pretrained
from mempi_jax.policy.score import decision_logit
from mempi_jax.policy.template import policy_prompt
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.runtime import files, hosts
from mempi_jax.runtime.rng import host_seed
from mempi_jax.types import Context, Decision, Guidance, Task

SETTINGS = 'policy.json'
BATCH = 64  # contexts a forward pass that decides: one compiled shape for any number of contexts


@functools.partial(jax.jit, static_argnames=('config', 'generate_id', 'abstain_id'))
def _decision_logits(config: DecoderConfig, params: Any, tokens: jax.Array, last: jax.Array, *, generate_id: int, abstain_id: int) -> jax.Array:
  """Prompts i32[B, T], right-padded, last i32[B] index of their last token -> l f32[B]."""
  time = tokens.shape[1]
  positions = jnp.broadcast_to(jnp.arange(time), tokens.shape)
  hidden = Decoder(config).apply({'params': params}, tokens, positions, None)
  return decision_logit(params, hidden[jnp.arange(tokens.shape[0]), last], generate_id, abstain_id)


@dataclasses.dataclass(frozen=True)
class Adaptation:
  """A LoRA adapter of a policy: its shape, its factors, and the folder or hub id of the frozen model below it."""

  lora: LoraConfig
  adapter: Adapter
  base: str


class GuidancePolicy:
  """π_mem with its tokenizer. P(GENERATE | x) = sigmoid(l): the decision is between its two tokens alone [O].

  Args:
    config: the decoder's shape.
    params: its parameters, in the unrolled layout; with an adaptation those of the frozen model.
    tokenizer: with the decisions' tokens.
    max_prompt, max_content: in tokens.
    template: of policy/template.py.
    adaptation: a LoRA adapter, which is then what training changes.
    grown: rows that the embedding got for the decisions, beyond those of the pretrained model.
    batch_size: contents that are written side by side.
  """

  def __init__(
    self,
    config: DecoderConfig,
    params: Any,
    tokenizer: Tokenizer,
    *,
    max_prompt: int,
    max_content: int,
    template: str = 'plain',
    adaptation: Adaptation | None = None,
    grown: int = 0,
    batch_size: int = 256,
  ):
    check_vocabulary(config.vocab_size, tokenizer.vocab_size)
    self.config, self.tokenizer, self.template = config, tokenizer, template
    self.generate_id, self.abstain_id = tokenizer.decisions
    self.max_prompt, self.max_content = max_prompt, max_content
    self.adaptation, self.grown, self.batch_size = adaptation, grown, batch_size
    self._engines: list[Engine] = []  # none before it is needed, then one for this policy and all its later states
    self.frozen = params if adaptation else {}
    self.trained = adaptation.adapter if adaptation else params
    self.params = self.assemble(self.frozen, self.trained)

  def assemble(self, frozen: Any, trained: Any) -> Any:
    """The decoder's parameters from `frozen` and `trained` (both in one layout): a pure function, for use inside a compiled one."""
    return apply_lora(self.config, self.adaptation.lora, frozen, trained) if self.adaptation else trained

  def with_trained(self, trained: Any) -> GuidancePolicy:
    """The same policy with another state of what training changes: the parameters, or the adapter where there is one."""
    changed = copy.copy(self)
    changed.trained = trained
    if self.adaptation:
      changed.adaptation = dataclasses.replace(self.adaptation, adapter=trained)
    changed.params = changed.assemble(changed.frozen, trained)
    return changed

  def prompt(self, context: Context) -> list[int]:
    """The prompt's ids. Raises ValueError when the context is longer than the policy was made for, with both lengths."""
    ids = policy_prompt(self.tokenizer, context, self.template)
    if len(ids) > self.max_prompt:
      raise ValueError(f'the context of task {context.task.task_id!r} has {len(ids)} tokens, the policy takes at most {self.max_prompt}')
    return ids

  def decision_logits(self, contexts: Sequence[Context]) -> np.ndarray:
    """l = logit[GENERATE] − logit[ABSTAIN] for each context, f32[len(contexts)].

    Raises ValueError for a context that is too long, FloatingPointError for parameters that give no finite number.
    """
    prompts = [self.prompt(context) for context in contexts]
    logits = []
    for start in range(0, len(prompts), BATCH):
      part = prompts[start : start + BATCH]
      tokens = np.zeros((BATCH, self.max_prompt), np.int32)
      for row, ids in enumerate(part):
        tokens[row, : len(ids)] = ids
      last = np.array([len(ids) - 1 for ids in part] + [0] * (BATCH - len(part)), np.int32)
      out = _decision_logits(
        self.config, self.params, tokens, last, generate_id=self.generate_id, abstain_id=self.abstain_id
      )
      logits.append(np.asarray(out)[: len(part)])
    decisions = np.concatenate(logits) if logits else np.zeros(0, np.float32)
    if not np.isfinite(decisions).all():
      row = int(np.flatnonzero(~np.isfinite(decisions))[0])
      raise FloatingPointError(f'the decision logit of task {contexts[row].task.task_id!r} is {decisions[row]}: the parameters are broken')
    return decisions

  def p_generate(self, contexts: Sequence[Context]) -> np.ndarray:
    """P(GENERATE | x) = sigmoid(l) for each context, f64[len(contexts)]."""
    return np.exp(-np.logaddexp(0.0, -self.decision_logits(contexts).astype(np.float64)))

  def contents(self, contexts: Sequence[Context], seeds: Sequence[int], *, branches: int, temperature: float) -> list[list[Guidance]]:
    """Content after a forced `[GENERATE]`: `branches` samples a context, branch k drawn with a mix of the context's seed and k.

    The prompt is computed once and fanned out to its branches. Guidance.logps are those under this policy at temperature 1, of the
    content and of the end-of-sequence, whichever way the content ended. Several hosts share the contexts.
    """
    check_seeds(contexts, seeds)

    def write(part: Sequence[tuple[Context, int]]) -> list[list[Guidance]]:
      mine = [context for context, _ in part]
      return self._write(mine, [seed for _, seed in part], self.p_generate(mine), branches=branches, temperature=temperature)

    return hosts.spread(write, list(zip(contexts, seeds, strict=True)))

  def answer(self, contexts: Sequence[Context], *, threshold: float, temperature: float = 0.0, seed: int = 0) -> list[Guidance]:
    """The policy's own guidance: it generates where P(GENERATE | x) >= threshold, and abstains elsewhere.

    A threshold of 0 always generates, one above 1 never does. Where it samples, the same seed and task give the same content,
    whatever else is asked. Several hosts share the contexts.
    """
    return hosts.spread(lambda part: self._answer(part, threshold, temperature, seed), contexts)

  def _answer(self, contexts: Sequence[Context], threshold: float, temperature: float, seed: int) -> list[Guidance]:
    p_generate = self.p_generate(contexts)
    speaking = [i for i, p in enumerate(p_generate) if p >= threshold]
    asked = [contexts[i] for i in speaking]
    seeds = [host_seed(seed, 'answer', context.task.env, context.task.task_id, context.task.seed) for context in asked]
    contents = self._write(asked, seeds, p_generate[speaking], branches=1, temperature=temperature)
    spoken = {i: group[0] for i, group in zip(speaking, contents, strict=True)}
    return [spoken.get(i, Guidance(Decision.ABSTAIN, p_generate=float(p), source='mempi')) for i, p in enumerate(p_generate)]

  def _write(
    self, contexts: Sequence[Context], seeds: Sequence[int], p_generate: np.ndarray, *, branches: int, temperature: float
  ) -> list[list[Guidance]]:
    requests = [
      Request(
        self.prompt(context),
        self.max_content + 1,  # and end-of-sequence
        seed=host_seed(seed, 'branch', k),
        temperature=temperature,
        stop=((self.tokenizer.eos,),),
        forced=(self.generate_id,),
      )
      for context, seed in zip(contexts, seeds, strict=True)
      for k in range(branches)
    ]
    guidances = []
    self.engine.forget()  # the same question gives the same numbers, to the last bit
    for i, result in enumerate(self.engine.generate(requests)):
      # Content that ran out of room is cut and closed: it is scored as written, and its length counts in full.
      written, logps = result.tokens[1:], result.model_logps[1:]
      content = written[:-1] if written[-1] == self.tokenizer.eos else written[: self.max_content]
      text = ' '.join(self.tokenizer.decode(list(content)).split())
      logps = (*logps[: len(content)], result.stop_logp)
      guidances.append(Guidance(Decision.GENERATE, text, content, logps, float(p_generate[i // branches]), 'mempi'))
    return [guidances[start : start + branches] for start in range(0, len(guidances), branches)]

  @property
  def engine(self) -> Engine:
    """What it writes with: one engine, and one cache, for all states of a policy in training."""
    if not self._engines:
      max_length = self.max_prompt + self.max_content + 2  # decision and end-of-sequence besides the content
      self._engines.append(Engine(self.config, self.params, slots=self.batch_size, max_length=max_length))
    (engine,) = self._engines
    if engine.params is not self.params:
      engine.params = self.params
    return engine

  def guide(self, *, goal: str, observation: str, threshold: float = 0.5) -> Guidance:
    """Guidance for one context given as text; control tokens in it are plain text."""
    context = Context(Task('', '', '', 0), goal, observation)
    return self.answer([context], threshold=threshold)[0]

  def save(self, folder: str | Path, *, merge: bool = False, dtype: str = 'float32') -> None:
    """Writes a folder that `load_policy` reads: model or LoRA adapter, tokenizer, policy.json; all but the last in Hugging Face's formats.

    `merge` writes an adapted policy as a whole model; `dtype` is that of a whole model's file.
    """
    if self.adaptation and not merge:
      save_peft(folder, self.adaptation.lora, self.adaptation.adapter, self.adaptation.base)
    else:
      save_model(folder, self.config, merge_lora(self.params), dtype=dtype, extra_fields=self.tokenizer.token_ids())
    self.tokenizer.save(folder)
    settings = {'max_prompt': self.max_prompt, 'max_content': self.max_content, 'template': self.template, 'grown': self.grown}
    files.write_json(Path(folder) / SETTINGS, settings)  # last: a folder with it is whole

  def fingerprint(self) -> str:
    """A hash of everything that decides what this policy says: parameters, shape, tokenizer and limits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.asarray(leaf).tobytes())
    digest.update(repr((self.config, self.tokenizer.fingerprint(), self.max_prompt, self.max_content, self.template)).encode())
    return digest.hexdigest()[:16]


def check_seeds(contexts: Sequence[Context], seeds: Sequence[int]) -> None:
  """Raises ValueError unless there is one seed a context."""
  if len(contexts) != len(seeds):
    raise ValueError(f'{len(contexts)} contexts and {len(seeds)} seeds: expected one seed a context')


def load_policy(
  folder: str | Path,
  *,
  param_dtype: str = 'float32',
  dtype: str = 'float32',
  attention: str = 'auto',
  batch_size: int = 256,
  place: Place | None = None,
) -> GuidancePolicy:
  """A policy from a folder that `GuidancePolicy.save` wrote.

  Args:
    folder: see `find_policy`.
    param_dtype: of the parameters in memory, whatever the files hold.
    dtype, attention: how the decoder computes, see `DecoderConfig`.
    batch_size: see `GuidancePolicy`.
    place: where parameters live, see `load_model`.

  Raises FileNotFoundError naming what is missing, ValueError naming a file that is broken or does not fit the others.
  """
  path = Path(folder) / SETTINGS
  if not path.is_file():
    raise FileNotFoundError(f'no guidance policy at {folder}: expected policy.json beside the weights or the adapter')
  settings = files.read_json(path)
  names = ['grown', 'max_content', 'max_prompt', 'template']
  if not isinstance(settings, dict) or sorted(settings) != names:
    raise ValueError(f'{path}: expected the fields {", ".join(names)}, found {settings!r:.200}')
  if (Path(folder) / ADAPTER_CONFIG).is_file():
    _, base = read_peft_config(folder)
    config, params, tokenizer, _ = load_pretrained(base, dtype=param_dtype, place=place)
    lora, adapter = load_peft(folder, config)
    adaptation = Adaptation(lora, adapter, base)
  else:
    config, params = load_model(folder, dtype=param_dtype, place=place)
    tokenizer, adaptation = Tokenizer.load(folder), None
  config = dataclasses.replace(config, dtype=dtype, attention=attention)
  return GuidancePolicy(config, params, tokenizer, adaptation=adaptation, batch_size=batch_size, **settings)


def find_policy(path: str | Path) -> Path:
  """The folder of a policy: `path` itself, or, where `path` is a working folder, the policy of its last finished stage.

  Raises FileNotFoundError, naming the places that were looked at.
  """
  path = Path(path)
  places = [path, path / 'stage2' / 'policy', path / 'stage1' / 'policy']
  for place in places:
    if (place / SETTINGS).is_file():
      return place
  if not path.is_dir():
    raise FileNotFoundError(f'no guidance policy at {path}: there is no such folder')
  raise FileNotFoundError(f'no guidance policy at {path}: no {SETTINGS} in it, nor in its stage2/policy or stage1/policy')
