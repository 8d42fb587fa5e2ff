//! TLS at the input, by rustls. Its files are read again when they change, so renewing them needs no restart. While the new
//! files cannot be used, the last ones stay in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use crate::common::tls::{self, TlsError, authorities, certificates, key};

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

impl tls::TlsFiles for TlsFiles {
    type Config = ServerConfig;

    const NAME: &'static str = "certificate";

    fn files(&self) -> Vec<PathBuf> {
        [Some(&self.cert_file), Some(&self.key_file), self.client_ca_file.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn build(&self, mut read: impl FnMut(&Path) -> Result<Vec<u8>, TlsError>) -> Result<ServerConfig, TlsError> {
        let certificates = certificates(&self.cert_file, &read(&self.cert_file)?)?;
        let key = key(&self.key_file, &read(&self.key_file)?)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::NotAvailable)?;
        let builder = match &self.client_ca_file {
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
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            error,
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}
