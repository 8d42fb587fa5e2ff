// What the reader does, and the start.

let sentQuery = queryOf(filter);
let typing;

function setFilter(text) {
  const parsed = parseFilter(text);
  say($('filter-problem'), parsed.problem);
  $('clear').hidden = text === '';
  filter = parsed;
  lists.forEach((list) => {
    list.limit = SHOWN;
    list.draw();
  });
  clearTimeout(typing);
  // The bridge tests the condition too, so that rare events are found among many.
  typing = setTimeout(() => {
    if (queryOf(filter) === sentQuery && !lists.some((list) => list.hasLeftOut)) return;
    sentQuery = queryOf(filter);
    if (live.hasLeftOut) mark('The filter was changed. Of what came before, only what it found was kept.');
    // The bridge sends the failures again that it has kept.
    lists.forEach((list) => {
      list.hasLeftOut = false;
    });
    connect();
  }, 500);
}

$('query').addEventListener('input', (event) => setFilter(event.target.value));
$('query').addEventListener('keydown', (event) => {
  if (event.key === 'Escape') {
    $('query').value = '';
    setFilter('');
  }
});
$('filter').addEventListener('submit', (event) => event.preventDefault());
$('clear').addEventListener('click', () => {
  $('query').value = '';
  setFilter('');
  $('query').focus();
});
document.addEventListener('click', (event) => {
  const query = event.target.closest?.('button[data-query]')?.dataset.query;
  if (query === undefined) return;
  $('query').value = query;
  setFilter(query);
});
$('retry').addEventListener('click', () => connect());
$('reload').addEventListener('click', () => location.reload());
for (const [target, name] of [
  [window, 'online'],
  [document, 'visibilitychange'],
]) {
  target.addEventListener(name, () => {
    if (!document.hidden && connection.state === 'lost') connect();
    isDirty = true;
  });
}

lists.forEach((list) => list.draw());
showConnection();
setInterval(tick, DRAW_EVERY_MS);
connect();
