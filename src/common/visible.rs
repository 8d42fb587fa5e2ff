//! Text of senders for terminals: characters that a terminal obeys or does not show are escaped.
//!
//! A title or a key in a callback can contain sequences that change what a terminal shows, or characters that reverse a
//! line. What commands and the console print of a callback passes through here.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters that are invisible or change how others are shown: controls, and those that Unicode calls format characters
/// (without the Arabic and Syriac ones, which have a shape), separators of lines, or ignorable by default.
const HIDDEN: [(char, char); 20] = [
    ('\0', '\u{1F}'),
    ('\u{7F}', '\u{9F}'),
    ('\u{AD}', '\u{AD}'),
    ('\u{34F}', '\u{34F}'),
    ('\u{61C}', '\u{61C}'),
    ('\u{115F}', '\u{1160}'),
    ('\u{17B4}', '\u{17B5}'),
    ('\u{180B}', '\u{180F}'),
    ('\u{200B}', '\u{200F}'),
    ('\u{2028}', '\u{202E}'),
    ('\u{2060}', '\u{206F}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{FE00}', '\u{FE0F}'),
    ('\u{FEFF}', '\u{FEFF}'),
    ('\u{FFA0}', '\u{FFA0}'),
    ('\u{FFF0}', '\u{FFFB}'),
    ('\u{13430}', '\u{1343F}'),
    ('\u{1BCA0}', '\u{1BCA3}'),
    ('\u{1D173}', '\u{1D17A}'),
    ('\u{E0000}', '\u{E0FFF}'),
];

fn is_hidden(c: char) -> bool {
    HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// Text of several lines: hidden characters as in Rust, for example `\u{1b}`, except line ends and tabs.
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n', '\t'], in_text)
}

/// Text of one line: all hidden characters as in Rust, for example `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, &[], in_text)
}

/// JSON as this program writes it, compact or indented: hidden characters as in JSON, for example `\u001b`. They occur
/// only in strings, so that the meaning stays the same.
pub fn json(json: &[u8]) -> Cow<'_, [u8]> {
    match String::from_utf8_lossy(json) {
        Cow::Borrowed(text) => match escaped(text, &['\n'], in_json) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        // It was damaged on the disk.
        Cow::Owned(text) => Cow::Owned(escaped(&text, &['\n'], in_json).into_owned().into_bytes()),
    }
}

fn in_text(c: char, out: &mut String) {
    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
}

fn in_json(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

fn escaped<'t>(text: &'t str, kept: &[char], escape: fn(char, &mut String)) -> Cow<'t, str> {
    let is_escaped = |c: char| is_hidden(c) && !kept.contains(&c);
    let Some(first) = text.find(is_escaped) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_escaped(c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_or_hides_is_escaped() {
        for c in [
            '\0',
            '\u{1b}',
            '\r',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{200b}',
            '\u{200e}',
            '\u{202e}',
            '\u{2066}',
            '\u{2028}',
            '\u{feff}',
            '\u{fe0f}',
            '\u{e0041}',
        ] {
            let shown = format!("a\\u{{{:x}}}b", u32::from(c));
            assert_eq!((text(&format!("a{c}b")).as_ref(), line(&format!("a{c}b")).as_ref()), (&*shown, &*shown));
        }
        for plain in ["", "Ä 测试 😀 ~", " \u{a0}\u{600}\u{e000}\u{fffd}"] {
            assert!(matches!(line(plain), Cow::Borrowed(same) if same == plain), "{plain:?}");
        }
        assert_eq!((text("a\n\tb").as_ref(), line("a\n\tb").as_ref()), ("a\n\tb", "a\\u{a}\\u{9}b"));
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value =
            serde_json::json!({ "\u{202e}key": "\u{1b}[31m\u{9b}1m\u{7f}\n\\\"", "tag": ["\u{e0041}", 1.5, "测"] });
        for written in [value.to_string(), format!("{value:#}\n")] {
            let shown = json(written.as_bytes());
            let shown = std::str::from_utf8(&shown).expect("text");
            assert!(!shown.chars().any(|c| is_hidden(c) && c != '\n'), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(shown).expect("JSON"), value);
        }
        assert_eq!(json("\"\u{e0041}\"".as_bytes()).as_ref(), br#""\udb40\udc41""#);
        assert_eq!(json(b"\"\xff\x1b").as_ref(), "\"\u{fffd}\\u001b".as_bytes());
        assert!(matches!(json(br#"{"a":"b"}"#), Cow::Borrowed(_)));
    }
}
