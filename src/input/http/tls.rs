//! TLS at the input, by rustls. Certificate and key are read again when their files change, so that renewing them
//! needs no restart; while they can't be read, the last ones serve.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How often the files are looked at.
const CHECK: Duration = Duration::from_secs(1);

/// Files of the input's certificate.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// The present certificate.
pub(super) struct Tls {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    modified: [Option<SystemTime>; 2],
    checked: Instant,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(formatter)
    }
}

impl Tls {
    /// Reads the files for the first time.
    pub(super) fn read(files: &TlsFiles) -> Result<Tls, String> {
        let (config, modified) = load(files)?;
        let state = State { config, modified, checked: Instant::now() };
        Ok(Tls { files: files.clone(), state: Mutex::new(state) })
    }

    /// An acceptor with the files as they are now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= CHECK {
            state.checked = Instant::now();
            if state.modified != modified(&self.files) {
                match load(&self.files) {
                    Ok((config, modified)) => {
                        tracing::info!(file = %self.files.cert_file.display(), "certificate read again");
                        state.config = config;
                        state.modified = modified;
                    }
                    Err(error) => tracing::warn!(%error, "certificate can't be read again; the last one serves"),
                }
            }
        }
        TlsAcceptor::from(state.config.clone())
    }
}

fn modified(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    let of = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    [of(&files.cert_file), of(&files.key_file)]
}

fn load(files: &TlsFiles) -> Result<(Arc<ServerConfig>, [Option<SystemTime>; 2]), String> {
    let modified = modified(files);
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| format!("{} can't be read: {error}", path.display());
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&files.cert_file, &error))?;
    if certificates.is_empty() {
        return Err(format!("{} holds no certificate", files.cert_file.display()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| unreadable(&files.key_file, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| format!("certificate and key don't serve: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), modified))
}
