//! TLS: reading certificates and keys, and the settings of clients.
//!
//! The files of a client are read again when they change. While the new ones cannot be used, the last ones stay.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper_rustls::ConfigBuilderExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{self, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::secret::exposed;
use super::validation::Validation;
use super::watch::{Fingerprint, Reread, RereadError};

/// Files of a TLS connection.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The file with the certificate authorities to trust, PEM. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The file with the certificate of this client, PEM. It needs `key_file`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The file with the key of the certificate, PEM. It needs `cert_file`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl TlsConfig {
    /// Reports files that cannot be read, and half of a pair. The section has this as its key `tls`.
    pub fn check(&self, validation: &mut Validation) {
        for (key, file) in
            [("tls.ca_file", &self.ca_file), ("tls.cert_file", &self.cert_file), ("tls.key_file", &self.key_file)]
        {
            if let Some(file) = file
                && let Err(error) = super::file::open(file)
            {
                validation.unusable_file(file, Fingerprint::UNREADABLE);
                validation.wrong(key, format!("{} cannot be read: {error}", file.display()));
            }
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            validation.wrong("tls", "`cert_file` and `key_file` must be set together");
        }
    }

    /// A warning if everyone can read the key.
    pub fn warning(&self) -> Option<String> {
        Some(format!("tls.key_file: {}", exposed(self.key_file.as_deref()?)?))
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    /// A file of certificates has none.
    #[error("{0} contains no certificate")]
    NoCertificate(PathBuf),
    /// Certificate and key do not fit together, or are of a kind that is not supported.
    #[error("{cert_file} and {key_file} cannot be used together: {error}")]
    Unusable {
        /// The certificate.
        cert_file: PathBuf,
        /// The key.
        key_file: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// A certificate of an authority cannot be used.
    #[error("{path} contains a certificate that is not one of an authority: {error}")]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// The system has no certificates of authorities.
    #[error("no certificates of authorities to trust: {0}")]
    NoAuthorities(std::io::Error),
    /// The certificates of clients cannot be verified with these authorities.
    #[error("{path} cannot be used to verify clients: {error}")]
    NoVerifier {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::server::VerifierBuilderError,
    },
    /// The protocol versions are not supported.
    #[error("TLS is not available: {0}")]
    NotAvailable(rustls::Error),
}

/// The contents of a PEM file. Blocks.
///
/// # Errors
/// [`TlsError::Unreadable`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    super::file::read(path).map_err(|error| unreadable(path, error))
}

/// The certificates, at least one, in what a file contains.
///
/// # Errors
/// What is wrong with the file.
pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| unreadable(path, error))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// The authorities in what a file contains, at least one.
///
/// # Errors
/// What is wrong with the file.
pub fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| TlsError::NotAnAuthority { path: path.to_owned(), error })?;
    }
    Ok(roots)
}

/// The time since 1970 at which the first of the certificates in a PEM file expires. None if there is no certificate that
/// can be read.
pub fn first_expiry(pem: &[u8]) -> Option<Duration> {
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    let expiries = certificates.filter_map(|certificate| {
        let certificate = Certificate::from_der(&certificate).ok()?;
        Some(certificate.tbs_certificate.validity.not_after.to_unix_duration())
    });
    expiries.min()
}

/// Whether the first certificate in a PEM file, which a server shows, is one for a host: a name or an address, without
/// brackets. None if there is no certificate or host that can be read.
pub fn is_for(pem: &[u8], host: &str) -> Option<bool> {
    let certificate = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
    let certificate = ParsedCertificate::try_from(&certificate).ok()?;
    let host = ServerName::try_from(host).ok()?;
    Some(verify_server_name(&certificate, &host).is_ok())
}

/// The key in what a file contains.
///
/// # Errors
/// What is wrong with the file.
pub fn key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: impl fmt::Display) -> TlsError {
    TlsError::Unreadable { path: path.to_owned(), error: error.to_string() }
}

/// Settings of a client that trusts the authorities of the system.
///
/// # Errors
/// [`TlsError::NoAuthorities`].
pub fn trusting_system() -> Result<ClientConfig, TlsError> {
    Ok(client_builder()?.with_native_roots().map_err(TlsError::NoAuthorities)?.with_no_client_auth())
}

/// Settings of a client that is only used without TLS: they trust nobody.
///
/// # Errors
/// [`TlsError::NotAvailable`].
pub fn trusting_nobody() -> Result<ClientConfig, TlsError> {
    Ok(client_builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn client_builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::NotAvailable)
}

/// Files that TLS is made from.
pub trait TlsFiles: fmt::Debug + Clone + Send + Sync {
    /// What is built from the files.
    type Config: Send + Sync;

    /// Its name in logs.
    const NAME: &'static str;

    /// The files that are set, in the order in which [`build`](Self::build) reads them.
    fn files(&self) -> Vec<PathBuf>;

    /// Builds the settings. Reads each file once, with `read`.
    ///
    /// # Errors
    /// What cannot be used.
    fn build(&self, read: impl FnMut(&Path) -> Result<Vec<u8>, TlsError>) -> Result<Self::Config, TlsError>;
}

/// TLS with its files as they are now.
pub struct Tls<F: TlsFiles> {
    files: F,
    state: RwLock<State<F>>,
}

struct State<F: TlsFiles> {
    config: Arc<F::Config>,
    fingerprints: Vec<Fingerprint>,
}

impl<F: TlsFiles> fmt::Debug for Tls<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(formatter)
    }
}

impl<F: TlsFiles> Tls<F> {
    /// Reads the files for the first time. Blocks.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn read(files: &F) -> Result<Tls<F>, TlsError> {
        Ok(Tls { files: files.clone(), state: RwLock::new(State::read(files)?) })
    }

    /// The files.
    pub fn settings(&self) -> &F {
        &self.files
    }

    /// The file that comes first: of a server, its certificate.
    pub fn certificate(&self) -> Option<PathBuf> {
        self.files.files().into_iter().next()
    }

    /// The present settings; others as soon as the files were read again.
    pub fn config(&self) -> Arc<F::Config> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }
}

impl<F: TlsFiles> Reread for Tls<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn files(&self) -> Vec<(PathBuf, Fingerprint)> {
        let fingerprints = self.state.read().unwrap_or_else(PoisonError::into_inner).fingerprints.clone();
        self.files.files().into_iter().zip(fingerprints).collect()
    }

    fn reread(&self) -> Result<(), RereadError> {
        let state = State::read(&self.files)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }
}

impl<F: TlsFiles> State<F> {
    fn read(files: &F) -> Result<State<F>, TlsError> {
        let mut fingerprints = Vec::new();
        let config = files.build(|path| {
            let pem = read_file(path)?;
            fingerprints.push(Fingerprint::of(&pem));
            Ok(pem)
        })?;
        Ok(State { config: Arc::new(config), fingerprints })
    }
}

/// The TLS of a client.
pub type ClientTls = Tls<TlsConfig>;

impl TlsFiles for TlsConfig {
    type Config = ClientConfig;

    const NAME: &'static str = "certificate of a client";

    fn files(&self) -> Vec<PathBuf> {
        [&self.ca_file, &self.cert_file, &self.key_file].into_iter().flatten().cloned().collect()
    }

    fn build(&self, mut read: impl FnMut(&Path) -> Result<Vec<u8>, TlsError>) -> Result<ClientConfig, TlsError> {
        let builder = client_builder()?;
        let builder = match &self.ca_file {
            None => builder.with_native_roots().map_err(TlsError::NoAuthorities)?,
            Some(path) => builder.with_root_certificates(authorities(path, &read(path)?)?),
        };
        Ok(match (&self.cert_file, &self.key_file) {
            (Some(cert_file), Some(key_file)) => {
                let chain = certificates(cert_file, &read(cert_file)?)?;
                let key = key(key_file, &read(key_file)?)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Unusable {
                    cert_file: cert_file.clone(),
                    key_file: key_file.clone(),
                    error,
                })?
            }
            _ => builder.with_no_client_auth(),
        })
    }
}
