//! `plugin inspect` and `plugin check`: describe plugin files and check whether
//! the worker would load them, without Redis.

use super::output::{print_json, print_line, print_note};
use super::{Failure, with_file};
use crate::capability::Capabilities;
use crate::events::{orphan_manifest, topic_conflict};
use crate::metrics::Metrics;
use crate::plugin::{Access, Cache, Compiler, Engine, Import, Inspection, PluginDir, orphan_manifests};
use crate::secrets::SecretStore;
use crate::settings::{FilePermissionPolicy, RawPlugins, RawSecrets, RawSettings};
use crate::text::sanitize;
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The claim of a catch-all plugin: all topics that no other plugin claims.
const CATCH_ALL: &str = "*";

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A .wasm file; its manifest must be in the same directory
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerSettings,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// .wasm files, or directories with .wasm files
    #[arg(value_name = "FILE|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerSettings,
}

/// The settings of a worker that decide whether it would load a plugin.
#[derive(Debug, Args)]
struct WorkerSettings {
    /// Settings file of the worker [default: gateway-worker.toml, if it exists]
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<OsString>,
    /// Directory of the worker's plugins [default: plugins]
    #[arg(long, env = "GATEWAY_PLUGINS", value_name = "DIR")]
    plugins: Option<String>,
    #[command(flatten)]
    files: RawPlugins,
    #[command(flatten)]
    secrets: RawSecrets,
}

/// Loads plugins in the same way as the worker.
struct Inspector {
    engine: Engine,
    file_permissions: FilePermissionPolicy,
}

impl Inspector {
    /// `paths` are the files and directories to inspect.
    fn new(worker: WorkerSettings, paths: &[PathBuf]) -> Result<Self, Failure> {
        let WorkerSettings { config, plugins, files, secrets } = worker;
        let settings = RawSettings { plugins, plugin_files: files, secrets, ..RawSettings::default() };
        let settings = with_file(settings, config.as_deref())?.check_plugins()?;
        // The directories of the inspected plugins are protected like the worker's
        // plugins directory.
        let protected_dirs =
            settings.protected_dirs().into_iter().chain(paths.iter().map(|path| dir_of(path).to_owned()));
        let secrets = SecretStore::new(&settings.secrets, &Arc::new(Metrics::default()));
        let capabilities = Capabilities {
            secrets: Some(Arc::new(secrets)),
            protected_dirs: protected_dirs.collect(),
            ..Capabilities::default()
        };
        // Without a usable cache the inspection is only slower.
        let cache = settings.cache.and_then(|path| Cache::open(&path).ok());
        let engine = Engine::new(capabilities, Compiler::new(cache), 1).map_err(failure)?;
        Ok(Self { engine, file_permissions: settings.file_permissions })
    }

    async fn inspect(&self, (dir, name): (PathBuf, String)) -> Inspection {
        Inspection::load(&self.engine, &PluginDir::new(dir, self.file_permissions), &name).await
    }

    /// The plugin of a file, or the plugins of a directory.
    fn plugins(&self, path: &Path) -> Result<DirPlugins, Failure> {
        if !path.is_dir() {
            let (dir, name) = split(path)?;
            return Ok(DirPlugins { dir, names: BTreeSet::from([name]), ignored: Vec::new() });
        }
        let (names, ignored) = PluginDir::new(path, self.file_permissions).names().map_err(failure)?;
        Ok(DirPlugins { dir: path.to_owned(), names: names.into_iter().collect(), ignored })
    }

    /// The plugins by directory. Different paths of one directory are merged,
    /// because its plugins belong to one worker.
    fn by_dir(&self, paths: &[PathBuf]) -> Result<Vec<DirPlugins>, Failure> {
        let mut dirs: Vec<(PathBuf, DirPlugins)> = Vec::new();
        for path in paths {
            let plugins = self.plugins(path)?;
            let canonical = plugins.dir.canonicalize().map_err(failure)?;
            match dirs.iter_mut().find(|(known, _)| *known == canonical) {
                Some((_, known)) => known.join(plugins),
                None => dirs.push((canonical, plugins)),
            }
        }
        Ok(dirs.into_iter().map(|(_, plugins)| plugins).collect())
    }
}

/// The plugins of one directory.
struct DirPlugins {
    dir: PathBuf,
    names: BTreeSet<String>,
    /// The plugins over the worker's limit, which it would not load.
    ignored: Vec<String>,
}

impl DirPlugins {
    fn join(&mut self, more: Self) {
        self.names.extend(more.names);
        self.ignored.extend(more.ignored);
    }
}

fn failure(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The path if it is a directory, or else the directory of the file.
fn dir_of(path: &Path) -> &Path {
    if path.is_dir() {
        return path;
    }
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The directory of a file, and the name of its plugin.
fn split(file: &Path) -> Result<(PathBuf, String), Failure> {
    if !file.is_file() {
        return Err(Failure::Failed(format!("{}: no such file", file.display())));
    }
    let stem = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".wasm"));
    let name = stem
        .ok_or_else(|| Failure::Usage(format!("{}: the file of a plugin must be named <name>.wasm", file.display())))?;
    Ok((dir_of(file).to_owned(), name.to_owned()))
}

pub(super) async fn inspect(args: InspectArgs) -> Result<(), Failure> {
    let plugin = split(&args.file)?;
    let inspection = Inspector::new(args.worker, std::slice::from_ref(&args.file))?.inspect(plugin).await;
    if args.json {
        print_json(&inspection)?;
    } else {
        print(&inspection);
    }
    result(&[inspection])
}

pub(super) async fn check(args: CheckArgs) -> Result<(), Failure> {
    let inspector = Inspector::new(args.worker, &args.paths)?;
    let mut all = Vec::new();
    for DirPlugins { dir, names, ignored } in inspector.by_dir(&args.paths)? {
        let mut inspections = Vec::new();
        for name in names {
            inspections.push(inspector.inspect((dir.clone(), name)).await);
        }
        refuse_second_owners(&mut inspections);
        all.extend(inspections);
        let refused = || vec!["too many plugins in the directory: it would not be loaded".to_owned()];
        all.extend(ignored.into_iter().map(|name| Inspection { name, refused: refused(), ..Inspection::default() }));
    }
    if args.json {
        print_json(&all)?;
    } else {
        all.iter().for_each(print_verdict);
    }
    for name in args.paths.iter().flat_map(|path| orphan_manifests(path)) {
        let warning = format!("warning  {}", orphan_manifest(&name));
        if args.json {
            print_note!("{}", sanitize(&warning));
        } else {
            print_sanitized(&warning);
        }
    }
    result(&all)
}

/// As at a cold start of the worker, the first plugin by name owns a topic, or all
/// unclaimed topics.
fn refuse_second_owners(plugins: &mut [Inspection]) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for plugin in plugins.iter_mut().filter(|plugin| plugin.refused.is_empty()) {
        let mut claims = plugin.topics.clone();
        if claims.is_empty() {
            claims.push(CATCH_ALL.to_owned());
        }
        let name = &plugin.name;
        let taken = claims.iter().find_map(|claim| Some((claim, owners.get(claim)?)));
        if let Some((claim, owner)) = taken {
            let topic = (claim != CATCH_ALL).then_some(claim.as_str());
            let reason = topic_conflict(topic, owner, name);
            plugin.refused.push(reason);
            plugin.kind = None;
            continue;
        }
        owners.extend(claims.into_iter().map(|claim| (claim, name.clone())));
    }
}

fn print_verdict(inspection: &Inspection) {
    match inspection.kind {
        Some(kind) => {
            print_sanitized(&format!("ok       {}.wasm: {kind} of {}", inspection.name, format_topics(inspection)))
        }
        None => print_sanitized(&format!("refused  {}.wasm", inspection.name)),
    }
    inspection.refused.iter().for_each(|reason| print_sanitized(&format!("         {reason}")));
    inspection.warnings.iter().for_each(|warning| print_sanitized(&format!("warning  {warning}")));
}

/// Sanitises the line, because names and texts of a plugin could steer the
/// terminal or imitate other lines.
fn print_sanitized(line: &str) {
    print_line!("{}", sanitize(line).trim_end());
}

fn format_topics(inspection: &Inspection) -> String {
    if inspection.topics.is_empty() { CATCH_ALL.to_owned() } else { inspection.topics.join(", ") }
}

fn print(inspection: &Inspection) {
    let mut lines: Vec<(&str, String)> = vec![("name", inspection.name.clone())];
    if let Some(digest) = &inspection.digest {
        lines.push(("digest", digest.clone()));
        lines.push(("size", bytesize::ByteSize(inspection.bytes as u64).display().iec().to_string()));
    }
    lines.push(("kind", inspection.kind.unwrap_or("refused").to_owned()));
    lines.extend(inspection.refused.iter().map(|reason| ("", reason.clone())));
    if inspection.kind.is_some() {
        lines.push(("topics", format_topics(inspection)));
        lines.push(("self-test", if inspection.has_self_test { "passed" } else { "none" }.to_owned()));
    }
    push_list(&mut lines, "exports", inspection.exports.iter().cloned());
    push_list(&mut lines, "imports", inspection.imports.iter().map(format_import));
    push_list(&mut lines, "limits", inspection.limits.iter().map(|(name, limit)| format!("{name} = {limit}")));
    push_list(&mut lines, "warnings", inspection.warnings.iter().cloned());
    for (name, text) in lines {
        print_sanitized(&format!("{name:<10} {text}"));
    }
}

/// Adds one line per text. Only the first line has the name.
fn push_list<'a>(lines: &mut Vec<(&'a str, String)>, name: &'a str, texts: impl Iterator<Item = String>) {
    lines.extend(texts.enumerate().map(|(index, text)| (if index == 0 { name } else { "" }, text)));
}

fn format_import(import: &Import) -> String {
    let access = match &import.access {
        Access::Always => "always".to_owned(),
        Access::Granted { what } => format!("granted: {}", what.join(", ")),
        Access::NotGranted { write } => format!("not granted: add {write} under [grants]"),
        Access::Denied => "never granted".to_owned(),
        Access::Missing => "not supported by this host".to_owned(),
    };
    format!("{:<44} {access}", import.name)
}

/// Fails if a plugin would be refused. The reasons are printed before.
fn result(plugins: &[Inspection]) -> Result<(), Failure> {
    let refused = plugins.iter().filter(|plugin| !plugin.refused.is_empty()).count();
    if refused == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!("{refused} of {} would be refused", plugins.len())))
}
