//! A program as anybody would write it: it reads, prints what it knows, and
//! ends as its data says.

#![allow(clippy::print_stdout, reason = "a program's way of telling")]
#![allow(clippy::disallowed_methods, reason = "a guest has an environment of its own")]

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
