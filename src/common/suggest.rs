//! Suggests the known name that a mistyped one was probably meant to be.

/// The known name that is most similar to `name`; none if no name is similar.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    similar(name, known).first().copied()
}

/// The known names that are similar to `name`, each once, at most three, the most similar one first. The comparison
/// ignores case.
///
/// Two names are similar if at most one edit, and one more for every six characters, turns one into the other. An edit
/// inserts, deletes or replaces a character, or swaps two neighbours.
pub fn similar<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let mut found: Vec<(usize, &str)> = known
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(name.len()) / 6)
        .collect();
    found.sort_by_key(|(distance, _)| *distance);
    found.dedup();
    found.into_iter().map(|(_, candidate)| candidate).take(3).collect()
}

/// The end of an error about an unknown name: ``; did you mean `…`?``, or nothing if no known name is similar.
pub fn did_you_mean<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    nearest(name, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_name_is_suggested() {
        let known = ["status", "subject", "mediaid"];
        assert_eq!(nearest("stauts", known.into_iter()), Some("status"));
        assert_eq!(nearest("MediaId", known.into_iter()), Some("mediaid"));
        assert_eq!(nearest("colour", known.into_iter()), None);
        let names = ["TranscodeComplete", "TranscodeParentComplete", "SnapshotComplete", "TranscodeComplete"];
        assert_eq!(similar("TranscodComplete", names.into_iter()), ["TranscodeComplete"]);
        assert_eq!(did_you_mean("subjct", known.into_iter()), "; did you mean `subject`?");
        assert_eq!(did_you_mean("colour", known.into_iter()), "");
    }
}
