// Words and elements: how times, numbers and texts are shown.

const $ = (id) => document.getElementById(id);

/** An element. Attributes that are undefined, null or false are left out; children are nodes or own texts. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false)
      element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';
function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const ICONS = {
  check: 'M3 8.5 6.5 12 13 4.5',
  cross: 'M4 4l8 8M12 4l-8 8',
  dash: 'M3 8h10',
  clock: 'M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11M8 5v3.2l2 1.6',
  alert: 'M8 2.5 14 13H2ZM8 6.5v3M8 11v.6',
  copy: 'M3 3h7v7H3ZM6 13h7V6',
  box: 'M2.5 4.5h11v8.5h-11ZM2.5 7.5h11M6.5 10h3',
  stop: 'M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11M4.5 4.5l7 7',
};
function icon(name, level = '') {
  const attributes = {
    class: `icon ${level}`,
    viewBox: '0 0 16 16',
    fill: 'none',
    stroke: 'currentColor',
    'stroke-width': '1.8',
    'stroke-linecap': 'round',
    'stroke-linejoin': 'round',
    'aria-hidden': 'true',
  };
  return svg('svg', attributes, svg('path', { d: ICONS[name] }));
}

/** The first `longest` characters of a text. */
function cut(text, longest) {
  if (text.length <= longest) return text;
  // A character must not be cut in half.
  const end = /[\ud800-\udbff]/.test(text[longest - 1]) ? longest - 1 : longest;
  return `${text.slice(0, end)}…`;
}

/** Untrusted text, isolated. */
function bdi(text, longest = Infinity, attributes = {}) {
  const whole = String(text);
  const short = cut(whole, longest);
  return el('bdi', { dir: 'auto', title: short === whole ? undefined : cut(whole, 1000), ...attributes }, short);
}

const word = (outcome) => WORDS[outcome] ?? String(outcome).replaceAll('_', ' ');
const number = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const count = (value) => number.format(value);
const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
const digits = (value) => (value >= 9.95 ? count(value) : String(Number(value.toFixed(value >= 0.995 ? 1 : 2))));

function duration(ms) {
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 9.95 ? 2 : 1)} s`;
  return span(s);
}

/** A time span in seconds, in its two largest units. */
function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 && s < 600 ? ` ${s % 60} s` : ''}`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const CLOCK = { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' };
const CLOCKS = {
  short: new Intl.DateTimeFormat('en', CLOCK),
  seconds: new Intl.DateTimeFormat('en', { ...CLOCK, second: '2-digit' }),
  exact: new Intl.DateTimeFormat('en', { ...CLOCK, second: '2-digit', fractionalSecondDigits: 3 }),
};
const DAY = new Intl.DateTimeFormat('en', { month: 'short', day: 'numeric' });

let clockOffset = 0; // how far the clock of the bridge is ahead of this one, in milliseconds
const nowOfBridge = () => Date.now() + clockOffset;

/** A local time; with its day if that is long ago. */
function clock(time, form = 'seconds') {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return '?';
  const text = CLOCKS[form].format(date);
  return Math.abs(nowOfBridge() - date) > 20 * 3_600_000 ? `${DAY.format(date)} ${CLOCKS.short.format(date)}` : text;
}

/** A local time with UTC in its title. */
function timeOf(time, form, attributes = {}) {
  return el(
    'time',
    { datetime: time, title: `${String(time).replace('T', ' ').replace(/Z$/, '')} UTC`, ...attributes },
    clock(time, form),
  );
}

const ago = (time) => `${span((nowOfBridge() - Date.parse(time)) / 1000)} ago`;

/** Makes `old` look like `fresh` with few changes, so that focus, scroll position and selected text stay. */
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return undefined;
  }
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && name !== 'style') old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (old.getAttribute(name) !== value && name !== 'style') old.setAttribute(name, value);
  if (old.style && fresh.style && old.style.width !== fresh.style.width) old.style.width = fresh.style.width;
  const [had, has] = [[...old.childNodes], [...fresh.childNodes]];
  has.forEach((child, index) => (had[index] ? morph(had[index], child) : old.append(child)));
  had.slice(has.length).forEach((child) => child.remove());
  return undefined;
}

/** Shows `items` as the children of `parent`. Only items that have changed are built. */
function sync(parent, items, build) {
  const known = (parent.known ??= []);
  items.forEach((item, index) => {
    const text = JSON.stringify(item);
    if (known[index] === text && parent.children[index]) return;
    known[index] = text;
    const fresh = build(item);
    if (parent.children[index]) morph(parent.children[index], fresh);
    else parent.append(fresh);
  });
  known.length = items.length;
  while (parent.children.length > items.length) parent.lastElementChild.remove();
}

/** Own text in which code is in backticks. */
const prose = (text) => text.split('`').map((part, index) => (index % 2 ? el('code', {}, part) : part));

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function more(element, left, what) {
  element.hidden = !left;
  say(element, left ? `and ${count(left)} more ${left === 1 ? what : `${what}s`}` : '');
}
