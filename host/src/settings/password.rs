//! Passwords of settings, from a text or from a file that is read again for each
//! login, so that a rotated password needs no restart.

use super::set;
use crate::capability::Secret;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    Text(Secret),
    /// A file, with the setting that names it.
    File {
        setting: &'static str,
        path: PathBuf,
    },
}

impl Password {
    /// The password as it is now. The error names the setting and the file.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Text(secret) => Ok(secret.clone()),
            Self::File { setting, path } => {
                read(path).map(Secret::new).map_err(|problem| format!("{setting}: {}: {problem}", path.display()))
            }
        }
    }
}

/// The password in the text of a setting.
pub(super) fn text(setting: &str, raw: &Option<String>, errors: &mut Vec<String>) -> Option<Password> {
    let text = set(raw)?;
    if let Err(problem) = check(&text) {
        errors.push(format!("{setting}: {problem}"));
    }
    Some(Password::Text(Secret::new(text)))
}

/// The file of a setting, which must have a password now.
pub(super) fn file(setting: &'static str, path: String, errors: &mut Vec<String>) -> Password {
    let password = Password::File { setting, path: path.into() };
    errors.extend(password.read().err());
    password
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("it has more than {BYTES_MAX} bytes, which is no password"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = without_line_end(&text);
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    check(text).map(|()| text.to_owned())
}

/// What `echo` and editors append is no part of a value.
pub(super) fn without_line_end(text: &str) -> &str {
    let line = text.strip_suffix('\n').unwrap_or(text);
    if line.len() < text.len() { line.strip_suffix('\r').unwrap_or(line) } else { text }
}

/// One line end behind the password is left out before; others may be a second line
/// that was not meant.
fn check(text: &str) -> Result<(), String> {
    if text.contains(['\n', '\r']) {
        Err("it has a line end that is not its last character: write the password in one line".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_file(bytes: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let password = Password::File { setting: "redis.password_file", path: file.path().into() };
        password.read().map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn one_line_end_behind_a_password_is_left_out() {
        for (text, expected) in [("p", "p"), ("p\n", "p"), ("p\r\n", "p"), (" p \n", " p ")] {
            assert_eq!(read_file(text.as_bytes()).as_deref(), Ok(expected));
            let mut errors = Vec::new();
            let found = super::text("redis.password", &Some(text.to_owned()), &mut errors);
            assert_eq!((found.unwrap().read().unwrap().reveal(), errors.len()), (expected, 0));
        }
    }

    #[test]
    fn a_line_end_inside_is_refused_by_name_and_without_the_password() {
        for text in ["hidden\n\n", "hid\nden", "hidden\r", "\r\nhidden"] {
            let mut errors = vec![read_file(text.as_bytes()).unwrap_err()];
            super::text("redis.password", &Some(text.to_owned()), &mut errors);
            assert!(errors[0].starts_with("redis.password_file: /"), "{errors:?}");
            assert!(errors[1].starts_with("redis.password: "), "{errors:?}");
            assert!(
                !errors.concat().contains("hid") && errors.iter().all(|error| error.contains("line end")),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn a_file_without_a_password_is_refused() {
        assert!(read_file(b"\n").unwrap_err().contains("empty"));
        assert!(read_file(&[0xff]).unwrap_err().contains("UTF-8"));
        assert!(read_file(&vec![b'a'; 70_000]).unwrap_err().contains("65536 bytes"));
    }
}
