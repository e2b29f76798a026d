//! A small SMTP server that stores the mails it receives: with implicit TLS, STARTTLS or
//! neither, and with an optional login.

use crate::certificates::Certificates;
use base64::Engine as _;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A received mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReceivedMail {
    pub(crate) is_encrypted: bool,
    pub(crate) user: String,
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    OnRequest,
    FromTheStart,
    Never,
}

pub(crate) struct Smtp {
    pub(crate) port: u16,
    pub(crate) received: Arc<Mutex<Vec<ReceivedMail>>>,
    /// The number of accepted connections.
    pub(crate) connections: Arc<AtomicUsize>,
    /// The names that clients gave in EHLO.
    hellos: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

/// More in one transaction are asked to come again.
const RECIPIENTS_MAX: usize = 4;

impl Drop for Smtp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The state that all connections share.
#[derive(Clone)]
struct Shared {
    tls: Tls,
    acceptor: TlsAcceptor,
    login: Option<&'static str>,
    received: Arc<Mutex<Vec<ReceivedMail>>>,
    hellos: Arc<Mutex<Vec<String>>>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Smtp {
    /// `login` is `user:password`; with it, only that user may send.
    pub(crate) async fn start(tls: Tls, certificates: &Certificates, login: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (received, connections) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let hellos: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = Shared {
            tls,
            acceptor: acceptor(certificates),
            login,
            received: Arc::clone(&received),
            hellos: hellos.clone(),
        };
        let count = connections.clone();
        let server = tokio::spawn(async move {
            // The connections end with the server.
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let shared = shared.clone();
                open.spawn(async move { serve(Box::new(stream), &shared).await });
            }
        });
        Self { port, received, connections, hellos, server }
    }

    pub(crate) fn hellos(&self) -> Vec<String> {
        self.hellos.lock().unwrap().clone()
    }

    pub(crate) fn received(&self) -> Vec<ReceivedMail> {
        self.received.lock().unwrap().clone()
    }
}

fn acceptor(certificates: &Certificates) -> TlsAcceptor {
    let cert = CertificateDer::from_pem_file(certificates.path("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(stream: Box<dyn Stream>, shared: &Shared) -> io::Result<()> {
    if shared.tls == Tls::FromTheStart {
        let stream = shared.acceptor.accept(stream).await?;
        return talk(Box::new(stream), shared, true).await.map(drop);
    }
    // After STARTTLS the dialogue restarts without another greeting.
    if let Some(stream) = talk(Box::new(stream), shared, false).await? {
        let stream = shared.acceptor.accept(stream).await?;
        talk(Box::new(stream), shared, true).await?;
    }
    Ok(())
}

/// The lines up to the one with only a dot.
async fn read_text(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<String> {
    let (mut text, mut line) = (String::new(), String::new());
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        if line == ".\r\n" || line.is_empty() {
            return Ok(text);
        }
        text.push_str(&line);
    }
}

/// `user:password` of `AUTH PLAIN`.
fn credentials(encoded: &str) -> String {
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    String::from_utf8(decoded).unwrap().trim_start_matches('\0').replace('\0', ":")
}

/// Returns the stream if the client has sent STARTTLS.
async fn talk(stream: Box<dyn Stream>, shared: &Shared, is_encrypted: bool) -> io::Result<Option<Box<dyn Stream>>> {
    let mut stream = BufReader::new(stream);
    if !is_encrypted || shared.tls == Tls::FromTheStart {
        stream.write_all(b"220 test ESMTP\r\n").await?;
    }
    let empty =
        ReceivedMail { is_encrypted, user: String::new(), from: String::new(), to: Vec::new(), text: String::new() };
    let (mut mail, mut user) = (empty.clone(), String::new());
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let words = line.trim_end().to_owned();
        let address = || words.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        if let Some(name) = words.strip_prefix("EHLO ") {
            shared.hellos.lock().unwrap().push(name.to_owned());
        }
        let reply = match words.split([' ', ':']).next().unwrap_or_default().to_uppercase().as_str() {
            "EHLO" if shared.tls == Tls::OnRequest && !is_encrypted => "250-test\r\n250 STARTTLS".to_owned(),
            "EHLO" if is_encrypted => "250-test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN".to_owned(),
            "EHLO" => "250-test\r\n250-8BITMIME\r\n250 AUTH PLAIN".to_owned(),
            "STARTTLS" => {
                stream.write_all(b"220 go on\r\n").await?;
                return Ok(Some(stream.into_inner()));
            }
            "AUTH" => {
                let credentials = credentials(words.rsplit(' ').next().unwrap());
                if Some(credentials.as_str()) == shared.login {
                    user = credentials.split(':').next().unwrap_or_default().to_owned();
                    "235 welcome".to_owned()
                } else {
                    "535 5.7.8 who are you".to_owned()
                }
            }
            "MAIL" if shared.login.is_some() && user.is_empty() => "530 5.7.0 say who you are".to_owned(),
            "MAIL" => {
                mail = ReceivedMail { user: user.clone(), from: address(), ..empty.clone() };
                "250 ok".to_owned()
            }
            "RCPT" => match address().split('@').next() {
                Some("unknown") => "550 5.1.1 nobody of this name".to_owned(),
                Some("busy") => "451 4.3.0 come again".to_owned(),
                _ if mail.to.len() == RECIPIENTS_MAX => "452 4.5.3 too many recipients".to_owned(),
                Some("silent") => std::future::pending().await,
                _ => {
                    mail.to.push(address());
                    "250 ok".to_owned()
                }
            },
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                mail.text = read_text(&mut stream).await?;
                shared.received.lock().unwrap().push(mail.clone());
                "250 taken".to_owned()
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(None);
            }
            _ => "250 ok".to_owned(),
        };
        stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
    }
}
