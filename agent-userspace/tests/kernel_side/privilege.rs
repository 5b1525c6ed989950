//! What BPF LSM programs take from a governed task beside sockets: privileges and io_uring's reach past its task.
//! Where the kernel runs none, the layer says so, and the same act is seen to succeed: it is really open.

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host};
use crate::outside::{Elsewhere, govern};
use crate::puppet::Puppet;
use crate::ring::SQPOLL;

#[test]
fn lsm_a_program_of_a_workload_has_no_privileges() {
    let mut host = Host::start();
    let live = host.is_live("lsm_capable");
    let admitted = host.admit("acme/support");
    let (mut launcher, mut program) = Puppet::start_and_bear(&admitted.path);
    // A network namespace needs CAP_SYS_ADMIN. The controls: the privilege is there until something is executed.
    launcher.ask("new_netns").unwrap();
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };
    assert_eq!(program.ask("new_netns"), refused);
    assert_eq!(host.refusals(RefusalKind::Capability), u64::from(live));
    // What concerns its own files and processes only, it keeps.
    program.ask("setuid 65534").unwrap();

    // A process that was there before has executed long ago.
    let mut taken = Puppet::start(None);
    taken.enter(&admitted.path);
    assert_eq!(taken.ask("new_netns"), refused);
}

#[test]
fn lsm_the_launcher_has_its_privileges_until_it_executes() {
    let mut host = Host::start();
    let admitted = host.admit("acme/support");
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("run")).unwrap();
    let mut launcher = Puppet::start(None);
    let launch = format!(
        "launch {} {}",
        admitted.path.display(),
        directory.path().display()
    );
    assert_eq!(launcher.ask(&launch), Ok(vec!["7".to_owned()]));
    assert_eq!(host.refusals(RefusalKind::Capability), 0);
    assert_eq!(host.refusals(RefusalKind::Label), 0);
    // The launcher is as free as before.
    launcher.ask("new_netns").unwrap();
    host.enforcement().retire(admitted.id).unwrap();
}

#[test]
fn lsm_a_workload_elsewhere_has_no_privileges_once_it_renounced_them() {
    let mut host = Host::start();
    let live = host.is_live("lsm_capable");
    let elsewhere = Elsewhere::make(&mut host);
    govern(&mut host, "acme/support", &elsewhere.0);
    // The control: a runtime's own helper, executed in there, still has things to set up.
    let (_runtime, mut helper) = Puppet::start_and_bear(&elsewhere.0);
    helper.ask("new_netns").unwrap();
    let (_runtime, mut program) = Puppet::start_act_and_bear(&elsewhere.0, "renounce");
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };
    assert_eq!(program.ask("new_netns"), refused);
}

#[test]
fn lsm_a_workload_has_no_thread_of_io_uring() {
    ring("lsm_uring", &format!("ring {SQPOLL}"));
}

#[test]
fn lsm_a_workload_uses_no_credentials_of_io_uring() {
    ring("lsm_uring", "ring_personality");
}

#[test]
fn lsm_a_workload_commands_no_driver_by_io_uring() {
    ring("lsm_uring_cmd", "ring_command");
}

fn ring(layer: &str, act: &str) {
    let mut host = Host::start();
    let live = host.is_live(layer);
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    // The controls: an outsider, and a ring without any of these.
    let done = outsider.ask(act).unwrap();
    workload.ask("ring 0").unwrap();
    let refused = if live { Err(EPERM) } else { Ok(done) };
    assert_eq!(workload.ask(act), refused);
    assert_eq!(host.refusals(RefusalKind::Uring), u64::from(live));
}
