//! Writes emails to a directory, one `.eml` file each.

use super::compose::Mail;
use crate::capability::Fault;
use std::io;
use std::path::{Path, PathBuf};
use tokio::fs;

pub(super) struct MailDir(PathBuf);

impl MailDir {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The file name begins with the time, so that files sort by age.
    pub(super) async fn save(&self, mail: &Mail) -> Result<PathBuf, Fault> {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%3fZ");
        let name = format!("{now}-{}.eml", mail.id.split('@').next().unwrap_or_default());
        let path = self.0.join(&name);
        let written = self.write(&self.0.join(format!(".{name}")), &path, &mail.bytes).await;
        written.map_err(|error| Fault::unavailable(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// Renames a temporary file, so that readers never see a partial email.
    async fn write(&self, new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0).await?;
        fs::write(new, bytes).await?;
        fs::rename(new, path).await
    }
}
