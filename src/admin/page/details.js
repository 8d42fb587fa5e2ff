// Details: one entry with its path.

// What a person can do about a rejection: the first words of the callback settings at Alibaba that can be wrong.
const REMEDIES = {
  not_signed:
    'The sender does not sign. Switch on authentication for the callback at Alibaba, and set a key of `keys` there.',
  signature_wrong:
    'The key or the URL differs from the one at Alibaba. Compare `keys` with the key there, and `urls` '
    + 'with the callback URL there, letter by letter.',
  signed_for_another_url:
    'The key is right, the URL is not: write into `urls` exactly the callback URL that is set at Alibaba.',
  signature_malformed: 'The signature headers are not Alibaba’s. Something else may be posting to this address.',
  signature_stale: 'The signed time is too old. Check the clock of this machine, and proxies that hold requests back.',
  signature_from_future: 'The signed time is in the future. Check the clock of this machine.',
  no_such_path: 'The callback URL at Alibaba has a path that no endpoint has. Compare it with the paths of this input.',
  not_a_callback: 'The signature was accepted, but the body is not a callback of VOD or IMS that this input accepts.',
  method_not_allowed: 'Only POST is accepted. This may be a browser or a probe: probes belong to the admin address.',
  body_too_large: 'The body is larger than `max_body` of the input.',
  too_many_requests: 'A limit was reached, for example `max_in_flight`. Alibaba sends the callback again.',
  host_invalid: 'The request has no valid `Host` header. This is probably not Alibaba.',
  request_timeout: 'The request took too long to arrive. Check the network and the proxy in front of the bridge.',
};

/** Where the value of a key of the outermost object begins and ends in a text of JSON. */
function rawValue(json, wanted) {
  let [depth, keyAt, key, valueAt] = [0, -1, '', -1];
  for (let index = 0; index < json.length; index += 1) {
    const each = json[index];
    if (each === '"') {
      keyAt = index;
      for (index += 1; index < json.length && json[index] !== '"'; index += 1) if (json[index] === '\\') index += 1;
      if (depth === 1 && valueAt < 0) key = json.slice(keyAt + 1, index);
    } else if (each === '{' || each === '[') depth += 1;
    else if (each === ':' && depth === 1 && valueAt < 0) valueAt = index + 1;
    else if ((each === ',' && depth === 1) || (each === '}' && depth === 1)) {
      if (key === wanted && valueAt >= 0) return json.slice(valueAt, index);
      valueAt = -1;
    }
    if (each === '}' || each === ']') depth -= 1;
  }
  return undefined;
}

/** JSON with line breaks. It works on the text, because numbers can have more digits than JavaScript's. */
function indent(json) {
  const parts = [];
  let depth = 0;
  const line = () => `\n${'  '.repeat(Math.min(depth, 40))}`;
  for (const [token] of json.matchAll(/"(?:[^"\\]|\\.)*"|[{[]\s*[}\]]|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    if (token === '{' || token === '[') {
      depth += 1;
      parts.push(token, line());
    } else if (token === '}' || token === ']') {
      depth -= 1;
      parts.push(line(), token);
    } else if (token === ',') parts.push(token, line());
    else parts.push(token === ':' ? ': ' : token);
  }
  return parts.join('');
}

function payloadOf(entry) {
  const raw = entry.rawPayload;
  if (raw === undefined) return undefined;
  return { characters: raw.length, text: raw.startsWith('"') ? JSON.parse(raw) : indent(raw) };
}

const SIGNATURES = {
  valid: 'signature valid',
  missing: 'without a signature, which is not required',
  not_checked: 'signature not checked: the endpoint has no keys',
};

function chip(outcome, text = word(outcome)) {
  const level = OUTCOME_LEVEL[outcome] ?? 'muted';
  return el('span', { class: `chip ${level}` }, icon(OUTCOME_ICON[outcome] ?? 'dash', level), text);
}

function step(title, ...children) {
  return el('li', {}, el('h3', {}, title), ' ', ...children);
}

/** The result at one destination. */
function destination(each) {
  const failed = each.error || each.message;
  return el(
    'li',
    {},
    icon(OUTCOME_ICON[each.result] ?? 'dash', OUTCOME_LEVEL[each.result] ?? 'muted'),
    el(
      'div',
      {},
      bdi(each.output, 200),
      ' / ',
      bdi(each.topic, 600),
      `: ${word(each.result)}${isNumber(each.took_ms) ? ` after ${duration(each.took_ms)}` : ''}`,
      el('span', { class: 'muted' }, ' (route ', bdi(each.route, 200), ')'),
      failed
        && el(
          'p',
          { class: OUTCOME_LEVEL[each.result] === 'ok' ? 'warn' : 'bad' },
          each.error ? `${word(each.error)}: ` : '',
          bdi(each.message ?? ''),
        ),
    ),
  );
}

function attributeList(attributes) {
  return el(
    'dl',
    { class: 'attributes' },
    ...Object.entries(attributes).flatMap(([name, value]) => {
      // A filter with a quote in its value could not be written.
      const filter =
        value.length <= 300
        && !value.includes('"')
        && el(
          'button',
          {
            type: 'button',
            'data-query': `${name}="${value.replace(/[*?[\]{}\\]/g, '\\$&')}"`,
            'aria-label': `Filter by this ${name}`,
          },
          'filter',
        );
      return [
        el('dt', {}, bdi(name)),
        el('dd', { tabindex: value.length > 200 ? '0' : undefined }, bdi(value), filter),
      ];
    }),
  );
}

/** How an entry came in. */
function received(entry, more) {
  return step('Received', 'by input ', bdi(entry.input, 200), ' at ', timeOf(entry.time, 'exact'), more);
}

/** The path of an entry: what happened to it, in order. */
function details(entry, later) {
  const steps = [];
  const attributes = entry.attributes ?? {};
  if (entry.kind === 'rejection') {
    steps.push(received(entry, entry.path !== undefined && el('span', {}, ', path ', bdi(entry.path))));
    steps.push(
      step(
        'Rejected',
        el('span', { class: 'bad' }, bdi(word(entry.reason))),
        entry.message && el('p', {}, bdi(entry.message)),
        REMEDIES[entry.reason] && el('p', { class: 'muted' }, ...prose(REMEDIES[entry.reason])),
      ),
    );
    return el('ol', { class: 'path' }, ...steps);
  }
  if (entry.kind === 'callback') {
    const signature = entry.signature && (SIGNATURES[entry.signature] ?? word(entry.signature));
    steps.push(received(entry, signature && `, ${signature}`));
  } else if (entry.kind === 'published') {
    steps.push(
      step(
        'From the spool',
        'at ',
        timeOf(entry.time, 'exact'),
        ' to ',
        bdi(entry.output, 200),
        ' / ',
        bdi(entry.topic, 600),
        entry.route === undefined
          ? ', a dead letter that was replayed'
          : el('span', {}, ' by route ', bdi(entry.route, 200)),
        entry.latency_ms !== undefined && `, ${duration(entry.latency_ms)} after its callback was received`,
      ),
    );
  } else {
    steps.push(
      step(
        'Became a dead letter',
        'at ',
        timeOf(entry.time, 'exact'),
        ` after ${counted(entry.attempts ?? 0, 'attempt')}`,
        entry.output && el('span', {}, ', for ', bdi(entry.output, 200), ' / ', bdi(entry.topic ?? '', 600)),
        entry.route && el('span', {}, ' by route ', bdi(entry.route, 200)),
        el('p', { class: 'bad' }, bdi(word(entry.reason)), ': ', bdi(entry.message ?? '')),
      ),
    );
  }
  if (Object.keys(attributes).length) {
    steps.push(
      step(
        'Event',
        'dialect ',
        bdi(attributes.dialect ?? 'unknown', 100),
        ', type ',
        bdi(shortType(attributes.type ?? ''), 300),
        attributeList(attributes),
      ),
    );
  } else if (entry.kind === 'callback') {
    steps.push(step('Not a callback', el('p', { class: 'bad' }, bdi((entry.reason ?? 'not recognized').replace(/^not_a_callback: /, '')))));
  }
  if (entry.kind === 'callback' && Object.keys(attributes).length) {
    const routes = (entry.routes ?? []).map((route) =>
      el(
        'li',
        {},
        icon(route.matched ? 'check' : 'dash', route.matched ? 'ok' : 'muted'),
        el(
          'div',
          {},
          bdi(route.name, 200),
          route.matched ? ': matched' : el('span', { class: 'muted' }, ': no, ', bdi(route.why ?? '')),
        ),
      ),
    );
    const left = entry.more_routes
      ? el('p', { class: 'muted' }, `also tried and not listed: ${counted(entry.more_routes, 'route')}`)
      : undefined;
    const none = entry.outcome === 'duplicate' ? 'not tried: the same event was accepted before' : 'none was tried';
    steps.push(step('Routes', routes.length ? el('ul', { class: 'tries' }, ...routes) : none, left));
    const to = (entry.destinations ?? []).map(destination);
    const others = entry.more_destinations
      ? el('p', { class: 'muted' }, `not listed: ${counted(entry.more_destinations, 'destination')}`)
      : undefined;
    steps.push(step('Destinations', to.length ? el('ul', { class: 'tries' }, ...to) : 'none', others));
  }
  if (entry.kind === 'callback') {
    steps.push(
      step(
        'Outcome',
        chip(entry.outcome),
        ` after ${duration(entry.latency_ms)}`,
        entry.reason && Object.keys(attributes).length > 0 && el('p', { class: 'bad' }, bdi(word(entry.reason))),
      ),
    );
  }
  for (const each of later) {
    steps.push(
      each.kind === 'published'
        ? step(
            'Later',
            'published to ',
            bdi(each.output, 200),
            ' / ',
            bdi(each.topic, 600),
            ' from the spool at ',
            timeOf(each.time, 'exact'),
          )
        : step('Later', 'a dead letter at ', timeOf(each.time, 'exact'), ': ', bdi(each.message ?? '')),
    );
  }
  const payload = entry.kind === 'callback' ? payloadOf(entry) : undefined;
  if (payload !== undefined) {
    steps.push(
      step(
        'Payload',
        el('span', { class: 'muted' }, counted(payload.characters, 'character')),
        el('pre', { tabindex: '0', role: 'group', 'aria-label': 'Payload' }, payload.text),
      ),
    );
  } else if (entry.kind === 'callback' && state) {
    const why = !entry.hasShownPayloads
      ? `admin.show_payloads ${state.show_payloads ? 'was' : 'is'} false`
      : entry.past
        ? 'it is not kept for past events'
        : 'it is larger than 64 KiB';
    steps.push(step('Payload', el('span', { class: 'muted' }, `not shown: ${why}`)));
  }
  return el('ol', { class: 'path' }, ...steps);
}
