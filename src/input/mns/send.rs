//! Puts callbacks into a queue, as VOD and IMS do, to test who receives from it.

use super::answer::MnsError;
use super::client::{Clock, Queue};
use super::config::MnsConfig;
use super::credentials::Credentials;
use crate::common::http::HttpClient;
use crate::common::validation::Validation;

/// Puts callbacks into one queue. The access key is the first that the usual chain finds: see [`MnsConfig::credentials`].
#[derive(Debug)]
pub struct QueueSender(Queue);

impl QueueSender {
    /// A sender for a queue at an endpoint. It has no connection yet.
    ///
    /// # Errors
    /// What is wrong with the endpoint or the name of the queue.
    pub fn new(endpoint: &str, queue: &str, http: HttpClient) -> Result<QueueSender, String> {
        let config = MnsConfig { endpoint: endpoint.to_owned(), queue: queue.to_owned(), ..MnsConfig::default() };
        let mut validation = Validation::of("");
        let address = config.address(&mut validation).filter(|_| validation.is_ok());
        let wrong = || validation.errors().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let address = address.ok_or_else(wrong)?;
        Ok(QueueSender(Queue {
            address,
            credentials: Credentials::new(None, http.clone()),
            http,
            clock: Clock::default(),
        }))
    }

    /// Puts a callback into the queue. Returns the id of its message.
    ///
    /// # Errors
    /// [`MnsError`]. After one that says that there was no answer, the message may be in the queue all the same.
    pub async fn send(&self, callback: &[u8]) -> Result<String, MnsError> {
        self.0.send(callback).await
    }
}
