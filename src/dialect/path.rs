//! Values at a place in normalized data.

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
        self.all(data).into_iter().next()
    }

    /// All texts at this place, without the blanks around them.
    pub(super) fn all<'a>(&self, data: &[Member<'a>]) -> Vec<&'a str> {
        let mut found = Vec::new();
        if let Some((first, rest)) = self.names.split_first()
            && let Some(value) = find(data, first)
        {
            self.collect(value, rest, &mut found);
        }
        found
    }

    fn collect<'a>(&self, value: Json<'a>, names: &[String], found: &mut Vec<&'a str>) {
        match (value, names) {
            (Json::Array(items), _) => items.iter().for_each(|item| self.collect(*item, names, found)),
            (value, []) => {
                let text = value.as_text().map(trim).filter(|text| !text.is_empty());
                found.extend(text.filter(|text| !(self.is_media && is_address(text))));
            }
            (object, [name, rest @ ..]) => {
                if let Some(inner) = object.get(name)
                    && !(self.is_media && names_an_address(object, inner))
                {
                    self.collect(inner, rest, found);
                }
            }
        }
    }
}
