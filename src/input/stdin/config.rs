//! Settings of a standard input: the section of the configuration, its checks, and the checked settings.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::consume::StdinInput;
use crate::bridge::Sender;
use crate::common::units::{Size, Span, one_or_many};
use crate::common::validation::{FieldError, Validation};
use crate::dialect::Dialect;
use crate::input::{Input, InputConfig, InputContext, InputSettings};

/// Settings of a standard input.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StdinConfig {
    /// Longest line that is accepted.
    pub max_line: Size,
    /// Lines in the bridge at a time.
    pub max_in_flight: usize,
    /// How long the buses have for a line before it is spooled.
    pub deadline: Span,
    /// Region of the Alibaba service: part of `source`.
    pub region: Option<String>,
    /// Account: part of `source`.
    pub account_id: Option<String>,
    /// The dialects that are accepted; empty accepts both.
    #[serde(deserialize_with = "one_or_many")]
    pub dialects: Vec<Dialect>,
}

impl Default for StdinConfig {
    fn default() -> Self {
        StdinConfig {
            max_line: Size(256 << 10),
            max_in_flight: 256,
            deadline: Span(Duration::from_secs(60)),
            region: None,
            account_id: None,
            dialects: Vec::new(),
        }
    }
}

impl InputConfig for StdinConfig {
    fn validate(&self, context: InputContext<'_>, validation: &mut Validation) -> Option<Box<dyn InputSettings>> {
        if let Some(other) = context.same_kind.first() {
            let message = format!("input `{other}` reads standard input already; it can be read only once");
            validation.wrong("kind", message);
        }
        if self.max_line.0 == 0 {
            validation.wrong("max_line", "expected more than 0B");
        }
        if self.max_in_flight == 0 || self.max_in_flight > Semaphore::MAX_PERMITS {
            validation.wrong("max_in_flight", format!("{} is out of range: expected at least 1", self.max_in_flight));
        }
        if self.deadline.0 < context.deadline {
            validation.wrong("deadline", format!("{} is shorter than delivery.deadline", self.deadline));
        }
        let sender = Sender {
            region: self.region.clone(),
            account_id: self.account_id.clone(),
            dialects: self.dialects.clone(),
        };
        validation.is_ok().then(|| {
            Box::new(StdinSettings {
                sender: Arc::new(sender),
                deadline: self.deadline.0,
                max_line: self.max_line,
                max_in_flight: self.max_in_flight,
            }) as Box<dyn InputSettings>
        })
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

/// Checked settings of a standard input.
#[derive(Debug)]
pub(super) struct StdinSettings {
    pub(super) sender: Arc<Sender>,
    pub(super) deadline: Duration,
    pub(super) max_line: Size,
    pub(super) max_in_flight: usize,
}

impl InputSettings for StdinSettings {
    fn senders(&self) -> Vec<(&str, &Sender)> {
        vec![("stdin", &*self.sender)]
    }

    fn open(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Input>, FieldError>> {
        Box::pin(async move { Ok(Box::new(StdinInput::new(*self)) as Box<dyn Input>) })
    }
}
