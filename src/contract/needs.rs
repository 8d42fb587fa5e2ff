//! What the routes need of each output: the topics that events can arrive at.

use std::collections::BTreeMap;

use super::reach::{self, Channel, Topics};
use crate::dialect::Normalizer;
use crate::event::{Attribute, Mode};
use crate::output::{NeededTopic, Needs, OtherTopics};
use crate::service::Settings;

/// What the routes and the dead letters need, by the name of the output. An output that nothing can arrive at has no entry.
pub fn needs(settings: &Settings) -> BTreeMap<String, Needs> {
    let bodies = settings.inputs.iter().map(|input| input.settings.bounds().max_body);
    let largest_body = bodies.max().unwrap_or_default();
    let normalizer = Normalizer::new(settings.catalogue.clone(), settings.type_prefix.clone());
    let mut needs: BTreeMap<String, Needs> = BTreeMap::new();
    // The layout of a record does not change its topic.
    for channel in reach::channels(settings, &normalizer, |_| Mode::default()) {
        let of_output = needs.entry(channel.output.to_owned()).or_default();
        of_output.largest_body = largest_body;
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
    let topics = &channel.topics;
    // If no known type arrives, what arrives is meant for others.
    let names = if topics.certain.is_empty() { &topics.possible } else { &topics.certain };
    let others = match topics {
        Topics { is_open: true, .. } => Some(OtherTopics::OfSenders),
        Topics { is_cut: true, .. } => Some(OtherTopics::TooMany),
        Topics { possible, .. } => (!possible.is_subset(names)).then_some(OtherTopics::OfOtherTypes),
    };
    let mut pattern = written.clone();
    for (attribute, _) in &channel.parameters {
        let any = if *attribute == Attribute::Type { format!("{type_prefix}*") } else { "*".to_owned() };
        pattern = insert(&pattern, *attribute, &any);
    }
    NeededTopic { written, from, names: names.clone(), others, pattern }
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
        let names = |index: usize| topics[index].names.iter().map(String::as_str).collect::<Vec<_>>();
        let failures = ["media.ims.failure", "media.ims.partial", "media.vod.failure", "media.vod.partial"];
        assert_eq!(names(0), failures);
        assert_eq!((names(1), topics[1].others), (vec![], Some(OtherTopics::OfSenders)));
        assert_eq!(topics[1].pattern, "media.*-com.aliyun.media.*");
        assert_eq!((names(2), topics[2].others), (vec!["media.dead"], None));
    }

    /// The topics of one route to `media.…` each, with the other topics that can be.
    fn topics(routes: &[(&str, &str)]) -> Vec<(Vec<String>, Option<OtherTopics>)> {
        let mut text = "
            spool.enabled = false
            inputs.http = { kind = 'http', endpoints = [{ path = '/' }] }
            outputs.kafka = { kind = 'kafka' }
        "
        .to_owned();
        for (index, (condition, topic)) in routes.iter().enumerate() {
            text.push_str(&format!(
                "[[routes]]\nname = 'r{index}'\n{condition}\nto = {{ output = 'kafka', topic = '{topic}' }}\n"
            ));
        }
        let loaded = config::load(&[Layer::Text("test".to_owned(), text)]).expect("valid");
        let needs = needs(&loaded.settings).remove("kafka").expect("it is needed");
        needs.topics.into_iter().map(|topic| (topic.names.into_iter().collect(), topic.others)).collect()
    }

    #[test]
    fn what_a_route_lists_is_known() {
        use OtherTopics::{OfOtherTypes, OfSenders};
        let prefix = "q.com.aliyun.media.";
        let of = |name: &str| format!("{prefix}{name}");
        for (condition, topic, expected, others) in [
            ("match = { type = 'StreamTranscodeComplete' }", "q.{type}", vec![of("StreamTranscodeComplete")], None),
            (
                "filter = { any = [{ exact = { type = 'com.aliyun.media.Mine' } }, \
                 { exact = { type = 'com.aliyun.media.StreamTranscodeComplete' } }] }",
                "q.{type}",
                vec![of("Mine"), of("StreamTranscodeComplete")],
                None,
            ),
            ("match = { accountid = ['1', '2'] }", "q.{accountid}", vec!["q.1".to_owned(), "q.2".to_owned()], None),
            ("match = { accountid = ['1', '2*'] }", "q.{accountid}", vec![], Some(OfSenders)),
            (
                "match = { type = 'StreamTranscodeComplete' }",
                "q.{dialect}.{type}",
                vec!["q.vod.com.aliyun.media.StreamTranscodeComplete".to_owned()],
                Some(OfOtherTypes),
            ),
            ("match = { type = 'Unheard*', dialect = 'ims' }", "q.{dialect}", vec!["q.ims".to_owned()], None),
        ] {
            assert_eq!(topics(&[(condition, topic)]), [(expected, others)], "{condition}");
        }
        let [(names, others)] = &topics(&[("", "q.{type}")])[..] else { panic!("one topic") };
        assert!(names.len() > 30 && names.contains(&of("TranscodeComplete")), "{names:?}");
        assert_eq!(*others, Some(OfSenders));
    }

    #[test]
    fn values_of_two_routes_are_not_mixed() {
        let routes = [
            ("match = { dialect = 'vod', status = 'failure' }", "w.{dialect}.{status}"),
            ("match = { dialect = 'ims', status = 'success' }", "w.{dialect}.{status}"),
        ];
        let expected = ["w.ims.success", "w.vod.failure"].map(str::to_owned).to_vec();
        assert_eq!(topics(&routes), [(expected, None)]);
    }
}
