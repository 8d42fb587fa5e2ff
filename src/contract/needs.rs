//! What the routes need of each output: the topics that events can arrive at.

use std::collections::{BTreeMap, BTreeSet};

use super::reach::{self, Channel};
use crate::dialect::Normalizer;
use crate::event::{Attribute, Mode};
use crate::output::{NeededTopic, Needs};
use crate::service::Settings;

/// Most topics of one template that are listed.
const MOST: usize = 1000;

/// What the routes and the dead letters need, by the name of the output. An output that nothing can arrive at has no entry.
pub fn needs(settings: &Settings) -> BTreeMap<String, Needs> {
    let normalizer = Normalizer::new(settings.catalogue.clone(), settings.type_prefix.clone());
    let mut needs: BTreeMap<String, Needs> = BTreeMap::new();
    // The layout of a record does not change its topic.
    for channel in reach::channels(settings, &normalizer, |_| Mode::default()) {
        let of_output = needs.entry(channel.output.to_owned()).or_default();
        of_output.topics.push(needed(&channel, normalizer.type_prefix()));
    }
    needs
}

fn needed(channel: &Channel<'_>, type_prefix: &str) -> NeededTopic {
    let written = channel.topic.to_string();
    let mut from: Vec<String> = channel.routes.iter().map(|route| format!("route `{route}`")).collect();
    if channel.arrivals.iter().any(|arrivals| arrivals.are_dead_letters) {
        from.push("dead_letters.to".to_owned());
    }
    let is_known = channel.parameters.iter().all(|(_, values)| values.is_some());
    let most: usize = channel
        .parameters
        .iter()
        .map(|(_, values)| values.as_ref().map_or(1, BTreeSet::len))
        .fold(1, usize::saturating_mul);
    let names = (is_known && most <= MOST).then(|| {
        let mut names = BTreeSet::from([written.clone()]);
        for (attribute, values) in &channel.parameters {
            let values = || values.iter().flatten();
            names = names.iter().flat_map(|name| values().map(|value| insert(name, *attribute, value))).collect();
        }
        names
    });
    let mut pattern = written.clone();
    for (attribute, _) in &channel.parameters {
        let any = if *attribute == Attribute::Type { format!("{type_prefix}*") } else { "*".to_owned() };
        pattern = insert(&pattern, *attribute, &any);
    }
    NeededTopic { written, from, names, pattern }
}

fn insert(topic: &str, attribute: Attribute, value: &str) -> String {
    topic.replace(&format!("{{{attribute}}}"), value)
}

// Only these outputs have topics.
#[cfg(test)]
#[cfg(feature = "kafka")]
mod tests {
    use super::*;
    use crate::config::{self, Layer};

    #[test]
    fn the_topics_are_those_that_events_can_arrive_at() {
        let text = "
            spool.enabled = false
            inputs.http = { kind = 'http', endpoints = [{ path = '/' }] }
            outputs.kafka = { kind = 'kafka' }
            outputs.console = { kind = 'console' }
            outputs.unused = { kind = 'kafka' }
            dead_letters.to = { output = 'kafka', topic = 'media.dead' }
            [[routes]]
            name = 'failures'
            match = { status = ['failure', 'partial'] }
            to = { output = 'kafka', topic = 'media.{dialect}.{status}' }
            [[routes]]
            name = 'media'
            match = { dialect = 'vod' }
            to = [{ output = 'kafka', topic = 'media.{mediaid}-{type}' }, { output = 'console' }]
            continue = true
        ";
        let loaded = config::load(&[Layer::Text("test".to_owned(), text.to_owned())]).expect("valid");
        let needs = needs(&loaded.settings);
        assert_eq!(needs.keys().collect::<Vec<_>>(), ["console", "kafka"]);
        let topics = &needs["kafka"].topics;
        let written: Vec<(&str, String)> =
            topics.iter().map(|topic| (topic.written.as_str(), topic.from.join(", "))).collect();
        let expected = [
            ("media.{dialect}.{status}", "route `failures`"),
            ("media.{mediaid}-{type}", "route `media`"),
            ("media.dead", "dead_letters.to"),
        ];
        assert_eq!(written, expected.map(|(topic, from)| (topic, from.to_owned())));
        let names = |index: usize| topics[index].names.clone().map(|names| names.into_iter().collect::<Vec<_>>());
        let failures = ["media.ims.failure", "media.ims.partial", "media.vod.failure", "media.vod.partial"];
        assert_eq!(names(0), Some(failures.map(str::to_owned).to_vec()));
        assert_eq!((names(1), topics[1].pattern.as_str()), (None, "media.*-com.aliyun.media.*"));
        assert_eq!(names(2), Some(vec!["media.dead".to_owned()]));
    }
}
