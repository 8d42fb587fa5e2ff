//! Durations and sizes with units, and lists that may be written as a single item.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration, written with its unit: `"5s"`, `"250ms"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(formatter)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a duration with its unit, for example \"5s\" or \"250ms\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                humantime::parse_duration(text).map(Span).map_err(|_| {
                    E::custom(format!(
                        "invalid duration `{text}`: expected a number with its unit, for example \"5s\" or \"250ms\""
                    ))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Numbers with units, one after the other. Stricter than `humantime`, which also reads blanks between digits.
const SPAN_PATTERN: &str = concat!(
    r"^([0-9]+(\.[0-9]+)?\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|min|mins|m|",
    r"hours|hour|hr|hrs|h|days|day|d|weeks|week|wk|wks|w|months|month|M|years|year|yr|yrs|y)\s*)+$"
);

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": SPAN_PATTERN, "examples": ["250ms", "5s", "1m 30s", "12h", "7d"] })
    }
}

/// A number of bytes, written with its unit: `"256KiB"`, `"1GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The size as a number of bytes in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(formatter, "{}{name}", self.0 / unit);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size with its unit, for example \"256KiB\" or \"1GiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
                text.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit).map(|size| Size(size.as_u64())).ok_or_else(
                    || {
                        E::custom(format!(
                            "invalid size `{text}`: expected a number with its unit, for example \"256KiB\" or \"1GiB\""
                        ))
                    },
                )
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A number with its unit.
const SIZE_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?\s*([KMGTPEkmgtpe][Ii]?[Bb]?|[Bb])$";

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": SIZE_PATTERN, "examples": ["256KiB", "64MiB", "1GiB", "1GB"] })
    }
}

/// The schema of what [`one_or_many`] reads.
pub fn one_or_many_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [item, { "type": "array", "items": item }] })
}

/// The schema of what [`one_or_many`] reads, for a list that must not be empty.
pub fn at_least_one_schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
}

/// Reads a list. A single item counts as a list of one.
///
/// # Errors
/// The value is neither an item nor a list of items.
pub fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("one item or a list of them")
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))
        }
        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(de::value::MapAccessDeserializer::new(map)).map(|item| vec![item])
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|item| vec![item])
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|item| vec![item])
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(de::value::StrDeserializer::new(text)).map(|item| vec![item])
        }
    }
    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(default)]
        span: Option<Span>,
        #[serde(default)]
        size: Option<Size>,
    }

    fn error(text: &str) -> String {
        toml::from_str::<Sample>(text).expect_err("must be refused").message().to_owned()
    }

    #[test]
    fn units_are_required_and_parsed() {
        let sample: Sample = toml::from_str("span = '1m 30s'\nsize = '256KiB'").expect("valid");
        assert_eq!(sample.span, Some(Span(Duration::from_secs(90))));
        assert_eq!(sample.size, Some(Size(262_144)));
        assert_eq!(
            (Size(262_144).to_string(), Size(1 << 30).to_string(), Size(1000).to_string()),
            ("256KiB".to_owned(), "1GiB".to_owned(), "1000B".to_owned())
        );
        assert_eq!(
            error("span = '5 parsecs'"),
            "invalid duration `5 parsecs`: expected a number with its unit, for example \"5s\" or \"250ms\""
        );
        assert_eq!(
            error("span = 5"),
            "invalid type: integer `5`, expected a duration with its unit, for example \"5s\" or \"250ms\""
        );
        assert_eq!(
            error("size = '256'"),
            "invalid size `256`: expected a number with its unit, for example \"256KiB\" or \"1GiB\""
        );
    }
}
