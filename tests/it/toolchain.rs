//! Rust has one version everywhere: `rust-version` of Cargo.toml, the toolchain file, images, and documents.

use std::path::Path;

/// `MAJOR.MINOR.PATCH`, as rustup names a release.
const VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_toolchain_file_names_the_version_of_the_package() {
    let toolchain: toml::Table = toml::from_str(&text("rust-toolchain.toml")).expect("TOML");
    assert_eq!(toolchain["toolchain"]["channel"].as_str(), Some(VERSION));
}

#[test]
fn images_and_documents_name_the_same_release() {
    let (release, _) = VERSION.rsplit_once('.').expect("three numbers");
    for (file, before) in [
        ("Dockerfile", "RUST_IMAGE=rust:"),
        (".github/workflows/gate.yml", "image: rust:"),
        (".github/workflows/release.yml", "container: rust:"),
        ("README.md", "Rust "),
        ("CONTRIBUTING.md", "Rust "),
        ("docs/operations.md", "Rust "),
    ] {
        let text = text(file);
        let named = text.split(before).skip(1).map(|after| {
            let end = after.find(|each: char| !each.is_ascii_digit() && each != '.').unwrap_or(after.len());
            after[..end].trim_end_matches('.')
        });
        let named: Vec<&str> = named.filter(|number| !number.is_empty()).collect();
        assert!(!named.is_empty() && named.iter().all(|number| *number == release), "{file} names {named:?}");
    }
}
