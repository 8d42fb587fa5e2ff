// The connection: one event stream, opened again whenever it has ended.

const connection = { state: 'connecting', failures: 0, lastByte: 0, lostAt: 0, retryAt: 0, why: '' };
let abort = new AbortController();
let isDirty = false;
let timer;
let waited = 0; // how often the page has waited for its own place
let isStateKnown = true; // whether the state that is shown is the present one

function mark(text) {
  live.add({ kind: 'mark', time: new Date(nowOfBridge()).toISOString(), text });
  isDirty = true;
}

function showConnection() {
  const { state: now, retryAt, why, lostAt } = connection;
  $('connection').dataset.state = now;
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  say(
    $('connection-text'),
    now === 'live'
      ? 'Live'
      : now === 'connecting'
        ? 'Connecting'
        : `Lost: retrying in ${seconds} s`,
  );
  $('retry').hidden = now !== 'lost';
  const isKnown = now === 'live' || now === 'connecting';
  if (isKnown !== isStateKnown) {
    isStateKnown = isKnown;
    if (state) drawVerdict();
    else document.title = isKnown ? 'apsara-bridge' : '? Not connected – apsara-bridge';
  }
  const isShown = now !== 'live' && why !== '';
  $('trouble').hidden = !isShown;
  if (isShown) say($('trouble'), `${why}${state ? ` What is below is from ${clock(state.time)}.` : ''}`);
  if (now === 'lost' && !state && lostAt) say($('sentence'), 'The state of the bridge is unknown.');
}

/** Why the bridge does not stream, with what to do about it. */
async function refusal(response) {
  const text = cut((await response.text().catch(() => '')).trim(), 500);
  const said = text ? ` It says: ${text}.` : '';
  switch (response.status) {
    case 403:
      return `The bridge does not let this page read.${said} Open the page on the bridge’s own machine as localhost, `
        + 'or through kubectl port-forward or an SSH tunnel; or change admin.page.';
    case 503:
      return `No place is free.${said} Close another tab with this page, or end a tail. This page tries again.`;
    case 400:
      return `The bridge does not accept the filter.${said}`;
    case 404:
      return 'Something answers that is not this bridge, or is another version of it: /events does not exist.'
        + ' Reload the page.';
    default:
      return `The bridge, or something in front of it, answers with status ${response.status}.${said}`;
  }
}

function otherVersion(hello) {
  const isOther = hello.version !== VERSION || hello.format !== FORMAT;
  $('other-version').hidden = !isOther;
  if (!isOther) return;
  say(
    $('other-version-text'),
    `Another version of the bridge answers now: ${cut(String(hello.version), 60)}. This page belongs to ${VERSION}:`
      + ' reload the page.',
  );
}

/** What an entry changes. */
function take(entry, raw, run) {
  switch (entry.kind) {
    case 'hello':
      otherVersion(entry);
      if (entry.format !== FORMAT) {
        const why = 'This page does not understand what this version of the bridge sends.';
        throw Object.assign(new Error('format'), { why });
      }
      run.isGreeted = true;
      isFirstState = true;
      typePrefix = entry.type_prefix ?? typePrefix;
      break;
    case 'state':
      takeState(entry);
      break;
    case 'callback':
    case 'rejection':
    case 'published':
    case 'dead_letter': {
      entry.characters = raw.length;
      if (entry.payload !== undefined) {
        // A part of a text keeps all of it in memory, and `raw` is part of all that came with it. Joining makes a copy.
        entry.rawPayload = ` ${rawValue(raw, 'payload')}`.slice(1);
        entry.payload = undefined;
      }
      entry.hasShownPayloads = state?.show_payloads;
      if (entry.kind === 'rejection') entry.outcome = 'not_accepted';
      if (entry.kind === 'published') entry.outcome = 'published';
      if (entry.kind === 'dead_letter') entry.outcome = 'dead_lettered';
      if (!entry.past) live.add(entry);
      const isFailure = ['spooled', 'dead_lettered', 'refused', 'not_accepted'].includes(entry.outcome);
      if (entry.past || isFailure) {
        entry.sort = sortOf(entry);
        entry.identity = identityOf(entry);
        failures.add(entry);
      }
      break;
    }
    case 'skipped': {
      const {
        events_over_rate: events = 0,
        published_over_rate: published = 0,
        others_over_rate: others = 0,
        reader_slow: slow = 0,
      } = entry;
      live.left.total += events + published + others + slow;
      live.left.latest = performance.now();
      live.left.why =
        slow > events + published + others ? 'this browser reads too slowly' : 'more came than are shown in a second';
      break;
    }
    case 'end':
      run.end = entry.reason;
      mark(
        entry.reason === 'reloaded'
          ? 'The configuration was reloaded. Later events follow the new rules.'
          : 'The bridge stops.',
      );
      break;
    default: // of a later version
  }
  isDirty = true;
}

function notTheBridge() {
  const why = 'Something answers that does not send what this page understands. It may not be the bridge.';
  return Object.assign(new Error('not the bridge'), { why });
}

function parse(message) {
  try {
    return JSON.parse(message);
  } catch {
    throw notTheBridge();
  }
}

/** Reads one stream to its end. Returns why it ended. */
async function read(signal) {
  const run = { end: undefined, isGreeted: false };
  let isLate = false;
  const late = setTimeout(() => {
    isLate = true;
    if (abort.signal === signal) abort.abort();
  }, ANSWER_WITHIN_MS);
  const response = await fetch(`events?${queryOf(filter)}`, {
    signal,
    headers: { accept: 'text/event-stream' },
    cache: 'no-store',
  })
    .catch((error) => {
      const why = `No answer came within ${ANSWER_WITHIN_MS / 1000} seconds. A browser opens only six connections to one`
        + ' address: if several tabs show this page, close one.';
      throw isLate ? Object.assign(error, { why }) : error;
    })
    .finally(() => clearTimeout(late));
  if (response.status === 400 && filter.conditions.length && !filter.isOnlyHere) {
    say($('filter-problem'), `The bridge does not accept this filter: ${cut((await response.text()).trim(), 400)}`);
    return 'condition';
  }
  if (!response.ok || !response.headers.get('content-type')?.startsWith('text/event-stream')) {
    throw Object.assign(new Error('refused'), { why: await refusal(response), status: response.status });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted || done) break;
    connection.lastByte = Date.now();
    text += value;
    if (text.length > LONGEST_MESSAGE) throw notTheBridge();
    let start = 0;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n', start)) {
      const message = text.slice(start, end);
      start = end + 2;
      if (message.startsWith('data: ')) take(parse(message.slice(6)), message.slice(6), run);
      if (!run.isGreeted) throw notTheBridge();
      if (connection.state !== 'live') {
        if (connection.lostAt) mark(`Connected again, after ${span((Date.now() - connection.lostAt) / 1000)}.`);
        Object.assign(connection, { state: 'live', failures: 0, lostAt: 0, why: '' });
        showConnection();
      }
    }
    text = text.slice(start);
  }
  return run.end ?? 'broken';
}

/** Connects, and does so again whenever the stream has ended. */
async function connect() {
  abort.abort();
  abort = new AbortController();
  const { signal } = abort;
  clearTimeout(timer);
  if (connection.state !== 'live')
    Object.assign(connection, { state: connection.lostAt ? 'lost' : 'connecting', retryAt: Date.now() });
  showConnection();
  let end;
  let why = '';
  try {
    end = await read(signal);
  } catch (error) {
    why = error.why ?? '';
    // The place of the stream that this page has just left becomes free soon.
    if (error.status === 503 && connection.state === 'live' && abort.signal === signal && waited < 10) {
      waited += 1;
      timer = setTimeout(connect, 200);
      return undefined;
    }
  }
  waited = 0;
  if (signal.aborted && abort.signal !== signal) return undefined; // somebody else connects already
  if (end === 'condition') {
    filter.isOnlyHere = true;
    return connect();
  }
  if (end === 'reloaded') {
    timer = setTimeout(connect, 100);
    return undefined;
  }
  const now = Date.now();
  if (!connection.lostAt && connection.state === 'live') mark('The connection was lost.');
  connection.lostAt ||= connection.lastByte || now;
  const pause = PAUSES_S[Math.min(connection.failures, PAUSES_S.length - 1)];
  connection.failures += 1;
  if (!why) {
    const since = clock(new Date(connection.lostAt + clockOffset).toISOString());
    why =
      end === 'stopping'
        ? `The bridge stopped at ${since}.`
        : `The bridge has not answered since ${since}: it stopped, or the network or the tunnel to it is interrupted.`;
  }
  Object.assign(connection, { state: 'lost', why, retryAt: now + pause * 1000 });
  timer = setTimeout(connect, pause * 1000);
  isDirty = true;
  return showConnection();
}

function tick() {
  if (connection.state === 'live' && Date.now() - connection.lastByte > SILENT_AFTER_MS) {
    abort.abort();
    abort = new AbortController();
    Object.assign(connection, {
      state: 'lost',
      why: 'The bridge is silent, though the connection is open.',
      lostAt: connection.lastByte,
      retryAt: Date.now(),
    });
    connect();
  }
  if (connection.state === 'lost') showConnection();
  if (document.hidden) return;
  requestAnimationFrame(() => {
    if (isDirty || lists.some((list) => list.frozen)) {
      isDirty = false;
      lists.forEach((list) => list.draw());
    }
    drawState();
  });
}
