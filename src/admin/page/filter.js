// The filter.

// What a condition can name apart from attributes of the event.
const OF_ENTRY = {
  outcome: (entry) => [entry.outcome, word(entry.outcome)],
  input: (entry) => [entry.input],
  signature: (entry) => [entry.signature],
  reason: (entry) => [entry.reason],
  output: (entry) => [entry.output, ...(entry.destinations ?? []).map((each) => each.output)],
  topic: (entry) => [entry.topic, ...(entry.destinations ?? []).map((each) => each.topic)],
  route: (entry) => [entry.route, ...(entry.routes ?? []).filter((each) => each.matched).map((each) => each.name)],
  path: (entry) => [entry.path],
};

/** The pattern of a route as a regular expression: `*`, `?`, `[ab]`, `{a,b}` and `\`. */
function glob(pattern) {
  let [source, braces] = ['', 0];
  for (let index = 0; index < pattern.length; index += 1) {
    const each = pattern[index];
    const end = each === '[' ? pattern.indexOf(']', index + 2) : -1;
    if (each === '*') source += '[^]*';
    else if (each === '?') source += '[^]';
    else if (end > 0) {
      source += `[${pattern
        .slice(index + 1, end)
        .replace(/^!/, '^')
        .replace(/[\\[\]]/g, '\\$&')}]`;
      index = end;
    } else if (each === '{') {
      source += '(?:';
      braces += 1;
    } else if (each === '}' && braces > 0) {
      source += ')';
      braces -= 1;
    } else if (each === ',' && braces > 0) source += '|';
    else {
      if (each === '\\' && index + 1 < pattern.length) index += 1;
      source += pattern[index].replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');
    }
  }
  return new RegExp(`^${source}$`);
}

/** Reads a filter: conditions `name = value`, and words. */
function parseFilter(text) {
  const filter = { conditions: [], words: [], problem: '' };
  const token = /([a-z]+)\s*(!=|=)\s*("([^"]*)"|\S+)|"([^"]*)"|(\S+)/gi;
  for (const [, name, operator, value, quoted, quotedWord, plain] of text.matchAll(token)) {
    if (!name) {
      if ((plain ?? quotedWord) === '=' || /^[^=]+!?=$/.test(plain ?? ''))
        filter.problem = `“${cut(plain, 40)}”: expected attribute=value`;
      else filter.words.push((plain ?? quotedWord).toLowerCase());
      continue;
    }
    const pattern = quoted ?? value;
    try {
      const condition = { name: name.toLowerCase(), negated: operator === '!=', pattern, is: glob(pattern) };
      filter.conditions.push(condition);
    } catch {
      filter.problem = `“${cut(pattern, 40)}” is not a valid pattern`;
    }
  }
  return filter;
}

/** The conditions that the bridge can test before it sends an event. */
function queryOf(filter) {
  const query = new URLSearchParams({ state: 'true' });
  if (filter.isOnlyHere) return query.toString();
  // More are not accepted. The page tests all of them anyway.
  const fit = filter.conditions.filter((condition) => !OF_ENTRY[condition.name]).slice(0, 15);
  for (const { name, negated, pattern } of fit) {
    if (!negated) query.append(name, pattern);
    else if (name !== 'type' && !/[*?[{\\]/.test(pattern))
      query.append('filter', JSON.stringify({ not: { exact: { [name]: pattern } } }));
  }
  return query.toString();
}

let typePrefix = 'com.aliyun.media.';
const shortType = (type) => (type.startsWith(typePrefix) ? type.slice(typePrefix.length) : type);

/** Whether an entry meets a filter. Several values of one attribute are alternatives, as in a route. */
function fits(filter, entry) {
  const attributes = entry.attributes ?? {};
  const values = (name) => {
    if (OF_ENTRY[name]) return OF_ENTRY[name](entry).filter((value) => value !== undefined);
    const value = attributes[name];
    return value === undefined ? [] : name === 'type' ? [value, shortType(value)] : [value];
  };
  const holds = (condition) => values(condition.name).some((value) => condition.is.test(value));
  const wanted = filter.conditions.filter((condition) => !condition.negated);
  return (
    filter.conditions.every((condition) => !condition.negated || !holds(condition))
    && wanted.every((one) => wanted.some((other) => other.name === one.name && holds(other)))
    && filter.words.every((each) => searched(entry).includes(each))
  );
}

/** The text in which words are searched: ids and the subject, or what a rejection has instead. */
function searched(entry) {
  const { id, subject, mediaid, jobid, partitionkey } = entry.attributes ?? {};
  return (entry.searched ??= [
    id,
    subject,
    mediaid,
    jobid,
    partitionkey,
    entry.path,
    entry.attributes ? '' : entry.reason,
  ]
    .filter(Boolean)
    .join('\n')
    .toLowerCase());
}
