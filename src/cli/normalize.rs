//! `normalize`: converts callbacks to envelopes.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::{ConfigArgs, FAILED, print, read, shown};
use crate::dialect::Origin;
use crate::event::json::Json;

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
                eprintln!("{}{place}: {error}", shown(file));
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
                        print(line);
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

/// The same JSON, indented.
pub(super) fn pretty(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // An envelope was written by this program, and has one more level than its data may have.
    match Json::parse_within(json, usize::MAX) {
        Ok(json) => json.write_pretty(0, &mut out),
        Err(_) => out.extend_from_slice(json),
    }
    out
}
