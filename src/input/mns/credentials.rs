//! The access key of the queue: given in the configuration, or found by the usual chain of Alibaba's SDKs. The chain
//! is the environment, the role of a Kubernetes service account (OIDC), and the role of the instance. Keys that expire
//! are renewed two minutes earlier. The chain is implemented by `reqsign`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use reqsign_aliyun_oss::{
    AssumeRoleWithOidcCredentialProvider, Credential, EcsRamRoleCredentialProvider, EnvCredentialProvider,
};
use reqsign_core::{Context, FileRead, HttpSend, OsEnv, ProvideCredential, ProvideCredentialChain, SigningCredential};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::answer::{MnsError, MnsErrorKind};
use crate::common::file;
use crate::common::http::{HttpClient, HttpError};
use crate::common::secret::{Secret, SecretSource};
use crate::common::validation::Validation;

/// Environment variables of the first parts of the chain. If one of them is set, the chain is usable.
const CHAIN: [&str; 2] = ["ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ROLE_ARN"];

/// How long a service that issues keys may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An access key in the configuration.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsConfig {
    /// The id of the access key.
    pub access_key_id: SecretSource,
    /// The secret of the access key.
    pub access_key_secret: SecretSource,
    /// The security token, for a temporary access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_token: Option<SecretSource>,
}

/// A key that is given in the configuration.
#[derive(Clone, Debug)]
pub(super) struct GivenKey {
    id: Arc<Secret>,
    secret: Arc<Secret>,
    token: Option<Arc<Secret>>,
}

impl CredentialsConfig {
    /// Reads the key.
    pub(super) fn validate(&self, validation: &mut Validation) -> Option<GivenKey> {
        let id = validation.secret("credentials.access_key_id", &self.access_key_id);
        let secret = validation.secret("credentials.access_key_secret", &self.access_key_secret);
        let token = match &self.security_token {
            Some(token) => Some(validation.secret("credentials.security_token", token)?),
            None => None,
        };
        let is_read_from = |name: &str| matches!(&self.access_key_id, SecretSource::Env(env) if env == name);
        if let Some(name) = CHAIN.iter().find(|name| std::env::var_os(name).is_some() && !is_read_from(name)) {
            let message = format!("set here and by {name} in the environment: remove one of them");
            validation.wrong("credentials", message);
        }
        Some(GivenKey { id: id?, secret: secret?, token })
    }
}

/// A key to sign with.
#[derive(Clone)]
pub(super) struct AccessKey {
    pub(super) id: Arc<str>,
    pub(super) secret: Arc<str>,
    pub(super) token: Option<Arc<str>>,
}

impl fmt::Debug for AccessKey {
    // Without the secret and the token.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Returns the key; the same one for as long as it is valid.
#[derive(Debug)]
pub(super) struct Credentials {
    given: Option<GivenKey>,
    context: Context,
    chain: ProvideCredentialChain<Credential>,
    held: Mutex<Option<Credential>>,
}

impl Credentials {
    /// Uses the given key, or else the chain.
    pub(super) fn new(given: Option<GivenKey>, http: HttpClient) -> Credentials {
        Credentials {
            given,
            context: Context::new().with_env(OsEnv).with_file_read(Files).with_http_send(Keys(http)),
            chain: ProvideCredentialChain::new()
                .push(EnvCredentialProvider::new())
                .push(AssumeRoleWithOidcCredentialProvider::new())
                .push(EcsRamRoleCredentialProvider::new()),
            held: Mutex::default(),
        }
    }

    /// The present key. Callers wait while it is being renewed.
    pub(super) async fn key(&self) -> Result<AccessKey, MnsError> {
        if let Some(GivenKey { id, secret, token }) = &self.given {
            let token = token.as_ref().map(|token| token.value());
            return Ok(AccessKey { id: id.value(), secret: secret.value(), token });
        }
        let mut held = self.held.lock().await;
        if held.as_ref().is_none_or(|held| !held.is_valid()) {
            let found = tokio::time::timeout(TIMEOUT, self.chain.provide_credential(&self.context)).await;
            let failure = match found {
                Ok(Ok(Some(found))) => {
                    *held = Some(found);
                    None
                }
                Ok(Ok(None)) => Some((
                    MnsErrorKind::Misconfigured,
                    "no access key: expected one from `credentials`, the environment, the role of a service \
                     account or the role of the instance"
                        .to_owned(),
                )),
                Ok(Err(error)) => Some((MnsErrorKind::Unavailable, format!("no access key: {error}"))),
                Err(_) => Some((MnsErrorKind::Unavailable, "no access key: no answer in time".to_owned())),
            };
            // An old key that is still valid is better than none.
            let is_still_valid =
                held.as_ref().is_some_and(|held| held.is_valid_at(reqsign_core::time::Timestamp::now()));
            if let Some((kind, message)) = failure.filter(|_| !is_still_valid) {
                return Err(MnsError { kind, code: String::new(), message });
            }
        }
        match &*held {
            Some(held) => Ok(AccessKey {
                id: held.access_key_id.as_str().into(),
                secret: held.access_key_secret.as_str().into(),
                token: held.security_token.as_deref().map(Arc::from),
            }),
            None => Err(MnsError::unavailable("no access key")),
        }
    }

    /// Forgets a key that was refused; the next request asks for another.
    pub(super) async fn forget(&self) {
        *self.held.lock().await = None;
    }
}

/// Reads the token of a service account.
#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let owned = path.to_owned();
        let read = tokio::task::spawn_blocking(move || file::read(owned.as_ref())).await;
        let read = read.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string()));
        read.map_err(|error| reqsign_core::Error::config_invalid(format!("{path} cannot be read: {error}")))
    }
}

/// Sends requests to the services that issue keys.
#[derive(Debug)]
struct Keys(HttpClient);

impl HttpSend for Keys {
    async fn http_send(&self, request: hyper::Request<Bytes>) -> reqsign_core::Result<hyper::Response<Bytes>> {
        let answer = self.0.send(request.map(Full::new)).await.map_err(unexpected)?;
        HttpClient::read(answer).await.map_err(unexpected)
    }
}

fn unexpected(error: HttpError) -> reqsign_core::Error {
    reqsign_core::Error::unexpected(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_key_is_never_printed() {
        let (secret, token) = (Arc::from("hunter2"), Some(Arc::from("hunter2")));
        let shown = format!("{:?}", AccessKey { id: "LTAI".into(), secret, token });
        assert!(shown.contains("LTAI") && !shown.contains("hunter2"), "{shown}");
    }
}
