//! What a command says of a Redis that it can't use: the address, the cause and the
//! way out. Redis is away only where it does not answer.

use crate::certificates::Certificates;
use crate::process::{Process, redis};
use crate::support::{Redis, run_command};

/// A server with TLS on one port and plain text on the other.
fn server(certificates: &Certificates) -> Process {
    let lines = certificates.lines().replace("tls-auth-clients yes", "tls-auth-clients no");
    Process::start(&redis(), &[], "", |_, _| format!("save \"\"\n{lines}"))
}

fn list(url: &str, more: &[&str]) -> (i32, String) {
    let (code, _, error) = run_command(&[&["topics", "ls", "--redis-url", url], more].concat());
    (code, error)
}

#[test]
fn plain_text_and_tls_on_the_wrong_port_are_called_so() {
    let certificates = Certificates::new("authority");
    let process = server(&certificates);
    let (tls, ca) = (process.setting("tls-port"), certificates.path("ca.crt"));
    for (scheme, port, flags, expected) in [
        (
            "redis",
            tls.as_str(),
            vec![],
            "the server expects TLS from the start of a connection; its URL begins with rediss",
        ),
        (
            "rediss",
            &process.port.to_string(),
            vec!["--redis-tls-ca", &ca],
            "plain text on this port; its URL begins with redis",
        ),
    ] {
        let (code, error) = list(&format!("{scheme}://127.0.0.1:{port}"), &flags);
        assert!(code == 69 && error.contains(expected), "{code} {error}");
        assert!(error.contains(&format!("127.0.0.1:{port}")) && !error.contains("is away"), "{error}");
    }
    // With the right port both work.
    assert_eq!(list(&format!("rediss://127.0.0.1:{tls}"), &["--redis-tls-ca", &ca]).0, 0);
}

#[test]
fn a_self_signed_certificate_works_unless_it_is_one_of_an_authority() {
    let certificates = Certificates::self_signed(false);
    let process = server(&certificates);
    let url = format!("rediss://127.0.0.1:{}", process.setting("tls-port"));
    let (code, error) = list(&url, &["--redis-tls-ca", &certificates.path("ca.crt")]);
    assert_eq!(code, 0, "{error}");

    let certificates = Certificates::self_signed(true);
    let process = server(&certificates);
    let url = format!("rediss://127.0.0.1:{}", process.setting("tls-port"));
    let (code, error) = list(&url, &["--redis-tls-ca", &certificates.path("ca.crt")]);
    assert_eq!(code, 69, "{error}");
    for part in ["basicConstraints=critical,CA:FALSE", "redis.tls_ca", &process.setting("tls-port")] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_answers_is_not_away() {
    let redis = Redis::start();
    let mut open = redis.connection().await;
    redis.run::<String>("CONFIG SET maxmemory 1").await;
    let publish = |url: &str| {
        let (code, _, error) = run_command(&["publish", "t", "--redis-url", url]);
        assert!(code != 0 && !error.contains("is away"), "{code} {error}");
        error
    };
    let error = publish(&redis.url());
    assert!(error.contains("its memory is full, see maxmemory"), "{error}");
    redis.run::<String>("CONFIG SET maxmemory 0").await;
    redis.run::<String>("CONFIG SET maxclients 1").await;
    let error = publish(&redis.url());
    assert!(error.contains("maxclients"), "{error}");
    // The only connection that is left.
    let mut more = redis::cmd("CONFIG");
    more.arg("SET").arg("maxclients").arg(100).query_async::<()>(&mut open).await.unwrap();
    redis.run::<String>("CONFIG SET requirepass 0123").await;
    let error = publish(&redis.url().replace("redis://", "redis://:wrong@"));
    let address = redis.url().replace("redis://", "").trim_end_matches('/').to_owned();
    assert!(error.contains("Redis refuses") && error.contains(&address), "{address}: {error}");
}

#[test]
fn a_redis_that_does_not_answer_is_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, error) = list(&format!("redis://{closed}"), &[]);
    assert_eq!(code, 69);
    assert!(error.contains("Redis is away") && error.contains(&closed.to_string()), "{error}");
}
