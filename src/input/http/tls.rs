//! TLS at the input, by rustls. Its files are read again when they change, so renewing them needs no restart. While the new
//! files cannot be used, the last ones stay in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use crate::common::tls::{TlsError, authorities, certificates, key, read_file};
use crate::common::watch::{Fingerprint, Reread, RereadError};

/// Files of the input's certificate.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The file with the certificate chain, PEM. It is read again when it changes.
    pub cert_file: PathBuf,
    /// The file with the key of the certificate, PEM. It is read again when it changes.
    pub key_file: PathBuf,
    /// The file with the certificate authorities for clients, PEM. With it, only clients that show a certificate of one of
    /// them can connect. Alibaba shows none; this is for a proxy in front. It is read again when it changes. Default: every
    /// client can connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

impl TlsFiles {
    /// The files that are set.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        [Some(&self.cert_file), Some(&self.key_file), self.client_ca_file.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

/// The certificate that is in use.
pub(super) struct Tls {
    files: TlsFiles,
    state: RwLock<State>,
}

struct State {
    config: Arc<ServerConfig>,
    fingerprints: Vec<Fingerprint>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(formatter)
    }
}

impl Tls {
    /// Reads the files for the first time. Blocks.
    pub(super) fn read(files: &TlsFiles) -> Result<Tls, TlsError> {
        Ok(Tls { files: files.clone(), state: RwLock::new(State::read(files)?) })
    }

    /// An acceptor with the certificate that is in use.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.state.read().unwrap_or_else(PoisonError::into_inner).config.clone())
    }
}

impl Reread for Tls {
    fn name(&self) -> &'static str {
        "certificate"
    }

    fn files(&self) -> Vec<(PathBuf, Fingerprint)> {
        let fingerprints = self.state.read().unwrap_or_else(PoisonError::into_inner).fingerprints.clone();
        self.files.all().into_iter().zip(fingerprints).collect()
    }

    fn reread(&self) -> Result<(), RereadError> {
        let state = State::read(&self.files)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }
}

impl State {
    fn read(files: &TlsFiles) -> Result<State, TlsError> {
        let mut fingerprints = Vec::new();
        let mut read = |path: &Path| {
            let pem = read_file(path)?;
            fingerprints.push(Fingerprint::of(&pem));
            Ok(pem)
        };
        let certificates = certificates(&files.cert_file, &read(&files.cert_file)?)?;
        let key = key(&files.key_file, &read(&files.key_file)?)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::NotAvailable)?;
        let builder = match &files.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path, &read(path)?)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| TlsError::NoVerifier { path: path.clone(), error })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(|error| TlsError::Unusable {
            cert_file: files.cert_file.clone(),
            key_file: files.key_file.clone(),
            error,
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(State { config: Arc::new(config), fingerprints })
    }
}
