// Drives one Chromium for the tests: reads a step as a line of JSON, does it, and answers with a line of JSON.
// `node driver.mjs FOLDER`: node_modules of FOLDER has playwright-core and axe-core.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const require = createRequire(`${process.argv[2]}/`);
const { chromium } = require('playwright-core');
const AXE = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
let page;
let cdp;
let found = [];

// What the page must not do, and how long its thread was busy at once.
function watch() {
  window.watched = { violations: [], gap: 0, last: performance.now() };
  document.addEventListener('securitypolicyviolation', (event) => {
    window.watched.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
  });
  setInterval(() => {
    const now = performance.now();
    window.watched.gap = Math.max(window.watched.gap, now - window.watched.last);
    window.watched.last = now;
  }, 10);
}

const STEPS = {
  async open({ url, width, height, scheme }) {
    await page?.context().close();
    found = [];
    // Most zones are hours away from UTC, and the page shows local times.
    const options = {
      viewport: { width, height },
      colorScheme: scheme,
      timezoneId: 'Asia/Shanghai',
      reducedMotion: 'no-preference',
    };
    const context = await browser.newContext(options);
    page = await context.newPage();
    cdp = await context.newCDPSession(page);
    page.on('dialog', (dialog) => {
      found.push(`dialog ${dialog.message()}`);
      dialog.dismiss();
    });
    page.on('pageerror', (error) => found.push(`error ${error.stack}`));
    page.on('request', (request) => {
      if (new URL(request.url()).host !== new URL(url).host) found.push(`request ${request.url()}`);
    });
    await page.addInitScript(watch);
    const response = await page.goto(url);
    return { status: response.status(), text: await response.text() };
  },
  /** Waits until an element that can be seen has the text. */
  async wait({ selector, text, ms }) {
    const started = performance.now();
    await page.locator(selector).filter({ hasText: text, visible: true }).first().waitFor({ timeout: ms });
    return Math.round(performance.now() - started);
  },
  async gone({ selector, text, ms }) {
    const locator = page.locator(selector).filter({ hasText: text, visible: true });
    const end = performance.now() + ms;
    while (await locator.count()) {
      if (performance.now() > end) throw new Error(`${await locator.count()} are still there`);
      await page.waitForTimeout(50);
    }
  },
  count: ({ selector }) => page.locator(selector).count(),
  text: ({ selector }) => page.locator(selector).first().innerText(),
  title: () => page.title(),
  click: ({ selector }) => page.locator(selector).first().click(),
  /** Moves the pointer away from everything. */
  away: () => page.mouse.move(1, 1),
  press: ({ key }) => page.keyboard.press(key),
  type: ({ text }) => page.keyboard.type(text),
  focused: () =>
    page.evaluate(
      () => `${document.activeElement.id || document.activeElement.className || document.activeElement.tagName}`,
    ),
  outlined: () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle !== 'none'),
  expanded: () => page.evaluate(() => document.activeElement.getAttribute('aria-expanded')),
  overflow: () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth),
  marked: () => page.evaluate(() => window.marked ?? null),
  /** Answers the page's requests for events instead of the bridge; without a body, the bridge answers again. */
  async answer({ status, type, body }) {
    await page.unroute('**/events?*');
    if (body !== null) await page.route('**/events?*', (route) => route.fulfill({ status, contentType: type, body }));
  },
  async axe() {
    await cdp.send('Runtime.evaluate', { expression: AXE });
    const { result, exceptionDetails } = await cdp.send('Runtime.evaluate', {
      expression: `axe.run().then(({ violations }) => JSON.stringify(violations.flatMap(({ id, nodes }) =>
          nodes.map((node) => id + ': ' + node.failureSummary + ' ' + node.html))))`,
      awaitPromise: true,
      returnByValue: true,
    });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return JSON.parse(result.value);
  },
  /** The longest time since the last call in which the page could not react, in milliseconds. */
  gap: () =>
    page.evaluate(() => {
      const { gap } = window.watched;
      Object.assign(window.watched, { gap: 0, last: performance.now() });
      return Math.round(gap);
    }),
  /** What happened that must not: dialogs, errors, requests to others, violations of the policy. */
  faults: async () => [...found, ...(await page.evaluate(() => window.watched.violations))],
  async screenshot({ path, full }) {
    await page.screenshot({ path, fullPage: full, animations: 'disabled' });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const step = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await STEPS[step.do](step)) ?? null };
  } catch (error) {
    answer = {
      error: String(error.message ?? error)
        .split('\n')
        .slice(0, 12)
        .join('\n'),
    };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
