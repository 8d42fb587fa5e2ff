//! Values at a place in normalized data.

use std::ops::ControlFlow;

use crate::common::text::trim;
use crate::event::json::{Json, Member, find};

use super::JOB_ID;
use super::catalogue::Path;
use super::transform::{is_address, names_an_address};

impl Path {
    /// Whether the value is the id of a media.
    pub(super) fn is_media(&self) -> bool {
        self.is_media
    }

    /// Whether the value is the id of a job.
    pub(super) fn is_job(&self) -> bool {
        self.names.last().is_some_and(|name| JOB_ID.contains(&name.as_str()))
    }

    /// The first text at this place, without the blanks around it.
    pub(super) fn first<'a>(&self, data: &[Member<'a>]) -> Option<&'a str> {
        self.visit(data, &mut ControlFlow::Break).break_value()
    }

    /// All texts at this place, without the blanks around them.
    pub(super) fn all<'a>(&self, data: &[Member<'a>]) -> Vec<&'a str> {
        let mut found = Vec::new();
        let _: ControlFlow<()> = self.visit(data, &mut |text| {
            found.push(text);
            ControlFlow::Continue(())
        });
        found
    }

    fn visit<'a, B>(&self, data: &[Member<'a>], found: &mut impl FnMut(&'a str) -> ControlFlow<B>) -> ControlFlow<B> {
        match self.names.split_first().and_then(|(first, rest)| Some((find(data, first)?, rest))) {
            Some((value, rest)) => self.visit_value(value, rest, found),
            None => ControlFlow::Continue(()),
        }
    }

    fn visit_value<'a, B>(
        &self,
        value: Json<'a>,
        names: &[String],
        found: &mut impl FnMut(&'a str) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        match (value, names) {
            (Json::Array(items), _) => items.iter().try_for_each(|item| self.visit_value(*item, names, found)),
            (value, []) => match value.as_text().map(trim) {
                None | Some("") => ControlFlow::Continue(()),
                Some(address) if self.is_media && is_address(address) => ControlFlow::Continue(()),
                Some(text) => found(text),
            },
            (object, [name, rest @ ..]) => match object.get(name) {
                Some(inner) if !(self.is_media && names_an_address(object, inner)) => {
                    self.visit_value(inner, rest, found)
                }
                _ => ControlFlow::Continue(()),
            },
        }
    }
}
