//! The documents: every link has a target, and the examples of the README are correct.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
use apsara_bridge::event::DEFAULT_TYPE_PREFIX;
use serde_json::Value;

use crate::support::program::command;

/// The most lines of the README: a newcomer should read all of it.
const README_LINES: usize = 150;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents that the README must link to.
fn documents() -> Vec<PathBuf> {
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
        .into_iter()
        .chain(["charts/apsara-bridge/README.md", "docs/decisions/README.md", "examples/consumers/README.md"])
        .map(|name| root().join(name))
        .collect();
    documents.extend(markdown_in("docs"));
    documents
}

/// The decision records and their index.
fn decisions() -> Vec<PathBuf> {
    markdown_in("docs/decisions")
}

fn markdown_in(folder: &str) -> Vec<PathBuf> {
    let folder = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let files = folder.map(|file| file.expect("a file").path());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "md")).collect()
}

/// A Markdown text without its fenced code blocks.
fn without_code(markdown: &str) -> String {
    markdown.split("```").step_by(2).collect()
}

/// The anchors of a Markdown text as GitHub builds them.
pub(crate) fn anchors(markdown: &str) -> BTreeSet<String> {
    let prose = without_code(markdown);
    let headings = prose.lines().filter_map(|line| line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' '));
    let anchor = |heading: &str| {
        let lower = heading.to_lowercase();
        let kept = lower.chars().filter(|each| each.is_alphanumeric() || " -_".contains(*each));
        kept.map(|each| if each == ' ' { '-' } else { each }).collect()
    };
    headings.map(anchor).collect()
}

/// The targets of the relative links of a Markdown text.
fn relative_links(markdown: &str) -> Vec<String> {
    let prose = without_code(markdown);
    let targets = prose.split("](").skip(1).filter_map(|after| after.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
}

/// The content of the fenced code blocks of a language.
fn blocks<'m>(markdown: &'m str, language: &str) -> Vec<&'m str> {
    let fences = markdown.split("```").skip(1).step_by(2);
    fences.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

#[test]
fn links_and_anchors_are_found() {
    let markdown = "# One `two` - 3\n[a](b.md#c) [d](https://e)\n```sh\n# no heading [f](g)\n```\n[h](#i)\n";
    assert_eq!(anchors(markdown), BTreeSet::from(["one-two---3".to_owned()]));
    assert_eq!(relative_links(markdown), ["b.md#c", "#i"]);
    assert_eq!(blocks(markdown, "sh"), ["# no heading [f](g)\n"]);
}

#[test]
fn every_relative_link_and_anchor_exists() {
    let mut broken = Vec::new();
    let mut checked = 0;
    for document in documents().into_iter().chain(decisions()) {
        let markdown = text(&document);
        for link in relative_links(&markdown) {
            checked += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => document.clone(),
                _ => document.parent().expect("a file is in a folder").join(path),
            };
            let exists = target.exists() && (anchor.is_empty() || anchors(&text(&target)).contains(anchor));
            if !exists {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    assert!(checked > 50, "only {checked} links were found");
}

#[test]
fn every_document_is_linked_from_the_readme_which_is_short() {
    let readme = text(&root().join("README.md"));
    assert!(readme.lines().count() <= README_LINES, "the README has more than {README_LINES} lines");
    let links = relative_links(&readme);
    for document in documents() {
        let name = document.strip_prefix(root()).expect("below the root").display().to_string();
        assert!(name == "README.md" || links.contains(&name), "the README does not link to {name}");
    }
}

#[test]
fn every_decision_is_in_their_index() {
    let index = relative_links(&text(&root().join("docs/decisions/README.md")));
    for record in decisions() {
        let name = record.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(name == "README.md" || index.contains(&name), "docs/decisions/README.md does not link to {name}");
    }
}

#[test]
fn the_event_in_the_readme_results_from_its_callback() {
    let readme = text(&root().join("README.md"));
    let [callback, event] = blocks(&readme, "json")[..] else { panic!("a callback and its event") };
    let mut shown: Value = serde_json::from_str(event).expect("JSON");
    let normalizer = Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX);
    let origin = Origin::at(time::OffsetDateTime::now_utc());
    let normalized = normalizer.normalize(callback.as_bytes(), &origin).expect("a callback");
    let mut real: Value = serde_json::from_slice(&normalized.event.to_json()).expect("JSON");
    for event in [&mut shown, &mut real] {
        assert!(event["recordedtime"].take().is_string());
    }
    assert_eq!(shown, real);
}

#[test]
fn the_configuration_of_the_readme_is_valid() {
    let readme = text(&root().join("README.md"));
    let [configuration] = blocks(&readme, "toml")[..] else { panic!("one configuration") };
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("bridge.toml"), configuration).expect("written");
    let output = command(&["check", "--config", "bridge.toml"])
        .current_dir(folder.path())
        .env("CALLBACK_KEY", "Choose1ByYourself")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
