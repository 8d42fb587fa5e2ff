//! TLS at the input, by rustls. Certificate and key are read again when their files change, so renewing them needs no
//! restart. While the new files cannot be used, the last certificate stays in use.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

use crate::common::tls::{TlsError, certificates, key, read_file};
use crate::common::watch::{Fingerprint, Reread, RereadError};

/// Files of the input's certificate.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The file with the certificate chain, PEM. It is read again when it changes.
    pub cert_file: PathBuf,
    /// The file with the key of the certificate, PEM. It is read again when it changes.
    pub key_file: PathBuf,
}

/// The certificate that is in use.
pub(super) struct Tls {
    files: TlsFiles,
    state: RwLock<State>,
}

struct State {
    config: Arc<ServerConfig>,
    fingerprints: [Fingerprint; 2],
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
        let [cert, key] = self.state.read().unwrap_or_else(PoisonError::into_inner).fingerprints;
        vec![(self.files.cert_file.clone(), cert), (self.files.key_file.clone(), key)]
    }

    fn reread(&self) -> Result<(), RereadError> {
        let state = State::read(&self.files)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }
}

impl State {
    fn read(files: &TlsFiles) -> Result<State, TlsError> {
        let (cert_pem, key_pem) = (read_file(&files.cert_file)?, read_file(&files.key_file)?);
        let fingerprints = [Fingerprint::of(&cert_pem), Fingerprint::of(&key_pem)];
        let certificates = certificates(&files.cert_file, &cert_pem)?;
        let key = key(&files.key_file, &key_pem)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|error| TlsError::Unusable {
                cert_file: files.cert_file.clone(),
                key_file: files.key_file.clone(),
                error,
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(State { config: Arc::new(config), fingerprints })
    }
}
