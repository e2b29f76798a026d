//! TLS of outgoing HTTP: a server without a valid certificate gets no request.

use crate::certificates::Certificates;
use crate::http_rig::Rig;
use crate::http_server::Server;
use gateway_worker::events;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A server on all addresses, whose certificate names 127.0.0.1 and localhost.
async fn server(certificates: &Certificates) -> Server {
    let chain = CertificateDer::pem_file_iter(certificates.path("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    Server::start_at("0.0.0.0", Some(TlsAcceptor::from(Arc::new(config)))).await
}

fn grants(port: u16) -> String {
    format!(
        "http = [\"https://127.0.0.1:{port}\", \"https://127.0.0.2:{port}\", \"https://localhost:{port}\"]\n\
         private_networks = [\"127.0.0.0/8\"]"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_accepted_for_its_own_names_only() {
    let certificates = Certificates::new("ours");
    let server = server(&certificates).await;
    let authorities = certificates.path("ca.crt");
    let rig = Rig::with_env(&grants(server.port), &[("SSL_CERT_FILE", authorities.as_str())]).await;
    for host in ["127.0.0.1", "localhost", "localhost."] {
        assert_eq!(rig.get(&format!("https://{host}:{}/hello", server.port)).await, "200", "{host}");
    }
    assert_eq!(rig.get(&format!("https://127.0.0.1:{}/hello", server.port)).await, "200");
    let connections: Vec<usize> = server.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1, 1, 0], "one connection for each name");

    assert_eq!(rig.get(&format!("https://127.0.0.2:{}/hello", server.port)).await, "unavailable");
    assert_eq!(server.seen().len(), 4);
    let refused = rig.refused_requests();
    assert!(
        refused[0].contains("the TLS handshake failed") && refused[0].contains("not valid for name"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_unknown_http_authority_is_rejected() {
    let (certificates, others) = (Certificates::new("ours"), Certificates::new("theirs"));
    let server = server(&certificates).await;
    let authorities = others.path("ca.crt");
    let rig = Rig::with_env(&grants(server.port), &[("SSL_CERT_FILE", authorities.as_str())]).await;
    assert_eq!(rig.get(&format!("https://localhost:{}/hello", server.port)).await, "unavailable");
    assert!(rig.refused_requests()[0].contains("the TLS handshake failed"), "{:?}", rig.refused_requests());
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_trusted_authorities_logs_an_error() {
    let certificates = Certificates::new("ours");
    let server = server(&certificates).await;
    let rig = Rig::with_env(&grants(server.port), &[("SSL_CERT_FILE", "/nonexistent")]).await;
    assert!(rig.gateway.logged(events::NO_CA_CERTIFICATES).is_empty());
    assert_eq!(rig.get(&format!("https://localhost:{}/hello", server.port)).await, "unavailable");
    assert_eq!(rig.gateway.logged(events::NO_CA_CERTIFICATES).len(), 1);
    assert!(server.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_and_tls_on_the_wrong_port_are_called_so() {
    let certificates = Certificates::self_signed(true);
    let (tls, plain) = (server(&certificates).await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let plain_port = plain.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = plain.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let grants = format!(
        "http = [\"http://127.0.0.1:{0}\", \"https://127.0.0.1:{0}\", \"https://127.0.0.1:{1}\"]\n\
         private_networks = [\"127.0.0.0/8\"]",
        tls.port, plain_port
    );
    let authorities = certificates.path("ca.crt");
    let rig = Rig::with_env(&grants, &[("SSL_CERT_FILE", authorities.as_str())]).await;
    for (url, expected) in [
        (format!("http://127.0.0.1:{}/", tls.port), "if it expects TLS, the URL begins with https"),
        (format!("https://127.0.0.1:{plain_port}/"), "the server does not begin with TLS"),
        (format!("https://127.0.0.1:{}/", tls.port), "basicConstraints=critical,CA:FALSE"),
    ] {
        rig.get(&url).await;
        let refused = rig.refused_requests();
        assert!(refused.iter().any(|line| line.contains(expected)), "{url}: {refused:?}");
    }
    answering.abort();
}
