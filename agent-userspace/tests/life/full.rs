//! Maps of the kernel side that are full, through the daemon: refused under one name, and over as soon as there is room again.

use std::fs;

use aya::maps::{HashMap, Map, MapData};
use rustix::process::{Signal, kill_process};

use crate::daemon::Daemon;
use crate::host::EPERM;
use crate::refusals::{ACME, HOST, counted, recorded, refused};

const PREFIX: &str = "2001:db8:1111:2222:3333:4444:5555";
const FIRST: u32 = 0x1000;
const RUN: [&str; 5] = ["run", "--agent", "acme/support", "--", "true"];

#[test]
fn a_run_without_room_for_its_workload_is_refused_written_down_and_counted_until_there_is_room() {
    let mut daemon = Daemon::start();
    let map = MapData::from_pin(daemon.pin("WORKLOADS")).unwrap();
    let mut workloads: HashMap<MapData, u64, [u8; 8]> = Map::HashMap(map).try_into().unwrap();
    // All room there is, without thousands of cgroups.
    let taken = ((1_u64 << 60)..).take_while(|id| workloads.insert(id, [0; 8], 0).is_ok());
    let taken = taken.last().unwrap();
    for _ in 0..2 {
        refused(&mut daemon, &ACME, "workloads_full", |daemon| {
            daemon.ask(&RUN)
        });
    }
    workloads.remove(&taken).unwrap();
    daemon.told(&RUN);
}

#[test]
fn more_literal_addresses_than_there_is_room_for_are_written_down_and_counted_until_there_is_room()
{
    let mut daemon = Daemon::start();
    let name = |daemon: &Daemon, count: u32| {
        // As long as an address can be: what is told of them must fit into one message.
        let hosts = (0..count).map(|number| format!("\"{PREFIX}:{:x}\"", FIRST + number));
        let hosts: Vec<String> = hosts.collect();
        let agent = "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n";
        let connection = "[[connections]]\nname = \"many\"\nconnector = \"generic-http\"\nhosts = ";
        let text = format!("{agent}\n{connection}[{}]\n", hosts.join(", "));
        fs::write(daemon.config("agents.d/support.toml"), text).unwrap();
    };
    let seen = |daemon: &Daemon| {
        let reason = "literals_full";
        let counted = counted(daemon, reason, HOST.agent);
        (recorded(daemon, HOST.tenant, reason), counted)
    };
    let literal = format!("[{PREFIX}:{FIRST:x}]:443");
    let mut agent = daemon.agent("acme/support");
    assert_eq!(agent.connect(&literal), Err(EPERM));
    assert_eq!(seen(&daemon), (0, 0));
    name(&daemon, agent_abi::MAX_LITERALS + 1);
    kill_process(daemon.enforcer(), Signal::HUP).unwrap();
    daemon.eventually("it is written down and counted", |daemon| {
        seen(daemon) == (1, 1)
    });
    assert_eq!(agent.connect(&literal), Err(EPERM));
    // A daemon that starts with it says so as well, and serves everybody else.
    daemon.kill();
    daemon.restart();
    daemon.eventually("it is written down and counted", |daemon| {
        seen(daemon) == (2, 1)
    });
    assert_eq!(agent.connect(&literal), Err(EPERM));
    daemon.told(&RUN);
    // As many as there is room for.
    name(&daemon, agent_abi::MAX_LITERALS);
    kill_process(daemon.enforcer(), Signal::HUP).unwrap();
    daemon.eventually("the address is known", |_| agent.connect(&literal).is_ok());
    assert_eq!(seen(&daemon), (2, 1));
}
