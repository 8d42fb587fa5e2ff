//! TLS material, created for each broker that needs it: an authority, a server and a client certificate, as PEM files.
//!
//! Promises: the server's certificate is valid for 127.0.0.1 and localhost; the client's is issued by the same
//! authority; keys are unencrypted PKCS #8, the only form that Kafka, nats-server, librdkafka and rustls all read; all
//! are valid for a day. They are created with the `openssl` program, not with our own code, which must be tested.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::tool;

/// The files. They exist as long as the folder in which they were created.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate, which a client must trust.
    pub authority: PathBuf,
    /// The server's certificate.
    pub server: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// A client's certificate (common name `bridge`).
    pub client: PathBuf,
    /// That client's key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Creates the folder and a set of files in it.
    pub fn make(folder: &Path) -> Self {
        std::fs::create_dir_all(folder)
            .unwrap_or_else(|error| panic!("{} cannot be created: {error}", folder.display()));
        let openssl = |arguments: &str| {
            let output = Command::new(tool("openssl", "kafka"))
                .current_dir(folder)
                .args(arguments.split_whitespace())
                .output()
                .expect("openssl runs");
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "openssl {arguments} failed: {message}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!(
            "req -x509 -days 1 -subj /CN=apsara-bridge-tests {key} -keyout authority.key -out authority.pem"
        ));
        for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
            let subject = if name == "client" { "bridge" } else { "localhost" };
            let extensions = format!(
                "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n"
            );
            std::fs::write(folder.join(format!("{name}.ext")), extensions).expect("the folder can be written to");
            openssl(&format!("req -new -subj /CN={subject} {key} -keyout {name}.key -out {name}.csr"));
            openssl(&format!(
                "x509 -req -days 1 -in {name}.csr -CA authority.pem -CAkey authority.key -CAcreateserial \
                 -extfile {name}.ext -out {name}.pem"
            ));
        }
        Self {
            authority: folder.join("authority.pem"),
            server: folder.join("server.pem"),
            server_key: folder.join("server.key"),
            client: folder.join("client.pem"),
            client_key: folder.join("client.key"),
        }
    }
}
