//! The named inputs and outputs, each read by its kind.

use std::collections::BTreeMap;
use std::time::Duration;

use figment::value::{Dict, Value};

use super::layers::Reader;
use crate::common::kind::ReadSection;
use crate::common::suggest::nearest;
use crate::common::validation::Validation;
use crate::input::{self, CheckedInput, InputConfig, InputContext};
use crate::output::{self, CheckedOutput, OutputConfig, OutputContext};
use crate::route::Destination;

/// An input or output as it is written.
pub(super) struct Named<T: ?Sized> {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) config: Box<T>,
}

/// Reads the inputs.
pub(super) fn inputs(reader: &mut Reader, named: &BTreeMap<String, Value>) -> Vec<Named<dyn InputConfig>> {
    let kinds = input::KINDS.iter().map(|kind| (kind.name, kind.read)).collect::<Vec<_>>();
    read(reader, "inputs", named, &kinds)
}

/// Reads the outputs.
pub(super) fn outputs(reader: &mut Reader, named: &BTreeMap<String, Value>) -> Vec<Named<dyn OutputConfig>> {
    let kinds = output::KINDS.iter().map(|kind| (kind.name, kind.read)).collect::<Vec<_>>();
    read(reader, "outputs", named, &kinds)
}

fn read<T: ?Sized>(
    reader: &mut Reader,
    section: &str,
    named: &BTreeMap<String, Value>,
    kinds: &[(&'static str, ReadSection<T>)],
) -> Vec<Named<T>> {
    let mut found = Vec::new();
    for name in named.keys() {
        let key = format!("{section}.{name}");
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            reader.wrong(&key, "invalid name: expected letters, digits, `-` and `_`");
            continue;
        }
        let words = || kinds.iter().map(|(kind, _)| *kind);
        let expected = || words().collect::<Vec<_>>().join(", ");
        let Some(kind) = reader.take_string(&[section, name, "kind"]) else {
            reader.wrong(&format!("{key}.kind"), format!("missing; expected one of {}", expected()));
            continue;
        };
        let Some((kind, read)) = kinds.iter().find(|(known, _)| *known == kind) else {
            let hint = nearest(&kind, words()).map_or_else(String::new, |kind| format!("; did you mean `{kind}`?"));
            reader
                .wrong(&format!("{key}.kind"), format!("unknown kind `{kind}`{hint}; expected one of {}", expected()));
            continue;
        };
        // A section that cannot be read has its defaults. Its errors are noted.
        let config = reader.section_by(&[section, name], read).or_else(|| read(&Value::from(Dict::new())).ok());
        found.extend(config.map(|config| Named { name: name.clone(), kind, config }));
    }
    found
}

/// Checks the inputs. Gives those that are valid, and what is valid but looks like a mistake.
pub(super) fn check_inputs(
    inputs: &[Named<dyn InputConfig>],
    deadline: Duration,
    validation: &mut Validation,
) -> (Vec<CheckedInput>, Vec<String>) {
    let (mut checked, mut warnings) = (Vec::new(), Vec::new());
    for (index, input) in inputs.iter().enumerate() {
        let mut section = Validation::of(&format!("inputs.{}", input.name));
        let same_kind = inputs[..index].iter().filter(|other| other.kind == input.kind);
        let same_kind: Vec<&str> = same_kind.map(|other| other.name.as_str()).collect();
        let context = InputContext { name: &input.name, deadline, same_kind: &same_kind };
        let settings = input.config.validate(context, &mut section);
        let named = |settings| CheckedInput { name: input.name.clone(), kind: input.kind, settings };
        checked.extend(settings.map(named));
        validation.append(section);
        warnings.append(&mut input.config.warnings(&input.name));
    }
    (checked, warnings)
}

/// Checks the outputs. Gives those that are valid, and what is valid but looks like a mistake. `destinations` are those
/// of all routes and of the dead letters.
pub(super) fn check_outputs(
    outputs: &[Named<dyn OutputConfig>],
    deadline: Duration,
    destinations: &[&Destination],
    validation: &mut Validation,
) -> (Vec<CheckedOutput>, Vec<String>) {
    let (mut checked, mut warnings) = (Vec::new(), Vec::new());
    for output in outputs {
        let Named { name, kind, config } = output;
        let mut section = Validation::of(&format!("outputs.{name}"));
        let settings = config.validate(OutputContext { name, deadline }, &mut section);
        let rules = config.destination_rules();
        checked.extend(settings.map(|settings| CheckedOutput { name: name.clone(), kind, rules, settings }));
        validation.append(section);
        let of_output = destinations.iter().filter(|to| to.output == *name);
        let topics: Vec<String> = of_output.map(|to| to.topic.to_string()).collect();
        warnings.append(&mut config.warnings(name, &topics));
    }
    (checked, warnings)
}
