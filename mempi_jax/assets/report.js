// The episode browser of the report. The page is whole without it.
//
// Its data is one JSON object, gzipped and in base64, inside the element #episodes-data; report.py's `browser_data` says what it holds.
// Every text of an episode comes from outside: it only ever becomes text nodes, never markup.
'use strict';

(async () => {
  const section = document.getElementById('browser');
  const embedded = document.getElementById('episodes-data');
  if (!section || !embedded) return;
  const status = document.getElementById('browser-status');
  if (typeof DecompressionStream === 'undefined') {
    status.textContent = 'This browser cannot unpack the episodes; one from 2023 or later can.';
    return;
  }

  status.textContent = 'Unpacking the episodes …';

  // The data.

  const packed = atob(embedded.textContent.trim());
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const data = await new Response(stream).json();
  embedded.remove();

  const { strings, memories, splits, runs, statuses } = data;
  const size = data.memory.length;
  const SOLVED = statuses.indexOf('success');
  const ENV_ERROR = statuses.indexOf('env_error');
  const NONE = memories.findIndex((memory) => memory.name === 'none');
  const HELPED = 0, HURT = 1, SAME = 2, NOT_COMPARED = 3;
  const EFFECTS = ['helped', 'hurt', 'no difference', 'not compared'];
  const EFFECT_SIGNS = ['▲ helped', '▼ hurt', '= same', ''];

  // The episodes of each game, and with them the one that the agent plays alone.
  const siblings = [];
  for (let i = 0; i < size; i++) (siblings[data.game[i]] ||= []).push(i);
  const aloneIn = siblings.map((episodes) => episodes.find((i) => data.memory[i] === NONE) ?? -1);

  const effect = new Uint8Array(size);
  const outcome = new Uint8Array(size);
  for (let i = 0; i < size; i++) {
    const alone = aloneIn[data.game[i]];
    outcome[i] = data.status[i] === SOLVED ? 0 : data.status[i] === ENV_ERROR ? 2 : 1;
    const comparable = alone >= 0 && alone !== i && data.status[i] !== ENV_ERROR && data.status[alone] !== ENV_ERROR;
    const benefit = comparable ? (data.status[i] === SOLVED) - (data.status[alone] === SOLVED) : 0;
    effect[i] = !comparable ? NOT_COMPARED : benefit > 0 ? HELPED : benefit < 0 ? HURT : SAME;
  }

  const idOf = (i) => `${memories[data.memory[i]].name}/${strings[data.task[i]]}@${data.seed[i]}`;

  // Filters. Each facet gives every episode a code; -1 is any.

  const facets = [
    { name: 'run', codes: data.run, options: runs },
    { name: 'split', codes: data.split, options: splits.map((split) => split.label) },
    { name: 'memory', codes: data.memory, options: memories.map((memory) => memory.label) },
    { name: 'decision', codes: data.decision, options: ['abstains', 'generates'] },
    { name: 'outcome', codes: outcome, options: ['solved', 'not solved', 'environment error'] },
    { name: 'effect', codes: effect, options: EFFECTS },
  ].map((facet) => ({ ...facet, chosen: -1, select: section.querySelector(`[data-facet="${facet.name}"]`) }));
  const facet = Object.fromEntries(facets.map((each) => [each.name, each]));

  // Orders: the value to sort by, largest first unless `ascending`. Where there is no value, last; equal ones stay as recorded.
  const rank = [2, 0, 1, NaN]; // of an effect: helped, hurt, no difference
  const orders = {
    recorded: { label: 'as recorded', value: (i) => -i },
    helped: { label: 'benefit, helped first', value: (i) => rank[effect[i]] },
    hurt: { label: 'benefit, hurt first', value: (i) => rank[effect[i]], ascending: true },
    likely: { label: 'P(GENERATE), high to low', value: (i) => data.p_generate[i] ?? NaN },
    unlikely: { label: 'P(GENERATE), low to high', value: (i) => data.p_generate[i] ?? NaN, ascending: true },
    long: { label: 'guidance tokens, many to few', value: (i) => data.guidance_tokens[i] },
    short: { label: 'guidance tokens, few to many', value: (i) => data.guidance_tokens[i], ascending: true },
  };
  const orderSelect = document.getElementById('browser-order');
  const wordsInput = document.getElementById('browser-words');
  let order = 'recorded';

  // Each order is worked out once; filtering then keeps it.
  function sorted(name) {
    const { value, ascending } = orders[name];
    if (!orders[name].episodes) {
      const values = Float64Array.from({ length: size }, (_, i) => value(i) * (ascending ? -1 : 1));
      const compare = (a, b) => (isNaN(values[a]) - isNaN(values[b])) || (values[b] - values[a]) || a - b;
      orders[name].episodes = Uint32Array.from({ length: size }, (_, i) => i).sort(compare);
    }
    return orders[name].episodes;
  }

  // Free text. Equal texts are stored once, so a word is looked for once in each; then every episode asks whether one of its texts has it.
  let lower, ids;

  function episodesWith(words) {
    if (!words.length) return null;
    lower ||= strings.map((text) => text.toLowerCase());
    ids ||= Array.from({ length: size }, (_, i) => idOf(i).toLowerCase());
    const found = new Uint8Array(size).fill(1);
    for (const word of words) {
      const has = Uint8Array.from(lower, (text) => text.includes(word));
      for (let i = 0; i < size; i++) {
        found[i] &= has[data.task[i]] || has[data.goal[i]] || has[data.observation[i]] || has[data.guidance[i]]
          || data.steps[i].some((text) => has[text]) || data.nearest[i].some((text) => has[text]) || ids[i].includes(word);
      }
    }
    return found;
  }

  // What is shown: episodes that pass every filter. An option's count tells how many there would be with it.
  let shown = [];

  function filter() {
    const words = wordsInput.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = episodesWith(words);
    const counts = facets.map((each) => new Uint32Array(each.options.length));
    shown = [];
    for (const i of sorted(order)) {
      if (found && !found[i]) continue;
      let failed = -1, failures = 0;
      for (let f = 0; f < facets.length && failures < 2; f++) {
        if (facets[f].chosen >= 0 && facets[f].codes[i] !== facets[f].chosen) {
          failed = f;
          failures++;
        }
      }
      if (failures === 0) {
        shown.push(i);
        facets.forEach((each, f) => counts[f][each.codes[i]]++);
      } else if (failures === 1) {
        counts[failed][facets[failed].codes[i]]++;
      }
    }
    facets.forEach((each, f) => {
      each.options.forEach((label, code) => {
        const option = each.select.options[code + 1];
        option.textContent = `${label} (${counts[f][code].toLocaleString('en')})`;
        option.hidden = !each.everywhere[code];
      });
      each.select.value = each.chosen;
    });
    orderSelect.value = order;
    summarise();
    drawn.forEach((row) => row.remove());
    drawn.clear();
    rail.style.height = `${shown.length * rowHeight}px`;
    list.scrollTop = 0;
    empty.hidden = shown.length > 0;
    const kept = shown.indexOf(current);
    place = kept;
    if (kept < 0 && shown.length) {
      open(0);
    } else {
      if (kept < 0) clearReading();
      else updatePosition();
      reveal();
      draw();
    }
  }

  function summarise() {
    const counts = [0, 0, 0, 0];
    let solved = 0, valid = 0, together = 0, alone = 0;
    for (const i of shown) {
      counts[effect[i]]++;
      if (data.status[i] !== ENV_ERROR) {
        valid++;
        solved += data.status[i] === SOLVED;
      }
      if (effect[i] !== NOT_COMPARED) {
        together += data.status[i] === SOLVED;
        alone += data.status[aloneIn[data.game[i]]] === SOLVED;
      }
    }
    const compared = counts[HELPED] + counts[HURT] + counts[SAME];
    const percent = (part, whole) => `${(100 * part / whole).toFixed(1)}%`;
    const parts = [`${shown.length.toLocaleString('en')} of ${size.toLocaleString('en')} episodes`];
    if (facet.outcome.chosen >= 0 || facet.effect.chosen >= 0) {
      // Rates of episodes that were picked by their outcome would say nothing.
      if (compared) parts.push(`helped ${counts[HELPED]}, hurt ${counts[HURT]}`);
    } else if (compared) {
      const points = 100 * (together - alone) / compared;
      parts.push(`solved ${percent(together, compared)}, by the agent alone ${percent(alone, compared)}`
        + ` (${points < 0 ? '−' : '+'}${Math.abs(points).toFixed(1)} points)`, `helped ${counts[HELPED]}, hurt ${counts[HURT]}`);
    } else if (valid) {
      parts.push(`solved ${percent(solved, valid)}`);
    }
    document.getElementById('browser-summary').textContent = parts.join(' · ');
  }

  // Elements.

  function element(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
    return node;
  }

  function marker(memory) {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('class', 'marker');
    svg.setAttribute('viewBox', '0 0 10 10');
    svg.setAttribute('aria-hidden', 'true');
    const path = document.createElementNS(svg.namespaceURI, 'path');
    path.setAttribute('d', memory.marker);
    path.setAttribute(memory.name === 'oracle' ? 'stroke' : 'fill', memory.colour);
    if (memory.name === 'oracle') path.setAttribute('fill', 'none');
    svg.append(path);
    return svg;
  }

  function meter(p) {
    const bar = element('span', 'bar');
    bar.style.width = `${100 * p}%`;
    const whole = element('span', 'meter', bar);
    whole.setAttribute('aria-hidden', 'true');
    return whole;
  }

  function outcomeChip(i) {
    const solved = data.status[i] === SOLVED;
    return element('span', `chip ${solved ? 'good' : data.status[i] === ENV_ERROR ? '' : 'bad'}`,
      `${solved ? '✓' : '✗'} ${statuses[data.status[i]].replace('_', ' ')}`);
  }

  const effectTone = (i) => (effect[i] === HELPED ? 'good' : effect[i] === HURT ? 'bad' : 'quiet');

  function effectMark(i) {
    return effect[i] === NOT_COMPARED ? null : element('span', `effect ${effectTone(i)}`, EFFECT_SIGNS[effect[i]]);
  }

  const tokensOf = (i) => `${data.guidance_tokens[i]} token${data.guidance_tokens[i] === 1 ? '' : 's'}`;

  // The list. Only the rows in sight exist, and the chosen one, which may hold the focus.

  const list = document.getElementById('browser-list');
  const rail = element('div', 'rail');
  const empty = element('p', 'empty quiet', 'No episode passes these filters.');
  list.append(rail, empty);
  const drawn = new Map(); // place in `shown` -> row
  let rowHeight = 0;
  let current = -1; // the episode that is open
  let place = -1; // of it in `shown`; -1 where the filters hide it

  function measure() {
    rowHeight = parseFloat(getComputedStyle(rail).getPropertyValue('--row')) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  function makeRow(at) {
    const i = shown[at];
    const memory = memories[data.memory[i]];
    const p = data.p_generate[i];
    const said = data.decision[i] ? tokensOf(i) : data.memory[i] === NONE ? '' : 'abstains';
    const row = element('div', 'row',
      element('div', 'line', element('span', 'goal', strings[data.goal[i]] || '(no goal)'), outcomeChip(i)),
      element('div', 'line', marker(memory), element('span', 'facts', `${memory.label} · ${splits[data.split[i]].label}`),
        element('span', 'said', said), p === null ? null : element('span', 'chance', `P ${p.toFixed(2)} `, meter(p)), effectMark(i)));
    row.id = `row-${at}`;
    row.setAttribute('role', 'option');
    row.setAttribute('aria-posinset', at + 1);
    row.setAttribute('aria-setsize', shown.length);
    row.style.top = `${at * rowHeight}px`;
    mark(row, at === place);
    return row;
  }

  function mark(row, chosen) {
    row.setAttribute('aria-selected', chosen);
    row.tabIndex = chosen ? 0 : -1;
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / rowHeight) - 6);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / rowHeight) + 6);
    for (const [at, row] of drawn) {
      if ((at < first || at >= last) && at !== place) {
        row.remove();
        drawn.delete(at);
      }
    }
    for (let at = first; at < last; at++) addRow(at);
    if (place >= 0) addRow(place);
  }

  function addRow(at) {
    if (drawn.has(at)) return;
    const row = makeRow(at);
    drawn.set(at, row);
    rail.append(row);
  }

  // Scrolls the list so that the chosen row is in sight.
  function reveal() {
    if (place < 0) return;
    const top = place * rowHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + rowHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight - list.clientHeight;
  }

  function open(at, focus = false) {
    at = Math.max(0, Math.min(shown.length - 1, at));
    const before = drawn.get(place);
    if (before) mark(before, false);
    place = at;
    current = shown[at];
    if (drawn.has(at)) mark(drawn.get(at), true);
    reveal();
    draw();
    if (focus) drawn.get(at).focus({ preventScroll: true });
    read();
  }

  list.addEventListener('scroll', () => requestAnimationFrame(draw), { passive: true });
  list.addEventListener('click', (event) => {
    const row = event.target.closest('.row');
    if (!row) return;
    open(Number(row.getAttribute('aria-posinset')) - 1, true);
    // On a narrow page the episode is below the list.
    if (reading.getBoundingClientRect().top > list.getBoundingClientRect().bottom - 1) reading.scrollIntoView({ block: 'start' });
  });
  list.addEventListener('keydown', (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / rowHeight) - 1);
    const moves = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: shown.length - 1 };
    if (event.key in moves && shown.length) {
      event.preventDefault();
      open(moves[event.key], true);
    } else if (event.key === 'Enter') {
      event.preventDefault();
      reading.focus();
    }
  });

  // The episode that is read, beside the same game without guidance.

  const reading = document.getElementById('browser-reading');
  const position = element('span', 'quiet');
  const earlier = button('‹ Previous', () => open(place - 1));
  const later = button('Next ›', () => open(place + 1));
  const toList = button('Back to the list', () => {
    list.scrollIntoView({ block: 'start' });
    (drawn.get(place) ?? list).focus({ preventScroll: true });
  });
  toList.classList.add('to-list');
  reading.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') drawn.get(place)?.focus();
  });

  function button(text, action) {
    const node = element('button', '', text);
    node.type = 'button';
    node.addEventListener('click', action);
    return node;
  }

  function clearReading() {
    current = -1;
    reading.replaceChildren();
  }

  function updatePosition() {
    position.textContent = place < 0 ? '' : `${(place + 1).toLocaleString('en')} of ${shown.length.toLocaleString('en')}`;
    earlier.disabled = place <= 0;
    later.disabled = place < 0 || place >= shown.length - 1;
  }

  function read() {
    const i = current;
    const alone = aloneIn[data.game[i]];
    const memory = memories[data.memory[i]];
    updatePosition();
    const facts = [memory.label, splits[data.split[i]].label, ...(runs.length > 1 ? [runs[data.run[i]]] : [])];
    const parts = [
      element('div', 'toolbar', earlier, later, position, toList),
      element('h3', '', strings[data.goal[i]] || '(no goal)'),
      element('p', 'identity', marker(memory), `${facts.join(' · ')} · `, element('code', '', idOf(i))),
      others(i),
      block('What the agent sees first', text(strings[data.observation[i]] || '(nothing)')),
    ];
    if (data.memory[i] !== NONE) parts.push(guidanceOf(i));
    if (data.nearest[i].length) {
      const entries = data.nearest[i].map((entry) => element('li', 'text', strings[entry]));
      parts.push(block('Nearest entries of the experience bank', element('ol', 'nearest', ...entries)));
    }
    parts.push(...plays(i, alone));
    parts.push(element('p', 'quiet command', 'In a terminal: ',
      element('code', '', `python -m mempi_jax.report --workdir FOLDER --episode '${idOf(i).replaceAll("'", "'\\''")}'`)));
    reading.replaceChildren(...parts);
    reading.scrollTop = 0;
    remember(i);
  }

  const text = (content) => element('div', 'text', content);
  const block = (title, ...content) => element('section', 'block', element('h4', '', title), ...content);

  // How the same game ended with every memory; each opens.
  function others(i) {
    const buttons = siblings[data.game[i]].map((other) => {
      const solved = data.status[other] === SOLVED;
      const node = button('', () => show(other));
      node.append(marker(memories[data.memory[other]]), `${memories[data.memory[other]].label} `,
        element('span', solved ? 'good' : 'bad', solved ? '✓' : '✗'), element('span', 'unseen', ` ${statuses[data.status[other]]}`));
      if (other === i) node.setAttribute('aria-current', 'true');
      return node;
    });
    return element('div', 'others', element('span', 'quiet', 'The same game: '), ...buttons);
  }

  // Opens an episode; if the filters hide it, they are cleared.
  function show(i) {
    if (!shown.includes(i)) {
      facets.forEach((each) => { each.chosen = -1; });
      facet.memory.chosen = data.memory[i];
      wordsInput.value = '';
      current = i;
      filter();
      read();
    } else {
      open(shown.indexOf(i));
    }
  }

  function guidanceOf(i) {
    const p = data.p_generate[i];
    const decision = element('p', 'decision', element('b', '', data.decision[i] ? '[GENERATE]' : '[ABSTAIN]'));
    if (p !== null) decision.append(element('span', 'chance', ` P(GENERATE) ${p.toFixed(4)} `, meter(p)));
    if (data.decision[i]) decision.append(` ${tokensOf(i)}`);
    const mark = effectMark(i);
    if (mark) decision.append(mark);
    const cost = [];
    if (data.retrieved[i].length) cost.push(`Quotes ${data.retrieved[i].map((name) => strings[name]).join(', ')}.`);
    if (data.read_tokens[i] || data.written_tokens[i]) {
      cost.push(`The memory's own model read ${data.read_tokens[i]} tokens and wrote ${data.written_tokens[i]}.`);
    }
    return block('Guidance', decision, data.decision[i] ? element('div', 'guidance text', strings[data.guidance[i]] || '(empty)') : null,
      cost.length ? element('p', 'quiet cost', cost.join(' ')) : null);
  }

  // The actions of both, line by line; where they first differ is marked.
  function plays(i, alone) {
    const both = alone >= 0 && alone !== i;
    const steps = (which) => Array.from({ length: data.steps[which].length / 2 }, (_, n) => data.steps[which].slice(2 * n, 2 * n + 2));
    const mine = steps(i), other = both ? steps(alone) : [];
    const same = (n) => n < mine.length && n < other.length && mine[n][0] === other[n][0] && mine[n][1] === other[n][1];
    let fork = 0;
    while (same(fork)) fork++;
    const identical = both && fork === mine.length && fork === other.length;
    const side = (which, title, played) => {
      const items = played.map(([action, brought], n) => element('li', both && n === fork && n > 0 ? 'fork' : '',
        element('span', 'count', String(n + 1)), element('div', 'action', strings[action]), text(strings[brought])));
      const column = element('div', 'side', element('h4', '', `${title} `, outcomeChip(which), ` ${count(data.agent_steps[which])}`),
        ...(items.length ? [element('ol', 'steps', ...items)] : [element('p', 'quiet', 'No action was recorded.')]));
      column.style.setProperty('--rows', Math.max(mine.length, other.length));
      return column;
    };
    const count = (number) => `${number} action${number === 1 ? '' : 's'}`;
    const title = data.memory[i] === NONE ? 'Agent alone' : `With ${memories[data.memory[i]].label}`;
    const notes = [];
    if (data.memory[i] !== NONE && !both) notes.push(element('p', 'quiet', 'There is no episode of this game without guidance.'));
    if (identical) notes.push(element('p', 'quiet', 'Both episodes are the same, action by action.'));
    const sides = both ? [side(alone, 'Agent alone', other), side(i, title, mine)] : [side(i, title, mine)];
    return [...notes, element('div', `plays${both ? '' : ' single'}`, ...sides)];
  }

  // The address names the open episode, so that it can be sent to someone who has the page.
  function remember(i) {
    const name = new URLSearchParams({ episode: idOf(i), split: splits[data.split[i]].name });
    if (runs.length > 1) name.set('run', runs[data.run[i]]);
    remembered = `#${name}`;
    if (chosenByReader) history.replaceState(null, '', remembered);
  }

  function openFromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has('episode') || location.hash === remembered) return false;
    for (let i = 0; i < size; i++) {
      if (idOf(i) === wanted.get('episode') && (!wanted.has('split') || wanted.get('split') === splits[data.split[i]].name)
          && (!wanted.has('run') || wanted.get('run') === runs[data.run[i]])) {
        show(i);
        section.scrollIntoView();
        return true;
      }
    }
    return false;
  }

  let remembered = '';
  let chosenByReader = false; // until then the address stays as it is
  section.addEventListener('click', () => { chosenByReader = true; }, true);
  section.addEventListener('keydown', () => { chosenByReader = true; }, true);
  addEventListener('hashchange', openFromAddress);

  // Controls.

  // The memory to begin with: the learned one that comes last, if there is one.
  const main = Math.max(memories.findIndex((memory) => memory.name === 'mempi'), -1);
  const learned = main >= 0 ? main : memories.findIndex((memory) => memory.name === 'mempi_stage1');

  // Ready-made views keep run, split and memory.
  const views = [
    ['Where guidance hurt', { decision: 1, effect: HURT }, 'likely'],
    ['Where guidance helped', { decision: 1, effect: HELPED }, 'likely'],
    ['Abstained, and the agent failed', { decision: 0, outcome: 1 }, 'likely'],
    ['Guided, and failed either way', { decision: 1, outcome: 1, effect: SAME }, 'likely'],
  ];
  const viewsBox = document.getElementById('browser-views');
  for (const [title, chosen, by] of views) {
    viewsBox.append(button(title, () => {
      for (const each of facets) {
        if (each.name in chosen) each.chosen = chosen[each.name];
        else if (!['run', 'split', 'memory'].includes(each.name)) each.chosen = -1;
      }
      if (facet.memory.chosen === NONE) facet.memory.chosen = learned;
      wordsInput.value = '';
      order = by;
      current = -1;
      filter();
    }));
  }
  viewsBox.append(button('Everything', () => {
    facets.forEach((each) => { each.chosen = -1; });
    wordsInput.value = '';
    order = 'recorded';
    current = -1;
    filter();
  }));

  for (const each of facets) {
    each.everywhere = new Uint8Array(each.options.length);
    for (let i = 0; i < size; i++) each.everywhere[each.codes[i]] = 1;
    each.select.append(new Option('any', -1), ...each.options.map((label, code) => new Option(label, code)));
    each.select.addEventListener('change', () => {
      each.chosen = Number(each.select.value);
      filter();
    });
  }
  facet.run.select.closest('label').hidden = runs.length < 2;
  for (const [name, { label }] of Object.entries(orders)) orderSelect.append(new Option(label, name));
  orderSelect.addEventListener('change', () => {
    order = orderSelect.value;
    current = -1;
    filter();
  });
  wordsInput.addEventListener('input', filter);
  new ResizeObserver(() => {
    if (!rowHeight) return;
    const before = rowHeight;
    measure();
    if (rowHeight !== before) filter();
    else draw();
  }).observe(list);

  section.hidden = false;
  status.hidden = true;
  measure();
  if (learned >= 0) facet.memory.chosen = learned;
  filter();
  openFromAddress();
})().catch((error) => {
  document.getElementById('browser-status').textContent = `The episodes cannot be shown: ${error.message}`;
});
