// The page of a running bridge. It reads one stream of server-sent events, and draws what it says.
//
// The files of this folder become one script, in the order of `SCRIPT` in mod.rs, so each can use what an earlier one
// defines.
//
// Everything that comes from the bridge is untrusted text, because senders of callbacks choose parts of it. It becomes
// text nodes only, each in a `bdi`, so that it can neither run nor turn the text around it. What is kept is bounded.

const FORMAT = 1;
const VERSION = document.querySelector('meta[name="version"]').content;
const KEPT = 400; // entries in a list
const KEPT_CHARACTERS = 8_000_000; // of the messages of these entries
const LONGEST_MESSAGE = 16_000_000; // characters of the stream without the end of a message
const SHOWN = 100; // rows in a list, and how many more a press on "Show more" adds
const LONGEST_CELL = 200; // characters of a text in a row
const DRAW_EVERY_MS = 250;
const ANSWER_WITHIN_MS = 10_000;
const SILENT_AFTER_MS = 8_000; // the bridge sends its state every second
const PAUSES_S = [1, 2, 4, 8, 15]; // before the next tries to connect
const WINDOW_S = 900;

const OUTCOMES = ['published', 'duplicate', 'dropped', 'spooled', 'dead_lettered', 'refused', 'not_accepted'];
const WORDS = { dead_lettered: 'dead letter', not_accepted: 'rejected' };
const OUTCOME_LEVEL = { published: 'ok', spooled: 'warn', dead_lettered: 'bad', refused: 'bad', not_accepted: 'bad' };
const OUTCOME_ICON = {
  published: 'check',
  duplicate: 'copy',
  dropped: 'dash',
  spooled: 'clock',
  dead_lettered: 'box',
  refused: 'cross',
  not_accepted: 'stop',
};
const LEVEL_ICON = { ok: 'check', warn: 'alert', bad: 'cross', unknown: 'clock' };
