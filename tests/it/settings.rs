//! Settings as containers give them: variables of Kubernetes, line ends, rotated
//! passwords, weaker sources with mistakes. What can't be meant is refused by name.

use crate::certificates::Certificates;
use crate::process::{Process, free_port, redis as redis_server};
use crate::support::{BINARY, Gateway, OK, Plugins, Redis, TOKEN, guest, run_command, until};
use gateway_worker::events;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A worker that has started instead is killed, and then has no exit code.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);

/// A certificate of version 1, for which the key does not matter.
const FIRST_VERSION: &str = "-----BEGIN CERTIFICATE-----
MIIBHTCBxQIUSZYboCabAmZplrIKmEA5ijB7EzcwCgYIKoZIzj0EAwIwETEPMA0G
A1UEAwwGY2xpZW50MCAXDTI2MTIwMTEzMDQzNVoYDzIxMjYxMTA3MTMwNDM1WjAR
MQ8wDQYDVQQDDAZjbGllbnQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATFj6CU
yzIPd5WwS9qjijqDo3R2gLOnmPex79UWIJEz8fdIeglAuhbsaaygYTpll3XiLA94
siUn9R3T/2XXfh9AMAoGCCqGSM49BAMCA0cAMEQCIDnjfGUyGiEOGN/PSxxa9KIS
QaHt3NsE70YDycf28fqiAiBbGyHoiVzM1uPivFslxJczYYHxBa56+2Bqr/8o2iRv
uA==
-----END CERTIFICATE-----
";

fn port(redis: &Redis) -> String {
    redis.url().rsplit(':').next().unwrap().trim_end_matches('/').to_owned()
}

/// Exit code and stderr of a worker that must not start.
fn refused(flags: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(BINARY);
    command.arg("run").args(flags).envs(variables.iter().copied()).current_dir(folder.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > REFUSED_WITHIN {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A cluster of one node, with lines of its configuration.
async fn one_node_cluster(lines: &str) -> Process {
    let node = Process::start(&redis_server(), &[], "", |_, _| {
        format!("cluster-enabled yes\ncluster-port {}\n{lines}", free_port())
    });
    run_at(&node, "CLUSTER ADDSLOTSRANGE 0 16383");
    until("the cluster works", async || {
        format!("{:?}", run_at(&node, "CLUSTER INFO")).contains("cluster_state:ok").then_some(())
    })
    .await;
    node
}

fn run_at(server: &Process, command: &str) -> redis::Value {
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut words = command.split(' ');
    let mut built = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        built.arg(word);
    });
    built.query(&mut connection).unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// A worker without flags for Redis and for its address.
fn worker(plugins: &Plugins, variables: &[(&str, &str)]) -> Gateway {
    let mut command = Command::new(BINARY);
    command.args(["run", "--plugins"]).arg(plugins.path()).arg("--plugins-cache").arg(plugins.cache());
    Gateway::spawn(command.envs(variables.iter().copied()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_kubernetes_services_are_passed_over_with_a_word() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "");
    let host = format!("127.0.0.1:{}", port(&redis));
    let services = [("REDIS_PORT", "tcp://10.0.0.1:6379"), ("APP_PORT", "tcp://10.0.0.2:8084")];
    let gateway = worker(
        &plugins,
        &[&services[..], &[("REDIS_HOST", host.as_str()), ("GATEWAY_LISTEN", "127.0.0.1:0")]].concat(),
    );
    gateway.until_ready().await;
    for (name, _) in services {
        gateway.until_logged(events::SERVICE_VARIABLE, |line| line["message"].as_str().unwrap().contains(name)).await;
    }
    drop(gateway);
    // Commands do the same, and flags are meant.
    let listed = Command::new(BINARY)
        .args(["topics", "ls"])
        .envs([("REDIS_HOST", host.as_str()), ("REDIS_PORT", "udp://10.0.0.1:6379")])
        .output();
    assert!(listed.unwrap().status.success());
    let (code, error) = refused(&["--redis-port", "tcp://10.0.0.1:6379"], &[]);
    assert!(code == Some(78) && error.contains("--redis-port (redis.port)"), "{error}");
}

#[test]
fn an_invalid_setting_is_refused_with_the_name_of_its_flag_or_variable() {
    for (name, value, expected) in [
        ("REDIS_PORT", "http", "allowed: a port"),
        ("REDIS_HOST", "a b", "not a host"),
        ("REDIS_HOST", "redis://h:1", "belongs in REDIS_URL"),
        ("REDIS_USERNAME", "a\nb", "line end"),
        ("REDIS_PASSWORD", "hid\nden", "line end"),
        ("REDIS_PASSWORD_FILE", "/no/such", "/no/such: No such file"),
        ("REDIS_URL", "redis://h\n/1", "line end"),
        ("APP_PORT", "http", "allowed: a port"),
        ("GATEWAY_LISTEN", "tcp://10.0.0.1:8084", ":PORT or PORT"),
        ("GATEWAY_LISTEN", "localhost", "the port is missing"),
        ("GATEWAY_LISTEN", "no-such-host.invalid:0", "can't be resolved"),
        ("LOG_LEVEL", "wran", "warn, error"),
        ("LOG_LEVEL", "info,handler=loud", "warn, error"),
        ("LOG_FORMAT", "xml", "json or pretty"),
        ("GATEWAY_QUEUE_LEASE", "10", "500ms, 30s or 5m"),
        ("GATEWAY_QUEUE_PREFIX", "m\nq", "control characters"),
        ("GATEWAY_SHUTDOWN_TIMEOUT", "2h", "2h is out of range: 0s to 1h"),
        ("GATEWAY_HANDLER_MEMORY", "63MiB", "63MiB is out of range: 64MiB or more"),
        ("GATEWAY_MAIL_RELAY", "smtp://u:hid\nden@h", "line end"),
        ("GATEWAY_ADMIN_TOKEN", "short", "at least 16"),
    ] {
        let (code, error) = refused(&[], &[("GATEWAY_MAIL_FROM", "a@b.example"), (name, value)]);
        assert_eq!(code, Some(78), "{name}={value}: {error}");
        let setting = name.strip_prefix("GATEWAY_").unwrap_or(name).to_lowercase();
        assert!(error.contains(name) && error.contains(expected) && !error.contains("den"), "{name}={value}: {error}");
        if !value.contains('\n') && !value.contains("invalid") {
            let flag = format!("--{}", setting.replace('_', "-"));
            let (code, error) = refused(&[&flag, value], &[]);
            assert!(code == Some(78) && error.contains(&flag), "{flag} {value}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_a_weaker_source_does_not_matter() {
    let (redis, plugins) = (Redis::start(), Plugins::with("topic", &guest(OK), ""));
    let file = plugins.path().join("settings.conf");
    std::fs::write(
        &file,
        "listen = \"junk\"\n[log]\nlevel = \"wran\"\n[queue]\nlease = \"soon\"\n[redis]\nhost = \"a b\"",
    )
    .unwrap();
    let flags = ["--queue-lease", "10s", "--config", file.to_str().unwrap()];
    let mut command = Gateway::command(&redis.url(), &plugins, &flags);
    let mistakes = ["REDIS_PORT", "REDIS_DB", "REDIS_URL", "GATEWAY_LISTEN", "APP_PORT", "LOG_LEVEL"];
    command.envs(mistakes.map(|name| (name, "ju nk"))).envs([("REDIS_HOST", "a b"), ("REDIS_PASSWORD", "a\nb")]);
    Gateway::spawn(&mut command).until_ready().await;
    // What the URL of a flag has as well is stronger than a file in a variable.
    let (code, _, error) = run_command(&["topics", "ls", "--redis-url", &redis.url()]);
    assert_eq!(code, 0, "{error}");
    let url = redis.url().replace("redis://", "redis://default:any@");
    let listed = Command::new(BINARY)
        .args(["topics", "ls", "--redis-url", &url])
        .env("REDIS_PASSWORD_FILE", "/no/such")
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_variable_counts_as_unset_everywhere() {
    let redis = Redis::start();
    let names = ["GATEWAY_CONFIG", "REDIS_URL", "REDIS_PASSWORD_FILE", "LOG_LEVEL", "GATEWAY_LISTEN", "APP_PORT"];
    let (plugins, port) = (Plugins::with("topic", &guest(OK), ""), port(&redis));
    let empty: Vec<_> = names.into_iter().map(|name| (name, " ")).collect();
    let file = plugins.path().join("settings.conf");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\n[redis]\nhost = \"127.0.0.1\"").unwrap();
    let more = [("GATEWAY_CONFIG", file.to_str().unwrap()), ("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &port)];
    worker(&plugins, &[empty.clone(), more.to_vec()].concat()).until_ready().await;
    let listed = Command::new(BINARY)
        .args(["topics", "ls", "--redis-url", &redis.url()])
        .env("GATEWAY_CONFIG", "")
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = Command::new(BINARY).args(["plugins", "ls"]).env("GATEWAY_URL", "").output().unwrap();
    let error = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(!error.contains("not a URL"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_names_of_levels_are_understood_in_any_case() {
    let (redis, plugins) = (Redis::start(), Plugins::with("topic", &guest(OK), ""));
    let host = format!("127.0.0.1:{}", port(&redis));
    for (level, has_warnings, has_info) in [
        ("WARNING", true, false),
        ("notice", true, true),
        ("crit", false, false),
        ("off,gateway_worker=Info", true, true),
    ] {
        let variables = [
            ("LOG_LEVEL", level),
            ("REDIS_HOST", &host),
            ("GATEWAY_LISTEN", "127.0.0.1:0"),
            ("GATEWAY_UNKNOWN", "1"),
            ("APP_PORT", "tcp://10.0.0.1:80"),
        ];
        let gateway = worker(&plugins, &variables);
        // It is told by Redis, because the log may be silent.
        let known = async || {
            let workers: Vec<String> = redis.run("ZRANGE mq::workers 0 -1").await;
            let pid = format!("\"pid\":{}", gateway.id());
            workers.iter().any(|worker| worker.contains(&pid)).then_some(())
        };
        until("the worker runs", known).await;
        assert_eq!(gateway.logged(events::UNKNOWN_SETTING).len(), usize::from(has_warnings), "{level}");
        assert_eq!(gateway.logged(events::SERVICE_VARIABLE).len(), usize::from(has_info), "{level}");
        assert!(gateway.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_listens_where_a_port_or_a_name_says() {
    let (redis, plugins) = (Redis::start(), Plugins::with("topic", &guest(OK), ""));
    for form in [":PORT", "PORT", "localhost:PORT", " 127.0.0.1:PORT\n"] {
        let listen = form.replace("PORT", &free_port().to_string());
        let gateway = Gateway::start_with(&redis.url(), &plugins, &["--listen", &listen]);
        gateway.address().await;
        let healthy = async || (run_command(&["healthcheck", "--listen", &listen]).0 == 0).then_some(());
        until(&listen, healthy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_another_user_than_the_one_named() {
    let redis = Redis::start();
    redis.run::<()>("ACL SETUSER open on nopass ~* &* +@all").await;
    redis.run::<()>("ACL SETUSER locked on >pass ~* &* +@all").await;
    let (plugins, port) = (Plugins::with("topic", &guest(OK), ""), port(&redis));
    let (open, locked) = (format!("redis://open@127.0.0.1:{port}"), format!("redis://locked@127.0.0.1:{port}"));
    let gateway = Gateway::start_with(&open, &plugins, &[]);
    gateway.until_ready().await;
    let clients: String = redis.run("CLIENT LIST").await;
    let is_open = |line: &&str| line.contains("user=open");
    assert!(clients.lines().filter(is_open).count() >= 2, "{clients}");
    assert!(clients.lines().all(|line| is_open(&line) || line.contains("cmd=client|list")), "{clients}");
    drop(gateway);

    let file = plugins.path().join("settings.conf");
    std::fs::write(&file, format!("[redis]\nhost = \"127.0.0.1\"\nport = {port}\nusername = \"locked\"")).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let parts = ["--redis-host", "127.0.0.1", "--redis-port", &port, "--redis-username", "locked"];
    let with_empty_password = locked.replace('@', ":@");
    let (_, _, error) = run_command(&["topics", "ls", "--redis-url", &locked]);
    assert!(error.contains("redis.password_file, or let the user need none (nopass)"), "{error}");
    for flags in [&["--redis-url", &locked][..], &["--redis-url", &with_empty_password], &config, &parts] {
        let (code, _, error) = run_command(&[&["topics", "ls"], flags].concat());
        assert!(code == 69 && error.contains("login refused"), "{flags:?}: {code} {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_another_user_at_sentinels_and_clusters() {
    let users = "user open on nopass ~* &* +@all\nuser locked on >pass ~* &* +@all\n";
    let master = Process::start(&redis_server(), &[], "", |_, _| users.to_owned());
    let sentinel = Process::start(&redis_server(), &["--sentinel"], "", |_, _| {
        format!("sentinel monitor m 127.0.0.1 {} 1\n{users}", master.port)
    });
    let cluster = one_node_cluster(users).await;
    let (at_sentinel, at_cluster) = (sentinel.port, cluster.port);
    let url = |user: &str, mode: &str| match mode {
        "sentinel" => format!("redis+sentinel://{user}@127.0.0.1:{at_sentinel}/m"),
        _ => format!("redis+cluster://{user}@127.0.0.1:{at_cluster}"),
    };
    let list = |url: &str, flags: &[&str]| {
        let (code, _, error) = run_command(&[&["topics", "ls", "--redis-url", url], flags].concat());
        (code, error)
    };
    for mode in ["sentinel", "cluster"] {
        let (code, error) = list(&url("open", mode), &[]);
        assert_eq!(code, 0, "{mode}: {error}");
        let (code, error) = list(&url("locked", mode), &[]);
        assert!(code != 0, "{mode}: {error}");
    }
    // The sentinels have users of their own.
    assert_eq!(list(&url("open", "sentinel"), &["--redis-sentinel-username", "open"]).0, 0);
    let (code, error) = list(&url("open", "sentinel"), &["--redis-sentinel-username", "locked"]);
    assert!(code != 0, "{error}");
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "pass\n").unwrap();
    let path = password.path().to_str().unwrap();
    for (url, flags) in [
        (url("locked", "cluster"), vec!["--redis-password-file", path]),
        (url("locked", "sentinel"), vec!["--redis-password-file", path]),
        (url("open", "sentinel"), vec!["--redis-sentinel-username", "locked", "--redis-sentinel-password-file", path]),
    ] {
        let (code, error) = list(&url, &flags);
        assert_eq!(code, 0, "{url} {flags:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_read_from_its_file_without_a_restart() {
    let redis = Redis::start();
    redis.run::<()>("ACL SETUSER app on >one ~* &* +@all").await;
    let (plugins, port) = (Plugins::with("topic", &guest(OK), ""), port(&redis));
    let password = plugins.path().join("password");
    std::fs::write(&password, "one\r\n").unwrap();
    let url = format!("redis://app@127.0.0.1:{port}");
    let gateway = Gateway::start_with(&url, &plugins, &["--redis-password-file", password.to_str().unwrap()]);
    gateway.until_ready().await;
    redis.publish("topic", "before", "{}").await;
    gateway.until_outcome("topic", "before", "done").await;

    redis.run::<()>("ACL SETUSER app resetpass >two").await;
    redis.run::<i64>("CLIENT KILL USER app").await;
    redis.publish("topic", "after", "{}").await;
    let refused = async || {
        let (_, body) = gateway.request("GET", "/ready", &format!("Authorization: Bearer {TOKEN}\r\n")).await;
        body.to_string().contains("login refused").then_some(())
    };
    until("the old password is refused", refused).await;
    std::fs::remove_file(&password).unwrap();
    let unreadable = async || {
        let (_, body) = gateway.request("GET", "/ready", &format!("Authorization: Bearer {TOKEN}\r\n")).await;
        body.to_string().contains("redis.password_file: ").then_some(())
    };
    until("the missing file is named", unreadable).await;
    std::fs::write(&password, "two\n").unwrap();
    gateway.until_outcome("topic", "after", "done").await;
    gateway.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_read_again_for_clusters_and_sentinels() {
    let user = "user app on >one ~* &* +@all\n";
    let master = Process::start(&redis_server(), &[], "", |_, _| user.to_owned());
    let sentinel = Process::start(&redis_server(), &["--sentinel"], "", |_, _| {
        format!("sentinel monitor m 127.0.0.1 {} 1\n", master.port)
    });
    let cluster = one_node_cluster(user).await;
    for (url, server) in [
        (format!("redis+cluster://app@127.0.0.1:{}", cluster.port), &cluster),
        (format!("redis+sentinel://app@127.0.0.1:{}/m", sentinel.port), &master),
    ] {
        let plugins = Plugins::with("topic", &guest(OK), "");
        let password = plugins.path().join("password");
        std::fs::write(&password, "one\n").unwrap();
        let gateway = Gateway::start_with(&url, &plugins, &["--redis-password-file", password.to_str().unwrap()]);
        gateway.until_ready().await;
        std::fs::write(&password, "two\n").unwrap();
        run_at(server, "ACL SETUSER app resetpass >two");
        run_at(server, "CLIENT KILL USER app");
        run_at(server, "XADD mq:topic * message {\"id\":\"after\",\"data\":{}}");
        gateway.until_outcome("topic", "after", "done").await;
        gateway.until_ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn line_ends_behind_a_host_and_a_password_are_left_out() {
    let redis = Redis::start();
    redis.run::<()>("ACL SETUSER app on >one ~* &* +@all").await;
    let (plugins, port) = (Plugins::with("topic", &guest(OK), ""), port(&redis) + "\n");
    let variables = [
        ("REDIS_HOST", "127.0.0.1\n"),
        ("REDIS_PORT", &port),
        ("REDIS_USERNAME", "app\r\n"),
        ("REDIS_PASSWORD", "one\r\n"),
        ("REDIS_DB", "0\n"),
        ("GATEWAY_QUEUE_PREFIX", "mq:\n"),
        ("GATEWAY_LISTEN", "127.0.0.1:0\n"),
        ("LOG_LEVEL", "debug\n"),
    ];
    let gateway = worker(&plugins, &variables);
    gateway.until_ready().await;
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
}

#[test]
fn a_password_and_a_file_of_one_source_contradict_each_other() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "one").unwrap();
    let path = password.path().to_str().unwrap();
    let (code, error) = refused(&[], &[("REDIS_PASSWORD", "hidden"), ("REDIS_PASSWORD_FILE", path)]);
    assert_eq!(code, Some(78));
    assert!(error.contains("REDIS_PASSWORD_FILE (redis.password_file) and REDIS_PASSWORD (redis.password)"), "{error}");
    let (code, error) = refused(&[], &[("REDIS_URL", "redis://:hidden@h"), ("REDIS_PASSWORD_FILE", path)]);
    assert_eq!(code, Some(78));
    assert!(error.contains("and REDIS_URL (redis.url) both have a password"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_no_connection_could_use_is_a_fault_at_the_start() {
    let certificates = Certificates::new("authority");
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("client.crt");
    std::fs::write(&first, FIRST_VERSION).unwrap();
    let (first, key) = (first.to_str().unwrap(), certificates.path("client.key"));
    let flags = |cert, key| ["--redis-url", "rediss://127.0.0.1:1", "--redis-tls-cert", cert, "--redis-tls-key", key];
    let (code, error) = refused(&flags(first, &key), &[]);
    assert_eq!(code, Some(78), "{error}");
    for part in ["REDIS_TLS_CERT", "X.509 v1", "openssl x509 -req"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // The same for the key of another certificate.
    let (code, error) = refused(&flags(&certificates.path("client.crt"), &certificates.path("server.key")), &[]);
    assert!(code == Some(78) && error.contains("REDIS_TLS_KEY"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_mail_without_a_relay_is_warned_about_once_per_version() {
    let redis = Redis::start();
    let plugins = Plugins::with("topic", &guest(OK), "[grants]\nmail = true\n").and("other", &guest(OK), "");
    let gateway = Gateway::start(&redis, &plugins);
    let first = gateway.until_loaded("topic").await;
    gateway.until_loaded("other").await;
    redis.publish("topic", "a", "{}").await;
    gateway.until_outcome("topic", "a", "done").await;
    let warned = || gateway.logged(events::MAIL_WITHOUT_RELAY);
    assert!(warned().len() == 1 && warned()[0]["plugin"] == "topic", "{:?}", warned());
    plugins.put("topic", &guest(OK), "[grants]\nmail = true\n[retry]\nattempts = 2\n");
    gateway.until_logged(events::PLUGIN_LOADED, |line| line["plugin"] == "topic" && line["digest"] != first).await;
    assert_eq!(warned().len(), 2);
}
