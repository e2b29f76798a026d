//! Why a connection with TLS fails, in words that help: the libraries say
//! "received corrupt message" where no TLS is spoken, and "timed out" where it is.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const TLS_FROM_THE_START: &str = "the server expects TLS from the start of a connection";
pub const PLAIN_TEXT: &str = "the server speaks plain text on this port";

const LINE_BYTES_MAX: u64 = 256;

/// What the texts of the TLS library mean.
const MEANINGS: [(&str, &str); 4] = [
    (
        "CaUsedAsEndEntity",
        "the server's certificate is one of an authority (CA:TRUE), which can't be that of a server, even if it is \
         trusted. Make one for the server, for example with `openssl req -x509 -newkey rsa:2048 -nodes -days 365 \
         -keyout server.key -out server.crt -subj /CN=HOST -addext basicConstraints=critical,CA:FALSE \
         -addext subjectAltName=DNS:HOST`; it may be its own authority",
    ),
    (
        "InvalidContentType",
        "the server does not begin with TLS: use the port for TLS, or a URL without TLS from the start",
    ),
    (
        "UnknownIssuer",
        "the authority that signed the server's certificate is not trusted: the setting for CA certificates needs it",
    ),
    (
        "UnsupportedCertVersion",
        "the certificate has not version 3 but an earlier one (X.509 v1): make it anew with extensions, for example \
         with `openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -days 365 -out client.crt \
         -extfile client.ext`, where client.ext says subjectAltName=DNS:client",
    ),
];

/// The text of an error with its meaning, if it is about TLS.
pub fn explained(text: &str) -> String {
    let meaning = MEANINGS.iter().find(|(sign, _)| text.contains(sign));
    meaning.map_or_else(|| text.to_owned(), |(_, meaning)| format!("{text}: {meaning}"))
}

/// Whether a client can use this certificate with this key, both in PEM.
pub fn check_client_certificate(cert: &[u8], key: &[u8]) -> Result<(), String> {
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the private key: {error}"))?;
    if let Some(first) = chain.first() {
        let parsed = rustls::server::ParsedCertificate::try_from(first);
        parsed.map_err(|error| format!("the certificate: {}", explained(&error.to_string())))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_root_certificates(RootCertStore::empty());
    let used = config.with_client_auth_cert(chain, key);
    used.map(drop).map_err(|error| explained(&error.to_string()))
}

/// Whether a server answers a TLS greeting in TLS. Nothing secret is sent.
pub async fn speaks_tls(host: &str, port: u16, limit: Duration) -> bool {
    let Some(greeting) = client_hello() else { return false };
    answer(host, port, &greeting, limit).await.is_some_and(|first| matches!(first, 0x15 | 0x16))
}

/// Whether a server answers a plain line, as Redis does, in plain text.
pub async fn speaks_plain_text(host: &str, port: u16, limit: Duration) -> bool {
    answer(host, port, b"PING\r\n", limit).await.is_some_and(|first| matches!(first, b'+' | b'-'))
}

/// What a server says before it is asked: Redis says so when it takes no more clients.
pub async fn unasked(host: &str, port: u16, limit: Duration) -> Option<String> {
    let listen = async {
        let stream = TcpStream::connect((host, port)).await.ok()?;
        let mut line = Vec::new();
        stream.take(LINE_BYTES_MAX).read_to_end(&mut line).await.ok()?;
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    };
    tokio::time::timeout(limit, listen).await.ok().flatten()
}

/// The first byte of the answer.
async fn answer(host: &str, port: u16, question: &[u8], limit: Duration) -> Option<u8> {
    let ask = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        stream.write_all(question).await.ok()?;
        stream.read_u8().await.ok()
    };
    tokio::time::timeout(limit, ask).await.ok().flatten()
}

/// The name in it is a placeholder: any server answers, if only by an alert.
fn client_hello() -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from("probe.invalid").ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).ok()?;
    Some(bytes)
}
