//! One spelling of keys: lowerCamelCase, acronyms written as words.

use std::borrow::Cow;

/// Respells a key: trims blanks, and joins its words in lowerCamelCase. An acronym is a word.
///
/// `CoverURL` becomes `coverUrl`, `FileURLs` `fileUrls`, `VideoDNA` `videoDna`, `record_id` `recordId`. A key with
/// other characters than ASCII letters, digits, `_`, `-` and blanks, or without a letter, is only trimmed: Alibaba's names
/// are not like this, and the other characters may have a meaning.
pub(super) fn respell(key: &str) -> Cow<'_, str> {
    let key = key.trim();
    let bytes = key.as_bytes();
    if bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(u8::is_ascii_alphanumeric)
        && !bytes.windows(2).any(|pair| pair[0].is_ascii_uppercase() && pair[1].is_ascii_uppercase())
    {
        return Cow::Borrowed(key);
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b' ');
    if !bytes.iter().all(is_name) || !bytes.iter().any(u8::is_ascii_alphabetic) {
        return Cow::Borrowed(key);
    }
    let mut respelled = String::with_capacity(key.len());
    for word in words(key) {
        let (head, tail) = word.split_at(1);
        if respelled.is_empty() {
            respelled.push_str(&head.to_ascii_lowercase());
        } else {
            respelled.push_str(&head.to_ascii_uppercase());
        }
        respelled.push_str(&tail.to_ascii_lowercase());
    }
    Cow::Owned(respelled)
}

/// Splits at separators, before a capital letter that follows a small letter or a digit, and before the last capital
/// letter of a run if small letters follow it, except a single plural `s`.
fn words(key: &str) -> impl Iterator<Item = &str> {
    key.split(['_', '-', ' ']).filter(|part| !part.is_empty()).flat_map(|part| {
        let bytes = part.as_bytes();
        let mut cuts = vec![0];
        for index in 1..bytes.len() {
            let starts_word = bytes[index].is_ascii_uppercase()
                && (!bytes[index - 1].is_ascii_uppercase()
                    || bytes.get(index + 1).is_some_and(u8::is_ascii_lowercase) && !ends_in_plural(bytes, index));
            if starts_word {
                cuts.push(index);
            }
        }
        cuts.push(bytes.len());
        // Every cut is before an ASCII letter, so that slices end at characters.
        cuts.windows(2).map(|pair| &part[pair[0]..pair[1]]).collect::<Vec<_>>()
    })
}

/// Whether the capital letter at `index` is the last of an acronym in the plural, for example the `L` of `FileURLs`.
fn ends_in_plural(bytes: &[u8], index: usize) -> bool {
    bytes[index + 1] == b's' && !bytes.get(index + 2).is_some_and(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_spelling() {
        for (key, expected) in [
            ("CoverURL", "coverUrl"),
            ("FileURLs", "fileUrls"),
            ("FileURL", "fileUrl"),
            ("URLs", "urls"),
            ("MediaIDs", "mediaIds"),
            ("VideoDNA", "videoDna"),
            ("URLInvalid", "urlInvalid"),
            ("IDSet", "idSet"),
            ("record_id", "recordId"),
            ("has_b_frames", "hasBFrames"),
            ("codec_tag_string", "codecTagString"),
            ("SourceURL ", "sourceUrl"),
            (" Error-Code", "errorCode"),
            ("jobId", "jobId"),
            ("H264Level", "h264Level"),
            ("AIResult", "aiResult"),
            ("ID", "id"),
            ("A", "a"),
            ("__", "__"),
            ("$ref.Path", "$ref.Path"),
            ("标题", "标题"),
            ("", ""),
        ] {
            assert_eq!(respell(key), expected, "{key:?}");
        }
    }

    proptest::proptest! {
        /// Respelling changes case and separators, never letters or digits.
        #[test]
        fn respelling_loses_no_letter(key in "[A-Za-z0-9_ .é-]{0,12}") {
            let letters = |text: &str| text.to_lowercase().replace(['_', '-', ' '], "");
            proptest::prop_assert_eq!(letters(&respell(&key)), letters(&key));
        }
    }
}
