//! Which events can arrive at which destination: the routes, tried with every kind of event.
//!
//! A kind of event is an event type of the catalogue, or any other type of a dialect, with a status and a verdict. What
//! else is in an event is unknown, so that a route that asks for it can match or not. The answer errs to one side only: an
//! event that can arrive is listed.

use std::collections::BTreeSet;

use crate::bridge::DeadLetterReason;
use crate::dialect::{Dialect, Normalizer, Status, Verdict};
use crate::event::{Attribute, Mode};
use crate::route::{Destination, Fact, Possibilities, Template, inserted};
use crate::service::Settings;

/// An event type of the catalogue by its position, or every other type of a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Type {
    pub(super) dialect: Dialect,
    pub(super) known: Option<usize>,
}

/// A topic of an output.
#[derive(Debug)]
pub(super) struct Channel<'s> {
    pub(super) output: &'s str,
    pub(super) topic: &'s Template,
    /// The names of the routes that lead here, in order.
    pub(super) routes: Vec<&'s str>,
    pub(super) arrivals: Vec<Arrivals<'s>>,
    /// The attributes in the topic, each once, with the values that are inserted; none if senders choose them.
    pub(super) parameters: Vec<(Attribute, Option<BTreeSet<String>>)>,
}

/// Event types that arrive in one form.
#[derive(Debug)]
pub(super) struct Arrivals<'s> {
    pub(super) mode: Option<Mode>,
    pub(super) key: &'s Template,
    pub(super) are_dead_letters: bool,
    pub(super) types: BTreeSet<Type>,
}

/// The channels that events can arrive at, in the order in which routes name them.
pub(super) fn channels<'s>(settings: &'s Settings, normalizer: &Normalizer) -> Vec<Channel<'s>> {
    let mut channels = Channels { channels: Vec::new(), type_prefix: &settings.type_prefix };
    let known_types: Vec<(Dialect, BTreeSet<String>)> =
        Dialect::ALL.into_iter().map(|dialect| (dialect, types_of(dialect, normalizer))).collect();
    let events = normalizer.catalogue().events().iter().enumerate();
    let known = events.map(|(index, event)| Type { dialect: event.dialect, known: Some(index) });
    let others = Dialect::ALL.into_iter().map(|dialect| Type { dialect, known: None });
    let types: Vec<Type> = known.chain(others).collect();
    // The order of the channels is that of the routes, and not that of the types.
    for route in settings.router.routes() {
        for destination in route.destinations() {
            channels.channel(destination);
        }
    }
    for r#type in types {
        let names = known_types.iter().find(|(dialect, _)| *dialect == r#type.dialect);
        let Some((_, names)) = names else { continue };
        for status in Status::ALL {
            for verdict in Verdict::ALL.into_iter().map(Some).chain([None]) {
                let kind = EventKind::new(r#type, status, verdict, normalizer, names);
                let possible = settings.router.possibilities(|attribute| kind.fact(attribute));
                channels.add(&kind, &possible, settings.dead_letters.as_ref());
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
    names: Option<(String, &'n str)>,
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
            names: event.map(|event| {
                (format!("{}{}", normalizer.type_prefix(), event.name), normalizer.dataschema(event))
            }),
            source: match r#type.dialect {
                Dialect::Vod => "acs:vod",
                Dialect::Ims => "acs:ims",
            },
            schema_prefix: format!("urn:apsara-bridge:schema:{}:", r#type.dialect),
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

struct Channels<'s> {
    channels: Vec<Channel<'s>>,
    type_prefix: &'s str,
}

impl<'s> Channels<'s> {
    fn channel(&mut self, destination: &'s Destination) -> usize {
        let is_it = |channel: &Channel<'_>| channel.output == destination.output && *channel.topic == destination.topic;
        self.channels.iter().position(is_it).unwrap_or_else(|| {
            let mut parameters: Vec<(Attribute, Option<BTreeSet<String>>)> = Vec::new();
            for attribute in destination.topic.attributes() {
                if !parameters.iter().any(|(known, _)| *known == attribute) {
                    parameters.push((attribute, Some(BTreeSet::new())));
                }
            }
            self.channels.push(Channel {
                output: &destination.output,
                topic: &destination.topic,
                routes: Vec::new(),
                arrivals: Vec::new(),
                parameters,
            });
            self.channels.len() - 1
        })
    }

    fn add(&mut self, kind: &EventKind<'_>, possible: &Possibilities<'s>, dead_letters: Option<&'s Destination>) {
        for route in &possible.routes {
            for destination in route.destinations() {
                let index = self.arrive(kind.r#type, destination, false, |attribute| kind.fact(attribute));
                let routes = &mut self.channels[index].routes;
                if !routes.contains(&route.name.as_str()) {
                    routes.push(&route.name);
                }
            }
        }
        let Some(destination) = dead_letters else { return };
        let is_published = possible.routes.iter().any(|route| !route.destinations().is_empty());
        let is_routed = possible.routes.iter().any(|route| route.action == crate::route::Action::DeadLetter);
        for reason in DeadLetterReason::all() {
            let can_be = match reason {
                DeadLetterReason::Unrouted => possible.can_be_unrouted,
                DeadLetterReason::Routed => is_routed,
                DeadLetterReason::Exhausted | DeadLetterReason::Publish(_) => is_published,
                // These have no event. They are not published.
                DeadLetterReason::NotACallback | DeadLetterReason::Damaged => false,
            };
            if can_be {
                self.arrive(kind.r#type, destination, true, |attribute| kind.fact_of_letter(attribute, reason));
            }
        }
    }

    fn arrive<'f>(
        &mut self,
        r#type: Type,
        destination: &'s Destination,
        is_dead_letter: bool,
        fact: impl Fn(Attribute) -> Fact<'f>,
    ) -> usize {
        let index = self.channel(destination);
        let channel = &mut self.channels[index];
        let alike = |arrivals: &&mut Arrivals<'_>| {
            arrivals.mode == destination.mode
                && *arrivals.key == destination.key
                && arrivals.are_dead_letters == is_dead_letter
        };
        match channel.arrivals.iter_mut().find(alike) {
            Some(arrivals) => drop(arrivals.types.insert(r#type)),
            None => channel.arrivals.push(Arrivals {
                mode: destination.mode,
                key: &destination.key,
                are_dead_letters: is_dead_letter,
                types: BTreeSet::from([r#type]),
            }),
        }
        for (attribute, values) in &mut channel.parameters {
            let value = match fact(*attribute) {
                Fact::Absent => Some(None),
                Fact::Is(value) => Some(Some(value)),
                Fact::StartsWith(..) | Fact::Present | Fact::Unknown => None,
            };
            match (value, values.as_mut()) {
                (Some(value), Some(values)) => drop(values.insert(inserted(*attribute, value, self.type_prefix))),
                _ => *values = None,
            }
        }
        index
    }
}
