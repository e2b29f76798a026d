//! An ordinary program without the SDK: it reads its message, prints its
//! arguments and environment, and ends as its data says.

#![allow(clippy::print_stdout, reason = "stdout is the output of a command")]
#![allow(clippy::disallowed_methods, reason = "a guest sees only the environment that the host gives it")]

use std::io::Read;

fn main() -> Result<(), String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let variable = |name| std::env::var(name).unwrap_or_default();
    let args: Vec<String> = std::env::args().collect();
    println!("args={} id={} greeting={}", args.join(","), variable("GW_ID"), variable("GREETING"));
    println!("stdin={text}");
    match text.split_once("\"end\":\"").and_then(|(_, end)| end.split('"').next()) {
        Some("fail") => Err("it failed".to_owned()),
        Some("panic") => panic!("the reactor is hot"),
        Some("exit") => std::process::exit(0),
        Some("reject") => std::process::exit(65),
        _ => Ok(()),
    }
}
