//! From the members of a callback to those of `data`: names, types, decoding, the error.
//!
//! Nothing is lost: every leaf of the callback, decoded if it was JSON in a string, is in `data`. The only exceptions are
//! the values of error fields that say that there is no error ([`NO_ERROR`]), and codes and messages of an error without a
//! value. docs/events.md has the table.

use std::borrow::Cow;
use std::collections::HashSet;

use bumpalo::Bump;

use crate::event::json::{Json, MAX_DEPTH, Member, Members, find, has_repeats};

use super::catalogue::{Catalogue, ErrorFields, EventType, Kind, ShapeId};
use super::keys::respell;
use super::status::{Parts, Status, StatusRule, status};
use super::values;

/// Codes and messages, in lower case, that say that there is no error. Alibaba sends them with successes. They are left
/// out of `data`.
const NO_ERROR: [&str; 4] = ["", "0", "success", "ok"];

/// Members of the customer's data that Alibaba encodes a second time, for example in the `UserData` of IMS
/// StreamUploadComplete.
const ENCODED_TWICE: &str = "MessageCallback";

/// Member for the rest of an id that came as an object. IMS calls such an object the input of a job.
const ID_REST: &str = "input";

/// Normalized members with their outcome.
pub(super) struct Data<'a> {
    pub(super) members: Members<'a>,
    pub(super) status: Status,
}

/// Normalizes the payload of a callback.
pub(super) fn data<'a>(
    catalogue: &'a Catalogue,
    entry: Option<&EventType>,
    payload: &[Member<'a>],
    arena: &'a Bump,
) -> Data<'a> {
    let walk = Walk { catalogue, arena };
    let top = entry.map_or(Catalogue::TOP, |entry| entry.shape);
    // `data` is one level inside the envelope.
    let mut members = walk.object(top, payload, 1);
    let (default_rule, default_error);
    let (rule, error) = match entry {
        Some(entry) => (&entry.status, &entry.error),
        None => {
            (default_rule, default_error) = (StatusRule::default(), ErrorFields::default());
            (&default_rule, &default_error)
        }
    };
    let parts_of = |name: &'a str| match catalogue.field(top, name, arena).1 {
        Kind::Verbatim => Parts::None,
        Kind::Map(_) => Parts::Steps,
        _ => Parts::Items,
    };
    let status = status(&members, rule, |word| catalogue.word(word), parts_of);
    if matches!(status, Status::Failure | Status::Partial | Status::Canceled) {
        lift_error(&mut members, &error.code, &error.message, Silent::Stays);
        // What is left of `ErrorCode` and `ErrorMessage` is a message without a code.
        lift_error(&mut members, "", "errorMessage", Silent::Stays);
    }
    for name in entry.map(|entry| entry.lift.as_slice()).unwrap_or_default() {
        lift(&mut members, name);
    }
    Data { members, status }
}

/// Moves the members of an object to the top level. Those whose names are taken stay where they are.
fn lift<'a>(members: &mut Members<'a>, name: &str) {
    let Some(index) = members.iter().position(|(key, value)| *key == name && matches!(value, Json::Object(_))) else {
        return;
    };
    let (key, Json::Object(inner)) = members.remove(index) else { return };
    // A set is slower for the few members that Alibaba sends, and faster for the many of somebody else.
    let many: Option<HashSet<&str>> =
        (members.len() * inner.len() > 1024).then(|| members.iter().map(|(key, _)| *key).collect());
    let is_taken = |key: &str| match &many {
        Some(many) => many.contains(key),
        None => find(members, key).is_some(),
    };
    let arena = members.bump();
    let mut all = Members::with_capacity_in(members.len() + inner.len() + 1, arena);
    all.extend_from_slice_copy(&members[..index]);
    let mut stay = Members::new_in(arena);
    for &(key, value) in inner {
        let to = if key == name || is_taken(key) { &mut stay } else { &mut all };
        to.push((key, value));
    }
    if !stay.is_empty() {
        all.push((key, Json::Object(stay.into_bump_slice())));
    }
    all.extend_from_slice_copy(&members[index..]);
    *members = all;
}

/// Adds a member under a free name; see [`free_name`].
pub(super) fn insert<'a>(members: &mut Members<'a>, name: &'a str, value: Json<'a>) {
    let name = free_name(name, name, members.bump(), |name| find(members, name).is_some());
    members.push((name, value));
}

/// The first free name: the wanted one, the one the member came with, or the latter with underscores appended.
fn free_name<'a>(wanted: &'a str, own: &'a str, arena: &'a Bump, taken: impl Fn(&str) -> bool) -> &'a str {
    if !taken(wanted) {
        return wanted;
    }
    let mut name = own;
    // Doubled each time, so that no callback can make this slow with many names.
    let mut underscores = 1;
    while taken(name) {
        name = arena.alloc_str(&format!("{name}{}", "_".repeat(underscores)));
        underscores *= 2;
    }
    name
}

/// One walk through a payload. Names that the catalogue knows are borrowed from it.
struct Walk<'a> {
    catalogue: &'a Catalogue,
    arena: &'a Bump,
}

impl<'a> Walk<'a> {
    fn object(&self, shape: ShapeId, own: &[Member<'a>], depth: usize) -> Members<'a> {
        let mut members = Members::with_capacity_in(own.len(), self.arena);
        let mut wholes = Vec::new();
        let mut errors = false;
        for &(key, value) in own {
            let (mut name, kind) = self.catalogue.field(shape, key, self.arena);
            let value = match kind {
                Kind::Id => match self.id(value, depth + 1) {
                    Id::Plain(id) => id,
                    Id::Of(id, object) => {
                        wholes.push((members.len(), object));
                        id
                    }
                    Id::Address(input) => {
                        name = ID_REST;
                        input
                    }
                },
                kind => self.typed(value, kind, depth + 1),
            };
            errors |= name.starts_with("error");
            members.push((name, value));
        }
        if !wholes.is_empty() || has_repeats(members.iter().map(|(name, _)| *name)) {
            members = self.settle(shape, own, &members, &wholes);
        }
        if errors {
            lift_error(&mut members, "errorCode", "errorMessage", Silent::Goes);
            rename_error_info(&mut members);
        }
        members
    }

    fn typed(&self, value: Json<'a>, kind: &Kind, depth: usize) -> Json<'a> {
        match kind {
            Kind::Any => self.open(value, depth),
            Kind::String => values::string(self.open(value, depth)),
            Kind::Number => values::number(self.open(value, depth)),
            Kind::SecondsFromMilliseconds => values::seconds_from_milliseconds(self.open(value, depth), self.arena),
            Kind::Boolean => values::boolean(self.open(value, depth)),
            Kind::Time => values::time(self.open(value, depth), self.arena),
            Kind::List => {
                let value = self.decoded(value, depth);
                values::list(self.open(value, depth), self.arena)
            }
            // Only a member of an object can leave the rest of the object next to the id.
            Kind::Id => match self.id(value, depth) {
                Id::Plain(whole) | Id::Of(_, whole) | Id::Address(whole) => whole,
            },
            Kind::Verbatim => self.verbatim(value, depth),
            Kind::Json => {
                let value = self.decoded(value, depth);
                self.open(value, depth)
            }
            Kind::Object(shape) => match self.decoded(value, depth) {
                Json::Object(members) => Json::Object(self.object(*shape, members, depth).into_bump_slice()),
                Json::Array(items) => self.array(items, |item| self.typed(item, kind, depth + 1)),
                other => other,
            },
            Kind::Array(inner) => match self.decoded(value, depth) {
                Json::Array(items) => self.array(items, |item| self.typed(item, inner, depth + 1)),
                other => self.typed(other, inner, depth),
            },
            Kind::Map(inner) => match self.decoded(value, depth) {
                Json::Object(members) => self.map(members, |(key, value)| (key, self.typed(value, inner, depth + 1))),
                other => self.open(other, depth),
            },
        }
    }

    /// A value without a declared shape: keys are respelled, scalars are kept.
    fn open(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        match value {
            Json::Object(members) => Json::Object(self.object(Catalogue::OPEN, members, depth).into_bump_slice()),
            Json::Array(items) => self.array(items, |item| self.open(item, depth + 1)),
            scalar => scalar,
        }
    }

    fn array(&self, items: &[Json<'a>], change: impl Fn(Json<'a>) -> Json<'a>) -> Json<'a> {
        Json::Array(self.arena.alloc_slice_fill_iter(items.iter().map(|item| change(*item))))
    }

    fn map(&self, members: &[Member<'a>], change: impl Fn(Member<'a>) -> Member<'a>) -> Json<'a> {
        Json::Object(self.arena.alloc_slice_fill_iter(members.iter().map(|member| change(*member))))
    }

    /// The customer's own data: decoded once where it is JSON. Texts inside stay texts, also if they look like JSON, except
    /// what Alibaba itself encodes twice.
    fn verbatim(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        match self.decoded(value, depth) {
            Json::Object(members) => self.map(members, |(key, value)| match key {
                ENCODED_TWICE => (key, self.decoded(value, depth + 1)),
                _ => (key, value),
            }),
            other => other,
        }
    }

    /// An id, also as the member `media` of an object.
    fn id(&self, value: Json<'a>, depth: usize) -> Id<'a> {
        match self.open(self.decoded(value, depth), depth) {
            rest @ Json::Object(_) => {
                let media = rest.get("media").or_else(|| rest.get("mediaId")).filter(|media| media.as_text().is_some());
                match media {
                    Some(media) if names_an_address(rest, media) => Id::Address(rest),
                    Some(media) => Id::Of(values::string(media), rest),
                    None => Id::Plain(rest),
                }
            }
            other => Id::Plain(values::string(other)),
        }
    }

    /// The object or array that a string holds as JSON. Every other value as it came, also if the decoded one would nest
    /// too deep.
    fn decoded(&self, value: Json<'a>, depth: usize) -> Json<'a> {
        let Json::String(text) = value else { return value };
        if !text.trim_start().starts_with(['{', '[']) {
            return value;
        }
        let levels = MAX_DEPTH.saturating_sub(depth);
        Json::parse_within(text.trim().as_bytes(), levels, self.arena).unwrap_or(value)
    }

    /// Gives every member its name: `own` are the members as they came, `named` those with the names they should have, and
    /// `wholes` the objects in which ids came, with the positions of the ids. If several want the same name, the one with
    /// the lowest rank gets it, else the first by its own name. So the order of members does not matter. The others keep
    /// their own names, respelled if possible. An object that an id came in is a member of its own, unless the id did not
    /// get its name: then the object keeps its shape.
    fn settle(
        &self,
        shape: ShapeId,
        own: &[Member<'a>],
        named: &[Member<'a>],
        wholes: &[(usize, Json<'a>)],
    ) -> Members<'a> {
        let mut order: Vec<(usize, usize)> =
            named.iter().zip(own).map(|(named, own)| self.catalogue.rank(shape, named.0, own.0)).zip(0..).collect();
        // Two members can have the same own name, if one was next to `MessageBody` and the other in it.
        order.sort_by(|(rank, index), (other_rank, other)| {
            rank.cmp(other_rank).then_with(|| own[*index].0.cmp(own[*other].0)).then(index.cmp(other))
        });
        let mut taken: HashSet<&str> = HashSet::new();
        let (winners, losers): (Vec<usize>, Vec<usize>) =
            order.into_iter().map(|(_, index)| index).partition(|index| taken.insert(named[*index].0));
        let mut members = Members::with_capacity_in(named.len() + wholes.len(), self.arena);
        members.extend_from_slice_copy(named);
        let mut has_its_name = vec![false; named.len()];
        for index in winners {
            has_its_name[index] = true;
        }
        for index in losers {
            let own = own[index].0;
            let respelled = match respell(own) {
                Cow::Borrowed(same) => same,
                Cow::Owned(respelled) => self.arena.alloc_str(&respelled),
            };
            let name = free_name(respelled, own, self.arena, |name| taken.contains(name));
            taken.insert(name);
            members[index].0 = name;
        }
        let mut rests: Vec<Member<'_>> = Vec::new();
        for &(index, whole) in wholes {
            if has_its_name[index] {
                rests.push((members[index].0, whole));
            } else {
                members[index].1 = whole;
            }
        }
        rests.sort_by_key(|(name, _)| *name);
        for (_, rest) in rests {
            insert(&mut members, ID_REST, rest);
        }
        members
    }
}

/// What an id came as.
enum Id<'a> {
    /// The id, or a value that is not an id.
    Plain(Json<'a>),
    /// The id, and the object that has it.
    Of(Json<'a>, Json<'a>),
    /// An object with the address of a file instead of an id.
    Address(Json<'a>),
}

/// Whether the `media` of an object is the address of a file. IMS writes `{"type":"OSS","media":"oss://…"}` for a file, and
/// `{"type":"Media","media":"<id>"}` for a media.
pub(super) fn names_an_address(object: Json<'_>, media: Json<'_>) -> bool {
    let is_file = object.get("type").and_then(Json::as_str).is_some_and(|kind| kind.trim().eq_ignore_ascii_case("OSS"));
    is_file || media.as_text().is_some_and(is_address)
}

/// Whether a text is an address or a path. No id contains a slash.
pub(super) fn is_address(text: &str) -> bool {
    text.contains('/')
}

/// What happens to fields that say that there is no error.
#[derive(Clone, Copy, PartialEq)]
enum Silent {
    /// They are removed.
    Goes,
    /// They stay as they are.
    Stays,
}

/// Whether the value of an error field says that there is an error. None if the field is missing or has no value.
fn says_error(value: Option<Json<'_>>) -> Option<bool> {
    match value? {
        Json::Null => None,
        value => match value.as_text().map(str::trim) {
            Some("") => None,
            Some(text) => Some(!NO_ERROR.iter().any(|word| text.eq_ignore_ascii_case(word))),
            // An object or an array: nobody knows what it says.
            None => Some(false),
        },
    }
}

/// Builds `error {code, message}` from two fields, if the code says that there is an error, or if there is no code and the
/// message says so. If there is an `error` already, everything stays as it is.
fn lift_error<'a>(members: &mut Members<'a>, code: &str, message: &str, silent: Silent) {
    if find(members, "error").is_some() {
        return;
    }
    let (code_says, message_says) = (says_error(find(members, code)), says_error(find(members, message)));
    let is_error = code_says.or(message_says) == Some(true);
    if !is_error && silent == Silent::Stays {
        return;
    }
    let mut error = Members::new_in(members.bump());
    let mut position = None;
    for (field, name) in [(code, "code"), (message, "message")] {
        let Some(index) = members.iter().position(|(key, value)| *key == field && is_scalar(*value)) else { continue };
        let is_silent = says_error(Some(members[index].1)) != Some(true);
        if !is_error && !is_silent {
            continue;
        }
        let (_, value) = members.remove(index);
        // Removing a field in front of the position shifts it, so the smaller index counts.
        position = Some(position.map_or(index, |earlier: usize| earlier.min(index)));
        if is_error && value.as_text().is_some_and(|text| !text.trim().is_empty()) {
            error.push((name, trimmed(value)));
        }
    }
    if let Some(position) = position
        && !error.is_empty()
    {
        members.insert(position.min(members.len()), ("error", Json::Object(error.into_bump_slice())));
    }
}

fn is_scalar(value: Json<'_>) -> bool {
    matches!(value, Json::Null) || value.as_text().is_some()
}

/// The text of a value without the blanks around it.
fn trimmed(value: Json<'_>) -> Json<'_> {
    match values::string(value) {
        Json::String(text) => Json::String(text.trim()),
        other => other,
    }
}

/// Renames the `error_info {code, message}` of live recording to `error`.
fn rename_error_info(members: &mut Members<'_>) {
    if find(members, "error").is_some() {
        return;
    }
    let arena = members.bump();
    let is_error =
        |value: Json<'_>| says_error(value.get("code")).or_else(|| says_error(value.get("message"))) == Some(true);
    if let Some((key, value)) = members.iter_mut().find(|(key, value)| *key == "errorInfo" && is_error(*value)) {
        *key = "error";
        if let Json::Object(fields) = value {
            let mut kept = Members::with_capacity_in(fields.len(), arena);
            for &(key, value) in fields.iter() {
                let is_text = key == "code" || key == "message";
                if is_text && is_scalar(value) && says_error(Some(value)).is_none() {
                    continue;
                }
                kept.push((key, if is_text { trimmed(value) } else { value }));
            }
            *fields = kept.into_bump_slice();
        }
    }
}
