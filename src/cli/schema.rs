//! `schema`: the JSON Schemas of events.

use std::process::ExitCode;

use super::ConfigArgs;
use super::catalogue::{dialect, event_type};
use super::terminal::{fail, print};
use crate::contract;
use crate::dialect::Dialect;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints a JSON Schema (2020-12) of the envelope of an event type, with its data. Its `$id`
is the `dataschema` of the event. For a type that both dialects have, the schema accepts
both and has an `$id` of its own, unless you set --dialect. Without a type, it is the
schema that every event fits.

Tell your validator to check `format`. In binary mode, `data` travels alone: `$defs.data`
describes it.

Examples:
  apsara-bridge schema TranscodeComplete --dialect vod > transcode.schema.json
  apsara-bridge schema TranscodeComplete --dialect vod | jq '.\"$defs\".data'
  apsara-bridge schema > event.schema.json
")]
pub(super) struct Schema {
    /// The event type. Without it, the schema that every event fits.
    #[arg(value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Only the event of this dialect.
    #[arg(long, value_name = "DIALECT", value_parser = dialect())]
    dialect: Option<Dialect>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Schema {
    pub(super) fn run(self) -> ExitCode {
        let normalizer = match self.config.normalizer() {
            Ok(normalizer) => normalizer,
            Err(code) => return code,
        };
        let schema = match &self.event_type {
            None => contract::general(&normalizer, self.dialect),
            Some(name) => match normalizer.catalogue().named(event_type(name, &normalizer), self.dialect) {
                Ok(events) => contract::of_events(&normalizer, &events),
                Err(error) => return fail(error),
            },
        };
        print(format!("{schema:#}\n"));
        ExitCode::SUCCESS
    }
}
