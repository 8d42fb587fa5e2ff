//! Settings of a standard input: the section of the configuration, its checks, and the checked settings.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::consume::StdinInput;
use crate::bridge::Sender;
use crate::common::units::{Size, Span, one_or_many, one_or_many_schema};
use crate::common::validation::{FieldError, Validation};
use crate::dialect::Dialect;
use crate::input::{Input, InputConfig, InputContext, InputSettings};

/// Callbacks from standard input, one per line, for backfills.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StdinConfig {
    /// The longest line, without its line end: more than 0B. A longer line is not a callback.
    pub max_line: Size,
    /// How many lines the bridge works on at the same time: at least 1. At the limit it pauses reading. With 1, events are
    /// published in the order of the lines.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// How long the outputs have to acknowledge the event of a line before it is stored in the spool: at least
    /// `delivery.deadline`. Without a spool, the line is tried again.
    pub deadline: Span,
    /// The region of the Alibaba service, for example `cn-shanghai`. Together with `account_id` it becomes part of `source`.
    /// Default: none.
    pub region: Option<String>,
    /// The id of the Alibaba Cloud account. Together with `region` it becomes part of `source`. Default: none.
    pub account_id: Option<String>,
    /// The products whose callbacks are accepted. Others become dead letters. An empty list accepts both.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<Dialect>")]
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
        validation.is_ok().then(|| {
            Box::new(StdinSettings {
                sender: Arc::new(self.sender()),
                deadline: self.deadline.0,
                max_line: self.max_line,
                max_in_flight: self.max_in_flight,
            }) as Box<dyn InputSettings>
        })
    }

    fn senders(&self) -> Vec<Sender> {
        vec![self.sender()]
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

impl StdinConfig {
    fn sender(&self) -> Sender {
        Sender { region: self.region.clone(), account_id: self.account_id.clone(), dialects: self.dialects.clone() }
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
