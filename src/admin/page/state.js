// The state of the bridge: verdict, figures, outputs, spool, routes, inputs.

let state;
let recent = []; // the last seconds: [time, callbacks since the start, rejected since the start]
let definitions = [];
let definedAt; // the time of the state that had them
let isStateDrawn = true;
let isFirstState = true; // the next one is the first of its stream
let announced = '';

const totalOf = (outcomes) => Object.values(outcomes ?? {}).reduce((sum, value) => sum + value, 0);

/** Callbacks in a second, of the last seconds. */
function presentRate() {
  if (recent.length < 2) return undefined;
  const [[from, before], [until, after]] = [recent[0], recent.at(-1)];
  return until > from ? ((after - before) * 1000) / (until - from) : undefined;
}

function takeState(entry) {
  clockOffset = Date.parse(entry.time) - Date.now();
  if (state && state.started !== entry.started) {
    mark(`The bridge was restarted at ${clock(entry.started)}.`);
    recent = [];
  } else if (entry.whole && !isFirstState) {
    mark('The configuration was reloaded. Later events follow the new rules.');
  }
  isFirstState = false;
  if (entry.whole) {
    definitions = (entry.routes ?? []).map((route) => route.definition);
    definedAt = entry.time;
  }
  typePrefix = entry.type_prefix ?? typePrefix;
  takeSteps(entry.history, entry.whole);
  state = entry;
  Object.assign(failures.left, {
    total: entry.past?.left_out ?? 0,
    why: 'more of a sort came than are noted in a second',
  });
  const accepted = totalOf(entry.totals?.outcomes);
  // The clock of the bridge was set back.
  if (recent.length && Date.parse(entry.time) < recent.at(-1)[0]) recent = [];
  recent.push([Date.parse(entry.time), accepted, entry.totals?.rejected ?? 0]);
  recent = recent.filter(([time]) => time > Date.parse(entry.time) - 5500);
  isStateDrawn = false;
}

const upSince = (output) => output.down?.since ?? output.down?.time;

/** What is wrong, the worst first, as [level, key, sentence]. A sentence may have untrusted parts. */
function problems() {
  const found = [];
  const say1 = (level, key, ...parts) => found.push({ level, key, parts });
  const { spool, dead_letters: letters } = state;
  for (const input of state.inputs ?? []) {
    if (input.state !== 'accepting')
      say1(
        'bad',
        `input ${input.name}`,
        'Input ',
        bdi(input.name, 100),
        ` is ${word(input.state)}`,
        input.message ? ': ' : '',
        bdi(input.message ?? '', 300),
      );
  }
  const waiting = (output) =>
    output.backlog ? `; ${counted(output.backlog, 'event waits', 'events wait')} in the spool` : '';
  for (const output of state.outputs ?? []) {
    const name = bdi(output.name, 100);
    if (output.state === 'down') {
      say1(
        'bad',
        `output ${output.name}`,
        'Output ',
        name,
        ` has been unavailable since ${clock(upSince(output), 'seconds')}${waiting(output)}`,
      );
    } else if (output.state === 'connecting')
      say1('warn', `output ${output.name}`, 'Output ', name, ` is not connected yet${waiting(output)}`);
    else if (output.state === 'not_configured')
      say1('bad', `output ${output.name}`, 'Output ', name, ` is not in the configuration${waiting(output)}`);
  }
  const failing = (state.lanes ?? []).filter(
    (lane) => lane.state === 'failing' && state.outputs.find((output) => output.name === lane.output)?.state === 'up',
  );
  const count1 = (state.outputs ?? []).reduce(
    (sum, output) => sum + (output.state === 'up' ? (output.lanes_failing ?? 0) : 0),
    0,
  );
  if (failing.length) {
    const [lane] = failing;
    const others = count1 > 1 ? ` and ${counted(count1 - 1, 'other lane')}` : '';
    say1(
      'bad',
      'lanes',
      'Topic ',
      bdi(lane.topic, 200),
      ' of ',
      bdi(lane.output, 100),
      others,
      lane.error?.since
        ? ` ${count1 > 1 ? 'have' : 'has'} failed since ${clock(lane.error.since)}`
        : ` ${count1 > 1 ? 'fail' : 'fails'}`,
      lane.error?.error ? ` (${word(lane.error.error)})` : '',
      `; ${counted(lane.backlog, 'event waits', 'events wait')} there`,
    );
  }
  if (spool && spool.state !== 'ok')
    say1(
      'bad',
      'spool',
      spool.state === 'full'
        ? 'The spool is full: callbacks for outputs that do not answer get 503'
        : 'The disk of the spool fails: see the log of the bridge',
    );
  if (letters?.waiting)
    say1(
      'bad',
      'letters',
      `The dead letters are full: ${counted(letters.waiting, 'event waits', 'events wait')} in the spool for room.`
        + ' Replay or delete some',
    );
  if (!state.ready && !found.length) say1('bad', 'ready', 'The bridge is not ready: ', bdi(state.readiness ?? '', 300));
  const [rejected, arrived] = [
    sumOf('rejected'),
    OUTCOMES.reduce((sum, outcome) => sum + (outcome === 'not_accepted' ? 0 : sumOf(outcome)), 0),
  ];
  const newest = (state.inputs ?? [])
    .flatMap((input) => (input.rejections ?? []).map((rejection) => ({ ...rejection, input: input.name })))
    .sort((one, other) => String(other.time ?? '').localeCompare(String(one.time ?? '')))[0];
  if (newest?.time && nowOfBridge() - Date.parse(newest.time) < WINDOW_S * 1000) {
    const only = arrived === 0 && rejected > 0 ? 'Nothing is accepted: ' : '';
    const times = rejected ? counted(rejected, 'request was', 'requests were') : 'Requests were';
    say1(
      only ? 'bad' : 'warn',
      only ? 'only rejections' : 'rejections',
      `${only}${times} rejected in the last 15 minutes, the last by input `,
      bdi(newest.input, 100),
      ': ',
      bdi(word(newest.reason), 100),
    );
  }
  const order = { bad: 0, warn: 1 };
  return found.sort((one, other) => order[one.level] - order[other.level]);
}

function lastEvent() {
  return (state.inputs ?? [])
    .map((input) => input.last_event)
    .filter(Boolean)
    .sort()
    .at(-1);
}

/** The sentence when nothing is wrong. */
function allWell() {
  const outputs = state.outputs ?? [];
  const up =
    outputs.length === 1
      ? [el('span', {}, 'Output ', bdi(outputs[0].name, 100), ' is up')]
      : [outputs.length ? 'All outputs are up' : 'There are no outputs'];
  const current = presentRate();
  const last = lastEvent();
  const flow = current
    ? `, ${digits(current)} ${current === 1 ? 'event' : 'events'}/s`
    : last
      ? `, the last event came ${ago(last)}`
      : ', no event has come since the start';
  const backlog = state.spool?.events ?? 0;
  return [
    ...up,
    flow,
    backlog ? `, ${counted(backlog, 'event waits', 'events wait')} in the spool` : ', nothing waits',
  ];
}

function drawVerdict() {
  const found = problems();
  const [first, ...others] = found;
  const level = isStateKnown ? (first?.level ?? 'ok') : 'unknown';
  $('verdict').dataset.level = level;
  morph(
    $('sentence'),
    el(
      'h1',
      { id: 'sentence' },
      icon(LEVEL_ICON[level]),
      isStateKnown ? '' : `At ${clock(state.time)}: `,
      ...(first ? first.parts : allWell()),
      '.',
    ),
  );
  const lines = el(
    'ul',
    { id: 'more-problems', class: 'plain', hidden: !others.length },
    ...others
      .slice(0, 5)
      .map((each) => el('li', { class: each.level }, icon(LEVEL_ICON[each.level]), ...each.parts, '.')),
    others.length > 5 && el('li', {}, `and ${others.length - 5} more: see below`),
  );
  morph($('more-problems'), lines);
  const key = found.map((each) => each.key).join(', ') || 'ok';
  if (key !== announced) {
    announced = key;
    say($('announcement'), $('sentence').textContent);
  }
  const sign = { unknown: '?', bad: '✕', warn: '!' }[level];
  document.title = sign
    ? `${sign} ${cut(isStateKnown ? $('sentence').textContent : 'Not connected', 80)} – apsara-bridge`
    : 'apsara-bridge';
}

function drawFigures() {
  const last = steps.findLast((step) => isNumber(step.p50_ms)) ?? {};
  const measured = last.time && nowOfBridge() - Date.parse(last.time) > 30_000 ? ` ${ago(last.time)}` : '';
  const current = presentRate();
  const [letters, spool] = [state.dead_letters, state.spool];
  const figures = [
    ['Callbacks now', current === undefined ? '–' : digits(current), '/s', ''],
    ['Latency p50', isNumber(last.p50_ms) ? duration(last.p50_ms) : '–', measured, ''],
    ['Latency p99', isNumber(last.p99_ms) ? duration(last.p99_ms) : '–', measured, ''],
    [
      'Waiting in the spool',
      spool ? count(spool.events) : 'no spool',
      spool?.events ? ` for ${span(spool.oldest_seconds)}` : '',
      spool?.events ? 'warn' : '',
    ],
    [
      'Dead letters',
      count(letters?.events ?? 0),
      letters?.newest ? ` ${ago(letters.newest)}` : '',
      letters?.events ? 'warn' : '',
    ],
    ['Rejected in 15 min', count(sumOf('rejected')), '', sumOf('rejected') ? 'warn' : ''],
  ];
  sync($('figures'), figures, ([name, value, rest, level]) =>
    el('div', {}, el('dt', {}, name), el('dd', { class: level || undefined }, value, rest && el('small', {}, rest))),
  );
}

const STATES = {
  up: ['ok', 'check', 'up'],
  connecting: ['warn', 'clock', 'connecting'],
  down: ['bad', 'cross', 'unavailable'],
  not_configured: ['bad', 'alert', 'not configured'],
  accepting: ['ok', 'check', 'accepting'],
  misconfigured: ['bad', 'cross', 'misconfigured'],
  waiting: ['warn', 'clock', 'waiting'],
  failing: ['bad', 'cross', 'failing'],
  ok: ['ok', 'check', 'ok'],
  full: ['bad', 'alert', 'full'],
};

function stateOf(name) {
  const [level, shape, text] = STATES[name] ?? ['warn', 'alert', word(name)];
  return el('span', { class: `chip ${level}` }, icon(shape, level), text);
}

function head(name, kind, right) {
  return el(
    'div',
    { class: 'item' },
    el(
      'span',
      {},
      el('span', { class: 'name' }, bdi(name, 200)),
      kind && el('span', { class: 'muted' }, ' ', bdi(kind, 60)),
    ),
    right,
  );
}

function counts(of) {
  return Object.entries(of ?? {})
    .filter(([, value]) => value)
    .map(([name, value]) => `${word(name)} ${count(value)}`)
    .join(', ');
}

function errorLine(error, level, before) {
  return el(
    'p',
    { class: level },
    before,
    ' ',
    timeOf(error.time),
    error.error ? ` ${word(error.error)}: ` : ': ',
    bdi(error.message ?? '', 600),
    error.topic !== undefined && el('span', { class: 'muted' }, ' (', bdi(error.topic, 200), ')'),
  );
}

function drawOutputs() {
  const up = (state.outputs ?? []).filter((output) => output.state === 'up').length;
  say($('outputs-note'), `${up} of ${count((state.outputs ?? []).length + (state.more_outputs ?? 0))} up`);
  sync($('outputs'), state.outputs ?? [], (output) =>
    el(
      'li',
      {},
      head(output.name, output.output_kind, stateOf(output.state)),
      el(
        'p',
        { class: 'muted' },
        `${count(output.published ?? 0)} published, `,
        output.backlog ? `${count(output.backlog)} waiting` : 'nothing waits',
        output.lanes_failing ? `, ${counted(output.lanes_failing, 'lane fails', 'lanes fail')}` : '',
      ),
      counts(output.failures) && el('p', { class: 'muted' }, `failed attempts: ${counts(output.failures)}`),
      output.down && errorLine(output.down, 'bad', output.state === 'down' ? 'Down,' : 'Not connected,'),
      output.last_error && errorLine(output.last_error, output.state === 'up' ? 'muted' : 'bad', 'Last error'),
    ),
  );
  more($('outputs-more'), state.more_outputs, 'output');
  const lanes = state.lanes ?? [];
  $('lanes-part').hidden = !lanes.length;
  const all = lanes.length + (state.more_lanes ?? 0);
  say($('lanes-note'), lanes.length ? `${counted(all, 'topic')} with events in the spool` : '');
  sync(
    $('lanes'),
    lanes.map((lane) => ({ ...lane, oldest_seconds: Math.round(lane.oldest_seconds ?? 0) })),
    (lane) =>
      el(
        'li',
        {},
        el(
          'div',
          { class: 'item' },
          el('span', {}, bdi(lane.output, 100), ' / ', el('span', { class: 'name' }, bdi(lane.topic, 300))),
          stateOf(lane.state),
        ),
        el(
          'p',
          { class: 'muted' },
          `${counted(lane.backlog, 'event')}, ${bytes(lane.bytes ?? 0)}, the oldest ${span(lane.oldest_seconds)} old`,
        ),
        lane.error
          && el(
            'p',
            { class: 'bad' },
            word(lane.error.error ?? 'error'),
            lane.error.since ? ` since ${clock(lane.error.since)}` : '',
            `, ${counted(lane.error.attempts ?? 0, 'attempt')}: `,
            bdi(lane.error.message ?? '', 600),
          ),
        lane.error?.remedy && el('p', {}, 'Remedy: ', bdi(lane.error.remedy, 600)),
      ),
  );
  more($('lanes-more'), state.more_lanes, 'lane');
}

function bar(part, whole, level) {
  const fill = el('div');
  fill.style.width = `${whole ? Math.min(100, (100 * part) / whole).toFixed(2) : 0}%`;
  return el('div', { class: `bar ${level}`, 'aria-hidden': 'true' }, fill);
}

function drawStore() {
  const { spool, dead_letters: letters } = state;
  const items = [
    { spool: spool ? { ...spool, oldest_seconds: Math.round(spool.oldest_seconds ?? 0) } : undefined },
    { letters, ago: letters?.newest && ago(letters.newest) },
  ];
  sync($('store'), items, (item) => {
    if ('letters' in item) {
      if (!letters) return el('li', {}, head('Dead letters', '', 'unknown'));
      const share = letters.max_bytes ? letters.bytes / letters.max_bytes : 0;
      return el(
        'li',
        {},
        head('Dead letters', '', counted(letters.events, 'event')),
        letters.max_bytes
          ? bar(letters.bytes, letters.max_bytes, share > 0.9 ? 'bad' : share > 0.6 ? 'warn' : '')
          : undefined,
        el(
          'p',
          { class: 'muted' },
          letters.max_bytes
            ? `${bytes(letters.bytes)} of ${bytes(letters.max_bytes)}`
            : 'None can be kept without a spool',
          letters.newest ? `, the newest came ${item.ago}` : '',
        ),
        counts(letters.reasons) && el('p', {}, `since the start: ${counts(letters.reasons)}`),
        counts(letters.not_kept) && el('p', { class: 'bad' }, `not kept: ${counts(letters.not_kept)}`),
        letters.expired
          ? el('p', { class: 'muted' }, `${count(letters.expired)} deleted because of their age`)
          : undefined,
        letters.waiting
          ? el(
              'p',
              { class: 'bad' },
              `${counted(letters.waiting, 'event waits', 'events wait')} in the spool for room here`,
            )
          : undefined,
        letters.events ? el('p', { class: 'muted' }, 'apsara-bridge dead-letters list') : undefined,
      );
    }
    if (!spool)
      return el(
        'li',
        {},
        head('Spool', '', 'off'),
        el('p', { class: 'muted' }, 'Callbacks get 503 when an output does not answer.'),
      );
    const share = spool.max_bytes ? spool.bytes / spool.max_bytes : 0;
    return el(
      'li',
      {},
      head('Spool', '', stateOf(spool.state)),
      bar(spool.bytes, spool.max_bytes, share > 0.9 ? 'bad' : share > 0.6 ? 'warn' : ''),
      el(
        'p',
        { class: 'muted' },
        `${bytes(spool.bytes)} of ${bytes(spool.max_bytes)}, ${counted(spool.events, 'event')}`,
        spool.events ? `, the oldest ${span(spool.oldest_seconds)} old` : '',
      ),
      counts(spool.failures) && el('p', { class: 'warn' }, `failed writes: ${counts(spool.failures)}`),
    );
  });
}

function drawRoutes() {
  // Counts change often, and there can be a thousand routes: only their texts are changed.
  const routes = (state.routes ?? []).map(({ name }, index) => ({ name, index, definedAt }));
  sync($('routes'), routes, (route) => {
    const definition = definitions[route.index] ?? {};
    const to = (definition.destinations ?? []).map((each) =>
      el('p', { class: 'under' }, '→ ', bdi(each.output, 100), ' / ', bdi(each.topic, 300)),
    );
    const action = { drop: 'dropped', dead_letter: 'kept as dead letters' }[definition.action];
    return el(
      'li',
      {},
      el(
        'div',
        { class: 'item' },
        el(
          'span',
          {},
          el('span', { class: 'number' }, `${route.index + 1}.`),
          el('span', { class: 'name' }, bdi(route.name, 200)),
          definition.continues ? el('span', { class: 'muted' }, ' then continues') : undefined,
        ),
        el('span', {}, el('span'), el('span', { class: 'muted' })),
      ),
      el(
        'p',
        { class: 'under muted' },
        ...(definition.match?.length
          ? definition.match.flatMap((each, index) => [index ? ', ' : '', bdi(each, 300)])
          : [definition.filter ? '' : 'every event']),
        definition.filter
          ? el('span', {}, definition.match?.length ? ', ' : '', bdi(definition.filter, 600))
          : undefined,
      ),
      ...to,
      action ? el('p', { class: 'under' }, `→ ${action}`) : undefined,
      definition.more_destinations
        ? el('p', { class: 'under muted' }, `and ${counted(definition.more_destinations, 'more destination')}`)
        : undefined,
    );
  });
  for (const [index, row] of [...$('routes').children].entries()) {
    const { recent = 0, matched = 0 } = state.routes[index];
    const [recently, ever] = row.firstElementChild.lastElementChild.children;
    say(recently, count(recent));
    say(ever, ` / ${count(matched)}`);
  }
  more($('routes-more'), state.more_routes, 'route');
}

function drawInputs() {
  const inputs = (state.inputs ?? []).map((input) => ({ ...input, ago: input.last_event && ago(input.last_event) }));
  sync($('inputs'), inputs, (input) =>
    el(
      'li',
      {},
      head(input.name, input.input_kind, stateOf(input.state)),
      el(
        'p',
        { class: 'muted' },
        bdi(input.origin ?? '', 200),
        ...(input.places ?? [])
          .filter((place) => !input.origin?.endsWith(` ${place}`))
          .slice(0, 8)
          .flatMap((place) => [' ', bdi(place, 200)]),
      ),
      el(
        'p',
        {},
        input.last_event ? 'Last event ' : 'No event since the start',
        input.last_event && timeOf(input.last_event),
        input.last_event && `, ${input.ago}`,
      ),
      counts(input.outcomes) && el('p', { class: 'muted' }, counts(input.outcomes)),
      input.message && el('p', { class: 'bad' }, bdi(input.message, 600)),
      input.rejections?.length
        ? el(
            'ul',
            { class: 'rejections' },
            ...input.rejections
              .slice(0, 12)
              .map((rejection) =>
                el(
                  'li',
                  {},
                  el(
                    'div',
                    { class: 'item' },
                    el('strong', {}, bdi(word(rejection.reason), 100)),
                    el('span', {}, counted(rejection.count, 'time')),
                  ),
                  el(
                    'p',
                    {},
                    rejection.time && timeOf(rejection.time),
                    rejection.path !== undefined && el('span', {}, ' on ', bdi(rejection.path, 200)),
                    rejection.message && el('span', {}, ': ', bdi(rejection.message, 600)),
                  ),
                  REMEDIES[rejection.reason] && el('p', { class: 'muted' }, ...prose(REMEDIES[rejection.reason])),
                ),
              ),
          )
        : undefined,
    ),
  );
  more($('inputs-more'), state.more_inputs, 'input');
}

function drawState() {
  if (isStateDrawn || !state) return;
  isStateDrawn = true;
  say($('version'), state.version);
  drawVerdict();
  drawFigures();
  charts.forEach((chart) => chart.draw());
  drawOutputs();
  drawStore();
  drawRoutes();
  drawInputs();
  say(
    $('about'),
    `Version ${state.version}, started ${clock(state.started)}. Times are local; UTC is shown when the pointer rests on`
      + ' one. This page only reads.',
  );
}
