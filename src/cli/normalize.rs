//! `normalize`: converts callbacks to envelopes.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::terminal::{pretty, print_json, read, shown};
use super::{ConfigArgs, FAILED};
use crate::common::visible;
use crate::dialect::Origin;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A file can contain several callbacks, one after the other. What is not a callback
is reported on standard error. The others are printed, and the exit code is 1.

Examples:
  apsara-bridge normalize callback.json --pretty
  kcat -C -t raw -e | apsara-bridge normalize - > events.jsonl
")]
pub(super) struct Normalize {
    /// Files with callbacks. `-` is standard input, and the default.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Indent the JSON.
    #[arg(long)]
    pretty: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Normalize {
    pub(super) fn run(mut self) -> ExitCode {
        let normalizer = match self.config.normalizer() {
            Ok(normalizer) => normalizer,
            Err(code) => return code,
        };
        if self.files.is_empty() {
            self.files.push("-".into());
        }
        let mut code = ExitCode::SUCCESS;
        for file in &self.files {
            let mut wrong = |place: String, error: String| {
                eprintln!("{}{place}: {}", shown(file), visible::text(&error));
                code = ExitCode::from(FAILED);
            };
            let text = match read(file) {
                Ok(text) => text,
                Err(error) => {
                    wrong(String::new(), format!("cannot be read: {error}"));
                    continue;
                }
            };
            let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
            let mut rest = text;
            let mut count = 0;
            while !rest.trim_ascii().is_empty() {
                let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<&RawValue>();
                let value = values.next();
                count += 1;
                let place = format!(", callback {count}");
                let end = values.byte_offset();
                let normalized = match value {
                    Some(Ok(body)) => {
                        rest = &rest[end..];
                        normalizer.normalize(body.get().as_bytes(), &Origin::at(OffsetDateTime::now_utc()))
                    }
                    Some(Err(error)) => {
                        wrong(place, format!("not valid JSON: {error}"));
                        // The next line may be a callback again.
                        let next = rest[end..].iter().position(|byte| *byte == b'\n');
                        rest = next.map_or(&[], |next| &rest[end + next + 1..]);
                        continue;
                    }
                    None => break,
                };
                match normalized {
                    Ok(normalized) => {
                        let mut line = normalized.event.to_json();
                        if self.pretty {
                            line = pretty(&line);
                        }
                        line.push(b'\n');
                        print_json(line);
                    }
                    Err(error) => wrong(place, error.to_string()),
                }
            }
            let found = count > 0;
            if !found {
                wrong(String::new(), "contains no callback".to_owned());
            }
        }
        code
    }
}
