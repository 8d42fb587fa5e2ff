//! The keys of components.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Components of one kind by their keys. A component that is added twice has one key.
#[derive(Debug, Default)]
pub(super) struct Components(BTreeMap<String, Value>);

impl Components {
    /// Adds a component. Returns its key: the name, with a number if another component has it.
    pub(super) fn add(&mut self, name: &str, component: Value) -> String {
        let name = key(name);
        let mut number = 1;
        loop {
            let key = if number == 1 { name.clone() } else { format!("{name}-{number}") };
            match self.0.get(&key) {
                Some(known) if *known == component => return key,
                Some(_) => number += 1,
                None => {
                    self.0.insert(key.clone(), component);
                    return key;
                }
            }
        }
    }

    pub(super) fn into_json(self) -> Map<String, Value> {
        self.0.into_iter().collect()
    }
}

/// A text as AsyncAPI allows it as the key of a component: letters, digits, `.`, `-` and `_`.
fn key(text: &str) -> String {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().filter(|c| !matches!(c, '{' | '}')).map(|c| if is_legal(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_component_has_a_legal_key_of_its_own() {
        let mut components = Components::default();
        assert_eq!(components.add("kafka.media.{status}", json!(1)), "kafka.media.status");
        assert_eq!(components.add("kafka.media.status", json!(2)), "kafka.media.status-2");
        assert_eq!(components.add("kafka.media.status", json!(1)), "kafka.media.status");
        assert_eq!(components.add("übel/~ x", json!(3)), "_bel___x");
        assert_eq!(components.into_json().len(), 3);
    }
}
