//! `plugin inspect` and `plugin check`: what a plugin is and whether the worker
//! would load it, for its author. No Redis is needed.

use super::print::print_json;
use super::{Failure, with_file};
use crate::capability::Capabilities;
use crate::events::orphan_manifest;
use crate::metrics::Metrics;
use crate::plugin::{Access, Cache, Compiler, Engine, Import, Inspection, PluginDir, orphan_manifests, plain};
use crate::secrets::SecretStore;
use crate::settings::{FileCheck, Typed, TypedPlugins, TypedSecrets};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All topics that nobody names; it is no topic itself.
const REST: &str = "*";

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A .wasm file; its manifest is looked for beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerSettings,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// .wasm files, or directories of such
    #[arg(value_name = "FILE|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// One JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    worker: WorkerSettings,
}

/// What of a worker's settings says whether it would load a plugin.
#[derive(Debug, Args)]
struct WorkerSettings {
    /// The worker's settings file [default: gateway-worker.toml, if there is one]
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the worker's plugins are [default: plugins]
    #[arg(long, env = "GATEWAY_PLUGINS", value_name = "DIR")]
    plugins: Option<String>,
    #[command(flatten)]
    files: TypedPlugins,
    #[command(flatten)]
    secrets: TypedSecrets,
}

/// Loads plugins as the worker does.
struct Inspector {
    engine: Engine,
    check: FileCheck,
}

impl Inspector {
    /// For these files, or directories of such.
    fn new(worker: WorkerSettings, paths: &[PathBuf]) -> Result<Self, Failure> {
        let WorkerSettings { config, plugins, files, secrets } = worker;
        let typed = Typed { plugins, plugin_files: files, secrets, ..Typed::default() };
        let settings = with_file(typed, config.as_deref())?.check_plugins()?;
        // What is checked lies where the worker's plugins do, or will.
        let own_folders = settings.own_folders().into_iter().chain(paths.iter().map(|path| folder(path).to_owned()));
        let secrets = SecretStore::new(&settings.secrets, &Arc::new(Metrics::default()));
        let capabilities = Capabilities {
            secrets: Some(Arc::new(secrets)),
            protected_dirs: own_folders.collect(),
            ..Capabilities::default()
        };
        // Where it can't be used it is slower, and that is all.
        let cache = settings.cache.and_then(|path| Cache::open(&path).ok());
        let engine = Engine::new(capabilities, Compiler::new(cache), 1).map_err(told)?;
        Ok(Self { engine, check: settings.check_files })
    }

    async fn inspect(&self, (folder, name): (PathBuf, String)) -> Inspection {
        Inspection::load(&self.engine, &PluginDir::new(folder, self.check), &name).await
    }

    /// The plugins that a path names: itself, or those in it.
    fn plugins(&self, path: &Path) -> Result<Named, Failure> {
        if !path.is_dir() {
            let (folder, name) = split(path)?;
            return Ok(Named { folder, names: BTreeSet::from([name]), beyond: Vec::new() });
        }
        let (names, beyond) = PluginDir::new(path, self.check).names().map_err(told)?;
        Ok(Named { folder: path.to_owned(), names: names.into_iter().collect(), beyond })
    }

    /// Those of each directory together, however often and by whatever path it
    /// is named: they are one worker's.
    fn by_folder(&self, paths: &[PathBuf]) -> Result<Vec<Named>, Failure> {
        let mut folders: Vec<(PathBuf, Named)> = Vec::new();
        for path in paths {
            let named = self.plugins(path)?;
            let own = named.folder.canonicalize().map_err(told)?;
            match folders.iter_mut().find(|(known, _)| *known == own) {
                Some((_, known)) => known.join(named),
                None => folders.push((own, named)),
            }
        }
        Ok(folders.into_iter().map(|(_, named)| named).collect())
    }
}

/// Plugins of one directory.
struct Named {
    folder: PathBuf,
    names: BTreeSet<String>,
    /// What the worker would leave alone.
    beyond: Vec<String>,
}

impl Named {
    fn join(&mut self, more: Self) {
        self.names.extend(more.names);
        self.beyond.extend(more.beyond);
    }
}

fn told(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The directory that a path is, or that its file is in.
fn folder(path: &Path) -> &Path {
    if path.is_dir() {
        return path;
    }
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file's directory, and its name there.
fn split(file: &Path) -> Result<(PathBuf, String), Failure> {
    if !file.is_file() {
        return Err(Failure::Failed(format!("{}: there is no such file", file.display())));
    }
    let stem = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".wasm"));
    let name =
        stem.ok_or_else(|| Failure::Usage(format!("{}: a plugin's file is called <name>.wasm", file.display())))?;
    Ok((folder(file).to_owned(), name.to_owned()))
}

pub(super) async fn inspect(args: InspectArgs) -> Result<(), Failure> {
    let plugin = split(&args.file)?;
    let told = Inspector::new(args.worker, std::slice::from_ref(&args.file))?.inspect(plugin).await;
    if args.json {
        print_json(&told)?;
    } else {
        print(&told);
    }
    ended(&[told])
}

pub(super) async fn check(args: CheckArgs) -> Result<(), Failure> {
    let inspector = Inspector::new(args.worker, &args.paths)?;
    let mut all = Vec::new();
    for Named { folder, names, beyond } in inspector.by_folder(&args.paths)? {
        let mut of_folder = Vec::new();
        for name in names {
            of_folder.push(inspector.inspect((folder.clone(), name)).await);
        }
        refuse_second_owners(&mut of_folder);
        all.extend(of_folder);
        let refused = || vec!["too many plugins in its directory: it is left alone".to_owned()];
        all.extend(beyond.into_iter().map(|name| Inspection { name, refused: refused(), ..Inspection::default() }));
    }
    if args.json {
        print_json(&all)?;
    } else {
        all.iter().for_each(print_verdict);
    }
    for name in args.paths.iter().flat_map(|path| orphan_manifests(path)) {
        let told = format!("warning  {}", orphan_manifest(&name));
        if args.json { eprintln!("{}", plain(&told)) } else { print_line(&told) }
    }
    ended(&all)
}

/// As at a cold start: a topic belongs to the first by name, and so does the
/// rest.
fn refuse_second_owners(plugins: &mut [Inspection]) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for plugin in plugins.iter_mut().filter(|plugin| plugin.refused.is_empty()) {
        let mut claims = plugin.topics.clone();
        if claims.is_empty() {
            claims.push(REST.to_owned());
        }
        let name = &plugin.name;
        let taken = claims.iter().find_map(|claim| Some((claim, owners.get(claim)?)));
        if let Some((claim, owner)) = taken {
            let reason = if claim == REST {
                format!(
                    "all topics that no other plugin claims (\"*\") are handled by {owner}.wasm: name topics there, or in {name}.toml"
                )
            } else {
                format!("topic {claim} is handled by {owner}.wasm: remove it there, or from {name}")
            };
            plugin.refused.push(reason);
            plugin.kind = None;
            continue;
        }
        owners.extend(claims.into_iter().map(|claim| (claim, name.clone())));
    }
}

fn print_verdict(told: &Inspection) {
    match told.kind {
        Some(kind) => print_line(&format!("ok       {}.wasm: {kind} of {}", told.name, topics(told))),
        None => print_line(&format!("refused  {}.wasm", told.name)),
    }
    told.refused.iter().for_each(|reason| print_line(&format!("         {reason}")));
    told.warnings.iter().for_each(|warning| print_line(&format!("warning  {warning}")));
}

/// A file's names and words are whoever made it's: they must not steer the
/// terminal, nor look like lines of ours.
fn print_line(line: &str) {
    println!("{}", plain(line).trim_end());
}

fn topics(told: &Inspection) -> String {
    if told.topics.is_empty() { REST.to_owned() } else { told.topics.join(", ") }
}

fn print(told: &Inspection) {
    let mut lines: Vec<(&str, String)> = vec![("name", told.name.clone())];
    if let Some(digest) = &told.digest {
        lines.push(("digest", digest.clone()));
        lines.push(("size", bytesize::ByteSize(told.bytes as u64).display().iec().to_string()));
    }
    lines.push(("kind", told.kind.unwrap_or("refused").to_owned()));
    lines.extend(told.refused.iter().map(|reason| ("", reason.clone())));
    if told.kind.is_some() {
        lines.push(("topics", topics(told)));
        lines.push(("self-test", if told.has_self_test { "passed" } else { "none" }.to_owned()));
    }
    list(&mut lines, "exports", told.exports.iter().cloned());
    list(&mut lines, "imports", told.imports.iter().map(import));
    list(&mut lines, "limits", told.limits.iter().map(|(name, limit)| format!("{name} = {limit}")));
    list(&mut lines, "warnings", told.warnings.iter().cloned());
    for (name, text) in lines {
        print_line(&format!("{name:<10} {text}"));
    }
}

/// The name before the first.
fn list<'a>(lines: &mut Vec<(&'a str, String)>, name: &'a str, texts: impl Iterator<Item = String>) {
    lines.extend(texts.enumerate().map(|(place, text)| (if place == 0 { name } else { "" }, text)));
}

fn import(import: &Import) -> String {
    let access = match &import.access {
        Access::Always => "always".to_owned(),
        Access::Granted { what } => format!("granted: {}", what.join(", ")),
        Access::NotGranted { write } => format!("not granted: under [grants], {write}"),
        Access::Denied => "never granted".to_owned(),
        Access::Missing => "this host does not have it".to_owned(),
    };
    format!("{:<44} {access}", import.name)
}

/// Its reasons have been printed.
fn ended(plugins: &[Inspection]) -> Result<(), Failure> {
    let refused = plugins.iter().filter(|plugin| !plugin.refused.is_empty()).count();
    if refused == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!("{refused} of {} would be refused", plugins.len())))
}
