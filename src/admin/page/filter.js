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

// Any number of characters, in a pattern.
const STAR = null;
const MOST_ALTERNATIVES = 100;

/**
 * The alternatives of a pattern of a route, with `*`, `?`, `[ab]`, `[!a-z]`, `{a,b}` and `\`. Each is a list of tests for
 * one character, and of stars.
 */
function alternativesOf(pattern) {
  const characters = [...pattern];
  let at = 0;
  function oneOf(end) {
    const isNegated = '!^'.includes(characters[at]);
    const listed = characters.slice(at + (isNegated ? 1 : 0), end);
    const holds = (character) =>
      listed.some((each, index) =>
        listed[index + 1] === '-' && index + 2 < listed.length
          ? each <= character && character <= listed[index + 2]
          : each === character,
      );
    return (character) => holds(character) !== isNegated;
  }
  function sequence(isInBraces) {
    let all = [[]];
    while (at < characters.length && !(isInBraces && ',}'.includes(characters[at]))) {
      const each = characters[at];
      at += 1;
      if (each === '{') {
        const inner = [];
        do {
          inner.push(...sequence(true));
          at += 1;
        } while (characters[at - 1] === ',');
        if (characters[at - 1] !== '}') throw new Error('a brace is not closed');
        if (all.length * inner.length > MOST_ALTERNATIVES) throw new Error('too many alternatives');
        all = all.flatMap((first) => inner.map((second) => [...first, ...second]));
        continue;
      }
      const end = each === '[' ? characters.indexOf(']', at + 1) : -1;
      let test = (character) => character === each;
      if (each === '*') test = STAR;
      else if (each === '?') test = () => true;
      else if (end > 0) {
        test = oneOf(end);
        at = end + 1;
      } else if (each === '\\' && at < characters.length) {
        const literal = characters[at];
        test = (character) => character === literal;
        at += 1;
      }
      for (const tests of all) tests.push(test);
    }
    return all;
  }
  return sequence(false);
}

/** Whether a text is what an alternative of a pattern describes. It takes at most the product of their lengths. */
function meets(tests, characters) {
  let [test, at, star, from] = [0, 0, -1, 0];
  while (at < characters.length) {
    if (test < tests.length && tests[test] === STAR) {
      [star, from] = [test, at];
      test += 1;
    } else if (test < tests.length && tests[test](characters[at])) {
      test += 1;
      at += 1;
    } else if (star >= 0) {
      from += 1;
      [at, test] = [from, star + 1];
    } else return false;
  }
  while (test < tests.length && tests[test] === STAR) test += 1;
  return test === tests.length;
}

/** A test for texts, from a pattern of a route. Throws if the pattern is not valid. */
function glob(pattern) {
  const alternatives = alternativesOf(pattern);
  return (text) => {
    const characters = [...String(text)];
    return alternatives.some((tests) => meets(tests, characters));
  };
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
  const fit = filter.conditions.filter((condition) => !Object.hasOwn(OF_ENTRY, condition.name)).slice(0, 15);
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
    if (Object.hasOwn(OF_ENTRY, name)) return OF_ENTRY[name](entry).filter((value) => value !== undefined);
    const value = Object.hasOwn(attributes, name) ? attributes[name] : undefined;
    return value === undefined ? [] : name === 'type' ? [value, shortType(value)] : [value];
  };
  const holds = (condition) => values(condition.name).some((value) => condition.is(value));
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
