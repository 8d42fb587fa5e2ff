// Lists of entries.

let filter = parseFilter('');
let numbered = 0;

/** What a row says about an entry. */
function cells(entry) {
  const attributes = entry.attributes ?? {};
  if (entry.kind === 'rejection') {
    return {
      outcome: chip('not_accepted'),
      type: [bdi(word(entry.reason), LONGEST_CELL)],
      where: [bdi(entry.input, 80)],
      subject: bdi(entry.path ?? '', LONGEST_CELL),
      took: '',
    };
  }
  const names = (list) => list.flatMap((each, index) => [index ? ', ' : '', bdi(`${each.output}/${each.topic}`, 120)]);
  const places = entry.destinations?.length
    ? names(entry.destinations.slice(0, 3))
    : entry.output
      ? names([{ output: entry.output, topic: entry.topic ?? '' }])
      : entry.reason
        ? [bdi(word(entry.reason), 80)]
        : [];
  const type = Object.keys(attributes).length
    ? [
        bdi(shortType(attributes.type ?? ''), LONGEST_CELL),
        ' ',
        el('span', { class: 'muted' }, bdi(attributes.status ?? '', 40)),
      ]
    : ['not a callback'];
  const outcome = entry.kind === 'published' ? chip('published', 'from spool') : chip(entry.outcome);
  return {
    outcome,
    type,
    where: places,
    subject: bdi(attributes.subject ?? attributes.id ?? '', LONGEST_CELL),
    took: entry.latency_ms === undefined ? '' : duration(entry.latency_ms),
  };
}

/** What an entry has in common with others of its sort. */
const sortOf = ({ kind, input, outcome, reason }) => (kind === 'rejection' ? `${input} ${reason}` : `${outcome} ${reason}`);

/** What tells an entry from others, also when the bridge sends it again as one of the past. */
const identityOf = ({ kind, time, input, output, topic, path, reason, attributes }) =>
  JSON.stringify([kind, time, input, output, topic, path, reason?.slice(0, 40), attributes?.id]);

/** What became of the event of a callback later. */
function laterThan(entry) {
  const id = entry.attributes?.id;
  if (entry.kind !== 'callback' || id === undefined) return [];
  const all = new Set(lists.flatMap((list) => list.entries));
  return [...all].filter((other) => ['published', 'dead_letter'].includes(other.kind) && other.attributes?.id === id);
}

/** A list that is fair keeps rare sorts of entries when a frequent one needs room. */
class List {
  constructor(section, empty, isFair) {
    this.entries = []; // newest last
    this.isFair = isFair;
    this.characters = 0;
    this.open = new Map(); // from entries to whether their details are shown
    this.rows = new Map(); // from entries to elements
    this.limit = SHOWN;
    this.isPaused = false;
    this.hasLeftOut = false; // whether entries came that the filter does not find
    this.frozen = undefined; // what is shown while the list is held
    this.arrivals = [];
    this.left = { total: 0, latest: 0 };
    this.emptyText = empty;
    [this.held, this.list, this.empty] = ['.held', '.rows', '.empty'].map((name) => section.querySelector(name));
    this.held.append(
      el('span'),
      el('button', { type: 'button', hidden: true }, 'Show the newest'),
      el('button', { type: 'button', hidden: true }, 'Show more'),
    );
    [this.heldText, this.newest, this.moreButton] = this.held.children;
    this.pause = section.querySelector('.pause');
    this.pause.addEventListener('click', () => this.setPaused(!this.isPaused));
    this.newest.addEventListener('click', () => this.release());
    this.moreButton.addEventListener('click', () => {
      this.limit += SHOWN;
      this.draw();
    });
    this.list.addEventListener('click', (event) => {
      const row = event.target.closest('.row');
      if (row) this.toggle(row.entry);
    });
    this.list.addEventListener('keydown', (event) => this.key(event));
    for (const [name, isOver] of [
      ['pointerenter', true],
      ['pointerleave', false],
    ]) {
      this.list.addEventListener(name, (event) => {
        this.isPointerOver = isOver && event.pointerType === 'mouse';
      });
    }
  }

  setPaused(isPaused) {
    this.isPaused = isPaused;
    this.pause.setAttribute('aria-pressed', String(isPaused));
    this.pause.textContent = isPaused ? 'Resume' : 'Pause';
    this.draw();
  }

  /** Shows what has arrived in the meantime. */
  release() {
    this.open.clear();
    this.list.scrollTop = 0;
    this.limit = SHOWN;
    this.isPointerOver = false;
    const hadFocus = this.newest.ownerDocument.activeElement === this.newest;
    if (this.isPaused) this.setPaused(false);
    this.frozen = undefined;
    this.draw();
    if (hadFocus) this.pause.focus();
  }

  add(entry) {
    // Among many others, what the filter finds would soon have to go.
    if (entry.kind !== 'mark' && !fits(filter, entry)) {
      this.hasLeftOut = true;
      return;
    }
    entry.number = numbered += 1;
    if (entry.past) {
      if (this.entries.some((other) => other.identity === entry.identity)) return;
      const before = this.entries.findLastIndex((other) => other.time <= entry.time);
      this.entries.splice(before + 1, 0, entry);
    } else {
      this.entries.push(entry);
      if (entry.kind !== 'mark') this.arrivals.push(performance.now());
    }
    this.characters += entry.characters ?? 0;
    while (this.entries.length > KEPT || (this.characters > KEPT_CHARACTERS && this.entries.length > 1)) {
      const [gone] = this.entries.splice(this.isFair ? this.oldestOfMost() : 0, 1);
      this.characters -= gone.characters ?? 0;
    }
    if (this.arrivals.length > KEPT) this.arrivals.splice(0, this.arrivals.length - KEPT);
  }

  /** Where the oldest entry of the most frequent sort is. */
  oldestOfMost() {
    const counts = new Map();
    for (const { sort } of this.entries) counts.set(sort, (counts.get(sort) ?? 0) + 1);
    const [most] = [...counts].reduce((one, other) => (other[1] > one[1] ? other : one));
    return this.entries.findIndex(({ sort }) => sort === most);
  }

  /** Why the list does not move at present. */
  holdReason() {
    if (this.isPaused) return 'Paused';
    if (this.open.size) return 'Held while a row is open';
    if (this.list.scrollTop > 8) return 'Held while you read further down';
    if (this.list.querySelector('.row:focus-visible')) return 'Held while a row has the focus';
    const now = performance.now();
    while (this.arrivals.length && now - this.arrivals[0] > 1000) this.arrivals.shift();
    if (this.isPointerOver && this.arrivals.length > 2) return 'Held while the pointer is on the list';
    return '';
  }

  toggle(entry) {
    if (!this.open.delete(entry)) {
      this.open.set(entry, true);
      this.frozen ??= [...this.entries];
    }
    const item = this.rows.get(entry);
    if (item) this.showDetails(item, entry);
    this.draw();
    if (this.open.has(entry)) item?.scrollIntoView({ block: 'nearest' });
  }

  showDetails(item, entry) {
    const isOpen = this.open.has(entry);
    item.firstElementChild.setAttribute('aria-expanded', String(isOpen));
    item.querySelector('.path')?.remove();
    if (!isOpen) return;
    item.append(details(entry, laterThan(entry)));
    item.later = laterThan(entry).length;
  }

  key(event) {
    const row = event.target.closest('.row');
    if (event.key === 'Escape') {
      const item = event.target.closest('.rows > li');
      const entry = item?.firstElementChild.entry;
      if (entry && this.open.has(entry)) this.toggle(entry);
      item?.firstElementChild.focus();
      return;
    }
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = [...this.list.querySelectorAll('.row')];
    const at = rows.indexOf(row);
    const to = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      Home: 0,
      End: rows.length - 1,
      PageDown: at + 10,
      PageUp: at - 10,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = rows[Math.max(0, Math.min(rows.length - 1, to))];
    this.setStop(next);
    next.focus();
  }

  /** Makes one row the one that Tab reaches; the arrow keys lead to the others. */
  setStop(row) {
    this.list.querySelectorAll('.row[tabindex="0"]').forEach((each) => {
      each.tabIndex = -1;
    });
    if (row) row.tabIndex = 0;
  }

  build(entry) {
    if (entry.kind === 'mark') return el('li', { class: 'mark' }, timeOf(entry.time), ` ${entry.text}`);
    const { outcome, type, where, subject, took } = cells(entry);
    outcome.classList.add('outcome');
    const row = el(
      'button',
      { type: 'button', class: 'row', 'aria-expanded': 'false', tabindex: '-1' },
      timeOf(entry.time, 'exact', { class: 'time' }),
      outcome,
      el('span', { class: 'type' }, ...type),
      el('span', { class: 'subject' }, subject),
      el('span', { class: 'where' }, ...where),
      el('span', { class: 'took' }, took),
    );
    row.entry = entry;
    return el('li', {}, row);
  }

  draw() {
    const reason = this.holdReason();
    if (!reason) this.frozen = undefined;
    else this.frozen ??= [...this.entries];
    const source = this.frozen ?? this.entries;
    const matching = source.filter((entry) => entry.kind === 'mark' || fits(filter, entry));
    const shown = matching.slice(-this.limit).reverse();
    const wanted = new Set(shown);
    for (const [entry, item] of this.rows) {
      if (wanted.has(entry)) continue;
      item.remove();
      this.rows.delete(entry);
      this.open.delete(entry);
    }
    const fresh = shown.filter((entry) => !this.rows.has(entry)).length;
    const isCalm = this.rows.size > 0 && fresh <= 5;
    let before = this.list.firstElementChild;
    for (const entry of shown) {
      let item = this.rows.get(entry);
      if (item && item === before) {
        before = before.nextElementSibling;
        continue;
      }
      if (!item) {
        item = this.build(entry);
        if (isCalm) item.classList.add('new');
        this.rows.set(entry, item);
      }
      this.list.insertBefore(item, before);
    }
    for (const entry of this.open.keys()) {
      const item = this.rows.get(entry);
      if (item && item.later !== laterThan(entry).length) this.showDetails(item, entry);
    }
    if (!this.list.querySelector('.row[tabindex="0"]')) this.setStop(this.list.querySelector('.row'));

    const last = source.at(-1)?.number ?? 0;
    const newer = this.frozen
      ? this.entries.filter((entry) => entry.number > last && entry.kind !== 'mark' && fits(filter, entry)).length
      : 0;
    const rows = matching.filter((entry) => entry.kind !== 'mark').length;
    const parts = [];
    if (reason)
      parts.push(`${reason}${newer ? `: ${newer >= KEPT ? `${count(newer)} or more` : count(newer)} newer` : ''}.`);
    if (rows > shown.length) parts.push(`The newest ${count(shown.length)} of ${count(rows)}.`);
    else if (rows) parts.push(`${counted(rows, 'entry', 'entries')}${isFiltered() ? ` that match${rows === 1 ? 'es' : ''}` : ''}.`);
    const isLeavingOut = this.left.latest > performance.now() - 5000;
    if (this.left.total)
      parts.push(
        `${count(this.left.total)} left out${isLeavingOut ? ' and counting' : ''}: ${this.left.why}.`
          + ' Figures and charts count all.',
      );
    say(this.heldText, parts.join(' '));
    this.newest.hidden = !(reason && newer);
    this.moreButton.hidden = rows <= shown.length;
    say(this.empty, rows ? '' : isFiltered() ? 'Nothing here matches the filter.' : this.emptyText);
  }
}

const isFiltered = () => filter.conditions.length + filter.words.length > 0;

const live = new List(
  $('live'),
  'No event since this page was opened. Events are noted only while somebody watches; failures and rejections always.',
);
const failures = new List(
  $('failures'),
  'No failure and no rejection is kept. The last 100 of each are, also while nobody watches.',
  true,
);
const lists = [live, failures];
