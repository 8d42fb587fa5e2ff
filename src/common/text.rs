//! Texts: sentences for people, and trimming.

/// A description as a sentence.
pub fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    let rest = characters.as_str();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{}{rest}{end}", first.to_uppercase())
}

/// As [`str::trim`], but faster for a text without anything to trim.
pub fn trim(text: &str) -> &str {
    let is_graphic = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    let bytes = text.as_bytes();
    if is_graphic(bytes.first()) && is_graphic(bytes.last()) { text } else { text.trim() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_removes_every_white_space() {
        for text in ["", " ", "a", " a", "a\u{3000}", "\u{85}a b\n", "é ", "\u{7f}"] {
            assert_eq!(trim(text), text.trim(), "{text:?}");
        }
    }
}
