//! TLS of the server: its certificate, and the authority of the clients' certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::updater::PrometheusError;

/// The files of TLS, in PEM.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    /// The certificate chain of the server.
    pub certificate: PathBuf,
    /// The private key of the server.
    pub key: PathBuf,
    /// The certificates of the authorities that sign those of clients; `None`: clients have none.
    pub client_authorities: Option<PathBuf>,
}

impl TlsSettings {
    pub(super) fn load(&self) -> Result<Arc<ServerConfig>, PrometheusError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| PrometheusError::Setting(error.to_string()))?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(path)? {
                    roots.add(certificate).map_err(|error| invalid(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| invalid(path, &error))?)
            }
        };
        let chain = read_certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| invalid(&self.key, &error))?;
        let mut config =
            builder.with_single_cert(chain, key).map_err(|error| invalid(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PrometheusError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| invalid(path, &error))?;
    if certificates.is_empty() {
        return Err(invalid(path, &"it has no certificate"));
    }
    Ok(certificates)
}

fn invalid(path: &Path, reason: &dyn std::fmt::Display) -> PrometheusError {
    PrometheusError::Setting(format!("{} cannot be used for TLS: {reason}", path.display()))
}
