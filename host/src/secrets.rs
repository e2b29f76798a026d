//! The secrets of this host: files, as Docker and Kubernetes mount them, and
//! environment variables. Each call reads the file again, so that a replaced
//! secret needs no restart.

use crate::capability::{Fault, Secret, Secrets};
use crate::metrics::Metrics;
use crate::settings::SecretsSettings;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

const BYTES_MAX: u64 = 64 << 10;

pub struct SecretStore {
    settings: SecretsSettings,
    metrics: Arc<Metrics>,
}

impl SecretStore {
    pub fn new(settings: &SecretsSettings, metrics: &Arc<Metrics>) -> Self {
        Self { settings: settings.clone(), metrics: metrics.clone() }
    }

    /// Tells the operator where to put a secret of this name.
    fn locations(&self, name: &str) -> String {
        let variable = SecretsSettings::variable(name);
        match &self.settings.dir {
            Some(dir) => format!("put it into the file {}, or into {variable}", dir.join(name).display()),
            None => format!("put it into a file {name} in the directory secrets.dir, or into {variable}"),
        }
    }
}

impl Secrets for SecretStore {
    fn get(&self, name: &str) -> Result<Secret, Fault> {
        if let Some(dir) = &self.settings.dir {
            match read(dir, name) {
                Ok(Some(secret)) => return Ok(secret),
                Ok(None) => {}
                Err(error) => {
                    let reason = format!("the secret {name}: {}: {error}", dir.join(name).display());
                    return Err(Fault::unavailable(reason));
                }
            }
        }
        let variable = self.settings.variables.get(&SecretsSettings::variable(name)).cloned();
        variable.ok_or_else(|| Fault::unavailable(format!("this host has no secret {name}: {}", self.locations(name))))
    }

    fn read(&self, plugin: &str, name: &str) -> Result<Secret, Fault> {
        let secret = self.get(name)?;
        self.metrics.secret_read(plugin, name);
        Ok(secret)
    }
}

/// A name has no slashes or dots. A failed read is tried twice, because Kubernetes
/// swaps a link that each file's link passes through.
fn read(dir: &Path, name: &str) -> io::Result<Option<Secret>> {
    let found = match fs::symlink_metadata(dir.join(name)) {
        Ok(_) => read_contained(dir, name).or_else(|_| read_contained(dir, name)),
        Err(error) => Err(error),
    };
    match found {
        Ok(secret) => Ok(Some(secret)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_contained(dir: &Path, name: &str) -> io::Result<Secret> {
    let path = dir.join(name).canonicalize()?;
    if !path.starts_with(dir.canonicalize()?) {
        return Err(io::Error::other("it is a link out of secrets.dir"));
    }
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {BYTES_MAX} bytes")));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    // A trailing newline, as `echo` writes it, is not part of the secret.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    fn secrets(dir: Option<&Path>, variables: &[(&str, &str)]) -> SecretStore {
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), Secret::new((*value).to_owned()));
        let variables: BTreeMap<_, _> = variables.iter().map(variable).collect();
        let settings = SecretsSettings { dir: dir.map(Path::to_owned), variables };
        SecretStore::new(&settings, &Arc::default())
    }

    fn text(secrets: &SecretStore, name: &str) -> Result<String, String> {
        secrets.get(name).map(|secret| secret.reveal().to_owned()).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_file_is_read_at_each_call_and_has_priority_over_a_variable() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = secrets(Some(dir.path()), &[("GATEWAY_SECRET_API_KEY", "from outside")]);
        assert_eq!(text(&secrets, "api-key").unwrap(), "from outside");
        assert_eq!(text(&secrets, "API_KEY").unwrap(), "from outside");
        for (written, read) in [("one\n", "one"), ("two\r\n", "two"), ("three\n\n", "three\n"), (" four ", " four ")] {
            fs::write(dir.path().join("API_KEY"), written).unwrap();
            assert_eq!(text(&secrets, "API_KEY").unwrap(), read);
        }
    }

    #[test]
    fn a_missing_secret_is_reported_with_its_locations() {
        let dir = tempfile::tempdir().unwrap();
        let error = text(&secrets(Some(dir.path()), &[]), "api-key").unwrap_err();
        let file = dir.path().join("api-key").display().to_string();
        assert!(error.starts_with("unavailable: ") && error.contains(&file), "{error}");
        assert!(error.contains("GATEWAY_SECRET_API_KEY"), "{error}");
        let error = text(&secrets(None, &[]), "api-key").unwrap_err();
        assert!(error.contains("secrets.dir") && error.contains("GATEWAY_SECRET_API_KEY"), "{error}");
    }

    #[test]
    fn links_within_the_directory_are_followed_and_others_are_refused() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (version, value) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("key"), value).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        let secrets = secrets(Some(dir.path()), &[]);
        assert_eq!(text(&secrets, "key").unwrap(), "old");
        symlink("..2", dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
        assert_eq!(text(&secrets, "key").unwrap(), "new");

        fs::write(outside.path().join("passwd"), "hidden").unwrap();
        symlink(outside.path().join("passwd"), dir.path().join("out")).unwrap();
        let error = text(&secrets, "out").unwrap_err();
        assert!(error.contains("out of secrets.dir") && !error.contains("hidden"), "{error}");
    }

    #[test]
    fn a_secret_is_text_of_limited_size() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = secrets(Some(dir.path()), &[]);
        let largest = "x".repeat(usize::try_from(BYTES_MAX).unwrap());
        let write = |bytes: &[u8]| fs::write(dir.path().join("key"), bytes).unwrap();
        write(largest.as_bytes());
        assert_eq!(text(&secrets, "key").unwrap(), largest);
        for (bytes, expected) in
            [(format!("{largest}x").as_bytes(), "more than 65536"), (b"\n", "empty"), (b"\xff\xff\xff\xff", "UTF-8")]
        {
            write(bytes);
            let fault = text(&secrets, "key").unwrap_err();
            assert!(fault.starts_with("unavailable: ") && fault.contains(expected), "{fault}");
        }
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(text(&secrets, "folder").unwrap_err().contains("not a regular file"));
    }
}
