//! Any text as a configuration: TOML, or YAML if the first line is `# yaml`. Nothing is started.
//!
//! What must hold: nothing panics or hangs, whatever files the text names. A configuration that is refused has at least
//! one error. The same text gives the same result twice. What `check` prints of a valid configuration is TOML.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use apsara_bridge::config::{self, Layer};
use figment::providers::{Format, Toml, Yaml};
use figment::value::Value;
use figment::{Figment, Provider};
use libfuzzer_sys::{Corpus, fuzz_target};
use std::net::SocketAddr;

/// YAML is read only from files.
static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("apsara-bridge-fuzz-{}.yaml", std::process::id())));

/// Whether an address to listen on has a host name. Looking it up would take as long as the network does.
fn has_host_name(value: &Value) -> bool {
    let is_name = |text: &str| {
        text.parse::<SocketAddr>().is_err()
            && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    };
    match value {
        Value::Dict(_, members) => members
            .iter()
            .any(|(key, value)| key == "listen" && value.as_str().is_some_and(is_name) || has_host_name(value)),
        Value::Array(_, items) => items.iter().any(has_host_name),
        _ => false,
    }
}

fn outcome(layers: &[Layer]) -> Result<String, Vec<String>> {
    match config::load_with_files(layers).result {
        Ok(loaded) => {
            let shown = loaded.effective.to_toml();
            assert!(!shown.is_empty() && Toml::string(&shown).data().is_ok(), "{shown}");
            Ok(shown)
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            Err(errors.iter().map(ToString::to_string).collect())
        }
    }
}

fuzz_target!(|text: &str| -> Corpus {
    let yaml = text.starts_with("# yaml\n");
    let merged = if yaml { Figment::from(Yaml::string(text)) } else { Figment::from(Toml::string(text)) };
    if merged.extract::<Value>().is_ok_and(|value| has_host_name(&value)) {
        return Corpus::Reject;
    }
    let layer = if yaml {
        std::fs::write(&*FILE, text).expect("the temporary folder is writable");
        Layer::File(FILE.clone())
    } else {
        Layer::Text("fuzz".to_owned(), text.to_owned())
    };
    let layers = [layer];
    let first = outcome(&layers);
    // The parts are read by the same code as the whole. Not every time, because it takes five times as long.
    if text.len().is_multiple_of(32) {
        assert_eq!(outcome(&layers), first);
        let _ = config::load_without_inputs(&layers);
        let _ = config::load_route_tests(&layers, &[]);
        let _ = config::load_normalizer(&layers);
        let _ = config::load_store(&layers);
        let _ = config::load_output_kinds(&layers);
        let _ = config::load_admin_listen(&layers);
    }
    Corpus::Keep
});
