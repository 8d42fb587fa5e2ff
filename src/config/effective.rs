//! What a configuration results in, as TOML, and how two of them differ.

use std::collections::{BTreeMap, BTreeSet};

use super::kinds::Named;
use super::raw::Raw;
use crate::input::InputConfig;
use crate::output::OutputConfig;

/// The configuration with its defaults, secrets hidden.
pub(super) fn effective(
    raw: &Raw,
    inputs: &[Named<dyn InputConfig>],
    outputs: &[Named<dyn OutputConfig>],
) -> toml::Table {
    let mut root = toml::Table::new();
    let sections = [
        ("inputs", inputs.iter().map(|input| (&input.name, input.kind, input.config.effective())).collect::<Vec<_>>()),
        ("outputs", outputs.iter().map(|output| (&output.name, output.kind, output.config.effective())).collect()),
    ];
    for (section, named) in sections {
        let mut tables = toml::Table::new();
        for (name, kind, table) in named {
            let mut with_kind = toml::Table::from_iter([("kind".to_owned(), kind.into())]);
            with_kind.extend(table.unwrap_or_default());
            tables.insert(name.clone(), toml::Value::Table(with_kind));
        }
        if !tables.is_empty() {
            root.insert(section.to_owned(), toml::Value::Table(tables));
        }
    }
    let rest = Raw { inputs: BTreeMap::new(), outputs: BTreeMap::new(), ..raw.clone() };
    root.extend(toml::Table::try_from(&rest).unwrap_or_default());
    root
}

/// The value of a key, whose parts may contain dots themselves.
pub(super) fn at<'t>(table: &'t toml::Table, key: &str) -> Option<&'t toml::Value> {
    table.iter().find_map(|(name, value)| match key.strip_prefix(name.as_str())? {
        "" => Some(value),
        below => at(value.as_table()?, below.strip_prefix('.')?),
    })
}

/// The keys whose values differ between two configurations. Lists are compared as a whole.
pub(super) fn changed_keys(one: &toml::Table, other: &toml::Table) -> Vec<Vec<String>> {
    let mut keys = Vec::new();
    collect(&mut Vec::new(), one, other, &mut keys);
    keys
}

fn collect(above: &mut Vec<String>, one: &toml::Table, other: &toml::Table, keys: &mut Vec<Vec<String>>) {
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for name in names {
        above.push(name.clone());
        match (one.get(name), other.get(name)) {
            (Some(toml::Value::Table(one)), Some(toml::Value::Table(other))) => collect(above, one, other, keys),
            (one, other) if one == other => {}
            _ => keys.push(above.clone()),
        }
        above.pop();
    }
}
