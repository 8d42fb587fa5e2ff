//! The JSON tree of a callback.
//!
//! It differs from `serde_json::Value` where the envelope promises more: numbers keep their digits, members keep their
//! order, strings borrow from the input, and two members of one name are an error unless they are equal. Reading never
//! recurses deeper than [`MAX_DEPTH`].
//!
//! A tree is in an arena, which its maker provides for one callback: values are copied freely, nothing is freed one by
//! one, and a text that is decoded on the way lives as long as the input.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use bumpalo::Bump;
use hifijson::num::LexWrite as _;
use hifijson::str::LexAlloc as _;
use hifijson::token::Lex as _;
use hifijson::{SliceLexer, token::Expect};

/// Most levels of nested arrays and objects, with JSON inside strings.
///
/// Alibaba's deepest payload (the AI review) has 8 levels. Common readers stop between 100 and 128 levels, so that all of
/// them can read an envelope of this depth with its own level on top.
pub const MAX_DEPTH: usize = 64;

/// A JSON value. Its texts, items and members are in the input or in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Json<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number with its digits as they were written.
    Number(&'a str),
    /// A string, without its escapes.
    String(&'a str),
    /// An array.
    Array(&'a [Json<'a>]),
    /// The members of an object in their order. No key occurs twice.
    Object(&'a [Member<'a>]),
}

/// How many members of open objects there is space for at first.
const OPEN_MEMBERS: usize = 32;

/// A member of an object: its key and its value.
pub type Member<'a> = (&'a str, Json<'a>);

/// Members of an object that is not complete yet.
pub type Members<'a> = bumpalo::collections::Vec<'a, Member<'a>>;

/// Why a text cannot be read as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text breaks the grammar of JSON.
    #[error("not valid JSON at byte {byte}: {expected}")]
    Syntax {
        /// Offset in the text, counted from 0.
        byte: usize,
        /// What is wrong, or what was expected.
        expected: String,
    },
    /// Arrays and objects nest deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels at byte {byte}")]
    TooDeep {
        /// Offset of the first level that is too deep.
        byte: usize,
    },
    /// An object has two members of one name with different values. Readers would disagree about it.
    #[error("key `{key}` occurs twice with different values, in the object that ends at byte {byte}")]
    DuplicateKey {
        /// The repeated key without control characters, at most 80 characters.
        key: String,
        /// Offset of the end of the object.
        byte: usize,
    },
}

impl<'a> Json<'a> {
    /// Reads one JSON value that fills the whole text. Its arrays, its objects and the strings with escapes are in the
    /// arena.
    ///
    /// # Errors
    /// [`JsonError`], with the byte where reading stopped.
    pub fn parse(text: &'a [u8], arena: &'a Bump) -> Result<Json<'a>, JsonError> {
        Self::parse_within(text, MAX_DEPTH, arena)
    }

    /// As [`Json::parse`], with a limit of its own for the levels: for JSON inside a string.
    ///
    /// # Errors
    /// As [`Json::parse`].
    pub fn parse_within(text: &'a [u8], levels: usize, arena: &'a Bump) -> Result<Json<'a>, JsonError> {
        let text = std::str::from_utf8(text).map_err(|error| JsonError::Syntax {
            byte: error.valid_up_to(),
            expected: "the text is not UTF-8".to_owned(),
        })?;
        let lexer = SliceLexer::new(text.as_bytes());
        let mut reader = Reader { lexer, text, arena, items: Vec::new(), members: Vec::with_capacity(OPEN_MEMBERS) };
        let first =
            reader.lexer.ws_peek().ok_or_else(|| reader.syntax("a value was expected, but the text is empty"))?;
        let value = reader.value(first, levels)?;
        match reader.lexer.ws_peek() {
            None => Ok(value),
            Some(_) => Err(reader.syntax("nothing was expected after the value")),
        }
    }

    /// The text of a string.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The text of a string or the digits of a number. Ids are read this way.
    pub fn as_text(self) -> Option<&'a str> {
        match self {
            Json::String(text) | Json::Number(text) => Some(text),
            _ => None,
        }
    }

    /// The member of an object by its exact key.
    pub fn get(self, key: &str) -> Option<Json<'a>> {
        match self {
            Json::Object(members) => find(members, key),
            _ => None,
        }
    }

    /// Appends the value as compact JSON, members in their order.
    ///
    /// `input` is what the value was read from, or empty. Texts that are parts of it are not searched again for bytes that
    /// must be escaped, because the reader has found none in them. That takes a tenth of the time of normalizing.
    pub fn write(&self, input: &[u8], out: &mut Vec<u8>) {
        match self {
            Json::Null => out.extend_from_slice(b"null"),
            Json::Bool(true) => out.extend_from_slice(b"true"),
            Json::Bool(false) => out.extend_from_slice(b"false"),
            Json::Number(text) => out.extend_from_slice(text.as_bytes()),
            Json::String(text) => write_text(text, input, out),
            Json::Array(items) => write_array(items, out, |item, out| item.write(input, out)),
            Json::Object(members) => write_members(members, input, out),
        }
    }

    /// Appends the value as JSON for people, indented by two blanks for each level.
    pub fn write_pretty(&self, indent: usize, out: &mut Vec<u8>) {
        let new_line = |indent: usize, out: &mut Vec<u8>| {
            out.push(b'\n');
            out.resize(out.len() + 2 * indent, b' ');
        };
        match self {
            Json::Array(items) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    out.push(if index == 0 { b'[' } else { b',' });
                    new_line(indent + 1, out);
                    item.write_pretty(indent + 1, out);
                }
                new_line(indent, out);
                out.push(b']');
            }
            Json::Object(members) if !members.is_empty() => {
                for (index, (key, value)) in members.iter().enumerate() {
                    out.push(if index == 0 { b'{' } else { b',' });
                    new_line(indent + 1, out);
                    write_string(key, out);
                    out.extend_from_slice(b": ");
                    value.write_pretty(indent + 1, out);
                }
                new_line(indent, out);
                out.push(b'}');
            }
            other => other.write(&[], out),
        }
    }

    /// Appends the value as canonical JSON: compact, keys in byte order at every depth, numbers with their digits.
    /// `input` is the same as in [`Json::write`].
    pub fn write_canonical(&self, input: &[u8], out: &mut Vec<u8>) {
        self.write_sorted(input, &mut Vec::with_capacity(OPEN_MEMBERS), out);
    }

    /// `sorted` holds the members of the objects that are open, each object's in the order of their keys, the innermost
    /// object last.
    fn write_sorted(&self, input: &[u8], sorted: &mut Vec<Sorted<'a>>, out: &mut Vec<u8>) {
        match self {
            Json::Array(items) => write_array(items, out, |item, out| item.write_sorted(input, sorted, out)),
            Json::Object(members) => {
                let start = sorted.len();
                sorted.extend(members.iter().map(|member| Sorted { head: head(member.0), member }));
                sorted[start..].sort_unstable_by(|one, other| {
                    one.head.cmp(&other.head).then_with(|| one.member.0.as_bytes().cmp(other.member.0.as_bytes()))
                });
                out.push(b'{');
                for index in start..start + members.len() {
                    if index > start {
                        out.push(b',');
                    }
                    let (key, value) = sorted[index].member;
                    write_text(key, input, out);
                    out.push(b':');
                    value.write_sorted(input, sorted, out);
                }
                out.push(b'}');
                sorted.truncate(start);
            }
            scalar => scalar.write(input, out),
        }
    }
}

/// A member of an object whose members are sorted.
struct Sorted<'a> {
    head: u64,
    member: &'a Member<'a>,
}

/// The first eight bytes of a key. They decide most comparisons, without a call.
fn head(key: &str) -> u64 {
    let mut head = [0; 8];
    match key.as_bytes().first_chunk() {
        Some(bytes) => head = *bytes,
        None => head[..key.len()].copy_from_slice(key.as_bytes()),
    }
    u64::from_be_bytes(head)
}

/// The member of a name.
pub fn find<'a>(members: &[Member<'a>], name: &str) -> Option<Json<'a>> {
    members.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

impl fmt::Display for Json<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write(&[], &mut text);
        formatter.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Whether the text is a number in the grammar of JSON (RFC 8259 §6): without a plus sign and without leading zeros.
pub fn is_number(text: &str) -> bool {
    let digits = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = text.as_bytes();
    rest = rest.strip_prefix(b"-").unwrap_or(rest);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let length = digits(exponent);
        if length == 0 {
            return false;
        }
        rest = &exponent[length..];
    }
    rest.is_empty()
}

/// Position of the first byte that a JSON string cannot contain unescaped: a quotation mark, a backslash or a control
/// character.
///
/// Every string of a callback is scanned several times. Eight bytes at once take a quarter of the time of one by one.
fn first_special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH_BITS: u64 = ONES << 7;
    /// The high bit of the first byte below `limit` (at most 128), and perhaps of later bytes.
    fn below(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGH_BITS
    }
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = below(word, b' ') | quote | backslash;
        if special != 0 {
            return Some(index * 8 + special.trailing_zeros() as usize / 8);
        }
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1F);
    rest.iter().position(is_special).map(|position| words.len() * 8 + position)
}

/// Appends the text as a JSON string.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    if first_special(text.as_bytes()).is_some() {
        out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    } else {
        write_plain(text, out);
    }
}

/// Appends a text as a JSON string; see [`Json::write`].
fn write_text(text: &str, input: &[u8], out: &mut Vec<u8>) {
    if input.as_ptr_range().contains(&text.as_ptr()) {
        write_plain(text, out);
    } else {
        write_string(text, out);
    }
}

/// Appends a text without a byte that JSON escapes as a JSON string.
pub(super) fn write_plain(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn write_array<'a>(items: &[Json<'a>], out: &mut Vec<u8>, mut write: impl FnMut(&Json<'a>, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

/// Appends an object of these members, as [`Json::write`] does.
pub fn write_members(members: &[Member<'_>], input: &[u8], out: &mut Vec<u8>) {
    out.push(b'{');
    for (index, (key, value)) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(key, input, out);
        out.push(b':');
        value.write(input, out);
    }
    out.push(b'}');
}

/// Reads a text. Items and members wait in one list each until their array or object is complete and its size is known:
/// an array of thousands of empty objects takes little more memory than its text.
struct Reader<'a> {
    lexer: SliceLexer<'a>,
    text: &'a str,
    arena: &'a Bump,
    /// Items of the arrays that are open, the innermost last.
    items: Vec<Json<'a>>,
    /// Members of the objects that are open, the innermost last.
    members: Vec<Member<'a>>,
}

impl<'a> Reader<'a> {
    fn byte(&self) -> usize {
        self.text.len() - self.lexer.as_slice().len()
    }

    fn syntax(&self, expected: impl fmt::Display) -> JsonError {
        JsonError::Syntax { byte: self.byte(), expected: expected.to_string() }
    }

    fn value(&mut self, first: u8, levels: usize) -> Result<Json<'a>, JsonError> {
        match first {
            b'"' => self.string().map(Json::String),
            b'{' if levels > 0 => self.object(levels - 1),
            b'[' if levels > 0 => self.array(levels - 1),
            b'{' | b'[' => Err(JsonError::TooDeep { byte: self.byte() }),
            b'-' | b'0'..=b'9' => self.number(),
            b'a'..=b'z' => {
                let byte = self.byte();
                let word = self.lexer.null_or_bool().map(|value| value.map_or(Json::Null, Json::Bool));
                word.ok_or_else(|| JsonError::Syntax { byte, expected: "a value was expected".to_owned() })
            }
            _ => Err(self.syntax("a value was expected")),
        }
    }

    fn string(&mut self) -> Result<&'a str, JsonError> {
        // Most strings have no escapes. They are borrowed from the text, which is known to be UTF-8.
        let start = self.byte() + 1;
        let rest = &self.text.as_bytes()[start..];
        match first_special(rest) {
            Some(length) if rest[length] == b'"' => {
                self.lexer = SliceLexer::new(&rest[length + 1..]);
                Ok(&self.text[start..start + length])
            }
            _ => match self.lexer.discarded().str_string() {
                Ok(Cow::Borrowed(text)) => Ok(text),
                Ok(Cow::Owned(text)) => Ok(self.arena.alloc_str(&text)),
                Err(error) => Err(self.syntax(error)),
            },
        }
    }

    fn number(&mut self) -> Result<Json<'a>, JsonError> {
        let start = self.byte();
        match self.lexer.num_string().validated() {
            Ok((text, _)) if is_number(text) => Ok(Json::Number(text)),
            _ => Err(JsonError::Syntax { byte: start, expected: "the number is malformed".to_owned() }),
        }
    }

    fn array(&mut self, levels: usize) -> Result<Json<'a>, JsonError> {
        let start = self.items.len();
        let mut next = self.lexer.discarded().ws_peek();
        if next == Some(b']') {
            self.lexer.discarded();
            return Ok(Json::Array(&[]));
        }
        loop {
            let first = next.ok_or_else(|| self.syntax("the array is not closed"))?;
            let item = self.value(first, levels)?;
            self.items.push(item);
            match self.lexer.ws_peek() {
                Some(b',') => next = self.lexer.discarded().ws_peek(),
                Some(b']') => {
                    self.lexer.discarded();
                    let items = self.arena.alloc_slice_copy(&self.items[start..]);
                    self.items.truncate(start);
                    return Ok(Json::Array(items));
                }
                _ => return Err(self.syntax("`,` or `]` was expected")),
            }
        }
    }

    fn object(&mut self, levels: usize) -> Result<Json<'a>, JsonError> {
        let start = self.members.len();
        let mut next = self.lexer.discarded().ws_peek();
        if next == Some(b'}') {
            self.lexer.discarded();
            return Ok(Json::Object(&[]));
        }
        loop {
            if next != Some(b'"') {
                return Err(self.syntax("a key in double quotes was expected"));
            }
            let key = self.string()?;
            self.lexer
                .expect(|lexer| lexer.ws_peek(), b':')
                .ok_or(Expect::Colon)
                .map_err(|_| self.syntax("`:` was expected"))?;
            let first = self.lexer.ws_peek().ok_or_else(|| self.syntax("a value was expected"))?;
            let value = self.value(first, levels)?;
            self.members.push((key, value));
            match self.lexer.ws_peek() {
                Some(b',') => next = self.lexer.discarded().ws_peek(),
                Some(b'}') => {
                    self.lexer.discarded();
                    if has_repeats(self.members[start..].iter().map(|(key, _)| *key)) {
                        self.unify(start)?;
                    }
                    let members = self.arena.alloc_slice_copy(&self.members[start..]);
                    self.members.truncate(start);
                    return Ok(Json::Object(members));
                }
                _ => return Err(self.syntax("`,` or `}` was expected")),
            }
        }
    }

    /// Drops members that equal an earlier one of the same name. Rejects members that differ from it.
    fn unify(&mut self, start: usize) -> Result<(), JsonError> {
        let mut values: HashMap<&str, Json<'_>> = HashMap::new();
        let mut kept = start;
        for index in start..self.members.len() {
            let (key, value) = self.members[index];
            match values.insert(key, value) {
                None => {
                    self.members[kept] = (key, value);
                    kept += 1;
                }
                Some(earlier) if earlier == value => {}
                Some(_) => {
                    let key = key.chars().filter(|c| !c.is_control()).take(80).collect();
                    return Err(JsonError::DuplicateKey { key, byte: self.byte() });
                }
            }
        }
        self.members.truncate(kept);
        Ok(())
    }
}

/// Whether a key occurs twice.
///
/// A 64-bit filter distinguishes few keys and makes a search rare. A set distinguishes many keys, so that the time never
/// grows with the square of the size of an object.
pub fn has_repeats<'k>(keys: impl ExactSizeIterator<Item = &'k str> + Clone) -> bool {
    if keys.len() > 32 {
        let count = keys.len();
        return keys.collect::<HashSet<_>>().len() < count;
    }
    let mut seen = 0u64;
    for (index, key) in keys.clone().enumerate() {
        let bytes = key.as_bytes();
        let ends = bytes.first().zip(bytes.last()).map_or(0, |(first, last)| u32::from(*first) * 5 + u32::from(*last));
        let bit = 1u64 << ((ends + 11 * bytes.len() as u32) % 64);
        if seen & bit != 0 && keys.clone().take(index).any(|earlier| earlier == key) {
            return true;
        }
        seen |= bit;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Json::parse(text.as_bytes(), &Bump::new()).expect_err("must be rejected").to_string()
    }

    fn written(text: &str) -> String {
        Json::parse(text.as_bytes(), &Bump::new()).expect("must be read").to_string()
    }

    #[test]
    fn strings_are_escaped_as_serde_json_escapes_them() {
        let all: String = (0..=0x2FF).filter_map(char::from_u32).chain("\u{2028}\u{FFFF}😀".chars()).collect();
        for text in ["", "plain", "\"", "ends in \\", all.as_str()] {
            let mut out = Vec::new();
            write_string(text, &mut out);
            assert_eq!(String::from_utf8(out).expect("UTF-8"), serde_json::to_string(text).expect("JSON"));
        }
    }

    proptest::proptest! {
        /// The scan of eight bytes at once finds what a scan of single bytes finds.
        #[test]
        fn the_first_special_byte_is_found(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), at in 0usize..40, special in proptest::sample::select(vec![b'"', b'\\', 0, 0x1F, 0x20, 0x7F, 0x80, 0xFF])) {
            let plain: Vec<u8> = bytes.iter().map(|byte| if *byte < b' ' { b' ' } else { *byte }).collect();
            let mut with_special = plain.clone();
            if let Some(byte) = with_special.get_mut(at) {
                *byte = special;
            }
            for bytes in [bytes, plain, with_special] {
                let expected = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1F));
                proptest::prop_assert_eq!(first_special(&bytes), expected, "{:?}", bytes);
            }
        }
    }

    #[test]
    fn a_number_keeps_its_digits() {
        for number in
            ["1.10", "24.0", "-0", "1e400", "123456789012345678901234567890", "0.1000000000000000055511151231"]
        {
            assert_eq!(written(number), number);
        }
    }

    #[test]
    fn a_tree_takes_little_more_memory_than_its_text() {
        for item in ["{}", "[]", "0", "[0]", r#"{"":0}"#, r#"{"a":{"b":[]}}"#, r#""\n""#] {
            let text = format!("[{}{item}]", format!("{item},").repeat((256 << 10) / (item.len() + 1) - 1));
            let arena = Bump::new();
            Json::parse(text.as_bytes(), &arena).expect("valid");
            let bytes = arena.allocated_bytes();
            assert!(bytes <= 20 * text.len(), "{item}: {bytes} bytes for a text of {}", text.len());
        }
    }

    #[test]
    fn errors_name_the_byte() {
        assert_eq!(error(""), "not valid JSON at byte 0: a value was expected, but the text is empty");
        assert_eq!(error(r#"{"a":1,}"#), "not valid JSON at byte 7: a key in double quotes was expected");
        assert_eq!(error(r#"{"a":1.}"#), "not valid JSON at byte 5: the number is malformed");
        assert_eq!(error(r#"{"a":1.e5}"#), "not valid JSON at byte 5: the number is malformed");
        assert_eq!(error(r#"{"a":1} x"#), "not valid JSON at byte 8: nothing was expected after the value");
        assert_eq!(error(&"[".repeat(10_000)), "nested deeper than 64 levels at byte 64");
        assert!(error(r#"{"a":"\ud800"}"#).starts_with("not valid JSON at byte"), "an unpaired surrogate is not valid");
    }

    #[test]
    fn a_repeated_key_is_dropped_if_equal_and_rejected_if_not() {
        assert_eq!(written(r#"{"a":1,"b":2,"a":1}"#), r#"{"a":1,"b":2}"#);
        assert_eq!(
            error(r#"{"a":1,"a":2}"#),
            "key `a` occurs twice with different values, in the object that ends at byte 13"
        );
        assert!(!error("{\"\\n\\u001b[31m\":1,\"\\n\\u001b[31m\":2}").contains(char::is_control), "it goes to the log");
        let many: Vec<String> = (0..100).map(|n| format!("\"k{}\":{}", n % 99, n)).collect();
        assert!(error(&format!("{{{}}}", many.join(","))).starts_with("key `k0` occurs twice"));
    }

    #[test]
    fn canonical_text_has_sorted_keys_at_every_depth() {
        let mut out = Vec::new();
        let arena = Bump::new();
        let text = br#"{ "b": [ {"z":1, "a":"\u00e9\n"} ], "B": null, "a": 1.0 }"#;
        Json::parse(text, &arena).expect("valid").write_canonical(text, &mut out);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), r#"{"B":null,"a":1.0,"b":[{"a":"é\n","z":1}]}"#);
    }

    /// A JSON text of objects, arrays and strings. Half of the strings have escapes.
    fn text() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let string = r#"("(a|b|é|[ -!#-\[\]-~]){0,12}"|"(a|\\n|\\"|\\u00e9){0,12}")"#;
        let leaf = prop_oneof![string, Just("null".to_owned()), Just("1.0".to_owned())];
        leaf.prop_recursive(3, 30, 8, move |inner| {
            let members = proptest::collection::vec((string, inner.clone()), 0..8);
            let member = |(key, value): (String, String)| format!("{key} : {value}");
            prop_oneof![
                members
                    .prop_map(move |all| format!("{{{}}}", all.into_iter().map(member).collect::<Vec<_>>().join(","))),
                proptest::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            ]
        })
    }

    proptest::proptest! {
        /// serde_json sorts the members of its objects, too.
        #[test]
        fn what_was_read_is_written_as_others_write_it(text in text()) {
            let arena = Bump::new();
            if let Ok(json) = Json::parse(text.as_bytes(), &arena) {
                let written = |input: &[u8]| {
                    let (mut plain, mut canonical) = (Vec::new(), Vec::new());
                    json.write(input, &mut plain);
                    json.write_canonical(input, &mut canonical);
                    (String::from_utf8(plain).expect("UTF-8"), String::from_utf8(canonical).expect("UTF-8"))
                };
                let (plain, canonical) = written(text.as_bytes());
                proptest::prop_assert_eq!(written(&[]), (plain.clone(), canonical.clone()));
                let sorted = serde_json::from_str::<serde_json::Value>(&text).expect("JSON").to_string();
                proptest::prop_assert_eq!(canonical, sorted);
                let again = Json::parse(plain.as_bytes(), &arena);
                proptest::prop_assert_eq!(again, Ok(json));
            }
        }
    }

    #[test]
    fn numbers_follow_the_grammar() {
        for good in ["0", "-0", "10", "1.5", "1e5", "1E+5", "-1.25e-7"] {
            assert!(is_number(good), "{good}");
        }
        for bad in ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1 ", "0x1", "NaN", "1.e5", "100002****"] {
            assert!(!is_number(bad), "{bad}");
        }
    }

    proptest::proptest! {
        /// The reader agrees with serde_json on what JSON is.
        #[test]
        fn serde_json_reads_the_same_texts(text in r#"[\[\]{}:,"\\eE.+\-0-9a-z \n]{0,24}"#) {
            let arena = Bump::new();
            let ours = Json::parse(text.as_bytes(), &arena);
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match (&ours, &theirs) {
                (Err(JsonError::DuplicateKey { .. }), Ok(_)) => {}
                // serde_json rejects numbers that overflow a 64-bit float. Here a number is its digits.
                (Ok(_), Err(error)) if error.to_string().starts_with("number out of range") => {}
                _ => proptest::prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs),
            }
        }
    }
}
