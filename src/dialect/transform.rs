//! From the members of a callback to those of `data`: names, types, decoding, the error.
//!
//! Nothing is lost: every leaf of the callback, decoded if it was JSON in a string, is in `data`. The only exception:
//! the empty strings of an absent error.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::event::json::{Json, MAX_DEPTH, Members, has_repeats};

use super::catalogue::{Catalogue, EventType, Kind, ShapeId};
use super::status::{Status, StatusRule, status};
use super::values;

/// Member for the rest of an id that came as an object. IMS calls such an object the input of a job.
const ID_REST: &str = "input";

/// Normalized members with their outcome.
pub(super) struct Data<'a> {
    pub(super) members: Members<'a>,
    pub(super) status: Status,
}

/// Normalizes the payload of a callback.
pub(super) fn data<'a>(catalogue: &'a Catalogue, entry: Option<&EventType>, payload: Members<'a>) -> Data<'a> {
    let walk = Walk { catalogue };
    // `data` is one level inside the envelope.
    let mut members = walk.object(Catalogue::TOP, payload, 1);
    let default_rule;
    let rule = match entry {
        Some(entry) => &entry.status,
        None => {
            default_rule = StatusRule::default();
            &default_rule
        }
    };
    let is_customers = |name: &str| *catalogue.field(Catalogue::TOP, name).1 == Kind::Verbatim;
    let status = status(&members, rule, |word| catalogue.word(word), is_customers);
    if let Some(error) = entry.and_then(|entry| entry.error.as_ref())
        && status == Status::Failure
    {
        lift_error(&mut members, &error.code, &error.message);
    }
    Data { members, status }
}

/// Adds a member under a free name; see [`free_name`].
pub(super) fn insert<'a>(members: &mut Members<'a>, name: &'static str, value: Json<'a>) {
    let name = free_name(Cow::Borrowed(name), Cow::Borrowed(name), |name| members.iter().any(|(key, _)| key == name));
    members.push((name, value));
}

/// The first free name: the wanted one, the one the member came with, or the latter with underscores appended.
fn free_name<'a>(wanted: Cow<'a, str>, own: Cow<'a, str>, taken: impl Fn(&str) -> bool) -> Cow<'a, str> {
    if !taken(&wanted) {
        return wanted;
    }
    let mut name = own;
    // Doubled each time, so that no callback can make this slow with many names.
    let mut underscores = 1;
    while taken(&name) {
        name = Cow::Owned(format!("{name}{}", "_".repeat(underscores)));
        underscores *= 2;
    }
    name
}

/// One walk through a payload. Names that the catalogue knows are borrowed from it.
struct Walk<'a> {
    catalogue: &'a Catalogue,
}

impl<'a> Walk<'a> {
    fn object(&self, shape: ShapeId, members: Members<'a>, depth: usize) -> Members<'a> {
        let mut named: Vec<Named<'a>> = Vec::with_capacity(members.len());
        let mut rest: Option<Json<'a>> = None;
        let mut errors = false;
        for (key, value) in members {
            let (name, kind) = self.catalogue.field(shape, &key);
            let value = match kind {
                // An object has one id. A second one, under a synonym, keeps its shape.
                Kind::Id if rest.is_none() => {
                    let id;
                    (id, rest) = self.id(value, depth + 1);
                    id
                }
                Kind::Id => values::string(self.open(value, depth + 1)),
                kind => self.typed(value, kind, depth + 1),
            };
            errors |= name.as_deref().unwrap_or(&key).starts_with("error");
            named.push(Named { name, own: key, value });
        }
        let mut members = settle(named);
        if let Some(rest) = rest {
            insert(&mut members, ID_REST, rest);
        }
        if errors {
            lift_error(&mut members, "errorCode", "errorMessage");
            rename_error_info(&mut members);
        }
        members
    }

    fn typed(&self, value: Json<'a>, kind: &Kind, depth: usize) -> Json<'a> {
        match kind {
            Kind::Any => self.open(value, depth),
            Kind::String => values::string(self.open(value, depth)),
            Kind::Number => values::number(self.open(value, depth)),
            Kind::Boolean => values::boolean(self.open(value, depth)),
            Kind::Time => values::time(self.open(value, depth)),
            Kind::List => match self.decoded(value, depth) {
                Json::Array(items) => Json::Array(items.into_iter().map(|item| self.open(item, depth + 1)).collect()),
                other => values::list(self.open(other, depth)),
            },
            Kind::Id => self.id(value, depth).0,
            Kind::Verbatim => self.verbatim(value, depth),
            Kind::Json => {
                let value = self.decoded(value, depth);
                self.open(value, depth)
            }
            Kind::Object(shape) => match self.decoded(value, depth) {
                Json::Object(members) => Json::Object(self.object(*shape, members, depth)),
                Json::Array(items) => {
                    Json::Array(items.into_iter().map(|item| self.typed(item, kind, depth + 1)).collect())
                }
                other => other,
            },
            Kind::Array(inner) => match self.decoded(value, depth) {
                Json::Array(items) => {
                    Json::Array(items.into_iter().map(|item| self.typed(item, inner, depth + 1)).collect())
                }
                other => self.typed(other, inner, depth),
            },
        }
    }

    /// A value without a declared shape: keys are respelled, scalars are kept.
    fn open(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        match value {
            Json::Object(members) => Json::Object(self.object(Catalogue::OPEN, members, depth)),
            Json::Array(items) => Json::Array(items.into_iter().map(|item| self.open(item, depth + 1)).collect()),
            scalar => scalar,
        }
    }

    /// The customer's own data: decoded where it is JSON, otherwise exactly as it came.
    fn verbatim(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        match self.decoded(value, depth) {
            Json::Array(items) => Json::Array(items.into_iter().map(|item| self.verbatim(item, depth + 1)).collect()),
            Json::Object(members) => {
                Json::Object(members.into_iter().map(|(key, value)| (key, self.verbatim(value, depth + 1))).collect())
            }
            scalar => scalar,
        }
    }

    /// An id, and the object that it came in, if it was the member `media` of one.
    fn id(&self, value: Json<'a>, depth: usize) -> (Json<'a>, Option<Json<'a>>) {
        match self.open(self.decoded(value, depth), depth) {
            rest @ Json::Object(_) => {
                let media = rest.get("media").or_else(|| rest.get("mediaId")).filter(|media| media.as_text().is_some());
                match media.cloned() {
                    Some(media) => (values::string(media), Some(rest)),
                    None => (rest, None),
                }
            }
            other => (values::string(other), None),
        }
    }

    /// The object or array that a string holds as JSON. Every other value as it came, also if the decoded one would nest
    /// too deep.
    fn decoded(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        let Json::String(text) = &value else { return value };
        if !text.trim_start().starts_with(['{', '[']) {
            return value;
        }
        match Json::parse_within(text.trim().as_bytes(), MAX_DEPTH.saturating_sub(depth)) {
            Ok(json) => json.into_owned(),
            Err(_) => value,
        }
    }
}

/// A member with the name that it should have; none if that is the name it came with.
struct Named<'a> {
    name: Option<Cow<'a, str>>,
    own: Cow<'a, str>,
    value: Json<'a>,
}

impl Named<'_> {
    fn wanted(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.own)
    }
}

/// Gives every member its name. If several want the same name, the member that came with it gets it, else the first one.
/// The others keep the names they came with.
fn settle(named: Vec<Named<'_>>) -> Members<'_> {
    if !has_repeats(named.iter().map(Named::wanted)) {
        return named.into_iter().map(|member| (member.name.unwrap_or(member.own), member.value)).collect();
    }
    let mut came_so: HashSet<String> =
        named.iter().filter(|member| member.wanted() == member.own).map(|member| member.own.to_string()).collect();
    let mut taken: HashSet<String> = came_so.clone();
    named
        .into_iter()
        .map(|member| {
            // Two members came with the same name if one was next to `MessageBody` and the other in it.
            if member.wanted() == member.own && came_so.remove(member.wanted()) {
                return (member.own, member.value);
            }
            let wanted = member.name.unwrap_or_else(|| member.own.clone());
            let name = free_name(wanted, member.own, |name| taken.contains(name));
            taken.insert(name.to_string());
            (name, member.value)
        })
        .collect()
}

/// Builds `error {code, message}` from two fields if at least one of them has a text, and removes empty ones. If there is
/// an `error` already, everything stays as it is.
fn lift_error(members: &mut Members<'_>, code: &str, message: &str) {
    if members.iter().any(|(key, _)| key == "error") {
        return;
    }
    let mut error = Vec::new();
    let mut position = None;
    for (field, name) in [(code, "code"), (message, "message")] {
        let Some(index) = members.iter().position(|(key, value)| key == field && value.as_text().is_some()) else {
            continue;
        };
        let (_, value) = members.remove(index);
        // A field that is removed before the position moves it.
        position = Some(position.map_or(index, |earlier: usize| earlier.min(index)));
        if value.as_text().is_some_and(|text| !text.trim().is_empty()) {
            error.push((Cow::Borrowed(name), values::string(value)));
        }
    }
    if let Some(position) = position
        && !error.is_empty()
    {
        members.insert(position.min(members.len()), (Cow::Borrowed("error"), Json::Object(error)));
    }
}

/// Renames the `error_info {code, message}` of live recording to `error`.
fn rename_error_info(members: &mut Members<'_>) {
    if members.iter().any(|(key, _)| key == "error") {
        return;
    }
    let says_something = |value: &Json<'_>| {
        value.get("code").and_then(Json::as_text) != Some("0")
            && ["code", "message"]
                .iter()
                .any(|field| value.get(field).and_then(Json::as_text).is_some_and(|text| !text.trim().is_empty()))
    };
    if let Some((key, value)) = members.iter_mut().find(|(key, value)| key == "errorInfo" && says_something(value)) {
        *key = Cow::Borrowed("error");
        if let Json::Object(fields) = value {
            for (_, value) in fields.iter_mut().filter(|(key, _)| key == "code" || key == "message") {
                *value = values::string(std::mem::replace(value, Json::Null));
            }
        }
    }
}
