"""The guidance policy π_mem: asked with a context, it decides whether to speak and what to say (method sections 1 and 4)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mempi_jax.inference.engine import Rows
from mempi_jax.models.decoder import Decoder, DecoderConfig
from mempi_jax.models.presets import load_model, save_model
from mempi_jax.policy.template import policy_prompt
from mempi_jax.policy.tokenizer import Tokenizer
from mempi_jax.types import Context, Decision, Guidance, Task

BATCH = 64  # contexts a forward pass: one compiled shape for any number of contexts


@functools.partial(jax.jit, static_argnames=('config', 'generate_id', 'abstain_id'))
def _decision_logits(config: DecoderConfig, params: Any, tokens: jax.Array, last: jax.Array, *, generate_id: int, abstain_id: int) -> jax.Array:
  """Prompts i32[B, T], right-padded, last i32[B] index of their last token -> l f32[B]."""
  time = tokens.shape[1]
  positions = jnp.broadcast_to(jnp.arange(time), tokens.shape)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((time, time), bool)), (tokens.shape[0], time, time))
  hidden = Decoder(config).apply({'params': params}, tokens, positions, mask)
  pair = params['embedding'][jnp.array([generate_id, abstain_id])]
  decision = hidden[jnp.arange(tokens.shape[0]), last] @ pair.T
  return decision[:, 0] - decision[:, 1]


class GuidancePolicy:
  """π_mem with its tokenizer. P(GENERATE | x) = sigmoid(l): the decision is between its two tokens alone [O]."""

  def __init__(self, config: DecoderConfig, params: Any, tokenizer: Tokenizer, *, max_prompt: int, max_content: int):
    self.config, self.params, self.tokenizer = config, params, tokenizer
    self.max_prompt, self.max_content = max_prompt, max_content

  def prompt(self, context: Context) -> list[int]:
    """The prompt's ids. Raises ValueError when the context is longer than the policy was made for, with both lengths."""
    ids = policy_prompt(self.tokenizer, context)
    if len(ids) > self.max_prompt:
      raise ValueError(f'the context of task {context.task.task_id!r} has {len(ids)} tokens, the policy takes at most {self.max_prompt}')
    return ids

  def decision_logits(self, contexts: Sequence[Context]) -> np.ndarray:
    """l = logit[GENERATE] − logit[ABSTAIN] for each context, f32[len(contexts)]."""
    prompts = [self.prompt(context) for context in contexts]
    logits = []
    for start in range(0, len(prompts), BATCH):
      part = prompts[start : start + BATCH]
      tokens = np.zeros((BATCH, self.max_prompt), np.int32)
      for row, ids in enumerate(part):
        tokens[row, : len(ids)] = ids
      last = np.array([len(ids) - 1 for ids in part] + [0] * (BATCH - len(part)), np.int32)
      out = _decision_logits(
        self.config, self.params, tokens, last, generate_id=self.tokenizer.generate, abstain_id=self.tokenizer.abstain
      )
      logits.append(np.asarray(out)[: len(part)])
    return np.concatenate(logits) if logits else np.zeros(0, np.float32)

  def contents(self, contexts: Sequence[Context], seeds: Sequence[int], *, branches: int, temperature: float) -> list[list[Guidance]]:
    """Content after a forced `[GENERATE]`: `branches` samples a context, branch k drawn with the context's seed + k.

    The prompt is computed once and fanned out to its branches. Guidance.logps are those under this policy at temperature 1.
    """
    p_generate = 1.0 / (1.0 + np.exp(-self.decision_logits(contexts).astype(np.float64)))
    results: list[list[Guidance]] = []
    for start in range(0, len(contexts), BATCH):
      part = contexts[start : start + BATCH]
      spare = BATCH - len(part)
      # Decision and end-of-sequence need two tokens besides the content's.
      rows = Rows(self.config, self.params, BATCH, self.max_prompt + self.max_content + 2)
      rows.prefill([self.prompt(context) for context in part] + [[]] * spare)
      rows.select(np.repeat(np.arange(BATCH), branches))
      chunks = [[self.tokenizer.generate]] * (len(part) * branches) + [[]] * (spare * branches)
      part_seeds = [seed + k for seed in seeds[start : start + BATCH] for k in range(branches)] + [0] * (spare * branches)
      out = rows.generate(chunks, part_seeds, max_new=self.max_content + 1, stop=self.tokenizer.eos, temperature=temperature)
      for i in range(len(part)):
        group = []
        for tokens, logps in list(zip(out.tokens, out.logps, strict=True))[i * branches : (i + 1) * branches]:
          # Content that ran out of room is cut and closed: it is scored as written, and its length counts in full.
          if tokens[-1] == self.tokenizer.eos:
            content, logps = tokens[:-1], tuple(logps)
          else:
            content, logps = tokens[: self.max_content], tuple(logps[: self.max_content])
          text = ' '.join(self.tokenizer.decode(content).split())
          group.append(Guidance(Decision.GENERATE, text, tuple(content), logps, float(p_generate[start + i]), 'mempi'))
        results.append(group)
    return results

  def answer(self, contexts: Sequence[Context], *, threshold: float, temperature: float = 0.0, seed: int = 0) -> list[Guidance]:
    """The policy's own guidance: it generates where P(GENERATE | x) >= threshold, and abstains elsewhere."""
    p_generate = 1.0 / (1.0 + np.exp(-self.decision_logits(contexts).astype(np.float64)))
    speaking = [i for i, p in enumerate(p_generate) if p >= threshold]
    contents = self.contents([contexts[i] for i in speaking], [seed] * len(speaking), branches=1, temperature=temperature)
    spoken = {i: group[0] for i, group in zip(speaking, contents, strict=True)}
    return [spoken.get(i, Guidance(Decision.ABSTAIN, p_generate=float(p), source='mempi')) for i, p in enumerate(p_generate)]

  def guide(self, *, goal: str, observation: str, threshold: float = 0.5) -> Guidance:
    """Guidance for one context given as text; control tokens in it are plain text."""
    context = Context(Task('', '', '', 0), goal, observation)
    return self.answer([context], threshold=threshold)[0]

  def save(self, folder: str | Path) -> None:
    """Writes weights, configuration and tokenizer to a folder that `load_policy` reads."""
    save_model(folder, self.config, self.params)
    self.tokenizer.save(folder)
    settings = {'max_prompt': self.max_prompt, 'max_content': self.max_content}
    (Path(folder) / 'policy.json').write_text(json.dumps(settings) + '\n', encoding='utf-8')

  def fingerprint(self) -> str:
    """A hash of the parameters."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def load_policy(folder: str | Path) -> GuidancePolicy:
  """A policy from a folder that `GuidancePolicy.save` wrote; a FileNotFoundError names what is missing."""
  settings = Path(folder) / 'policy.json'
  if not settings.is_file():
    raise FileNotFoundError(f'no guidance policy at {folder}: expected policy.json beside config.json and model.safetensors')
  config, params = load_model(folder)
  return GuidancePolicy(config, params, Tokenizer.load(folder), **json.loads(settings.read_text(encoding='utf-8')))
