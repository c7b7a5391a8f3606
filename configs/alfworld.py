"""Mem-π on one ALFWorld household: every setting, as the README's table was measured with. The other configs start from it.

    python -m mempi_jax.train --config=configs/alfworld.py --workdir=runs/alfworld
    python -m mempi_jax.evaluate --config=configs/alfworld.py --workdir=runs/alfworld
    python -m mempi_jax.report --workdir=runs/alfworld

Results over households and seeds: configs/alfworld_sweep.py.
"""

from ml_collections import ConfigDict

from mempi_jax.models.lora import ALL_MATRICES
from mempi_jax.runtime.optim import optimizer_fields


def get_config() -> ConfigDict:
  """Every setting of an experiment."""
  config = ConfigDict()
  config.seed = 0

  config.world = ConfigDict()
  config.world.env = 'alfworld'  # of envs/suite.py, or a module of your own; the other fields of the group are its
  config.world.household = 'maple'  # its name alone decides where things are kept there
  config.world.backend = 'simulator'  # or 'engine': the real ALFWorld, a thousand times slower
  config.world.small_fraction = 0.4  # share of small rooms, where searching is cheap
  config.world.max_steps = 16
  config.world.max_steps_long = 24  # long_horizon games
  config.world.guidance_effect = 'real'  # or null, oracle, mixed: the control worlds

  config.pool = ConfigDict()  # worker processes for environments that wait, hang or leak: engines, sandboxes, browsers
  config.pool.workers = 0  # 0: they live in this process
  config.pool.backend = 'process'  # on this machine; or 'ray': on a Ray cluster
  config.pool.address = ''  # ray: of the cluster; '': the one that this machine belongs to, or a local one
  config.pool.reset_timeout = 120.0  # seconds
  config.pool.step_timeout = 60.0
  config.pool.memory_limit = 0.0  # MiB of a worker with all that it started; 0: none
  config.pool.retries = 0  # how often an episode whose environment failed is played again before it counts as ENV_ERROR

  config.agent = ConfigDict()
  config.agent.kind = 'lm'  # or chat (behind an endpoint), scripted (the environment's own player), or a module of your own
  config.agent.path = 'alfworld'  # lm: one that comes with the package (alfworld, company), or a folder
  config.agent.context_length = 512
  config.agent.max_action_tokens = 12
  config.agent.temperature = 0.5
  config.agent.batch_size = 256  # episodes side by side
  config.agent.weights = 'float32'  # or 'int8': the layers' matrices rounded
  config.agent.cache = 'model'  # of its keys and values: the dtype that it computes in; or 'int8'
  config.agent.chat = _chat()

  config.policy = ConfigDict()
  config.policy.init = 'agent'  # or 'random', or a pretrained model: a folder in Hugging Face format, a hub id, or a .gguf file
  config.policy.model = 'tiny'  # of models/presets.py: the shape when init is random, and what a pretrained model must have ('': any)
  config.policy.template = 'plain'  # or 'chat', for models that were trained to chat
  config.policy.max_prompt = 80
  config.policy.max_content = 16
  config.policy.batch_size = 256  # contents that are written side by side
  config.policy.param_dtype = 'float32'  # what is stored and trained; with dtype bfloat16, float32 here are the master weights
  config.policy.dtype = 'float32'  # of activations
  config.policy.attention = 'auto'  # or xla, cudnn, splash
  config.policy.remat = 'none'  # or dots, full: what training computes again to save memory
  config.policy.scan_layers = False  # one compiled layer for all: training compiles faster
  config.policy.lora = ConfigDict()
  config.policy.lora.rank = 0  # 0: every parameter is trained
  config.policy.lora.alpha = 32.0
  config.policy.lora.targets = ALL_MATRICES  # regular expression over module names

  config.bank = ConfigDict()
  config.bank.games = 800
  config.bank.corruption = 0.0  # share of hints that are made wrong, for an analysis
  config.bank.silent = False  # True: what the agent solves alone and teaches nothing is kept too, to learn silence from
  config.bank.dedup = 'none'  # or exact, near: entries that say the same are one
  config.bank.distill = _distill()

  config.stage1 = _sft('120 steps', evaluate_every=20, warmup='10 steps')
  config.stage1.abstain_share = 0.4  # of the contexts that the agent solves alone
  config.stage1.validation = 0.1

  config.stage2 = _stage2()

  config.eval = ConfigDict()
  config.eval.memories = ('none', 'oracle', 'rag', 'mempi_stage1', 'mempi')
  config.eval.games = ConfigDict({'heldout_games': 400, 'heldout_goals': 200, 'long_horizon': 100})
  config.eval.trained_in = ''  # working folder of another run, whose memories are evaluated here, with this run's agent; '': its own
  config.eval.threshold = 0.5  # τ
  config.eval.temperature = 0.0
  config.eval.difficulty_runs = 4
  config.eval.replay_episodes = 24

  config.deploy = _deploy()  # the household's habits move while the memories are in use: mempi_jax/deploy.py

  config.baselines = _baselines()
  config.compile_ahead = True  # every program of a stage before its first step; False: each when it is first needed

  config.mesh = _mesh()
  config.hosts = ConfigDict()  # several processes, one a machine: see runtime/hosts.py
  config.hosts.dead_after = 60.0  # seconds without a sign of life
  config.hosts.timeout = 1800.0  # seconds that hosts wait for each other's work
  config.checkpoint = ConfigDict()
  config.checkpoint.keep = 2  # the newest ones
  config.checkpoint.best = 0  # and so many of the best ones
  config.checkpoint.metric = 'val/loss'  # by this metric; each stage has its own
  config.checkpoint.mode = 'min'  # or max
  config.tracker = ''  # or wandb, mlflow, or both with a comma; metrics.jsonl and TensorBoard are always written
  config.profile = ConfigDict()
  config.profile.steps = ''  # '10:13': a trace of those steps of each stage, for TensorBoard or Perfetto

  config.control = ConfigDict()
  config.control.kind = ''  # null, mixed or oracle in the control experiments
  config.control.seeds = ()
  return config


def _sft(duration: str, evaluate_every: int, warmup: str) -> ConfigDict:
  """Supervised training on a bank's entries: stage 1, and an update of the deployment."""
  sft = ConfigDict()
  sft.duration = duration
  sft.batch_size = 32
  sft.micro_batches = 1  # parts that an update is computed in, one after the other, to save memory
  sft.evaluate_every = evaluate_every
  sft.checkpoint_every = 60
  sft.optimizer = optimizer_fields()
  sft.optimizer.learning_rate = 1e-3
  sft.optimizer.schedule = 'cosine'
  sft.optimizer.warmup = warmup
  return sft


def _stage2() -> ConfigDict:
  """Adaptation distillation (RL)."""
  stage2 = ConfigDict()
  stage2.updates = 30
  stage2.games = 960
  stage2.groups = 48
  stage2.micro_batches = 1
  stage2.replay = 2  # steps between updates on groups that were played before
  stage2.branches = 4  # K
  stage2.abstain_outcomes = 4  # m, cached once a context
  stage2.structured = True  # False: vanilla GRPO, an ablation: decisions are sampled, one advantage a branch for decision and content
  stage2.coupled = False  # True: contents get the decision's advantage too, an ablation
  stage2.branch_seeds = 'shared'  # or 'independent', for the null world
  stage2.temperature = 1.0
  stage2.length_form = 'outcome_gated'
  stage2.length_weight = 0.15  # λ
  stage2.signal = 'pooled'
  stage2.estimator = ConfigDict()  # of rollout/effects.py
  stage2.estimator.evidence = 3.0
  stage2.estimator.local = 4.0
  stage2.estimator.components = 64
  stage2.estimator.limit = 0.1
  stage2.estimator.half_life = 40.0
  stage2.decision_loss = 'regression'  # or policy_gradient, ratio: the paper's plain form
  stage2.decision_beta = 0.05
  stage2.decision_clip = 0.2
  stage2.decision_kl = 0.01
  stage2.decision_weight = 1.0
  stage2.content_gate = 'open'  # or delta, effect
  stage2.content_scale = 'raw'  # or std
  stage2.content_epsilon = 0.1
  stage2.content_negative = 0.2  # weight of negative advantages
  stage2.clip_low = 0.2
  stage2.clip_high = 0.2
  stage2.content_kl = 0.1
  stage2.content_weight = 3.0
  stage2.inner_epochs = 1
  stage2.probe_games = 180
  stage2.probe_runs = 4
  stage2.evaluate_every = 15  # steps: 1 + replay are one update
  stage2.checkpoint_every = 30
  stage2.optimizer = optimizer_fields()
  stage2.optimizer.learning_rate = 5e-4
  stage2.optimizer.warmup = '3 steps'
  return stage2


def _deploy() -> ConfigDict:
  """A changed world: mempi_jax/deploy.py."""
  deploy = ConfigDict()
  deploy.moved = ()  # share of the habits that has moved, one number a period; (): no deployment
  deploy.games = 256  # of a period
  deploy.memories = ('none', 'oracle', 'rag', 'mempi')  # as they were trained; each among eval.memories
  deploy.online = ('rag', 'mempi')  # once more, learning from the episodes of every period
  deploy.window = 2  # periods whose lessons an update learns
  deploy.check_games = 128  # the last of a period: its update is checked on them, and learns from the others
  deploy.check_runs = 3  # agent seeds a game
  deploy.margin = 0.0  # an update stays if the interval of (updated - current) lies above -margin
  deploy.sft = _sft('6 epochs', evaluate_every=60, warmup='5 steps')  # an update
  return deploy


def _mesh() -> ConfigDict:
  """How devices are arranged, and what is split over them."""
  mesh = ConfigDict()
  mesh.data = 0  # splits rows; 0: all devices that the other axes leave
  mesh.fsdp = 1  # splits rows, and parameters and optimizer moments too
  mesh.tensor = 1  # splits the products of each layer
  mesh.slices = 1  # of devices with a fast network inside and a slow one between; `data` is a multiple of them
  mesh.rules = ConfigDict()  # logical axis -> axes of the mesh, with commas; '': not split
  mesh.rules.rows = 'data,fsdp'  # of a batch
  mesh.rules.embed = 'fsdp'
  mesh.rules.heads = 'tensor'
  mesh.rules.mlp = 'tensor'
  mesh.rules.vocab = 'tensor'
  mesh.rules.rank = ''  # of a LoRA adapter
  return mesh


def _distill() -> ConfigDict:
  """What turns episodes into guidance."""
  distill = ConfigDict()
  distill.distiller = 'rules'  # the environment's; or 'contrast': failures told by successes; or 'llm': a chat model, rules where its answer is of no use
  distill.url = ''  # of an OpenAI-compatible server
  distill.model = ''  # its name there
  distill.timeout = 120.0  # seconds
  distill.retries = 4
  distill.max_tokens = 400
  distill.concurrency = 16  # requests at a time
  distill.temperature = 0.0
  distill.key_variable = 'OPENAI_API_KEY'
  distill.max_characters = 240  # of a piece of guidance
  distill.zoom = True  # first asks for the decisive steps
  return distill


def _chat() -> ConfigDict:
  """Where an agent of kind chat is asked."""
  chat = ConfigDict()
  chat.url = ''  # of an OpenAI-compatible server: http://localhost:8000/v1
  chat.model = ''  # its name there
  chat.prompt = 'alfworld'  # of agents/chat.py
  chat.concurrency = 32  # requests at a time
  chat.timeout = 120.0  # seconds
  chat.retries = 8
  chat.top_p = 1.0
  chat.key_variable = 'OPENAI_API_KEY'  # environment variable that holds the key, if the server wants one
  chat.system_message = True  # False: for models that have none
  chat.limit_field = 'max_tokens'  # what the server calls the limit on an answer's tokens
  return chat


def _baselines() -> ConfigDict:
  """What the other memories are made of; each is used, and trained, if eval.memories names it."""
  baselines = ConfigDict()
  baselines.rag = ConfigDict()
  baselines.rag.index = 'bm25'  # or an encoder: wordllama, minilm, the folder of a sentence-transformers model
  baselines.rag.key = 'goal_and_observation'  # or 'goal': what is compared
  baselines.rag.k = 1
  baselines.rag.threshold = 0.0  # least score
  baselines.mem0 = ConfigDict()
  baselines.mem0.encoder = 'wordllama'
  baselines.mem0.key = 'goal'
  baselines.mem0.k = 1
  baselines.mem0.threshold = 0.0
  baselines.mem0.shown = 5  # memories beside a new fact
  baselines.mem0.replace = True  # of the rules: a newer place takes the older one's place
  baselines.memory_r1 = ConfigDict()
  baselines.memory_r1.encoder = 'wordllama'
  baselines.memory_r1.key = 'goal'
  baselines.memory_r1.k = 1
  baselines.memory_r1.threshold = 0.0
  baselines.memory_r1.shown = 5
  baselines.memory_r1.replace = True  # of the rules that the manager begins with
  baselines.memory_r1.sft = ConfigDict()  # on what the rules would do
  baselines.memory_r1.sft.steps = 240
  baselines.memory_r1.sft.batch_size = 32
  baselines.memory_r1.sft.micro_batches = 1
  baselines.memory_r1.sft.evaluate_every = 40
  baselines.memory_r1.sft.checkpoint_every = 120
  baselines.memory_r1.sft.optimizer = optimizer_fields()
  baselines.memory_r1.sft.optimizer.learning_rate = 1e-3
  baselines.memory_r1.sft.optimizer.schedule = 'cosine'
  baselines.memory_r1.sft.optimizer.warmup = '10 steps'
  baselines.memory_r1.grpo = ConfigDict()
  baselines.memory_r1.grpo.updates = 30
  baselines.memory_r1.grpo.groups = 48
  baselines.memory_r1.grpo.micro_batches = 1
  baselines.memory_r1.grpo.branches = 4
  baselines.memory_r1.grpo.temperature = 1.0
  baselines.memory_r1.grpo.epsilon = 0.1  # added to a group's standard deviation
  baselines.memory_r1.grpo.clip = 0.2
  baselines.memory_r1.grpo.kl = 0.1
  baselines.memory_r1.grpo.evaluate_every = 30
  baselines.memory_r1.grpo.checkpoint_every = 10
  baselines.memory_r1.grpo.optimizer = optimizer_fields()
  baselines.memory_r1.grpo.optimizer.learning_rate = 1e-4
  baselines.memory_r1.grpo.optimizer.warmup = '3 steps'
  baselines.memrl = ConfigDict()  # k1, k2, α, δ, Q_init: the paper's values for ALFWorld
  baselines.memrl.encoder = 'wordllama'
  baselines.memrl.key = 'goal'
  baselines.memrl.k1 = 5
  baselines.memrl.k2 = 3
  baselines.memrl.delta = 0.5
  baselines.memrl.weight = 0.5  # λ
  baselines.memrl.rate = 0.3  # α
  baselines.memrl.initial = 0.0
  baselines.memrl.write_back = True
  baselines.memrl.epochs = 4  # over the bank's games, before the evaluation
  baselines.memrl.batch_size = 64  # games between updates of the utilities
  baselines.reasoning_bank = ConfigDict()  # k: the paper's
  baselines.reasoning_bank.encoder = 'wordllama'
  baselines.reasoning_bank.k = 1  # earlier tasks whose items are injected
  baselines.awm = ConfigDict()
  baselines.awm.encoder = 'wordllama'
  baselines.awm.k = 0  # workflows that are injected; 0: all, as in the paper
  baselines.awm.examples = 20  # successful episodes a call
  baselines.manager = ConfigDict()  # the chat model that keeps Mem0's facts in order, and makes what ReasoningBank and AWM hold
  baselines.manager.url = ''  # an OpenAI-compatible endpoint; '': the rules of memory/operations.py for Mem0, and neither of the others
  baselines.manager.model = ''
  baselines.manager.timeout = 60.0  # seconds
  baselines.manager.retries = 5
  baselines.manager.max_tokens = 512
  return baselines
