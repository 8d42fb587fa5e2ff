//! What the released program contains of others: `THIRD-PARTY-LICENSES.txt` with the texts of the licences, and
//! `packaging/c-libraries.json` with the C code that crates bring along, which the SBOM of `make release` needs.
//!
//! Both are generated from `Cargo.lock` and the sources of the crates. They have what is linked with the feature
//! `vendored`, and nothing that only runs when the bridge is compiled. Of several licences to choose from, the first in
//! the list of `deny.toml` is used. A crate with C code that is not in [`C_LIBRARIES`] fails a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{generated, repository, repository_text};

/// The systems of the image.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// The released features.
const FEATURES: &str = "--features=vendored";

/// C code that is compiled from the source of a crate.
struct CLibrary {
    name: &'static str,
    /// The crate that brings it.
    from: &'static str,
    /// An SPDX expression.
    license: &'static str,
    /// Files of the crate with the licence. None: another entry has it.
    texts: &'static [&'static str],
    /// A file of the crate, and what comes before the parts of the version in it.
    version: (&'static str, &'static [&'static str]),
    /// Vendor and product in the names of the US vulnerability database.
    cpe: &'static str,
}

const C_LIBRARIES: &[CLibrary] = &[
    CLibrary {
        name: "openssl",
        from: "openssl-src",
        license: "Apache-2.0",
        texts: &[],
        version: ("openssl/VERSION.dat", &["MAJOR=", "MINOR=", "PATCH="]),
        cpe: "openssl:openssl",
    },
    CLibrary {
        name: "zlib",
        from: "libz-sys",
        license: "Zlib",
        texts: &["src/zlib/LICENSE"],
        version: ("src/zlib/zlib.h", &["#define ZLIB_VERSION \""]),
        cpe: "zlib:zlib",
    },
    CLibrary {
        name: "sqlite",
        from: "libsqlite3-sys",
        license: "blessing",
        texts: &[],
        version: ("sqlite3/sqlite3.h", &["#define SQLITE_VERSION        \""]),
        cpe: "sqlite:sqlite",
    },
    CLibrary {
        name: "jemalloc",
        from: "tikv-jemalloc-sys",
        license: "BSD-2-Clause",
        texts: &["jemalloc/COPYING"],
        version: ("jemalloc/ChangeLog", &["\n* "]),
        cpe: "jemalloc:jemalloc",
    },
    CLibrary {
        name: "librdkafka",
        from: "rdkafka-sys",
        license: "BSD-2-Clause",
        // It also has the licences of what librdkafka contains.
        texts: &["librdkafka/LICENSES.txt"],
        version: ("librdkafka/CHANGELOG.md", &["# librdkafka v"]),
        cpe: "confluent:librdkafka",
    },
    CLibrary {
        name: "lz4",
        from: "rdkafka-sys",
        license: "BSD-2-Clause",
        texts: &[],
        version: (
            "librdkafka/src/lz4.h",
            &["#define LZ4_VERSION_MAJOR ", "#define LZ4_VERSION_MINOR ", "#define LZ4_VERSION_RELEASE "],
        ),
        cpe: "lz4_project:lz4",
    },
    CLibrary {
        name: "cjson",
        from: "rdkafka-sys",
        license: "MIT",
        texts: &[],
        version: (
            "librdkafka/src/cJSON.h",
            &["#define CJSON_VERSION_MAJOR ", "#define CJSON_VERSION_MINOR ", "#define CJSON_VERSION_PATCH "],
        ),
        cpe: "davegamble:cjson",
    },
    CLibrary {
        name: "nanopb",
        from: "rdkafka-sys",
        license: "Zlib",
        texts: &[],
        version: ("librdkafka/src/nanopb/pb.h", &["#define NANOPB_VERSION \"nanopb-"]),
        cpe: "nanopb_project:nanopb",
    },
];

/// Crates with C code without an entry above, and why.
const NO_LIBRARY: &[(&str, &str)] = &[
    ("openssl-sys", "it compiles openssl-src"),
    ("ring", "it is a library of its own, whose licence covers its C code"),
];

/// A crate without a file of its licence gets this text.
const MIT: &str = "\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

#[test]
fn third_party_licenses_are_generated() {
    let packages = packages();
    let preferred = preferred();
    let mut table = String::new();
    // Texts with who uses them. Apache-2.0 is also the licence of the bridge, and has the same text for all.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(&packages) {
        let name = format!("{} {}", package.name, package.version);
        let used = chosen(&package.license, &preferred);
        writeln!(table, "{name:<44} {:<20} {}", used.join(" AND "), package.license).expect("a String");
        for text in license_texts(package, &used) {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    for (library, version) in c_libraries(&packages) {
        let name = format!("{} {version}", library.name);
        let source = format!("{} (C code of the crate {})", library.license, library.from);
        writeln!(table, "{name:<44} {:<20} {source}", library.license).expect("a String");
        for file in library.texts {
            let text = text_of(&packages[library.from].folder.join(file));
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let standard = concat!("Rust standard library ", env!("CARGO_PKG_RUST_VERSION"));
    writeln!(table, "{standard:<44} {:<20} MIT OR Apache-2.0", "Apache-2.0").expect("a String");

    let rule = "=".repeat(120);
    let mut file = format!(
        "\
Third-party software in apsara-bridge

The program of `make release` and of the image contains the software of this list. Each line has its name and version,
the licence under which it is used, and the licences that it offers. The texts follow. `make generate` writes this file.
In the image, the system's libraries have their licences in /usr/share/doc.

SQLite is in the public domain.

{table}"
    );
    let mut push = |users: &str, text: &str| {
        write!(file, "\n{rule}\n{users}\n{rule}\n\n{text}").expect("a String");
    };
    push("Every line of the list with Apache-2.0", &text_of(&repository("LICENSE")));
    let mut texts: Vec<_> = texts.into_iter().map(|(text, users)| (users, text)).collect();
    texts.sort();
    texts.iter().for_each(|(users, text)| push(&users.join(", "), text));
    generated::check("THIRD-PARTY-LICENSES.txt", &file);
}

/// They are components of CycloneDX, which `packaging/release` adds to those that it finds in Cargo.lock.
#[test]
fn c_libraries_are_generated() {
    let packages = packages();
    let components: Vec<Value> = c_libraries(&packages)
        .into_iter()
        .map(|(CLibrary { name, from, license, cpe, .. }, version)| {
            let purl = format!("pkg:generic/{name}@{version}");
            json!({
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "scope": "required",
                "licenses": [{ "expression": license }],
                "cpe": format!("cpe:2.3:a:{cpe}:{version}:*:*:*:*:*:*:*"),
                "purl": purl,
                "properties": [{ "name": "crate", "value": from }],
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&components).expect("JSON");
    generated::check("packaging/c-libraries.json", &format!("{text}\n"));
}

#[test]
fn every_crate_with_c_code_is_known() {
    let packages = packages();
    let linking: BTreeSet<&str> =
        linked(&packages).filter(|package| package.has_c).map(|package| package.name.as_str()).collect();
    let known = C_LIBRARIES.iter().map(|library| library.from).filter(|from| *from != "openssl-src");
    let known: BTreeSet<&str> = known.chain(NO_LIBRARY.iter().map(|(name, _)| *name)).collect();
    assert_eq!(linking, known, "crates with C code, and those of the tables in {}", file!());
}

#[test]
fn the_licence_that_is_used_is_the_first_accepted_one() {
    let preferred = ["Apache-2.0", "MIT", "ISC", "Unicode-3.0"].map(str::to_owned);
    for (offered, used) in [
        ("MIT", "MIT"),
        ("MIT/Apache-2.0", "Apache-2.0"),
        ("Unlicense OR MIT", "MIT"),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", "Apache-2.0"),
        ("Apache-2.0 AND ISC", "Apache-2.0 AND ISC"),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", "Apache-2.0 AND Unicode-3.0"),
    ] {
        assert_eq!(chosen(offered, &preferred).join(" AND "), used, "{offered}");
    }
}

#[derive(Clone)]
struct Package {
    name: String,
    version: String,
    license: String,
    authors: String,
    folder: PathBuf,
    /// Whether it links a C library or compiles C code.
    has_c: bool,
}

/// All packages of Cargo.lock, by name and version, and by name alone where that is enough.
fn packages() -> BTreeMap<String, Package> {
    let targets = TARGETS.map(|target| format!("--filter-platform={target}"));
    let metadata = cargo("metadata", &targets, &["--format-version=1"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let list = |key: &str| package[key].as_array().into_iter().flatten();
        let compiles = |dependency: &&Value| dependency["kind"] == "build" && dependency["name"] == "cc";
        let package = Package {
            name: text("name"),
            version: text("version"),
            license: text("license"),
            authors: list("authors").filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            folder: Path::new(&text("manifest_path")).parent().expect("a folder").to_owned(),
            has_c: package["links"].is_string() || list("dependencies").any(|dependency| compiles(&dependency)),
        };
        packages.insert(format!("{} {}", package.name, package.version), package.clone());
        packages.insert(package.name.clone(), package);
    }
    packages
}

/// Those that are linked into the released program, except the bridge itself.
fn linked(packages: &BTreeMap<String, Package>) -> impl Iterator<Item = &Package> {
    let targets = TARGETS.map(|target| format!("--target={target}"));
    let tree = cargo("tree", &targets, &["--edges=normal,no-proc-macro", "--prefix=none", "--no-dedupe"]);
    let names: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| format!("{name} {}", rest.split(' ').next().unwrap_or_default()))
        .collect();
    assert!(names.len() > 100, "{names:?}");
    names.into_iter().map(|name| &packages[&name]).filter(|package| package.name != env!("CARGO_PKG_NAME"))
}

fn c_libraries(packages: &BTreeMap<String, Package>) -> Vec<(&'static CLibrary, String)> {
    let version = |library: &CLibrary| {
        let (file, marks) = library.version;
        let text = text_of(&packages[library.from].folder.join(file));
        let part = |mark: &&str| {
            let after = text.split_once(*mark).unwrap_or_else(|| panic!("{file} has no `{mark}`")).1.trim_start();
            let end = after.find(|each: char| !each.is_ascii_digit() && each != '.').unwrap_or(after.len());
            after[..end].to_owned()
        };
        marks.iter().map(part).collect::<Vec<_>>().join(".")
    };
    C_LIBRARIES.iter().map(|library| (library, version(library))).collect()
}

/// The accepted licences, the preferred one first.
fn preferred() -> Vec<String> {
    let deny: toml::Table = toml::from_str(&repository_text("deny.toml")).expect("TOML");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list");
    allowed.iter().map(|license| license.as_str().expect("a text").to_owned()).collect()
}

/// The licences under which a crate is used: one for each part of its SPDX expression.
fn chosen(expression: &str, preferred: &[String]) -> Vec<String> {
    let parts = expression.split(" AND ").map(|part| part.trim_matches(['(', ')']).replace('/', " OR "));
    let choose = |part: String| {
        let offered: Vec<&str> = part.split(" OR ").map(str::trim).collect();
        let choice = preferred.iter().find(|license| offered.contains(&license.as_str()));
        choice.unwrap_or_else(|| panic!("`{expression}` has no licence of deny.toml")).clone()
    };
    parts.map(choose).collect()
}

/// The texts that must be passed on. That of Apache-2.0 is the same for all crates, and left out if it is the only one.
fn license_texts(package: &Package, used: &[String]) -> Vec<String> {
    let files = std::fs::read_dir(&package.folder).expect("the source of the crate");
    let mut names: Vec<String> =
        files.map(|file| file.expect("read").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    let with = |start: &str, word: &str| {
        let fits = |name: &&String| name.to_uppercase().starts_with(start) && name.to_uppercase().contains(word);
        names.iter().filter(fits).cloned().collect::<Vec<_>>()
    };
    let mut files = match used {
        [license] if license == "Apache-2.0" => Vec::new(),
        [license] => {
            let word = license.split('-').next().expect("a word").to_uppercase();
            let own = with("LICEN", &word);
            if own.is_empty() { with("LICEN", "") } else { own }
        }
        _ => with("LICEN", ""),
    };
    let has_none = files.is_empty();
    files.extend(with("NOTICE", ""));
    let mut texts: Vec<String> = files.iter().map(|file| text_of(&package.folder.join(file))).collect();
    match used {
        [license] if license == "Apache-2.0" => {}
        [license] if license == "MIT" && has_none => texts.push(format!("Copyright (c) {}\n\n{MIT}", package.authors)),
        _ => assert!(!has_none, "{} has no file of its licence {used:?}", package.name),
    }
    texts
}

/// The text of a file, with the line ends and blank lines that make equal texts equal.
fn text_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').trim().lines().map(str::trim_end).collect();
    format!("{}\n", lines.join("\n"))
}

fn cargo(command: &str, targets: &[String], arguments: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([command, "--locked", FEATURES]).args(targets).args(arguments).current_dir(repository(""));
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
