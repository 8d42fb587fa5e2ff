// The charts.

let steps = [];
const WIDE = new Map(); // from plots to their widths

/** The next round number: 1, 2 or 5 with zeros. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= value);
}

const PLOT = { height: 150, left: 46, right: 8, top: 8, bottom: 20 };

class Chart {
  constructor(name, series, { values, label, scale, summary, unit }) {
    Object.assign(this, { name, series, values, label, scale, summary, unit });
    [this.plot, this.legend, this.note, this.table, this.whole] = ['plot', 'legend', 'note', 'table', 'details'].map(
      (part) => $(`${name}-${part}`),
    );
    new ResizeObserver(([{ contentRect }]) => {
      WIDE.set(this.plot, contentRect.width);
      this.draw();
    }).observe(this.plot);
    this.plot.addEventListener('pointermove', (event) => {
      this.pointer = event.offsetX;
      this.point();
    });
    this.plot.addEventListener('pointerleave', () => {
      this.pointer = undefined;
      this.point();
    });
    this.whole.addEventListener('toggle', () => this.draw());
  }

  x(time) {
    const width = (WIDE.get(this.plot) ?? 500) - PLOT.left - PLOT.right;
    return PLOT.left + width * (1 - (this.end - time) / 1000 / WINDOW_S);
  }

  draw() {
    const width = WIDE.get(this.plot) ?? 500;
    this.end = Math.max(nowOfBridge(), Date.parse(steps.at(-1)?.time ?? 0) || 0);
    const root = svg('svg', { viewBox: `0 0 ${width} ${PLOT.height}`, role: 'img', 'aria-label': this.summary() });
    const scale = this.scale();
    for (const tick of scale.ticks) {
      root.append(
        svg('line', { class: 'grid', x1: PLOT.left, x2: width - PLOT.right, y1: scale.y(tick), y2: scale.y(tick) }),
        svg('text', { x: PLOT.left - 6, y: scale.y(tick) + 4, 'text-anchor': 'end' }, this.label(tick)),
      );
    }
    for (const minutes of [15, 10, 5, 0]) {
      const at = this.end - minutes * 60_000;
      root.append(
        svg(
          'text',
          {
            x: this.x(at),
            y: PLOT.height - 4,
            'text-anchor': minutes === 15 ? 'start' : minutes === 0 ? 'end' : 'middle',
          },
          clock(at, 'short'),
        ),
      );
    }
    this.paint(root, scale);
    this.cursor = svg('line', { class: 'cursor', y1: PLOT.top, y2: PLOT.height - PLOT.bottom, visibility: 'hidden' });
    root.append(this.cursor);
    this.plot.replaceChildren(root);
    this.point();
    if (this.whole.open) this.fill();
  }

  /** Says what was at the pointer. */
  point() {
    const width = WIDE.get(this.plot) ?? 500;
    const inside = this.pointer !== undefined && this.pointer >= PLOT.left && this.pointer <= width - PLOT.right;
    const step = inside ? steps.find((each) => this.x(Date.parse(each.time)) >= this.pointer) : undefined;
    this.cursor?.setAttribute('visibility', step ? 'visible' : 'hidden');
    if (!step) return say(this.note, 'last 15 minutes');
    const middle = this.x(Date.parse(step.time) - step.seconds * 500);
    this.cursor.setAttribute('x1', middle);
    this.cursor.setAttribute('x2', middle);
    return say(this.note, `${clock(step.time)}: ${this.values(step)}`);
  }

  fill() {
    // There is something new every ten seconds. In between, what the reader has marked in the table stays.
    const filled = JSON.stringify([steps.length, steps[0]?.time, steps.at(-1)?.time]);
    if (this.filled === filled) return;
    this.filled = filled;
    const head = el(
      'tr',
      {},
      el('th', { scope: 'col' }, 'until'),
      ...this.series.map((each) => el('th', { scope: 'col' }, this.unit.head(each))),
    );
    const rows = [...steps]
      .reverse()
      .map((step) =>
        el(
          'tr',
          {},
          el('th', { scope: 'row' }, timeOf(step.time)),
          ...this.series.map((each) => el('td', {}, this.unit.cell(step, each))),
        ),
      );
    this.table.replaceChildren(el('thead', {}, head), el('tbody', {}, ...rows));
  }
}

const rateOf = (step, outcome) => (step[outcome] ?? 0) / (step.seconds || 1);
const sumOf = (outcome) => steps.reduce((sum, step) => sum + (step[outcome] ?? 0), 0);
const allOf = (step) => OUTCOMES.reduce((sum, outcome) => sum + (step[outcome] ?? 0), 0);

/** A row of a legend: what it looks like in the chart, and its words. */
function legendOf(words, ...mark) {
  return el('li', {}, svg('svg', { viewBox: '0 0 12 12', 'aria-hidden': 'true' }, ...mark), words);
}

function hatch(id, outcome) {
  return svg(
    'pattern',
    { id, width: 5, height: 5, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
    svg('rect', { width: 5, height: 5, fill: `var(--${outcome})` }),
    svg('rect', { width: 1.6, height: 5, fill: 'var(--panel)' }),
  );
}
// Failures also have a pattern, for those who do not tell the colours apart.
const HATCHED = ['refused', 'dead_lettered'];
const fillOf = (outcome, id) => (HATCHED.includes(outcome) ? `url(#${id}-${outcome})` : `var(--${outcome})`);

const rate = new Chart('rate', OUTCOMES, {
  label: (tick) => digits(tick),
  unit: { head: word, cell: (step, outcome) => digits(rateOf(step, outcome)) },
  values: (step) =>
    OUTCOMES.filter((outcome) => step[outcome])
      .map((outcome) => `${word(outcome)} ${digits(rateOf(step, outcome))}/s`)
      .join(', ') || 'nothing',
  summary: () =>
    `Callbacks per second in the last 15 minutes. In all: ${
      OUTCOMES.filter(sumOf)
        .map((outcome) => `${count(sumOf(outcome))} ${word(outcome)}`)
        .join(', ') || 'none'
    }.`,
  scale: () => {
    const top = round(Math.max(0.2, ...steps.map((step) => allOf(step) / (step.seconds || 1))));
    const y = (value) => PLOT.height - PLOT.bottom - (PLOT.height - PLOT.bottom - PLOT.top) * (value / top);
    return { y, ticks: [0, top / 2, top] };
  },
});
rate.paint = function paint(root, scale) {
  root.append(svg('defs', {}, ...HATCHED.map((outcome) => hatch(`chart-${outcome}`, outcome))));
  const paths = Object.fromEntries(OUTCOMES.map((outcome) => [outcome, '']));
  for (const step of steps) {
    const until = Date.parse(step.time);
    const from = Math.max(this.x(until - step.seconds * 1000), PLOT.left);
    const wide = Math.max(1, this.x(until) - from - 0.8);
    if (this.x(until) <= PLOT.left) continue;
    let below = 0;
    for (const outcome of OUTCOMES) {
      if (!step[outcome]) continue;
      const value = rateOf(step, outcome);
      // Rare outcomes must be seen next to frequent ones.
      const high = Math.max(outcome === 'published' ? 0.5 : 2, scale.y(0) - scale.y(value));
      const bottom = scale.y(0) - below;
      paths[outcome] +=
        `M${from.toFixed(1)} ${(bottom - high).toFixed(1)}h${wide.toFixed(1)}v${high.toFixed(1)}`
        + `h${(-wide).toFixed(1)}Z`;
      below += high;
    }
  }
  for (const outcome of OUTCOMES)
    if (paths[outcome]) root.append(svg('path', { d: paths[outcome], fill: fillOf(outcome, 'chart') }));
  const seen = OUTCOMES.filter((outcome) => outcome === 'published' || sumOf(outcome)).map((outcome) => [
    outcome,
    count(sumOf(outcome)),
  ]);
  sync(this.legend, seen, ([outcome, sum]) =>
    legendOf(
      `${word(outcome)} ${sum}`,
      svg('defs', {}, ...(HATCHED.includes(outcome) ? [hatch(`key-${outcome}`, outcome)] : [])),
      svg('rect', { width: 12, height: 12, rx: 2, fill: fillOf(outcome, 'key') }),
    ),
  );
};

const PERCENTILES = { p50_ms: 'p50', p99_ms: 'p99' };
const isNumber = (value) => typeof value === 'number';
const latency = new Chart('latency', ['p50_ms', 'p99_ms'], {
  label: (tick) => (tick >= 1000 ? `${tick / 1000} s` : `${tick} ms`),
  unit: {
    head: (name) => PERCENTILES[name],
    cell: (step, name) => (isNumber(step[name]) ? duration(step[name]) : '–'),
  },
  values: (step) =>
    isNumber(step.p50_ms) ? `p50 ${duration(step.p50_ms)}, p99 ${duration(step.p99_ms)}` : 'no callback',
  summary: () => {
    const last = steps.findLast((step) => isNumber(step.p50_ms));
    const highest = Math.max(...steps.map((step) => step.p99_ms ?? 0));
    return last
      ? `Latency in the last 15 minutes. Latest: p50 ${duration(last.p50_ms)}, p99 ${duration(last.p99_ms)}.`
          + ` Highest p99: ${duration(highest)}.`
      : 'Latency in the last 15 minutes: no callback.';
  },
  scale: () => {
    const all = steps.flatMap((step) => [step.p50_ms, step.p99_ms]).filter((value) => isNumber(value) && value > 0);
    const low = Math.floor(Math.log10(Math.max(0.1, Math.min(1, ...all))));
    const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(1, ...all)) - 1e-9));
    const y = (value) =>
      PLOT.height
      - PLOT.bottom
      - (PLOT.height - PLOT.bottom - PLOT.top) * ((Math.log10(Math.max(value, 10 ** low)) - low) / (high - low));
    return {
      y,
      ticks: Array.from({ length: high - low + 1 }, (_, index) => Number((10 ** (low + index)).toPrecision(1))),
    };
  },
});
latency.paint = function paint(root, scale) {
  for (const [name, dashes] of [
    ['p99_ms', '5 3'],
    ['p50_ms', ''],
  ]) {
    let [path, isDown, previous] = ['', false, 0];
    for (const step of steps) {
      const at = Date.parse(step.time);
      const middle = this.x(at - step.seconds * 500);
      const isHere = isNumber(step[name]) && middle >= PLOT.left;
      if (isHere) {
        const goesOn = isDown && at - previous < 15_000;
        path += `${goesOn ? 'L' : 'M'}${middle.toFixed(1)} ${scale.y(step[name]).toFixed(1)}${goesOn ? '' : 'h0.1'}`;
      }
      [isDown, previous] = [isHere, at];
    }
    if (path)
      root.append(
        svg('path', {
          class: 'line',
          d: path,
          stroke: `var(--${PERCENTILES[name]})`,
          'stroke-dasharray': dashes,
          'stroke-linecap': 'round',
        }),
      );
  }
  const last = steps.findLast((step) => isNumber(step.p50_ms)) ?? {};
  const items = ['p50_ms', 'p99_ms'].map((name) => [name, isNumber(last[name]) ? duration(last[name]) : '–']);
  sync(this.legend, items, ([name, value]) =>
    legendOf(
      `${PERCENTILES[name]} ${value}`,
      svg('path', {
        d: 'M0 6h12',
        stroke: `var(--${PERCENTILES[name]})`,
        'stroke-width': 2.5,
        'stroke-dasharray': name === 'p99_ms' ? '4 2' : '',
      }),
    ),
  );
};
const charts = [rate, latency];

/** Takes the new steps of a state, keeps those of the window. What was before a restart stays. */
function takeSteps(history, isWhole) {
  const fresh = history?.steps ?? [];
  const first = fresh.length ? Date.parse(fresh[0].time) - fresh[0].seconds * 1000 : Infinity;
  const kept = isWhole ? steps.filter((step) => Date.parse(step.time) < first + 1000) : steps;
  const oldest = nowOfBridge() - WINDOW_S * 1000;
  // The clock of the bridge can be set back.
  const newest = nowOfBridge() + 5_000;
  const isInWindow = (step) => Date.parse(step.time) > oldest && Date.parse(step.time) < newest;
  steps = [...kept, ...fresh].filter(isInWindow).slice(-200);
}
