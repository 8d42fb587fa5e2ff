//! Which events can arrive at which destination: the routes, tried with every kind of event.
//!
//! A kind of event is an event type of the catalogue, or any other type of a dialect, with a status and a verdict. What
//! else is in an event is unknown, so that a route that asks for it can match or not. The answer errs to one side only: an
//! event that can arrive is listed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::bridge::DeadLetterReason;
use crate::dialect::{Dialect, Normalizer, Status, Verdict, schema_urn};
use crate::event::{Attribute, Mode};
use crate::route::{Action, Destination, Fact, Possibilities, Template, inserted};
use crate::service::Settings;

/// An event type of the catalogue by its position, or every other type of a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::contract) struct Type {
    pub(in crate::contract) dialect: Dialect,
    pub(in crate::contract) known: Option<usize>,
}

/// A topic of an output.
#[derive(Debug)]
pub(in crate::contract) struct Channel<'s> {
    pub(in crate::contract) output: &'s str,
    pub(in crate::contract) topic: &'s Template,
    /// The names of the routes that lead here, in order.
    pub(in crate::contract) routes: Vec<&'s str>,
    pub(in crate::contract) arrivals: Vec<Arrivals<'s>>,
    /// The attributes in the topic, each once, with the values that are inserted; none if senders choose them.
    pub(in crate::contract) parameters: Vec<(Attribute, Option<BTreeSet<String>>)>,
    pub(in crate::contract) topics: Topics,
}

/// What the topic of a channel becomes.
#[derive(Debug, Default)]
pub(in crate::contract) struct Topics {
    /// For event types of the catalogue, and for types that a route lists.
    pub(in crate::contract) certain: BTreeSet<String>,
    /// For other types, as far as it is known.
    pub(in crate::contract) possible: BTreeSet<String>,
    /// Whether senders can choose a part of it.
    pub(in crate::contract) is_open: bool,
    /// Whether there are too many to list all.
    pub(in crate::contract) is_cut: bool,
}

/// Most topics of one template that are listed.
const MOST: usize = 1000;

/// Event types that arrive in one form.
#[derive(Debug)]
pub(in crate::contract) struct Arrivals<'s> {
    pub(in crate::contract) mode: Mode,
    pub(in crate::contract) are_dead_letters: bool,
    /// Each with the templates of its keys.
    pub(in crate::contract) types: BTreeMap<Type, Vec<&'s Template>>,
}

/// The channels that events can arrive at, in the order in which routes name them. `mode` gives the layout of a destination.
pub(in crate::contract) fn channels<'s>(
    settings: &'s Settings,
    normalizer: &Normalizer,
    mode: impl Fn(&Destination) -> Mode,
) -> Vec<Channel<'s>> {
    let known_types: Vec<(Dialect, BTreeSet<String>)> =
        Dialect::ALL.into_iter().map(|dialect| (dialect, types_of(dialect, normalizer))).collect();
    let events = normalizer.catalogue().events().iter().enumerate();
    let known = events.map(|(index, event)| Type { dialect: event.dialect, known: Some(index) });
    let others = Dialect::ALL.into_iter().map(|dialect| Type { dialect, known: None });
    let types: Vec<Type> = known.chain(others).collect();
    let mut channels = Channels::new(settings, mode);
    channels.known_types = known_types.iter().flat_map(|(_, names)| names.iter().cloned()).collect();
    for r#type in types {
        let names = known_types.iter().find(|(dialect, _)| *dialect == r#type.dialect);
        let Some((_, names)) = names else { continue };
        for status in Status::ALL {
            // An entry of the catalogue says whether its events can have a verdict.
            let can_have_verdict =
                r#type.known.is_none_or(|index| !normalizer.catalogue().events()[index].verdict.is_empty());
            let verdicts = Verdict::ALL.into_iter().filter(|_| can_have_verdict);
            for verdict in verdicts.map(Some).chain([None]) {
                let kind = EventKind::new(r#type, status, verdict, normalizer, names);
                let possible = settings.router.possibilities(|attribute| kind.fact(attribute));
                channels.add(&kind, &possible);
            }
        }
    }
    channels.channels.retain(|channel| !channel.arrivals.is_empty());
    channels.channels
}

/// Every `type` that an event of a known EventType can have under its names and aliases.
fn types_of(dialect: Dialect, normalizer: &Normalizer) -> BTreeSet<String> {
    let events = normalizer.catalogue().events().iter().filter(|event| event.dialect == dialect);
    let names = events.flat_map(|event| event.aliases.iter().chain([&event.name]));
    names.map(|name| format!("{}{name}", normalizer.type_prefix())).collect()
}

/// A kind of event.
struct EventKind<'n> {
    r#type: Type,
    status: Status,
    verdict: Option<Verdict>,
    type_prefix: &'n str,
    /// `type` and `dataschema`.
    names: Option<(String, String)>,
    source: &'static str,
    schema_prefix: String,
    known_types: &'n BTreeSet<String>,
    none: BTreeSet<String>,
}

impl<'n> EventKind<'n> {
    fn new(
        r#type: Type,
        status: Status,
        verdict: Option<Verdict>,
        normalizer: &'n Normalizer,
        known_types: &'n BTreeSet<String>,
    ) -> EventKind<'n> {
        let event = r#type.known.map(|index| &normalizer.catalogue().events()[index]);
        EventKind {
            r#type,
            status,
            verdict,
            type_prefix: normalizer.type_prefix(),
            names: event
                .map(|event| (format!("{}{}", normalizer.type_prefix(), event.name), normalizer.dataschema(event))),
            source: r#type.dialect.source(),
            schema_prefix: schema_urn(&format!("{}:", r#type.dialect)),
            known_types,
            none: BTreeSet::new(),
        }
    }

    /// What is known about an attribute, before the event can become a dead letter.
    fn fact(&self, attribute: Attribute) -> Fact<'_> {
        match attribute {
            Attribute::SpecVersion => Fact::Is("1.0"),
            Attribute::DataContentType => Fact::Is("application/json"),
            Attribute::Dialect => Fact::Is(self.r#type.dialect.as_str()),
            Attribute::Status => Fact::Is(self.status.as_str()),
            Attribute::Verdict => self.verdict.map_or(Fact::Absent, |verdict| Fact::Is(verdict.as_str())),
            Attribute::Type => match &self.names {
                Some((name, _)) => Fact::Is(name),
                None => Fact::StartsWith(self.type_prefix, self.known_types),
            },
            Attribute::DataSchema => match &self.names {
                Some((_, schema)) => Fact::Is(schema),
                None => Fact::StartsWith(&self.schema_prefix, &self.none),
            },
            Attribute::Source => Fact::StartsWith(self.source, &self.none),
            Attribute::Id | Attribute::RecordedTime => Fact::Present,
            Attribute::DlqReason | Attribute::DlqCode | Attribute::DlqAttempts | Attribute::DlqDestination => {
                Fact::Absent
            }
            Attribute::Subject
            | Attribute::Time
            | Attribute::MediaId
            | Attribute::JobId
            | Attribute::AccountId
            | Attribute::AppId
            | Attribute::PartitionKey
            | Attribute::Traceparent => Fact::Unknown,
        }
    }

    /// What is known about an attribute of a dead letter of this event.
    fn fact_of_letter<'f>(&'f self, attribute: Attribute, reason: DeadLetterReason) -> Fact<'f> {
        match attribute {
            Attribute::DlqReason => Fact::Is(reason.as_str()),
            Attribute::DlqAttempts => Fact::Present,
            Attribute::DlqCode | Attribute::DlqDestination => Fact::Unknown,
            _ => self.fact(attribute),
        }
    }
}

/// A destination, with the position of its channel.
struct Target<'s> {
    channel: usize,
    mode: Mode,
    key: &'s Template,
}

struct Channels<'s> {
    channels: Vec<Channel<'s>>,
    /// The destinations by the name of their route.
    targets: HashMap<&'s str, Vec<Target<'s>>>,
    dead_letters: Option<Target<'s>>,
    type_prefix: &'s str,
    /// The known types of all dialects.
    known_types: BTreeSet<String>,
}

impl<'s> Channels<'s> {
    /// All channels. Nothing arrives there yet.
    fn new(settings: &'s Settings, mode: impl Fn(&Destination) -> Mode) -> Channels<'s> {
        let mut channels: Vec<Channel<'s>> = Vec::new();
        let mut known: HashMap<(&str, String), usize> = HashMap::new();
        let mut target = |destination: &'s Destination| {
            let channel = *known.entry((&destination.output, destination.topic.to_string())).or_insert_with(|| {
                let attributes = destination.topic.attributes();
                let mut parameters: Vec<(Attribute, Option<BTreeSet<String>>)> = Vec::new();
                for attribute in attributes {
                    if !parameters.iter().any(|(known, _)| *known == attribute) {
                        parameters.push((attribute, Some(BTreeSet::new())));
                    }
                }
                channels.push(Channel {
                    output: &destination.output,
                    topic: &destination.topic,
                    routes: Vec::new(),
                    arrivals: Vec::new(),
                    parameters,
                    topics: Topics::default(),
                });
                channels.len() - 1
            });
            Target { channel, mode: mode(destination), key: &destination.key }
        };
        let targets = settings.router.routes().iter().map(|route| {
            let targets = route.destinations().iter().map(&mut target).collect();
            (route.name.as_str(), targets)
        });
        let targets = targets.collect();
        let dead_letters = settings.dead_letters.as_ref().map(target);
        let (type_prefix, known_types) = (settings.type_prefix.as_str(), BTreeSet::new());
        Channels { channels, targets, dead_letters, type_prefix, known_types }
    }

    fn add(&mut self, kind: &EventKind<'_>, possible: &Possibilities<'s>) {
        let mut is_published = false;
        for route in &possible.routes {
            for target in self.targets.get(route.name.as_str()).into_iter().flatten() {
                is_published = true;
                let channel = &mut self.channels[target.channel];
                channel.arrive(target, kind.r#type, false);
                let values = |attribute| {
                    // What a route lists are all values that can come through it.
                    let listed = || route.listed_values(attribute);
                    values(kind.fact(attribute), attribute, self.type_prefix, listed)
                };
                channel.can_be(kind.r#type.known.is_some(), values);
                // A type that a route lists and that no catalogue has is expected.
                let own = route.listed_values(Attribute::Type).unwrap_or_default().into_iter();
                let own =
                    own.filter(|name| !self.known_types.contains(*name) && kind.fact(Attribute::Type).can_be(name));
                let own: BTreeSet<String> =
                    own.map(|name| inserted(Attribute::Type, Some(name), self.type_prefix)).collect();
                if kind.r#type.known.is_none() && !own.is_empty() {
                    channel.can_be(true, |attribute| match attribute {
                        Attribute::Type => Some(own.clone()),
                        other => values(other),
                    });
                }
                if !channel.routes.contains(&route.name.as_str()) {
                    channel.routes.push(&route.name);
                }
            }
        }
        let Some(target) = &self.dead_letters else { return };
        let is_routed = possible.routes.iter().any(|route| route.action == Action::DeadLetter);
        for reason in DeadLetterReason::all() {
            let can_be = match reason {
                DeadLetterReason::Unrouted => possible.can_be_unrouted,
                DeadLetterReason::Routed => is_routed,
                DeadLetterReason::Exhausted | DeadLetterReason::Publish(_) => is_published,
                // These have no event. They are not published.
                DeadLetterReason::NotACallback | DeadLetterReason::Damaged => false,
            };
            if can_be {
                let channel = &mut self.channels[target.channel];
                channel.arrive(target, kind.r#type, true);
                channel.can_be(kind.r#type.known.is_some(), |attribute| {
                    values(kind.fact_of_letter(attribute, reason), attribute, self.type_prefix, || None)
                });
            }
        }
    }
}

/// The values of an attribute as they are inserted in a topic; none if senders choose them.
fn values<'f>(
    fact: Fact<'_>,
    attribute: Attribute,
    type_prefix: &str,
    listed: impl FnOnce() -> Option<BTreeSet<&'f str>>,
) -> Option<BTreeSet<String>> {
    let inserted = |value| inserted(attribute, value, type_prefix);
    match fact {
        Fact::Absent => Some(BTreeSet::from([inserted(None)])),
        Fact::Is(value) => Some(BTreeSet::from([inserted(Some(value))])),
        Fact::StartsWith(..) | Fact::Present | Fact::Unknown => {
            let can_be = listed()?.into_iter().filter(|value| fact.can_be(value));
            Some(can_be.map(|value| inserted(Some(value))).collect())
        }
    }
}

impl<'s> Channel<'s> {
    fn arrive(&mut self, target: &Target<'s>, r#type: Type, is_dead_letter: bool) {
        let alike =
            |arrivals: &Arrivals<'_>| arrivals.mode == target.mode && arrivals.are_dead_letters == is_dead_letter;
        let position = self.arrivals.iter().position(alike).unwrap_or_else(|| {
            let types = BTreeMap::new();
            self.arrivals.push(Arrivals { mode: target.mode, are_dead_letters: is_dead_letter, types });
            self.arrivals.len() - 1
        });
        let keys = self.arrivals[position].types.entry(r#type).or_default();
        if !keys.contains(&target.key) {
            keys.push(target.key);
        }
    }

    /// Adds what the topic becomes with these values of its attributes: every combination.
    fn can_be(&mut self, is_certain: bool, values: impl Fn(Attribute) -> Option<BTreeSet<String>>) {
        let mut names = BTreeSet::from([self.topic.to_string()]);
        let mut is_open = false;
        for (attribute, known) in &mut self.parameters {
            let Some(values) = values(*attribute) else {
                is_open = true;
                *known = None;
                continue;
            };
            let placeholder = format!("{{{attribute}}}");
            let combined = names.iter().flat_map(|name| values.iter().map(|value| name.replace(&placeholder, value)));
            names = combined.take(MOST + 1).collect();
            if let Some(known) = known {
                known.extend(values);
            }
        }
        let topics = &mut self.topics;
        topics.is_open |= is_open;
        if is_open {
            return;
        }
        let list = if is_certain { &mut topics.certain } else { &mut topics.possible };
        for name in names {
            if list.len() == MOST && !list.contains(&name) {
                topics.is_cut = true;
                break;
            }
            list.insert(name);
        }
    }
}
