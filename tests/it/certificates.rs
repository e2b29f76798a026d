//! Certificates that are generated for a test.

use crate::process::free_port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Files with the certificates of an authority, a server and a client.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn new(authority: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, authority);
        write("ca.crt", ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            write(&format!("{name}.crt"), params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self(folder)
    }

    /// The only certificate is that of the server, which signs itself; `is_ca` is what
    /// `openssl req -x509` writes by default.
    pub(crate) fn self_signed(is_ca: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        let pem = params.self_signed(&key).unwrap().pem();
        for (name, text) in [("ca.crt", &pem), ("server.crt", &pem), ("server.key", &key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The lines of a server's configuration.
    pub(crate) fn lines(&self) -> String {
        format!(
            "tls-port {}\ntls-auth-clients yes\ntls-replication yes\ntls-cluster yes\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
            free_port(),
            self.path("ca.crt"),
            self.path("server.crt"),
            self.path("server.key"),
        )
    }

    /// The flags of a worker.
    pub(crate) fn flags(&self) -> Vec<String> {
        let (ca, cert, key) = (self.path("ca.crt"), self.path("client.crt"), self.path("client.key"));
        ["--redis-tls-ca", &ca, "--redis-tls-cert", &cert, "--redis-tls-key", &key].map(str::to_owned).to_vec()
    }
}
