//! The command `gateway-worker`, which is implemented in the library.

use gateway_worker::cli::Cli;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Builder;

/// A call of the system that hangs, such as the resolution of a name, is not waited
/// for any longer when everything else has ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    // Without threads nothing can run, not even what would report it.
    let Ok(runtime) = Builder::new_multi_thread().enable_all().build() else { return ExitCode::FAILURE };
    let code = runtime.block_on(cli.execute());
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    code
}
