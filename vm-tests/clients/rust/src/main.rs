//! reqwest with rustls and the certificates that rustls-native-certs finds, as a user would write it.
//! Place: a row of the client matrix; built by `cargo xtask clients`, outside of the workspace.
//! Invariant: it knows nothing of Sluice.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, BufReader};

const API: &str = "https://api.clients.example";

fn main() -> Result<(), Box<dyn Error>> {
    let asked = std::env::args().nth(1).unwrap_or_default();
    if asked == "--version" {
        println!("reqwest 0.12");
        return Ok(());
    }
    let client = reqwest::blocking::Client::builder().timeout(None).build()?;
    match asked.as_str() {
        "read" => {
            let url = format!("{API}/v1/things/42");
            println!("{}", client.get(url).bearer_auth("placeholder").send()?.text()?);
        }
        "write" => {
            let request = client.post(format!("{API}/v1/orders")).bearer_auth("placeholder");
            let request = request.header("content-type", "application/json");
            let answer = request.body(r#"{"note":"juniper"}"#).send()?;
            println!("{} {}", answer.status(), answer.text()?);
        }
        _ => {
            let url = format!("{API}/v1/events");
            let answer = client.get(url).bearer_auth("placeholder").send()?;
            for line in BufReader::new(answer).lines() {
                println!("{}", line?);
            }
        }
    }
    Ok(())
}
